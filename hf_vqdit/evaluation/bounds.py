# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The upper bound on -log p of a pair of codes, in bits, for every direction.

Masked diffusion bounds -log p(z) for z of L codes by an integral over time, which is also a sum over counts: with k
uniform in 1..L and exactly k of the codes hidden, at random,

    -log p(z) <= E[ L / k * sum over hidden codes of -log p(z_i | the others) ]

because the integral of Binomial(k; L, t) / t over t is 1 / k (MDLM, Sahoo 2024, eq. 10 by counts; LLaDA, Nie 2025). No
time has to be cut off near 0, and the variance is finite. With the exact posterior it is an equality.
"""

import math

import torch
import torch.nn.functional as F

# What is bounded -> (image, text): predicted, given, or absent (unknown throughout).
DIRECTIONS = {
    "x": ("predicted", "absent"),
    "y": ("absent", "predicted"),
    "x|y": ("predicted", "given"),
    "y|x": ("given", "predicted"),
    "x,y": ("predicted", "predicted"),
}


def bound_bits(
    model: torch.nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    which: str = "x,y",
    num_samples: int = 4,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> float:
    """
    The mean over pairs of [`bound_bits_per_pair`], which has the arguments.

    Returns:
        `float`: Bits per pair.
    """
    bits = bound_bits_per_pair(model, image_codes, text_codes, which, num_samples, generator, batch_size)
    return bits.mean().item()


@torch.no_grad()
def bound_bits_per_pair(
    model: torch.nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    which: str = "x,y",
    num_samples: int = 4,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """
    An unbiased estimate of the upper bound on -log2 p for each pair of image x and text y.

    The joint bound hides k codes of the union of both modalities, L = L_x + L_y; each modality is told its own mask
    rate. PAD counts in full: the length of the text is part of it. Of `num_samples` draws for a pair one falls into
    each of as many equal parts of the counts, and the pairs' draws share each part out among themselves.

    Args:
        model (`VQDiTModel`):
            The transformer.
        image_codes (`torch.LongTensor` of shape `(N, h, w)`):
            Clean image codes, on the model's device.
        text_codes (`torch.LongTensor` of shape `(N, S/r, G)`):
            Clean text codes and PAD.
        which (`str`, defaults to `"x,y"`):
            `"x"`, `"y"`, `"x|y"`, `"y|x"` or `"x,y"`.
        num_samples (`int`, defaults to 4):
            Draws for each pair.
        generator (`torch.Generator`, *optional*):
            Draws the counts and the hidden codes, on its own device.
        batch_size (`int`, defaults to 64):
            Rows of one forward pass.

    Returns:
        `torch.DoubleTensor` of shape `(N,)`, on the CPU.

    Raises:
        `ValueError`: `which` is none of the five, or a number is below 1.
    """
    if which not in DIRECTIONS:
        raise ValueError(f"`which` must be one of {tuple(DIRECTIONS)}, got {which!r}.")
    if min(num_samples, batch_size, len(image_codes)) < 1:
        raise ValueError(
            "`num_samples`, `batch_size` and the number of pairs must be at least 1, got "
            f"{num_samples}, {batch_size} and {len(image_codes)}."
        )
    image_role, text_role = DIRECTIONS[which]
    num_image = image_codes[0].numel() if image_role == "predicted" else 0
    num_text = text_codes[0].numel() if text_role == "predicted" else 0
    hidden = _draw_hidden(len(image_codes), num_samples, num_image + num_text, generator)  # (num_samples, N, L)

    was_training = model.training
    model.eval()
    bits = torch.zeros(len(image_codes), dtype=torch.float64)
    for sample_hidden in hidden:
        batches = (tensor.split(batch_size) for tensor in (image_codes, text_codes, sample_hidden))
        image_hidden, text_hidden = [], []
        parts = [estimate_bits(model, *batch, which) for batch in zip(*batches, strict=True)]
        bits += torch.cat(parts) / num_samples
    model.train(was_training)
    return bits

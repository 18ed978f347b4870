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


@torch.no_grad()
def bound_bits_per_pair(
    model: torch.nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    which: str,
    num_samples: int,
    generator: torch.Generator,
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
        which (`str`):
            `"x"`, `"y"`, `"x|y"`, `"y|x"` or `"x,y"`.
        num_samples (`int`):
            Draws for each pair.
        generator (`torch.Generator`):
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
    num_codes = sum(num for num, _ in _predicted_codes(model, image_codes, text_codes, which))

    was_training = model.training
    model.eval()
    bits = torch.zeros(len(image_codes), dtype=torch.float64)
    for sample in range(num_samples):
        hidden = _draw_hidden(sample, num_samples, len(image_codes), num_codes, generator).to(image_codes.device)
        batches = zip(*(tensor.split(batch_size) for tensor in (image_codes, text_codes, hidden)), strict=True)
        bits += torch.cat([estimate_bits(model, *batch, which) for batch in batches]) / num_samples
    model.train(was_training)
    return bits


@torch.no_grad()
def estimate_bits(
    model: torch.nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    hidden: torch.BoolTensor,
    which: str,
) -> torch.Tensor:
    """
    The term of the expectation, in bits, for one choice of hidden codes.

    L / k * sum of log V_i over the k hidden codes has the same expectation, the sum of log V_i over all L, whatever
    the model says: it is subtracted and put back as that number. So a uniform prediction gives L_x log2 V_x + L_y
    log2 (V_y + 1) at every draw, and others vary less.

    Args:
        model (`VQDiTModel`):
            The transformer, in evaluation mode.
        image_codes (`torch.LongTensor` of shape `(B, h, w)`):
            Clean image codes.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
            Clean text codes and PAD.
        hidden (`torch.BoolTensor` of shape `(B, L)`):
            The hidden ones of the predicted codes, at least one in each row; for `"x,y"` the image's, then the text's.
        which (`str`):
            As for [`bound_bits_per_pair`].

    Returns:
        `torch.DoubleTensor` of shape `(B,)`, on the CPU.
    """
    (num_image, image_classes), (num_text, text_classes) = _predicted_codes(model, image_codes, text_codes, which)
    image_hidden = _hide(image_codes, hidden[:, :num_image], DIRECTIONS[which][0])
    text_hidden = _hide(text_codes, hidden[:, num_image:], DIRECTIONS[which][1])
    output = model(
        image_codes.masked_fill(image_hidden, model.image_mask_id),
        text_codes.masked_fill(text_hidden, model.text_mask_id),
        image_timestep=image_hidden.flatten(1).float().mean(dim=1),
        text_timestep=text_hidden.flatten(1).float().mean(dim=1),
    )
    excess = torch.zeros(len(hidden), dtype=torch.float64)
    if num_image > 0:
        excess += _sum_nats(output.image_logits, image_codes, image_hidden, math.log(image_classes))
    if num_text > 0:
        excess += _sum_nats(output.text_logits, text_codes, text_hidden, math.log(text_classes))
    inverse_rate = hidden.shape[1] / hidden.sum(dim=1).cpu().double()  # L / k
    uniform_nats = num_image * math.log(image_classes) + num_text * math.log(text_classes)
    return (inverse_rate * excess + uniform_nats) / math.log(2)


def _predicted_codes(
    model: torch.nn.Module, image_codes: torch.Tensor, text_codes: torch.Tensor, which: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """For image and text the number of codes to predict (0 for a condition) and of classes; MASK is their number."""
    image_role, text_role = DIRECTIONS[which]
    num_image = image_codes[0].numel() if image_role == "predicted" else 0
    num_text = text_codes[0].numel() if text_role == "predicted" else 0
    return (num_image, model.image_mask_id), (num_text, model.text_mask_id)


def share_out(
    sample: int, num_samples: int, num_values: int, num_pairs: int, generator: torch.Generator
) -> torch.LongTensor:
    """
    One of `num_values` numbers from 0 for each pair, `(N,)`, on the generator's device: that of draw `sample` lies in
    that one of `num_samples` equal parts of them, which the pairs share out among themselves.
    """
    device = generator.device
    share = torch.randperm(num_pairs, generator=generator, device=device)
    share = (share + torch.rand(num_pairs, generator=generator, device=device)) / num_pairs
    return ((sample + share) / num_samples * num_values).long().clamp(max=num_values - 1)


def _draw_hidden(
    sample: int, num_samples: int, num_pairs: int, num_codes: int, generator: torch.Generator
) -> torch.BoolTensor:
    """Hide k random codes in each row, k from part `sample` of 1..L, shared out among the pairs; `(N, L)`."""
    device = generator.device
    counts = 1 + share_out(sample, num_samples, num_codes, num_pairs, generator)
    ranks = torch.rand(num_pairs, num_codes, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    return ranks < counts[:, None]


def _hide(codes: torch.Tensor, hidden: torch.Tensor, role: str) -> torch.Tensor:
    """Which codes of a modality are MASK, of the shape of `codes`."""
    if role == "predicted":
        return hidden.view_as(codes)
    return torch.full_like(codes, role == "absent", dtype=torch.bool)


def _sum_nats(logits: torch.Tensor, codes: torch.Tensor, hidden: torch.Tensor, baseline: float) -> torch.Tensor:
    """Each row's sum over its hidden codes of -log p minus a baseline, in float64 on the CPU."""
    nats = F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none").cpu().double()
    return (nats.view_as(codes) - baseline).where(hidden.cpu(), 0.0).flatten(1).sum(dim=1)

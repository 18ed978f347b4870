# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The upper bound on -log p of held-out codes, in bits, whichever process a pipeline is of."""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from .bounds import DIRECTIONS, bound_bits_per_pair
from .gaussian_bounds import gaussian_bound_bits_per_pair
from .report import summarize_bounds
from .sampling import HeldOutPairs


@torch.no_grad()
def measure_bounds(
    pipeline: DiffusionPipeline, held_out: HeldOutPairs, num_samples: int, seed: int = 0, batch_size: int = 125
) -> dict[str, Any]:
    """The bounds on held-out pairs, in every direction.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        held_out ([`HeldOutPairs`]): The pairs.
        num_samples (`int`): Draws for each pair.
        seed (`int`, defaults to 0): Seed of the draws.
        batch_size (`int`, defaults to 125): Pairs encoded at a time.

    Returns:
        `dict`: As of [`summarize_bounds`].
    """
    vqvae = pipeline.vqvae
    encoded = [
        vqvae.encode(image=batch["pixel_values"], text=batch["input_ids"])
        for batch in held_out.batches(batch_size, vqvae.device)
    ]
    image_codes = torch.cat([output.image_codes for output in encoded])  # (N, h, w)
    text_codes = torch.cat([output.text_codes for output in encoded])  # (N, S/r, G)
    generator = torch.Generator().manual_seed(seed)
    bits = {
        which: pipeline_bound_bits(pipeline, image_codes, text_codes, which, num_samples, generator)
        for which in tqdm(DIRECTIONS, desc="Bounds")
    }
    return summarize_bounds(bits, image_codes[0].numel(), text_codes[0].numel())


def pipeline_bound_bits(
    pipeline: DiffusionPipeline,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    which: str,
    num_samples: int,
    generator: torch.Generator,
    batch_size: int = 64,
) -> float:
    """The mean over pairs of the bound, whose arguments are those of [`gaussian_bound_bits_per_pair`].

    Args:
        pipeline (`VQDiTPipeline`): A pipeline of either process.
        image_codes (`torch.LongTensor` of shape `(N, h, w)`): Image codes, on the model's device.
        text_codes (`torch.LongTensor` of shape `(N, S/r, G)`): Text codes and PAD.
        which (`str`): `"x"`, `"y"`, `"x|y"`, `"y|x"` or `"x,y"`.
        num_samples (`int`): Draws for each pair.
        generator (`torch.Generator`): Of the draws.
        batch_size (`int`, defaults to 64): Rows of one forward pass.

    Returns:
        `float`: Bits per pair.
    """
    arguments = (image_codes, text_codes, which, num_samples, generator, batch_size)
    if pipeline.transformer.config.process == "masked":
        bits = bound_bits_per_pair(pipeline.transformer, *arguments)
    else:
        bits = gaussian_bound_bits_per_pair(pipeline, *arguments)
    return bits.mean().item()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The statistics of a tokenizer's code vectors, which ship with it."""

from collections.abc import Iterable
from typing import Any

import torch

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE


@torch.no_grad()
def measure_latents(vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]]) -> None:
    """Measures mean and standard deviation of the code vectors over training pairs, into the model's parameters.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer; its `<modality>_latents_mean` and `<modality>_latents_std` are set.
        batches (`Iterable[dict]`): Batches of pairs. Padding and missing modalities are left out.
    """
    codebooks = {
        name: getattr(vqvae, f"{name}_quantizer").lookup(torch.arange(size, device=vqvae.device)).double()  # (V, D)
        for name, size in (("image", vqvae.image_codebook_size), ("text", vqvae.text_codebook_size))
        if hasattr(vqvae, f"{name}_quantizer")
    }
    counts = {name: torch.zeros_like(codebook[:, 0]) for name, codebook in codebooks.items()}  # (V,)
    inputs = {"image": "pixel_values", "text": "input_ids"}
    for batch in batches:
        given = {name: batch[inputs[name]][batch[f"has_{name}"]] for name in codebooks}
        for name, values in given.items():
            if len(values):
                codes = vqvae.encode(**{name: values})[f"{name}_codes"]
                counts[name] += torch.bincount(codes[codes < len(counts[name])], minlength=len(counts[name]))  # no PAD
    for name, vectors in codebooks.items():
        share = counts[name] / counts[name].sum()
        mean = share @ vectors
        getattr(vqvae, f"{name}_latents_mean").copy_(mean)
        getattr(vqvae, f"{name}_latents_std").copy_((share @ (vectors - mean).square()).sqrt())

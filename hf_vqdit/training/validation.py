# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What is measured of a tokenizer while it is trained, and the statistics of its codes that ship with it."""

from collections.abc import Iterable
from typing import Any

import torch
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, MultimodalVQVAEEncoderOutput


@torch.no_grad()
def validate_tokenizer(
    vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]], pad_token_id: int
) -> dict[str, float]:
    """Measures what comes back of held-out pairs, and how many codes that takes.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        batches (`Iterable[dict]`): Batches of pairs.
        pad_token_id (`int`): Padding is not counted.

    Returns:
        `dict[str, float]`: For the codecs that there are `image_psnr_db`, `text_token_accuracy` and `text_exact` (captions
            that come back token for token); for each codebook `<modality>_codebook_usage`, the share of the codes that
            hold more than .01/V of the vectors, and `<modality>_codebook_perplexity`.
    """
    psnr = PeakSignalNoiseRatio(data_range=(-1.0, 1.0)).to(vqvae.device)
    token_accuracy, exact = MeanMetric().to(vqvae.device), MeanMetric().to(vqvae.device)
    counts: dict[str, torch.Tensor] = {}
    for batch in batches:
        encoded = _encode(vqvae, batch)
        _count_codes(counts, vqvae, batch, encoded)
        decoded = vqvae.decode(image_codes=encoded.image_codes, text_codes=encoded.text_codes)
        if decoded.image is not None and batch["has_image"].any():
            psnr.update(decoded.image[batch["has_image"]].float(), batch["pixel_values"][batch["has_image"]])
        if decoded.text_logits is not None and batch["has_text"].any():
            input_ids = batch["input_ids"][batch["has_text"]]  # (n, S)
            is_right = decoded.text_logits[batch["has_text"]].argmax(dim=-1) == input_ids
            is_token = input_ids != pad_token_id
            token_accuracy.update(is_right[is_token])
            exact.update((is_right | ~is_token).all(dim=1))

    measured = {"image_psnr_db": psnr, "text_token_accuracy": token_accuracy, "text_exact": exact}
    figures = {name: metric.compute().item() for name, metric in measured.items() if metric.update_called}
    for name, count in counts.items():
        share = count / count.sum()
        figures[f"{name}_codebook_usage"] = (share > 0.01 / len(share)).double().mean().item()
        figures[f"{name}_codebook_perplexity"] = torch.special.entr(share).sum().exp().item()
    return figures


@torch.no_grad()
def measure_latents(vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]]) -> None:
    """Measures the mean and standard deviation of the code vectors over training pairs, into the model's parameters.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer; its `<modality>_latents_mean` and `<modality>_latents_std` are set.
        batches (`Iterable[dict]`): Batches of pairs.
    """
    counts: dict[str, torch.Tensor] = {}
    for batch in batches:
        _count_codes(counts, vqvae, batch, _encode(vqvae, batch))
    for name, count in counts.items():
        quantizer = getattr(vqvae, f"{name}_quantizer")
        vectors = quantizer.lookup(torch.arange(len(count), device=count.device)).double()  # (V, D)
        share = count / count.sum()
        mean = share @ vectors
        getattr(vqvae, f"{name}_latents_mean").copy_(mean)
        getattr(vqvae, f"{name}_latents_std").copy_((share @ (vectors - mean).square()).sqrt())


def _encode(vqvae: MultimodalVQVAE, batch: dict[str, Any]) -> MultimodalVQVAEEncoderOutput:
    has_image_codec, has_text_codec = vqvae.image_codebook_size is not None, vqvae.config.text_codec is not None
    return vqvae.encode(
        image=batch["pixel_values"] if has_image_codec else None, text=batch["input_ids"] if has_text_codec else None
    )


def _count_codes(
    counts: dict[str, torch.Tensor],
    vqvae: MultimodalVQVAE,
    batch: dict[str, Any],
    encoded: MultimodalVQVAEEncoderOutput,
) -> None:
    """Adds how often each code was chosen, float64; padding and missing modalities are left out."""
    for name, codes in (("image", encoded.image_codes), ("text", encoded.text_codes)):
        if hasattr(vqvae, f"{name}_quantizer"):
            num_codes = len(getattr(vqvae, f"{name}_quantizer").codebook)
            chosen = codes[batch[f"has_{name}"]].flatten()
            chosen = torch.bincount(chosen[chosen < num_codes], minlength=num_codes).double()  # PAD is num_codes
            counts[name] = counts[name] + chosen if name in counts else chosen

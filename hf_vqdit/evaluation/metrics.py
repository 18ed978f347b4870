# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What is measured: of the tokenizer, of captions, and of `shapes` scenes that were read."""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from hf_vqdit.data.shapes import ATTRIBUTE_SIZES, Scene, parse
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

SSIM_WINDOW = 11  # side of the window in pixels (Wang 2004); smaller pictures have no SSIM


# The tokenizer


@torch.no_grad()
def tokenizer_figures(
    vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]], pad_token_id: int
) -> dict[str, float]:
    """How much of held-out pairs comes back from their codes, and how many codes that takes.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        batches (`Iterable[dict]`): Batches as of [`~hf_vqdit.data.collate_pairs`].
        pad_token_id (`int`): Padding is not counted.

    Returns:
        `dict[str, float]`: For the codecs that there are: `image_psnr_db`, `image_ssim`, `text_token_accuracy` and
            `text_reconstruction_exact` (captions that come back token for token); for each codebook
            `<modality>_codebook_usage`, the share of its codes that get more than .01/V of the vectors, and
            `<modality>_codebook_perplexity`.
    """
    psnr = PeakSignalNoiseRatio(data_range=(-1.0, 1.0)).to(vqvae.device)
    ssim = StructuralSimilarityIndexMeasure(kernel_size=SSIM_WINDOW, data_range=(-1.0, 1.0)).to(vqvae.device)
    token_accuracy, exact = MeanMetric().to(vqvae.device), MeanMetric().to(vqvae.device)
    counts: dict[str, torch.Tensor] = {}
    for batch in batches:
        has_image, has_text = batch["has_image"], batch["has_text"]
        if vqvae.image_codebook_size is not None and has_image.any():
            pixel_values = batch["pixel_values"][has_image]
            codes = vqvae.encode(image=pixel_values).image_codes
            restored = vqvae.decode(image_codes=codes).image.float()
            psnr.update(restored, pixel_values)
            if min(pixel_values.shape[2:]) >= SSIM_WINDOW:
                ssim.update(restored.clamp(-1, 1), pixel_values)
            _count_codes(counts, "image", codes, vqvae.image_codebook_size)
        if vqvae.config.text_codec is not None and has_text.any():
            input_ids = batch["input_ids"][has_text]  # (B, S)
            codes = vqvae.encode(text=input_ids).text_codes
            is_right = vqvae.decode(text_codes=codes).text_logits.argmax(dim=-1) == input_ids
            is_token = input_ids != pad_token_id
            token_accuracy.update(is_right[is_token])
            exact.update((is_right | ~is_token).all(dim=1))
            if vqvae.config.text_codec == "vq":
                _count_codes(counts, "text", codes[codes != vqvae.text_pad_id], vqvae.text_codebook_size)

    measured = {
        "image_psnr_db": psnr,
        "image_ssim": ssim,
        "text_token_accuracy": token_accuracy,
        "text_reconstruction_exact": exact,
    }
    figures = {name: metric.compute().item() for name, metric in measured.items() if metric.update_called}
    for name, count in counts.items():
        figures[f"{name}_codebook_usage"] = codebook_usage(count)
        figures[f"{name}_codebook_perplexity"] = codebook_perplexity(count)
    return figures


def _count_codes(counts: dict[str, torch.Tensor], name: str, codes: torch.Tensor, codebook_size: int) -> None:
    chosen = torch.bincount(codes.flatten(), minlength=codebook_size).double()
    counts[name] = counts[name] + chosen if name in counts else chosen


def codebook_usage(counts: torch.Tensor) -> float:
    """Share of the V codes that got more than .01/V of all vectors; `counts` is a tensor of shape `(V,)`."""
    return (counts / counts.sum() > 0.01 / len(counts)).double().mean().item()


def codebook_perplexity(counts: torch.Tensor) -> float:
    """Perplexity of the choice among V codes: V if all are equally likely; `counts` is a tensor of shape `(V,)`."""
    return torch.special.entr(counts / counts.sum()).sum().exp().item()


@torch.no_grad()
def reconstruct(vqvae: MultimodalVQVAE, pixel_values: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    """Pictures as they come back from their codes.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer.
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pictures in [-1, 1].
        batch_size (`int`, defaults to 250): Pictures at a time.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, H, W)`: In [-1, 1], on the CPU.
    """
    batches = (batch.to(vqvae.device) for batch in pixel_values.split(batch_size))
    restored = [vqvae.decode(image_codes=vqvae.encode(image=batch).image_codes).image for batch in batches]
    return torch.cat(restored).float().clamp(-1, 1).cpu()


# Captions


def share_equal(found: Sequence[Any], truth: Sequence[Any]) -> float:
    """Share of the entries of `found` that equal those of `truth`, in [0, 1]."""
    return sum(one == other for one, other in zip(found, truth, strict=True)) / len(truth)


def caption_exact(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of the captions that equal one of the references of their picture, in [0, 1]."""
    return sum(caption in own for caption, own in zip(captions, references, strict=True)) / len(captions)


def caption_chrf(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF (Popovic 2015) of the captions against the references of their picture, the best one counting; 0 to 100."""
    return CHRF().corpus_score(captions, _to_streams(references)).score


def caption_bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU (Papineni 2002) of the captions against all references of their picture; 0 to 100.

    Tokens are those of sacrebleu's `zh`: each Chinese character is one, everything else is cut as by `13a`, its
    default. Captions shorter than four tokens count with the orders that they have (`effective_order`).
    """
    return BLEU(tokenize="zh", effective_order=True).corpus_score(captions, _to_streams(references)).score


def _to_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References by picture -> by number, as sacrebleu wants them; `None` where a picture has no more."""
    most = max(len(own) for own in references)
    return [[own[i] if i < len(own) else None for own in references] for i in range(most)]


def share_known(captions: Sequence[str], known: Container[str]) -> float:
    """Share of the captions that are, letter for letter, among others, say those of training; in [0, 1]."""
    return sum(caption in known for caption in captions) / len(captions)


def read_captions(captions: Sequence[str]) -> list[Scene | None]:
    """The scene that each caption tells; `None` where it is not, letter for letter, a caption of exactly one."""
    return [parse(caption) for caption in captions]


# Many scenes at once


def marginal_distances(scenes: Sequence[Scene], reference: Sequence[Scene]) -> dict[str, float]:
    """How far each fact is spread from how the data spreads it.

    Args:
        scenes (`Sequence[Scene]`): Scenes of one type, say of generated pictures.
        reference (`Sequence[Scene]`): Scenes of the data.

    Returns:
        `dict[str, float]`: By the fact's name the total variation of the two marginals, in [0, 1]; 1 if there is no
            scene.
    """
    if not scenes:
        return dict.fromkeys(reference[0]._fields, 1.0)
    distances = {}
    for i, name in enumerate(reference[0]._fields):
        shares = [
            torch.bincount(torch.tensor([scene[i] for scene in group]), minlength=ATTRIBUTE_SIZES[name]).double()
            / len(group)
            for group in (scenes, reference)
        ]
        distances[name] = (shares[0] - shares[1]).abs().sum().item() / 2
    return distances


def expected_distinct(num_kinds: int, num_draws: int) -> float:
    """How many of equally likely kinds are seen, on average, in independent draws: N (1 - (1 - 1/N)^n)."""
    return num_kinds * (1 - (1 - 1 / num_kinds) ** num_draws)


def joint_figures(
    image_scenes: Sequence[Scene], text_scenes: Sequence[Scene | None], reference: Sequence[Scene]
) -> dict:
    """What is asked of pairs that were generated together.

    Args:
        image_scenes (`Sequence[Scene]`): What the judge reads off each picture.
        text_scenes (`Sequence[Scene | None]`): What each caption tells, `None` where it tells no scene.
        reference (`Sequence[Scene]`): Every scene of the training data, all equally likely.

    Returns:
        `dict`: `joint_agreement`, the share of pairs in which both are equal; `joint_distinct`, distinct scenes
            relative to as many independent real draws, of pictures or captions, whichever are fewer;
            `joint_marginals`, the total variation of each fact from the data's, of pictures or captions, whichever is
            larger, and `joint_marginal_distance`, the largest of them.
    """
    told = [scene for scene in text_scenes if scene is not None and type(scene) is type(reference[0])]
    distances = [marginal_distances(scenes, reference) for scenes in (image_scenes, told)]
    distances = {name: max(one[name] for one in distances) for name in distances[0]}
    distinct = min(len(set(image_scenes)), len(set(told)))
    return {
        "joint_agreement": share_equal(text_scenes, image_scenes),
        "joint_distinct": distinct / expected_distinct(len(reference), len(image_scenes)),
        "joint_marginals": distances,
        "joint_marginal_distance": max(distances.values()),
    }

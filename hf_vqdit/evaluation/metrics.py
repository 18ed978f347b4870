# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What is measured: of the tokenizer, of captions, of sets of pictures, and of `shapes` scenes that were read."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sacrebleu.metrics import CHRF
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance

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
            is_right = vqvae.read_text(vqvae.decode(text_codes=codes).text_logits) == input_ids
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
    most = max(len(own) for own in references)
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    return CHRF().corpus_score(captions, streams).score


def read_captions(captions: Sequence[str]) -> list[Scene | None]:
    """The scene that each caption tells; `None` where it is not, letter for letter, a caption of exactly one."""
    return [parse(caption) for caption in captions]


# Many samples at once


@torch.no_grad()
def tokenizer_latents(vqvae: MultimodalVQVAE, pixel_values: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    """Features of pictures: the latents of a tokenizer's encoder, averaged over each quarter of the picture.

    They tell colors, shapes and where these are, as finely as the tokenizer has learned to, and need no network from
    elsewhere. Their scale is the tokenizer's own.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1].
        batch_size (`int`, defaults to 250): Pictures encoded at a time.

    Returns:
        `torch.DoubleTensor` of shape `(N, 4 * code_dim)`, on the CPU.
    """
    features = []
    for batch in pixel_values.split(batch_size):
        latents = vqvae.encode(image=batch.to(vqvae.device, vqvae.dtype)).image_latents  # (B, code_dim, h, w)
        features.append(F.adaptive_avg_pool2d(latents.cpu().double(), 2).flatten(1))  # (B, 4 code_dim)
    return torch.cat(features)


class PictureSetFigures:
    """Compares sets of generated pictures with one set of real ones, on [`tokenizer_latents`].

    - `fid_tokenizer_latents`, the Fréchet distance on tokenizer latents: ||m - m'||^2 + tr(S + S' - 2 (S S')^(1/2)) of
      means and covariances, as in FID (Heusel 2017, eq. 6) with other features: values compare within one tokenizer
      only, and with no FID. It falls with the number of pictures, so only sets of equal size compare.
    - `diversity_tokenizer_latents`: the mean Euclidean distance between two pictures of the set, over all pairs,
      relative to that of the real set: 1 is as diverse as they are, 0 is one picture for everything. The diversity of
      BicycleGAN (Zhu 2017), with these features in the place of those of LPIPS.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        real_pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1], at least two.
        batch_size (`int`, defaults to 250): Pictures encoded at a time.
    """

    def __init__(self, vqvae: MultimodalVQVAE, real_pixel_values: torch.Tensor, batch_size: int = 250) -> None:
        self.vqvae, self.batch_size = vqvae, batch_size
        real = tokenizer_latents(vqvae, real_pixel_values, batch_size)
        # The metric is fed with features, so that each picture is encoded once for both figures.
        identity = torch.nn.Identity()
        identity.num_features = real.shape[1]
        self.frechet_distance = FrechetInceptionDistance(identity, reset_real_features=False)
        self.frechet_distance.update(real, real=True)
        self.real_distance = torch.pdist(real).mean()

    def measure(self, pixel_values: torch.Tensor) -> dict[str, float]:
        """
        The two figures of a set of pictures.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): At least two pictures in [-1, 1].

        Returns:
            `dict[str, float]`
        """
        features = tokenizer_latents(self.vqvae, pixel_values, self.batch_size)
        self.frechet_distance.reset()
        self.frechet_distance.update(features, real=False)
        return {
            # Between equal sets rounding may take it a little below 0. (`max` would turn NaN into the best value.)
            "fid_tokenizer_latents": self.frechet_distance.compute().clamp(min=0).item(),
            "diversity_tokenizer_latents": (torch.pdist(features).mean() / self.real_distance).item(),
        }


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

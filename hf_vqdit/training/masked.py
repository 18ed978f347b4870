# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The training objective of masked diffusion: hide codes, predict them, weigh the cross-entropy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel

from hf_vqdit.models.transformer_vqdit import mask_rate
from hf_vqdit.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

from .rows import PairLoss, given_regions, is_trained, pad_weight, park_missing, sums_by_time
from .times import TimeTable

LOSS_WEIGHTINGS = ("uniform", "soft_inverse")


@dataclass(frozen=True)
class MaskedLossConfig:
    """
    Weights of [`masked_objective`].

    A modality's loss is weighted by its mask rate m, the fraction of its codes that are hidden. `"uniform"` counts
    every hidden code alike, which favours pictures. `"soft_inverse"` is 1 / (m + (1 - m) / `max_inverse_weight`): with
    the linear mask schedule the likelihood bound (MDLM, Sahoo 2024) has the weight 1 / m, and this follows it up to a
    cap (UniDisc, Swerdlow 2025), because the gradient's variance would otherwise be that of the rows with one mask.

    Args:
        text_loss_weight (`float`, defaults to 0.5):
            Weight of the text's loss beside the image's.
        pad_loss_weight (`float`, defaults to 0.1):
            Weight of text positions that are PAD, after the first one. The first one tells where the text ends; the
            others are easy, many, and would drown the words.
        label_smoothing (`float`, defaults to 0.0):
            Share of the target spread evenly over all classes.
        image_loss_weighting (`str`, defaults to `"uniform"`):
            `"uniform"` or `"soft_inverse"`.
        text_loss_weighting (`str`, defaults to `"soft_inverse"`):
            `"uniform"` or `"soft_inverse"`.
        max_inverse_weight (`float`, defaults to 5.0):
            The cap of `"soft_inverse"`, reached as the mask rate goes to 0.
        region_fraction (`float`, defaults to 0.0):
            Share of the rows in which a random rectangle of the picture, or span of the text, is given, or all but
            such a region: the situation of inpainting. Drawn for each modality by itself.

    Raises:
        `ValueError`: a value is out of range.
    """

    text_loss_weight: float = 0.5
    pad_loss_weight: float = 0.1
    label_smoothing: float = 0.0
    image_loss_weighting: str = "uniform"
    text_loss_weighting: str = "soft_inverse"
    max_inverse_weight: float = 5.0
    region_fraction: float = 0.0

    def __post_init__(self):
        for name in ("image_loss_weighting", "text_loss_weighting"):
            if getattr(self, name) not in LOSS_WEIGHTINGS:
                raise ValueError(f"`{name}` must be one of {LOSS_WEIGHTINGS}, got {getattr(self, name)!r}.")
        for name in ("label_smoothing", "region_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        for name, least in (("text_loss_weight", 0), ("pad_loss_weight", 0), ("max_inverse_weight", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class HiddenCodes:
    """
    One modality of a micro-batch, some of its codes hidden.

    Args:
        codes (`torch.LongTensor` of shape `(B, ...)`):
            The clean codes.
        noisy_codes (`torch.LongTensor` of shape `(B, ...)`):
            The same with MASK in them.
        mask_token_id (`int`):
            The id of MASK.
        time (`torch.FloatTensor` of shape `(B,)`):
            Time of each row.
        is_trained (`torch.BoolTensor` of shape `(B,)`):
            False where the modality is a condition, given or missing.
    """

    codes: torch.LongTensor
    noisy_codes: torch.LongTensor
    mask_token_id: int
    time: torch.FloatTensor
    is_trained: torch.BoolTensor

    @cached_property
    def hidden(self) -> torch.BoolTensor:
        """The codes that carry a loss, `(B, ...)`: those that are MASK in rows that are trained."""
        return (self.noisy_codes == self.mask_token_id) & self.is_trained[:, None, None]

    @cached_property
    def rate(self) -> torch.FloatTensor:
        """What the transformer is told of the modality, `(B,)`."""
        return mask_rate(self.noisy_codes, self.mask_token_id)


class CodeLosses(NamedTuple):
    """Of one modality's codes, 0 at those that carry no loss."""

    losses: torch.FloatTensor  # (B, ...), not yet weighted
    nats: torch.FloatTensor  # (B, ...), what is logged of them, detached


def masked_objective(
    model: nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    times: TimeTable,
    scheduler: MaskedDiffusionScheduler,
    text_scheduler: MaskedDiffusionScheduler,
    generators: Sequence[torch.Generator],
    config: MaskedLossConfig | None = None,
    has_image: torch.BoolTensor | None = None,
    has_text: torch.BoolTensor | None = None,
) -> PairLoss:
    """
    Hide codes of a micro-batch as its times say, predict them, and return the weighted cross-entropy.

    A row's loss is the weighted sum over its hidden codes divided by the number of all codes of the modality, which is
    the same for every row. So the mean over the global batch does not depend on how it is cut into micro-batches.

    Args:
        model (`VQDiTModel`):
            The transformer, wrapped by accelerate or not.
        image_codes (`torch.LongTensor` of shape `(B, h, w)`):
            Clean image codes; any code where the image is missing.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
            Clean text codes and PAD; any code where the text is missing.
        times (`TimeTable`):
            The times of these B rows.
        scheduler (`MaskedDiffusionScheduler`):
            Whose `add_noise` hides image codes.
        text_scheduler (`MaskedDiffusionScheduler`):
            Whose `add_noise` hides text codes.
        generators (`Sequence[torch.Generator]`):
            One for each row.
        config (`MaskedLossConfig`, *optional*):
            Weights; the defaults if left out.
        has_image (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the image is missing: it is all MASK at time exactly 1 and carries no loss.
        has_text (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the text is missing.

    Returns:
        [`PairLoss`]
    """
    config = config or MaskedLossConfig()
    image, text = hide_pair(
        model,
        image_codes,
        text_codes,
        times,
        scheduler,
        text_scheduler,
        generators,
        config.region_fraction,
        has_image,
        has_text,
    )
    output = model(image.noisy_codes, text.noisy_codes, image_timestep=image.rate, text_timestep=text.rate)
    image_losses = _cross_entropy(output.image_logits, image, config.label_smoothing)
    text_losses = _cross_entropy(output.text_logits, text, config.label_smoothing)
    return weigh_losses(model, image, text, image_losses, text_losses, config)


def hide_pair(
    model: nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    times: TimeTable,
    scheduler: MaskedDiffusionScheduler,
    text_scheduler: MaskedDiffusionScheduler,
    generators: Sequence[torch.Generator],
    region_fraction: float = 0.0,
    has_image: torch.BoolTensor | None = None,
    has_text: torch.BoolTensor | None = None,
    move_times: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[HiddenCodes, HiddenCodes]:
    """
    Hide codes of both modalities of a micro-batch as its times say: image and text.

    The arguments are those of [`masked_objective`]. Which modalities of a row are trained its times in the table say:
    those strictly between 0 and 1. `move_times` then takes the times `(B,)` of these, and of these alone, to others in
    (0, 1]: so one may be exactly 1, where nothing is known, and still be trained.
    """
    architecture, generators = extract_model_from_parallel(model), list(generators)
    device = image_codes.device
    parked = park_missing(times.image_time.to(device), times.text_time.to(device), has_image, has_text)
    hidden = []
    for codes, time, mask_token_id, law, region_shape in (
        (image_codes, parked[0], architecture.image_mask_id, scheduler, image_codes.shape[1:]),
        # All groups of a text position are given, or none is.
        (text_codes, parked[1], architecture.text_mask_id, text_scheduler, (text_codes.shape[1], 1)),
    ):
        trained = is_trained(time)
        if move_times is not None:
            time = torch.where(trained, move_times(time), time)
        given = given_regions(region_shape, trained, region_fraction, generators).expand_as(codes)
        noisy_codes = law.add_noise(codes, time, mask_token_id=mask_token_id, frozen_mask=given, generator=generators)
        hidden.append(HiddenCodes(codes, noisy_codes, mask_token_id, time, trained))
    return tuple(hidden)


def weigh_losses(
    model: nn.Module,
    image: HiddenCodes,
    text: HiddenCodes,
    image_losses: CodeLosses,
    text_losses: CodeLosses,
    config: MaskedLossConfig,
) -> PairLoss:
    """The losses of all codes, weighted as `config` says, and divided by counts that are the same for every row."""
    pad_id = extract_model_from_parallel(model).text_pad_id
    image_weight = _rate_weight(image.rate, config.image_loss_weighting, config.max_inverse_weight)[:, None, None]
    text_weight = _rate_weight(text.rate, config.text_loss_weighting, config.max_inverse_weight)[:, None, None]
    text_weight = text_weight * pad_weight(text.codes, pad_id, config.pad_loss_weight)
    image_loss_rows = (image_weight * image_losses.losses).flatten(1).mean(dim=1)  # (B,)
    text_loss_rows = (text_weight * text_losses.losses).flatten(1).mean(dim=1)  # (B,)
    return PairLoss(
        loss=(image_loss_rows + config.text_loss_weight * text_loss_rows).mean(),
        image_loss_rows=image_loss_rows.detach(),
        text_loss_rows=text_loss_rows.detach(),
        sums=sums_by_time("image_nats", image_losses.nats, image.hidden, image.time)
        | sums_by_time("text_nats", text_losses.nats, text.hidden, text.time),
    )


def _rate_weight(rate: torch.Tensor, weighting: str, max_inverse_weight: float) -> torch.Tensor:
    if weighting == "uniform":
        return torch.ones_like(rate)
    return 1 / (rate + (1 - rate) / max_inverse_weight)


def _cross_entropy(logits: torch.Tensor, hidden_codes: HiddenCodes, label_smoothing: float) -> CodeLosses:
    """The smoothed cross-entropy with the clean codes; its nats are those without smoothing."""
    codes, hidden = hidden_codes.codes, hidden_codes.hidden
    logits = logits.float().flatten(0, -2)
    nats = F.cross_entropy(logits, codes.flatten(), reduction="none").view_as(codes)
    losses = nats
    if label_smoothing > 0:
        losses = F.cross_entropy(logits, codes.flatten(), reduction="none", label_smoothing=label_smoothing)
    return CodeLosses(losses.view_as(codes).where(hidden, 0.0), nats.detach().where(hidden, 0.0))

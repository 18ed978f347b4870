# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The training objective of Gaussian diffusion: noise the vectors of codes, and predict what the model predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from diffusers import SchedulerMixin

from hf_vqdit.models.transformer_vqdit import original_sample
from hf_vqdit.schedulers.noise_levels import NoiseLevels, gaussian_nats, rounding_nats

from .rows import PairLoss, given_regions, is_trained, pad_weight, park_missing, sums_by_time
from .times import TimeTable

TIME_SAMPLINGS = ("uniform", "logit_normal")


@dataclass(frozen=True)
class GaussianLossConfig:
    r"""
    Times and weights of [`gaussian_objective`].

    The loss is the mean square of the error of what the network predicts. With `learn_sigma` it is the hybrid loss
    L_simple + kl_weight * L_vlb (Nichol & Dhariwal 2021, eq. 16), where L_vlb is the sum over all N levels: the term
    of the one level that is drawn counts N times.

    Args:
        text_loss_weight (`float`, defaults to 1.0):
            Weight of the text's loss beside the image's. Both are means over codes and channels.
        pad_loss_weight (`float`, defaults to 0.1):
            Weight of text positions that are PAD, after the first one.
        time_sampling (`str`, defaults to `"uniform"`):
            How times are spread: `"uniform"`, or `"logit_normal"`, logit(t) ~ N(`logit_mean`, `logit_std`^2), which
            favours the middle (Stable Diffusion 3, Esser 2024, Sec. 3.1). A scheduler's shift comes after it.
        logit_mean (`float`, defaults to 0.0):
            See `time_sampling`; above 0 there is more noise.
        logit_std (`float`, defaults to 1.0):
            See `time_sampling`.
        min_snr_gamma (`float`, *optional*):
            Weighs the squared error of x_0 by min(SNR, `min_snr_gamma`) at each level (Hang 2023); 5 is usual.
        kl_weight (`float`, defaults to 0.001):
            lambda of the hybrid loss. The bound has no gradient to the mean: it trains the variance alone.
        region_fraction (`float`, defaults to 0.0):
            Share of the rows in which a random rectangle of the picture, or span of the text, is given, or all but
            such a region: the situation of inpainting. Drawn for each modality by itself, in whole patches.

    Raises:
        `ValueError`: a value is out of range.
    """

    text_loss_weight: float = 1.0
    pad_loss_weight: float = 0.1
    time_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    min_snr_gamma: float | None = None
    kl_weight: float = 1e-3
    region_fraction: float = 0.0

    def __post_init__(self):
        if self.time_sampling not in TIME_SAMPLINGS:
            raise ValueError(f"`time_sampling` must be one of {TIME_SAMPLINGS}, got {self.time_sampling!r}.")
        if not 0 <= self.region_fraction <= 1:
            raise ValueError(f"`region_fraction` must lie in [0, 1], got {self.region_fraction}.")
        for name in ("text_loss_weight", "pad_loss_weight", "kl_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        for name in ("logit_std", "min_snr_gamma"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")


@dataclass(frozen=True)
class NoisyVectors:
    """
    One modality of a micro-batch, its vectors noised.

    Args:
        codes (`torch.LongTensor` of shape `(B, ...)`):
            The codes.
        vectors (`torch.FloatTensor` of shape `(V, C)`):
            The vectors of all codes; PAD is the last one of text.
        clean (`torch.FloatTensor` of shape `(B, C, ...)`):
            x_0, the vectors of `codes`.
        noise (`torch.FloatTensor` of shape `(B, C, ...)`):
            eps.
        given (`torch.BoolTensor` of shape `(B, ...)`):
            Where the network gets x_0 itself.
        trained (`torch.BoolTensor` of shape `(B,)`):
            False where the modality is a condition, given or missing.
        time (`torch.FloatTensor` of shape `(B,)`):
            What the network is told.
        levels (`NoiseLevels`):
            The noise at each time.
    """

    codes: torch.LongTensor
    vectors: torch.FloatTensor
    clean: torch.FloatTensor
    noise: torch.FloatTensor
    given: torch.BoolTensor
    trained: torch.BoolTensor
    time: torch.FloatTensor
    levels: NoiseLevels

    @cached_property
    def coefficients(self) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """alpha and sigma of each row, `(B, 1, 1, 1)`."""
        return tuple(x.float()[:, None, None, None] for x in self.levels.at(self.time))

    @cached_property
    def noisy(self) -> torch.FloatTensor:
        """What the network looks at: x_t, or x_0 where it is given; of a missing modality nothing but noise."""
        alpha, sigma = self.coefficients
        is_missing = (~self.trained & (self.time == 1))[:, None, None, None]
        noisy = torch.where(is_missing, self.noise, alpha * self.clean + sigma * self.noise)
        return torch.where(self.given[:, None], self.clean, noisy)

    @cached_property
    def counted(self) -> torch.BoolTensor:
        """The codes that carry a loss, `(B, ...)`."""
        return ~self.given & self.trained[:, None, None]


def gaussian_objective(
    model: nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    times: TimeTable,
    scheduler: SchedulerMixin,
    text_scheduler: SchedulerMixin,
    generators: Sequence[torch.Generator],
    config: GaussianLossConfig | None = None,
    has_image: torch.BoolTensor | None = None,
    has_text: torch.BoolTensor | None = None,
    *,
    image_vectors: torch.FloatTensor,
    text_vectors: torch.FloatTensor,
) -> PairLoss:
    """
    Noise the vectors of a micro-batch as its times say, predict, and return the weighted squared error.

    A row's loss is the sum over the codes that are not given divided by the number of all codes of the modality, which
    is the same for every row. So the mean over the global batch does not depend on how it is cut into micro-batches.

    Args:
        model (`VQDiTModel`):
            The transformer, wrapped by accelerate or not, of the Gaussian process.
        image_codes (`torch.LongTensor` of shape `(B, h, w)`):
            Image codes; any code where the image is missing.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
            Text codes and PAD; any code where the text is missing.
        times (`TimeTable`):
            The times of these B rows. Those of trained modalities are spread as `config` says; in a joint row both
            stay at the same step of their schedules.
        scheduler (`SchedulerMixin`):
            A scheduler of diffusers, whose noise the image gets.
        text_scheduler (`SchedulerMixin`):
            The same for text.
        generators (`Sequence[torch.Generator]`):
            One for each row.
        config (`GaussianLossConfig`, *optional*):
            Times and weights; the defaults if left out.
        has_image (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the image is missing: it is pure noise at time exactly 1 and carries no loss.
        has_text (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the text is missing.
        image_vectors (`torch.FloatTensor` of shape `(V_x, C)`):
            The vectors of all image codes, normalized.
        text_vectors (`torch.FloatTensor` of shape `(V_y + 1, C)`):
            The vectors of all text codes, normalized, and that of PAD.

    Returns:
        [`PairLoss`]
    """
    config, architecture = config or GaussianLossConfig(), extract_model_from_parallel(model)
    prediction_type, patch_size = architecture.config.prediction_type, architecture.config.patch_size
    device, generators = image_codes.device, list(generators)
    image_time, text_time = park_missing(times.image_time.to(device), times.text_time.to(device), has_image, has_text)
    image_levels, text_levels = (NoiseLevels(law, prediction_type) for law in (scheduler, text_scheduler))
    image = noise_vectors(image_codes, image_vectors, image_time, image_levels, generators, config, (patch_size,) * 2)
    text = noise_vectors(
        text_codes, text_vectors, text_time, text_levels, generators, config, (1, text_codes.shape[2])
    )
    output = model(
        image_latents=image.noisy,
        text_latents=text.noisy,
        image_timestep=image.time,
        text_timestep=text.time,
        image_given_mask=image.given,
        text_given_mask=text.given,
    )
    image_losses, image_errors = _losses(output.image_sample, image, architecture.config, config)  # (B, h, w)
    text_losses, text_errors = _losses(output.text_sample, text, architecture.config, config)  # (B, S/r, G)
    text_losses = text_losses * pad_weight(text_codes, architecture.text_pad_id, config.pad_loss_weight)
    image_loss_rows, text_loss_rows = image_losses.flatten(1).mean(dim=1), text_losses.flatten(1).mean(dim=1)  # (B,)
    return PairLoss(
        loss=(image_loss_rows + config.text_loss_weight * text_loss_rows).mean(),
        image_loss_rows=image_loss_rows.detach(),
        text_loss_rows=text_loss_rows.detach(),
        sums=sums_by_time("image_error", image_errors, image.counted, image.time)
        | sums_by_time("text_error", text_errors, text.counted, text.time),
    )


def noise_vectors(
    codes: torch.LongTensor,
    vectors: torch.FloatTensor,
    time: torch.FloatTensor,
    levels: NoiseLevels,
    generators: Sequence[torch.Generator],
    config: GaussianLossConfig,
    region_unit: tuple[int, int] = (1, 1),
) -> NoisyVectors:
    """
    Noise one modality of a micro-batch.

    Args:
        codes (`torch.LongTensor` of shape `(B, m, n)`):
            Its codes.
        vectors (`torch.FloatTensor` of shape `(V, C)`):
            The vectors of all codes.
        time (`torch.FloatTensor` of shape `(B,)`):
            Evenly spread times; exactly 0 or 1 parks a row.
        levels (`NoiseLevels`):
            The noise at each time.
        generators (`Sequence[torch.Generator]`):
            One for each row.
        config (`GaussianLossConfig`):
            How times are spread, and how often regions are given.
        region_unit (`tuple[int, int]`, defaults to `(1, 1)`):
            Rows and columns of codes that are given together.

    Returns:
        [`NoisyVectors`]
    """
    trained = is_trained(time)
    time = torch.where(trained, spread_times(time, levels, config), time)
    shape = (codes.shape[1] // region_unit[0], codes.shape[2] // region_unit[1])
    given = given_regions(shape, trained, config.region_fraction, generators)
    given = given.repeat_interleave(region_unit[0], dim=1).repeat_interleave(region_unit[1], dim=2)
    clean = F.embedding(codes, vectors).movedim(-1, 1)  # (B, C, m, n)
    noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
    is_given = given | (time == 0)[:, None, None]
    return NoisyVectors(codes, vectors, clean, noise.to(clean.device), is_given, trained, time, levels)


def spread_times(time: torch.FloatTensor, levels: NoiseLevels, config: GaussianLossConfig) -> torch.FloatTensor:
    """
    Take evenly spread times in (0, 1) to those that are trained on, by quantiles: what was stratified stays so.

    Args:
        time (`torch.FloatTensor` of shape `(B,)`):
            Evenly spread times.
        levels (`NoiseLevels`):
            A flow's times are shifted, t' = s t / (1 + (s - 1) t) (Esser 2024, eq. 23); others become those of levels.
        config (`GaussianLossConfig`):
            The distribution.

    Returns:
        `torch.FloatTensor` of shape `(B,)` in (0, 1]; in a flow below 1.
    """
    time = time.double()
    if config.time_sampling == "logit_normal":
        time = torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(time))
    if levels.is_flow:
        time = levels.shift * time / (1 + (levels.shift - 1) * time)
        return time.float().clamp(2**-24, 1 - 2**-24)
    level = (time * levels.num_levels).floor().clamp(0, levels.num_levels - 1) + 1
    return (level / levels.num_levels).float()


def _losses(
    prediction: torch.Tensor, noisy_vectors: NoisyVectors, architecture: dict, config: GaussianLossConfig
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """For each code its loss, and for the log its squared error; `(B, ...)`, 0 where a code is not counted."""
    counted, (alpha, sigma) = noisy_vectors.counted, noisy_vectors.coefficients
    clean, prediction_type = noisy_vectors.clean, architecture.prediction_type
    mean, *variance = prediction.float().split(clean.shape[1], dim=1)
    target = prediction_target(prediction_type, clean, noisy_vectors.noise, alpha, sigma)
    errors = losses = (mean - target).square().mean(dim=1)  # (B, ...)
    if config.min_snr_gamma is not None:
        losses = losses * min_snr_weight(prediction_type, alpha, sigma, config.min_snr_gamma)[:, 0]
    if architecture.learn_sigma and config.kl_weight > 0:
        predicted = original_sample(prediction_type, mean.detach(), noisy_vectors.noisy, alpha, sigma)
        nats = bound_nats(predicted, variance[0], noisy_vectors) / clean.shape[1]
        losses = losses + config.kl_weight * noisy_vectors.levels.num_levels * nats
    return losses.where(counted, 0.0), errors.detach().where(counted, 0.0)


def prediction_target(
    prediction_type: str,
    clean: torch.FloatTensor,
    noise: torch.FloatTensor,
    alpha: torch.FloatTensor,
    sigma: torch.FloatTensor,
) -> torch.FloatTensor:
    """What a network of a prediction type learns to predict at x_t = alpha x_0 + sigma eps: see `original_sample`."""
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[prediction_type]


def min_snr_weight(
    prediction_type: str, alpha: torch.FloatTensor, sigma: torch.FloatTensor, gamma: float
) -> torch.FloatTensor:
    """
    The weight of a squared error that weighs the error of x_0 by min(SNR, gamma) (Hang 2023, Sec. 3.4).

    Args:
        prediction_type (`str`):
            What the error is of.
        alpha (`torch.FloatTensor`):
            alpha_t.
        sigma (`torch.FloatTensor` of the same shape):
            sigma_t, above 0.
        gamma (`float`):
            The cap of the signal-to-noise ratio (alpha_t / sigma_t)^2.

    Returns:
        `torch.FloatTensor` of the same shape. Where there is no signal at all it is 1: sampling starts there.
    """
    snr = (alpha / sigma).square()
    # The error of x_0 is this many times that of the prediction: see `original_sample`.
    scale = {"epsilon": 1 / snr, "sample": torch.ones_like(snr)}.get(prediction_type, sigma.square())
    return torch.where(snr == 0, 1.0, snr.clamp(max=gamma) * scale)


def bound_nats(
    predicted: torch.FloatTensor, interpolation: torch.FloatTensor, noisy_vectors: NoisyVectors
) -> torch.FloatTensor:
    """
    The term of the variational bound of each row's level, in nats for each code, summed over its channels.

    Args:
        predicted (`torch.FloatTensor` of shape `(B, C, ...)`):
            x_0 as predicted.
        interpolation (`torch.FloatTensor` of shape `(B, C, ...)`):
            The variance as predicted: see [`~hf_vqdit.schedulers.noise_levels.Transition`].
        noisy_vectors ([`NoisyVectors`]):
            What they were predicted from.

    Returns:
        `torch.FloatTensor` of shape `(B, ...)`: KL of the step from level t to t - 1; at level 1, from which there is
        but the step to the codes, the cross-entropy of rounding to them.
    """
    level = noisy_vectors.levels.level(noisy_vectors.time).clamp(min=1)[:, None, None, None]
    transition = noisy_vectors.levels.transition(level, level - 1)
    log_variance = transition.log_variance(interpolation)
    mean_error = transition.clean * (predicted - noisy_vectors.clean)
    nats = gaussian_nats(mean_error, transition.variance, log_variance).sum(dim=1)  # (B, ...)
    is_last = level.flatten() == 1
    if is_last.any():
        variance = log_variance[is_last].exp()
        rounded = rounding_nats(noisy_vectors.codes[is_last], noisy_vectors.vectors, predicted[is_last], variance)
        nats = nats.index_put((is_last,), rounded)
    return nats

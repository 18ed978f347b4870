# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The variational bound on -log p of a pair of codes under Gaussian diffusion, in bits, as that of masked diffusion.

With levels r = t_1 < ... < t_N of noise and codes z whose vectors are x_0 (Ho 2020, eq. 5; Kingma 2021, eq. 11),

    -log p(z) <= KL(q(x_N | x_0) || N(0, 1))                                  what the last level still tells
               + sum over t > r of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
               - E log p(z | x_r)                                             rounding to the codes

where p(x_{t-1} | x_t) has the variance that the network predicts, or that of the posterior. The last term is the
cross-entropy of the Gaussian that the network predicts at level r, rounded to the vectors of all codes: a probability
of codes, so that the sum is one too, and stands beside the bound of a masked process.

r = 1 is the whole chain. But codes may have nearly the same vectors, and what little a network errs at little noise
counts there by the large ratio of signal to noise: with a later r the bound is tighter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from hf_vqdit.models.transformer_vqdit import original_sample
from hf_vqdit.schedulers.noise_levels import NoiseLevels, gaussian_nats, rounding_nats

from .bounds import DIRECTIONS, share_out


@torch.no_grad()
def gaussian_bound_bits_per_pair(
    pipeline: DiffusionPipeline,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    which: str,
    num_samples: int,
    generator: torch.Generator,
    batch_size: int = 64,
    rounding_level: int | None = None,
) -> torch.Tensor:
    """
    An unbiased estimate of the upper bound on -log2 p for each pair of image x and text y.

    Of `num_samples` levels above `rounding_level` that are drawn for a pair one falls into each of as many equal parts
    of them, and the pairs' draws share each part out among themselves; the rounding is looked at for every pair. PAD
    counts in full: the length of the text is part of it. The joint bound takes both modalities through the levels side
    by side.

    Args:
        pipeline (`VQDiTPipeline`):
            A pipeline of the Gaussian process; its schedulers say what noise the levels have.
        image_codes (`torch.LongTensor` of shape `(N, h, w)`):
            Image codes, on the model's device.
        text_codes (`torch.LongTensor` of shape `(N, S/r, G)`):
            Text codes and PAD.
        which (`str`):
            `"x"`, `"y"`, `"x|y"`, `"y|x"` or `"x,y"`.
        num_samples (`int`):
            Levels drawn for each pair.
        generator (`torch.Generator`):
            Draws the levels and the noise, on its own device.
        batch_size (`int`, defaults to 64):
            Rows of one forward pass.
        rounding_level (`int`, *optional*):
            r. With each there is a bound; the levels below it are left to the rounding. By default the last level of
            the first predicted modality that has no more than half as much noise as signal, sigma <= alpha / 2.

    Returns:
        `torch.DoubleTensor` of shape `(N,)`, on the CPU.

    Raises:
        `ValueError`: `which` is none of the five, a number is below 1 or too large, or image and text have different
        numbers of levels.
    """
    if which not in DIRECTIONS:
        raise ValueError(f"`which` must be one of {tuple(DIRECTIONS)}, got {which!r}.")
    model, roles = pipeline.transformer, dict(zip(("image", "text"), DIRECTIONS[which], strict=True))
    all_codes = {"image": image_codes, "text": text_codes}
    sides = {name: Side.of(pipeline, name, codes, roles[name]) for name, codes in all_codes.items()}
    num_levels = {side.levels.num_levels for side in sides.values() if side.role == "predicted"}
    if len(num_levels) > 1:
        raise ValueError(f"Image and text must have one number of levels for {which!r}, got {sorted(num_levels)}.")
    num_levels = num_levels.pop()
    if rounding_level is None:
        levels = next(side.levels for side in sides.values() if side.role == "predicted")
        rounding_level = max(1, int((levels.sigma <= levels.alpha / 2).sum()) - 1)
    if min(num_samples, batch_size, len(image_codes), rounding_level) < 1 or rounding_level >= num_levels:
        raise ValueError(
            "`num_samples`, `batch_size` and the number of pairs must be at least 1, and `rounding_level` in "
            f"1..{num_levels - 1}, got {num_samples}, {batch_size}, {len(image_codes)} and {rounding_level}."
        )

    was_training = model.training
    model.eval()
    nats = sum(side.prior_nats() for side in sides.values())  # (N,)
    num_steps, rounding = num_levels - rounding_level, torch.full((len(image_codes),), rounding_level)
    nats += _level_nats(model, sides, rounding, torch.zeros_like(rounding), generator, batch_size)
    for sample in range(num_samples):
        level = rounding_level + 1 + share_out(sample, num_samples, num_steps, len(image_codes), generator).cpu()
        nats += num_steps / num_samples * _level_nats(model, sides, level, level - 1, generator, batch_size)
    model.train(was_training)
    return nats / math.log(2)


@dataclass(frozen=True)
class Side:
    """
    One modality of the pairs.

    Args:
        role (`str`):
            `"predicted"`, `"given"` or `"absent"`.
        codes (`torch.LongTensor` of shape `(N, ...)`):
            Its codes.
        vectors (`torch.FloatTensor` of shape `(V, C)`):
            The vectors of all codes; PAD is the last one of text.
        levels (`NoiseLevels`):
            Its noise.
        log_prior (`torch.FloatTensor` of shape `(V,)`):
            How often each code comes.
    """

    role: str
    codes: torch.LongTensor
    vectors: torch.FloatTensor
    levels: NoiseLevels
    log_prior: torch.FloatTensor

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, name: str, codes: torch.LongTensor, role: str) -> "Side":
        """The side of a pipeline."""
        model, scheduler = pipeline.transformer, pipeline.scheduler if name == "image" else pipeline.text_scheduler
        levels = NoiseLevels(scheduler, model.config.prediction_type)
        log_prior = getattr(model, f"{name}_log_prior").float()
        return cls(role, codes, model.code_vectors(name, pipeline.vqvae), levels, log_prior)

    def clean(self, rows: slice = slice(None)) -> torch.FloatTensor:
        """x_0 of some rows, `(B, C, ...)`."""
        return F.embedding(self.codes[rows], self.vectors).movedim(-1, 1)

    def prior_nats(self) -> torch.DoubleTensor:
        """What the last level tells of each pair, `(N,)`, on the CPU; nothing unless it is predicted."""
        if self.role != "predicted":
            return torch.zeros(len(self.codes), dtype=torch.float64)
        return self.levels.prior_nats(self.clean().double()).flatten(1).sum(dim=1).cpu()

    def look(
        self, rows: slice, level: torch.LongTensor, generator: torch.Generator
    ) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """What the network is given of some rows at levels `(B,)`: latents `(B, C, ...)` and times `(B,)`."""
        clean = self.clean(rows)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device)
        time = torch.full((len(clean),), float(self.role == "absent"), device=clean.device)
        if self.role != "predicted":
            return clean if self.role == "given" else noise, time
        time = level.to(clean.device) / self.levels.num_levels
        alpha, sigma = (x.float()[:, None, None, None] for x in self.levels.at(time))
        return alpha * clean + sigma * noise, time

    def step_nats(
        self,
        rows: slice,
        x_t: torch.FloatTensor,
        prediction: torch.FloatTensor,
        config: Mapping[str, Any],
        start: torch.LongTensor,
        end: torch.LongTensor,
    ) -> torch.FloatTensor:
        """The term of each code of some rows for the step between levels `(B,)`, `(B, ...)`."""
        start, end = (level[:, None, None, None].to(x_t.device) for level in (start, end))
        alpha, sigma = (x.float() for x in self.levels.at(start / self.levels.num_levels))
        mean, *interpolation = prediction.float().split(x_t.shape[1], dim=1)
        predicted = original_sample(config["prediction_type"], mean, x_t, alpha, sigma)
        step = self.levels.transition(start, end)
        if (end == 0).all():
            is_learned = config["learn_sigma"] and (start == 1).all()  # it was learned for steps of one level
            variance = step.log_variance(interpolation[0]).exp() if is_learned else (sigma / alpha).square()
            return rounding_nats(self.codes[rows], self.vectors, predicted, variance, self.log_prior)
        log_variance = step.log_variance(interpolation[0]) if config["learn_sigma"] else step.variance.log()
        return gaussian_nats(step.clean * (predicted - self.clean(rows)), step.variance, log_variance).sum(dim=1)


def _level_nats(
    model: torch.nn.Module,
    sides: dict[str, Side],
    start: torch.LongTensor,
    end: torch.LongTensor,
    generator: torch.Generator,
    batch_size: int,
) -> torch.DoubleTensor:
    """The term of the step from one level to another of each pair, `(N,)`; from any to level 0 it is the rounding."""
    nats = torch.zeros(len(start), dtype=torch.float64)
    for first in range(0, len(start), batch_size):
        rows, inputs = slice(first, first + batch_size), {}
        for name, side in sides.items():
            inputs[f"{name}_latents"], inputs[f"{name}_timestep"] = side.look(rows, start[rows], generator)
        predictions = model(**inputs, return_dict=False)
        for (name, side), prediction in zip(sides.items(), predictions, strict=True):
            if side.role == "predicted":
                x_t = inputs[f"{name}_latents"]
                own = side.step_nats(rows, x_t, prediction, model.config, start[rows], end[rows])
                nats[rows] += own.double().flatten(1).sum(dim=1).cpu()
    return nats

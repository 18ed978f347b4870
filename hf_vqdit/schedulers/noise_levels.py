# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The noise of Gaussian diffusion as training and bounds need it, read off a scheduler of diffusers."""

import math
from inspect import signature
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin


class Transition(NamedTuple):
    """
    q(x_s | x_t, x_0) = N(`noisy` x_t + `clean` x_0, `variance`) for levels s < t (Ho 2020, eq. 7).

    At s = 0 that variance is 0: there the one of the step before, of the same length, stands in its place (Nichol &
    Dhariwal 2021), since a logarithm of it is taken. `max_variance` is that of q(x_t | x_s).
    """

    noisy: torch.Tensor
    clean: torch.Tensor
    variance: torch.Tensor
    max_variance: torch.Tensor

    def log_variance(self, interpolation: torch.Tensor) -> torch.Tensor:
        """
        log Sigma_theta = (v + 1) / 2 log beta_t + (1 - v) / 2 log beta~_t (Nichol & Dhariwal 2021, eq. 15).

        Args:
            interpolation (`torch.Tensor`):
                v as the network predicts it, without bounds.

        Returns:
            `torch.Tensor`
        """
        share = (interpolation + 1) / 2
        return share * self.max_variance.log() + (1 - share) * self.variance.log()


class NoiseLevels:
    r"""
    The noise of one modality, x_t = alpha_t x_0 + sigma_t eps, at level 0 (clean) to N.

    The time of level k is k / N. Level k of a variance-preserving scheduler is index k - 1 of its table
    `alphas_cumprod`. In a flow alpha_t = 1 - t and sigma_t = t at any time, and the levels are those of N equal parts.

    Args:
        scheduler (`SchedulerMixin`):
            A scheduler of diffusers. Nothing is set on it.
        prediction_type (`str`):
            That of the network: `"flow_prediction"` means a flow.

    Raises:
        `ValueError`: the scheduler has no table, or its shift depends on the resolution.
    """

    def __init__(self, scheduler: SchedulerMixin, prediction_type: str):
        # Without the settings that `from_config` keeps of the class that the scheduler was before.
        own = signature(type(scheduler).__init__).parameters
        config = {name: value for name, value in scheduler.config.items() if name in own}
        self.num_levels = config["num_train_timesteps"]  # N
        self.is_flow = prediction_type == "flow_prediction"
        self.shift = 1.0
        if self.is_flow:
            if config.get("use_dynamic_shifting"):
                raise ValueError(
                    "`use_dynamic_shifting` lets the noise depend on the resolution, which training does not follow: "
                    "set a constant `shift` instead."
                )
            self.shift = config.get("flow_shift", config.get("shift", 1.0))
            self.sigma = torch.arange(self.num_levels + 1, dtype=torch.float64) / self.num_levels  # (N + 1,)
            self.alpha = 1 - self.sigma
        else:
            if not hasattr(scheduler, "alphas_cumprod"):
                raise ValueError(
                    f"{type(scheduler).__name__} has no `alphas_cumprod`, which a network of the prediction type "
                    f"{prediction_type!r} needs. DDPMScheduler has; only flows do without."
                )
            alphas_cumprod = F.pad(scheduler.alphas_cumprod.double().cpu(), (1, 0), value=1.0)  # (N + 1,)
            self.alpha, self.sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def at(self, time: torch.FloatTensor) -> tuple[torch.DoubleTensor, torch.DoubleTensor]:
        """alpha and sigma at times, which are those of levels but for a flow."""
        if self.is_flow:
            return 1 - time.double(), time.double()
        level = self.level(time)
        return self.alpha.to(level.device)[level], self.sigma.to(level.device)[level]

    def level(self, time: torch.FloatTensor) -> torch.LongTensor:
        """The nearest level of times."""
        return (time.double() * self.num_levels).round().long()

    def transition(self, start: torch.LongTensor, end: torch.LongTensor) -> Transition:
        """
        The posterior between any two levels, for flows too.

        Args:
            start (`torch.LongTensor`):
                Levels t of 1..N.
            end (`torch.LongTensor` of the same shape):
                Levels s < t.

        Returns:
            [`Transition`] with float32 tensors of that shape.
        """
        noisy, clean, variance, max_variance = self._posterior(start, end)
        before = self._posterior((2 * start - end).clamp(max=self.num_levels), start)
        variance = torch.where(end == 0, before[2], variance)
        return Transition(*(x.float() for x in (noisy, clean, variance, max_variance)))

    def _posterior(self, start: torch.LongTensor, end: torch.LongTensor) -> tuple[torch.DoubleTensor, ...]:
        alpha, sigma = self.alpha.to(start.device), self.sigma.to(start.device)
        alpha_t, sigma_t, alpha_s, sigma_s = alpha[start], sigma[start], alpha[end], sigma[end]
        ratio = alpha_t / alpha_s
        max_variance = sigma_t.square() - (ratio * sigma_s).square()
        noisy = ratio * sigma_s.square() / sigma_t.square()
        clean = alpha_s * max_variance / sigma_t.square()
        return noisy, clean, max_variance * sigma_s.square() / sigma_t.square(), max_variance

    def prior_nats(self, x_0: torch.Tensor) -> torch.Tensor:
        """KL(q(x_N | x_0) || N(0, 1)) of each entry of `x_0`, in nats: what the last level still tells of it."""
        alpha, sigma = self.alpha[-1].item(), self.sigma[-1].item()
        return 0.5 * ((alpha * x_0).square() + sigma**2 - 1) - math.log(sigma)


def gaussian_nats(mean_error: torch.Tensor, variance: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """
    KL(N(m, `variance`) || N(m + `mean_error`, exp(`log_variance`))) of each channel, in nats.

    Args:
        mean_error (`torch.Tensor`):
            Difference of the means.
        variance (`torch.Tensor`):
            Variance of the first.
        log_variance (`torch.Tensor`):
            Log-variance of the second.

    Returns:
        `torch.Tensor`
    """
    ratio = (variance + mean_error.square()) * (-log_variance).exp()
    return 0.5 * (ratio - 1 + log_variance - variance.log())


def rounding_nats(
    codes: torch.LongTensor,
    vectors: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    log_prior: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    -log of the probability of codes when N(`mean`, `variance`) is rounded to the vectors of codes, in nats.

    p(z) is proportional to p_z N(e_z; mean, variance): the decoder of Diffusion-LM (Li 2022, Sec. 4.2) with the
    distances to the embeddings for logits. The prior tells codes apart whose vectors are nearly the same.

    Args:
        codes (`torch.LongTensor` of shape `(B, ...)`):
            The codes z.
        vectors (`torch.Tensor` of shape `(V, C)`):
            The vectors e of all codes.
        mean (`torch.Tensor` of shape `(B, C, ...)`):
            The mean.
        variance (`torch.Tensor`, broadcast to `mean`):
            The variance of each channel.
        log_prior (`torch.Tensor` of shape `(V,)`, *optional*):
            log p_z up to a constant; by default all codes come as often.

    Returns:
        `torch.Tensor` of shape `(B, ...)`.
    """
    precision = (1 / variance).expand_as(mean).movedim(1, -1)  # (B, ..., C)
    # log N(e; m, s) = (m e - e^2 / 2) / s + what does not depend on e
    logits = (precision * mean.movedim(1, -1)) @ vectors.T - 0.5 * precision @ vectors.square().T  # (B, ..., V)
    logits = logits if log_prior is None else logits + log_prior
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view_as(codes)

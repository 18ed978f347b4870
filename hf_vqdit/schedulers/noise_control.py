# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Noise-control sequences, and the betas under which the schedulers of diffusers know the same process."""

from collections.abc import Sequence

import numpy as np


def betas_from_noise_control(
    sigmas: Sequence[float] | np.ndarray, noise_variance: float | Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    r"""
    The betas of a process that is written with a noise-control sequence.

    X_t = sqrt(sigma_t) X_{t-1} + eps_t with Var(eps_t) = q_t scales unit variance to c_t^2 = sigma_t c_{t-1}^2 + q_t,
    c_0 = 1. Divided by it, X_t / c_t is the variance-preserving process of DDPM (Ho 2020, eq. 2) with

        beta_t = q_t / c_t^2,    alpha_bar_t = prod_{i <= t} sigma_i / c_t^2

    Noise of variance 1 - sigma_t keeps c_t at 1, and beta_t is 1 - sigma_t. Noise of variance 1, as such sequences are
    often written, leaves no more than half of the variance to the signal after a single step: a network trained on it
    never sees little noise.

    Args:
        sigmas (`Sequence[float]` or `np.ndarray` of shape `(T,)`):
            sigma_1 to sigma_T, each in (0, 1].
        noise_variance (`float`, or `Sequence[float]` or `np.ndarray` of shape `(T,)`, *optional*):
            Var(eps_t) > 0, one for all steps or one for each; by default 1 - sigma_t.

    Returns:
        `np.ndarray` of shape `(T,)`, float64, in (0, 1): what the schedulers of diffusers take as `trained_betas`.

    Raises:
        `ValueError`: a sigma is outside (0, 1], a variance is not positive, or the lengths differ.

    Example:

    ```py
    >>> betas = betas_from_noise_control(np.linspace(0.9999, 0.98, 1000))
    >>> scheduler = DDPMScheduler(trained_betas=betas, clip_sample=False)
    ```
    """
    sigmas = np.asarray(sigmas, dtype=np.float64)
    if sigmas.ndim != 1 or len(sigmas) == 0 or not ((sigmas > 0) & (sigmas <= 1)).all():
        raise ValueError(
            "`sigmas` must be a sequence of numbers in (0, 1], the part of the variance that each step keeps, got "
            f"{_describe(sigmas, (sigmas > 0) & (sigmas <= 1))}."
        )
    variances = 1 - sigmas if noise_variance is None else np.asarray(noise_variance, dtype=np.float64)
    if variances.ndim > 1 or variances.size not in (1, len(sigmas)):
        raise ValueError(
            f"`noise_variance` must be one number, or one for each of the {len(sigmas)} steps, got the shape "
            f"{variances.shape}."
        )
    variances = np.broadcast_to(variances, sigmas.shape)
    if not ((variances > 0) & np.isfinite(variances)).all():
        default = " (1 - sigma by default: no sigma may be 1 then)" if noise_variance is None else ""
        raise ValueError(
            f"`noise_variance` must be positive and finite{default}, got "
            f"{_describe(variances, (variances > 0) & np.isfinite(variances))}."
        )
    second_moments, second_moment = np.empty_like(sigmas), 1.0
    for step, (sigma, variance) in enumerate(zip(sigmas, variances, strict=True)):
        second_moment = sigma * second_moment + variance
        second_moments[step] = second_moment
    return variances / second_moments


def _describe(values: np.ndarray, is_right: np.ndarray) -> str:
    """The first wrong value and where it is, or the shape if that is what is wrong."""
    if values.ndim != 1 or len(values) == 0:
        return f"the shape {values.shape}"
    step = int(np.argmin(is_right))
    return f"{values[step]:g} at step {step + 1}"

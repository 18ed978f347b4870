# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A noise-control sequence and the betas made of it are one process up to scale."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from hf_vqdit import betas_from_noise_control

SIGMAS = np.linspace(0.99, 0.7, 20)
VARIANCES = {"kept": None, "unit": 1.0, "small": 0.05, "of each step": np.linspace(0.01, 0.5, 20)}


def alphas_cumprod(betas):
    return np.cumprod(1 - betas)


def test_noise_that_keeps_the_variance_is_ddpm():
    np.testing.assert_allclose(betas_from_noise_control(SIGMAS), 1 - SIGMAS, rtol=0, atol=1e-15)


@pytest.mark.parametrize("variance", VARIANCES.values(), ids=VARIANCES)
def test_the_marginals_are_those_of_a_direct_simulation(variance):
    """From x_0 = 1: the mean of x_t is sqrt(alpha_bar_t), its variance 1 - alpha_bar_t, at every t."""
    num_chains, rng = 200_000, np.random.default_rng(0)
    noise_variance = np.broadcast_to(1 - SIGMAS if variance is None else variance, SIGMAS.shape)
    expected = alphas_cumprod(betas_from_noise_control(SIGMAS, variance))
    x, unit = np.ones(num_chains), rng.standard_normal(num_chains)  # the chain of x_0 = 1, one of unit variance
    for sigma, q, alpha_bar in zip(SIGMAS, noise_variance, expected, strict=True):
        noise = np.sqrt(q) * rng.standard_normal(num_chains)
        x, unit = np.sqrt(sigma) * x + noise, np.sqrt(sigma) * unit + noise
        scaled = x / np.sqrt(np.mean(unit**2))
        spread = np.sqrt(1 - alpha_bar)
        assert abs(scaled.mean() - np.sqrt(alpha_bar)) < 4 * (spread + 1) / np.sqrt(num_chains)
        assert abs(scaled.var() - (1 - alpha_bar)) < 4 * (1 - alpha_bar + 1) * np.sqrt(2 / num_chains)


@pytest.mark.parametrize("variance", VARIANCES.values(), ids=VARIANCES)
def test_the_signal_that_is_left_has_its_closed_form(variance):
    """alpha_bar_t = A_t / (A_t + V_t), with A_t the product of the sigmas and V_t the noise that has come in."""
    noise_variance = np.broadcast_to(1 - SIGMAS if variance is None else variance, SIGMAS.shape)
    signal, num_steps = np.cumprod(SIGMAS), len(SIGMAS)
    kept = [[np.prod(SIGMAS[i + 1 : t + 1]) if i <= t else 0.0 for i in range(num_steps)] for t in range(num_steps)]
    noise = np.array(kept) @ noise_variance
    np.testing.assert_allclose(
        alphas_cumprod(betas_from_noise_control(SIGMAS, variance)), signal / (signal + noise), rtol=1e-12
    )


def test_unit_noise_leaves_less_than_half_of_the_variance_to_the_signal_at_once():
    betas = betas_from_noise_control(np.full(1000, 0.999), 1.0)
    assert 1 - betas[0] < 0.5 and alphas_cumprod(betas)[9] < 0.1
    assert ((betas > 0) & (betas < 1)).all()


@pytest.mark.parametrize(
    "scheduler_class", (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)
)
def test_schedulers_take_the_betas_and_keep_them_when_saved(scheduler_class, tmp_path):
    betas = betas_from_noise_control(np.linspace(0.9999, 0.98, 1000), 0.01)
    scheduler = scheduler_class(trained_betas=betas)
    scheduler.save_pretrained(tmp_path)
    for one in (scheduler, scheduler_class.from_pretrained(tmp_path)):
        torch.testing.assert_close(
            one.alphas_cumprod.double(), torch.from_numpy(alphas_cumprod(betas)), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize(
    ("sigmas", "noise_variance", "message"),
    (
        ([0.9, 0.0, 0.8], None, r"`sigmas`.*\(0, 1\].*got 0 at step 2"),
        ([0.9, 1.5], None, "got 1.5 at step 2"),
        ([-0.1], 1.0, "got -0.1 at step 1"),
        ([float("nan")], 1.0, "got nan at step 1"),
        ([], None, r"`sigmas`.*shape \(0,\)"),
        ([[0.9]], None, r"`sigmas`.*shape \(1, 1\)"),
        ([0.9, 1.0], None, r"`noise_variance` must be positive.*no sigma may be 1.*got 0 at step 2"),
        ([0.9, 0.8], 0.0, "`noise_variance` must be positive.*got 0 at step 1"),
        ([0.9, 0.8], [1.0, -2.0], "got -2 at step 2"),
        ([0.9, 0.8], float("inf"), "got inf at step 1"),
        ([0.9, 0.8], [1.0, 1.0, 1.0], r"one for each of the 2 steps, got the shape \(3,\)"),
    ),
)
def test_a_sequence_that_is_none_is_refused(sigmas, noise_variance, message):
    with pytest.raises(ValueError, match=message):
        betas_from_noise_control(sigmas, noise_variance)

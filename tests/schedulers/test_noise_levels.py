# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The noise of Gaussian diffusion, against the schedulers it is read off and slow references in float64."""

import math

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch.distributions import Normal, kl_divergence

from hf_vqdit.schedulers.noise_levels import NoiseLevels, Transition, gaussian_nats, rounding_nats

DDPM = DDPMScheduler(num_train_timesteps=50)
LEVELS = {
    "ddpm": NoiseLevels(DDPM, "epsilon"),
    "cosine": NoiseLevels(DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2"), "v_prediction"),
    "flow": NoiseLevels(FlowMatchEulerDiscreteScheduler(num_train_timesteps=50), "flow_prediction"),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Levels


def test_level_k_is_index_k_minus_one_of_the_scheduler():
    x_0, noise, index = randn(50, 3).float(), randn(50, 3, seed=1).float(), torch.arange(50)
    alpha, sigma = LEVELS["ddpm"].at((index + 1) / 50)
    expected = DDPM.add_noise(x_0, noise, index)
    torch.testing.assert_close((alpha[:, None] * x_0 + sigma[:, None] * noise).float(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_at_time_zero_there_is_no_noise(levels):
    alpha, sigma = levels.at(torch.zeros(1))
    assert (alpha.item(), sigma.item()) == (1, 0)


def test_a_flow_has_a_straight_path_at_any_time():
    time = torch.tensor([0.0, 1e-6, 0.123456, 1.0])
    alpha, sigma = LEVELS["flow"].at(time)
    assert torch.equal(sigma, time.double()) and torch.equal(alpha, 1 - time.double())


@pytest.mark.parametrize(
    ("scheduler", "shift"),
    (
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 3.0),
        (FlowMatchHeunDiscreteScheduler(), 1.0),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0), 2.0),
    ),
)
def test_the_shift_is_that_of_the_scheduler(scheduler, shift):
    assert NoiseLevels(scheduler, "flow_prediction").shift == shift


def test_the_shift_of_a_class_that_the_scheduler_was_before_is_not_its_own():
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    swapped = FlowMatchEulerDiscreteScheduler.from_config(UniPCMultistepScheduler(**flow, flow_shift=3.0).config)
    assert swapped.config.flow_shift == 3.0 and swapped.shift == NoiseLevels(swapped, "flow_prediction").shift == 1.0


# The posterior


def reference_posterior(levels, t, s):
    """Ho 2020, eq. 7, in the scale in which alpha^2 + sigma^2 = 1, and back."""
    alpha_t, sigma_t = levels.alpha[t].item(), levels.sigma[t].item()
    alpha_s, sigma_s = levels.alpha[s].item(), levels.sigma[s].item()
    scale_t, scale_s = math.hypot(alpha_t, sigma_t), math.hypot(alpha_s, sigma_s)
    bar_t, bar_s = (alpha_t / scale_t) ** 2, (alpha_s / scale_s) ** 2
    beta = 1 - bar_t / bar_s
    clean = math.sqrt(bar_s) * beta / (1 - bar_t) * scale_s
    noisy = math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * scale_s / scale_t
    return noisy, clean, beta * (1 - bar_s) / (1 - bar_t) * scale_s**2


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("step", (1, 7))
def test_the_posterior_is_that_of_ddpm(levels, step):
    for start in range(2 * step, 50, 5):
        found = levels.transition(torch.tensor(start), torch.tensor(start - step))
        expected = reference_posterior(levels, start, start - step)
        for value, reference in zip(found[:3], expected, strict=True):
            assert value.item() == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_a_step_by_the_posterior_leads_to_the_marginal_of_the_level_below(levels):
    start = torch.arange(2, 51)
    for end in (start - 1, start // 2):
        step = levels.transition(start, end)
        clean = step.clean + step.noisy * levels.alpha[start]
        variance = step.variance + (step.noisy * levels.sigma[start]).square()
        torch.testing.assert_close(clean.double(), levels.alpha[end], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(variance.double(), levels.sigma[end].square(), rtol=1e-5, atol=1e-7)


def test_the_variances_of_single_steps_are_those_of_the_scheduler():
    start = torch.arange(2, 51)
    step = LEVELS["ddpm"].transition(start, start - 1)
    scheduler = DDPMScheduler(num_train_timesteps=50)
    scheduler.set_timesteps(50)
    small = torch.stack([scheduler._get_variance(level - 1, variance_type="fixed_small") for level in start])
    large = torch.stack([scheduler._get_variance(level - 1, variance_type="fixed_large") for level in start])
    torch.testing.assert_close(step.variance, small, rtol=1e-3, atol=0)
    torch.testing.assert_close(step.max_variance, large, rtol=1e-3, atol=0)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_at_the_last_step_the_variance_of_the_step_before_stands_for_none(levels):
    last = levels.transition(torch.tensor([1, 4]), torch.tensor([0, 0]))
    before = levels.transition(torch.tensor([2, 8]), torch.tensor([1, 4]))
    assert torch.equal(last.variance, before.variance) and (last.variance > 0).all()
    assert torch.equal(last.clean, torch.ones(2)) and torch.equal(last.noisy, torch.zeros(2))


def test_the_learned_variance_lies_between_the_posterior_and_beta():
    start = torch.arange(2, 51)
    step = LEVELS["ddpm"].transition(start, start - 1)
    for interpolation, expected in ((-1.0, step.variance), (1.0, step.max_variance)):
        torch.testing.assert_close(step.log_variance(torch.full((49,), interpolation)).exp(), expected)
    middle = step.log_variance(torch.zeros(49)).exp()
    torch.testing.assert_close(middle, (step.variance * step.max_variance).sqrt())


@pytest.mark.parametrize("time_left", (1, 10, 49))
def test_the_best_learned_variance_of_gaussian_data_is_found_between_its_ends(time_left):
    """Sigma = beta~ + clean^2 Var(x_0 | x_t), for x_0 ~ N(0, 1/4): the KL bound is least there, and it is in reach."""
    level = torch.tensor(time_left + 1)
    step = Transition(*(x.double() for x in LEVELS["ddpm"].transition(level, level - 1)))
    variance_of_x_0 = 1 / (4 + (LEVELS["ddpm"].alpha[level] / LEVELS["ddpm"].sigma[level]).square())
    interpolation = torch.linspace(-1.5, 1.5, 30_001, dtype=torch.float64)
    nats = gaussian_nats(step.clean * variance_of_x_0.sqrt(), step.variance, step.log_variance(interpolation))
    best = interpolation[nats.argmin()]
    expected = step.variance + step.clean.square() * variance_of_x_0
    torch.testing.assert_close(step.log_variance(best).exp(), expected, rtol=1e-3, atol=0)
    assert -1 < best < 1


# Nats


def test_nats_are_the_divergence_of_two_gaussians():
    error, variance, log_variance = randn(100), randn(100, seed=1).exp(), randn(100, seed=2)
    expected = kl_divergence(Normal(0.0, variance.sqrt()), Normal(error, (log_variance / 2).exp()))
    torch.testing.assert_close(gaussian_nats(error, variance, log_variance), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_with_the_variance_of_the_posterior_the_bound_is_the_loss_in_signal_to_noise(levels):
    """KL = 1/2 (SNR(s) - SNR(t)) |x_0 - predicted|^2 (Kingma 2021, VDM, eq. 13)."""
    start = torch.arange(2, 50)
    step, snr = levels.transition(start, start - 1), (levels.alpha / levels.sigma).square()
    error = randn(48).float()
    nats = gaussian_nats(step.clean * error, step.variance, step.variance.log())
    expected = 0.5 * (snr[start - 1] - snr[start]) * error.double().square()
    torch.testing.assert_close(nats.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("per_channel", (False, True))
def test_rounding_compares_the_densities_at_the_vectors_of_codes(per_channel):
    vectors, mean = randn(7, 4), randn(2, 4, 3, 5, seed=1)
    variance = randn(2, 4, 3, 5, seed=2).exp() if per_channel else torch.tensor(0.3, dtype=torch.float64)
    codes = torch.randint(0, 7, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    density = Normal(mean.movedim(1, -1)[..., None, :], variance.expand_as(mean).movedim(1, -1)[..., None, :].sqrt())
    log_p = density.log_prob(vectors).sum(dim=-1).log_softmax(dim=-1)  # (2, 3, 5, 7)
    expected = -log_p.gather(-1, codes[..., None]).squeeze(-1)
    torch.testing.assert_close(rounding_nats(codes, vectors, mean, variance), expected, rtol=1e-10, atol=1e-10)


def test_the_prior_is_what_the_last_level_still_tells():
    levels, x_0 = LEVELS["ddpm"], randn(100)
    last = Normal(levels.alpha[-1] * x_0, levels.sigma[-1])
    torch.testing.assert_close(levels.prior_nats(x_0), kl_divergence(last, Normal(0.0, 1.0)))
    assert LEVELS["flow"].prior_nats(x_0).abs().max() == 0
    assert NoiseLevels(DDPMScheduler(), "epsilon").prior_nats(x_0).mean() / math.log(2) < 1e-4  # a thousand levels


# Bad input


def test_noise_that_depends_on_the_resolution_or_on_nothing_is_refused():
    with pytest.raises(ValueError, match="`use_dynamic_shifting`.*constant `shift`"):
        NoiseLevels(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "flow_prediction")
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no `alphas_cumprod`.*'epsilon'"):
        NoiseLevels(FlowMatchEulerDiscreteScheduler(), "epsilon")

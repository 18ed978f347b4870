# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The objective of Gaussian diffusion, against a slow reference in float64."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from gaussian_inputs import make_transformer

from hf_vqdit.models.transformer_vqdit import PREDICTION_TYPES, original_sample
from hf_vqdit.schedulers.noise_levels import NoiseLevels
from hf_vqdit.training.gaussian import (
    GaussianLossConfig,
    bound_nats,
    gaussian_objective,
    min_snr_weight,
    noise_vectors,
    prediction_target,
    spread_times,
)
from hf_vqdit.training.times import TimeMixture, TimeTable, draw_times, row_generator, step_generator

V_X, V_Y, PAD = 11, 7, 7
PLAIN = GaussianLossConfig(pad_loss_weight=1.0)
NOISE = {
    "epsilon": DDPMScheduler(num_train_timesteps=100),
    "v_prediction": DDPMScheduler(num_train_timesteps=100, rescale_betas_zero_snr=True),
    "sample": DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"),
    "flow_prediction": FlowMatchEulerDiscreteScheduler(num_train_timesteps=100),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


VECTORS = {"image_vectors": randn(V_X, 4), "text_vectors": randn(V_Y + 1, 4, seed=1)}


def make_model(**config):
    return make_transformer(image_codebook_size=V_X, text_codebook_size=V_Y, text_num_groups=2, num_layers=1, **config)


def make_codes(num_rows=8):
    """Pictures of 4 x 4 codes; captions of 5 positions, the last 0 to 3 of them PAD."""
    generator = torch.Generator().manual_seed(0)
    image_codes = torch.randint(0, V_X, (num_rows, 4, 4), generator=generator)
    text_codes = torch.randint(0, V_Y, (num_rows, 5, 2), generator=generator)
    for row, codes in enumerate(text_codes):
        codes[5 - row % 4 :] = PAD
    return image_codes, text_codes


def make_times(image_time, text_time, num_rows=8):
    expand = torch.ones(num_rows)
    return TimeTable(torch.zeros(num_rows, dtype=torch.long), image_time * expand, text_time * expand)


def objective(model, times, config=PLAIN, rows=None, scheduler=None, **kwargs):
    """The objective on some rows (all by default) of the global batch."""
    image_codes, text_codes = make_codes(len(times.kind))
    rows = torch.arange(len(image_codes)) if rows is None else rows
    scheduler = NOISE[model.config.prediction_type] if scheduler is None else scheduler
    generators = [row_generator(0, 0, row) for row in rows.tolist()]
    settings = {name: value[rows] for name, value in kwargs.items()} | VECTORS
    codes = (image_codes[rows], text_codes[rows])
    return gaussian_objective(model, *codes, times.select(rows), scheduler, scheduler, generators, config, **settings)


def watch(model):
    """The inputs and the output of the last call."""
    seen = {}
    model.register_forward_hook(lambda _, args, kwargs, output: seen.update(kwargs, output=output), with_kwargs=True)
    return seen


def drawn_noise(num_rows=8):
    """What the rows' generators draw: of the image, then of the text."""
    generators = [row_generator(0, 0, row) for row in range(num_rows)]
    pairs = [(torch.randn(4, 4, 4, generator=g), torch.randn(4, 5, 2, generator=g)) for g in generators]
    return [torch.stack(own).double() for own in zip(*pairs, strict=True)]


# What the network sees


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_network_sees_the_vectors_with_the_noise_of_the_scheduler(prediction_type):
    model = make_model(prediction_type=prediction_type)
    seen, scheduler = watch(model), NOISE[prediction_type]
    objective(model, make_times(0.3, 0.8))
    image_noise, _ = drawn_noise()
    clean = VECTORS["image_vectors"].double()[make_codes()[0]].movedim(-1, 1)
    time = seen["image_timestep"][0].item()
    if prediction_type == "flow_prediction":
        assert time == pytest.approx(0.3)
        expected = (1 - time) * clean + time * image_noise
    else:
        assert time == pytest.approx(0.31)  # 0.3 is in the 31st of a hundred parts: index 30
        expected = scheduler.add_noise(clean, image_noise, torch.tensor([30]))
    torch.testing.assert_close(seen["image_latents"], expected.float(), rtol=0, atol=1e-5)
    assert not seen["image_given_mask"].any() and not seen["text_given_mask"].any()


def test_a_given_modality_is_clean_a_missing_one_is_noise_and_neither_carries_a_loss():
    model = make_model()
    seen = watch(model)
    text_codes = make_codes()[1]
    loss = objective(model, make_times(0.5, 0.0))
    assert torch.equal(seen["text_latents"], VECTORS["text_vectors"][text_codes].movedim(-1, 1))
    assert seen["text_given_mask"].all() and (seen["text_timestep"] == 0).all()
    assert loss.text_loss_rows.abs().max() == 0 and loss.sums["text_error"].tolist() == [0, 0]
    loss = objective(model, make_times(1.0, 0.5))
    assert torch.equal(seen["image_latents"].double(), drawn_noise()[0]) and (seen["image_timestep"] == 1).all()
    assert not seen["image_given_mask"].any() and loss.image_loss_rows.abs().max() == 0
    has_image = torch.arange(8) >= 3
    loss = objective(model, make_times(0.5, 0.0), has_image=has_image)
    assert seen["image_timestep"][:3].tolist() == [1] * 3
    assert (seen["text_timestep"] > 0).tolist() == [True] * 3 + [False] * 5  # what is left takes over its time
    assert ((loss.text_loss_rows > 0) == ~has_image).all() and ((loss.image_loss_rows > 0) == has_image).all()


def test_the_last_level_is_trained_and_is_not_a_missing_modality():
    model = make_model(prediction_type="epsilon")
    seen = watch(model)
    loss = objective(model, make_times(0.999, 0.0))
    assert (seen["image_timestep"] == 1).all() and (loss.image_loss_rows > 0).all()
    assert not torch.equal(seen["image_latents"].double(), drawn_noise()[0])  # a little of the picture is left


def test_regions_are_given_in_whole_patches_and_positions_and_carry_no_loss():
    model = make_model()
    seen = watch(model)
    config = GaussianLossConfig(pad_loss_weight=1.0, region_fraction=1.0)
    loss = objective(model, make_times(0.5, 0.5, 64), config)
    given, text_given = seen["image_given_mask"], seen["text_given_mask"]
    patches = given.unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3).flatten(3)
    assert torch.equal(patches.any(dim=-1), patches.all(dim=-1)) and 0.3 < given.float().mean() < 0.7
    assert torch.equal(text_given.any(dim=-1), text_given.all(dim=-1)) and 0.3 < text_given.float().mean() < 0.7
    clean = VECTORS["image_vectors"][make_codes(64)[0]].movedim(-1, 1)
    is_clean = (seen["image_latents"] == clean).all(dim=1)
    assert torch.equal(is_clean, given)
    assert loss.sums["image_error"][1] == (~given).sum()


# The loss


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_loss_is_the_mean_square_of_the_error_of_the_prediction(prediction_type):
    model = make_model(prediction_type=prediction_type)
    seen = watch(model)
    loss = objective(model, make_times(0.3, 0.8))
    levels = NoiseLevels(NOISE[prediction_type], prediction_type)
    for name, codes, noise in zip(("image", "text"), make_codes(), drawn_noise(), strict=True):
        alpha, sigma = (x[0].item() for x in levels.at(seen[f"{name}_timestep"]))
        clean = VECTORS[f"{name}_vectors"].double()[codes].movedim(-1, 1)
        target = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "sample": clean,
            "flow_prediction": noise - clean,
        }[prediction_type]
        error = seen["output"][f"{name}_sample"].double() - target
        rows = getattr(loss, f"{name}_loss_rows")
        torch.testing.assert_close(rows, error.square().flatten(1).mean(dim=1).float(), rtol=1e-4, atol=1e-5)
        total, count = loss.sums[f"{name}_error"].tolist()
        assert count == codes.numel() and total / count == pytest.approx(error.square().mean().item(), rel=1e-3)
    assert loss.loss.item() == pytest.approx((loss.image_loss_rows + loss.text_loss_rows).mean().item())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_prediction_and_the_original_are_inverse(prediction_type):
    clean, noise, time = randn(6, 3).double(), randn(6, 3, seed=1).double(), torch.linspace(0.1, 0.9, 6)[:, None]
    alpha, sigma = NoiseLevels(NOISE[prediction_type], prediction_type).at(time)
    target = prediction_target(prediction_type, clean, noise, alpha, sigma)
    x_t = alpha * clean + sigma * noise
    torch.testing.assert_close(original_sample(prediction_type, target, x_t, alpha, sigma), clean)


def test_min_snr_weighs_the_same_error_of_x_0_alike_whatever_is_predicted():
    time = torch.linspace(0.02, 0.98, 49)
    for prediction_type, scheduler in NOISE.items():
        scheduler = NOISE["epsilon"] if prediction_type != "flow_prediction" else scheduler
        alpha, sigma = (x[:, None] for x in NoiseLevels(scheduler, prediction_type).at(time))
        x_0, noise = randn(49, 1).double(), randn(49, 1, seed=1).double()
        x_t = alpha * x_0 + sigma * noise
        prediction = prediction_target(prediction_type, x_0, noise, alpha, sigma) + 0.1
        error = (original_sample(prediction_type, prediction, x_t, alpha, sigma) - x_0).square()
        weighed = min_snr_weight(prediction_type, alpha, sigma, 5.0) * 0.1**2
        torch.testing.assert_close(weighed, (alpha / sigma).square().clamp(max=5) * error)


@pytest.mark.parametrize("prediction_type", ("v_prediction", "sample"))
def test_a_level_without_any_signal_is_trained(prediction_type):
    alpha, sigma = torch.zeros(1), torch.ones(1)
    assert min_snr_weight(prediction_type, alpha, sigma, 5.0) == 1
    model = make_model(prediction_type="v_prediction")  # of a scheduler whose last level has none
    loss = objective(model, make_times(0.999, 0.999), GaussianLossConfig(min_snr_gamma=5.0))
    assert (loss.image_loss_rows > 0).all() and loss.loss.isfinite()
    loss.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_later_padding_counts_little():
    model = make_model()
    whole, less = (
        objective(model, make_times(0.5, 0.5), GaussianLossConfig(pad_loss_weight=weight)) for weight in (1.0, 0.0)
    )
    has_later_pad = torch.tensor([row % 4 >= 2 for row in range(8)])
    assert ((whole.text_loss_rows > less.text_loss_rows) == has_later_pad).all()
    assert torch.equal(whole.image_loss_rows, less.image_loss_rows)


def test_the_mean_over_the_batch_does_not_depend_on_how_it_is_cut():
    model = make_model(learn_sigma=True, prediction_type="epsilon").double()
    times = draw_times(8, TimeMixture(), step_generator(0, 0))
    config = GaussianLossConfig(region_fraction=0.5, time_sampling="logit_normal")
    whole = objective(model, times, config)
    parts = [objective(model, times, config, rows=rows) for rows in torch.arange(8).split(2)]
    torch.testing.assert_close(sum(part.loss for part in parts) / 4, whole.loss)
    for name in whole.sums:
        torch.testing.assert_close(sum(part.sums[name] for part in parts), whole.sums[name])


# The variance


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("image_time", (0.0, 1.0, 2**-24, 1 - 2**-24))
def test_gradients_are_finite_at_the_ends_of_time(prediction_type, image_time):
    """The last level of the cosine schedule leaves a few millionths of the signal; a condition is beyond it."""
    learn_sigma = prediction_type != "flow_prediction"
    model = make_model(prediction_type=prediction_type, learn_sigma=learn_sigma)
    scheduler = NOISE[prediction_type] if prediction_type == "flow_prediction" else NOISE["sample"]
    config = GaussianLossConfig(min_snr_gamma=5.0)
    loss = objective(model, make_times(image_time, 0.5), config, scheduler=scheduler).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_bound_trains_the_variance_alone_and_the_square_the_mean_alone():
    model = make_model(learn_sigma=True, prediction_type="epsilon")
    gradients = {}
    for kl_weight in (0.0, 1.0):
        model.zero_grad()
        objective(model, make_times(0.4, 0.6), GaussianLossConfig(kl_weight=kl_weight)).loss.backward()
        for name in ("image", "text"):
            weight = getattr(model, f"{name}_proj_out").weight.grad.unflatten(0, (-1, 2, 4))  # codes, halves, channels
            gradients[name, kl_weight] = weight.clone()
    for name in ("image", "text"):
        plain, hybrid = gradients[name, 0.0], gradients[name, 1.0]
        assert plain[:, 1].abs().max() == 0 and hybrid[:, 1].abs().max() > 0
        assert torch.equal(plain[:, 0], hybrid[:, 0]) and plain[:, 0].abs().max() > 0


def test_the_weight_of_the_bound_is_a_thousandth_of_the_sum_over_all_levels():
    model = make_model(learn_sigma=True, prediction_type="epsilon")
    times = make_times(0.4, 0.0)
    plain, hybrid = (objective(model, times, GaussianLossConfig(kl_weight=weight)) for weight in (0.0, 1e-3))
    seen = watch(model)
    objective(model, times)
    levels = NoiseLevels(NOISE["epsilon"], "epsilon")
    generators = [row_generator(0, 0, row) for row in range(8)]
    noisy = noise_vectors(make_codes()[0], VECTORS["image_vectors"], times.image_time, levels, generators, PLAIN)
    mean, interpolation = seen["output"].image_sample.double().chunk(2, dim=1)
    alpha, sigma = (x[:, None, None, None] for x in levels.at(noisy.time))
    predicted = original_sample("epsilon", mean, noisy.noisy.double(), alpha, sigma)
    nats = bound_nats(predicted, interpolation, noisy)
    difference = 1e-3 * 100 * (nats / 4).flatten(1).mean(dim=1)  # a mean over channels too
    torch.testing.assert_close(
        hybrid.image_loss_rows - plain.image_loss_rows, difference.float(), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("time", (0.001, 0.015, 0.5, 0.999))
def test_the_bound_is_that_of_a_reference_in_float64_at_every_level(time):
    """Nichol & Dhariwal's formulas written out; at the first level the cross-entropy of the codes."""
    levels, codes = NoiseLevels(NOISE["epsilon"], "epsilon"), make_codes()[0]
    generators = [row_generator(0, 0, row) for row in range(8)]
    noisy = noise_vectors(codes, VECTORS["image_vectors"], torch.full((8,), time), levels, generators, PLAIN)
    predicted, interpolation = noisy.clean + 0.05 * randn(8, 4, 4, 4), randn(8, 4, 4, 4, seed=3)
    found = bound_nats(predicted, interpolation, noisy)

    bars = torch.cat([torch.ones(1), NOISE["epsilon"].alphas_cumprod]).double()
    t = round(noisy.time[0].item() * 100)
    beta = 1 - bars[t] / bars[t - 1]
    posterior = [(1 - bars[i] / bars[i - 1]) * (1 - bars[i - 1]) / (1 - bars[i]) for i in (max(t, 2),)][0]
    log_variance = (interpolation.double() + 1) / 2 * beta.log() + (1 - interpolation.double()) / 2 * posterior.log()
    x_t, clean = noisy.noisy.double(), noisy.clean.double()

    def mean(x_0):
        return (bars[t - 1].sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - bars[t - 1]) * x_t) / (1 - bars[t])

    if t > 1:
        square = (mean(clean) - mean(predicted.double())).square()
        kl = 0.5 * (log_variance - posterior.log() - 1 + (posterior + square) / log_variance.exp())
        expected = kl.sum(dim=1)
    else:
        distances = (mean(predicted.double())[:, None] - VECTORS["image_vectors"].double()[:, :, None, None]).square()
        log_p = (-distances / (2 * log_variance.exp()[:, None])).sum(dim=2).log_softmax(dim=1)  # (B, V, h, w)
        expected = -log_p.gather(1, codes[:, None]).squeeze(1)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)


def test_the_bound_is_nothing_for_an_exact_network_with_the_variance_of_the_posterior():
    levels = NoiseLevels(NOISE["epsilon"], "epsilon")
    generators = [row_generator(0, 0, row) for row in range(8)]
    time = torch.linspace(0.011, 0.999, 8)
    noisy = noise_vectors(make_codes()[0], VECTORS["image_vectors"], time, levels, generators, PLAIN)
    assert bound_nats(noisy.clean, torch.full_like(noisy.clean, -1.0), noisy).abs().max() < 1e-5


# Times


def test_even_times_fall_on_every_level_as_often():
    levels = NoiseLevels(NOISE["epsilon"], "epsilon")
    times = spread_times((torch.arange(100) + 0.5) / 100, levels, GaussianLossConfig())
    assert torch.equal(times, torch.arange(1, 101) / 100)
    ends = spread_times(torch.tensor([2**-24, 1 - 2**-24]), levels, GaussianLossConfig())
    assert ends.tolist() == [pytest.approx(0.01), 1]


@pytest.mark.parametrize("shift", (1.0, 3.0))
def test_times_of_a_flow_are_logit_normal_and_then_shifted(shift):
    levels = NoiseLevels(FlowMatchEulerDiscreteScheduler(shift=shift), "flow_prediction")
    config = GaussianLossConfig(time_sampling="logit_normal", logit_mean=0.5, logit_std=0.8)
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    logits = torch.logit(spread_times(uniform, levels, config).double())
    assert logits.mean().item() == pytest.approx(0.5 + math.log(shift), abs=1e-3)  # a shift moves the logit
    assert logits.std().item() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("prediction_type", ("epsilon", "flow_prediction"))
def test_times_at_the_ends_stay_inside(prediction_type):
    levels = NoiseLevels(NOISE[prediction_type], prediction_type)
    for config in (GaussianLossConfig(), GaussianLossConfig(time_sampling="logit_normal", logit_std=9.0)):
        times = spread_times(torch.tensor([2**-24, 0.5, 1 - 2**-24]), levels, config)
        assert (times > 0).all() and (times <= 1).all() and times.isfinite().all()


def test_both_modalities_of_a_joint_row_are_at_the_same_step_of_their_schedules():
    """Side by side a sampler goes along the shifted times of both: so does training."""
    model = make_model(prediction_type="flow_prediction")
    seen, time = watch(model), (torch.arange(8) + 0.5) / 8
    codes, generators = make_codes(), [row_generator(0, 0, row) for row in range(8)]
    schedulers = (FlowMatchEulerDiscreteScheduler(shift=1.0), FlowMatchEulerDiscreteScheduler(shift=4.0))
    config = GaussianLossConfig(time_sampling="logit_normal")
    times = TimeTable(torch.zeros(8, dtype=torch.long), time, time)
    gaussian_objective(model, *codes, times, *schedulers, generators, config, **VECTORS)
    image_time = seen["image_timestep"]
    torch.testing.assert_close(seen["text_timestep"], 4 * image_time / (1 + 3 * image_time))


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    (
        ({"time_sampling": "mode"}, r"`time_sampling`.*'uniform', 'logit_normal'.*'mode'"),
        ({"region_fraction": 1.5}, "`region_fraction`.*1.5"),
        ({"text_loss_weight": -1.0}, "`text_loss_weight`.*-1.0"),
        ({"kl_weight": float("nan")}, "`kl_weight`.*nan"),
        ({"logit_std": 0.0}, "`logit_std`.*0.0"),
        ({"min_snr_gamma": -5.0}, "`min_snr_gamma`.*-5.0"),
    ),
)
def test_a_config_out_of_range_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        GaussianLossConfig(**config)

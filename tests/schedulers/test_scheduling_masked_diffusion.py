# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a user of the scheduler relies on: the law of the corruption, of the draws and of the counts."""

import math
from fractions import Fraction

import pytest
import torch
from scheduler_inputs import ORDERS, REFERENCE_MASK_RATE, SCHEDULES
from seeded import generator, generators

from hf_vqdit.schedulers import MaskedDiffusionScheduler, scheduling_masked_diffusion
from hf_vqdit.schedulers.scheduling_masked_diffusion import _gumbel, _invert_cdf

# Corruption


@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_alpha_falls_from_exactly_one_to_exactly_zero(mask_schedule):
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule)
    for dtype in (torch.float32, torch.float64):
        alpha = scheduler.alpha(torch.linspace(0, 1, 101, dtype=dtype))
        assert alpha.dtype == dtype
        assert alpha[0] == 1 and alpha[-1] == 0
        assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_the_mask_rate_is_the_published_formula(mask_schedule):
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule)
    for t in (0.0, 0.1, 0.37, 0.5, 0.99, 1.0):
        assert scheduler.mask_rate(t).item() == pytest.approx(REFERENCE_MASK_RATE[mask_schedule](t), abs=1e-12)
        assert scheduler.alpha(t).item() == pytest.approx(1 - REFERENCE_MASK_RATE[mask_schedule](t), abs=1e-12)


@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_noise_masks_each_code_with_the_mask_rate(mask_schedule):
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule)
    times = torch.tensor([0.05, 0.3, 0.5, 0.9])
    codes = torch.randint(0, 10, (4, 100, 100), generator=generator())
    noised = scheduler.add_noise(codes, times, mask_token_id=10, generator=generator(1))
    assert ((noised == codes) | (noised == 10)).all()
    for row, t in zip(noised, times, strict=True):
        rate = REFERENCE_MASK_RATE[mask_schedule](t.item())
        sigma = math.sqrt(rate * (1 - rate) / row.numel())
        assert abs((row == 10).double().mean().item() - rate) < 4 * sigma


def test_noise_is_exact_at_the_ends_of_time():
    scheduler = MaskedDiffusionScheduler()
    codes = torch.randint(0, 10, (2, 64, 64), generator=generator())
    noised = scheduler.add_noise(codes, torch.tensor([0.0, 1.0]), mask_token_id=10, generator=generator())
    assert torch.equal(noised[0], codes[0])
    assert (noised[1] == 10).all()


def test_noise_never_touches_frozen_codes():
    codes = torch.randint(0, 10, (2, 1000), generator=generator())
    frozen = torch.rand(codes.shape, generator=generator()) < 0.5
    noised = MaskedDiffusionScheduler().add_noise(
        codes, torch.ones(2), mask_token_id=10, frozen_mask=frozen, generator=generator()
    )
    assert torch.equal(noised[frozen], codes[frozen])
    assert (noised[~frozen] == 10).all()


def test_noise_with_a_generator_for_each_row_does_not_depend_on_the_batch():
    scheduler = MaskedDiffusionScheduler()
    codes = torch.randint(0, 10, (3, 50), generator=generator())
    times = torch.tensor([0.2, 0.5, 0.8])
    together = scheduler.add_noise(codes, times, mask_token_id=10, generator=generators(4, 5, 6))
    alone = scheduler.add_noise(codes[1:2], times[1:2], mask_token_id=10, generator=generator(5))
    assert torch.equal(together[1:2], alone)


# Sampling: what is decoded, and how much


def test_timesteps_run_down_from_one_in_equal_parts():
    scheduler = MaskedDiffusionScheduler()
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.dtype == torch.float32
    torch.testing.assert_close(scheduler.timesteps, 1 - torch.arange(7) / 7)
    assert scheduler.timesteps[0] == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", (1, 2, 7, 40))
@pytest.mark.parametrize("shape", ((3, 4, 5), (2, 6, 2), (2,)))
def test_an_oracle_gives_the_codes_back(run, oracle, order, mask_schedule, num_steps, shape):
    x_0 = torch.randint(0, 9, shape, generator=generator())
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule, order=order)
    trace = run(scheduler, oracle(x_0, 9), torch.full(shape, 9), num_steps, generator(1))
    assert torch.equal(trace[-1], x_0)


@pytest.mark.parametrize("order", ORDERS)
def test_given_codes_are_never_rewritten(run, noisy_model, order):
    sample = torch.randint(0, 9, (4, 8, 8), generator=generator())
    is_masked = torch.rand(sample.shape, generator=generator(1)) < 0.6
    start = sample.masked_fill(is_masked, 8 + 1)
    trace = run(MaskedDiffusionScheduler(order=order), noisy_model(9), start, 5, generator(), ~is_masked)
    for state in trace:
        assert torch.equal(state[~is_masked], sample[~is_masked])
    assert (trace[-1] < 9).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_decoded_code_stays_as_it_is(run, noisy_model, order):
    trace = run(MaskedDiffusionScheduler(order=order), noisy_model(9), torch.full((3, 30), 9), 10, generator())
    for before, after in zip(trace, trace[1:], strict=False):
        known = before != 9
        assert torch.equal(after[known], before[known])


@pytest.mark.parametrize("order", ("confidence", "entropy", "random", "halton"))
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_counts_follow_each_rows_own_masks(run, noisy_model, order, mask_schedule):
    num_masks = torch.tensor([0, 1, 3, 29, 100])
    num_steps = 10
    sample = torch.where(torch.arange(100) < num_masks[:, None], 9, 4)
    trace = run(
        MaskedDiffusionScheduler(mask_schedule=mask_schedule, order=order),
        noisy_model(9),
        sample,
        num_steps,
        generator(),
    )
    for k, state in enumerate(trace):
        for row, masks in enumerate(num_masks.tolist()):
            if mask_schedule == "linear":
                expected = math.floor(Fraction(num_steps - k, num_steps) * masks)
            else:
                expected = math.floor(REFERENCE_MASK_RATE[mask_schedule](1 - k / num_steps) * masks + 1e-9)
            assert (state[row] == 9).sum() == expected


def test_whole_counts_do_not_fall_one_short(run, noisy_model):
    # 0.29 * 100 is 28.999999999999996 in floating point.
    trace = run(
        MaskedDiffusionScheduler(mask_schedule="linear", order="random"),
        noisy_model(4),
        torch.full((1, 100), 4),
        100,
        generator(),
    )
    assert [(state == 4).sum().item() for state in trace] == list(range(100, -1, -1))


def test_counts_are_exact_among_ties(run, oracle):
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="confidence", choice_temperature=0)
    trace = run(scheduler, oracle(torch.full((2, 64), 3), 9), torch.full((2, 64), 9), 8, generator())
    for k, state in enumerate(trace):
        assert (state == 9).sum(dim=1).tolist() == [64 - 8 * k] * 2


def test_a_run_that_starts_in_the_middle_follows_the_schedule_from_there(noisy_model):
    scheduler = MaskedDiffusionScheduler(mask_schedule="cosine", order="random")
    scheduler.set_timesteps(10)
    sample = torch.where(torch.arange(1000) < 707, 9, 4)[None]  # the mask rate at t = 0.5
    for k in range(5, 10):
        sample = scheduler.step(
            noisy_model(9)(sample), scheduler.timesteps[k], sample, generator=generator()
        ).prev_sample
        assert abs((sample == 9).sum().item() - 1000 * scheduler.mask_rate(1 - (k + 1) / 10).item()) < 2


@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_ancestral_steps_follow_the_mask_rate_on_average(run, mask_schedule):
    num_codes, num_steps = 40_000, 6
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule, order="ancestral")
    uniform_model = lambda sample: torch.zeros(*sample.shape, 3)  # noqa: E731
    trace = run(scheduler, uniform_model, torch.full((1, num_codes), 3), num_steps, generator())
    for k, state in enumerate(trace):
        rate = REFERENCE_MASK_RATE[mask_schedule](1 - k / num_steps)
        sigma = math.sqrt(num_codes * rate * (1 - rate))
        assert abs((state == 3).sum().item() - num_codes * rate) <= 4 * sigma + 1e-6


def test_without_choice_noise_the_most_confident_codes_are_decoded_first(run):
    scheduler = MaskedDiffusionScheduler(
        mask_schedule="linear", order="confidence", temperature=0, choice_temperature=0
    )
    strength = 1 + torch.randperm(12, generator=generator()).float()  # (L,)
    logits = torch.zeros(1, 12, 5)
    logits[..., 2] = strength
    trace = run(scheduler, lambda sample: logits, torch.full((1, 12), 5), 12)
    for k, state in enumerate(trace):
        assert set(strength[(state == 2)[0]].tolist()) == set(range(13 - k, 13))


def test_choice_noise_grows_with_its_temperature_and_falls_with_the_mask_rate():
    logits = torch.zeros(400, 20, 4, dtype=torch.float64)
    logits[:, 0, 1] = 5.0  # the most confident position
    hits = {}
    for choice_temperature in (0.0, 2.0, 1000.0):
        for index in (0, 50):
            scheduler = MaskedDiffusionScheduler(
                mask_schedule="linear", temperature=0, choice_temperature=choice_temperature
            )
            scheduler.set_timesteps(100)  # so that either step decodes one code
            t = scheduler.timesteps[index]
            prev_sample = scheduler.step(logits, t, torch.full((400, 20), 4), generator=generator(1)).prev_sample
            hits[choice_temperature, index] = (prev_sample[:, 0] == 1).double().mean().item()
    assert hits[0.0, 0] == hits[0.0, 50] == 1
    assert hits[1000.0, 0] < 0.2
    assert hits[1000.0, 0] < hits[2.0, 0] < hits[2.0, 50] < 1


@pytest.mark.parametrize("order", ("ancestral", "confidence", "random"))
@pytest.mark.parametrize("begin", (0, 3))
def test_the_plain_orders_draw_as_they_are_written_out_here(run, noisy_model, order, begin):
    # What was published with a seed comes back: which uniforms are drawn, and in which order, is part of the contract.
    num_steps, temperature, choice_temperature = 8, 0.7, 2.5
    scheduler = MaskedDiffusionScheduler(order=order, temperature=temperature, choice_temperature=choice_temperature)
    start = torch.full((3, 20), 9)
    start[1, :7], start[2, 5:] = 3, 5
    trace = run(scheduler, noisy_model(9), start, num_steps, generator(3), begin=begin)
    own, sample, rates = (
        generator(3),
        start,
        [math.sin(math.pi / 2 * (1 - k / num_steps)) for k in range(num_steps + 1)],
    )
    for k in range(begin, num_steps):
        code_uniform, choice_uniform = (torch.rand(3, 20, generator=own, dtype=torch.float64) for _ in range(2))
        logits, after = noisy_model(9)(sample), sample.clone()
        for row in range(3):
            masked, scores = (sample[row] == 9).nonzero().flatten().tolist(), {}
            for i in masked:
                cdf = (logits[row, i] / temperature).softmax(-1).cumsum(-1)
                after[row, i] = (cdf <= code_uniform[row, i]).sum()
                scores[i] = choice_uniform[row, i].item()
                if order == "confidence":
                    gumbel = -math.log(-math.log(scores[i]))
                    confidence = logits[row, i].log_softmax(-1)[after[row, i]].item()
                    scores[i] = confidence + choice_temperature * rates[k] * gumbel
            num_left = math.floor((start[row] == 9).sum().item() * rates[k + 1] / rates[begin] + 1e-9)
            if order == "ancestral":
                left = [i for i in masked if scores[i] >= (rates[k] - rates[k + 1]) / rates[k]]
            else:
                left = sorted(masked, key=scores.get)[:num_left]
            after[row, left] = 9
        sample = after
        assert torch.equal(sample, trace[k + 1 - begin])


# Sampling: what a code becomes


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("temperature", (1.0, 0.5, 3.0))
def test_drawn_codes_have_the_softmax_law(run, dtype, temperature):
    logits = torch.randn(8, generator=generator(), dtype=dtype)
    num_draws = 100_000
    scheduler = MaskedDiffusionScheduler(order="ancestral", temperature=temperature)
    sample = run(scheduler, lambda s: logits.expand(*s.shape, 8), torch.full((1, num_draws), 8), 1, generator(3))[-1]
    counts = torch.bincount(sample[0], minlength=8).double()
    expected = num_draws * (logits.double() / temperature).softmax(-1)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 29.9  # the 1e-4 quantile of 7 degrees of freedom


def test_rare_codes_are_drawn_as_often_as_they_should_be(run):
    num_draws, probability = 1_000_000, 2e-5
    logits = torch.tensor([1 - probability, probability], dtype=torch.float64).log()
    scheduler = MaskedDiffusionScheduler(order="ancestral")
    sample = run(scheduler, lambda s: logits.expand(*s.shape, 2), torch.full((1, num_draws), 2), 1, generator())[-1]
    expected = num_draws * probability
    assert abs((sample == 1).sum().item() - expected) < 4 * math.sqrt(expected)


def test_the_tail_of_the_noise_and_of_the_draws_is_not_cut():
    top = 1 - 2.0**-53  # the largest uniform
    assert _gumbel(torch.tensor([top], dtype=torch.float64)).item() > 36
    assert _gumbel(torch.zeros(1, dtype=torch.float64)).isfinite()
    logits = torch.tensor([[1 - 1e-8, 1e-8]], dtype=torch.float64).log()
    drawn = [_invert_cdf(logits, torch.tensor([1 - u], dtype=torch.float64)).item() for u in (0.9e-8, 1.1e-8)]
    assert drawn == [1, 0]


def test_a_forbidden_class_is_never_drawn_not_even_at_the_ends_of_the_distribution(run):
    logits = torch.randn(64, 7, generator=generator(), dtype=torch.float64)
    logits[:, (0, 3, 6)] = -math.inf
    for uniform in (0.0, 1 - 2.0**-53):
        drawn = _invert_cdf(logits, torch.full((64,), uniform, dtype=torch.float64))
        assert set(drawn.tolist()) == {1 if uniform == 0 else 5}
    sample = run(
        MaskedDiffusionScheduler(), lambda s: logits[None].expand(50, 64, 7), torch.full((50, 64), 7), 4, generator()
    )[-1]
    assert set(sample.flatten().tolist()) == {1, 2, 4, 5}


@pytest.mark.parametrize("temperature", (0.0, 1e-320))
def test_temperature_towards_zero_takes_the_most_probable_code(run, temperature):
    logits = torch.randn(2, 50, 9, generator=generator())
    logits[0, 0] = torch.tensor([100.0] * 8 + [100.0001])
    scheduler = MaskedDiffusionScheduler(temperature=temperature)
    sample = run(scheduler, lambda s: logits, torch.full((2, 50), 9), 4, generator())[-1]
    assert torch.equal(sample, logits.argmax(-1))


def test_a_constant_added_to_the_logits_of_a_position_changes_nothing(run):
    logits = torch.randn(2, 50, 9, generator=generator(), dtype=torch.float64).mul(16).round().div(16)
    shift = torch.randint(-8, 8, (2, 50, 1), generator=generator()).double()
    scheduler = MaskedDiffusionScheduler()
    plain = run(scheduler, lambda s: logits, torch.full((2, 50), 9), 4, generator(2))[-1]
    shifted = run(scheduler, lambda s: logits + shift, torch.full((2, 50), 9), 4, generator(2))[-1]
    assert torch.equal(plain, shifted)


def test_the_predicted_original_keeps_what_is_known_and_holds_no_mask(noisy_model):
    sample = torch.tensor([[9, 1, 9, 2]])
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear")
    scheduler.set_timesteps(4)
    output = scheduler.step(noisy_model(9)(sample), 1.0, sample, generator=generator())
    assert (output.pred_original_sample < 9).all()
    assert torch.equal(output.pred_original_sample[sample != 9], sample[sample != 9])
    decoded = (sample == 9) & (output.prev_sample != 9)
    assert torch.equal(output.prev_sample[decoded], output.pred_original_sample[decoded])


# Randomness and state


@pytest.mark.parametrize("order", ORDERS)
def test_with_a_list_of_generators_a_row_does_not_depend_on_the_batch(run, noisy_model, order):
    scheduler, model = MaskedDiffusionScheduler(order=order), noisy_model(9)
    starts = torch.full((3, 4, 5), 9)
    starts[1, :2] = 3
    starts[2] = 5
    together = run(scheduler, model, starts, 6, generators(7, 8, 9))[-1]
    for row, seed in enumerate((7, 8, 9)):
        alone = run(scheduler, model, starts[row : row + 1], 6, generators(seed))[-1]
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("remasking", (None, "rescale"))
def test_a_row_without_masks_leaves_its_generator_alone(run, noisy_model, order, remasking):
    start = torch.tensor([[9, 9], [1, 2]])
    own = generators(1, 2)
    before = own[1].get_state()
    run(MaskedDiffusionScheduler(order=order, remasking=remasking), noisy_model(9), start, 3, own)
    assert torch.equal(own[1].get_state(), before)
    assert not torch.equal(own[0].get_state(), generator(1).get_state())


def test_one_generator_for_one_row_equals_a_list_of_one(run, noisy_model):
    scheduler, model, start = MaskedDiffusionScheduler(), noisy_model(9), torch.full((1, 20), 9)
    one = run(scheduler, model, start, 5, generator(3))[-1]
    assert torch.equal(one, run(scheduler, model, start, 5, generators(3))[-1])
    assert not torch.equal(one, run(scheduler, model, start, 5, generator(4))[-1])


def test_set_timesteps_begins_a_new_run(run, noisy_model):
    scheduler, model = MaskedDiffusionScheduler(mask_schedule="linear", order="random"), noisy_model(9)
    run(scheduler, model, torch.full((2, 10), 9), 5, generator())
    trace = run(scheduler, model, torch.full((3, 40), 9), 5, generator())
    assert [(state[0] == 9).sum().item() for state in trace] == [40, 32, 24, 16, 8, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_saved_scheduler_samples_the_same_codes(run, noisy_model, order, tmp_path):
    scheduler = MaskedDiffusionScheduler(mask_schedule="arccos", order=order, temperature=0.7, choice_temperature=2.5)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskedDiffusionScheduler.from_pretrained(tmp_path)
    # diffusers notes which values nobody set, and once they are saved they are set.
    assert dict(loaded.config) == {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    start, model = torch.full((2, 30), 9), noisy_model(9)
    expected = run(scheduler, model, start, 6, generator(5))[-1]
    assert torch.equal(run(loaded, model, start, 6, generator(5))[-1], expected)


def test_half_precision_logits_and_plain_tuples_are_welcome():
    scheduler = MaskedDiffusionScheduler()
    scheduler.set_timesteps(1)
    sample = torch.full((2, 5), 9)
    logits = torch.randn(2, 5, 9, generator=generator()).bfloat16()
    prev_sample, pred_original = scheduler.step(logits, 1.0, sample, generator=generator(), return_dict=False)
    assert torch.equal(prev_sample, pred_original)
    assert scheduler.scale_model_input(sample, 1.0) is sample
    assert (scheduler.order, scheduler.init_noise_sigma) == (1, 1.0)


# Bad input


@pytest.mark.parametrize(
    "config",
    ({"mask_schedule": "cubic"}, {"order": "left"}, {"temperature": -1.0}, {"choice_temperature": math.nan}),
)
def test_an_unknown_setting_is_an_error_that_names_it(config):
    (name, value) = next(iter(config.items()))
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        MaskedDiffusionScheduler(**config)


@pytest.mark.parametrize("num_inference_steps", (0, -3, 2.0))
def test_steps_below_one_are_an_error(num_inference_steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        MaskedDiffusionScheduler().set_timesteps(num_inference_steps)


SAMPLE, LOGITS = torch.full((2, 6), 9), torch.zeros(2, 6, 9)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"timestep": 0.3}, ValueError, "timestep.*0.3"),
        ({"model_output": LOGITS.long()}, TypeError, "floating-point.*int64"),
        ({"model_output": LOGITS[:, :5]}, ValueError, r"\(2, 5, 9\)"),
        ({"model_output": LOGITS + math.nan}, ValueError, "NaN"),
        ({"model_output": LOGITS - math.inf}, ValueError, "forbids every class"),
        ({"sample": SAMPLE.int()}, TypeError, "int64"),
        ({"sample": SAMPLE + 1}, ValueError, "9 is MASK, got 10"),
        ({"sample": SAMPLE - 10}, ValueError, "got -1"),
        ({"frozen_mask": torch.zeros(2, 6)}, TypeError, "bool"),
        ({"frozen_mask": torch.zeros(2, 5, dtype=torch.bool)}, ValueError, "shape"),
        ({"frozen_mask": torch.ones(2, 6, dtype=torch.bool)}, ValueError, "nothing is given there"),
        ({"generator": generators(1, 2, 3)}, ValueError, "2 rows, got 3"),
    ),
)
def test_a_bad_argument_of_step_is_an_error_that_names_it(changes, error, message):
    scheduler = MaskedDiffusionScheduler()
    scheduler.set_timesteps(4)
    arguments = {"model_output": LOGITS, "timestep": 1.0, "sample": SAMPLE, **changes}
    with pytest.raises(error, match=message):
        scheduler.step(**arguments)


def test_a_step_before_set_timesteps_or_with_another_batch_is_an_error():
    scheduler = MaskedDiffusionScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(LOGITS, 1.0, SAMPLE)
    scheduler.set_timesteps(4)
    scheduler.step(LOGITS, scheduler.timesteps[0], SAMPLE, generator=generator())
    with pytest.raises(ValueError, match="1 rows and this run began with 2"):
        scheduler.step(LOGITS[:1], scheduler.timesteps[1], SAMPLE[:1], generator=generator())


@pytest.mark.parametrize(
    ("timesteps", "error", "message"),
    (
        (torch.tensor([0, 1]), TypeError, "int64"),
        (torch.tensor([0.0, 1.1]), ValueError, r"\[0, 1\]"),
        (torch.tensor([math.nan, 0.5]), ValueError, r"\[0, 1\]"),
        (torch.tensor([0.5]), ValueError, r"\(2,\)"),
    ),
)
def test_times_that_are_no_times_are_an_error(timesteps, error, message):
    with pytest.raises(error, match=message):
        MaskedDiffusionScheduler().add_noise(torch.zeros(2, 6, dtype=torch.int64), timesteps, mask_token_id=9)


@pytest.mark.parametrize("config", ({}, {"order": "entropy"}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.8}))
def test_drawing_some_rows_at_a_time_changes_nothing(run, noisy_model, monkeypatch, config):
    scheduler, sample = MaskedDiffusionScheduler(**config), torch.full((3, 4, 5), 9)
    whole = run(scheduler, noisy_model(9), sample, 4, generators(1, 2, 3))
    monkeypatch.setattr(scheduling_masked_diffusion, "CPU_DRAWING_ENTRIES", 20)  # two rows
    parts = run(scheduler, noisy_model(9), sample, 4, generators(1, 2, 3))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))

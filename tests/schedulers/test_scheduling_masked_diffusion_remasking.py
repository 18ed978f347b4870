# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Remasking: ReMDM's posterior, its counts, and what is never taken back."""

import math
from collections import Counter

import pytest
import torch
from scheduler_inputs import COUNT_ORDERS, ORDERS, REFERENCE_MASK_RATE, SCHEDULES
from seeded import generator, generators

from hf_vqdit.schedulers import MaskedDiffusionScheduler

# Strong enough that every one of them remasks something in a short run.
STRENGTHS = {"cap": 0.1, "rescale": 0.3, "confidence": 4.0, "loop": 0.08}
REMASKINGS = tuple(STRENGTHS)


def make(remasking, **settings):
    return MaskedDiffusionScheduler(remasking=remasking, remasking_eta=STRENGTHS[remasking], **settings)


def steps_of(trace, mask_token_id=9):
    """For each step: which known codes became MASK, which masks were decoded, and the masks before."""
    for before, after in zip(trace, trace[1:], strict=False):
        was_masked, is_masked = before == mask_token_id, after == mask_token_id
        assert torch.equal(before[~was_masked & ~is_masked], after[~was_masked & ~is_masked])
        yield ~was_masked & is_masked, was_masked & ~is_masked, was_masked


def reference_rates(mask_schedule, remasking, num_steps, begin):
    """m(t) / m(t_0) at each time of a run, with the default loop."""
    mask_rate = REFERENCE_MASK_RATE[mask_schedule]
    start = 1 - begin / num_steps
    low, high = 0.0, start  # the time at which a tenth of the masks is left, by bisection
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mask_rate(middle) < 0.1 * mask_rate(start) else (low, middle)
    rates = []
    for k in range(begin, num_steps + 1):
        time = 1 - k / num_steps
        if remasking == "loop":
            progress = (num_steps - k) / (num_steps - begin)
            if progress > 0.55:
                time = low + (start - low) * (progress - 0.55) / 0.45
            else:
                time = low if progress > 0.05 else low * progress / 0.05
        rates.append(mask_rate(max(time, 0.0)) / mask_rate(start))
    return rates


def reference_sigma(remasking, rate, next_rate, progress):
    known, next_known = 1 - rate, 1 - next_rate  # alpha_t, alpha_s
    sigma_max = min(1.0, (1 - next_known) / known) if known > 0 else 1.0
    if remasking == "loop":
        return min(STRENGTHS["loop"], sigma_max) if 0.05 < progress <= 0.55 else 0.0
    return min(STRENGTHS["cap"], sigma_max) if remasking == "cap" else STRENGTHS["rescale"] * sigma_max


def assert_frequency(hits, among, probability):
    assert -1e-9 <= probability <= 1 + 1e-9
    sigma = math.sqrt(max(among * probability * (1 - probability), 0))
    assert abs(hits - among * probability) <= 4 * sigma + 1e-6


# The law


@pytest.mark.parametrize("remasking", ("cap", "rescale", "loop"))
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
@pytest.mark.parametrize("begin", (0, 5))
def test_ancestral_steps_follow_the_posterior_and_the_marginal(run, remasking, mask_schedule, begin):
    num_codes, num_steps = 60_000, 20
    scheduler = make(remasking, mask_schedule=mask_schedule, order="ancestral")
    scheduler.set_timesteps(num_steps)
    x_0 = torch.zeros(1, num_codes, dtype=torch.int64)
    start = scheduler.add_noise(x_0, scheduler.timesteps[begin : begin + 1], mask_token_id=3, generator=generator(1))
    uniform_model = lambda sample: torch.zeros(*sample.shape, 3)  # noqa: E731
    trace = run(scheduler, uniform_model, start, num_steps, generator(), begin=begin)
    rates = reference_rates(mask_schedule, remasking, num_steps, begin)
    num_start = (start == 3).sum().item()
    for k, (remasked, decoded, was_masked) in enumerate(steps_of(trace, 3)):
        rate, next_rate = rates[k], rates[k + 1]
        alpha_t, alpha_s = 1 - rate, 1 - next_rate
        sigma = reference_sigma(remasking, rate, next_rate, 1 - k / (num_steps - begin))
        num_masks = was_masked.sum().item()
        assert_frequency(remasked.sum().item(), num_start - num_masks, sigma)
        assert_frequency(decoded.sum().item(), num_masks, (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t))
        assert_frequency((trace[k + 1] == 3).sum().item(), num_start, next_rate)
    assert (trace[-1] < 3).all()


@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_the_loop_is_the_published_one_where_the_schedule_is_linear(run, mask_schedule):
    def published_alpha(t):  # ReMDM-loop with t_on = 0.55, t_off = 0.05, alpha_on = 0.9
        if t > 0.55:
            return (1 - t) * 0.9 / (1 - 0.55)
        return 0.9 if t > 0.05 else 1 - t * (1 - 0.9) / 0.05

    scheduler = make("loop", mask_schedule=mask_schedule, order="random")
    trace = run(scheduler, lambda s: torch.zeros(*s.shape, 9), torch.full((1, 1000), 9), 200, generator())
    for k, state in enumerate(trace):
        num_masks = (state == 9).sum().item()
        if mask_schedule == "linear":
            assert abs(num_masks - 1000 * (1 - published_alpha(1 - k / 200))) < 1 + 1e-6
        if 90 <= k < 190:
            assert num_masks == 100
    # What is noised, and so what the network was trained on, does not depend on how it is sampled.
    times = torch.linspace(0, 1, 21)
    assert torch.equal(
        scheduler.mask_rate(times), MaskedDiffusionScheduler(mask_schedule=mask_schedule).mask_rate(times)
    )


@pytest.mark.parametrize("remasking", ("cap", "rescale", "confidence"))
def test_towards_sigma_zero_the_step_is_the_ancestral_one(run, noisy_model, remasking):
    scheduler = MaskedDiffusionScheduler(order="ancestral", remasking=remasking, remasking_eta=1e-300)
    start = torch.full((3, 40), 9)
    plain = run(MaskedDiffusionScheduler(order="ancestral"), noisy_model(9), start, 8, generator())
    for state, expected in zip(run(scheduler, noisy_model(9), start, 8, generator()), plain, strict=True):
        assert torch.equal(state, expected)


def test_at_the_largest_sigma_everything_is_drawn_anew_while_it_may_be(run):
    # sigma_max = 1 as long as at most half of the codes is to be known: nothing known stays.
    scheduler = MaskedDiffusionScheduler(
        mask_schedule="linear", order="ancestral", remasking="rescale", remasking_eta=1.0
    )
    trace = run(scheduler, lambda s: torch.zeros(*s.shape, 9), torch.full((1, 20_000), 9), 10, generator())
    for k, (remasked, _, was_masked) in enumerate(steps_of(trace)):
        sigma_max = min(1.0, (1 - (k + 1) / 10) / (k / 10)) if k else 1.0
        assert_frequency(remasked.sum().item(), (~was_masked).sum().item(), sigma_max)
        assert_frequency((trace[k + 1] == 9).sum().item(), 20_000, 1 - (k + 1) / 10)


@pytest.mark.parametrize("begin", (0, 4))
@pytest.mark.parametrize("eta", (0.5, 1.0, 1.5))
def test_remasking_by_confidence_weighs_the_confidence_at_decoding(run, begin, eta):
    num_rows, num_codes, num_steps = 20_000, 6, 8
    confidences = torch.tensor([0.95, 0.4, 0.8, 0.35, 0.6, 0.5])
    logits = torch.stack([confidences.log(), (1 - confidences).div(2).log(), (1 - confidences).div(2).log()], dim=-1)
    # The network changes its mind on codes that it sees: that does not count.
    later = torch.tensor([0.0, 5.0, 0.0])
    model = lambda sample: torch.where((sample == 3)[..., None], logits, later)  # noqa: E731
    scheduler = MaskedDiffusionScheduler(
        mask_schedule="linear", order="ancestral", temperature=0, remasking="confidence", remasking_eta=eta
    )
    trace = run(scheduler, model, torch.full((num_rows, num_codes), 3), num_steps, generator(), begin=begin)
    for k, (remasked, decoded, was_masked) in enumerate(steps_of(trace, 3)):
        rate, next_rate = (1 - (k + d) / (num_steps - begin) for d in (0, 1))
        if k == 0:
            assert not remasked.any()
            continue
        sigma_max, num_known = min(1.0, next_rate / (1 - rate)), (~was_masked).sum(dim=1, keepdim=True)
        mean = sigma_max * min(1 / math.e, eta / (num_codes * (1 - rate)))
        shares = (-confidences.double()).masked_fill(was_masked, -math.inf).softmax(dim=1).nan_to_num()
        for position in range(num_codes):
            sigma = (mean * num_known * shares)[:, position]
            assert (sigma <= sigma_max).all()
            assert abs(remasked[:, position].sum() - sigma.sum()) <= 4 * (sigma * (1 - sigma)).sum().sqrt() + 1e-6
        assert_frequency(decoded.sum().item(), was_masked.sum().item(), (rate - next_rate + mean * (1 - rate)) / rate)


@pytest.mark.parametrize("num_codes", (2, 6, 64))
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
def test_remasking_by_confidence_keeps_the_marginal(run, noisy_model, num_codes, mask_schedule):
    num_rows, num_steps = 2000, 20
    scheduler = make("confidence", mask_schedule=mask_schedule, order="ancestral")
    trace = run(scheduler, noisy_model(9), torch.full((num_rows, num_codes), 9), num_steps, generator())
    assert sum(remasked.sum().item() for remasked, _, _ in steps_of(trace)) > num_rows
    for k, state in enumerate(trace):
        num_masks = (state == 9).sum(dim=1).double()
        expected = num_codes * REFERENCE_MASK_RATE[mask_schedule](1 - k / num_steps)
        assert abs(num_masks.mean() - expected) <= 4 * num_masks.std() / math.sqrt(num_rows) + 1e-6


# Every order with every way to remask


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_steps", (1, 2, 7, 40))
@pytest.mark.parametrize("begin", (0, 0.5))
def test_an_oracle_gives_the_codes_back(run, oracle, remasking, order, num_steps, begin):
    scheduler = make(remasking, order=order)
    x_0 = torch.randint(0, 9, (3, 4, 5), generator=generator())
    begin = int(begin * num_steps)
    scheduler.set_timesteps(num_steps)
    times = scheduler.timesteps[begin].expand(3)
    start = scheduler.add_noise(x_0, times, mask_token_id=9, generator=generator(1))
    trace = run(scheduler, oracle(x_0, 9), start, num_steps, generator(2), begin=begin)
    assert torch.equal(trace[-1], x_0)


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", COUNT_ORDERS)
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
@pytest.mark.parametrize("begin", (0, 6))
def test_counts_stay_those_of_the_schedule(run, noisy_model, remasking, order, mask_schedule, begin):
    num_masks = torch.tensor([0, 1, 3, 29, 100])
    start = torch.where(torch.arange(100) < num_masks[:, None], 9, 4)
    trace = run(
        make(remasking, mask_schedule=mask_schedule, order=order), noisy_model(9), start, 20, generator(), begin=begin
    )
    for state, rate in zip(trace, reference_rates(mask_schedule, remasking, 20, begin), strict=True):
        assert (state == 9).sum(dim=1).tolist() == [math.floor(n * rate + 1e-9) for n in num_masks.tolist()]
    assert sum(remasked[4].sum().item() for remasked, _, _ in steps_of(trace)) > 0


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_only_codes_decoded_in_this_run_are_taken_back(run, noisy_model, remasking, order):
    sample = torch.randint(0, 9, (4, 8, 8), generator=generator())
    is_masked = torch.rand(sample.shape, generator=generator(1)) < 0.6
    start = sample.masked_fill(is_masked, 9)
    for frozen_mask in (~is_masked, None):  # known codes are kept also if nobody says that they were given
        trace = run(make(remasking, order=order), noisy_model(9), start, 20, generator(), frozen_mask)
        for state in trace:
            assert torch.equal(state[~is_masked], sample[~is_masked])
        assert (trace[-1] < 9).all()
        assert sum(remasked.sum().item() for remasked, _, _ in steps_of(trace)) > 0


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_code_that_is_frozen_during_the_run_stays(noisy_model, remasking, order):
    scheduler = make(remasking, order=order, mask_schedule="linear")
    scheduler.set_timesteps(20)
    sample, frozen = torch.full((4, 60), 9), torch.zeros(4, 60, dtype=torch.bool)
    for k, t in enumerate(scheduler.timesteps):
        if k == 5:
            frozen, kept = sample != 9, sample
        sample = scheduler.step(
            noisy_model(9)(sample), t, sample, frozen_mask=frozen, generator=generator(k)
        ).prev_sample
        if k >= 5:
            assert torch.equal(sample[frozen], kept[frozen])
    assert (sample < 9).all()


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_codes_that_somebody_else_changes_during_the_run_are_respected(remasking, order):
    scheduler = make(remasking, order=order, mask_schedule="linear")
    scheduler.set_timesteps(20)
    sample = torch.full((4, 60), 9)
    for k, t in enumerate(scheduler.timesteps):
        if k == 6:  # a callback sets codes, and takes others back
            set_by_hand, taken_back = sample[:, :20] == 9, sample[:, 40:] != 9
            sample[:, :20][set_by_hand], sample[:, 40:][taken_back] = 7, 9
        logits = torch.zeros(4, 60, 9).index_fill(-1, torch.tensor([7]), -math.inf)
        sample = scheduler.step(logits, t, sample, generator=generator(k)).prev_sample
        if k >= 6:
            assert (sample[:, :20][set_by_hand] == 7).all()
    assert (sample < 9).all()


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_last_step_takes_nothing_back(run, noisy_model, remasking, order):
    for num_steps in (1, 2, 3, 20):
        *_, (remasked, _, _) = steps_of(
            run(make(remasking, order=order), noisy_model(9), torch.full((5, 40), 9), num_steps, generator())
        )
        assert not remasked.any()


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_with_a_list_of_generators_a_row_does_not_depend_on_the_batch(run, noisy_model, remasking, order):
    scheduler, model = make(remasking, order=order), noisy_model(9)
    starts = torch.full((3, 4, 5), 9)
    starts[1, :2] = 3
    starts[2] = 5
    together = run(scheduler, model, starts, 20, generators(7, 8, 9))
    turned = run(scheduler, model, starts.flip(0), 20, generators(9, 8, 7))
    for row, seed in enumerate((7, 8, 9)):
        alone = run(scheduler, model, starts[row : row + 1], 20, generators(seed))
        for state, state_turned, state_alone in zip(together, turned, alone, strict=True):
            assert torch.equal(state[row], state_alone[0])
            assert torch.equal(state[row], state_turned[2 - row])


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_saved_scheduler_samples_the_same_codes(run, noisy_model, remasking, order, tmp_path):
    settings = {
        "loop_start": 0.6,
        "loop_end": 0.2,
        "loop_alpha": 0.7,
        "top_k": 7,
        "top_p": 0.8,
        "halton_randomize": False,
    }
    scheduler = make(remasking, order=order, **settings)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskedDiffusionScheduler.from_pretrained(tmp_path)
    converted = MaskedDiffusionScheduler.from_config(scheduler.config)
    start, model = torch.full((2, 30), 9), noisy_model(9)
    run(loaded, model, start, 3, generator(1))  # nothing of an earlier run is left
    expected = run(scheduler, model, start, 20, generator(5))
    for other in (loaded, converted):
        assert all(map(torch.equal, run(other, model, start, 20, generator(5)), expected))


# The orders by count


@pytest.mark.parametrize("remasking", ("cap", "rescale", "loop"))
def test_the_number_remasked_is_the_expected_one_rounded_at_random(run, remasking):
    num_rows, num_codes, num_steps = 4000, 30, 10
    scheduler = make(remasking, mask_schedule="linear", order="random")
    trace = run(
        scheduler, lambda s: torch.zeros(*s.shape, 9), torch.full((num_rows, num_codes), 9), num_steps, generator()
    )
    rates = reference_rates("linear", remasking, num_steps, 0)
    for k, (remasked, _, was_masked) in enumerate(steps_of(trace)):
        num_known = num_codes - was_masked[0].sum().item()
        expected = num_known * reference_sigma(remasking, rates[k], rates[k + 1], 1 - k / num_steps)
        counts = remasked.sum(dim=1)
        assert {math.floor(expected + 1e-9), math.ceil(expected - 1e-9)} >= set(counts.tolist())
        fraction = expected - math.floor(expected)
        spread = 4 * math.sqrt(fraction * (1 - fraction) / num_rows)
        assert abs(counts.double().mean().item() - expected) <= spread + 1e-6
        if counts.any():  # at random positions, the same for all
            hits = remasked.sum(dim=0).double()
            assert (hits - hits.mean()).abs().max() < 5 * hits.mean().sqrt()


def test_the_least_confident_at_decoding_are_taken_back_first(run):
    strength = torch.randperm(40, generator=generator()).float() / 8
    logits = torch.zeros(1, 40, 5)
    logits[..., 2] = strength
    scheduler = MaskedDiffusionScheduler(
        mask_schedule="linear", order="random", temperature=0, remasking="confidence", remasking_eta=3.0
    )
    trace = run(scheduler, lambda s: logits, torch.full((1, 40), 5), 20, generator())
    num_remasked = Counter()
    for remasked, _, was_masked in steps_of(trace, 5):
        kept = ~was_masked & ~remasked
        if remasked.any() and kept.any():
            assert strength[remasked[0]].max() < strength[kept[0]].min()
        num_remasked[remasked.sum().item()] += 1
    assert num_remasked[3] > 5


def test_what_was_just_remasked_waits_for_the_next_prediction(run, noisy_model):
    scheduler = MaskedDiffusionScheduler(order="confidence", remasking="rescale", remasking_eta=1.0)
    scheduler.set_timesteps(10)
    sample, asked = torch.full((3, 50), 9), []
    for t in scheduler.timesteps:
        output = scheduler.step(noisy_model(9)(sample), t, sample, generator=generator(len(asked)))
        asked.append(sample == 9)
        became_known = (output.prev_sample != 9) & (output.prev_sample != sample)
        assert (asked[-1] | ~became_known).all()
        # The prediction is complete, whatever was taken back: an interrupted run reads it out.
        assert (output.pred_original_sample < 9).all()
        assert torch.equal(output.pred_original_sample[sample != 9], sample[sample != 9])
        sample = output.prev_sample


def test_an_early_mistake_is_mended(run):
    def model(sample):
        """A hesitant guess of class 0 as long as much is unknown, and a firm 1 where most of the row is known."""
        knows_enough = ((sample != 3).double().mean(dim=1) > 0.5)[:, None, None]
        return torch.where(knows_enough, torch.tensor([0.0, 9.0, 0.0]), torch.tensor([0.5, 0.0, 0.0])).expand(
            *sample.shape, 3
        )

    start, settings = torch.full((8, 64), 3), {"mask_schedule": "linear", "order": "random", "temperature": 0.0}
    plain = run(MaskedDiffusionScheduler(**settings), model, start, 64, generator())[-1]
    mended = run(make("confidence", **settings), model, start, 64, generator())[-1]
    assert (plain == 0).sum() > 200
    assert (mended == 0).sum() < 20


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    (
        ({"remasking": "always"}, "`remasking`.*'cap'.*'always'"),
        ({"remasking": "cap", "remasking_eta": 0.0}, "`remasking_eta`.*> 0.*got 0.0.*leave `remasking` out"),
        ({"remasking": "rescale", "remasking_eta": 1.1}, "`remasking_eta`.*at most 1 .*got 1.1"),
        ({"remasking": "cap", "remasking_eta": math.nan}, "`remasking_eta`.*nan"),
        ({"remasking": "confidence", "remasking_eta": math.inf}, "`remasking_eta`.*finite.*inf"),
        ({"remasking": "loop", "remasking_eta": 0.5}, "at most 0.111111.*this `loop_alpha`.*got 0.5"),
        ({"remasking": "loop", "loop_start": 0.2, "loop_end": 0.2}, "`loop_end` < `loop_start`.*0.2 and 0.2"),
        ({"remasking": "loop", "loop_start": 1.0}, "`loop_start`.*1.0"),
        ({"remasking": "loop", "loop_end": 0.0}, "`loop_end`.*0.0"),
        ({"remasking": "loop", "loop_alpha": 1.0}, "`loop_alpha`.*1.0"),
        ({"remasking": "cap", "block_length": 8}, "leave out either it or `block_length`"),
    ),
)
def test_settings_that_make_no_sense_are_errors_that_say_what_fits(config, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(**config)


def test_a_strength_without_remasking_is_told(caplog):
    MaskedDiffusionScheduler(remasking_eta=0.1)
    assert "`remasking_eta` (0.1) has no effect without `remasking`" in caplog.text

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Which positions are decoded first, from which codes they are drawn, and runs that start in the middle."""

import math
from fractions import Fraction

import pytest
import torch
from scheduler_inputs import COUNT_ORDERS, ORDERS, SCHEDULES
from seeded import generator

from hf_vqdit.schedulers import MaskedDiffusionScheduler
from hf_vqdit.schedulers.scheduling_masked_diffusion import _halton_ranks

GRIDS = ((1, 1), (4, 4), (3, 7), (8, 2), (5, 1), (1, 5), (16, 16), (9, 27), (12, 20))


def decoding_ranks(run, scheduler, shape):
    """(B, ...): when each position of a sample without given codes is decoded, one code a step."""
    num_codes = math.prod(shape[1:])
    trace = run(scheduler, lambda sample: torch.zeros(*shape, 5), torch.full(shape, 5), num_codes, generator())
    return sum((state == 5).long() for state in trace[1:])


# Halton


def reference_halton_order(num_rows, num_columns):
    """Cells in the order in which the points of the sequence fall into them, in exact fractions."""

    def radical_inverse(index, base):
        value, scale = Fraction(0), Fraction(1, base)
        while index:
            index, digit = divmod(index, base)
            value, scale = value + digit * scale, scale / base
        return value

    order, index = [], 0
    while len(order) < num_rows * num_columns:
        index += 1
        cell = math.floor(radical_inverse(index, 2) * num_rows), math.floor(radical_inverse(index, 3) * num_columns)
        if cell not in order:
            order.append(cell)
    return order


@pytest.mark.parametrize("grid", GRIDS)
def test_the_halton_order_is_that_of_the_points_of_the_sequence(grid):
    ranks = _halton_ranks(*grid)
    for rank, cell in enumerate(reference_halton_order(*grid)):
        assert ranks[cell] == rank


def test_the_halton_order_visits_every_cell_of_every_grid_once():
    for num_rows in (*range(1, 12), 64):
        for num_columns in (*range(1, 12), 27, 64, 81):
            ranks = _halton_ranks(num_rows, num_columns)
            assert ranks.shape == (num_rows, num_columns)
            assert torch.equal(ranks.flatten().sort().values, torch.arange(num_rows * num_columns))


@pytest.mark.parametrize("grid", ((16, 16), (12, 20), (32, 8)))
def test_the_halton_order_spreads(grid):
    ranks = _halton_ranks(*grid)
    num_rows, num_columns = grid
    for num_decoded in (8, 16, 32, 64):
        quadrants = (ranks < num_decoded).view(2, num_rows // 2, 2, num_columns // 2).sum(dim=(1, 3))
        assert (quadrants - num_decoded / 4).abs().max() <= 2, num_decoded


@pytest.mark.parametrize(
    ("shape", "grid"),
    (((2, 4, 6), (4, 6)), ((2, 7, 2), (7, 2)), ((2, 9, 1), (9, 1)), ((2, 24), (24, 1)), ((2, 2, 3, 4), (24, 1))),
)
def test_positions_are_decoded_in_the_halton_order(run, shape, grid):
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="halton", halton_randomize=False)
    ranks = decoding_ranks(run, scheduler, shape).flatten(1)
    assert torch.equal(ranks, _halton_ranks(*grid).flatten().expand_as(ranks))


def test_the_halton_order_of_a_line_is_the_van_der_corput_sequence(run):
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="halton", halton_randomize=False)
    assert decoding_ranks(run, scheduler, (1, 8))[0].argsort().tolist() == [4, 2, 6, 1, 5, 3, 7, 0]


@pytest.mark.parametrize("shape", ((6, 5, 8), (6, 40)))
def test_rows_go_through_rolls_of_the_halton_order(run, shape):
    grid = shape[1:] if len(shape) == 3 else (shape[1], 1)
    ranks = decoding_ranks(run, MaskedDiffusionScheduler(mask_schedule="linear", order="halton"), shape)
    plain = _halton_ranks(*grid)
    rolls = {
        tuple(plain.roll((down, right), dims=(0, 1)).flatten().tolist())
        for down in range(grid[0])
        for right in range(grid[1])
    }
    rows = {tuple(row.flatten().tolist()) for row in ranks}
    assert rows <= rolls
    assert len(rows) > 1


def test_rolls_are_uniform_over_the_grid(run):
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="halton")
    scheduler.set_timesteps(12)
    sample = torch.full((12_000, 3, 4), 5)
    state = scheduler.step(torch.zeros(*sample.shape, 5), 1.0, sample, generator=generator()).prev_sample
    counts = (state != 5).sum(dim=0).double()  # where each row decodes its first code
    assert ((counts - 1000) ** 2 / 1000).sum() < 38.0  # the 1e-4 quantile of 11 degrees of freedom


def test_a_run_keeps_its_roll_and_the_next_run_draws_another(run):
    scheduler, own = MaskedDiffusionScheduler(mask_schedule="linear", order="halton"), generator()
    orders = []
    for _ in range(2):
        trace = run(scheduler, lambda s: torch.zeros(*s.shape, 5), torch.full((1, 8, 8), 5), 64, own)
        orders.append(sum((state == 5).long() for state in trace[1:]))
    offsets = [(order == 0).nonzero()[0, 1:] - (_halton_ranks(8, 8) == 0).nonzero()[0] for order in orders]
    for order, offset in zip(orders, offsets, strict=True):
        assert torch.equal(order[0], _halton_ranks(8, 8).roll(tuple(offset.tolist()), dims=(0, 1)))
    assert not torch.equal(*orders)


# Entropy


def test_the_most_uncertain_codes_are_decoded_first(run):
    scale = torch.tensor([3.0, 0.5, 2.0, 1.0])  # of the logits: the larger, the surer
    logits = scale[:, None] * torch.randn(5, 1, 6, dtype=torch.float64, generator=generator())
    trace = run(
        MaskedDiffusionScheduler(mask_schedule="linear", order="entropy"),
        lambda _: logits.expand(5, 4, 6),
        torch.full((5, 4), 6),
        4,
        generator(1),
    )
    order = torch.stack([state == 6 for state in trace]).sum(dim=0).argsort(dim=1)  # (5, 4)
    assert torch.equal(order, torch.tensor([1, 3, 2, 0]).expand(5, 4))


def test_one_code_a_step_in_the_order_of_entropy_has_the_law_of_the_model(run):
    law = torch.tensor([[0.30, 0.05, 0.05], [0.02, 0.25, 0.03], [0.10, 0.10, 0.10]], dtype=torch.float64)  # of 2 codes
    joint = torch.zeros(4, 4, dtype=torch.float64)  # the last row and column: MASK, the sum over the others
    joint[:3, :3], joint[3, :3], joint[:3, 3] = law, law.sum(dim=0), law.sum(dim=1)

    def true_posterior(sample):
        return torch.stack([joint[:3, sample[:, 1]].T, joint[sample[:, 0], :3]], dim=1).log()  # (B, 2, 3)

    num_samples = 40_000
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="entropy")
    codes = run(scheduler, true_posterior, torch.full((num_samples, 2), 3), 2, generator())[-1]
    shares = torch.bincount(3 * codes[:, 0] + codes[:, 1], minlength=9).double().view(3, 3) / num_samples
    assert ((shares - law).abs() < 4 * (law * (1 - law) / num_samples).sqrt()).all()


# Blocks


@pytest.mark.parametrize("order", COUNT_ORDERS)
@pytest.mark.parametrize("mask_schedule", ("cosine", "linear"))
@pytest.mark.parametrize("shape", ((3, 13, 2), (3, 24), (3, 6, 4)))
@pytest.mark.parametrize("block_length", (1, 4, 5))
def test_a_block_is_complete_before_the_next_begins(run, noisy_model, order, mask_schedule, shape, block_length):
    given = torch.rand(shape, generator=generator(1)) < torch.tensor([0.0, 0.3, 0.9]).view(-1, *[1] * len(shape[1:]))
    start = torch.where(given, 3, 9)
    settings = {"mask_schedule": mask_schedule, "order": order}
    scheduler = MaskedDiffusionScheduler(**settings, block_length=block_length)
    trace = run(scheduler, noisy_model(9), start, 7, generator(), given)
    plain = run(MaskedDiffusionScheduler(**settings), noisy_model(9), start, 7, generator(), given)
    for state, state_without in zip(trace, plain, strict=True):
        for row, row_without, row_start in zip(state, state_without, start, strict=True):
            assert (row == 9).sum() == (row_without == 9).sum()
            blocks = list(zip(row.split(block_length), row_start.split(block_length), strict=True))
            open_blocks = [index for index, (block, _) in enumerate(blocks) if (block == 9).any()]
            for block, block_start in blocks[open_blocks[0] + 1 if open_blocks else len(blocks) :]:
                assert torch.equal(block, block_start)
    assert (trace[-1] < 9).all()


def test_a_step_may_finish_a_block_and_go_on(run):
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", order="random", block_length=4)
    trace = run(scheduler, lambda s: torch.zeros(*s.shape, 5), torch.full((1, 12), 5), 2, generator())
    assert (trace[1][0, :4] < 5).all() and (trace[1][0, 4:8] < 5).sum() == 2 and (trace[1][0, 8:] == 5).all()


def test_within_a_block_the_order_is_the_configured_one(run):
    strength = torch.tensor([1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0])
    logits = torch.zeros(1, 8, 5)
    logits[..., 2] = strength
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", temperature=0, choice_temperature=0, block_length=4)
    trace = run(scheduler, lambda s: logits, torch.full((1, 8), 5), 8)
    assert sum((state == 5).long() for state in trace[1:])[0].tolist() == [3, 0, 2, 1, 4, 6, 5, 7]


@pytest.mark.parametrize("order", COUNT_ORDERS)
def test_one_block_for_all_is_no_block(run, noisy_model, order):
    start = torch.full((2, 6, 3), 9)
    plain = run(MaskedDiffusionScheduler(order=order), noisy_model(9), start, 5, generator())
    scheduler = MaskedDiffusionScheduler(order=order, block_length=6)
    for state, expected in zip(run(scheduler, noisy_model(9), start, 5, generator()), plain, strict=True):
        assert torch.equal(state, expected)


# From which codes a code is drawn


def reference_kept(logits, temperature, top_k, top_p):
    """The classes that may be drawn: the most probable ones, up to and with the one that crosses `top_p`."""
    ranked = sorted(range(len(logits)), key=lambda c: -logits[c])[:top_k]
    weights = [math.exp(logits[c] / temperature) for c in ranked]
    kept, mass = [], 0.0
    for c, weight in zip(ranked, weights, strict=True):
        if mass < top_p * sum(weights):
            kept.append(c)
        mass += weight
    return kept


@pytest.mark.parametrize("temperature", (1.0, 0.5, 2.0))
@pytest.mark.parametrize("top_k", (None, 1, 3, 100))
@pytest.mark.parametrize("top_p", (1.0, 0.9, 0.5, 1e-9))
def test_codes_are_drawn_from_the_top_alone_and_in_its_proportions(run, temperature, top_k, top_p):
    logits = torch.randn(8, generator=generator(4), dtype=torch.float64)
    num_draws = 20_000
    scheduler = MaskedDiffusionScheduler(order="ancestral", temperature=temperature, top_k=top_k, top_p=top_p)
    sample = run(scheduler, lambda s: logits.expand(*s.shape, 8), torch.full((1, num_draws), 8), 1, generator())[-1]
    kept = reference_kept(logits.tolist(), temperature, top_k, top_p)
    counts = torch.bincount(sample[0], minlength=8)
    assert set(counts.nonzero().flatten().tolist()) == set(kept)
    expected = num_draws * (logits[kept] / temperature).softmax(-1)
    quantile = (0, 15.1, 18.4, 21.1, 23.5, 25.7, 27.9, 29.9)[len(kept) - 1]  # 1e-4, by degrees of freedom
    assert ((counts[kept] - expected) ** 2 / expected).sum() <= quantile + 1e-9


def test_the_code_that_crosses_top_p_is_kept(run):
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})):
        scheduler = MaskedDiffusionScheduler(top_p=top_p)
        sample = run(scheduler, lambda s: logits.expand(*s.shape, 3), torch.full((1, 500), 3), 1, generator())[-1]
        assert set(sample.flatten().tolist()) == kept


def test_a_top_that_holds_everything_changes_nothing(run, noisy_model):
    start = torch.full((2, 30), 9)
    plain = run(MaskedDiffusionScheduler(), noisy_model(9), start, 6, generator())[-1]
    for settings in ({"top_k": 9}, {"top_k": 10**6}, {"top_p": 1.0}, {"top_p": 1 - 1e-15}):
        assert torch.equal(
            run(MaskedDiffusionScheduler(**settings), noisy_model(9), start, 6, generator())[-1], plain
        ), settings


def test_the_confidence_is_that_of_the_unfiltered_prediction(run):
    logits = torch.zeros(1, 2, 5)
    logits[0, :, 1] = torch.tensor([1.0, 4.0])  # with `top_k=1` either code is drawn with certainty
    scheduler = MaskedDiffusionScheduler(mask_schedule="linear", choice_temperature=0, top_k=1)
    trace = run(scheduler, lambda s: logits, torch.full((1, 2), 5), 2, generator())
    assert trace[1].tolist() == [[5, 1]]


@pytest.mark.parametrize("settings", ({"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.9}))
def test_the_top_keeps_forbidden_classes_out_and_needs_a_class_that_is_allowed(run, settings):
    logits = torch.randn(4, 50, 9, generator=generator())
    logits[..., (0, 8)] = -math.inf
    scheduler, start = MaskedDiffusionScheduler(**settings), torch.full((4, 50), 9)
    assert not {0, 8} & set(run(scheduler, lambda s: logits, start, 3, generator())[-1].flatten().tolist())
    assert torch.equal(
        run(scheduler, lambda s: logits, logits[..., 1:8].argmax(-1) + 1, 3, generator())[-1], logits.argmax(-1)
    )
    for wrong in (logits - math.inf, logits * math.nan):
        with pytest.raises(ValueError, match="NaN.*forbids every class"):
            run(scheduler, lambda s, wrong=wrong: wrong, start, 3, generator())


# Runs that start in the middle


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask_schedule", SCHEDULES)
@pytest.mark.parametrize("begin", (0, 3, 9))
def test_a_run_goes_on_from_noised_codes(run, noisy_model, order, mask_schedule, begin):
    scheduler = MaskedDiffusionScheduler(mask_schedule=mask_schedule, order=order)
    scheduler.set_timesteps(10)
    x_0 = torch.randint(0, 9, (4, 8, 8), generator=generator(1))
    times = scheduler.timesteps[begin].expand(4)
    start = scheduler.add_noise(x_0, times, mask_token_id=9, generator=generator(2))
    trace = run(scheduler, noisy_model(9), start, 10, generator(3), begin=begin)
    assert (trace[-1] < 9).all()
    rates = scheduler.mask_rate(torch.arange(10 - begin, -1, -1, dtype=torch.float64) / 10)
    for k, state in enumerate(trace):
        assert torch.equal(state[start != 9], x_0[start != 9])
        if order != "ancestral":
            for row, row_start in zip(state, start, strict=True):
                num_masks = (row_start == 9).sum().item()
                assert (row == 9).sum() == math.floor(num_masks * (rates[k] / rates[0]).item() + 1e-9)


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    (
        ({"top_k": 0}, "`top_k`.*0"),
        ({"top_k": 2.5}, "`top_k`.*2.5"),
        ({"top_p": 0.0}, "`top_p`.*0.0"),
        ({"top_p": 1.1}, "`top_p`.*1.1"),
        ({"top_p": math.nan}, "`top_p`.*nan"),
        ({"block_length": 0}, "`block_length`.*0"),
        ({"block_length": 4, "order": "ancestral"}, "`block_length` .4. needs an order by count.*'halton'"),
        ({"block_length": 4, "remasking": "cap"}, "'cap'.*leave out either it or `block_length` .4."),
    ),
)
def test_settings_that_make_no_sense_are_errors_that_say_what_fits(config, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(**config)


@pytest.mark.parametrize("order", ORDERS)
def test_the_shape_of_the_sample_may_not_change_within_a_run(order):
    scheduler = MaskedDiffusionScheduler(order=order)
    scheduler.set_timesteps(4)
    scheduler.step(torch.zeros(2, 6, 9), 1.0, torch.full((2, 6), 9), generator=generator())
    with pytest.raises(ValueError, match=r"\(2, 3, 2\) and \(2, 6\)"):
        scheduler.step(torch.zeros(2, 3, 2, 9), 0.75, torch.full((2, 3, 2), 9), generator=generator())

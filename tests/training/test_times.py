# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import math
from dataclasses import astuple, fields

import pytest
import torch

from hf_vqdit.training.times import TimeMixture, draw_times, row_generator, step_generator

KINDS = [field.name for field in fields(TimeMixture)]


def one_kind(name: str) -> TimeMixture:
    return TimeMixture(**{kind: float(kind == name) for kind in KINDS})


def drawn(generator: torch.Generator) -> list[float]:
    return torch.rand(8, generator=generator).tolist()


# Generators


def test_the_same_key_gives_the_same_numbers():
    assert drawn(row_generator(1, 2, 3)) == drawn(row_generator(1, 2, 3))


def test_neighbouring_keys_share_nothing():
    keys = [(seed, step, row) for seed in range(4) for step in range(8) for row in range(-1, 16)]
    first = {drawn(row_generator(*key))[0] for key in keys}
    assert len(first) == len(keys)
    assert drawn(step_generator(0, 0)) == drawn(row_generator(0, 0, -1))


def test_first_numbers_of_neighbouring_rows_are_uniform_and_independent():
    u = torch.tensor([drawn(row_generator(0, 0, row))[0] for row in range(4000)])
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * 4000)
    assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1]) < 4 / math.sqrt(4000)


# Kinds


@pytest.mark.parametrize("num_rows", [1, 7, 64, 1000])
def test_kinds_come_as_often_as_the_mixture_says(num_rows):
    mixture = TimeMixture()
    weights = torch.tensor(astuple(mixture)) / sum(astuple(mixture))
    counts = torch.bincount(draw_times(num_rows, mixture, step_generator(0, 0)).kind, minlength=len(KINDS))
    assert counts.sum() == num_rows
    assert ((counts - num_rows * weights).abs() < 1).all()


def test_a_kind_rarer_than_a_row_a_batch_still_comes_in_its_time():
    mixture, steps = TimeMixture(text_to_image=0.99, image=0.01, image_to_text=0, text=0, joint=0, square=0), 1000
    rare = sum((draw_times(4, mixture, step_generator(0, step)).kind == 1).sum().item() for step in range(steps))
    expected = 4 * steps * 0.01
    assert abs(rare - expected) < 4 * math.sqrt(expected)


def test_kinds_are_spread_over_the_rows():
    kinds = torch.stack([draw_times(8, TimeMixture(), step_generator(0, step)).kind for step in range(1000)])
    share = (kinds == 0).double().mean(dim=0)  # of text to image at each row
    assert ((share - 0.4).abs() < 4 * math.sqrt(0.4 * 0.6 / 1000)).all()


@pytest.mark.parametrize("weights", [{"image": -0.1}, dict.fromkeys(KINDS, 0.0)])
def test_a_mixture_that_is_none_is_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        TimeMixture(**weights)


# Times


@pytest.mark.parametrize(
    ("name", "image_parked", "text_parked"),
    [("text_to_image", None, 0), ("image", None, 1), ("image_to_text", 0, None), ("text", 1, None)],
)
def test_conditions_are_parked_at_exactly_zero_or_one(name, image_parked, text_parked):
    table = draw_times(50, one_kind(name), step_generator(0, 0))
    assert (table.kind == KINDS.index(name)).all()
    for time, parked in ((table.image_time, image_parked), (table.text_time, text_parked)):
        assert (time == parked).all() if parked is not None else ((time > 0) & (time < 1)).all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_rows", [1, 10, 257])
def test_each_equal_part_of_time_holds_one_row_of_a_kind(name, num_rows):
    table = draw_times(num_rows, one_kind(name), step_generator(0, 1))
    for time in (table.image_time, table.text_time):
        if ((time > 0) & (time < 1)).all():
            assert (time.double() * num_rows).floor().sort().values.tolist() == list(range(num_rows))
            break
    else:
        raise AssertionError(f"no modality of {name} is free")


def test_times_are_stratified_within_a_kind_of_a_mixed_batch():
    table = draw_times(200, TimeMixture(), step_generator(0, 2))
    for kind, name in enumerate(KINDS):
        rows = table.kind == kind
        time = table.text_time[rows] if name in ("image_to_text", "text") else table.image_time[rows]
        assert (time.double() * len(time)).floor().sort().values.tolist() == list(range(len(time)))


def test_joint_rows_lie_on_the_diagonal_and_square_rows_are_independent():
    joint = draw_times(4000, one_kind("joint"), step_generator(0, 3))
    assert torch.equal(joint.image_time, joint.text_time)
    square = draw_times(4000, one_kind("square"), step_generator(0, 3))
    correlation = torch.corrcoef(torch.stack([square.image_time, square.text_time]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(4000)


def test_times_fill_their_part():
    places = draw_times(1000, one_kind("image"), step_generator(0, 0)).image_time.double() * 1000 % 1
    assert abs(places.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / 1000)
    assert abs(places.square().mean() - 1 / 3) < 4 * math.sqrt((1 / 5 - 1 / 9) / 1000)


def test_over_many_steps_the_time_of_a_row_is_uniform():
    times = torch.stack([draw_times(4, one_kind("image"), step_generator(0, step)).image_time for step in range(1000)])
    for moment, expected in ((1, 1 / 2), (2, 1 / 3), (3, 1 / 4)):
        spread = math.sqrt((1 / (2 * moment + 1) - expected**2) / 1000)
        assert ((times**moment).mean(dim=0) - expected).abs().max() < 4.5 * spread


def test_ranks_take_their_own_rows_of_the_same_table():
    whole = draw_times(8, TimeMixture(), step_generator(5, 7))
    parts = [draw_times(8, TimeMixture(), step_generator(5, 7)).select(torch.arange(8)[rank::2]) for rank in (0, 1)]
    for name in ("kind", "image_time", "text_time"):
        gathered = torch.stack([getattr(part, name) for part in parts], dim=1).flatten()
        assert torch.equal(gathered, getattr(whole, name))

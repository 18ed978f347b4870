# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch
from seeded import wake

from hf_vqdit.models.transformer_vqdit import VQDiTModel
from hf_vqdit.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from hf_vqdit.training.masked import MaskedLossConfig, mask_rate, masked_objective
from hf_vqdit.training.rows import PairLoss
from hf_vqdit.training.times import TimeMixture, TimeTable, draw_times, row_generator, step_generator

V_X, V_Y = 11, 7
MASK_X, PAD, MASK_Y = V_X, V_Y, V_Y + 1
PLAIN = MaskedLossConfig(text_loss_weight=1.0, pad_loss_weight=1.0, text_loss_weighting="uniform")


def make_model(awake: bool = True) -> VQDiTModel:
    torch.manual_seed(0)
    model = VQDiTModel(V_X, V_Y, text_num_groups=2, patch_size=2, hidden_size=32, num_layers=1, num_attention_heads=2)
    return wake(model) if awake else model


def make_codes(num_rows: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 4 x 4 codes; captions of 5 positions, the last 0 to 3 of them PAD."""
    generator = torch.Generator().manual_seed(seed)
    image_codes = torch.randint(0, V_X, (num_rows, 4, 4), generator=generator)
    text_codes = torch.randint(0, V_Y, (num_rows, 5, 2), generator=generator)
    for row, codes in enumerate(text_codes):
        codes[5 - row % 4 :] = PAD
    return image_codes, text_codes


def make_times(image_time, text_time, num_rows: int = 8) -> TimeTable:
    expand = torch.ones(num_rows)
    return TimeTable(torch.zeros(num_rows, dtype=torch.long), image_time * expand, text_time * expand)


def objective(model, times, codes=None, config=PLAIN, rows=None, schedule="linear", **kwargs) -> PairLoss:
    """The objective on some rows (all by default) of the global batch of `codes`."""
    image_codes, text_codes = make_codes(len(times.kind)) if codes is None else codes
    rows = torch.arange(len(image_codes)) if rows is None else rows
    scheduler = MaskedDiffusionScheduler(mask_schedule=schedule)
    generators = [row_generator(0, 0, row) for row in rows.tolist()]
    kwargs = {name: value[rows] for name, value in kwargs.items()}
    return masked_objective(
        model,
        image_codes[rows],
        text_codes[rows],
        times.select(rows),
        scheduler,
        scheduler,
        generators,
        config,
        **kwargs,
    )


class Inputs:
    """What the model is called with."""

    def __init__(self, model):
        model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _, args, kwargs):
        (self.image, self.text), self.rates = args, kwargs


# What the network sees


@pytest.mark.parametrize("schedule", ["linear", "cosine", "square", "arccos"])
def test_the_network_is_told_the_realised_fraction_of_masks(schedule):
    model = make_model()
    seen = Inputs(model)
    objective(model, draw_times(32, TimeMixture(), step_generator(0, 0)), schedule=schedule)
    for row in range(32):
        assert seen.rates["image_timestep"][row] == (seen.image[row] == MASK_X).sum() / 16
        assert seen.rates["text_timestep"][row] == (seen.text[row] == MASK_Y).sum() / 10


def test_kept_codes_are_the_clean_ones():
    model = make_model()
    seen = Inputs(model)
    image_codes, text_codes = make_codes(32)
    objective(model, make_times(0.5, 0.5, 32))
    assert torch.equal(seen.image, image_codes.where(seen.image != MASK_X, MASK_X))
    assert torch.equal(seen.text, text_codes.where(seen.text != MASK_Y, MASK_Y))


def test_codes_are_hidden_as_often_as_the_scheduler_says():
    model = make_model()
    seen = Inputs(model)
    for schedule in ("linear", "cosine"):
        objective(model, make_times(0.3, 0.7, 400), schedule=schedule)
        scheduler = MaskedDiffusionScheduler(mask_schedule=schedule)
        for codes, mask_id, time in ((seen.image, MASK_X, 0.3), (seen.text, MASK_Y, 0.7)):
            rate = scheduler.mask_rate(time).item()
            sigma = math.sqrt(rate * (1 - rate) / codes.numel())
            assert abs((codes == mask_id).double().mean() - rate) < 4 * sigma


@pytest.mark.parametrize(("time", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_parked_modalities_are_given_or_hidden_whole_and_carry_no_loss(time, rate):
    model = make_model()
    seen = Inputs(model)
    loss = objective(model, make_times(0.5, time), config=MaskedLossConfig(region_fraction=1.0))
    assert (seen.rates["text_timestep"] == rate).all()
    assert loss.text_loss_rows.tolist() == [0] * 8
    assert loss.image_loss_rows.sum() > 0
    loss.loss.backward()
    assert model.text_proj_out.weight.grad.abs().max() == 0
    assert model.image_proj_out.weight.grad.abs().max() > 0


def test_a_row_that_drew_no_mask_has_no_loss():
    model = make_model()
    loss = objective(model, make_times(1e-6, 1e-6))
    assert loss.loss == 0
    loss.loss.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in model.parameters())


# Missing modalities


def test_a_missing_modality_is_all_mask_at_time_one_and_carries_no_loss():
    model = make_model()
    seen = Inputs(model)
    has_text = torch.arange(8) >= 3
    loss = objective(model, make_times(0.5, 0.5), has_text=has_text)
    assert (seen.text[:3] == MASK_Y).all() and (seen.rates["text_timestep"][:3] == 1).all()
    assert (loss.text_loss_rows[:3] == 0).all() and (loss.text_loss_rows[3:] > 0).any()
    assert (seen.rates["text_timestep"][3:] < 1).any()


def test_what_a_missing_modality_holds_does_not_matter():
    times = make_times(0.5, 0.5)
    has_image = torch.arange(8) % 2 == 0
    image_codes, text_codes = make_codes()
    other = torch.where(has_image[:, None, None], image_codes, (image_codes + 1) % V_X)
    losses = [
        objective(make_model(), times, (codes, text_codes), has_image=has_image) for codes in (image_codes, other)
    ]
    assert torch.equal(losses[0].loss, losses[1].loss)


@pytest.mark.parametrize("name", ["text_to_image", "image", "image_to_text", "text", "joint", "square"])
def test_a_row_with_one_modality_still_trains_it(name):
    weights = dict.fromkeys(["text_to_image", "image", "image_to_text", "text", "joint", "square"], 0.0) | {name: 1.0}
    times = draw_times(8, TimeMixture(**weights), step_generator(0, 0))
    missing, there = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    only_text = objective(make_model(), times, has_image=missing, has_text=there)
    only_image = objective(make_model(), times, has_image=there, has_text=missing)
    neither = objective(make_model(), times, has_image=missing, has_text=missing)
    assert (only_text.text_loss_rows > 0).any() and (only_text.image_loss_rows == 0).all()
    assert (only_image.image_loss_rows > 0).any() and (only_image.text_loss_rows == 0).all()
    assert neither.loss == 0


# The loss


def test_the_loss_is_that_of_a_plain_loop():
    model = make_model()
    seen = Inputs(model)
    config = MaskedLossConfig(
        text_loss_weight=0.3,
        pad_loss_weight=0.2,
        label_smoothing=0.1,
        image_loss_weighting="soft_inverse",
        text_loss_weighting="uniform",
        max_inverse_weight=4.0,
    )
    image_codes, text_codes = make_codes()
    loss = objective(model, make_times(0.6, 0.4), config=config)
    output = model(seen.image, seen.text, **seen.rates)

    total = 0.0
    for row in range(8):
        rate = (seen.image[row] == MASK_X).double().mean().item()
        for i in range(4):
            for j in range(4):
                if seen.image[row, i, j] == MASK_X:
                    log_p = output.image_logits[row, i, j].double().log_softmax(0)
                    cross_entropy = -0.9 * log_p[image_codes[row, i, j]] - 0.1 * log_p.mean()
                    total += cross_entropy / (rate + (1 - rate) / 4) / 16 / 8
        num_words = 5 - row % 4
        for i in range(5):
            for group in range(2):
                if seen.text[row, i, group] == MASK_Y:
                    log_p = output.text_logits[row, i, group].double().log_softmax(0)
                    cross_entropy = -0.9 * log_p[text_codes[row, i, group]] - 0.1 * log_p.mean()
                    total += 0.3 * cross_entropy * (0.2 if i > num_words else 1.0) / 10 / 8
    assert loss.loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert loss.loss.item() == pytest.approx((loss.image_loss_rows + 0.3 * loss.text_loss_rows).mean().item())


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    loss = objective(make_model(awake=False), make_times(0.5, 0.5, 64))
    for name, classes in (("image_nats", V_X), ("text_nats", V_Y + 1)):
        nats, count = loss.sums[name].tolist()
        assert nats / count == pytest.approx(math.log(classes), rel=1e-5)


def test_the_inverse_weight_makes_the_linear_schedule_the_likelihood_bound():
    # Uncapped, uniform logits, t uniform: E[sum over hidden / (m L)] = log V for every row that has a mask.
    config = MaskedLossConfig(image_loss_weighting="soft_inverse", max_inverse_weight=1e6)
    loss = objective(make_model(awake=False), make_times(0.5, 0.0, 16), config=config)
    assert loss.image_loss_rows.tolist() == pytest.approx([math.log(V_X)] * 16, rel=1e-3)


def test_codes_that_are_not_hidden_have_no_gradient_at_the_head():
    model = make_model()
    seen = Inputs(model)
    logits = []
    model.register_forward_hook(lambda _, args, output: logits.append(output))
    loss = objective(model, make_times(0.5, 0.5))
    grads = torch.autograd.grad(loss.loss, [logits[0].image_logits, logits[0].text_logits])
    for grad, hidden in zip(grads, (seen.image == MASK_X, seen.text == MASK_Y), strict=True):
        assert torch.equal(grad.abs().sum(dim=-1) > 0, hidden)


# The order of the work changes nothing


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_accumulation_and_ranks_give_the_gradient_of_the_whole_batch(num_parts):
    times = draw_times(8, TimeMixture(), step_generator(0, 0))
    config = MaskedLossConfig(region_fraction=0.5)
    has_text = torch.arange(8) != 2
    whole = make_model().double()
    loss = objective(whole, times, config=config, has_text=has_text)
    loss.loss.backward()

    parts = make_model().double()
    losses, nats = [], {}
    for part in range(num_parts):
        rows = torch.arange(8)[part::num_parts]  # as interleaved ranks see them
        own = objective(parts, times, config=config, rows=rows, has_text=has_text)
        (own.loss / num_parts).backward()
        losses.append(own.loss.item())
        nats = {name: nats.get(name, 0) + own.sums[name] for name in own.sums}

    assert sum(losses) / num_parts == pytest.approx(loss.loss.item(), rel=1e-6)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-8)
    for name in nats:
        assert torch.allclose(nats[name], loss.sums[name])


def test_nats_of_the_time_bins_sum_to_the_whole():
    loss = objective(make_model(), draw_times(32, TimeMixture(), step_generator(0, 0)))
    for name in ("image_nats", "text_nats"):
        bins = [value for key, value in loss.sums.items() if key.startswith(f"{name}/")]
        assert len(bins) == 4
        assert torch.allclose(sum(bins), loss.sums[name])
    only_late = objective(make_model(), make_times(0.8, 0.0)).sums
    assert only_late["image_nats/time_0.75_1.00"][1] == only_late["image_nats"][1] > 0


# Regions


def test_regions_are_boxes_that_are_given_or_left_open():
    model = make_model()
    seen = Inputs(model)
    # All but surely hidden where nothing is given: so what is hidden is the region, or all but it.
    loss = objective(model, make_times(1 - 1e-6, 1 - 1e-6, 64), config=MaskedLossConfig(region_fraction=1.0))
    kinds, shapes = set(), set()
    for codes, mask_id in ((seen.image, MASK_X), (seen.text, MASK_Y)):
        for row in codes:
            hidden = row == mask_id
            kinds.add((is_box(hidden), is_box(~hidden)))
            shapes.add(tuple(hidden.flatten().tolist()))
    assert kinds == {(True, False), (False, True), (True, True)}  # open boxes, given boxes, and both at an edge
    assert len(shapes) > 32
    assert (seen.text == MASK_Y).any(dim=2).equal((seen.text == MASK_Y).all(dim=2))  # all groups of a position
    assert loss.image_loss_rows.gt(0).any()


def is_box(region: torch.Tensor) -> bool:
    """Whether the True places are exactly the cells of some rows and columns without a gap."""
    rows, columns = region.any(dim=1), region.any(dim=0)
    spans = [
        (line.nonzero().max() - line.nonzero().min() + 1 == line.sum()).item()
        for line in (rows, columns)
        if line.any()
    ]
    return all(spans) and torch.equal(region, rows[:, None] & columns[None, :])


def test_region_fraction_is_the_share_of_rows_with_a_region():
    model = make_model()
    seen = Inputs(model)
    objective(model, make_times(1 - 1e-6, 0.0, 600), config=MaskedLossConfig(region_fraction=0.3))
    share = (seen.rates["image_timestep"] < 1).double().mean().item()
    # A box is the whole grid, hidden whole when it is left open, in 1/16 of the draws.
    expected = 0.3 * (1 - 1 / 32)
    assert abs(share - expected) < 4 * math.sqrt(0.3 * 0.7 / 600)


# Bad input


@pytest.mark.parametrize(
    "config",
    [
        {"image_loss_weighting": "inverse"},
        {"text_loss_weighting": ""},
        {"label_smoothing": 1.5},
        {"region_fraction": -0.1},
        {"text_loss_weight": -1.0},
        {"pad_loss_weight": math.nan},
        {"max_inverse_weight": 0.5},
    ],
)
def test_a_weight_out_of_range_is_refused(config):
    (name,) = config
    with pytest.raises(ValueError, match=name):
        MaskedLossConfig(**config)


def test_mask_rate_counts_all_codes():
    codes = torch.tensor([[[0, 5], [5, 5]], [[0, 1], [2, 3]], [[5, 5], [5, 5]]])
    assert mask_rate(codes, 5).tolist() == [0.75, 0.0, 1.0]

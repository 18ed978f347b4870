# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""When the discriminator is trained, when its opinion counts and how much."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hf_vqdit.training.adversarial import AdversarialTrainer

ALL = torch.ones(4, dtype=torch.bool)


def trainer(**options) -> AdversarialTrainer:
    settings = {"resolution": 16, "max_train_steps": 100, "warmup_steps": 0, "width": 8, "num_layers": 2}
    return AdversarialTrainer(**settings | {"learning_rate": 1e-3} | options)


def pictures(seed: int, number: int = 4) -> torch.Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def state_of(adversary: AdversarialTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in adversary.discriminator.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_is_trained_before_its_term_counts_and_then_counts_ever_more():
    adversary = trainer(start_step=2, warmup_steps=3, ramp_steps=4, adaptive=False)
    before = state_of(adversary)
    for step in range(2):
        assert adversary.observe(step, pictures(0), pictures(1), ALL) == {}
        adversary.step()
        assert_same(state_of(adversary), before)
    adversary.observe(2, pictures(0), pictures(1), ALL)
    adversary.step()
    assert not torch.equal(state_of(adversary)["layers.0.weight"], before["layers.0.weight"])
    assert [adversary.weight(step) for step in range(4, 10)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert adversary.critic(4) is None and adversary.critic(5) is adversary.discriminator


def test_it_learns_to_tell_real_from_fake():
    adversary = trainer(r1_gamma=0.1)
    for step in range(60):
        adversary.observe(step, pictures(0), 0.3 * pictures(1), ALL)
        adversary.step()
    real, fake = (adversary.discriminator(image).mean() for image in (pictures(0), 0.3 * pictures(1)))
    assert real > 0.5 and fake < -0.5


def test_the_tokenizers_gradient_passes_through_it_and_leaves_nothing_there():
    adversary, image = trainer(), pictures(0).requires_grad_()
    adversary.discriminator(image).mean().backward()
    assert image.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())
    fake = pictures(1).requires_grad_()
    adversary.observe(0, pictures(0), fake, ALL)
    assert fake.grad is None and not any(p.requires_grad for p in adversary.discriminator.parameters())


def test_the_gradient_penalty_comes_every_so_many_steps_and_weighs_as_much_as_those_left_out():
    due = trainer(r1_every=4, start_step=1)
    assert ["discriminator_r1" in due.observe(step, pictures(0), pictures(1), ALL) for step in range(1, 10)] == [
        step in (1, 5, 9) for step in range(1, 10)
    ]
    gradients = []
    for every in (1, 4):
        adversary = trainer(r1_every=every, r1_gamma=1.0)
        bare = trainer(r1_gamma=0.0)
        for one in (adversary, bare):
            one.observe(0, pictures(0), pictures(1), ALL)
        pairs = zip(adversary.discriminator.parameters(), bare.discriminator.parameters(), strict=True)
        gradients.append(torch.cat([(own.grad - other.grad).flatten() for own, other in pairs]))
    torch.testing.assert_close(gradients[1], 4 * gradients[0], atol=1e-5, rtol=1e-3)


def test_the_adaptive_weight_makes_both_losses_pull_equally_hard_up_to_the_clamp():
    layer = nn.Linear(5, 3, bias=False)
    hidden = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))

    def weight_of(scale: float, **options) -> torch.Tensor:
        image = layer(hidden)
        return trainer(**options).adaptive_weight(scale * image.square().mean(), image.mean(), layer.weight)

    one, double = weight_of(1.0), weight_of(2.0)
    torch.testing.assert_close(double, 2 * one)
    image = layer(hidden)
    wanted, own = (
        torch.autograd.grad(x, layer.weight, retain_graph=True)[0] for x in (image.square().mean(), image.mean())
    )
    torch.testing.assert_close((one * own).norm(), wanted.norm(), rtol=1e-2, atol=1e-3)
    assert weight_of(1e6, max_adaptive_weight=3.0) == 3.0 and not one.requires_grad
    assert weight_of(1e6, adaptive=False) == 1.0 and layer.weight.grad is None


def test_missing_pictures_leave_no_trace():
    whole, part = trainer(lecam_weight=0.1), trainer(lecam_weight=0.1)
    has_image = torch.tensor([True, True, False, False])
    other = torch.cat([pictures(0)[:2], pictures(7)[2:]])
    for step in range(3):
        whole.observe(step, pictures(0), pictures(1), has_image)
        terms = part.observe(step, other, pictures(1), has_image)
        for adversary in (whole, part):
            adversary.step()
    assert (terms["discriminator_hinge"][2:] == 0).all()
    assert_same(state_of(part), state_of(whole))
    assert_same(part.lecam.state_dict(), whole.lecam.state_dict())


def test_micro_batches_equal_one_batch():
    whole, parts = trainer(lecam_weight=0.1), trainer(lecam_weight=0.1)
    for step in range(3):
        real, fake = pictures(step), pictures(100 + step)
        whole.observe(step, real, fake, ALL)
        for rows in (slice(0, 2), slice(2, 4)):
            parts.observe(step, real[rows], fake[rows], ALL[rows])
        whole.step()
        parts.step()
    torch.testing.assert_close(state_of(parts), state_of(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.lecam.state_dict(), whole.lecam.state_dict())


def test_it_goes_on_from_a_checkpoint_bit_for_bit():
    through = trainer(lecam_weight=0.1, r1_every=2)
    for step in range(3):
        through.observe(step, pictures(step), pictures(10 + step), ALL)
        through.step()
    resumed = trainer(lecam_weight=0.1, r1_every=2, seed=5)
    resumed.load_state_dict(copy.deepcopy(through.state_dict()))
    for step in range(3, 6):
        for adversary in (through, resumed):
            adversary.observe(step, pictures(step), pictures(10 + step), ALL)
            adversary.step()
    assert_same(state_of(resumed), state_of(through))
    assert_same(resumed.lecam.state_dict(), through.lecam.state_dict())


def test_its_weights_depend_on_the_seed_alone_and_draw_nothing_from_the_global_generator():
    torch.manual_seed(0)
    first, drawn = state_of(trainer(seed=3)), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    torch.manual_seed(1)
    assert_same(state_of(trainer(seed=3)), first)


def _run_rank(rank: int, world_size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    adversary = trainer(lecam_weight=0.1)
    rows = slice(0, 2) if rank == 0 else slice(2, 4)
    for step in range(3):
        adversary.observe(step, pictures(step)[rows], pictures(100 + step)[rows], ALL[rows])
        adversary.step()
    torch.save((state_of(adversary), adversary.lecam.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_hold_bit_equal_discriminators_and_equal_one_process(tmp_path):
    mp.spawn(_run_rank, args=(2, str(tmp_path)), nprocs=2)
    (first, first_lecam), (second, second_lecam) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_same(first, second)
    assert_same(first_lecam, second_lecam)
    single = trainer(lecam_weight=0.1)
    for step in range(3):
        single.observe(step, pictures(step), pictures(100 + step), ALL)
        single.step()
    torch.testing.assert_close(first, state_of(single), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"start_step": -1}, "starts at step -1"),
        ({"start_step": 100}, "within the 100 steps"),
        ({"start_step": 50, "warmup_steps": 50}, "counts after 50 more"),
        ({"num_layers": 3}, "at least 24 pixels; these have 16"),
    ],
)
def test_a_discriminator_that_could_not_serve_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)

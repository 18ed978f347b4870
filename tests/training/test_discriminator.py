# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The discriminator's losses, in the cases that can be worked out by hand."""

import pytest
import torch
from torch import nn

from hf_vqdit.training.discriminator import LeCam, PatchDiscriminator, hinge_loss, r1_penalty


def pictures(seed: int, number: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


class LinearCritic(nn.Module):
    """D(x) = <a, x>."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.flatten(1) @ self.weight).unsqueeze(1)


@pytest.mark.parametrize("num_layers, num_patches", [(2, 36), (3, 4)])
def test_every_patch_of_a_picture_has_a_logit_that_depends_on_no_other_picture(num_layers, num_patches):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8, num_layers=num_layers)
    image = pictures(0)
    logits = discriminator(image)
    assert logits.shape == (3, num_patches) and logits.dtype == torch.float32
    torch.testing.assert_close(discriminator(image[1:2]), logits[1:2], atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(discriminator(image), logits)


def test_the_hinge_is_nothing_once_both_sides_are_beyond_it():
    real, fake = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[-1.0, -2.0], [0.0, 4.0]])
    torch.testing.assert_close(hinge_loss(real, fake), torch.tensor([0.0, 0.5 * (1 + (1 + 5) / 2)]))


def test_the_gradient_penalty_of_a_linear_critic_is_half_its_squared_weight():
    weight = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    critic, image = LinearCritic(weight), pictures(0, size=8)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = r1_penalty(critic, image)
    torch.testing.assert_close(penalty, (0.5 * weight.square().sum()).expand(3))
    penalty.mean().backward()  # its gradient is the weight itself
    torch.testing.assert_close(critic.weight.grad, weight)
    assert image.grad is None and not image.requires_grad


def test_lecam_measures_how_far_logits_are_beyond_the_average_of_the_other_side():
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-3.0], [4.0]])
    assert lecam(real, fake).tolist() == [0.0, 0.0]  # nothing to compare with yet
    lecam.update(torch.tensor(1.0), torch.tensor(-1.0))
    torch.testing.assert_close(lecam(real, fake), torch.tensor([3.0**2 + 4.0**2, 1.0**2]))
    lecam.update(torch.tensor(2.0), torch.tensor(-1.0))
    torch.testing.assert_close(lecam.real_mean, torch.tensor(1.1))
    assert lecam.state_dict().keys() == {"real_mean", "fake_mean"}

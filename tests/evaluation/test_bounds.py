# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import itertools
import math

import pytest
import torch
from random_pairs import RandomPairs
from seeded import generator, wake
from torch import nn

from hf_vqdit.evaluation.bounds import DIRECTIONS, bound_bits_per_pair, estimate_bits
from hf_vqdit.models.transformer_vqdit import VQDiTModel, VQDiTOutput

V_X, V_Y = 11, 7
NUM_IMAGE, NUM_TEXT = 16, 6


def make_model(**config) -> VQDiTModel:
    torch.manual_seed(0)
    return VQDiTModel(V_X, V_Y, text_num_groups=2, hidden_size=32, num_layers=1, num_attention_heads=2, **config)


def make_codes(num_pairs: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    image_codes = torch.randint(0, V_X, (num_pairs, 4, 4), generator=generator(1))
    text_codes = torch.randint(0, V_Y + 1, (num_pairs, 3, 2), generator=generator(2))
    return image_codes, text_codes


class ToyPosterior(RandomPairs):
    """The exact p(z_i | the codes that are not MASK) of a random table over 2 image and 2 text codes of 3 classes.

    `temperature` 1 is exact; another one is a model that is wrong.
    """

    image_mask_id = text_mask_id = num_classes = 3

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, image_codes, text_codes, image_timestep, text_timestep):
        codes = torch.cat([image_codes.flatten(1), text_codes.flatten(1)], dim=1)  # (B, 4)
        agrees = (codes[:, None] == self.pairs) | (codes[:, None] == self.num_classes)  # (B, 81, 4)
        weights = self.table * agrees.all(dim=-1)  # (B, 81)
        one_hot = nn.functional.one_hot(self.pairs, 3).double()  # (81, 4, 3)
        logits = torch.einsum("bp,pic->bic", weights, one_hot).log() / self.temperature
        image_logits, text_logits = logits.split(2, dim=1)
        return VQDiTOutput(image_logits.reshape(-1, 1, 2, 3), text_logits.reshape(-1, 2, 1, 3))


def enumerated_bits(model: ToyPosterior, which: str) -> torch.Tensor:
    """The expectation over all counts and all choices of hidden codes, for each of the 81 pairs."""
    num_codes = 4 if which == "x,y" else 2
    by_count = []
    for k in range(1, num_codes + 1):
        choices = []
        for places in itertools.combinations(range(num_codes), k):
            hidden = torch.zeros(81, num_codes, dtype=torch.bool)
            hidden[:, list(places)] = True
            choices.append(estimate_bits(model, *model.codes(), hidden, which))
        by_count.append(torch.stack(choices).mean(dim=0))
    return torch.stack(by_count).mean(dim=0)


# The exact posterior


@pytest.mark.parametrize("which", DIRECTIONS)
def test_with_the_exact_posterior_the_bound_is_the_true_likelihood_of_every_pair(which):
    model = ToyPosterior()
    assert torch.allclose(enumerated_bits(model, which), model.exact_bits(which), rtol=0, atol=1e-5)


def test_with_the_exact_posterior_the_chain_rule_holds():
    bits = {which: enumerated_bits(ToyPosterior(), which) for which in DIRECTIONS}
    assert torch.allclose(bits["x,y"], bits["y"] + bits["x|y"], rtol=0, atol=1e-5)
    assert torch.allclose(bits["x,y"], bits["x"] + bits["y|x"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("which", DIRECTIONS)
def test_with_a_wrong_posterior_the_bound_lies_above_the_entropy(which, temperature):
    model = ToyPosterior(temperature)
    entropy = (model.table * model.exact_bits(which)).sum()
    assert (model.table * enumerated_bits(model, which)).sum() > entropy + 1e-3


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("which", DIRECTIONS)
def test_draws_have_the_enumerated_mean(which, num_samples):
    model = ToyPosterior(temperature=1.5)
    draws = [bound_bits_per_pair(model, *model.codes(), which, num_samples, generator(i)) for i in range(200)]
    errors = torch.stack(draws) - enumerated_bits(model, which)  # (200, 81)
    standard_error = errors.std(dim=0) / math.sqrt(200)
    assert (errors.mean(dim=0).abs() < 5 * standard_error + 1e-5).all()
    mean_errors = errors.mean(dim=1)
    assert mean_errors.mean().abs() < 4 * mean_errors.std() / math.sqrt(200) + 1e-5


# Uniform logits


@pytest.mark.parametrize("which", DIRECTIONS)
def test_uniform_logits_cost_the_logarithm_of_the_classes_at_every_draw(which):
    image_bits, text_bits = NUM_IMAGE * math.log2(V_X), NUM_TEXT * math.log2(V_Y + 1)
    expected = {"x": image_bits, "x|y": image_bits, "y": text_bits, "y|x": text_bits, "x,y": image_bits + text_bits}
    bits = bound_bits_per_pair(make_model(), *make_codes(), which, 1, generator())
    assert bits.tolist() == pytest.approx([expected[which]] * 5, rel=1e-6)


# What the network sees


@pytest.mark.parametrize("which", DIRECTIONS)
def test_conditions_are_given_or_absent_and_each_modality_is_told_its_own_rate(which):
    model = wake(make_model())
    calls = []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((*args, *kwargs.values())), with_kwargs=True)
    image_codes, text_codes = make_codes()
    bound_bits_per_pair(model, image_codes, text_codes, which, 3, generator())
    for image, text, image_rate, text_rate in calls:
        for noisy, clean, rate, mask_id, role in (
            (image, image_codes, image_rate, V_X, DIRECTIONS[which][0]),
            (text, text_codes, text_rate, V_Y + 1, DIRECTIONS[which][1]),
        ):
            hidden = noisy == mask_id
            assert torch.equal(noisy[~hidden], clean[~hidden])
            assert torch.equal(rate, hidden.flatten(1).float().mean(dim=1))
            if role != "predicted":
                assert hidden.all() if role == "absent" else not hidden.any()


@pytest.mark.parametrize(("which", "num_codes"), [("x", NUM_IMAGE), ("y|x", NUM_TEXT), ("x,y", NUM_IMAGE + NUM_TEXT)])
def test_counts_are_spread_evenly_over_draws_and_pairs(which, num_codes):
    def counts(num_pairs: int, num_samples: int) -> torch.Tensor:
        model = make_model()
        seen = []

        def count(_, args):
            image_hidden, text_hidden = args[0] == V_X, args[1] == V_Y + 1
            roles = zip((image_hidden, text_hidden), DIRECTIONS[which], strict=True)
            seen.append(sum(hidden.flatten(1).sum(dim=1) for hidden, role in roles if role == "predicted"))

        model.register_forward_pre_hook(count)
        bound_bits_per_pair(model, *make_codes(num_pairs), which, num_samples, generator())
        return torch.stack(seen)  # (num_samples, num_pairs)

    every_count = torch.arange(1, num_codes + 1)
    assert torch.equal(counts(4, num_codes), every_count[:, None].expand(-1, 4))
    assert torch.equal(counts(num_codes, 1)[0].sort().values, every_count)


def test_the_joint_bound_hides_codes_of_both_modalities_alike():
    model = make_model()
    shares = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shares.append(torch.stack([kwargs["image_timestep"], kwargs["text_timestep"]])),
        with_kwargs=True,
    )
    bound_bits_per_pair(model, *make_codes(1500), "x,y", 1, generator(), batch_size=1500)
    image_share, text_share = shares[0]
    # Given k, each of the 22 codes is hidden with probability k / 22.
    assert abs(image_share.mean() - text_share.mean()) < 4 * (image_share - text_share).std() / math.sqrt(1500)


# Use


def test_the_batch_size_changes_nothing_and_the_generator_decides():
    model, codes = wake(make_model()), make_codes()
    bits = bound_bits_per_pair(model, *codes, "x,y", 3, generator())
    assert torch.allclose(bound_bits_per_pair(model, *codes, "x,y", 3, generator(), batch_size=2), bits)
    assert not torch.allclose(bound_bits_per_pair(model, *codes, "x,y", 3, generator(9)), bits)


def test_dropout_is_off_while_measuring_and_back_afterwards():
    model, codes = wake(make_model(dropout=0.5)).train(), make_codes()
    bits = bound_bits_per_pair(model, *codes, "x", 2, generator())
    assert model.training
    assert torch.equal(bound_bits_per_pair(model.eval(), *codes, "x", 2, generator()), bits)
    assert not model.training


@pytest.mark.parametrize(("change", "message"), [({"which": "y|z"}, "'y|z'"), ({"num_samples": 0}, "at least 1")])
def test_a_bad_argument_is_refused(change, message):
    arguments = {"which": "x", "num_samples": 1, "generator": generator()} | change
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        bound_bits_per_pair(make_model(), *make_codes(), **arguments)

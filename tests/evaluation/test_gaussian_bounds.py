# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The bound of a Gaussian process, with an exact network of a small joint distribution and with a tiny one."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict
from gaussian_inputs import make_gaussian_pipeline
from random_pairs import RandomPairs
from seeded import generator

from hf_vqdit.evaluation.bounds import DIRECTIONS, bound_bits_per_pair
from hf_vqdit.evaluation.gaussian_bounds import gaussian_bound_bits_per_pair
from hf_vqdit.evaluation.pipeline_bounds import pipeline_bound_bits
from hf_vqdit.schedulers.noise_levels import NoiseLevels, rounding_nats

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


class ToyPosterior(RandomPairs):
    """
    The exact E[x_0 | x_t] of a random table over 2 image and 2 text codes of 3 classes, in vectors of 2 channels.

    `error` 0 is exact; another one is a model that is wrong.
    """

    def __init__(self, scheduler, prediction_type="sample", error=0.0):
        super().__init__()
        self.config = FrozenDict(process="gaussian", prediction_type=prediction_type, learn_sigma=False)
        self.levels, self.error = NoiseLevels(scheduler, prediction_type), error
        self.vectors = torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.3, -1.2]])
        self.image_log_prior = self.text_log_prior = torch.zeros(3)

    def forward(self, image_latents, text_latents, image_timestep, text_timestep, return_dict):
        log_weights = self.table.log().expand(len(image_latents), 81)
        for latents, time, own in (
            (image_latents, image_timestep, slice(0, 2)),
            (text_latents, text_timestep, slice(2, 4)),
        ):
            alpha, sigma = (x[:, None, None] for x in self.levels.at(time))
            x_0 = self.vectors[self.pairs[:, own]].double().flatten(1)  # (81, 4)
            x_t = latents.movedim(1, -1).double().flatten(1)[:, None]  # (B, 1, 4)
            square = (x_t - alpha * x_0).square() / (2 * sigma.clamp(min=1e-3).square())
            log_weights = log_weights - torch.where(time[:, None] == 1, 0.0, square.sum(dim=-1))  # 1: nothing is known
        weights = log_weights.softmax(dim=1)  # (B, 81)
        expected = torch.einsum("bp,pic->bic", weights, self.vectors[self.pairs].double()).float() + self.error
        image, text = expected[:, :2].reshape(-1, 1, 2, 2), expected[:, 2:].reshape(-1, 2, 1, 2)
        image, text = image.movedim(-1, 1), text.movedim(-1, 1)
        if self.config.prediction_type == "sample":
            return image, text
        return tuple(
            (x_t - x_0) / time[:, None, None, None].clamp(min=1e-6)
            for x_t, x_0, time in ((image_latents, image, image_timestep), (text_latents, text, text_timestep))
        )

    def code_vectors(self, modality, vqvae):
        return self.vectors


SCHEDULERS = {
    "ddpm": (DDPMScheduler(num_train_timesteps=200, beta_end=0.1), "sample"),
    "flow": (FlowMatchEulerDiscreteScheduler(num_train_timesteps=200), "flow_prediction"),
}


def toy_bits(kind, which, error=0.0, num_samples=199, **settings):
    """The mean bound under the table, one draw of each level for each pair; and the entropy, which is the best."""
    scheduler, prediction_type = SCHEDULERS[kind]
    toy = ToyPosterior(scheduler, prediction_type, error)
    pipeline = SimpleNamespace(transformer=toy, vqvae=None, scheduler=scheduler, text_scheduler=scheduler)
    bits = gaussian_bound_bits_per_pair(pipeline, *toy.codes(), which, num_samples, generator(), 81, **settings)
    return (toy.table * bits).sum().item(), (toy.table * toy.exact_bits(which)).sum().item()


# An exact network


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("which", DIRECTIONS)
def test_with_an_exact_network_the_bound_is_nearly_the_entropy(kind, which):
    bits, entropy = toy_bits(kind, which, rounding_level=1)
    assert entropy - 0.25 < bits < entropy + 0.35  # the noise of one draw; and the steps are not infinitely many


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_chain_may_end_at_a_later_level_and_rounding_does_the_rest(kind):
    bits, entropy = toy_bits(kind, "x,y", rounding_level=10, num_samples=190)
    assert entropy - 0.25 < bits < entropy + 0.35
    late, _ = toy_bits(kind, "x,y", rounding_level=120, num_samples=80)
    assert late > bits + 0.2  # so much noise hides codes, each of which is then rounded for itself


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_with_a_wrong_network_the_bound_is_higher(kind):
    bits, entropy = toy_bits(kind, "x,y", error=0.1, rounding_level=1)
    assert bits > entropy + 1


def test_few_draws_have_the_mean_of_many():
    many, _ = toy_bits("flow", "x")
    few = torch.tensor([toy_bits("flow", "x", num_samples=1 + index % 3)[0] for index in range(30)])
    assert abs(few.mean() - many) < 4 * few.std() / 30**0.5 + 0.2


def test_codes_whose_vectors_are_the_same_are_told_apart_by_how_often_they_come():
    codes, mean = torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 2, 1, 1)
    vectors = torch.ones(4, 2)
    nats = rounding_nats(codes, vectors, mean, torch.tensor(0.1), torch.tensor([0.7, 0.1, 0.1, 0.1]).log())
    assert nats.item() == pytest.approx(-math.log(0.7))
    assert rounding_nats(codes, vectors, mean, torch.tensor(0.1)).item() == pytest.approx(math.log(4))


# A tiny pipeline


@pytest.fixture(params=({"learn_sigma": True, "prediction_type": "epsilon"}, {"prediction_type": "flow_prediction"}))
def pipeline(request, tiny_pipeline):
    return make_gaussian_pipeline(tiny_pipeline, **request.param)


def make_codes(num_pairs=4):
    image_codes = torch.randint(0, 32, (num_pairs, 8, 8), generator=generator(1))
    text_codes = torch.randint(0, 49, (num_pairs, 16, 1), generator=generator(2))
    return image_codes, text_codes


def test_by_default_rounding_begins_where_half_as_much_noise_is_left(pipeline):
    times = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: times.append(kwargs["image_timestep"][0]), with_kwargs=True
    )
    gaussian_bound_bits_per_pair(pipeline, *make_codes(), "x", 1, generator())
    levels = NoiseLevels(pipeline.scheduler, pipeline.transformer.config.prediction_type)
    level = round(times[0].item() * 1000)
    assert levels.sigma[level] <= levels.alpha[level] / 2 and levels.sigma[level + 1] > levels.alpha[level + 1] / 2


@pytest.mark.parametrize("which", DIRECTIONS)
def test_conditions_are_given_clean_or_absent_and_the_predicted_share_a_level(pipeline, which):
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    codes = make_codes()
    bits = gaussian_bound_bits_per_pair(pipeline, *codes, which, 5, generator())
    assert bits.shape == (4,) and bits.dtype == torch.float64 and (bits > 0).all()
    vectors = {"image": pipeline.vqvae.normalized_codebook("image")}
    vectors["text"] = torch.cat(
        [pipeline.vqvae.normalized_codebook("text"), pipeline.transformer.text_pad_vector[None]]
    )
    levels = torch.stack([call["image_timestep"] if which[0] == "x" else call["text_timestep"] for call in calls])
    first = round(levels[0, 0].item() * 1000)
    assert (levels[0] == levels[0, 0]).all() and (levels[1:] > levels[0, 0]).all()  # the rounding, for every pair
    drawn = (levels[1:] * 1000).round().long() - first - 1  # (5, 4), of 0..999 - first
    assert (drawn * 5 // (1000 - first)).tolist() == [[part] * 4 for part in range(5)]
    for call in calls:
        for name, own, role in zip(("image", "text"), codes, DIRECTIONS[which], strict=True):
            time, clean = call[f"{name}_timestep"], vectors[name][own].movedim(-1, 1)
            if role == "predicted":
                assert torch.equal(time, call["image_timestep"] if which[0] == "x" else time)
                assert not torch.equal(call[f"{name}_latents"], clean)
            else:
                assert (time == (role == "absent")).all()
                assert torch.equal(call[f"{name}_latents"], clean) == (role == "given")


def test_the_batch_size_changes_the_noise_alone_and_the_generator_decides(pipeline):
    codes = make_codes()
    bits = gaussian_bound_bits_per_pair(pipeline, *codes, "x,y", 3, generator())
    assert torch.equal(gaussian_bound_bits_per_pair(pipeline, *codes, "x,y", 3, generator()), bits)
    assert not torch.equal(gaussian_bound_bits_per_pair(pipeline, *codes, "x,y", 3, generator(1)), bits)


def test_every_level_and_the_rounding_are_finite(pipeline):
    codes = make_codes(1000)
    bits = gaussian_bound_bits_per_pair(pipeline, codes[0][:, :2, :2], codes[1][:, :1], "x,y", 1, generator(), 500)
    assert bits.isfinite().all()


def test_one_call_bounds_pipelines_of_both_processes(pipeline, tiny_pipeline):
    codes = make_codes()
    expected = gaussian_bound_bits_per_pair(pipeline, *codes, "x|y", 2, generator()).mean().item()
    assert pipeline_bound_bits(pipeline, *codes, "x|y", 2, generator()) == expected
    expected = bound_bits_per_pair(tiny_pipeline.transformer, *codes, "x|y", 2, generator()).mean().item()
    assert pipeline_bound_bits(tiny_pipeline, *codes, "x|y", 2, generator()) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"which": "y|z"}, r"'y\|z'"),
        ({"num_samples": 0}, "at least 1"),
        ({"rounding_level": 0}, r"`rounding_level` in 1\.\.999"),
        ({"rounding_level": 1000}, r"`rounding_level` in 1\.\.999.*1000"),
    ),
)
def test_a_bad_argument_is_refused(pipeline, change, message):
    arguments = {"which": "x", "num_samples": 1, "generator": generator()} | change
    with pytest.raises(ValueError, match=message):
        gaussian_bound_bits_per_pair(pipeline, *make_codes(), **arguments)


def test_the_joint_bound_needs_one_number_of_levels(pipeline):
    scheduler_class = type(pipeline.scheduler)
    pipeline.text_scheduler = scheduler_class.from_config(pipeline.text_scheduler.config, num_train_timesteps=50)
    assert gaussian_bound_bits_per_pair(pipeline, *make_codes(), "y|x", 1, generator()).isfinite().all()
    with pytest.raises(ValueError, match=r"one number of levels.*\[50, 1000\]"):
        gaussian_bound_bits_per_pair(pipeline, *make_codes(), "x,y", 1, generator())

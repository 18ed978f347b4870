# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from hf_vqdit.data.shapes import ATTRIBUTE_SIZES, OneObject, TwoObjects, all_scenes, attributes, is_held_out
from hf_vqdit.evaluation.judge import ShapesJudge, draw_batch, judge_accuracy, train_judge
from hf_vqdit.evaluation.metrics import share_equal

HELD_OUT = [scene for scene in all_scenes(1) if is_held_out(scene)]


@pytest.fixture(scope="module")
def judge() -> ShapesJudge:
    """Trained for less than half of the usual steps: nearly as good."""
    return train_judge(num_objects=1, num_train_steps=150)


def test_real_pictures_are_judged_right_and_exchanged_ones_wrong(judge):
    pixel_values, _ = draw_batch(HELD_OUT, 32, torch.Generator().manual_seed(1))
    read = judge.read(pixel_values)
    assert share_equal(read, HELD_OUT) > 0.9
    assert share_equal(read, HELD_OUT[1:] + HELD_OUT[:1]) < 0.05


def test_a_picture_is_read_alike_in_any_batch(judge):
    pixel_values, _ = draw_batch(HELD_OUT[:20], 32, torch.Generator().manual_seed(1))
    assert judge.read(pixel_values, batch_size=3) == judge.read(pixel_values, batch_size=20)


def test_a_wrong_color_is_noticed(judge):
    red, blue, pink = 0, 2, 3
    scenes = [scene for scene in HELD_OUT if scene.color == red and scene.background != pink]
    pixel_values, _ = draw_batch(scenes, 32, torch.Generator().manual_seed(1))
    recolored = judge.read(pixel_values[:, [2, 1, 0]])  # red turns blue; white, gray and black stay
    assert share_equal(recolored, [scene._replace(color=blue) for scene in scenes]) > 0.8


def test_training_leaves_the_global_generator_alone_and_repeats_itself():
    state = torch.get_rng_state()
    first, second = (train_judge(num_objects=1, num_train_steps=3, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert judge_accuracy(first, num_pictures=50) == judge_accuracy(second, num_pictures=50)


@pytest.mark.parametrize(("num_objects", "scene_type"), [(1, OneObject), (2, TwoObjects)])
@pytest.mark.parametrize("resolution", [32, 48, 64])
def test_there_is_one_classifier_for_each_fact_at_any_resolution(num_objects, scene_type, resolution):
    judge = ShapesJudge(num_objects, resolution).eval()
    pixel_values, facts = draw_batch(all_scenes(num_objects)[:3], resolution, torch.Generator().manual_seed(0))
    logits = judge(pixel_values)
    assert {name: value.shape for name, value in logits.items()} == {
        name: (3, ATTRIBUTE_SIZES[name]) for name in scene_type._fields
    }
    assert facts.tolist() == [list(attributes(scene).values()) for scene in all_scenes(num_objects)[:3]]
    assert all(type(scene) is scene_type for scene in judge.read(pixel_values))


@pytest.mark.slow
@pytest.mark.parametrize("num_objects", [1, 2])
def test_a_fully_trained_judge_reads_99_percent_of_unseen_combinations(num_objects):
    assert judge_accuracy(train_judge(num_objects)) >= 0.99

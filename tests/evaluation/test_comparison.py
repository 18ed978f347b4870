# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
import torch

from hf_vqdit.data import shapes_dataset
from hf_vqdit.data.shapes import all_scenes
from hf_vqdit.evaluation.comparison import compare_answers, note_limits, set_figures
from hf_vqdit.evaluation.features import TokenizerLatents, extract_features
from hf_vqdit.evaluation.metrics import reconstruct
from hf_vqdit.evaluation.picture_sets import frechet_distance
from hf_vqdit.evaluation.sampling import Answers, Cost, HeldOutPairs, Samples, read_held_out
from hf_vqdit.evaluation.training_pictures import TrainingPictures, read_training_pictures


def draw(num_pictures: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_pictures, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def training(tiny_pipeline) -> TrainingPictures:
    network = TokenizerLatents(tiny_pipeline.vqvae)
    pairs = shapes_dataset("train", num_objects=1, num_rows=30)
    return read_training_pictures(pairs, tiny_pipeline.tokenizer, 32, network=network)


def make_answers(drawn: torch.Tensor, made_up: torch.Tensor) -> Answers:
    samples = Samples(made_up, ["a star"] * len(made_up), Cost(1, 1, 0.1))
    return Answers(drawn, ["a circle"] * len(drawn), drawn, ["a square"] * len(drawn), samples, {})


def test_the_floor_is_the_distance_between_real_pictures_that_are_as_many():
    training_features = draw(200, seed=0)
    floors = {count: set_figures(draw(count, 1), training_features)["fid_floor"] for count in (10, 50, 100, 300)}
    assert floors[10] > floors[50] > floors[100] == floors[300] > 0  # never more than half of them
    figures = set_figures(draw(50, 2), training_features)
    assert figures["fid"] == pytest.approx(figures["fid_floor"], rel=0.5)  # of one distribution


def test_each_seed_has_its_own_floor_and_a_seed_always_the_same():
    values = [set_figures(draw(20, 1), draw(90, 0), seed) for seed in (3, 3, 4)]
    assert values[0] == values[1] and values[0]["fid_floor"] != values[2]["fid_floor"]
    assert values[0]["fid"] == values[2]["fid"]


def test_few_pictures_have_the_figures_that_they_can_have():
    assert {"precision", "recall", "density", "coverage"} <= set(set_figures(draw(6, 1), draw(6, 0)))
    for count, num_training in ((5, 90), (90, 5), (2, 4)):
        figures = set_figures(draw(count, 1), draw(num_training, 0))
        assert set(figures) == {"num_pictures", "fid", "fid_floor", "kid", "diversity"}
    assert "fid_floor" not in set_figures(draw(5, 1), draw(3, 0))


def test_held_out_pictures_stand_beside_those_that_were_drawn_for_their_captions(tiny_pipeline, training):
    held_out = read_held_out(shapes_dataset("validation", 1, num_rows=20), tiny_pipeline.tokenizer, 32)
    restored = reconstruct(tiny_pipeline.vqvae, held_out.pixel_values)
    real, noise = held_out.pixel_values[:8], torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = [make_answers(real, training.read([0, 1, 2, 3, 4, 5])), make_answers(noise, noise)]
    figures, page = compare_answers(training, tiny_pipeline.vqvae, held_out, restored, answers)
    sets, name = figures["picture_sets"], "tokenizer_latents"
    assert figures["features"] == name and list(sets) == ["text_to_image", "joint", "reconstruction", "held_out"]

    # The first seed's answers are the held-out pictures themselves.
    least, greatest = sets["text_to_image"]["spread"][f"fid_{name}"]
    assert least == pytest.approx(sets["held_out"][f"fid_{name}"]) and greatest > least
    assert sets["joint"]["spread"]["exact_duplicates"] == [0, 1]
    assert sets["reconstruction"]["num_pictures"] == sets["held_out"]["num_pictures"] == 8
    features, real_features = (extract_features(training.network, own) for own in (restored, held_out.pixel_values))
    assert figures[f"image_rfid_{name}"] == pytest.approx(frechet_distance(features, real_features))
    assert page.height > 900

    figures, page = compare_answers(training, tiny_pipeline.vqvae, held_out, restored, answers, with_copies=False)
    assert page is None and f"fid_{name}" in figures["picture_sets"]["joint"]
    assert not [key for key in figures["picture_sets"]["joint"] if "duplicates" in key or "nearest" in key]


@pytest.mark.parametrize(("num_asked", "num_made_up"), [(1, 3), (3, 1), (1, 1)])
def test_a_set_of_one_picture_is_left_out(tiny_pipeline, training, num_asked, num_made_up):
    held_out = read_held_out(shapes_dataset("validation", 1, num_rows=4), tiny_pipeline.tokenizer, 32)
    pictures = held_out.pixel_values
    answers = [make_answers(pictures[:num_asked], pictures[:num_made_up])]
    figures, page = compare_answers(training, tiny_pipeline.vqvae, held_out, pictures, answers)
    assert ("joint" in figures["picture_sets"]) == (num_made_up > 1)
    assert ("text_to_image" in figures["picture_sets"]) == (num_asked > 1)
    assert (page is None) == (num_asked == num_made_up == 1)


def test_what_few_pictures_do_is_told_before_they_are_drawn(training):
    assert note_limits({"text_to_image": 15, "joint": 15}, training, make_held_out(100)) == [
        "FID from no more pictures than the 16 features have dimensions (Text to image 15, Joint 15) is far above "
        "that of many pictures: compare it with that of real pictures beside it, or go by KID."
    ]
    for counts, num_held_out, words in (
        ({"joint": 1}, 100, "take two pictures"),
        ({"joint": 5}, 100, "No precision, recall, density and coverage"),
        ({"joint": 17}, 100, "that of 15 training pictures against the others"),
        ({"joint": 15}, 40, "one in 41"),
    ):
        assert any(words in note for note in note_limits(counts, training, make_held_out(num_held_out))), words
    assert not any("held-out" in note for note in note_limits({"joint": 15}, training, None))


def test_of_scenes_it_is_told_that_held_out_ones_are_of_another_kind(training):
    scenes = all_scenes(1)[:100]
    notes = note_limits({"joint": 15}, training, replace(make_held_out(100), scenes=scenes))
    assert any("combinations" in note for note in notes)


def make_held_out(num_pairs: int) -> HeldOutPairs:
    captions = ["a star"] * num_pairs
    return HeldOutPairs(torch.zeros(num_pairs, 3, 8, 8), torch.zeros(num_pairs, 4), captions, [captions] * num_pairs)

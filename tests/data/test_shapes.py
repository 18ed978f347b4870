# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The built-in shapes: facts, captions and pictures tell the same."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqdit.data.shapes import (
    ATTRIBUTE_SIZES,
    ATTRIBUTE_WORDS,
    BACKGROUNDS,
    COLORS,
    JITTER,
    SCENE_TYPES,
    TEMPLATES,
    TwoObjects,
    all_scenes,
    attributes,
    describe,
    draw,
    is_held_out,
    parse,
    scene_from_facts,
    shapes_dataset,
)


def scenes_to_try(num_objects: int) -> list:
    scenes = all_scenes(num_objects)
    return scenes if num_objects == 1 else random.Random(0).sample(scenes, 2000)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.parametrize(("num_objects", "count"), [(1, 1_728), (2, 18_432)])
def test_every_combination_of_facts_is_one_scene(num_objects, count):
    scenes = all_scenes(num_objects)
    assert len(scenes) == len(set(scenes)) == count
    for name in SCENE_TYPES[num_objects]._fields:
        assert {attributes(scene)[name] for scene in scenes} == set(range(ATTRIBUTE_SIZES[name]))


@pytest.mark.parametrize("num_objects", [1, 2])
def test_every_caption_parses_back_to_its_scene(num_objects):
    for scene in scenes_to_try(num_objects):
        for template_index in range(len(TEMPLATES[type(scene)])):
            assert parse(describe(scene, template_index)) == scene


@pytest.mark.parametrize("num_objects", [1, 2])
def test_templates_say_the_same_in_different_words(num_objects):
    templates = TEMPLATES[SCENE_TYPES[num_objects]]
    assert len(templates) >= 4
    for scene in scenes_to_try(num_objects)[::97]:
        assert len({describe(scene, k) for k in range(len(templates))}) == len(templates)


@pytest.mark.parametrize("num_objects", [1, 2])
def test_a_caption_that_is_a_letter_off_is_not_read(num_objects):
    for scene in scenes_to_try(num_objects)[::97]:
        caption = describe(scene, 0)
        broken = [
            "",
            " " + caption,
            caption + " ",
            caption + ".",
            caption[:-1],
            f"{caption} {caption}",
            caption.upper(),
        ]
        broken += [caption.replace("background", "red"), caption.replace(" on ", " on on ")]
        assert [parse(text) for text in broken] == [None] * len(broken)


@pytest.mark.parametrize("num_objects", [1, 2])
def test_a_tenth_of_the_scenes_is_held_out_and_training_sees_every_word(num_objects):
    scenes = all_scenes(num_objects)
    held_out = sum(map(is_held_out, scenes))
    assert abs(held_out - 0.1 * len(scenes)) < 4 * (0.09 * len(scenes)) ** 0.5
    seen = [scene for scene in scenes if not is_held_out(scene)]
    for position, name in enumerate(SCENE_TYPES[num_objects]._fields):
        assert len({scene[position] for scene in seen}) == len(ATTRIBUTE_WORDS[name])


@pytest.mark.parametrize("num_objects", [1, 2])
def test_facts_lead_back_to_the_scene(num_objects):
    for scene in scenes_to_try(num_objects):
        assert scene_from_facts(list(scene)) == scene


def test_a_list_of_the_wrong_length_is_no_scene():
    with pytest.raises(ValueError, match="5 or 8 facts, got 3"):
        scene_from_facts([0, 1, 2])


@pytest.mark.parametrize("num_objects", [1, 2])
def test_no_object_is_cut_off(num_objects):
    generator = torch.Generator().manual_seed(0)
    for scene in scenes_to_try(num_objects)[:: 1 if num_objects == 1 else 5]:
        picture = pixels(draw(scene, 64, generator))
        edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (edges == list(BACKGROUNDS.values())[scene.background]).all(), scene


def test_every_fact_can_be_read_off_a_jittered_picture_of_32_pixels():
    scenes = all_scenes(1)
    references = torch.from_numpy(np.stack([pixels(draw(scene, 32)) for scene in scenes])).flatten(1).float()
    generator = torch.Generator().manual_seed(0)
    tried = random.Random(0).sample(range(len(scenes)), 400)
    jittered = torch.from_numpy(np.stack([pixels(draw(scenes[i], 32, generator)) for i in tried])).flatten(1).float()
    assert torch.cdist(jittered, references).argmin(dim=1).tolist() == tried


def test_all_colors_stand_out_from_each_other_and_from_every_background():
    colors = np.array([*COLORS.values(), *BACKGROUNDS.values()], dtype=np.float64)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() > 80


def test_the_first_of_two_objects_is_the_left_or_the_upper_one():
    colors = list(COLORS.values())
    for relation, axis in ((0, 1), (1, 0)):  # "to the left of" counts columns, "above" counts rows
        picture = pixels(draw(TwoObjects(0, 0, 0, 1, 2, 1, relation, 0), 64))
        first, second = (np.argwhere((picture == colors[color]).all(axis=-1)).mean(axis=0) for color in (0, 2))
        assert first[axis] < second[axis]
        assert first[1 - axis] == pytest.approx(second[1 - axis], abs=1)


def test_jitter_moves_an_object_by_no_more_than_it_says():
    scene = all_scenes(1)[0]
    generator = torch.Generator().manual_seed(0)
    color = list(COLORS.values())[scene.color]

    def center(picture: Image.Image) -> np.ndarray:
        return np.argwhere((pixels(picture) == color).all(axis=-1)).mean(axis=0) / picture.width

    moves = [center(draw(scene, 256, generator)) - center(draw(scene, 256)) for _ in range(100)]
    assert JITTER <= 1 / 32
    assert 0.8 * JITTER < np.abs(moves).max() < JITTER + 1 / 256


def test_a_picture_follows_from_its_generator():
    scene = all_scenes(2)[1234]
    first, second = (draw(scene, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != draw(scene, 32, torch.Generator().manual_seed(6)).tobytes()


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("num_objects", [1, 2])
def test_a_split_draws_evenly_from_its_own_scenes(split, num_objects):
    rows = shapes_dataset(split, num_objects, num_rows=500, resolution=8)
    counts = Counter(map(scene_from_facts, rows["scene"]))
    assert {is_held_out(scene) for scene in counts} == {split == "validation"}
    available = sum(is_held_out(scene) == (split == "validation") for scene in all_scenes(num_objects))
    assert len(counts) == min(500, available)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_picture_caption_and_facts_of_a_row_agree():
    rows = shapes_dataset("train", 1, num_rows=200)
    used_templates = Counter()
    for row in rows:
        scene = scene_from_facts(row["scene"])
        (caption,) = row["caption"]
        assert parse(caption) == scene
        used_templates += Counter(k for k in range(4) if describe(scene, k) == caption)
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
        assert np.abs(pixels(picture) - pixels(draw(scene, 32))).mean() < 8  # only the jitter differs
    assert set(used_templates) == {0, 1, 2, 3}


def test_a_row_depends_on_the_seed_and_not_on_the_number_of_rows():
    few = shapes_dataset("train", 2, num_rows=20, resolution=16, seed=3)
    many = shapes_dataset("train", 2, num_rows=30, resolution=16, seed=3)
    assert few[:] == many[:20]
    assert few[:] != shapes_dataset("train", 2, num_rows=20, resolution=16, seed=4)[:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 1, 10), '"train" or "validation", got \'test\''),
        (("train", 3, 10), "`num_objects` must be 1 or 2, got 3"),
        (("train", 1, 0), "`num_rows` must be at least 1, got 0"),
        (("train", 1, 10, 0), "`resolution` must be at least 1 pixel, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes_dataset(*arguments)

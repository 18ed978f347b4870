# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Which captions forbid a mirror image, and that no picture of such captions is ever mirrored."""

import io

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_vqdit.data import PairDataset, PairReader, RowKey, train_caption_tokenizer
from hf_vqdit.data.augmentation import names_sides
from hf_vqdit.data.shapes import all_scenes, describe


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle left of a blue square",
        "To the RIGHT, a tree",
        "left-facing fist",
        "rightwards pushing hand",
        "down-left arrow",
        "the leftmost of three cups",
        "counterclockwise arrows button",
        "three o’clock",
        "左边的红色圆形",
        "向右的箭头",
        "逆时针箭头",
        "三点",
    ],
)
def test_a_caption_that_speaks_of_sides_forbids_a_mirror_image(caption):
    assert names_sides([caption])
    assert names_sides(["a picture", caption])  # also where another caption is drawn


@pytest.mark.parametrize(
    "caption",
    [
        "a bright star above a copyright sign",
        "leftovers on an upright piano",
        "an alarm clock",
        "红色圆形在上方",
        "",
        "点",
    ],
)
def test_other_captions_do_not(caption):
    assert not names_sides([caption])


def test_of_the_built_in_scenes_exactly_those_with_a_side_in_their_caption_are_kept():
    captions = [describe(scene, way) for scene in all_scenes(1)[::7] for way in range(4)]
    found = [names_sides([caption]) for caption in captions]
    assert found == ["left" in caption.split() or "right" in caption.split() for caption in captions]
    assert 0.1 < sum(found) / len(found) < 0.9


def test_pictures_are_mirrored_half_the_time_unless_a_caption_names_sides():
    picture = PILImage.new("RGB", (8, 8), "black")
    picture.paste("white", (0, 0, 4, 8))  # white on the left
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    captions = [["white and black"], ["a half", "white on the left"]]
    columns = {"image": [{"bytes": encoded.getvalue(), "path": None}] * 2, "caption": captions}
    features = Features({"image": Image(decode=False), "caption": List(Value("string"))})
    pairs = Dataset.from_dict(columns, features=features)
    tokenizer = train_caption_tokenizer([text for own in captions for text in own], vocab_size=300, model_max_length=8)
    dataset = PairDataset(pairs, PairReader(tokenizer, resolution=8, random_flip=True, seed=0))
    is_mirrored = torch.tensor(
        [
            [bool(dataset[RowKey(epoch, index)]["pixel_values"][0, 0, 0] < 0) for index in (0, 1)]
            for epoch in range(200)
        ]
    )
    share = is_mirrored.float().mean(dim=0)
    assert abs(share[0] - 0.5) < 4 * (0.25 / 200) ** 0.5 and share[1] == 0

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from hf_vqdit.data import PairDataset, PairReader, shapes_dataset
from hf_vqdit.evaluation.features import MAX_SIDE, TokenizerLatents, extract_features, shrink, to_bytes
from hf_vqdit.evaluation.training_pictures import read_training_pictures

SHAPES = shapes_dataset("train", num_objects=1, num_rows=20)


@pytest.mark.parametrize("resolution", [32, 2 * MAX_SIDE])
def test_each_picture_has_its_own_caption_thumbnail_and_features(tiny_pipeline, resolution):
    network, tokenizer = TokenizerLatents(tiny_pipeline.vqvae), tiny_pipeline.tokenizer
    training = read_training_pictures(SHAPES, tokenizer, resolution, network=network, batch_size=7)
    assert sorted(training.rows) == list(range(20)) and training.rows != sorted(training.rows)
    assert training.captions == SHAPES.select(training.rows)["caption"]
    pixel_values = training.read([*range(20)])
    items = PairDataset(SHAPES, PairReader(tokenizer, resolution)).__getitems__([(0, row) for row in training.rows])
    assert torch.equal(pixel_values, torch.stack([item["pixel_values"] for item in items]))
    assert torch.equal(training.thumbnails, to_bytes(shrink(pixel_values)))
    torch.testing.assert_close(training.features, extract_features(network, pixel_values), rtol=1e-5, atol=1e-6)
    assert torch.equal(training.read([3]), pixel_values[3:4])


def test_some_are_drawn_by_the_seed(tiny_pipeline):
    network = TokenizerLatents(tiny_pipeline.vqvae)
    rows = [
        read_training_pictures(SHAPES, tiny_pipeline.tokenizer, 16, max_pictures=6, network=network, seed=seed).rows
        for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2] and len(set(rows[0])) == 6


def test_rows_without_a_picture_that_can_be_read_are_left_out(tiny_pipeline):
    rows = {
        "image": [SHAPES[0]["image"], {"bytes": b"no picture", "path": None}, None, SHAPES[1]["image"]],
        "caption": [["a star"], ["a circle"], ["a square"], []],
    }
    features = Features({"image": Image(decode=False), "caption": List(Value("string"))})
    pairs = Dataset.from_dict(rows, features=features)
    network = TokenizerLatents(tiny_pipeline.vqvae)
    training = read_training_pictures(pairs, tiny_pipeline.tokenizer, 16, network=network, batch_size=1)
    assert dict(zip(training.rows, training.captions, strict=True)) == {0: ["a star"], 3: []}
    with pytest.raises(ValueError, match="Of 3 training pictures 1 can be read"):
        read_training_pictures(pairs.select([0, 1, 2]), tiny_pipeline.tokenizer, 16, network=network)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The order of rows is a function of the step, pictures arrive as the borders say, and bad ones cost no run."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image, List, Value
from pair_files import draw_pixels, encode
from torch.utils.data import DataLoader

from hf_vqdit.data.captions import encode_captions, train_caption_tokenizer
from hf_vqdit.data.loader import (
    CodesDataset,
    PairDataset,
    PairReader,
    ResumableBatchSampler,
    choose_caption,
    collate_codes,
    collate_pairs,
)

PAIR_FEATURES = Features({"image": Image(decode=False), "caption": List(Value("string"))})


def encoded(pixels: np.ndarray, file_format: str = "PNG") -> dict:
    return {"bytes": encode(pixels, file_format), "path": None}


def as_pairs(images: list[dict | None], captions: list[list[str]] | None = None) -> Dataset:
    captions = [[f"caption {i}"] for i in range(len(images))] if captions is None else captions
    return Dataset.from_dict({"image": images, "caption": captions}, features=PAIR_FEATURES)


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer([f"caption {i}" for i in range(100)], vocab_size=300, model_max_length=8)


@pytest.fixture(scope="module")
def pairs():
    """Twelve pairs, each with three captions; rows 4, 5 and 11 hold broken pictures."""
    images = [encoded(draw_pixels(i)) for i in range(12)]
    images[4] = {"bytes": b"garbage", "path": "four.png"}
    images[5] = {"bytes": images[5]["bytes"][:100], "path": "five.png"}
    images[11] = {"bytes": None, "path": "/nowhere/eleven.png"}
    return as_pairs(images, [[f"caption {3 * i + k}" for k in range(3)] for i in range(12)])


# The order of rows


def rows_of_a_run(num_steps: int, num_processes: int, accumulation: int, batch_size: int, start_step: int = 0) -> list:
    """Every step's rows in the order of the global batch, gathered from all processes."""
    batches = [
        list(
            ResumableBatchSampler(
                num_rows=23,
                batch_size=batch_size,
                num_processes=num_processes,
                process_index=process_index,
                gradient_accumulation_steps=accumulation,
                seed=7,
                start_step=start_step,
                max_train_steps=num_steps,
            )
        )
        for process_index in range(num_processes)
    ]
    rows = []
    for step in range(num_steps - start_step):
        for micro_step, process_index in itertools.product(range(accumulation), range(num_processes)):
            rows += batches[process_index][step * accumulation + micro_step]
    return rows


@pytest.mark.parametrize(("num_processes", "accumulation", "batch_size"), [(2, 1, 6), (1, 4, 3), (2, 3, 2), (4, 1, 3)])
def test_processes_and_accumulation_split_the_same_global_batches(num_processes, accumulation, batch_size):
    whole = rows_of_a_run(9, num_processes=1, accumulation=1, batch_size=12)
    assert rows_of_a_run(9, num_processes, accumulation, batch_size) == whole
    assert [key.row for key in whole] == list(range(12)) * 9


@pytest.mark.parametrize("start_step", [0, 1, 5, 8, 9])
def test_a_resumed_run_reads_what_the_uninterrupted_one_would_have_read(start_step):
    whole = rows_of_a_run(9, num_processes=2, accumulation=2, batch_size=3)
    assert rows_of_a_run(9, 2, 2, 3, start_step=start_step) == whole[start_step * 12 :]


def test_every_epoch_is_a_permutation_of_its_own():
    rows = rows_of_a_run(23 * 4, num_processes=1, accumulation=1, batch_size=3)
    epochs = [[key.index for key in group] for _, group in itertools.groupby(rows, key=lambda key: key.epoch)]
    assert len(epochs) == 12
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 12


def test_the_seed_changes_the_order():
    orders = [
        [key.index for key in next(iter(ResumableBatchSampler(50, 50, seed=s, max_train_steps=1)))] for s in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_the_length_counts_the_batches_that_are_left():
    sampler = ResumableBatchSampler(10, 4, gradient_accumulation_steps=3, start_step=2, max_train_steps=7)
    assert len(sampler) == len(list(sampler)) == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
        ({"num_processes": 2, "process_index": 2}, "`process_index` must lie in 0..1, got 2"),
        ({"start_step": 6}, "`start_step` must lie in 0..5 .*, got 6"),
    ],
)
def test_a_sampler_with_numbers_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResumableBatchSampler(**({"num_rows": 10, "batch_size": 2, "max_train_steps": 5} | arguments))


# What is drawn for a row


def test_each_caption_is_equally_likely_and_drawn_anew_each_epoch():
    drawn = [choose_caption(0, epoch, index, 3) for epoch in range(60) for index in range(50)]
    for count in Counter(drawn).values():
        assert abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5
    assert sorted(Counter(drawn)) == [0, 1, 2]
    by_epoch = [drawn[50 * epoch : 50 * (epoch + 1)] for epoch in range(60)]
    assert len(set(map(tuple, by_epoch))) == 60
    assert by_epoch[0] != [choose_caption(1, 0, index, 3) for index in range(50)]


def test_the_caption_drawn_is_the_caption_read(tokenizer, pairs):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16, seed=3))
    for epoch, index in itertools.product(range(5), (0, 1, 2)):
        caption = pairs[index]["caption"][choose_caption(3, epoch, index, 3)]
        assert dataset[epoch, index]["input_ids"].tolist() == encode_captions(tokenizer, [caption])[0].tolist()


def test_half_of_the_pictures_are_mirrored_anew_each_epoch(tokenizer):
    pairs = as_pairs([encoded(draw_pixels(i)) for i in range(20)])
    plain, flipping = (PairDataset(pairs, PairReader(tokenizer, 16, random_flip=flip)) for flip in (False, True))
    flips = []
    for epoch, index in itertools.product(range(20), range(20)):
        expected, found = plain[epoch, index]["pixel_values"], flipping[epoch, index]["pixel_values"]
        assert torch.equal(found, expected) or torch.equal(found, expected.flip(-1))
        flips.append(not torch.equal(found, expected))
    assert abs(sum(flips) - 200) < 4 * 10
    assert flips[:20] != flips[20:40]


def test_pictures_are_moved_anew_each_epoch_by_up_to_a_part_of_their_side(tokenizer):
    pairs = as_pairs([encoded(draw_pixels(0))])
    plain, moving = (PairDataset(pairs, PairReader(tokenizer, 16, random_shift=shift)) for shift in (0.0, 0.13))
    padded = F.pad(plain[0, 0]["pixel_values"], (2, 2, 2, 2), mode="replicate")  # 0.13 * 16 pixels are 2
    windows = [padded[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    drawn = Counter(
        next(place for place, window in enumerate(windows) if torch.equal(window, moving[epoch, 0]["pixel_values"]))
        for epoch in range(500)
    )
    assert len(drawn) == 25 and max(drawn.values()) < 45  # 20 each, give or take 4.4


# What is missing and what is broken


def test_pixels_lie_between_minus_one_and_one(tokenizer):
    pixels = draw_pixels(0)
    pixels[0, 0], pixels[0, 1] = 0, 255
    found = PairDataset(as_pairs([encoded(pixels)]), PairReader(tokenizer, 16))[0, 0]["pixel_values"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.permute(1, 2, 0), pixels.astype(np.float64) / 127.5 - 1, atol=1e-6)
    assert (found[:, 0, 0] == -1).all() and (found[:, 0, 1] == 1).all()


def test_the_next_good_pair_takes_the_place_of_a_broken_one(tokenizer, pairs):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16))
    for index, stand_in, name in (
        (4, 6, "row 4 (four.png)"),
        (5, 6, "row 5 (five.png)"),
        (11, 0, "/nowhere/eleven.png"),
    ):
        item = dataset[0, index]
        assert item["index"] == stand_in and item["is_stand_in"]
        assert torch.equal(item["pixel_values"], dataset[0, stand_in]["pixel_values"])
        assert [bad.key for bad in item["bad_records"]] == [name]
    assert dataset[0, 6]["bad_records"] == [] and not dataset[0, 6]["is_stand_in"]


def test_what_was_left_out_is_told_in_the_batch(tokenizer, pairs):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16))
    batch = collate_pairs([dataset[0, index] for index in (0, 4, 11, 5)])
    assert [(bad.key, bad.kind) for bad in batch["bad_records"]] == [
        ("row 4 (four.png)", "picture_unreadable"),
        ("/nowhere/eleven.png", "picture_missing"),
        ("row 5 (five.png)", "picture_truncated"),
    ]
    assert batch["index"].tolist() == [0, 6, 0, 6]


def test_a_set_in_which_nothing_can_be_read_is_refused(tokenizer):
    dataset = PairDataset(
        as_pairs([{"bytes": b"garbage", "path": f"{i}.png"} for i in range(3)]), PairReader(tokenizer, 16)
    )
    with pytest.raises(
        ValueError, match="None of the 3 pairs can be read; the first one: .*1.png.*picture_unreadable.*Unidentified"
    ):
        dataset[0, 1]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_no_damage_to_a_file_stops_a_run(tokenizer, file_format):
    rng = np.random.default_rng(0)
    whole = encoded(draw_pixels(0), file_format)
    damaged = []
    for _ in range(30):
        data = bytearray(whole["bytes"])
        data[rng.integers(len(data))] = rng.integers(256)
        damaged += [{"bytes": bytes(data[: rng.integers(1, len(data) + 1)]), "path": None}]
    dataset = PairDataset(as_pairs([*damaged, whole]), PairReader(tokenizer, 16))
    items = dataset.__getitems__([(0, index) for index in range(len(dataset))])
    assert all(torch.isfinite(item["pixel_values"]).all() for item in items)
    assert any(item["bad_records"] for item in items)


def test_a_missing_caption_is_eos_and_padding(tokenizer):
    item = PairDataset(as_pairs([encoded(draw_pixels(0))], [[]]), PairReader(tokenizer, 16))[0, 0]
    assert (item["has_image"], item["has_text"]) == (True, False)
    assert item["input_ids"].tolist() == [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 7


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}])
def test_a_missing_picture_is_blank(tokenizer, missing):
    bytes_and_path = {"bytes": Value("binary"), "path": Value("string")}
    columns = {"image": [missing, encoded(draw_pixels(0))], "caption": [["one"], ["two"]]}
    pairs = Dataset.from_dict(columns, Features({"image": bytes_and_path, "caption": List(Value("string"))}))
    dataset = PairDataset(pairs.cast_column("image", Image(decode=False)), PairReader(tokenizer, 16))
    item = dataset[0, 0]
    assert (item["has_image"], item["has_text"], item["bad_records"]) == (False, True, [])
    assert torch.equal(item["pixel_values"], torch.zeros(3, 16, 16))
    batch = collate_pairs(dataset.__getitems__([(0, 0), (0, 1)]))
    assert batch["has_image"].tolist() == [False, True]


def test_a_pair_of_nothing_is_skipped(tokenizer):
    item = PairDataset(as_pairs([None, encoded(draw_pixels(0))], [[], []]), PairReader(tokenizer, 16))[0, 0]
    assert item["index"] == 1
    assert item["bad_records"] == [("row 0", "record_empty", "no picture; no caption")]


def test_a_caption_beyond_the_context_is_truncated_and_told(tokenizer):
    dataset = PairDataset(
        as_pairs([encoded(draw_pixels(0))] * 2, [["caption " * 20], ["caption"]]), PairReader(tokenizer, 16)
    )
    batch = collate_pairs([dataset[0, 0], dataset[0, 1]])
    assert batch["truncated"].tolist() == [True, False]
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("num_pairs", "resolution", "shift", "message"),
    [
        (0, 16, 0.0, "`pairs` is empty"),
        (1, 0, 0.0, "`resolution` .* got 0"),
        (1, 16, 1.0, "`random_shift` .* got 1.0"),
        (1, 16, -0.1, "`random_shift` .* got -0.1"),
        (1, 16, 0.01, "`random_shift` 0.01 of 16 pixels is less than one"),
    ],
)
def test_a_dataset_that_makes_no_sense_is_refused(tokenizer, num_pairs, resolution, shift, message):
    with pytest.raises(ValueError, match=message):
        PairDataset(
            as_pairs([encoded(draw_pixels(0))] * num_pairs), PairReader(tokenizer, resolution, random_shift=shift)
        )


# Batches


def assert_equal_batches(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]


def test_a_batch_holds_what_the_borders_say(tokenizer, pairs):
    batch = collate_pairs(PairDataset(pairs, PairReader(tokenizer, 16)).__getitems__([(0, 3, 8), (1, 0, 9)]))
    expected = {
        "pixel_values": (torch.float32, (2, 3, 16, 16)),
        "input_ids": (torch.int64, (2, 8)),
        "has_image": (torch.bool, (2,)),
        "has_text": (torch.bool, (2,)),
        "truncated": (torch.bool, (2,)),
        "is_stand_in": (torch.bool, (2,)),
        "row": (torch.int64, (2,)),
        "index": (torch.int64, (2,)),
    }
    assert {name: (batch[name].dtype, tuple(batch[name].shape)) for name in expected} == expected
    assert batch["row"].tolist() == [8, 9]


def test_an_item_does_not_depend_on_what_else_is_in_its_batch(tokenizer, pairs):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16, random_flip=True, random_shift=0.2))
    keys = [(2, index, row) for row, index in enumerate((0, 4, 7, 11, 2))]
    together = collate_pairs(dataset.__getitems__(keys))
    assert_equal_batches(together, collate_pairs([dataset[key] for key in keys]))


def test_a_pair_is_the_same_when_it_is_read_again(tokenizer, pairs):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16, random_flip=True, random_shift=0.2))
    keys = [(0, 4), (0, 0), (0, 0), (0, 6), (0, 4)]
    first, second = (collate_pairs(dataset.__getitems__(keys)) for _ in range(2))
    assert_equal_batches(first, second)
    assert_equal_batches(
        first,
        collate_pairs(
            PairDataset(pairs, PairReader(tokenizer, 16, random_flip=True, random_shift=0.2)).__getitems__(keys)
        ),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_gives_the_same_batches(tokenizer, pairs, num_workers):
    def batches(start_step: int, num_workers: int) -> list[dict]:
        sampler = ResumableBatchSampler(len(pairs), 5, start_step=start_step, max_train_steps=6)
        dataset = PairDataset(pairs, PairReader(tokenizer, 16, random_flip=True, random_shift=0.2))
        return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_pairs, num_workers=num_workers))

    whole, resumed = batches(0, num_workers=0), batches(4, num_workers)
    for first, second in zip(whole[4:], resumed, strict=True):
        assert_equal_batches(first, second)


# Codes that were encoded once


def write_codes(folder, text_codes: list[np.ndarray], format_version: int = 1):
    rows = {
        "image_codes": [np.full((2, 3), i).tolist() for i in range(len(text_codes))],
        "text_codes": [codes.tolist() for codes in text_codes],
        "has_image": [i != 1 for i in range(len(text_codes))],
        "has_text": [i != 2 for i in range(len(text_codes))],
    }
    Dataset.from_dict(rows).save_to_disk(folder)
    (folder / "codes.json").write_text(json.dumps({"format_version": format_version, "resolution": 16}))


def test_codes_come_back_as_they_were_written(tmp_path):
    text_codes = [100 * i + np.arange(8 * (i + 1)).reshape(i + 1, 4, 2) for i in range(4)]
    write_codes(tmp_path, text_codes)
    dataset = CodesDataset(tmp_path, seed=5)
    assert len(dataset) == 4
    assert dataset.metadata["resolution"] == 16
    for epoch in range(5):
        batch = collate_codes([dataset[epoch, index, 10 + index] for index in range(4)])
        assert batch["image_codes"].dtype == batch["text_codes"].dtype == torch.int64
        assert batch["image_codes"].tolist() == np.repeat(np.arange(4), 6).reshape(4, 2, 3).tolist()
        for i, codes in enumerate(text_codes):
            assert batch["text_codes"][i].tolist() == codes[choose_caption(5, epoch, i, i + 1)].tolist()
        assert batch["has_image"].tolist() == [True, False, True, True]
        assert batch["has_text"].tolist() == [True, True, False, True]
        assert (batch["row"].tolist(), batch["index"].tolist()) == ([10, 11, 12, 13], [0, 1, 2, 3])


def test_codes_are_read_with_the_caption_that_the_pairs_would_have_had(tokenizer, pairs, tmp_path):
    dataset = PairDataset(pairs, PairReader(tokenizer, 16, seed=9))
    read = [pairs[dataset[0, index]["index"]]["caption"] for index in range(len(pairs))]  # broken rows have a stand-in
    write_codes(tmp_path, [encode_captions(tokenizer, captions).numpy()[..., None] for captions in read])
    codes = CodesDataset(tmp_path, seed=9)
    for epoch, index in itertools.product(range(4), range(len(pairs))):
        assert torch.equal(codes[epoch, index]["text_codes"][:, 0], dataset[epoch, index]["input_ids"])


def test_codes_of_another_format_or_none_at_all_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="codes.json is missing. Write them with encode_codes.py"):
        CodesDataset(tmp_path)
    write_codes(tmp_path, [np.zeros((1, 4, 2))], format_version=0)
    with pytest.raises(ValueError, match="`format_version` 0, expected 1"):
        CodesDataset(tmp_path)

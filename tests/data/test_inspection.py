# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What an inspection counts is what is there, streamed or not."""

import json

import pytest
from pair_files import draw_pixels, encode, write_tars

from hf_vqdit.data import PairReader, format_inspection, inspect_pairs, load_pairs, train_caption_tokenizer

WORDS = ["a dog", "a dog", "a cat on a mat", None, "one two three four five six seven eight"]
TOKENIZER = train_caption_tokenizer([word for word in WORDS if word], vocab_size=300, model_max_length=6)


@pytest.fixture
def pairs(tmp_path):
    pictures = [encode(draw_pixels(i, 20 + i, 30), "PNG" if i else "JPEG") for i in range(4)]
    pictures += [encode(draw_pixels(3, 23, 30)), b"bad", None]  # the first of these is the fourth one again
    captions = [*WORDS, "of a bad picture", "alone"]
    captions = [None if caption is None else caption.encode() for caption in captions]
    return write_tars(tmp_path / "tars", list(zip(pictures, captions, strict=True)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_inspection_counts_what_is_there(streaming, num_workers, pairs, tmp_path):
    settings = {"num_held_out_samples": 7, "validation_split": "train+train", "cache_dir": str(tmp_path / "cache")}
    splits = load_pairs(streaming=streaming, **settings, **pairs)
    inspection = inspect_pairs(splits["train"], PairReader(TOKENIZER, 22), num_workers=num_workers)
    report = json.loads(json.dumps(inspection.report()))
    records = report["records"]
    assert (records["read"], records["bad"], records["without_image"], records["without_text"]) == (7, 1, 1, 1)
    (key,) = records["bad_by_kind"]["picture_unreadable"]["examples"]
    assert key.endswith("00001.tar/sample5")
    (equal,) = report["pictures"].pop("examples_of_equal_ones")
    assert [key.rpartition("/")[2] for key in equal] == ["sample3", "sample4"]
    assert report["pictures"] == {
        "number": 5,
        "width": {"least": 30, "median": 30, "greatest": 30},
        "height": {"least": 20, "median": 22, "greatest": 23},
        "smaller_than_resolution": 2 / 5,
        "cut_off": pytest.approx({"least": 1 - 23 / 30, "median": 1 - 22 / 30, "greatest": 1 - 20 / 30}),
        "modes": {"RGB": 5},
        "equal_to_an_earlier_one": 1,
    }
    captions = report["captions"]
    assert (captions["number"], captions["equal_to_an_earlier_one"]) == (5, 1)
    assert captions["to_a_picture"] == {"least": 0, "median": 1, "greatest": 1}
    assert captions["characters"] == {"least": 5, "median": 5, "greatest": 39}
    assert captions["words"] == {"least": 1, "median": 2, "greatest": 8}
    lengths = [len(TOKENIZER(word).input_ids) + 1 for word in [*filter(None, WORDS), "alone"]]
    assert captions["tokens"]["greatest"] == max(lengths)
    assert captions["truncated"] == sum(length > 6 for length in lengths) / 5 > 0

    text = format_inspection({"train": inspection})
    assert "## train" in text and "7 records read, 1 of them bad" in text and "sample5" in text
    assert "26.7% of the median picture, 33.3% of the longest" in text
    assert "40.0% smaller than 22 pixels" in text and "sample3, " in text


def test_an_inspection_of_the_first_records_ends_there(pairs, tmp_path):
    for streaming in (False, True):
        settings = {"num_held_out_samples": 1, "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
        train = load_pairs(**settings, **pairs)["train"]
        assert inspect_pairs(train, PairReader(TOKENIZER, 8), max_inspected=3).report()["records"]["read"] == 3
        assert inspect_pairs(train, PairReader(TOKENIZER, 8), max_inspected=99).report()["records"]["read"] == 6


def test_a_split_without_pictures_or_captions_has_no_figures_of_them(tmp_path):
    for missing in (0, 1):
        picture_and_caption = [encode(draw_pixels(0)), b"words"]
        picture_and_caption[missing] = None
        rows = [tuple(picture_and_caption)] * 3 + [(encode(draw_pixels(1)), b"held out")]
        source = write_tars(tmp_path / str(missing), rows[::-1], num_files=1)
        train = load_pairs(streaming=True, num_held_out_samples=1, **source)["train"]
        inspection = inspect_pairs(train, PairReader(TOKENIZER, 8))
        report, text = inspection.report(), format_inspection({"train": inspection})
        assert report[("pictures", "captions")[missing]]["number"] == 0
        assert ("pictures" in text, "captions" in text) == (bool(missing), not missing)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""In every form, streamed or not, each record is used rightly, or left out and counted by its kind with its key."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from pair_files import FORMS, draw_pixels, encode, png_that_promises, write_parquet
from PIL import Image
from torch.utils.data import DataLoader

from hf_vqdit.data import (
    PairDataset,
    PairReader,
    RecordCounts,
    ResumableBatchSampler,
    collate_pairs,
    inspect_pairs,
    load_pairs,
    open_pairs,
    train_caption_tokenizer,
)

TOKENIZER = train_caption_tokenizer(["a caption"], vocab_size=300, model_max_length=8)
RED, SIDE = (255, 0, 0), 16


def turned() -> bytes:
    """Red above blue, as a camera that was held sideways writes it."""
    picture = Image.new("RGB", (SIDE, SIDE), RED)
    picture.paste((0, 0, 255), (0, SIDE // 2, SIDE, SIDE))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6  # shown after a quarter turn to the right
    return encode(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)


def animated() -> bytes:
    frames = [Image.new("RGB", (SIDE, SIDE), color) for color in (RED, (0, 0, 255))]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


# picture -> the mean of its upper half as training sees it
GOOD = {
    encode(Image.new("RGB", (SIDE, SIDE), RED)): RED,
    encode(Image.new("RGB", (SIDE, SIDE), RED).convert("P", palette=Image.Palette.ADAPTIVE)): RED,
    encode(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG", quality=100): RED,
    encode(np.full((SIDE, SIDE), 0x8080, dtype=np.uint16)): (128, 128, 128),
    animated(): RED,
    turned(): RED,
    encode(Image.new("RGBA", (SIDE, SIDE), (0, 0, 255, 0))): (255, 255, 255),
}
BAD = {
    "picture_unreadable": [b"garbage", png_that_promises(0, 4)],
    "picture_empty": [b""],
    "picture_truncated": [encode(draw_pixels(0, 64, 64))[:5000], encode(draw_pixels(0, 64, 64), "JPEG")[:1000]],
    "picture_enormous": [png_that_promises(10_000, 10_000), png_that_promises(30_000, 30_000)],
    "picture_unsupported": [encode(np.zeros((4, 4), dtype=np.float32), "TIFF")],
}


def read(source: dict, streaming: bool, num_held_out: int = 1, **settings) -> tuple[list[dict], RecordCounts]:
    """All pairs that are left, in the order of the source, and the counts. The first pair is held out."""
    splits = load_pairs(streaming=streaming, num_held_out_samples=num_held_out, **source, **settings)
    counts, items = RecordCounts(max_bad_fraction=1.0), []
    if streaming:
        items = list(open_pairs(splits["train"], PairReader(TOKENIZER, SIDE)).first_items(1000))
    else:
        for split in splits.values():
            dataset = PairDataset(split, PairReader(TOKENIZER, SIDE))
            items += [dataset[0, i, i] for i in range(len(dataset))]
    for item in items:
        counts.add(collate_pairs([item]))
    return [item for item in items if not item["is_stand_in"]], counts


@pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])
@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_used_rightly_or_left_out_by_its_kind(form, streaming, tmp_path):
    pictures = [(kind, picture) for kind, group in BAD.items() for picture in group]
    held_out, last = encode(draw_pixels(0)), encode(draw_pixels(1))
    rows = [held_out, *GOOD, *(picture for _, picture in pictures), last]
    source = FORMS[form](tmp_path / "pairs", [(picture, b"a caption") for picture in rows])
    items, counts = read(source, streaming, cache_dir=str(tmp_path / "cache"))

    expected = Counter(kind for kind, _ in pictures)
    report = counts.report()
    assert {kind: each["count"] for kind, each in report["bad_by_kind"].items()} == expected
    assert report["bad"] == len(pictures) and report["read"] == len(rows) - streaming
    for kind, each in report["bad_by_kind"].items():  # each is called by its file, its sample or its row
        numbers = [1 + len(GOOD) + i for i, (other, _) in enumerate(pictures) if other == kind]
        assert len(each["examples"]) == len(numbers)
        for key, number in zip(sorted(each["examples"]), numbers, strict=True):
            assert key.endswith((f"/{number}.png", f"/sample{number}", f"train row {number}"))

    halves = [item["pixel_values"][:, : SIDE // 2].mean(dim=(1, 2)) for item in items]
    found = Counter(tuple(half.add(1).mul(127.5).div(16).round().int().tolist()) for half in halves)
    wanted = Counter(tuple(round(value / 16) for value in color) for color in GOOD.values())
    assert wanted <= found and len(items) == len(GOOD) + 2 - streaming


@pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])
@pytest.mark.parametrize("form", ["folder with csv", "folder with jsonl", "folder with parquet"])
def test_a_picture_whose_file_is_not_there_is_left_out(form, streaming, tmp_path):
    source = FORMS[form](tmp_path / "pairs", [(encode(draw_pixels(i)), b"a caption") for i in range(5)])
    (tmp_path / "pairs" / "3.png").unlink()
    items, counts = read(source, streaming, cache_dir=str(tmp_path / "cache"))
    assert [*counts.report()["bad_by_kind"]["picture_missing"]["examples"]] == [str(tmp_path / "pairs" / "3.png")]
    assert len(items) == 4 - streaming


@pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])
@pytest.mark.parametrize("form", FORMS)
def test_a_record_with_one_side_trains_it_and_one_with_none_is_left_out(form, streaming, tmp_path):
    picture, words = encode(draw_pixels(0)), b"a caption"
    pairs = [
        (picture, words),
        (picture, None),
        (None, words),
        (picture, b"caf\xe9"),
        (None, b"\xff"),
        (picture, words),
    ]
    source = FORMS[form](tmp_path / "pairs", pairs)
    items, counts = read(source, streaming, cache_dir=str(tmp_path / "cache"))
    sides = Counter((item["has_image"], item["has_text"]) for item in items)
    assert sides == {(True, True): 2 - streaming, (True, False): 2, (False, True): 1}
    report = counts.report()
    assert {kind: each["count"] for kind, each in report["bad_by_kind"].items()} == {
        "caption_not_utf8": 1,
        "record_empty": 1,
    }
    assert (report["without_image"], report["without_text"], report["bad"]) == (1, 2, 2)


def test_a_batch_of_a_stream_is_whole_however_many_of_its_records_are_bad(tmp_path):
    pictures = [encode(draw_pixels(i)) if i % 5 == 0 else b"bad" for i in range(40)]
    source = FORMS["tars"](tmp_path / "pairs", [(picture, b"a caption") for picture in pictures])
    splits = load_pairs(streaming=True, num_held_out_samples=1, cache_dir=str(tmp_path / "cache"), **source)
    counts = RecordCounts(max_bad_fraction=1.0)
    for batch in islice(open_pairs(splits["train"], PairReader(TOKENIZER, SIDE), shuffle_buffer_size=3).batches(7), 4):
        assert len(batch["row"]) == 7 and batch["has_image"].all()
        counts.add(batch)
    assert counts.report()["bad"] / counts.report()["read"] == pytest.approx(0.8, abs=0.05)


# Their number


def neighbouring_bad_pairs() -> list[tuple[bytes | None, bytes | None]]:
    """Two hundred pairs, of which sixteen pictures in a row and three captions are bad, and some sides missing."""
    pairs = [(encode(draw_pixels(i, 8, 8)), b"a caption") for i in range(200)]
    pairs[60:76] = [(b"", b"a caption")] * 16
    for number in (76, 77, 150):  # the first of these stands in for all the pictures before it
        pairs[number] = (pairs[number][0], b"\xff")
    pairs[78], pairs[79], pairs[199] = (None, b"alone"), (pairs[79][0], None), (pairs[199][0], b"caption " * 20)
    return pairs


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """These pairs as a data set, and what an inspection counts in them."""
    root = tmp_path_factory.mktemp("neighbours")
    source = FORMS["parquet"](root / "pairs", neighbouring_bad_pairs())
    pairs = load_pairs(validation_split="train[:1]", cache_dir=str(root / "cache"), **source)["train"]
    return pairs, inspect_pairs(pairs, PairReader(TOKENIZER, SIDE)).records.report()


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (1, 2), (2, 0)])
def test_an_epoch_counts_the_records_that_an_inspection_counts(neighbours, num_processes, num_workers):
    pairs, expected = neighbours
    together = RecordCounts()
    for process in range(num_processes):
        counts = RecordCounts()
        for first_step in (0, 4):  # interrupted, and gone on with from the state of a checkpoint
            state_dict, counts = counts.state_dict(), RecordCounts(max_bad_fraction=0.25)
            counts.load_state_dict(state_dict)
            sampler = ResumableBatchSampler(
                len(pairs), 20 // num_processes, num_processes, process, start_step=first_step, max_train_steps=10
            )
            loader = DataLoader(
                PairDataset(pairs, PairReader(TOKENIZER, SIDE)),
                batch_sampler=sampler,
                collate_fn=collate_pairs,
                num_workers=num_workers,
            )
            for batch in islice(loader, 4 if first_step == 0 else None):
                counts.add(batch)
        together.load_state_dict(counts.state_dict())
    found = together.report()
    assert {name: value for name, value in found.items() if name != "bad_by_kind"} == {
        name: value for name, value in expected.items() if name != "bad_by_kind"
    }
    assert (found["read"], found["bad"]) == (200, 19)
    kinds = {kind: each["count"] for kind, each in found["bad_by_kind"].items()}
    assert kinds == {kind: each["count"] for kind, each in expected["bad_by_kind"].items()}
    assert sum(kinds.values()) == found["bad"]


def test_one_batch_among_bad_neighbours_ends_no_run(neighbours):
    pairs, _ = neighbours
    dataset, counts = PairDataset(pairs, PairReader(TOKENIZER, SIDE)), RecordCounts(max_bad_fraction=0.2)
    counts.add(collate_pairs(dataset.__getitems__([(0, index) for index in range(0, 200, 2)])))
    assert counts.totals["read"] == 100 and counts.totals["bad"] == 10


@pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])
def test_bad_records_of_one_name_are_each_counted_and_found(streaming, tmp_path):
    pairs = [(encode(draw_pixels(i)) if i % 2 == 0 else b"bad", b"a caption") for i in range(21)]
    source = write_parquet(tmp_path / "pairs", pairs, path="image.png")
    _, counts = read(source, streaming, cache_dir=str(tmp_path / "cache"))
    report = counts.report()
    assert (report["read"], report["bad"]) == (21 - streaming, 10)
    keys = {f"train row {number} (image.png)" for number in range(1, 20, 2)}
    assert set(report["bad_by_kind"]["picture_unreadable"]["examples"]) == keys

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A stream gives every pair once a pass, in an order of its own, and goes on bit for bit from a state."""

from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from pair_files import FORMS, draw_pixels, encode, write_parquet

from hf_vqdit.data import PairDataset, PairReader, PairStream, load_pairs, open_pairs, train_caption_tokenizer

NUM_PAIRS, NUM_HELD_OUT = 26, 4
BAD = {5, 11, 12, 20}
TOKENIZER = train_caption_tokenizer([f"number {i}" for i in range(100)], vocab_size=300, model_max_length=12)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """The same pairs in every form; some of their pictures cannot be read."""
    root = tmp_path_factory.mktemp("sources")
    pairs = [(encode(draw_pixels(i, 8, 8)), f"number {i}".encode()) for i in range(NUM_PAIRS)]
    pairs = [(b"bad" if i in BAD else picture, caption) for i, (picture, caption) in enumerate(pairs)]
    for form, write in FORMS.items():
        write(root / form, pairs)
    return {form: root / form for form in FORMS}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Twelve pairs in six shards, and a validation split."""
    root = tmp_path_factory.mktemp("shards")
    pairs = [(encode(draw_pixels(i, 8, 8)), f"number {i}".encode()) for i in range(12)]
    write_parquet(root / "pairs", pairs, num_files=6)
    write_parquet(root / "other", pairs[:2], num_files=1)
    next((root / "other").iterdir()).rename(root / "pairs" / "validation-00000-of-00001.parquet")
    return root / "pairs"


@cache
def open_stream(source: Path, shuffle_buffer_size: int = 7, seed: int = 3, **settings) -> PairStream:
    settings = {"num_held_out_samples": NUM_HELD_OUT, "cache_dir": str(source.parent / "cache"), **settings}
    train = load_pairs(train_data_dir=str(source), streaming=True, **settings)["train"]
    return open_pairs(train, augmenting_reader(seed), shuffle_buffer_size)


def augmenting_reader(seed: int) -> PairReader:
    return PairReader(TOKENIZER, 8, random_flip=True, random_shift=0.3, seed=seed)


def numbers(batches) -> list[int]:
    """Which pairs are in batches, by their captions."""
    rows = [row[row > 2] for batch in batches for row in batch["input_ids"]]
    return [int(TOKENIZER.decode(row).split()[1]) for row in rows]


def assert_equal_batches(found: list[dict], expected: list[dict]) -> None:
    for first, second in zip(found, expected, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]


# Resume


@pytest.mark.parametrize(("form", "num_workers"), [*((form, 0) for form in FORMS), ("parquet", 2), ("tars", 1)])
def test_a_stream_goes_on_from_a_state_bit_for_bit(form, num_workers, sources, tmp_path):
    """At any batch: the first, one in the middle, one where the buffer runs dry, one of a later pass; and twice."""
    stream = open_stream(sources[form])
    whole = list(islice(stream.batches(4), 14))  # a pass has 18 good pairs
    for start, further in ((0, 1), (3, 1), (4, 2), (9, 3)) if num_workers == 0 else ((3, 2),):
        state = None
        for begin, end in ((0, start), (start, start + further), (start + further, 14)):
            batches = stream.batches(4, num_workers=num_workers)
            if state is not None:
                torch.save(state, tmp_path / "state.pt")
                batches.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert_equal_batches(list(islice(batches, end - begin)), whole[begin:end])
            state = batches.state_dict()


@pytest.mark.parametrize("process_index", [0, 1, 2])
def test_each_of_several_processes_goes_on_where_it_was(process_index, sources, shards):
    for stream in (open_stream(sources["parquet"]), open_stream(shards)):
        whole = list(islice(stream.batches(2, 3, process_index), 12))
        for start in (1, 5, 8):
            batches, resumed = (stream.batches(2, 3, process_index) for _ in range(2))
            assert_equal_batches(list(islice(batches, start)), whole[:start])
            resumed.load_state_dict(batches.state_dict())
            assert_equal_batches(list(islice(resumed, 12 - start)), whole[start:])


def test_a_state_may_be_gone_on_with_by_other_numbers_of_workers(sources):
    stream = open_stream(sources["tars"])
    whole = list(islice(stream.batches(4), 8))
    for num_workers, others in ((0, 2), (2, 0)):
        batches, resumed = stream.batches(4, num_workers=num_workers), stream.batches(4, num_workers=others)
        assert_equal_batches(list(islice(batches, 3)), whole[:3])
        resumed.load_state_dict(batches.state_dict())
        assert_equal_batches(list(islice(resumed, 5)), whole[3:])


def test_a_state_of_another_number_of_processes_is_refused(sources):
    state = open_stream(sources["parquet"]).batches(4, num_processes=2).state_dict()
    with pytest.raises(ValueError, match="read by 2 processes and cannot be gone on with by 1.*Resume with as many"):
        open_stream(sources["parquet"]).batches(4).load_state_dict(state)


# The order


GOOD = sorted(set(range(NUM_HELD_OUT, NUM_PAIRS)) - BAD)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shuffle_buffer_size", [1, 7, 1000])
def test_a_pass_reads_every_pair_once(form, shuffle_buffer_size, sources):
    batches = open_stream(sources[form], shuffle_buffer_size).batches(1)
    passes = [numbers(islice(batches, len(GOOD))) for batches in [iter(batches)] for _ in range(3)]
    assert [sorted(each) for each in passes] == [GOOD] * 3
    assert (passes[0] == passes[1] == GOOD) == (shuffle_buffer_size == 1)


def test_the_order_is_that_of_the_seed_and_new_in_each_pass(sources):
    def read(seed: int) -> list[int]:
        return numbers(islice(open_stream(sources["parquet"], 1000, seed).batches(1), 2 * len(GOOD)))

    assert read(3) == read(3) != read(4)
    assert read(3)[: len(GOOD)] != read(3)[len(GOOD) :]


def test_shards_come_in_a_new_order_each_pass_unless_the_first_pairs_are_held_out(shards, sources):
    passes = numbers(islice(open_stream(shards, 1).batches(1), 36))
    firsts = [passes[i : i + 12 : 2] for i in (0, 12, 24)]
    assert all(sorted(each) == [0, 2, 4, 6, 8, 10] for each in firsts)
    assert len(set(map(tuple, firsts))) == 3
    assert numbers(islice(open_stream(sources["tars"], 1).batches(1), 2 * len(GOOD))) == 2 * GOOD


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_pairs_and_none_reads_what_is_held_out(form, num_processes, sources):
    counts = Counter()
    for process_index in range(num_processes):
        batches = open_stream(sources[form], 1).batches(1, num_processes, process_index)
        share = (NUM_PAIRS - NUM_HELD_OUT - process_index + num_processes - 1) // num_processes
        is_bad = [i in BAD for i in range(NUM_HELD_OUT + process_index, NUM_PAIRS, num_processes)]
        assert len(is_bad) == share
        counts.update(numbers(islice(batches, share - sum(is_bad))))
    assert counts == Counter(GOOD)


def test_processes_have_shards_of_their_own_where_these_can_be_divided(shards):
    shares = [numbers(islice(open_stream(shards, 1).batches(1, 2, i), 6)) for i in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(12))
    assert all(share[1::2] == [number + 1 for number in share[::2]] for share in shares)  # a shard has two pairs


def test_rows_are_those_of_the_global_batch(sources):
    rows = [
        [batch["row"].tolist() for batch in islice(open_stream(sources["parquet"]).batches(2, 2, process, 3), 4)]
        for process in range(2)
    ]
    assert rows == [[[0, 1], [4, 5], [8, 9], [0, 1]], [[2, 3], [6, 7], [10, 11], [2, 3]]]


def test_accumulation_reads_the_same_pairs(sources):
    whole = list(islice(open_stream(sources["parquet"]).batches(4), 3))
    parts = list(islice(open_stream(sources["parquet"]).batches(1, gradient_accumulation_steps=4), 12))
    for number, batch in enumerate(whole):
        for name in ("pixel_values", "input_ids", "row", "index"):
            assert torch.equal(torch.cat([part[name] for part in parts[4 * number : 4 * number + 4]]), batch[name])


# Bad records


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_next_good_pair_takes_the_place_of_a_bad_one_and_each_is_told_once_a_pass(
    batch_size, num_workers, sources
):
    batches = open_stream(sources["tars"], 1).batches(batch_size, num_workers=num_workers)
    num_batches = 3 * len(GOOD) // batch_size
    read = list(islice(batches, num_batches))
    assert all(len(batch["row"]) == batch_size for batch in read)
    assert numbers(read)[: len(GOOD)] == GOOD
    told = [(int(bad.key.rpartition("sample")[2]), bad.kind) for batch in read for bad in batch["bad_records"]]
    assert told[: 3 * len(BAD)] == [(number, "picture_unreadable") for number in sorted(BAD)] * 3


def test_captions_that_were_left_out_are_told_with_the_pair(tmp_path):
    pairs = [(encode(draw_pixels(i, 8, 8)), caption) for i, caption in enumerate((b"number 0", b"\xff", b"number 2"))]
    write_parquet(tmp_path / "pairs", pairs, num_files=1)
    first, second = islice(open_stream(tmp_path / "pairs", 1, num_held_out_samples=1).batches(1), 2)
    assert [(bad.key, bad.kind) for bad in first["bad_records"]] == [("train row 1", "caption_not_utf8")]
    assert (first["has_text"].tolist(), second["has_text"].tolist()) == ([False], [True])


def test_a_stream_in_which_nothing_can_be_read_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vqdit.data.streaming._MAX_SKIPPED_IN_A_ROW", 20)
    write_parquet(tmp_path / "pairs", [(b"bad", b"number 1")] * 10)
    with pytest.raises(ValueError, match="20 records in a row cannot be read; the last one: .*picture_unreadable"):
        next(iter(open_stream(tmp_path / "pairs").batches(2)))


# What is held out, and the first pairs


@pytest.mark.parametrize("form", FORMS)
def test_the_first_pairs_are_held_out_and_training_has_the_rest(form, sources, tmp_path):
    settings = {"num_held_out_samples": 3, "max_train_samples": 5, "cache_dir": str(tmp_path)}
    splits = load_pairs(train_data_dir=str(sources[form]), streaming=True, **settings)
    assert [row["caption"] for row in splits["validation"]] == [["number 0"], ["number 1"], ["number 2"]]
    assert [row["caption"][0] for row in splits["train"]] == [f"number {i}" for i in range(3, 8)]
    PairDataset(splits["validation"], PairReader(TOKENIZER, 8))[0, 0]  # what is held out is in memory


def test_the_first_items_are_the_first_good_pairs_as_a_data_set_gives_them(sources):
    stream = open_stream(sources["parquet"])
    items = list(stream.first_items(9))
    dataset = PairDataset(Dataset.from_list(list(stream.pairs)), augmenting_reader(seed=3))
    expected = [dataset[0, number - NUM_HELD_OUT, row] for row, number in enumerate(GOOD[:9])]
    assert_equal_batches([item | {"bad_records": []} for item in items], expected)
    assert [len(item["bad_records"]) for item in items] == [0, 1, 0, 0, 0, 0, 2, 0, 0]
    assert len(list(stream.first_items(1000))) == len(GOOD)


def test_a_look_at_the_first_items_moves_no_reading_that_is_under_way(sources):
    for stream in map(open_stream, sources.values()):
        whole = list(islice(stream.batches(4), 6))
        read = iter(stream.batches(4))
        before = list(islice(read, 2))
        assert len(list(stream.first_items(9))) == 9
        assert_equal_batches(before + list(islice(read, 4)), whole)


# Mistakes


def test_settings_that_leave_nothing_to_train_on_are_refused(sources):
    with pytest.raises(ValueError, match="The stream has 26 pairs: .*`num_held_out_samples` 27 leaves none"):
        open_stream(sources["parquet"], num_held_out_samples=27)
    with pytest.raises(ValueError, match="nothing in the stream for this process"):
        next(iter(open_stream(sources["parquet"], num_held_out_samples=26).batches(1)))
    with pytest.raises(ValueError, match="`num_held_out_samples` must be at least 1, got 0"):
        open_stream(sources["parquet"], num_held_out_samples=0)
    with pytest.raises(ValueError, match="`shuffle_buffer_size` must be at least 1, got 0"):
        open_stream(sources["parquet"], shuffle_buffer_size=0)


def test_a_built_in_set_is_in_memory_anyway():
    with pytest.warns(UserWarning, match="'shapes' is built in; the `streaming` True is ignored"):
        splits = load_pairs("shapes", streaming=True, num_train_rows=4)
    assert isinstance(open_pairs(splits["train"], PairReader(TOKENIZER, 8)), PairDataset)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Every benchmark runs, and its figures are ratios of what was measured in turn."""

import importlib
import itertools
import math
from pathlib import Path

import pytest
import torch

from benchmarks import data_stream, nearest_codes, timing
from benchmarks.__main__ import BENCHMARKS, main

FOLDER = Path(timing.__file__).parent


# The benchmarks


def test_the_command_knows_every_benchmark():
    assert set(BENCHMARKS) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "__main__", "timing"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_gives_ratios(name):
    rows = importlib.import_module(f"benchmarks.{name}").measure(quick=True)
    for row in rows:
        assert 0 < row.ratio < math.inf
        assert row.quartiles is None or row.quartiles[0] <= row.ratio <= row.quartiles[1]
    assert rows and len({row[:3] for row in rows}) == len(rows)


def test_the_page_has_the_text_and_the_table_of_a_benchmark(tmp_path, capsys):
    main(["nearest_codes", "--quick", "--output", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page
    assert "## Nearest codes\n\nWhat a tokenizer does" in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[0] == "| case | peer | time | peak memory |"
    assert len(lines) == (4 if nearest_codes.VectorQuantize is None else 5)
    assert all(line.count("|") == 5 for line in lines)


def test_an_unknown_benchmark_is_refused_before_any_is_run(capsys):
    with pytest.raises(SystemExit):
        main(["nearest_codes", "nonesuch"])
    assert "nonesuch" in capsys.readouterr().err


def test_a_wrong_code_ends_the_benchmark():
    vectors, codebook = torch.eye(4), torch.eye(4)
    nearest_codes.check_nearest(torch.tensor([0, 1, 2, 3]), vectors, codebook)
    with pytest.raises(RuntimeError, match="not the nearest"):
        nearest_codes.check_nearest(torch.tensor([0, 1, 2, 0]), vectors, codebook)


def test_peers_read_the_same_pairs(tmp_path):
    size = data_stream.QUICK_SIZE
    splits, tokenizer = data_stream.make_pairs(size, tmp_path / "pictures", tmp_path / "cache")
    data_stream.write_shards(splits, tmp_path / "shards")
    num_batches = len(splits["train"]) // size.batch_size
    streams = data_stream.picture_streams(size, splits["train"], tokenizer, num_workers=0)
    streamed = data_stream.shard_streams(size, tmp_path / "shards", tokenizer, num_workers=0)
    epochs = []
    for stream in [*streams.values(), *streamed.values()]:
        batches = [*itertools.islice(stream(), num_batches)]
        rows = {
            tuple(ids.tolist()): pixels
            for batch in batches
            for ids, pixels in zip(batch["input_ids"], batch["pixel_values"], strict=True)
        }
        epochs.append(dict(sorted(rows.items())))
    assert len(epochs[0]) == len(splits["train"])
    for epoch in epochs[1:]:
        torch.testing.assert_close(epoch, epochs[0])


# How they measure


def test_candidates_are_measured_in_turn_after_a_first_time():
    calls = []
    candidates = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    values = timing.alternate(candidates, num_rounds=3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert values == {"a": [4, 9, 10], "b": [5, 8, 11], "c": [6, 7, 12]}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    # A machine that is ten times slower in the third round changes nothing.
    rows = timing.ratios("case", "time", {timing.OURS: [1.0, 2.0, 10.0], "peer": [2.0, 4.0, 20.0]})
    assert rows == [timing.Row("case", "peer", "time", 2.0, (2.0, 2.0))]
    (row,) = timing.ratios("case", "time", {"peer": [1.0, 2.0, 3.0, 4.0, 50.0], timing.OURS: [1.0] * 5})
    assert (row.ratio, row.quartiles) == (3.0, (2.0, 4.0))


def test_what_is_fast_is_called_often_enough_for_the_clock():
    counter = itertools.count()
    measure = timing.cpu_seconds(lambda: next(counter))
    measure()
    assert next(counter) == 1  # the first time says how long a call takes
    measure()
    assert next(counter) > 4


def test_peak_memory_counts_what_exists_at_once():
    def function():
        first = torch.empty(1000, dtype=torch.float32)
        second = torch.empty(500, dtype=torch.float32)
        del first, second
        torch.empty(800, dtype=torch.float64)

    assert timing.peak_bytes(function) == 6400
    assert timing.peak_bytes(lambda: torch.empty(250, dtype=torch.float32)) == 1000
    assert timing.peak_bytes(lambda: None) == 0

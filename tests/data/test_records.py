# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Bad records are counted by kind and told by key, and too many of them end a run with those counts."""

import json
import logging

import pytest
import torch

from hf_vqdit.data import PairReader, train_caption_tokenizer
from hf_vqdit.data.records import KINDS, BadRecord, RecordCounts


def batch(num_rows: int, *bad_records: BadRecord, num_without_text: int = 0) -> dict:
    has_text = torch.arange(num_rows) >= num_without_text
    return {
        "row": torch.arange(num_rows),
        "has_image": torch.ones(num_rows, dtype=torch.bool),
        "has_text": has_text,
        "truncated": has_text.logical_not(),
        "bad_records": list(bad_records),
    }


def bad(number: int, kind: str = "picture_truncated") -> BadRecord:
    return BadRecord(f"{number}.png", kind, "why")


def test_records_are_counted_by_kind_with_their_keys():
    counts = RecordCounts()
    counts.add(batch(4, bad(1), bad(2, "picture_missing"), num_without_text=1))
    counts.add(batch(4, bad(3), bad(4, "caption_not_utf8"), bad(5, "caption_enormous")))
    report = counts.report()
    # Three were left out; the two whose captions were not right are among the eight of the batches
    assert report["read"] == 8 + 3 and report["bad"] == 4
    assert (report["without_image"], report["without_text"], report["truncated_captions"]) == (0, 1, 1)
    found = {kind: each["count"] for kind, each in report["bad_by_kind"].items()}
    assert found == {"picture_truncated": 2, "picture_missing": 1, "caption_not_utf8": 1, "caption_enormous": 1}
    assert set(found) <= set(KINDS)
    assert report["bad_by_kind"]["picture_truncated"]["examples"] == {"1.png": "why", "3.png": "why"}
    assert json.loads(json.dumps(report)) == report


def test_codes_count_as_records_that_were_read():
    counts = RecordCounts()
    counts.add({name: value for name, value in batch(4).items() if name != "truncated"})
    assert counts.report()["read"] == 4 and counts.warnings() == []


def test_a_record_that_lost_two_captions_is_one_bad_record_of_one_kind():
    flaws = ["caption_enormous: long", "caption_not_utf8: one", "caption_not_text: two", "caption_not_utf8: three"]
    record = {"image": None, "caption": ["words"], "key": "row 1", "flaws": flaws}
    tokenizer = train_caption_tokenizer(["words"], vocab_size=300, model_max_length=8)
    pair = PairReader(tokenizer, resolution=8).read(record, 0)
    counts = RecordCounts()
    counts.add(batch(4, *pair.flaws))
    report = counts.report()
    assert report["bad"] == 1 and report["read"] == 4
    told = {"row 1": "one; caption_not_text: two; caption_not_utf8: three; caption_enormous: long"}
    assert report["bad_by_kind"] == {"caption_not_utf8": {"count": 1, "examples": told}}


@pytest.mark.parametrize(("max_bad_fraction", "num_read"), [(0.0, 101), (0.1, 123), (0.5, 248)])
def test_more_than_a_set_share_of_bad_records_ends_the_run_with_the_counts(max_bad_fraction, num_read):
    counts = RecordCounts(max_bad_fraction)
    counts.add(batch(100))
    with pytest.raises(ValueError) as caught:
        for number in range(300):
            counts.add(batch(0, bad(number)))
    message = str(caught.value)
    assert f"of the {num_read} records read are bad, more than `max_bad_fraction` {max_bad_fraction}" in message
    assert f"picture_truncated {num_read - 100}" in message and "0.png" in message and "inspect_pairs.py" in message


def test_a_share_that_is_allowed_is_not_exceeded_by_chance():
    for seed in range(200):
        counts = RecordCounts(0.1)
        for number in torch.randperm(1000, generator=torch.Generator().manual_seed(seed)).tolist():
            counts.count([bad(number)] if number < 80 else [], num_used=int(number >= 80))
        assert (counts.totals["read"], counts.totals["bad"]) == (1000, 80)


def test_a_few_records_are_too_few_to_judge():
    counts = RecordCounts(0.0)
    for number in range(99):
        counts.add(batch(0, bad(number)))
    with pytest.raises(ValueError, match="100 of the 100 records"):
        counts.add(batch(0, bad(100)))


def test_what_is_only_told_never_ends_a_run():
    counts = RecordCounts(0.0)
    for number in range(20):
        counts.add(batch(10, bad(number, "caption_enormous"), num_without_text=10))
    assert counts.report()["bad"] == 0 and "caption_enormous 20" in str(counts)


def test_each_bad_record_is_logged_once_and_not_without_end(caplog):
    counts = RecordCounts(1.0)
    with caplog.at_level(logging.WARNING, logger="hf_vqdit.data.records"):
        for number in [*range(500), 0, 1]:
            counts.add(batch(1, bad(number)))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "picture_truncated: 0.png (why)" and "not listed" in lines[-1]
    assert len(lines) == len(set(lines)) == 21
    assert counts.report()["bad_by_kind"]["picture_truncated"]["count"] == 502


def test_counts_go_on_from_a_state_and_add_up_over_processes():
    first, second = RecordCounts(), RecordCounts()
    first.add(batch(4, bad(1)))
    second.add(batch(3, bad(2), bad(3, "picture_empty"), num_without_text=2))
    together = RecordCounts()
    for counts in (first, second):
        together.load_state_dict(counts.state_dict())
    report = together.report()
    assert (report["read"], report["bad"], report["without_text"]) == (10, 3, 2)
    assert report["bad_by_kind"]["picture_truncated"] == {"count": 2, "examples": {"1.png": "why", "2.png": "why"}}
    resumed = RecordCounts()
    resumed.load_state_dict(json.loads(json.dumps(together.state_dict())))
    assert resumed.report() == report


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"`max_bad_fraction` must lie between 0 and 1, got {fraction}"):
        RecordCounts(fraction)

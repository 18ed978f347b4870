# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The scripts on pairs that are streamed: resumed bit for bit, with bad records counted by kind."""

import json
from pathlib import Path

import pytest
from pair_files import draw_pixels, encode, write_folder, write_parquet, write_tars
from script_runs import NAMES, assert_equal, metrics, run_in_process, run_in_two_processes, weights

from hf_vqdit.data import load_caption_tokenizer

PICTURES = [encode(draw_pixels(i, 32, 32)) for i in range(20)]
CAPTIONS = [f"a picture of number {i}".encode() for i in range(20)]


def data_of(tmp_path: Path, pairs: list[tuple], write=write_parquet) -> list[str]:
    write(tmp_path / "pairs", pairs)
    settings = ["--num_held_out_samples", "4", "--shuffle_buffer_size", "5", "--cache_dir", str(tmp_path / "cache")]
    return ["--train_data_dir", str(tmp_path / "pairs"), "--streaming", *settings]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[list[str], dict[str, Path]]:
    """Both scripts on a stream, some of whose records are bad; four steps, a validation at the end."""
    root = tmp_path_factory.mktemp("runs")
    pairs = list(zip(PICTURES, CAPTIONS, strict=True))
    pairs[7], pairs[9] = (b"bad", pairs[7][1]), (pairs[9][0], b"\xff")
    data = data_of(root, pairs)
    tokenizer = run_in_process("train_vqvae", root / "tokenizer", "--validation_steps", "4", data=data)
    flags = ["--vqvae_model_name_or_path", str(tokenizer), "--validation_steps", "4"]
    return data, {"train_vqvae": tokenizer, "train_dit": run_in_process("train_dit", root / "dit", *flags, data=data)}


@pytest.mark.parametrize("num_workers", ["0", "1"])
@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_two_steps_a_resume_and_two_steps_are_four_steps_bit_for_bit(script, num_workers, runs, tmp_path):
    data, folders = runs
    flags = [
        "--resume_from_checkpoint",
        str(folders[script] / "checkpoint-2"),
        "--dataloader_num_workers",
        num_workers,
    ]
    if script == "train_dit":
        flags += ["--vqvae_model_name_or_path", str(folders["train_vqvae"])]
    resumed = run_in_process(script, tmp_path / "resumed", *flags, data=data)
    expected = {key: value for key, value in metrics(script, folders[script]).items() if key[1] > 2}
    expected = {key: value for key, value in expected.items() if not key[0].startswith("validation")}
    assert_equal(metrics(script, resumed), expected)
    for name in (NAMES[script], f"{NAMES[script]}_ema"):
        assert_equal(weights(resumed / "checkpoint-4" / name), weights(folders[script] / "checkpoint-4" / name))


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_the_summary_counts_the_records_by_kind_with_their_keys(script, runs, tmp_path):
    data, folders = runs
    records = json.loads((folders[script] / "train_summary.json").read_text())["records"]
    kinds = records["bad_by_kind"]
    assert [*kinds["picture_unreadable"]["examples"]] == ["train row 7"]
    assert [*kinds["caption_not_utf8"]["examples"]] == ["train row 9"]
    assert records["bad"] == sum(kind["count"] for kind in kinds.values())
    assert records["read"] >= 16 + kinds["picture_unreadable"]["count"] and records["without_text"] >= 1
    # What was counted before a resume is not lost
    flags = ["--resume_from_checkpoint", str(folders[script] / "checkpoint-4"), "--max_train_steps", "4"]
    if script == "train_dit":
        flags += ["--vqvae_model_name_or_path", str(folders["train_vqvae"])]
    resumed = run_in_process(script, tmp_path / "resumed", *flags, data=data)
    resumed = json.loads((resumed / "train_summary.json").read_text())["records"]
    assert resumed["read"] >= 16 and resumed["bad_by_kind"].keys() == kinds.keys()


def test_captions_of_a_stream_train_the_caption_tokenizer(runs):
    tokenizer = load_caption_tokenizer(runs[1]["train_vqvae"], subfolder="tokenizer")
    assert len(tokenizer("a picture of number 15").input_ids) < 10


@pytest.mark.parametrize(("streaming", "write"), [(True, write_folder), (False, write_tars)])
def test_too_many_bad_records_end_a_run_with_their_kinds(streaming, write, tmp_path):
    pictures = [b"" if i % 2 else picture for i, picture in enumerate(PICTURES)]
    data = data_of(tmp_path, list(zip(pictures, CAPTIONS, strict=True)), write)
    data = [flag for flag in data if streaming or flag != "--streaming"]
    flags = ["--train_batch_size", "32", "--checkpointing_steps", "0", "--train_modalities", "image"]
    with pytest.raises(ValueError, match="records read are bad, more than `max_bad_fraction` 0.1.*picture_empty .*1"):
        run_in_process("train_vqvae", tmp_path / "run", *flags, data=data)
    run_in_process("train_vqvae", tmp_path / "other", *flags, "--max_bad_fraction", "0.7", data=data)


@pytest.mark.slow
def test_two_processes_share_a_stream_and_go_on_where_they_were(runs, tmp_path):
    whole = run_in_two_processes("train_vqvae", tmp_path / "whole", data=runs[0])
    flags = ["--resume_from_checkpoint", str(whole / "checkpoint-2")]
    resumed = run_in_two_processes("train_vqvae", tmp_path / "resumed", *flags, data=runs[0])
    expected = {key: value for key, value in metrics("train_vqvae", whole).items() if key[1] > 2}
    assert_equal(metrics("train_vqvae", resumed), expected)
    assert_equal(weights(resumed / "checkpoint-4" / "vqvae"), weights(whole / "checkpoint-4" / "vqvae"))
    with pytest.raises(ValueError, match="read by 2 processes and cannot be gone on with by 1"):
        run_in_process("train_vqvae", tmp_path / "one", *flags, data=runs[0])


# Mistakes


def test_what_a_stream_cannot_do_is_refused_with_a_remedy(runs, tmp_path):
    data, folders = runs
    with pytest.raises(ValueError, match="no known length.*give `max_train_steps`"):
        run_in_process("train_vqvae", tmp_path / "epochs", "--num_train_epochs", "2", data=data)
    tokenizer = ["--vqvae_model_name_or_path", str(folders["train_vqvae"])]
    with pytest.raises(ValueError, match="`streaming` is for pairs that are encoded on the fly.*Leave it out here"):
        run_in_process("encode_codes", tmp_path / "codes", *tokenizer, data=data)
    with pytest.raises(ValueError, match="`streaming` and `codes_dir` .*exclude each other"):
        run_in_process("train_dit", tmp_path / "dit", *tokenizer, "--codes_dir", "somewhere", data=data)


def test_a_run_that_was_not_streamed_is_not_gone_on_with_by_a_stream(runs, tmp_path):
    data, _ = runs
    whole = [flag for flag in data if flag != "--streaming"]
    first = run_in_process("train_vqvae", tmp_path / "first", "--max_train_steps", "2", data=whole)
    flags = ["--resume_from_checkpoint", str(first / "checkpoint-2")]
    with pytest.raises(ValueError, match="has no position in a stream for process 0.*without `streaming`"):
        run_in_process("train_vqvae", tmp_path / "second", *flags, data=data)

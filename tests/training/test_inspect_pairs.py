# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The command that looks at pairs shows what training will read first, and reports what it would do."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch
from pair_files import draw_pixels, encode, write_folder
from PIL import Image
from script_runs import load_script, run_in_process

from hf_vqdit.data import (
    PairDataset,
    PairReader,
    ResumableBatchSampler,
    load_pairs,
    open_pairs,
    train_caption_tokenizer,
)
from hf_vqdit.training.arguments import TrainVQVAEArguments

NUM_SHOWN = 4


@pytest.fixture
def folder(tmp_path) -> str:
    """Sixteen pairs, one of which cannot be read; a third of the captions is long."""
    pairs = [(encode(draw_pixels(i, 32, 32)), b"words " * (20 if i % 3 == 0 else 2)) for i in range(16)]
    pairs[5] = (b"bad", pairs[5][1])
    return write_folder(tmp_path / "pairs", pairs)["train_data_dir"]


def first_training_pictures(folder: str, streaming: bool, **settings) -> list[torch.Tensor]:
    pairs = load_pairs(train_data_dir=folder, streaming=streaming, **settings)["train"]
    tokenizer = train_caption_tokenizer(["words"], vocab_size=300, model_max_length=8)
    train_set = open_pairs(pairs, PairReader(tokenizer, 32, random_flip=True), shuffle_buffer_size=4)
    if isinstance(train_set, PairDataset):
        sampler = ResumableBatchSampler(len(train_set), NUM_SHOWN, max_train_steps=1)
        return [item["pixel_values"] for item in train_set.__getitems__(next(iter(sampler)))]
    return [batch["pixel_values"][0] for batch in islice(train_set.batches(1), NUM_SHOWN)]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_pairs_that_are_shown_are_the_first_ones_that_training_reads(streaming, folder, tmp_path, capsys):
    settings = {"num_held_out_samples": 3, "cache_dir": str(tmp_path / "cache")}
    data = [flag for name, value in settings.items() for flag in (f"--{name}", str(value))]
    data += ["--train_data_dir", folder, "--random_flip", "--shuffle_buffer_size", "4"]
    data += ["--streaming"] * streaming + ["--num_shown", str(NUM_SHOWN)]
    look = run_in_process("inspect_pairs", tmp_path / "look", data=data)
    page = np.asarray(Image.open(look / "first_pairs.png"))
    for column, pixel_values in enumerate(first_training_pictures(folder, streaming, **settings)):
        picture = pixel_values.add(1).mul(127.5).round().byte().movedim(0, -1).numpy()
        enlarged = picture.repeat(4, axis=0).repeat(4, axis=1)[4:-4, 4:-4]  # without the thin frame
        strip = page[:, 44 + 148 * column :][:, : enlarged.shape[1]]
        assert any(np.array_equal(strip[top : top + len(enlarged)], enlarged) for top in range(len(strip)))

    report = json.loads((look / "inspection.json").read_text())
    found = [report[split]["records"]["bad_by_kind"] for split in ("train", "validation")]
    examples = [key for kinds in found for kind in kinds.values() for key in kind["examples"]]
    assert examples == [f"{folder}/5.png"] and report["train"]["captions"]["truncated"] > 0
    printed = capsys.readouterr().out
    assert printed.strip() == (look / "inspection.md").read_text().strip() and "5.png" in printed


def test_pictures_that_are_held_out_and_trained_on_are_counted(tmp_path):
    write_folder(tmp_path / "pairs" / "train", [(encode(draw_pixels(i)), b"words") for i in range(4)])
    write_folder(tmp_path / "pairs" / "validation", [(encode(draw_pixels(i)), b"words") for i in (2, 3, 7)])
    data = ["--train_data_dir", str(tmp_path / "pairs"), "--cache_dir", str(tmp_path / "cache")]
    look = run_in_process("inspect_pairs", tmp_path / "look", data=data)
    assert json.loads((look / "inspection.json").read_text())["validation_pictures_in_train"] == 2
    assert "would end early" not in (look / "inspection.md").read_text()


def test_a_share_of_bad_records_that_would_end_the_training_is_told(folder, tmp_path):
    data = ["--train_data_dir", folder, "--cache_dir", str(tmp_path / "cache"), "--max_bad_fraction", "0.01"]
    look = run_in_process("inspect_pairs", tmp_path / "look", data=data)
    assert "6.7% bad records are more than `max_bad_fraction` allows" in (look / "inspection.md").read_text()


def test_the_caption_tokenizer_is_as_large_as_the_one_that_training_makes():
    defaults = [
        {item.name: item.default for item in dataclasses.fields(arguments_class)}
        for arguments_class in (load_script("inspect_pairs").InspectArguments, TrainVQVAEArguments)
    ]
    for name in ("tokenizer_name_or_path", "vocab_size", "model_max_length"):
        assert defaults[0][name] == defaults[1][name]

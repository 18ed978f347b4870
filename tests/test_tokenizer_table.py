# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The table of the tokenizer's parts: every part is a run that starts, and what is done is not done again."""

import argparse
import json
from pathlib import Path

import pytest
import torch
import yaml
from script_runs import VQVAE
from vqvae_inputs import pictures, tiny_vqvae

from benchmarks import tokenizer_table
from hf_vqdit.training.arguments import TrainVQVAEArguments, parse_arguments


@pytest.fixture
def config(tmp_path) -> Path:
    common = {"dataset_name": "shapes", "num_train_rows": 24, "validation_fraction": 0.25}
    settings = {"model_init_kwargs": VQVAE, "vocab_size": 400, "train_batch_size": 4, "quantizer_start_step": 1}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"format_version": 1, "common": common, "vqvae": settings}))
    return file


def arguments(**options) -> argparse.Namespace:
    defaults = {"max_train_steps": None, "mixed_precision": "no", "perceptual_model_name_or_path": None}
    return argparse.Namespace(**defaults | options)


def test_every_part_changes_what_it_says_and_keeps_the_steps(config):
    for name, part in tokenizer_table.PARTS.items():
        args = arguments(max_train_steps=24, perceptual_model_name_or_path="network")
        flags = ["--output_dir", "x", *tokenizer_table.flags_of(part, str(config), args)]
        settings = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
        assert settings.max_train_steps == 24 and settings.train_batch_size == 4
        assert settings.model_init_kwargs.items() >= part.model.items(), name
        assert settings.loss_weights.items() >= part.losses.items(), name
        assert part.of in tokenizer_table.PARTS


def test_steps_are_timed_with_all_that_a_part_trains(config):
    part = tokenizer_table.PARTS["discriminator, adaptive weight"]
    flags = ["--output_dir", "x", *tokenizer_table.flags_of(part, str(config), arguments(), timed_steps=64)]
    settings = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
    assert settings.max_train_steps == 64 and settings.quantizer_start_step == 1
    assert settings.discriminator_kwargs["start_step"] == settings.discriminator_kwargs["ramp_steps"] == 1


def test_figures_are_measured_once_and_make_a_table(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_table, "NUM_JUDGE_STEPS", 1)
    flags = ["--output_dir", str(tmp_path / "runs"), "--datasets", str(config), "--seeds", "3"]
    flags += ["--max_train_steps", "4", "--mixed_precision", "no", "--parts", "base", "alignment"]
    flags += ["--table", str(tmp_path / "table.md")]
    monkeypatch.setattr(tokenizer_table, "TIMED_STEPS", 4)
    monkeypatch.setattr(tokenizer_table, "TIMED_WINDOW", 2)
    tokenizer_table.main(flags)
    files = sorted((tmp_path / "runs").rglob(tokenizer_table.FIGURES_FILE))
    records = tokenizer_table.read_records(tmp_path / "runs")
    assert len(files) == len(records)
    assert all(1e-4 < record["figures"]["seconds_per_step"] < 100 for record in records)
    assert [record["part"] for record in records] == ["alignment", "base"]
    assert all((record["seed"], record["steps"]) == (3, 4) for record in records)
    assert "retrieval_embeds" in records[0]["figures"] and "retrieval_embeds" not in records[1]["figures"]
    assert all(0 <= record["figures"]["retrieval_probe"] <= 1 for record in records)
    table = (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text()) == records
    assert "## tiny: 4 steps, mixed precision no" in table and f"{records[1]['figures']['image_psnr_db']:.2f}" in table
    times = [file.stat().st_mtime_ns for file in files]
    tokenizer_table.main(flags)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_built_in_sets_are_those_of_their_configurations_at_32_pixels_and_8_by_8_codes():
    for dataset in tokenizer_table.DATASETS:
        flags = ["--output_dir", "x", *tokenizer_table.flags_of(tokenizer_table.PARTS["base"], dataset, arguments())]
        settings = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
        model = settings.model_init_kwargs
        factor = model["patch_size"] * 2 ** (len(model["block_out_channels"]) - 1)
        assert settings.resolution == 32 and factor == 4 and settings.max_train_steps >= 1000


def test_tiles_cost_nothing_where_norms_are_local_and_something_where_they_are_not():
    gains = {}
    for norm_type in ("layer", "group"):
        vqvae = tiny_vqvae(norm_type=norm_type, block_out_channels=(8, 16), patch_size=1)
        for network in (vqvae.image_encoder.encoder, vqvae.image_decoder.decoder):  # they are silent at the start
            torch.nn.init.normal_(network.conv_out.weight, std=0.3)
        gains[norm_type] = tokenizer_table.tiling_gain(vqvae, pictures(16, 32, 32))
        assert not vqvae.use_tiling
    assert abs(gains["layer"]) < 1e-3 < abs(gains["group"])


def test_a_picture_finds_its_caption_when_the_codes_tell_it():
    generator = torch.Generator().manual_seed(0)
    text, input_ids = torch.randn(20, 5, generator=generator), torch.arange(20).unsqueeze(1)
    assert tokenizer_table.retrieval_at_1(text, text, input_ids) == 1
    assert tokenizer_table.retrieval_at_1(text, text.roll(1, dims=0), input_ids) < 0.2
    assert (
        tokenizer_table.retrieval_at_1(text, text.roll(1, dims=0), torch.ones(20, 1)) == 1
    )  # all captions are the same


def test_a_part_that_does_not_exist_or_lacks_its_weights_is_refused(tmp_path, capsys):
    for parts, message in ((["base", "magic"], "unknown parts ['magic']"), (["perceptual"], "needs weights")):
        with pytest.raises(SystemExit):
            tokenizer_table.main(["--output_dir", str(tmp_path), "--parts", *parts])
        assert message in capsys.readouterr().err

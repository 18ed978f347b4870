# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""`train_vqvae.py` with the parts that are off by default: what may not change its result, and what is refused."""

import json
from pathlib import Path

import pytest
from script_runs import VQVAE, assert_equal, metrics, run_in_process, weights

SHARED = VQVAE | {"shared_codebook": True, "text_codebook_size": 16}
PARTS = ["--model_init_kwargs", json.dumps(SHARED)]
PARTS += ["--codebook_update", "gradient", "--gradient_estimator", "rotation_trick"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Four steps with every part on."""
    return run_in_process("train_vqvae", tmp_path_factory.mktemp("parts") / "run", *PARTS)


def test_every_part_resumes_bit_for_bit(run, tmp_path):
    resumed = run_in_process(
        "train_vqvae", tmp_path / "resumed", *PARTS, "--resume_from_checkpoint", str(run / "checkpoint-2")
    )
    expected = {key: value for key, value in metrics("train_vqvae", run).items() if key[1] > 2}
    assert_equal(metrics("train_vqvae", resumed), expected)
    for name in ("checkpoint-4/vqvae", "checkpoint-4/vqvae_ema", "vqvae"):
        assert_equal(weights(resumed / name), weights(run / name))


def test_one_codebook_is_trained_on_both_modalities(run):
    names = {name for name, step in metrics("train_vqvae", run) if step == 4}
    assert {"shared_usage", "shared_perplexity", "shared_restarts"} <= names and "image_usage" not in names
    first, last = weights(run / "checkpoint-2" / "vqvae"), weights(run / "checkpoint-4" / "vqvae")
    changed = {name for name in first if not first[name].equal(last[name])}
    projections = {f"{modality}_project_{way}.weight" for modality in ("image", "text") for way in ("in", "out")}
    assert changed >= projections | {"image_quantizer.codebook"}

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""`train_vqvae.py` with the parts that are off by default: what may not change its result, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from script_runs import VQVAE, assert_close, assert_equal, metrics, run_in_process, run_in_two_processes, weights
from vision_models import save_vision_model

MODEL = VQVAE | {"shared_codebook": True, "text_codebook_size": 16, "projection_dim": 8, "text_transition_rank": 4}
WEIGHTS = {"image_perceptual": 0.5, "image_adversarial": 0.5, "text_crf": 0.5, "alignment": 0.1}
DISCRIMINATOR = {"warmup_steps": 1, "ramp_steps": 2, "r1_every": 2, "lecam_weight": 0.1, "width": 8, "num_layers": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[str]:
    """The flags that switch every part on."""
    network = str(save_vision_model(tmp_path_factory.mktemp("network"), "resnet"))
    flags = ["--model_init_kwargs", json.dumps(MODEL), "--loss_weights", json.dumps(WEIGHTS)]
    flags += ["--codebook_update", "gradient", "--gradient_estimator", "rotation_trick"]
    flags += ["--perceptual_model_name_or_path", network, "--alignment_ramp_steps", "2"]
    return [*flags, "--discriminator_kwargs", json.dumps(DISCRIMINATOR)]


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory) -> Path:
    """Four steps with every part on."""
    return run_in_process("train_vqvae", tmp_path_factory.mktemp("parts") / "run", *parts)


def discriminator(folder: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the discriminator: the object that was registered last."""
    state = torch.load(folder / "custom_checkpoint_2.pkl")
    optimizer = {f"{key}.{name}": x for key, own in state["optimizer"]["state"].items() for name, x in own.items()}
    return state["discriminator"] | state["lecam"] | optimizer


def test_every_part_resumes_bit_for_bit(parts, run, tmp_path):
    flags = [*parts, "--resume_from_checkpoint", str(run / "checkpoint-2")]
    resumed = run_in_process("train_vqvae", tmp_path / "resumed", *flags)
    expected = {key: value for key, value in metrics("train_vqvae", run).items() if key[1] > 2}
    assert_equal(metrics("train_vqvae", resumed), expected)
    for name in ("checkpoint-4/vqvae", "checkpoint-4/vqvae_ema", "vqvae"):
        assert_equal(weights(resumed / name), weights(run / name))
    assert_equal(discriminator(resumed / "checkpoint-4"), discriminator(run / "checkpoint-4"))


def test_the_log_shows_when_each_part_counts(run):
    logged = metrics("train_vqvae", run)
    steps = {name: [step for step in (1, 2, 3, 4) if (name, step) in logged] for name, _ in logged}
    assert steps["image_perceptual"] == steps["alignment"] == steps["discriminator_hinge"] == [1, 2, 3, 4]
    assert steps["image_adversarial"] == [2, 3, 4]  # after one step of the discriminator alone
    assert steps["discriminator_r1"] == [1, 3]
    assert steps["shared_usage"] == [2, 3, 4] and "image_usage" not in steps


def test_every_part_is_trained_and_the_discriminator_does_not_ship(run):
    first, last = weights(run / "checkpoint-2" / "vqvae"), weights(run / "checkpoint-4" / "vqvae")
    changed = {name for name in first if not first[name].equal(last[name])}
    projections = {f"{modality}_project_{way}.weight" for modality in ("image", "text") for way in ("in", "out")}
    projections |= {
        f"{modality}_projection.proj_{way}.weight" for modality in ("image", "text") for way in ("in", "out")
    }
    assert changed >= projections | {"image_quantizer.codebook", "text_transitions.source", "text_transitions.target"}
    before, after = discriminator(run / "checkpoint-2"), discriminator(run / "checkpoint-4")
    assert not any(torch.equal(before[name], after[name]) for name in ("layers.0.weight", "real_mean", "0.exp_avg"))
    assert not any("discriminator" in name or name.startswith("layers") for name in weights(run / "vqvae"))


def test_gradient_checkpointing_changes_nothing_even_under_the_adaptive_weight(parts, run, tmp_path):
    changed = run_in_process("train_vqvae", tmp_path / "run", *parts, "--gradient_checkpointing")
    assert_close(metrics("train_vqvae", changed), metrics("train_vqvae", run))


def test_transitions_that_are_not_trained_come_from_bigrams_at_the_end(tmp_path):
    model = json.dumps(VQVAE | {"text_transition_rank": 4})
    folder = run_in_process("train_vqvae", tmp_path / "run", "--model_init_kwargs", model)
    checkpoint, final = weights(folder / "checkpoint-4" / "vqvae"), weights(folder / "vqvae")
    assert (checkpoint["text_transitions.target"] == 0).all()
    assert not torch.equal(checkpoint["text_transitions.source"], final["text_transitions.source"])


def test_training_goes_on_from_a_vq_model(tmp_path):
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "num_vq_embeddings": 16, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    codec = VQModel(**config, **blocks)
    torch.nn.init.normal_(codec.quantize.embedding.weight)
    codec.save_pretrained(tmp_path / "codec")
    flags = ["--vq_model_name_or_path", str(tmp_path / "codec"), "--learning_rate", "0", "--quantizer_start_step", "2"]
    flags += ["--model_init_kwargs", '{"text_codebook_size": 24, "text_code_dim": 4, "text_width": 16}']
    folder = run_in_process("train_vqvae", tmp_path / "run", *flags)
    before = weights(folder / "checkpoint-2" / "vqvae")
    for name in ("encoder.conv_in.weight", "quant_conv.weight"):
        assert torch.equal(before[f"image_encoder.{name}"], codec.state_dict()[name])
    assert torch.equal(before["image_quantizer.codebook"], codec.quantize.embedding.weight)
    logged = metrics("train_vqvae", folder)
    assert ("image_usage", 3) in logged and ("text_usage", 3) in logged


@pytest.mark.slow
def test_two_processes_hold_equal_models_with_every_part_on(parts, tmp_path):
    two = run_in_two_processes("train_vqvae", tmp_path / "two", *parts)  # which compares them
    assert ("discriminator_hinge", 4) in metrics("train_vqvae", two)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--discriminator_kwargs", '{"start_step": -1}'], "starts at step -1"),
        (["--discriminator_kwargs", '{"start_step": 4}'], "within the 4 steps"),
        (["--perceptual_model_name_or_path", "nowhere/at-all"], "'nowhere/at-all' cannot be used at 32 pixels"),
        (["--model_init_kwargs", json.dumps(MODEL | {"text_code_dim": 8})], "must be equal"),
        (["--model_init_kwargs", json.dumps(MODEL | {"projection_dim": None})], "alignment: .*`projection_dim`"),
        (["--model_init_kwargs", json.dumps(MODEL | {"text_transition_rank": None})], "crf: .*`text_transition_rank`"),
        (["--model_init_kwargs", json.dumps(MODEL | {"text_downsample_factor": 3})], "r = 3 .* does not divide"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(flags, message, parts, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_in_process("train_vqvae", tmp_path / "run", *parts, *flags)
    assert not list((tmp_path / "run").glob("checkpoint-*"))

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""train_dit.py --process gaussian on a tiny model: what it leaves, and what may not change its result."""

import json

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from script_runs import COMMANDS, DIT, assert_close, assert_equal, metrics, run_in_process, weights

import hf_vqdit
from hf_vqdit.training.arguments import TrainDiTArguments, parse_arguments

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FLOW_LOSS = {"time_sampling": "logit_normal", "region_fraction": 0.5}
KINDS = {
    "density": ["--model_init_kwargs", json.dumps(DIT | {"prediction_type": "epsilon", "learn_sigma": True})]
    + ["--text_scheduler_kwargs", '{"beta_schedule": "squaredcos_cap_v2"}'],
    "flow": ["--model_init_kwargs", json.dumps(DIT | {"prediction_type": "flow_prediction"})]
    + ["--loss_config", json.dumps(FLOW_LOSS), "--scheduler_kwargs", '{"shift": 2.0}'],
}
SCHEDULERS = {"density": "DDPMScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return run_in_process("train_vqvae", tmp_path_factory.mktemp("runs") / "tokenizer")


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tokenizer, tmp_path_factory):
    """The kind, its flags, and the folder of a run with a validation at the end."""
    flags = ["--process", "gaussian", "--vqvae_model_name_or_path", str(tokenizer), *KINDS[request.param]]
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, flags, run_in_process("train_dit", folder, *flags, "--validation_steps", "4")


def test_the_pipeline_loads_with_the_package_and_draws(trained):
    kind, _, folder = trained
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is hf_vqdit.VQDiTPipeline and pipeline.transformer.config.process == "gaussian"
    for scheduler in (pipeline.scheduler, pipeline.text_scheduler):
        assert type(scheduler) is getattr(diffusers, SCHEDULERS[kind])
    output = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert len(output.images) == len(output.texts) == 1
    for name in ("image", "text"):  # how often codes come was measured
        prior = getattr(pipeline.transformer, f"{name}_log_prior")
        assert prior.exp().sum().item() == pytest.approx(1, abs=1e-5) and prior.std() > 0


def test_the_schedulers_are_saved_as_those_of_diffusers_without_code(trained):
    kind, _, folder = trained
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == index["text_scheduler"] == ["diffusers", SCHEDULERS[kind]]
    assert index["transformer"] == ["transformer_vqdit", "VQDiTModel"]
    assert {path.name for path in folder.rglob("*.py")} == {
        "pipeline.py",
        "autoencoder_vqvae.py",
        "transformer_vqdit.py",
    }


def test_losses_and_bounds_are_logged(trained):
    _, _, folder = trained
    logged = metrics("train_dit", folder)
    assert all(("loss", step) in logged and ("image_error", step) in logged for step in range(1, 5))
    for name in ("bits_x", "bits_y", "bits_x_given_y", "bits_y_given_x", "bits_x_and_y"):
        assert logged[f"validation/{name}", 4] > 0
    assert len(list(folder.glob("samples/*.png"))) == 1


def test_two_steps_and_two_more_are_four_bit_for_bit(trained, tmp_path):
    _, flags, folder = trained
    resumed = run_in_process(
        "train_dit", tmp_path / "run", *flags, "--max_train_steps", "2", "--lr_scheduler", "constant"
    )
    whole = run_in_process("train_dit", tmp_path / "whole", *flags, "--lr_scheduler", "constant")
    run_in_process("train_dit", resumed, *flags, "--lr_scheduler", "constant", "--resume_from_checkpoint", "latest")
    assert_equal(weights(resumed / "transformer"), weights(whole / "transformer"))


@pytest.mark.parametrize(
    "change",
    (["--train_batch_size", "1", "--gradient_accumulation_steps", "4"], ["--gradient_checkpointing"]),
    ids=("accumulation", "checkpointing"),
)
def test_accumulation_and_gradient_checkpointing_change_nothing(trained, change, tmp_path):
    _, flags, folder = trained
    changed = run_in_process("train_dit", tmp_path / "changed", *flags, *change)
    expected = {key: value for key, value in metrics("train_dit", folder).items() if "valid" not in key[0]}
    assert_close(metrics("train_dit", changed), expected, tolerance=1e-4)
    assert_close(weights(changed / "checkpoint-4" / "transformer"), weights(folder / "checkpoint-4" / "transformer"))


def test_fine_tuning_starts_from_the_weights_that_were_given(trained, tmp_path):
    kind, _, folder = trained
    flags = ["--process", "gaussian", "--pretrained_model_name_or_path", str(folder), "--learning_rate", "0"]
    flags += ["--model_init_kwargs", "{}", "--max_train_steps", "1"]
    tuned = run_in_process("train_dit", tmp_path / "tuned", *flags)
    assert_equal(weights(tuned / "transformer"), weights(folder / "transformer"))
    index = json.loads((tuned / "text_scheduler" / "scheduler_config.json").read_text())
    assert index["_class_name"] == SCHEDULERS[kind]
    assert kind == "flow" or (index["beta_schedule"], index["variance_type"]) == ("squaredcos_cap_v2", "learned_range")
    with pytest.raises(ValueError, match=f"`scheduler_kwargs`.*'order': {SCHEDULERS[kind]}"):
        run_in_process("train_dit", tmp_path / "wrong", *flags, "--scheduler_kwargs", '{"order": "random"}')
    with pytest.raises(ValueError, match="'gaussian' and 'unet', but those of .* are 'gaussian' and 'dit'"):
        run_in_process("train_dit", tmp_path / "wrong", *flags, "--backbone", "unet", "--loss_config", "{}")


def test_a_unet_is_trained_on_pictures_alone(tokenizer, tmp_path):
    unet = {"block_out_channels": [16, 32], "norm_num_groups": 8, "layers_per_block": 1}
    flags = ["--process", "gaussian", "--backbone", "unet", "--vqvae_model_name_or_path", str(tokenizer)]
    flags += ["--model_init_kwargs", json.dumps({"unet_kwargs": unet}), "--validation_steps", "4"]
    flags += ["--time_mixture", '{"text": 0.5}']  # which goes by
    folder = run_in_process("train_dit", tmp_path / "unet", *flags)
    logged = metrics("train_dit", folder)
    assert logged["image_error", 4] > 0 and logged["validation/bits_x", 4] > 0
    assert not [name for name, _ in logged if name.startswith("text_error") or "bits_y" in name]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert len(pipeline(output_modalities=("image",), num_inference_steps=2).images) == 1


# What is refused


def test_a_model_of_the_other_process_is_refused(trained, tokenizer, tmp_path):
    _, flags, folder = trained
    with pytest.raises(ValueError, match="'masked' and 'dit', but.*pass `--process gaussian --backbone dit`"):
        run_in_process("train_dit", tmp_path / "run", "--pretrained_model_name_or_path", str(folder))


def test_a_tokenizer_without_statistics_is_refused_before_any_step(tokenizer, tmp_path):
    broken = hf_vqdit.MultimodalVQVAE.from_pretrained(tokenizer, subfolder="vqvae")
    broken.image_latents_std.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken" / "vqvae")
    (tmp_path / "broken" / "tokenizer").symlink_to(tokenizer / "tokenizer")
    with pytest.raises(ValueError, match="`image_latents_std`.*measure_latents"):
        flags = ["--process", "gaussian", "--vqvae_model_name_or_path", str(tmp_path / "broken")]
        run_in_process("train_dit", tmp_path / "run", *flags)


def test_a_scheduler_whose_settings_do_not_fit_is_refused_before_any_step(tokenizer, tmp_path):
    flags = ["--process", "gaussian", "--vqvae_model_name_or_path", str(tokenizer)]
    with pytest.raises(ValueError, match="`clip_sample` True.*needs False"):
        run_in_process("train_dit", tmp_path / "run", *flags, "--scheduler_kwargs", '{"clip_sample": true}')
    with pytest.raises(ValueError, match="'v_prediction'.*got FlowMatchEulerDiscreteScheduler"):
        run_in_process("train_dit", tmp_path / "run", *flags, "--noise_scheduler", "FlowMatchEulerDiscreteScheduler")


@pytest.mark.parametrize(
    ("flags", "message"),
    (
        (["--noise_scheduler", "DDPMScheduler"], '`noise_scheduler` is for `process="gaussian"`'),
        (["--process", "gaussian", "--noise_scheduler", "LCMScheduler"], "`noise_scheduler` must be.*'LCMScheduler'"),
        (["--process", "gaussian", "--scheduler_kwargs", '{"order": "random"}'], "`scheduler_kwargs`.*'order'"),
        (["--process", "gaussian", "--loss_config", '{"label_smoothing": 0.1}'], "`loss_config`.*'label_smoothing'"),
        (["--loss_config", '{"min_snr_gamma": 5}'], "`loss_config`.*'min_snr_gamma'"),
        (["--backbone", "unet"], '`backbone` "unet" needs `process` "gaussian", got \'masked\''),
        (["--model_init_kwargs", '{"unet_kwargs": {}}'], "`unet_kwargs`.*needs `backbone` \"unet\", got 'dit'"),
        (
            ["--process", "gaussian", "--backbone", "unet", "--loss_config", '{"region_fraction": 0.5}'],
            "set `region_fraction` of `loss_config` to 0",
        ),
        (["--model_init_kwargs", '{"process": "gaussian"}'], "`model_init_kwargs` must not hold `process`"),
    ),
)
def test_settings_of_the_other_process_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(TrainDiTArguments, "dit", ["--output_dir", "x", "--vqvae_model_name_or_path", "y", *flags])


def test_a_student_of_a_gaussian_teacher_is_refused():
    with pytest.raises(ValueError, match="`distill_from` is for the masked process"):
        parse_arguments(
            TrainDiTArguments, "dit", ["--output_dir", "x", "--distill_from", "y", "--process", "gaussian"]
        )


def test_settings_are_those_of_the_process():
    flags = [*COMMANDS["train_dit"], "--output_dir", "x", "--vqvae_model_name_or_path", "y", "--process", "gaussian"]
    arguments = parse_arguments(TrainDiTArguments, "dit", flags)
    assert arguments.scheduler_class is diffusers.DDPMScheduler

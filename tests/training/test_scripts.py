# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The training scripts, by command line, on a tiny model: what they leave, and what may not change their result."""

import json
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from diffusers import DiffusionPipeline
from PIL import Image
from script_runs import (
    COMMANDS,
    DATA,
    NAMES,
    SCRIPTS,
    assert_close,
    assert_equal,
    metrics,
    run_command,
    run_in_process,
    run_in_two_processes,
    weights,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_vqdit import MultimodalVQVAE, VQDiTModel
from hf_vqdit.data import load_caption_tokenizer
from hf_vqdit.training.checkpoints import list_checkpoints
from hf_vqdit.training.processes import EMBEDDING_STD
from hf_vqdit.training.run import TrainingRun


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Both scripts, each in a fresh process: four steps, a validation at the end."""
    root = tmp_path_factory.mktemp("runs")
    folders = {"train_vqvae": root / "tokenizer", "train_dit": root / "pipeline"}
    extra = {"train_vqvae": [], "train_dit": ["--vqvae_model_name_or_path", str(folders["train_vqvae"])]}
    extra["train_dit"] += ["--validation_prompts", "a red circle"]
    for script, folder in folders.items():
        command = [sys.executable, str(SCRIPTS / f"{script}.py"), *DATA, *COMMANDS[script], "--output_dir"]
        command.append(str(folder))
        run_command([*command, "--validation_steps", "4", *extra[script]])
    return folders


def flags_of(script: str, runs: dict[str, Path]) -> list[str]:
    return ["--vqvae_model_name_or_path", str(runs["train_vqvae"])] if script == "train_dit" else []


# What they leave


def test_train_vqvae_leaves_a_tokenizer_that_loads(runs):
    folder = runs["train_vqvae"]
    vqvae = MultimodalVQVAE.from_pretrained(folder, subfolder="vqvae")
    tokenizer = load_caption_tokenizer(folder, subfolder="tokenizer")
    assert vqvae.config.vocab_size == len(tokenizer) and tokenizer.model_max_length == 16
    for name in ("image_latents_mean", "image_latents_std", "text_latents_mean", "text_latents_std"):
        assert getattr(vqvae, name).isfinite().all() and not getattr(vqvae, name).requires_grad
    # The averaged weights are what ships, with the codebooks as they are
    assert_equal(weights(folder / "vqvae"), weights(folder / "checkpoint-4" / "vqvae_ema"))
    for name in ("image_quantizer.codebook", "text_quantizer.codebook"):
        checkpoint = weights(folder / "checkpoint-4" / "vqvae")
        assert torch.equal(weights(folder / "vqvae")[name], checkpoint[name])
        assert not torch.equal(checkpoint[name], weights(folder / "checkpoint-2" / "vqvae")[name])


def test_train_dit_leaves_a_pipeline_that_loads_and_generates(runs):
    pipeline = DiffusionPipeline.from_pretrained(runs["train_dit"], trust_remote_code=True)
    output = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert output.images[0].size == (32, 32) and isinstance(output.texts[0], str)
    assert_equal(
        weights(runs["train_dit"] / "transformer"), weights(runs["train_dit"] / "checkpoint-4/transformer_ema")
    )


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_runs_leave_a_card_samples_settings_and_a_summary(script, runs):
    folder = runs[script]
    assert (folder / "README.md").is_file() and (folder / "training_config.yaml").is_file()
    assert Image.open(folder / "samples" / "step-000004.png").width > 100
    summary = json.loads((folder / "train_summary.json").read_text())
    assert summary["seconds"] > 0 and summary["steps"] == 4 and summary["figures"]


def test_the_log_holds_losses_by_part_and_by_time_and_the_use_of_the_codes(runs):
    tokenizer, transformer = (metrics(script, runs[script]) for script in ("train_vqvae", "train_dit"))
    for name in ("loss", "image_l1", "text_cross_entropy", "lr", "grad_norm"):
        assert [(name, step) in tokenizer for step in (1, 2, 3, 4)] == [True] * 4, name
    assert {("image_usage", 4), ("text_perplexity", 4), ("validation/image_psnr_db", 4)} <= tokenizer.keys()
    assert {("loss", 1), ("image_nats", 1), ("text_nats", 1), ("validation/bits_x_given_y", 4)} <= transformer.keys()
    assert any(name.startswith("image_nats/time_0.") for name, _ in transformer)
    events = EventAccumulator(str(runs["train_dit"] / "logs" / "dit")).Reload()
    assert 0 <= events.Scalars("data_wait")[-1].value <= 1


# What may not change the result


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_two_steps_a_resume_and_two_steps_are_four_steps_bit_for_bit(script, runs, tmp_path):
    checkpoint = str(runs[script] / "checkpoint-2")
    flags = [*flags_of(script, runs), "--resume_from_checkpoint", checkpoint]
    resumed = run_in_process(script, tmp_path / "resumed", *flags)
    expected = {key: value for key, value in metrics(script, runs[script]).items() if key[1] > 2}
    expected = {key: value for key, value in expected.items() if not key[0].startswith("validation")}
    assert_equal(metrics(script, resumed), expected)
    for name in (NAMES[script], f"{NAMES[script]}_ema"):
        assert_equal(weights(resumed / "checkpoint-4" / name), weights(runs[script] / "checkpoint-4" / name))
    assert_equal(weights(resumed / NAMES[script]), weights(runs[script] / NAMES[script]))


def test_a_run_that_is_done_says_that_nothing_is_left(runs, tmp_path, caplog):
    flags = [*flags_of("train_vqvae", runs), "--resume_from_checkpoint", str(runs["train_vqvae"] / "checkpoint-4")]
    done = run_in_process("train_vqvae", tmp_path / "done", *flags)
    assert "Nothing is left to train: raise `max_train_steps`" in caplog.text
    assert_equal(weights(done / "vqvae"), weights(runs["train_vqvae"] / "vqvae"))


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_checkpoint_from_which_it_goes_on_bit_for_bit(
    script, number, runs, tmp_path, monkeypatch
):
    next_batch, calls = TrainingRun.next_batch, count()

    def interrupt(run, batches):
        if next(calls) == 2:
            signal.raise_signal(number)
        return next_batch(run, batches)

    before = signal.getsignal(number)
    monkeypatch.setattr(TrainingRun, "next_batch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run_in_process(script, tmp_path / "run", *flags_of(script, runs))
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "run" / NAMES[script]).exists()

    resumed = run_in_process(script, tmp_path / "run", *flags_of(script, runs), "--resume_from_checkpoint", "latest")
    assert_equal(weights(resumed / NAMES[script]), weights(runs[script] / NAMES[script]))
    assert signal.getsignal(number) == before


def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint_too(tmp_path):
    """As a terminal and a batch system send it: those that read pictures get it as well."""
    flags = [*DATA, *COMMANDS["train_vqvae"], "--max_train_steps", "100000", "--dataloader_num_workers", "2"]
    command = [sys.executable, str(SCRIPTS / "train_vqvae.py"), *flags, "--output_dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        log = ""
        while "step 3 of" not in log and (line := process.stderr.readline()):
            log += line
        os.killpg(process.pid, signal.SIGTERM)
        log += process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, log
    assert f"go on with `--resume_from_checkpoint {list_checkpoints(tmp_path)[-1].name}`" in log


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
@pytest.mark.parametrize(
    "change",
    [["--train_batch_size", "1", "--gradient_accumulation_steps", "4"], ["--gradient_checkpointing"]],
    ids=["accumulation", "checkpointing"],
)
def test_accumulation_and_gradient_checkpointing_change_nothing(script, change, runs, tmp_path):
    changed = run_in_process(script, tmp_path / "changed", *flags_of(script, runs), *change)
    found, expected = metrics(script, changed), metrics(script, runs[script])
    assert_close(found, {key: value for key, value in expected.items() if not key[0].startswith("validation")})
    assert_close(
        weights(changed / "checkpoint-4" / NAMES[script]), weights(runs[script] / "checkpoint-4" / NAMES[script])
    )


def test_codes_that_were_written_once_give_the_losses_of_codes_encoded_on_the_fly(runs, tmp_path):
    tokenizer = flags_of("train_dit", runs)
    codes = run_in_process("encode_codes", tmp_path / "codes", *tokenizer, "--train_batch_size", "5")
    assert len(load_from_disk(str(codes / "train"))) == 24
    trained = run_in_process("train_dit", tmp_path / "dit", *tokenizer, "--codes_dir", str(codes))
    expected = {key: value for key, value in metrics("train_dit", runs["train_dit"]).items() if "valid" not in key[0]}
    assert_equal(metrics("train_dit", trained), expected)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_two_processes_hold_equal_models_and_equal_one_process(script, runs, tmp_path):
    two = run_in_two_processes(script, tmp_path / "two", *flags_of(script, runs))
    found, expected = metrics(script, two), metrics(script, runs[script])
    assert_close(found, {key: value for key, value in expected.items() if not key[0].startswith("validation")})
    folder = Path("checkpoint-4") / NAMES[script]
    assert_close(weights(two / folder), weights(runs[script] / folder))


# Fine-tuning, dry run, and what stops a run


@pytest.mark.parametrize("script", ["train_vqvae", "train_dit"])
def test_fine_tuning_starts_from_the_weights_that_were_given(script, runs, tmp_path):
    flags = ["--learning_rate", "0", "--max_train_steps", "1", "--pretrained_model_name_or_path", str(runs[script])]
    if script == "train_vqvae":
        flags += ["--codebook_kwargs", '{"decay": 0.9999}']
    tuned = run_in_process(script, tmp_path / script, *flags)
    found, expected = (weights(folder / NAMES[script]) for folder in (tuned, runs[script]))
    for name in [name for name in expected if name.endswith("codebook")]:  # they move, a little, at any learning rate
        torch.testing.assert_close(found.pop(name), expected.pop(name), rtol=0, atol=0.05)
    assert_equal(found, expected)


def test_embeddings_start_as_vectors_if_asked_for(runs, tmp_path):
    flags = [*flags_of("train_dit", runs), "--embed_by_vectors", "true", "--learning_rate", "0"]
    folder = run_in_process("train_dit", tmp_path / "run", *flags, "--max_train_steps", "1")
    assert weights(folder / "transformer")["image_embed.weight"][:-1].std() == pytest.approx(EMBEDDING_STD)
    with pytest.raises(ValueError, match="`embed_by_vectors` is for .* 'gaussian' reads vectors themselves"):
        run_in_process("train_dit", tmp_path / "other", *flags, "--process", "gaussian")


def test_what_a_transformer_to_go_on_with_does_not_go_with_is_told(runs, tmp_path, caplog):
    other = run_in_process("train_vqvae", tmp_path / "tokenizer", "--seed", "1", "--max_train_steps", "1")
    source = ["--pretrained_model_name_or_path", str(runs["train_dit"]), "--max_train_steps", "1"]
    caplog.set_level("WARNING", logger="hf_vqdit")
    run_in_process("train_dit", tmp_path / "same", *source)
    assert "another tokenizer" not in caplog.text and "is for a new model" not in caplog.text
    wider = ["--model_init_kwargs", '{"hidden_size": 64}', "--vqvae_model_name_or_path", str(other)]
    run_in_process("train_dit", tmp_path / "other", *source, *wider)
    assert f"`--vqvae_model_name_or_path {runs['train_dit']}`" in caplog.text
    assert f"`hidden_size` is 32 as in {runs['train_dit']}; 64 is for a new model" in caplog.text


def test_a_dry_run_prints_parameters_and_flops_and_writes_nothing(runs, tmp_path, capsys):
    for script, model_class in (("train_vqvae", MultimodalVQVAE), ("train_dit", VQDiTModel)):
        run_in_process(script, tmp_path / script, *flags_of(script, runs), "--dry_run")
        printed = capsys.readouterr().out
        model = model_class.from_pretrained(runs[script], subfolder=NAMES[script])
        assert f"parameters: {model.num_parameters():,}" in printed and '"max_train_steps": 4' in printed
        flops = float(printed.split("FLOPs a step: ")[1].split()[0])
        assert (
            flops > 6 * 4 * 64 * 100
        )  # more than a hundred parameters at work on each of the 64 places of 4 pictures
        assert not (tmp_path / script).exists()


def test_a_dry_run_tells_the_memory_that_a_batch_takes(runs, tmp_path, capsys):
    memory = []
    for batch_size in (2, 4):
        flags = [*flags_of("train_dit", runs), "--train_batch_size", str(batch_size), "--dry_run"]
        run_in_process("train_dit", tmp_path / "run", *flags)
        printed = capsys.readouterr().out
        names = (
            "for weights, their averages, gradients and AdamW",
            f"that {batch_size} pairs keep for the backward pass",
        )
        memory.append([float(printed.split(f"GB {name}: ")[1].split()[0]) for name in names])
    (state, few), (same_state, many) = memory
    parameters = VQDiTModel.from_pretrained(runs["train_dit"], subfolder="transformer").num_parameters()
    assert state == same_state == pytest.approx(5 * 4 * parameters / 1e9, rel=1e-3)
    assert 1.8 * few < many < 2.2 * few


def test_a_loss_that_is_nan_stops_the_run_before_a_checkpoint(tmp_path):
    flags = ["--learning_rate", "1e30", "--lr_warmup_steps", "0", "--checkpointing_steps", "1"]
    with pytest.raises(FloatingPointError, match="not finite at step 2.*image_l1.*learning_rate"):
        run_in_process("train_vqvae", tmp_path / "run", *flags)
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_a_picture_that_cannot_be_read_is_skipped_counted_and_reported(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    lines = ["file_name,text"]
    for index in range(8):
        Image.new("RGB", (40, 32), (index * 30, 0, 0)).save(pictures / f"{index}.png")
        lines.append(f"{index}.png,red number {index}")
    (pictures / "3.png").write_bytes(b"no picture")
    (pictures / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = ["--train_data_dir", str(pictures), "--cache_dir", str(tmp_path / "cache")]
    run = run_in_process("train_vqvae", tmp_path / "run", "--train_modalities", "image", data=data)
    records = json.loads((run / "train_summary.json").read_text())["records"]
    assert records["bad"] > 0 and [*records["bad_by_kind"]] == ["picture_unreadable"]
    assert [*records["bad_by_kind"]["picture_unreadable"]["examples"]] == [str(pictures / "3.png")]


def test_codes_of_another_tokenizer_are_refused(runs, tmp_path):
    other = run_in_process("train_vqvae", tmp_path / "other", "--seed", "1", "--max_train_steps", "1")
    codes = run_in_process("encode_codes", tmp_path / "codes", "--vqvae_model_name_or_path", str(other))
    with pytest.raises(ValueError, match="another tokenizer"):
        run_in_process("train_dit", tmp_path / "dit", *flags_of("train_dit", runs), "--codes_dir", str(codes))

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Runs of the training scripts on a tiny model, for the tests that compare them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_vqdit.training.tokenizer_check import TOKENIZER_FLOORS

SCRIPTS = Path(__file__).parents[1] / "training_scripts"

DATA = ["--dataset_name", "shapes", "--num_train_rows", "24", "--validation_fraction", "0.25"]
LOOP = ["--max_train_steps", "4", "--train_batch_size", "4", "--lr_warmup_steps", "1", "--logging_steps", "1"]
# AdamW divides a gradient by its own size: a large epsilon keeps rounding errors in gradients near zero what they are.
LOOP += ["--adam_epsilon", "1e-3", "--mixed_precision", "no", "--validation_steps", "0", "--checkpointing_steps", "2"]
VQVAE = {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "image_codebook_size": 16, "code_dim": 4}
VQVAE |= {"text_codebook_size": 24, "text_code_dim": 4, "text_width": 16, "num_text_decoder_layers": 1}
DIT = {"patch_size": 2, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 2}
# The tokenizers of the tests were hardly trained.
ANY_TOKENIZER = ["--tokenizer_floors", json.dumps(dict.fromkeys(TOKENIZER_FLOORS, 0))]

COMMANDS = {  # without the data
    "train_vqvae": [*LOOP, "--vocab_size", "400", "--model_init_kwargs", json.dumps(VQVAE)]
    + ["--quantizer_start_step", "1", "--codebook_kwargs", '{"restart_every": 2, "restart_until_step": 4}'],
    "train_dit": [*LOOP, *ANY_TOKENIZER, "--model_init_kwargs", json.dumps(DIT), "--num_inference_steps", "2"],
    "encode_codes": ANY_TOKENIZER,
    "inspect_pairs": [],
    "distill": [*LOOP, *ANY_TOKENIZER, "--distill_config", '{"num_student_steps": 2, "num_teacher_steps": 4}'],
}
FILES = {name: "train_dit" if name == "distill" else name for name in COMMANDS}
NAMES = {"train_vqvae": "vqvae", "train_dit": "transformer", "distill": "transformer"}
SECTIONS = {"train_vqvae": "vqvae", "train_dit": "dit", "distill": "dit"}


def load_script(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(FILES[script], SCRIPTS / f"{FILES[script]}.py")
    module = sys.modules[FILES[script]] = importlib.util.module_from_spec(
        spec
    )  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run_in_process(script: str, output_dir: Path, *flags: str, data: list[str] = DATA) -> Path:
    """Calls the script's `main`, and leaves accelerate as it was before. A flag given twice counts last."""
    module = load_script(script)
    try:
        module.main([*data, *COMMANDS[script], "--output_dir", str(output_dir), *flags])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return output_dir


def run_command(command: list[str], **environment: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def metrics(script: str, folder: Path) -> dict[tuple[str, int], float]:
    """What the tracker was told: (name, step) -> value; without the clock's."""
    events = EventAccumulator(str(folder / "logs" / SECTIONS[script])).Reload()
    names = [name for name in events.Tags()["scalars"] if name not in ("steps_per_second", "data_wait")]
    return {(name, event.step): event.value for name in names for event in events.Scalars(name)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {name: tensor for name, tensor in loaded.items() if "_latents_" not in name}  # measured at the end


def assert_close(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys() and expected
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(value), rtol=tolerance, atol=tolerance
        )


def assert_equal(found: dict, expected: dict) -> None:
    assert_close(found, expected, tolerance=0)


def run_in_two_processes(script: str, output_dir: Path, *flags: str, data: list[str] = DATA) -> Path:
    """The script in two processes, which compare their models at the end."""
    driver = output_dir.with_name("driver.py")
    driver.write_text(
        f"""
import sys
import torch
from hf_vqdit.training.run import TrainingRun

sys.path.insert(0, {str(SCRIPTS)!r})
import {FILES[script]} as script

sys.setswitchinterval(60)  # no thread takes Python's lock from another: an exit that waits for one of them hangs

finish = TrainingRun.finish

def compare_and_finish(run, figures):
    assert run.accelerator.num_processes == 2
    for name, tensor in run.model.state_dict().items():
        mine, other = run.accelerator.gather(tensor.nan_to_num(7.0)[None])
        assert torch.equal(mine, other), name
    finish(run, figures)

TrainingRun.finish = compare_and_finish
script.main()
"""
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(driver)]
    arguments = [*data, *COMMANDS[script], "--output_dir", str(output_dir), *flags]
    run_command([*launch, *arguments, "--train_batch_size", "2"], ACCELERATE_USE_CPU="true")
    return output_dir

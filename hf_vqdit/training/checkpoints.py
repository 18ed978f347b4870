# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint folders of a run: which there are, which to resume from, and what they say of themselves."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_FORMAT_VERSION = 1  # a change that would misread older checkpoints raises it
STATE_FILE = "checkpoint.json"
_DATA_STATE_FILE = "data_{}.pt"  # by process


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; one that is being written has another name."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def find_checkpoint(output_dir: Path, name: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names.

    Args:
        output_dir (`Path`): Folder of the run.
        name (`str`, *optional*): `"latest"`, the name of a checkpoint of this run, or a path.

    Returns:
        `Path`, or `None` to start anew: nothing was named, or `"latest"` and there is none yet.

    Raises:
        ValueError: If there is no such folder, or nothing was named and the folder of the run holds checkpoints.
    """
    checkpoints = list_checkpoints(output_dir)
    there = ", ".join(folder.name for folder in checkpoints) or "none"
    if name is None:
        if checkpoints:
            raise ValueError(
                f"{output_dir} holds checkpoints of an earlier run ({there}): go on with `--resume_from_checkpoint "
                "latest`, choose another `output_dir`, or remove them."
            )
        return None
    if name == "latest":
        return checkpoints[-1] if checkpoints else None
    for folder in (output_dir / name, Path(name)):
        if folder.is_dir():
            return folder
    raise ValueError(
        f"`resume_from_checkpoint` is {name!r}, which is no folder. Checkpoints in {output_dir}: {there}."
    )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `step`, `mixed_precision`, `arguments`.

    Args:
        checkpoint (`Path`): Its folder.

    Returns:
        `dict`

    Raises:
        ValueError: If the folder is no checkpoint, or one of another format version.
    """
    file = checkpoint / STATE_FILE
    if not file.is_file():
        raise ValueError(f"{checkpoint} is no checkpoint of a training run: it has no {STATE_FILE}.")
    state = json.loads(file.read_text(encoding="utf-8"))
    if state.get("format_version") != CHECKPOINT_FORMAT_VERSION:
        raise ValueError(
            f"{checkpoint} is of format version {state.get('format_version')!r}; this hf_vqdit reads version "
            f"{CHECKPOINT_FORMAT_VERSION}: resume with the version of hf_vqdit that wrote it, or start anew in "
            "another `output_dir`."
        )
    return state


def write_data_state(checkpoint: Path, process_index: int, state: Mapping[str, Any]) -> None:
    """Writes where one process is in its data; each has a file of its own, for [`read_data_state`]."""
    torch.save(dict(state), checkpoint / _DATA_STATE_FILE.format(process_index))


def read_data_state(checkpoint: Path, process_index: int) -> dict[str, Any]:
    """Where a process was in its data; nothing if the checkpoint knows of no such process."""
    file = checkpoint / _DATA_STATE_FILE.format(process_index)
    return torch.load(file, weights_only=True) if file.is_file() else {}


def publish(aside: Path, folder: Path, state: Mapping[str, Any], total_limit: int | None) -> None:
    """Turns a folder that was written aside into a checkpoint, and removes the oldest ones above the limit.

    Args:
        aside (`Path`): Where everything else was written.
        folder (`Path`): Where the checkpoint shall be.
        state (`Mapping[str, Any]`): What [`read_state`] will return.
        total_limit (`int`, *optional*): Checkpoints to keep, the newest.
    """
    content = {"format_version": CHECKPOINT_FORMAT_VERSION, **state}
    (aside / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if folder.exists():  # the run went back to an earlier checkpoint
        shutil.rmtree(folder)
    aside.rename(folder)
    if total_limit is not None:
        for old in list_checkpoints(folder.parent)[:-total_limit]:
            shutil.rmtree(old)

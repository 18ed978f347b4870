# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that carry their code, and the cards beside them."""

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from .registration import COMPONENT_CLASSES, FORMAT_VERSION, LIBRARY, VQDiTPipeline

CARD_TEMPLATES = ("pipeline", "vqvae")


def save_pipeline(pipeline: DiffusionPipeline, save_directory: str | Path, *, with_code: bool = True) -> None:
    """Saves a pipeline such that it loads with this package and, by the code beside the weights, without it.

    Without this package the folder loads by `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`, from
    the Hub likewise. Whoever has imported this package needs no flag and runs none of that code
    (`hf_vqdit/registration.py`).

    Args:
        pipeline (`VQDiTPipeline`):
            The pipeline to save; one that was itself loaded from remote code will do.
        save_directory (`str` or `Path`):
            The folder to write, created if it does not exist.
        with_code (`bool`, defaults to `True`):
            Whether the files that define the classes travel with the weights, byte for byte: `pipeline.py`, and
            `<component>/<module>.py` for each component of this package.

    Raises:
        TypeError: If `pipeline` is not a `VQDiTPipeline`.
    """
    if type(pipeline).__name__ != VQDiTPipeline.__name__:  # by name, since a class loaded from remote code is another
        raise TypeError(f"`pipeline` must be a {VQDiTPipeline.__name__}, got {type(pipeline).__name__}.")
    save_directory = Path(save_directory)
    pipeline.save_pretrained(save_directory)

    index_file = save_directory / VQDiTPipeline.config_name
    index = _read_json(index_file)
    index |= {"_class_name": VQDiTPipeline.__name__, "_format_version": FORMAT_VERSION}
    if with_code:
        shutil.copyfile(inspect.getfile(VQDiTPipeline), save_directory / "pipeline.py")
        index["_class_name"] = ["pipeline", VQDiTPipeline.__name__]
    for name, component in pipeline.components.items():
        class_name = type(component).__name__
        if class_name in COMPONENT_CLASSES:
            library = _copy_code(class_name, save_directory / name) if with_code else LIBRARY
            index[name] = [library, class_name]
    _write_json(index, index_file)


def write_model_card(
    save_directory: str | Path,
    *,
    template: str = "pipeline",
    repo_id: str | None = None,
    dataset: str | None = None,
    config: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    image: str | Path | None = None,
    license: str | None = None,
    call_arguments: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Writes the card of what training left in a folder, as its `README.md`.

    Args:
        save_directory (`str` or `Path`):
            The folder of the saved pipeline or model.
        template (`str`, defaults to `"pipeline"`):
            One of `"pipeline"` and `"vqvae"`: the file of that name in `model_cards/`.
        repo_id (`str`, *optional*):
            The Hub name that the loading examples show. The folder's own name by default.
        dataset (`str`, *optional*):
            What it was trained on; a Hub name (`"user/set"`) is linked in the card's metadata.
        config (`Mapping`, *optional*):
            The resolved configuration of the run.
        figures (`Mapping`, *optional*):
            Name and value of what was measured, as in `report.json`.
        image (`str` or `Path`, *optional*):
            A picture grid, copied beside the card.
        license (`str`, *optional*):
            The licence of the weights, as the Hub spells it (`"apache-2.0"`). It is for whoever trained them to name.
        call_arguments (`Mapping`, *optional*):
            What a pipeline is to be called with where its defaults do not fit, as for one distilled to few passes:
            `{"num_inference_steps": 4, "guidance_scale": 1.0}`.

    Returns:
        `ModelCard`: The card that was written.

    Raises:
        ValueError: If there is no such template.
    """
    if template not in CARD_TEMPLATES:
        raise ValueError(f"`template` must be one of {CARD_TEMPLATES}, got {template!r}.")
    save_directory = Path(save_directory)
    if image is not None:
        image = shutil.copy(image, save_directory / f"samples{Path(image).suffix}").name
    card_data = ModelCardData(
        library_name="diffusers",
        license=license,
        datasets=[dataset] if dataset and "/" in dataset and not Path(dataset).exists() else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=resources.files("hf_vqdit.model_cards").joinpath(f"{template}.md").read_text(encoding="utf-8"),
        repo_id=repo_id or save_directory.resolve().name,
        dataset=dataset,
        config=json.dumps(dict(config or {}), indent=2, default=str),
        figures={
            name: f"{value:.4g}" if isinstance(value, float) else value for name, value in (figures or {}).items()
        },
        image=image,
        call_arguments=", ".join(f"{name}={value!r}" for name, value in (call_arguments or {}).items()),
    )
    populate_model_card(card, tags=["vqdit", "diffusers-training"])
    card.save(save_directory / "README.md")
    return card


def add_evaluation(save_directory: str | Path, report: str, pictures: Mapping[str, str | Path]) -> ModelCard:
    """Puts what was measured of a pipeline into its card, in the place of an earlier evaluation if there is one.

    Args:
        save_directory (`str` or `Path`):
            The folder of the saved pipeline, with the card that [`write_model_card`] wrote.
        report (`str`):
            Markdown, as [`~hf_vqdit.evaluation.report.format_report`] gives it.
        pictures (`Mapping[str, str | Path]`):
            Picture grids by what they show; they are copied beside the card.

    Returns:
        `ModelCard`: The card that was written.

    Raises:
        FileNotFoundError: If the folder has no card.
    """
    save_directory = Path(save_directory)
    card_file = save_directory / "README.md"
    if not card_file.is_file():
        raise FileNotFoundError(
            f"{save_directory} has no README.md to put the evaluation into: write a card first (`write_model_card`)."
        )
    card = ModelCard.load(card_file)
    lines = ["## Evaluation", ""]
    for title, picture in pictures.items():
        name = Path(shutil.copy(picture, save_directory)).name
        lines += [f"![{title}]({name})", ""]
    lines += [re.sub(r"^#+ ", "### ", report, flags=re.MULTILINE).strip(), "", ""]
    before, _, rest = card.text.partition("## Evaluation\n")
    if rest:
        after = rest[rest.index("\n## ") + 1 :]
    else:
        before, heading, after = card.text.partition("## Training\n")
        after = heading + after
    card.text = before + "\n".join(lines) + after
    card.save(card_file)
    return card


def push_to_hub(
    save_directory: str | Path, repo_id: str, *, private: bool | None = None, commit_message: str | None = None
) -> str:
    """Uploads a saved pipeline or model, with its card, to the Hugging Face Hub.

    The login is the environment's (`hf auth login` or `HF_TOKEN`).

    Args:
        save_directory (`str` or `Path`):
            What [`save_pipeline`] wrote. Its training checkpoints and logs, if any, stay here.
        repo_id (`str`):
            The repository's name, `"user/name"`; created if it does not exist.
        private (`bool`, *optional*):
            Whether a repository that is created is private. By default what the account or organization has set.
        commit_message (`str`, *optional*):
            The message of the commit.

    Returns:
        `str`: The repository's address.
    """
    repo_url = create_repo(repo_id, private=private, exist_ok=True)
    upload_folder(
        repo_id=repo_url.repo_id,
        folder_path=save_directory,
        commit_message=commit_message or "Upload what training saved",
        ignore_patterns=["checkpoint-*", "logs/*"],
    )
    return repo_url


def _copy_code(class_name: str, component_directory: Path) -> str:
    """Copies the file that defines a component's class beside its weights; returns the module's name."""
    cls = COMPONENT_CLASSES[class_name]
    source = Path(inspect.getfile(cls))
    shutil.copyfile(source, component_directory / source.name)
    if issubclass(cls, ModelMixin):  # lets AutoModel.from_pretrained(component_directory, trust_remote_code=True) work
        config_file = component_directory / cls.config_name
        _write_json(_read_json(config_file) | {"auto_map": {"AutoModel": f"{source.stem}.{class_name}"}}, config_file)
    return source.stem


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The one place that touches diffusers' registries. Importing `hf_vqdit` calls [`register`] once.

diffusers finds the classes of a saved pipeline through `model_index.json`, in two forms:

| | `_class_name` | a component | the classes are in |
|---|---|---|---|
| plain | `"VQDiTPipeline"` | `["hf_vqdit", "VQDiTModel"]` | this package, which must be imported |
| with code | `["pipeline", "VQDiTPipeline"]` | `["transformer_vqdit", "VQDiTModel"]` | files in the folder |

Whoever has imported this package gets its own classes from both forms, and no code of the folder is run: the index is
turned into its plain form while it is read. Left to itself, diffusers would ask for `trust_remote_code=True`, return
classes that are not the package's, refuse a component that the caller passes, and save a folder that does not load.
"""

import os
from typing import Any

import diffusers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .models.autoencoder_vqvae import MultimodalVQVAE
from .models.transformer_vqdit import VQDiTModel
from .pipelines.pipeline_vqdit import VQDiTPipeline
from .schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

FORMAT_VERSION = 1  # of a saved pipeline; a change that older code would misread raises it

LIBRARY = "hf_vqdit"
COMPONENT_CLASSES = {cls.__name__: cls for cls in (MultimodalVQVAE, VQDiTModel, MaskedDiffusionScheduler)}


def register() -> None:
    """Makes diffusers find, save and load the classes of this package by their names."""
    base_classes = ("ModelMixin", "SchedulerMixin")
    LOADABLE_CLASSES[LIBRARY] = {name: ["save_pretrained", "from_pretrained"] for name in base_classes}
    for cls in (VQDiTPipeline, *COMPONENT_CLASSES.values()):
        setattr(diffusers, cls.__name__, cls)  # `DiffusionPipeline` and `AutoModel` look names up there
    DiffusionPipeline._dict_from_json_file = classmethod(_read_index)
    for cls in (MultimodalVQVAE, VQDiTModel):
        cls._dict_from_json_file = classmethod(_read_model_config)


def to_plain_index(index: dict[str, Any]) -> dict[str, Any]:
    """Turns a `model_index.json` of this package, in either form, into the plain one.

    Args:
        index (`dict`): The content of a `model_index.json`.

    Returns:
        `dict`: The same with every class of this package named as `["hf_vqdit", class name]`; the index of another
        pipeline unchanged.

    Raises:
        ValueError: If it is a `VQDiTPipeline` of another format version.
    """
    class_name = index.get("_class_name")
    if class_name != VQDiTPipeline.__name__ and class_name != ["pipeline", VQDiTPipeline.__name__]:
        return index
    if (format_version := index.get("_format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise ValueError(
            f"`_format_version` of the saved pipeline must be {FORMAT_VERSION} for this hf_vqdit, got "
            f"{format_version!r}: install the version of hf_vqdit that wrote it or, in a process that does not import "
            "hf_vqdit, load the folder with the code that it carries by `trust_remote_code=True`."
        )
    plain_index = {**index, "_class_name": VQDiTPipeline.__name__}
    for name, entry in index.items():
        if isinstance(entry, list) and entry[1] in COMPONENT_CLASSES:
            plain_index[name] = [LIBRARY, entry[1]]
    return plain_index


# These two override `ConfigMixin._dict_from_json_file`, the one function through which diffusers reads an index or a
# config, from a folder and from the Hub alike.


def _read_index(cls: type[DiffusionPipeline], json_file: str | os.PathLike) -> dict[str, Any]:
    return to_plain_index(ConfigMixin._dict_from_json_file(json_file))


def _read_model_config(cls: type[ModelMixin], json_file: str | os.PathLike) -> dict[str, Any]:
    config = ConfigMixin._dict_from_json_file(json_file)
    config.pop("auto_map", None)  # is for those who load without the package, and diffusers warns about it
    return config

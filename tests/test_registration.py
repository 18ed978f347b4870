# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import inspect
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline

import hf_vqdit

CLASSES = (
    hf_vqdit.MultimodalVQVAE,
    hf_vqdit.VQDiTModel,
    hf_vqdit.MaskedDiffusionScheduler,
    hf_vqdit.VQDiTPipeline,
)


def read_index(folder):
    return json.loads((Path(folder) / "model_index.json").read_text())


def change_index(folder, **entries):
    (Path(folder) / "model_index.json").write_text(json.dumps(read_index(folder) | entries))


def test_every_class_is_found_under_its_name_and_in_its_file():
    for cls in CLASSES:
        assert getattr(diffusers, cls.__name__) is cls
        assert Path(inspect.getfile(cls)).is_relative_to(Path(hf_vqdit.__file__).parent)


def test_save_pretrained_names_the_package_and_not_its_modules(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    index = read_index(tmp_path)
    assert index["_class_name"] == "VQDiTPipeline"
    assert index["vqvae"] == ["hf_vqdit", "MultimodalVQVAE"]
    assert index["transformer"] == ["hf_vqdit", "VQDiTModel"]
    assert index["scheduler"] == index["text_scheduler"] == ["hf_vqdit", "MaskedDiffusionScheduler"]
    assert index["tokenizer"][0] == "transformers"
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("with_code", [False, True])
@pytest.mark.parametrize("pipeline_class", [DiffusionPipeline, hf_vqdit.VQDiTPipeline])
def test_a_saved_folder_loads_as_the_packages_own_classes(pipeline_class, with_code, tiny_pipeline, tmp_path):
    hf_vqdit.save_pipeline(tiny_pipeline, tmp_path, with_code=with_code)
    loaded = pipeline_class.from_pretrained(tmp_path)
    assert type(loaded) is hf_vqdit.VQDiTPipeline
    for name, component in tiny_pipeline.components.items():
        assert type(getattr(loaded, name)) is type(component)


def test_the_packages_classes_come_before_the_code_of_the_folder_even_where_that_is_trusted(saved_pipeline):
    assert type(DiffusionPipeline.from_pretrained(saved_pipeline, trust_remote_code=True)) is hf_vqdit.VQDiTPipeline


def test_a_folder_with_code_accepts_a_component_that_the_caller_passes(saved_pipeline):
    scheduler = hf_vqdit.MaskedDiffusionScheduler()
    loaded = DiffusionPipeline.from_pretrained(saved_pipeline, scheduler=scheduler)
    assert loaded.scheduler is scheduler


def test_a_loaded_pipeline_saves_a_folder_that_loads(saved_pipeline, tmp_path):
    loaded = DiffusionPipeline.from_pretrained(saved_pipeline)
    loaded.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is hf_vqdit.VQDiTPipeline
    for name in ("vqvae", "transformer"):
        first, second = getattr(loaded, name).state_dict(), getattr(again, name).state_dict()
        torch.testing.assert_close(
            first, second, rtol=0, atol=0, equal_nan=True
        )  # statistics not yet measured are NaN


def test_auto_model_finds_a_component_of_a_plain_folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(str(tmp_path), subfolder="transformer")) is hf_vqdit.VQDiTModel
    assert type(AutoModel.from_pretrained(str(tmp_path / "vqvae"))) is hf_vqdit.MultimodalVQVAE


def test_a_component_loads_alone_from_a_folder_with_code_without_a_warning(saved_pipeline, caplog):
    diffusers.utils.logging.enable_propagation()
    hf_vqdit.VQDiTModel.from_pretrained(saved_pipeline, subfolder="transformer")
    diffusers.utils.logging.disable_propagation()
    assert not [record for record in caplog.records if "auto_map" in record.getMessage()]


def test_another_format_version_is_refused(saved_pipeline, tmp_path):
    folder = shutil.copytree(saved_pipeline, tmp_path / "pipeline")
    change_index(folder, _format_version=999)
    for pipeline_class in (DiffusionPipeline, hf_vqdit.VQDiTPipeline):
        with pytest.raises(ValueError, match="`_format_version` of the saved pipeline must be 1.*got 999"):
            pipeline_class.from_pretrained(folder)


def test_the_index_of_another_pipeline_is_left_alone():
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "_format_version": 999,
    }
    assert hf_vqdit.registration.to_plain_index(index) is index

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The gain of the read-out by transitions: the same codes are read both ways."""

import torch
import yaml
from datasets import Dataset

from benchmarks import read_out
from hf_vqdit.evaluation.sampling import HeldOutPairs, sample


def describe(pipeline, pictures: torch.Tensor, seed: int) -> list[str]:
    return sample(pipeline, len(pictures), seed, pixel_values=pictures, num_text_inference_steps=2).texts


def test_both_read_outs_are_of_the_same_codes_and_transitions_stay_as_they_were(tiny_pipeline):
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = describe(tiny_pipeline, pictures, seed=3)
    pairs = Dataset.from_list([{"image": None, "caption": [text]} for text in ("a red circle", "a blue square")])
    tiny_pipeline.vqvae = read_out.with_transitions(tiny_pipeline, pairs, resolution=32)
    assert read_out.with_transitions(tiny_pipeline, pairs, resolution=32) is tiny_pipeline.vqvae
    target = tiny_pipeline.vqvae.text_transitions.target
    torch.nn.init.normal_(target, std=9.0)
    before, read = target.clone(), describe(tiny_pipeline, pictures, seed=3)
    alike = sum(one == other for one, other in zip(plain, read, strict=True)) / 4
    assert alike < 1
    for texts, shares in ((plain, (1, alike)), (read, (alike, 1))):
        held_out = HeldOutPairs(pictures, torch.zeros(4, 16), texts, [[text] for text in texts])
        assert read_out.compare(tiny_pipeline, held_out, seed=3, num_steps=2) == shares
    assert torch.equal(target, before)


def test_a_table_of_all_passes_is_written(saved_pipeline, tmp_path, capsys):
    common = {"dataset_name": "shapes", "num_train_rows": 24, "validation_fraction": 0.25}
    settings = {"format_version": 1, "common": common, "vqvae": {"output_dir": "none"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    flags = ["--pipeline", str(saved_pipeline), "--config", str(tmp_path / "tiny.yaml"), "--seeds", "0", "1"]
    read_out.main(
        [*flags, "--num_inference_steps", "1", "2", "--num_samples", "4", "--table", str(tmp_path / "table.md")]
    )
    table = (tmp_path / "table.md").read_text()
    assert "| 1 | 0.0 (0.0 to 0.0) | 0.0 (0.0 to 0.0) |\n| 2 |" in table and table in capsys.readouterr().out

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Go or no-go: a tokenizer that loses too much is refused before a transformer is trained on its codes."""

import logging

import pytest
import torch
from script_runs import run_in_process

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import PairDataset, PairReader, load_caption_tokenizer, load_pairs
from hf_vqdit.training.tokenizer_check import TOKENIZER_FLOORS, check_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_in_process("train_vqvae", tmp_path_factory.mktemp("tokenizer") / "vqvae")


@pytest.fixture(scope="module")
def vqvae(folder):
    return MultimodalVQVAE.from_pretrained(folder, subfolder="vqvae").eval()


@pytest.fixture(scope="module")
def held_out(folder):
    pairs = load_pairs("shapes", num_train_rows=40, validation_fraction=0.5)["validation"]
    return PairDataset(pairs, PairReader(load_caption_tokenizer(folder, subfolder="tokenizer"), resolution=32))


def test_what_a_tokenizer_fails_in_is_told_with_its_remedy(vqvae, held_out):
    with pytest.raises(ValueError, match=r"image_psnr_db.* is \d.* where 16 .*smaller f.*`tokenizer_floors`"):
        check_tokenizer(vqvae, held_out)
    with pytest.raises(ValueError, match="text_reconstruction_exact.*text_downsample_factor") as error:
        check_tokenizer(vqvae, held_out, TOKENIZER_FLOORS | {"image_psnr_db": 0})
    assert "`image_psnr_db`" not in str(error.value)


def test_a_tokenizer_is_a_go_if_no_figure_is_below_its_floor(vqvae, held_out, caplog):
    caplog.set_level(logging.INFO)
    figures = check_tokenizer(vqvae, held_out, dict.fromkeys(TOKENIZER_FLOORS, 0))
    assert check_tokenizer(vqvae, held_out, {name: figures[name] for name in TOKENIZER_FLOORS}) == figures
    assert "is a go" in caplog.text and "image_psnr_db" in caplog.text
    just_above = torch.nextafter(torch.tensor(figures["image_psnr_db"]), torch.tensor(1e9)).item()
    with pytest.raises(ValueError, match="No go"):
        check_tokenizer(vqvae, held_out, {"image_psnr_db": just_above})


@pytest.mark.parametrize("script", ["train_dit", "encode_codes"])
def test_the_scripts_stop_before_any_work(script, folder, tmp_path):
    flags = ["--vqvae_model_name_or_path", str(folder), "--tokenizer_floors", '{"image_psnr_db": 60}']
    with pytest.raises(ValueError, match="No go"):
        run_in_process(script, tmp_path / "output", *flags)
    assert not [*tmp_path.glob("output/checkpoint-*"), *tmp_path.glob("output/train")]

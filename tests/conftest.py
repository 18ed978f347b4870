# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What tests of several parts share: one thread for each process, no network, and a tiny pipeline."""

import os

# Before torch is imported: pytest runs two processes, and tiny models lose time to more threads than that.
os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false"
)

import pytest  # noqa: E402
import torch  # noqa: E402

import hf_vqdit  # noqa: E402
from hf_vqdit.data.captions import train_caption_tokenizer  # noqa: E402
from hf_vqdit.data.shapes import all_scenes, describe  # noqa: E402

torch.set_num_threads(1)


def make_tiny_pipeline(seed: int = 0) -> hf_vqdit.VQDiTPipeline:
    """An untrained pipeline that draws noise, but none of whose parts is zero: 32 pixels are 8 x 8 codes, S = 16."""
    captions = [describe(scene, index % 4) for index, scene in enumerate(all_scenes(1))]
    tokenizer = train_caption_tokenizer(captions, vocab_size=512, model_max_length=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vqvae = hf_vqdit.MultimodalVQVAE(
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            image_codebook_size=32,
            code_dim=4,
            vocab_size=len(tokenizer),
            text_codebook_size=48,
            text_code_dim=4,
            text_width=16,
            num_text_decoder_layers=1,
        )
        transformer = hf_vqdit.VQDiTModel(
            image_codebook_size=32,
            text_codebook_size=48,
            sample_size=8,
            text_length=16,
            patch_size=2,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
        )
        for parameter in transformer.parameters():  # a new transformer's head is zero, and all logits would be equal
            torch.nn.init.normal_(parameter, std=0.1)
    scheduler = hf_vqdit.MaskedDiffusionScheduler()
    return hf_vqdit.VQDiTPipeline(vqvae.eval(), transformer.eval(), tokenizer, scheduler)


@pytest.fixture
def tiny_pipeline() -> hf_vqdit.VQDiTPipeline:
    """A new tiny pipeline for each test, which may change it."""
    pipeline = make_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory) -> str:
    """The folder of the tiny pipeline, saved with the code that it needs. Read it only."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    hf_vqdit.save_pipeline(make_tiny_pipeline(), folder)
    return str(folder)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Tiny untrained models of transformers, saved with their image processors as those on the Hub are."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 32, "patch_size": 8}


def save_vision_model(folder: Path, kind: str = "dinov2") -> Path:
    """Of `"dinov2"`, `"resnet"`, `"vit"`, and `"vit_without_pooler"`, as the checkpoints of DINO are."""
    makers = {
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, **PATCHES)),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "vit": lambda: ViTModel(ViTConfig(**SIZES, **PATCHES)),
        "vit_without_pooler": lambda: ViTModel(ViTConfig(**SIZES, **PATCHES), add_pooling_layer=False),
    }
    return _save(makers[kind], folder)


def save_clip(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A CLIP of 16 dimensions that reads 12 tokens, for the words of a tokenizer."""
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=SIZES | text, vision_config=SIZES | PATCHES, projection_dim=16)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    end = (tokenizer.eos_token, tokenizer.eos_token_id)  # whose place holds what CLIP has read
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.save_pretrained(folder)
    return _save(lambda: CLIPModel(config), folder)


def _save(make: Callable[[], PreTrainedModel], folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder

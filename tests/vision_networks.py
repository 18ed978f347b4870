# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Tiny networks with weights of their own, as a user would name them for the perceptual loss."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    ConvNextImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
)

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def save_network(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    if kind == "convolutions":
        network = ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        )
    elif kind == "tokens":
        config = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
        network = Dinov2Model(Dinov2Config(**config, image_size=28, patch_size=14))
    else:
        config = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        network = BertModel(BertConfig(**config, intermediate_size=8))
    network.save_pretrained(folder)
    ConvNextImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return str(folder)

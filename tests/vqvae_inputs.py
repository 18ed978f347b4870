# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A tiny tokenizer, and pictures and captions for it, for the tests of its parts."""

import torch

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

PAD, EOS, MASK = 0, 1, 2


def tiny_vqvae(**overrides) -> MultimodalVQVAE:
    config = {
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "image_codebook_size": 32,
        "code_dim": 4,
        "vocab_size": 40,
        "text_codebook_size": 48,
        "text_code_dim": 6,
        "text_width": 16,
        "num_text_decoder_layers": 1,
    }
    torch.manual_seed(0)
    return MultimodalVQVAE(**(config | overrides)).eval()


def captions(batch_size: int, num_tokens: int, lengths: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 40, (batch_size, num_tokens), generator=generator)
    for row, length in zip(text, lengths, strict=True):
        row[length - 1] = EOS
        row[length:] = PAD
    return text


def pictures(batch_size: int, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(batch_size, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1

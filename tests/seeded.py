# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What tests draw with, and models away from the zeros of their start."""

import torch


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def generator(seed=0):
    return generators(seed)[0]


def wake(model):
    """Weights away from the zeros of the start, so that every path matters."""
    draw = generator(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model

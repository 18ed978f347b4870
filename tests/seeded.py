# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What tests draw with."""

import torch


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def generator(seed=0):
    return generators(seed)[0]

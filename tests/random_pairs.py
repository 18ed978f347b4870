# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A joint distribution that is small enough to be exact about, for the tests of the bounds."""

import torch
from seeded import generator
from torch import nn


class RandomPairs(nn.Module):
    """A random table over pairs of 2 image and 2 text codes of 3 classes; its posteriors are for subclasses."""

    def __init__(self):
        super().__init__()
        self.table = torch.randn(3, 3, 3, 3, generator=generator(), dtype=torch.float64).flatten().softmax(0)
        self.pairs = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4), in the order of the table

    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All 81 pairs."""
        return self.pairs[:, :2].reshape(-1, 1, 2), self.pairs[:, 2:].reshape(-1, 2, 1)

    def exact_bits(self, which: str) -> torch.Tensor:
        """-log2 of the true probability, for each of the 81 pairs."""
        table = self.table.view(9, 9)  # x, y
        p = {
            "x": table.sum(1, keepdim=True).expand(9, 9),
            "y": table.sum(0, keepdim=True).expand(9, 9),
            "x|y": table / table.sum(0, keepdim=True),
            "y|x": table / table.sum(1, keepdim=True),
            "x,y": table,
        }
        return -p[which].log2().flatten()

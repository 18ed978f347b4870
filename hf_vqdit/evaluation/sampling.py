# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Held-out pairs in memory, and a pipeline called on many of them, batch by batch, from one seed."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_vqdit.data import PairDataset, choose_caption, collate_pairs
from hf_vqdit.data.shapes import Scene, scene_from_facts


@dataclass(frozen=True)
class HeldOutPairs:
    """Pairs that training never saw, whole in memory.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1].
        input_ids (`torch.LongTensor` of shape `(N, S)`): One caption of each as token ids.
        captions (`list[str]`): The same captions.
        references (`list[list[str]]`): All captions of each picture.
        scenes (`list[Scene]`, *optional*): The facts, for shapes.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    captions: list[str]
    references: list[list[str]]
    scenes: list[Scene] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, num_pairs: int) -> "HeldOutPairs":
        """The first pairs, all if there are fewer."""
        return replace(self, **{name: value and value[:num_pairs] for name, value in vars(self).items()})

    def batches(self, batch_size: int) -> list[dict[str, torch.Tensor]]:
        """Batches as of [`~hf_vqdit.data.collate_pairs`]."""
        everything = torch.ones(len(self), dtype=torch.bool)
        columns = {
            "pixel_values": self.pixel_values,
            "input_ids": self.input_ids,
            "has_image": everything,
            "has_text": everything,
        }
        starts = range(0, len(self), batch_size)
        return [{name: value[start : start + batch_size] for name, value in columns.items()} for start in starts]

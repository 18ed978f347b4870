# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the objectives share: which parts of a training row are conditions, how padding counts, what is logged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NUM_TIME_BINS = 4


@dataclass(frozen=True)
class PairLoss:
    """
    What an objective over image-text pairs returns, of whichever process.

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The mean over the rows, to go backward from.
        image_loss_rows (`torch.FloatTensor` of shape `(B,)`):
            Each row's image loss, without gradient.
        text_loss_rows (`torch.FloatTensor` of shape `(B,)`):
            Each row's text loss, before `text_loss_weight` and without gradient.
        sums (`dict[str, torch.FloatTensor]`):
            Tensors `(2,)`, without any weight: what is logged, summed over the codes that carry a loss, and the number
            of those codes, so that both can be summed over micro-batches and processes before dividing. Of masked
            codes it is the cross-entropy (or what the objective puts in its place) in nats, `"image_nats"` and
            `"text_nats"`; of noisy vectors the mean square over channels of the error of what is predicted,
            `"image_error"` and `"text_error"`. Each over all rows, and over the rows of one part of time:
            `"image_nats/time_0.00_0.25"` and so on.
    """

    loss: torch.FloatTensor
    image_loss_rows: torch.FloatTensor
    text_loss_rows: torch.FloatTensor
    sums: dict[str, torch.FloatTensor]


def is_trained(time: torch.FloatTensor) -> torch.BoolTensor:
    """Whether a modality carries a loss: parked at exactly 0 or 1 it is a condition."""
    return (time > 0) & (time < 1)


def park_missing(
    image_time: torch.FloatTensor,
    text_time: torch.FloatTensor,
    has_image: torch.BoolTensor | None = None,
    has_text: torch.BoolTensor | None = None,
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """
    Times `(B,)` of image and text where some rows lack one of them.

    A missing modality goes to time 1; where it was the one to be trained, the other one takes over its time.
    """
    has_image = torch.ones_like(image_time, dtype=torch.bool) if has_image is None else has_image.to(image_time.device)
    has_text = torch.ones_like(text_time, dtype=torch.bool) if has_text is None else has_text.to(text_time.device)
    parked_image = torch.where(~has_text & ~is_trained(image_time), text_time, image_time)
    parked_text = torch.where(~has_image & ~is_trained(text_time), image_time, text_time)
    return torch.where(has_image, parked_image, 1.0), torch.where(has_text, parked_text, 1.0)


def given_regions(
    shape: tuple[int, int], trained: torch.BoolTensor, fraction: float, generators: Sequence[torch.Generator]
) -> torch.BoolTensor:
    """
    The situation of inpainting, `(B, *shape)`: in a `fraction` of the rows a random box (half of them: all but it) is
    True, which means given. Nothing is in rows that are not `trained`.
    """
    if fraction == 0:
        return torch.zeros(len(generators), *shape, dtype=torch.bool, device=trained.device)
    given = torch.zeros(len(generators), *shape, dtype=torch.bool)
    for row, generator in zip(given, generators, strict=True):
        chance, flip, u_rows, u_columns, u_top, u_left = torch.rand(6, generator=generator).tolist()
        if chance < fraction:
            num_rows, num_columns = 1 + int(u_rows * shape[0]), 1 + int(u_columns * shape[1])
            top, left = int(u_top * (shape[0] - num_rows + 1)), int(u_left * (shape[1] - num_columns + 1))
            row[top : top + num_rows, left : left + num_columns] = True
            row ^= flip < 0.5
    return given.to(trained.device) & trained[:, None, None]


def pad_weight(text_codes: torch.LongTensor, text_pad_id: int, pad_loss_weight: float) -> torch.FloatTensor:
    """`pad_loss_weight` at text positions that are PAD after the first one, 1 elsewhere; `(B, S/r, 1)`."""
    is_pad = text_codes[:, :, :1] == text_pad_id  # all groups of a position are PAD, or none is
    is_later_pad = is_pad & (is_pad.cumsum(dim=1) > 1)
    return torch.where(is_later_pad, pad_loss_weight, 1.0)


def sums_by_time(
    name: str, values: torch.Tensor, counted: torch.BoolTensor, time: torch.FloatTensor
) -> dict[str, torch.FloatTensor]:
    """
    What is logged of a loss: tensors `(2,)` of a sum and the number of codes that it is over.

    Under `name` over all rows, under `"name/time_0.00_0.25"` and so on over the rows of one part of time. `values`
    `(B, ...)` are 0 where they are not `counted`.
    """
    rows = torch.stack([values.flatten(1).sum(dim=1), counted.flatten(1).sum(dim=1).float()], dim=1)  # (B, 2)
    bins = (time * NUM_TIME_BINS).long().clamp(max=NUM_TIME_BINS - 1)  # (B,)
    sums = rows.new_zeros(NUM_TIME_BINS, 2).index_add(0, bins, rows)
    edges = [index / NUM_TIME_BINS for index in range(NUM_TIME_BINS + 1)]
    names = [f"{name}/time_{low:.2f}_{high:.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    return {name: sums.sum(dim=0)} | dict(zip(names, sums, strict=True))

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Which pair of times each training row gets, and where its randomness comes from.

One network serves every direction because training draws the pair (image time, text time) where sampling will be
(UniDiffuser, Bao 2023): on the edges of the unit square, where one modality is a clean condition (time 0) or not there
at all (time 1); on the diagonal, which is the path of the joint sampler; and a little on the inside.
"""

import hashlib
from dataclasses import astuple, dataclass, fields

import torch


def row_generator(seed: int, step: int, row: int) -> torch.Generator:
    """
    The generator from which one training row draws all its randomness.

    It depends on nothing else, so a resume, gradient accumulation and the number of processes change nothing.

    Args:
        seed (`int`):
            Seed of the run.
        step (`int`):
            Optimizer step.
        row (`int`):
            Index of the row in the global batch.

    Returns:
        `torch.Generator` on the CPU.
    """
    # A hash and not `seed + step + row`: sums meet again in the next step, one row further.
    key = hashlib.blake2b(f"{seed} {step} {row}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of what a whole optimizer step shares, such as its [`TimeTable`]; no row's generator equals it."""
    return row_generator(seed, step, row=-1)


@dataclass(frozen=True)
class TimeMixture:
    """
    How often each kind of task is trained: weights, of which only the proportions matter.

    Args:
        text_to_image (`float`, defaults to 0.4):
            p(image | text): the text is given.
        image (`float`, defaults to 0.1):
            p(image): no text; also what guides text-to-image.
        image_to_text (`float`, defaults to 0.2):
            p(text | image): the image is given.
        text (`float`, defaults to 0.05):
            p(text): no image; also what guides image-to-text.
        joint (`float`, defaults to 0.15):
            p(image, text) along the diagonal: both at the same time.
        square (`float`, defaults to 0.1):
            p(image, text) with two independent times: editing, words filled in for half a picture.

    Raises:
        `ValueError`: a weight is negative, or all are zero.
    """

    text_to_image: float = 0.4
    image: float = 0.1
    image_to_text: float = 0.2
    text: float = 0.05
    joint: float = 0.15
    square: float = 0.1

    def __post_init__(self):
        if min(astuple(self)) < 0 or sum(astuple(self)) == 0:
            raise ValueError(f"The weights of a `TimeMixture` must be at least 0, and one above 0, but are {self}.")


@dataclass(frozen=True)
class TimeTable:
    """
    The times of a batch's rows, between 0 (clean) and 1 (nothing known).

    A time of exactly 0 or 1 parks a modality: it is a condition, given or missing, and carries no loss.

    Args:
        kind (`torch.LongTensor` of shape `(N,)`):
            Index of the row's task among the fields of [`TimeMixture`].
        image_time (`torch.FloatTensor` of shape `(N,)`):
            Time of the image.
        text_time (`torch.FloatTensor` of shape `(N,)`):
            Time of the text.
    """

    kind: torch.LongTensor
    image_time: torch.FloatTensor
    text_time: torch.FloatTensor

    def select(self, rows: torch.LongTensor) -> "TimeTable":
        """The part of the table that belongs to these rows of the global batch."""
        rows = rows.to(self.kind.device)
        return TimeTable(self.kind[rows], self.image_time[rows], self.text_time[rows])


def draw_times(num_rows: int, mixture: TimeMixture, generator: torch.Generator) -> TimeTable:
    """
    Draw the times of a whole global batch; every process draws the same table and takes its own rows from it.

    The number of rows of each kind differs from its expectation by less than one, and the expectation is exact. Within
    a kind with n rows each of the n equal parts of [0, 1] holds one time of each free modality.

    Args:
        num_rows (`int`):
            Rows N of the global batch.
        mixture (`TimeMixture`):
            How often each kind of task comes.
        generator (`torch.Generator`):
            See [`step_generator`].

    Returns:
        [`TimeTable`] with N rows.
    """
    # Kinds: N equally spaced points on the axis of cumulated weights, their offset and their order random
    edges = torch.tensor(astuple(mixture), dtype=torch.float64).cumsum(0)
    points = (torch.arange(num_rows) + _uniform(1, generator)) / num_rows * edges[-1]
    kind = torch.searchsorted(edges, points, right=True)[torch.randperm(num_rows, generator=generator)]  # (N,)

    image_time, text_time = torch.empty(2, num_rows)
    counts = kind.bincount(minlength=len(fields(TimeMixture))).tolist()
    for index, (field, num) in enumerate(zip(fields(TimeMixture), counts, strict=True)):
        rows, u, v = kind == index, _stratified(num, generator), _stratified(num, generator)
        given, missing = torch.zeros_like(u), torch.ones_like(u)
        image_time[rows], text_time[rows] = {
            "text_to_image": (u, given),
            "image": (u, missing),
            "image_to_text": (given, v),
            "text": (missing, v),
            "joint": (u, u),
            "square": (u, v),
        }[field.name]
    return TimeTable(kind, image_time, text_time)


def _uniform(num: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(num, generator=generator, dtype=torch.float64)


def _stratified(num: int, generator: torch.Generator) -> torch.Tensor:
    """One time in each of `num` equal parts of [0, 1], in random order; never exactly 0 or 1, which would park it."""
    strata = torch.randperm(num, generator=generator)
    times = ((strata + _uniform(num, generator)) / num).float()
    return times.clamp(2**-24, 1 - 2**-24)

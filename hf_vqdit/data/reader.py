# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""From the record of a pair to what tokenizer and transformer train on.

Everything random here is a pure function of (seed, epoch, index of the record), so that nothing has to be saved.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .augmentation import names_sides
from .captions import encode_captions
from .pictures import has_picture, open_picture, to_square
from .records import RECORD_KINDS, TOLERATED_KINDS, BadRecord, BadRecordError


class RowKey(NamedTuple):
    """Which record is read and for what: pass `epoch`, `index` in the data set, `row` of the global batch."""

    epoch: int
    index: int
    row: int = 0


class Pair(NamedTuple):
    """A record that was read: `picture` (H, W, 3) uint8 or `None`, `captions`, and one flaw of these at most."""

    picture: np.ndarray | None
    captions: list[str]
    flaws: list[BadRecord]


class PairReader:
    """Decodes records into what tokenizer and transformer train on.

    Pictures are turned upright (EXIF), pasted on white where they are transparent, cropped to a square and resized.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Its `model_max_length` is the text context S.
        resolution (`int`): Side of the pictures in pixels.
        center_crop (`bool`, defaults to `True`): Whether the square is cut from the middle; else from the upper left.
        random_flip (`bool`, defaults to `False`): Whether half of the pictures, drawn anew each epoch, are mirrored,
            but for those whose captions speak of left and right.
        random_shift (`float`, defaults to 0.0): Up to which part of the side pictures are moved, across and down, by
            what is drawn anew each epoch. What they uncover repeats their edge.
        seed (`int`, defaults to 0): Seed of flips, of shifts and of which caption is drawn.

    Raises:
        ValueError: If `resolution` is below 1, or `random_shift` not in [0, 1) or less than a pixel.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        resolution: int,
        center_crop: bool = True,
        random_flip: bool = False,
        random_shift: float = 0.0,
        seed: int = 0,
    ):
        if resolution < 1:
            raise ValueError(f"`resolution` must be at least 1 pixel, got {resolution}.")
        if not 0 <= random_shift < 1:
            raise ValueError(f"`random_shift` must be a part of the side, in [0, 1), got {random_shift}.")
        max_shift = round(random_shift * resolution)
        if random_shift > 0 and max_shift == 0:
            raise ValueError(
                f"`random_shift` {random_shift} of {resolution} pixels is less than one: give {1 / resolution:.2g} or "
                "more, or 0 to leave pictures where they are."
            )
        self.tokenizer = tokenizer
        self.resolution = resolution
        self.center_crop = center_crop
        self.random_flip = random_flip
        self.max_shift = max_shift
        self.seed = seed

    def read(self, record: dict[str, Any], index: int) -> Pair | BadRecord:
        """Decodes a record.

        Args:
            record (`dict`): A row of [`load_pairs`]; `key` and `flaws` may be left out.
            index (`int`): Its place, by which it is called if nothing else names it.

        Returns:
            [`Pair`], or a [`BadRecord`] that says why it has to be left out.
        """
        image, captions = record["image"], record["caption"]
        key = name_record(record, index)
        flaws = _as_one(key, record.get("flaws") or [])
        if flaws and flaws[0].kind in RECORD_KINDS:
            return flaws[0]
        if not has_picture(image):
            if captions:
                return Pair(None, captions, flaws)
            return BadRecord(key, "record_empty", "; ".join(["no picture", *(record.get("flaws") or ["no caption"])]))
        try:
            picture = to_square(open_picture(image), self.resolution, self.center_crop)
        except BadRecordError as error:
            return BadRecord(key, error.kind, str(error))
        return Pair(picture, captions, flaws)

    def to_items(self, pairs: list[Pair], keys: list[RowKey]) -> list[dict[str, Any]]:
        """Draws flips, shifts and captions, and encodes the captions together.

        Args:
            pairs (`list[Pair]`): At least one pair.
            keys (`list[RowKey]`): What each is read for.

        Returns:
            `list[dict]`: For each `pixel_values` (3, H, W) in [-1, 1], 0 all over where the picture is missing;
                `input_ids` (S,), `has_image`, `has_text`, `truncated` (the caption lost its end) and `row`.
        """
        pictures = np.stack([self._augment(pair, key) for pair, key in zip(pairs, keys, strict=True)])
        pixel_values = torch.from_numpy(pictures).movedim(-1, 1).contiguous() / 127.5 - 1  # (B, 3, H, W)
        captions = [self._choose(pair.captions, key) for pair, key in zip(pairs, keys, strict=True)]
        input_ids, truncated = encode_captions(self.tokenizer, captions, return_truncated=True)
        return [
            {
                # A missing picture is 0 all over, the middle of the range.
                "pixel_values": torch.zeros_like(pixel_values[i]) if pair.picture is None else pixel_values[i],
                "input_ids": input_ids[i],
                "has_image": pair.picture is not None,
                "has_text": bool(pair.captions),
                "truncated": bool(truncated[i]),
                "row": keys[i].row,
            }
            for i, pair in enumerate(pairs)
        ]

    @property
    def augments(self) -> bool:
        """Whether a picture may differ from epoch to epoch."""
        return self.random_flip or self.max_shift > 0

    def _augment(self, pair: Pair, key: RowKey) -> np.ndarray:
        if pair.picture is None:
            return np.zeros((self.resolution, self.resolution, 3), dtype=np.uint8)
        picture = pair.picture
        if self.random_flip and keyed_bits("flip", self.seed, key.epoch, key.index) % 2:
            picture = picture if names_sides(pair.captions) else picture[:, ::-1]
        for axis in range(2 if self.max_shift else 0):
            bits = keyed_bits("shift", self.seed, key.epoch, key.index, axis)
            shift = bits % (2 * self.max_shift + 1) - self.max_shift
            pixels = np.arange(self.resolution) - shift
            picture = picture.take(pixels.clip(0, self.resolution - 1), axis=axis)
        return picture

    def _choose(self, captions: list[str], key: RowKey) -> str:
        # By the index that was asked for, also where another pair stands in: `CodesDataset` knows no other.
        return captions[choose_caption(self.seed, key.epoch, key.index, len(captions))] if captions else ""


def name_record(record: dict[str, Any], index: int) -> str:
    """What messages call a record: the file of its picture, or else its key in the source or its place."""
    image = record["image"] or {}
    path, key = image.get("path"), record.get("key") or f"row {index}"
    if not path:
        return key
    # Beside bytes a path is a mere name, and many rows may have the same.
    return path if image.get("bytes") is None else f"{key} ({path})"


def _as_one(key: str, flaws: list[str]) -> list[BadRecord]:
    """What was wrong with the captions of a record: nothing, or all under the first kind that is not tolerated."""
    flaws = sorted(flaws, key=lambda flaw: flaw.split(": ", 1)[0] in TOLERATED_KINDS)
    return [BadRecord(key, *"; ".join(flaws).split(": ", 1))] if flaws else []


def choose_caption(seed: int, epoch: int, index: int, num_captions: int) -> int:
    """Which of the captions of record `index` an epoch reads, in `0..num_captions - 1`; each is equally likely."""
    return keyed_bits("caption", seed, epoch, index) % num_captions


def keyed_bits(purpose: str, *key: int) -> int:
    """64 well mixed bits that depend on the key alone, as a counter-based generator would give."""
    return int.from_bytes(hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=8).digest())

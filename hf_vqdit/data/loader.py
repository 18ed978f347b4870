# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""From pairs to batches: decoding, the order of rows, and codes that were encoded once.

Everything random here is a pure function of (seed, epoch, row of the data set), and the order of rows one of (seed,
optimizer step, row of the global batch). So nothing has to be saved to resume, and accumulation or more processes
change nothing:

    DataLoader(PairDataset(...), batch_sampler=ResumableBatchSampler(...), collate_fn=collate_pairs)

The sampler already gives each process its own rows; the loader is not to be sharded again (`accelerator.prepare`).
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Image, load_from_disk
from PIL import Image as PILImage
from PIL import ImageOps
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from .augmentation import names_sides
from .captions import encode_captions

CODES_FORMAT_VERSION = 1
CODES_METADATA_FILE = "codes.json"
_DECODER = Image(decode=True)
_KEPT_BYTES = 2**28  # decoded pictures of small sets stay in memory: decoding takes most of the time of a read


class RowKey(NamedTuple):
    """Which row to read and for what: pass `epoch`, row `index` of the data set, as `row` of the global batch."""

    epoch: int
    index: int
    row: int = 0


class PairDataset(torch.utils.data.Dataset):
    """Decodes pairs into what tokenizer and transformer train on.

    Pictures are turned upright (EXIF), pasted on white where they are transparent, cropped to a square and resized. A
    picture that cannot be read does not stop the run: the next good pair takes its place, and the item tells what was
    skipped. Up to 256 MiB of decoded pictures stay in memory, so that a small set is decoded once.

    Args:
        pairs (`datasets.Dataset`): A split of [`load_pairs`].
        tokenizer (`PreTrainedTokenizerBase`): Its `model_max_length` is the text context S.
        resolution (`int`): Side of the pictures in pixels.
        center_crop (`bool`, defaults to `True`): Whether the square is cut from the middle; else from the upper left.
        random_flip (`bool`, defaults to `False`): Whether half of the pictures, drawn anew each epoch, are mirrored,
            but for those whose captions speak of left and right.
        seed (`int`, defaults to 0): Seed of the flips and of which caption is drawn.

    Raises:
        ValueError: If `resolution` is below 1 or `pairs` is empty; while reading, if no pair of the whole set can be
            read.
    """

    def __init__(
        self,
        pairs: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        resolution: int,
        center_crop: bool = True,
        random_flip: bool = False,
        seed: int = 0,
    ):
        if resolution < 1:
            raise ValueError(f"`resolution` must be at least 1 pixel, got {resolution}.")
        if len(pairs) == 0:
            raise ValueError("`pairs` is empty. Add pairs.")
        self.pairs = pairs.select_columns(["image", "caption"])
        self.tokenizer = tokenizer
        self.resolution = resolution
        self.center_crop = center_crop
        self.random_flip = random_flip
        self.seed = seed
        self._kept: dict[int, _Pair] = {}
        self._max_kept = _KEPT_BYTES // (3 * resolution**2)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """Reads one pair.

        Args:
            key (`tuple[int]`): A [`RowKey`], `(epoch, index)` or `(epoch, index, row)`.

        Returns:
            `dict`: `pixel_values` (3, H, W) in [-1, 1], `input_ids` (S,), `has_image`, `has_text`, `truncated` (the
                caption lost its end), `row` (as in the key), `index` (the pair that was read: the one asked for, or
                the one in its place) and `skipped`, a list of (key, reason) for the pairs that could not be read on
                the way.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[dict[str, Any]]:
        """Reads a batch at once: what `torch.utils.data.DataLoader` calls."""
        keys = [RowKey(*key) for key in keys]
        pairs = self._read_all([key.index for key in keys])
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
                "index": pair.index,
                "skipped": pair.skipped,
            }
            for i, pair in enumerate(pairs)
        ]

    def _read_all(self, indices: list[int]) -> list["_Pair"]:
        """The pairs at `indices`; the first ones that are ever read stay in memory."""
        new = {index: None for index in indices if index not in self._kept}
        if new:
            records = self.pairs[list(new)]
            for index, image, captions in zip(new, records["image"], records["caption"], strict=True):
                new[index] = self._read(index, image, captions)
                if len(self._kept) < self._max_kept:
                    self._kept[index] = new[index]
        return [new[index] if index in new else self._kept[index] for index in indices]

    def _read(self, index: int, image: dict | None, captions: list[str]) -> "_Pair":
        """The pair at `index`, or the next one that can be read."""
        skipped = []
        while len(skipped) < len(self):
            name = (image or {}).get("path") or f"row {index}"
            has_image = image is not None and (image["bytes"] is not None or image["path"] is not None)
            try:
                if not has_image and not captions:
                    raise ValueError("neither a picture nor a caption")
                picture = _read_picture(image, self.resolution, self.center_crop) if has_image else None
                return _Pair(index, picture, captions, skipped)
            except Exception as error:  # on bytes that they cannot read, Pillow's decoders raise many kinds
                reason = re.sub(r" object at 0x\w+", "", f"{type(error).__name__}: {error}")  # the same in every run
                skipped.append((name, reason))
            index = (index + 1) % len(self)
            image, captions = self.pairs[index]["image"], self.pairs[index]["caption"]
        raise ValueError(
            f"None of the {len(self)} pairs can be read; the first failed with {skipped[0]}. Check the data set."
        )

    def _augment(self, pair: "_Pair", key: RowKey) -> np.ndarray:
        if pair.picture is None:
            return np.zeros((self.resolution, self.resolution, 3), dtype=np.uint8)
        is_drawn = self.random_flip and _keyed_bits("flip", self.seed, key.epoch, key.index) % 2
        return pair.picture[:, ::-1] if is_drawn and not names_sides(pair.captions) else pair.picture

    def _choose(self, captions: list[str], key: RowKey) -> str:
        # By the index that was asked for, also where another pair stands in: `CodesDataset` knows no other.
        return captions[choose_caption(self.seed, key.epoch, key.index, len(captions))] if captions else ""


class _Pair(NamedTuple):
    index: int
    picture: np.ndarray | None  # (H, W, 3) uint8
    captions: list[str]
    skipped: list[tuple[str, str]]


class CodesDataset(torch.utils.data.Dataset):
    """Codes that `encode_codes.py` wrote once, in place of the pairs they stand for.

    The folder holds a `datasets` set of as many rows as pairs (`save_to_disk`) and `codes.json`. Its columns:
    `image_codes` (h, w), `text_codes` (captions, S/r, G), `has_image` and `has_text` (bool; codes of a missing side
    have the same shape and no meaning). Row i holds what [`PairDataset`] reads at index i, and the same caption is
    drawn for the same seed and epoch.

    Args:
        folder (`str` or `Path`): What `encode_codes.py` wrote.
        seed (`int`, defaults to 0): Seed of which caption is drawn.

    Raises:
        FileNotFoundError: If the folder holds no codes.
        ValueError: If the codes are of another format version.
    """

    def __init__(self, folder: str | Path, seed: int = 0):
        metadata_file = Path(folder) / CODES_METADATA_FILE
        if not metadata_file.is_file():
            raise FileNotFoundError(
                f"{folder} holds no codes: {CODES_METADATA_FILE} is missing. Write them with encode_codes.py."
            )
        self.metadata: dict[str, Any] = json.loads(metadata_file.read_text())
        version = self.metadata.get("format_version")
        if version != CODES_FORMAT_VERSION:
            raise ValueError(
                f"The codes in {folder} have `format_version` {version!r}, expected {CODES_FORMAT_VERSION}. Write "
                "them again with encode_codes.py."
            )
        self.codes = load_from_disk(str(folder))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """Reads one row of codes.

        Args:
            key (`tuple[int]`): A [`RowKey`], `(epoch, index)` or `(epoch, index, row)`.

        Returns:
            `dict`: `image_codes` (h, w), `text_codes` (S/r, G), `has_image`, `has_text`, `row`, `index`, and
                `skipped`, always empty.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[dict[str, Any]]:
        """Reads a batch at once: what `torch.utils.data.DataLoader` calls."""
        keys = [RowKey(*key) for key in keys]
        rows = self.codes[[key.index for key in keys]]
        text_codes = [
            captions[choose_caption(self.seed, key.epoch, key.index, len(captions))]
            for key, captions in zip(keys, rows["text_codes"], strict=True)
        ]
        return [
            {
                "image_codes": torch.tensor(rows["image_codes"][i], dtype=torch.long),
                "text_codes": torch.tensor(text_codes[i], dtype=torch.long),
                "has_image": rows["has_image"][i],
                "has_text": rows["has_text"][i],
                "row": key.row,
                "index": key.index,
                "skipped": [],
            }
            for i, key in enumerate(keys)
        ]


class ResumableBatchSampler(Sampler[list[RowKey]]):
    """Which rows each process reads, as a pure function of the optimizer step: there is no state to save.

    Row i of the global batch of step n is entry n G + i of an endless list, the data set in a new random order each
    epoch. Its G rows are counted by (micro-batch, process, place in the batch), so that one process with batches of G
    reads the same rows in the same order as any split of them.

    Args:
        num_rows (`int`): Rows of the data set.
        batch_size (`int`): Rows of one batch of one process.
        num_processes (`int`, defaults to 1): How many processes share the global batch.
        process_index (`int`, defaults to 0): Which of them this is.
        gradient_accumulation_steps (`int`, defaults to 1): Batches of a process to an optimizer step.
        seed (`int`, defaults to 0): Seed of the orders.
        start_step (`int`, defaults to 0): The optimizer step to begin with; the rest is what an uninterrupted run
            would have read.
        max_train_steps (`int`): The optimizer step to end before.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        start_step: int = 0,
        *,
        max_train_steps: int,
    ):
        counts = {
            "num_rows": num_rows,
            "batch_size": batch_size,
            "num_processes": num_processes,
            "gradient_accumulation_steps": gradient_accumulation_steps,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"`{name}` must be at least 1, got {count}.")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"`process_index` must lie in 0..{num_processes - 1}, got {process_index}.")
        if not 0 <= start_step <= max_train_steps:
            raise ValueError(f"`start_step` must lie in 0..{max_train_steps} (`max_train_steps`), got {start_step}.")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.process_index = process_index
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.seed = seed
        self.start_step = start_step
        self.max_train_steps = max_train_steps

    def __len__(self) -> int:
        return (self.max_train_steps - self.start_step) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[RowKey]]:
        global_batch_size = self.gradient_accumulation_steps * self.num_processes * self.batch_size
        epoch, order = -1, []
        for step in range(self.start_step, self.max_train_steps):
            for micro_step in range(self.gradient_accumulation_steps):
                batch = []
                first_row = (micro_step * self.num_processes + self.process_index) * self.batch_size
                for row in range(first_row, first_row + self.batch_size):
                    row_epoch, position = divmod(step * global_batch_size + row, self.num_rows)
                    if row_epoch != epoch:
                        epoch, order = row_epoch, self._order(row_epoch)
                    batch.append(RowKey(epoch, order[position], row))
                yield batch

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_keyed_bits("order", self.seed, epoch))
        return torch.randperm(self.num_rows, generator=generator).tolist()


def choose_caption(seed: int, epoch: int, index: int, num_captions: int) -> int:
    """Which of the captions of row `index` is read in an epoch, in `0..num_captions - 1`; each is equally likely."""
    return _keyed_bits("caption", seed, epoch, index) % num_captions


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches items of [`PairDataset`].

    Args:
        items (`list[dict]`): B items.

    Returns:
        `dict`: `pixel_values` (B, 3, H, W) float32, `input_ids` (B, S) int64, `has_image`, `has_text`, `truncated`
            (B,) bool, `row` and `index` (B,) int64, and `skipped`, the list of (key, reason) of the whole batch.
    """
    return _collate(items, stacked=("pixel_values", "input_ids"), flags=("has_image", "has_text", "truncated"))


def collate_codes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches items of [`CodesDataset`].

    Args:
        items (`list[dict]`): B items.

    Returns:
        `dict`: `image_codes` (B, h, w) and `text_codes` (B, S/r, G) int64, `has_image` and `has_text` (B,) bool, `row`
            and `index` (B,) int64, and `skipped`, an empty list.
    """
    return _collate(items, stacked=("image_codes", "text_codes"), flags=("has_image", "has_text"))


def _collate(items: list[dict[str, Any]], stacked: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: torch.stack([item[name] for item in items]) for name in stacked}
    batch |= {name: torch.tensor([item[name] for item in items], dtype=torch.bool) for name in flags}
    batch |= {name: torch.tensor([item[name] for item in items], dtype=torch.long) for name in ("row", "index")}
    batch["skipped"] = [skipped for item in items for skipped in item["skipped"]]
    return batch


def _read_picture(image: dict, resolution: int, center_crop: bool) -> np.ndarray:
    """An encoded picture, or its path, as the pixels (H, W, 3) of an upright opaque square."""
    picture = _DECODER.decode_example(image)
    if picture.mode.startswith("I;16"):  # Pillow clips 16-bit greys to 255 instead of scaling them
        picture = PILImage.fromarray((np.asarray(picture, dtype=np.uint16) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = PILImage.alpha_composite(PILImage.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if picture.size != (resolution, resolution):
        centering = (0.5, 0.5) if center_crop else (0.0, 0.0)
        picture = ImageOps.fit(picture, (resolution, resolution), PILImage.Resampling.LANCZOS, centering=centering)
    return np.asarray(picture)


def _keyed_bits(purpose: str, *key: int) -> int:
    """64 well mixed bits that depend on the key alone, as a counter-based generator would give."""
    return int.from_bytes(hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=8).digest())

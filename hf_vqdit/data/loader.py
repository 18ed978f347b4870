# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Data sets that are read in any order, pairs or codes that were encoded once, and the order in which training does.

The order of rows is a pure function of (seed, optimizer step, row of the global batch). So nothing has to be saved to
resume, and accumulation or more processes change nothing:

    DataLoader(PairDataset(...), batch_sampler=ResumableBatchSampler(...), collate_fn=collate_pairs)

The sampler already gives each process its own rows; the loader is not to be sharded again (`accelerator.prepare`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from torch.utils.data import Sampler

from .columns import PAIR_FEATURES
from .reader import Pair, PairReader, RowKey, choose_caption, keyed_bits
from .records import BadRecord

CODES_FORMAT_VERSION = 1
CODES_METADATA_FILE = "codes.json"
_KEPT_BYTES = 2**28  # decoded pictures of small sets stay in memory: decoding takes most of the time of a read


class PairDataset(torch.utils.data.Dataset):
    """Pairs as [`PairReader`] reads them, in any order.

    A record that has to be left out does not stop the run: the next good pair takes its place, and the item tells
    what was wrong. Up to 256 MiB of decoded pictures stay in memory, so that a small set is decoded once.

    Args:
        pairs (`datasets.Dataset`): A split of [`load_pairs`]; the columns `key` and `flaws` may be left out.
        reader ([`PairReader`]): How they are read.

    Raises:
        ValueError: If `pairs` is empty; while reading, if no pair of the whole set can be read.
    """

    def __init__(self, pairs: Dataset, reader: PairReader):
        if len(pairs) == 0:
            raise ValueError("`pairs` is empty. Add pairs.")
        self.pairs = pairs.select_columns([name for name in PAIR_FEATURES if name in pairs.column_names])
        self.reader = reader
        self._kept: dict[int, _Read] = {}
        self._max_kept = _KEPT_BYTES // (3 * reader.resolution**2)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """Reads one pair.

        Args:
            key (`tuple[int]`): A [`RowKey`], `(epoch, index)` or `(epoch, index, row)`.

        Returns:
            `dict`: `pixel_values` (3, H, W) in [-1, 1], `input_ids` (S,), `has_image`, `has_text`, `truncated` (the
                caption lost its end), `row` (as in the key), `index` (the pair that was read: the one asked for, or
                the one in its place), `is_stand_in` (it is the latter) and `bad_records`, a list of [`BadRecord`]:
                what was wrong with the pair that was asked for, if anything.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[dict[str, Any]]:
        """Reads a batch at once: what `torch.utils.data.DataLoader` calls."""
        keys = [RowKey(*key) for key in keys]
        read = self._read_all([key.index for key in keys])
        items = self.reader.to_items([each.pair for each in read], keys)
        return [
            item | {"index": each.index, "is_stand_in": each.index != key.index, "bad_records": each.bad_records}
            for item, each, key in zip(items, read, keys, strict=True)
        ]

    def _read_all(self, indices: list[int]) -> list["_Read"]:
        """The pairs at `indices`; the first ones that are ever read stay in memory."""
        new = {index: None for index in indices if index not in self._kept}
        columns = self.pairs[[*new]] if new else {}
        for i, index in enumerate(new):
            new[index] = self._read(index, {name: values[i] for name, values in columns.items()})
            if len(self._kept) < self._max_kept:
                self._kept[index] = new[index]
        return [new[index] if index in new else self._kept[index] for index in indices]

    def _read(self, index: int, record: dict[str, Any]) -> "_Read":
        """The pair at `index`, or the next one that can be read."""
        pair = self.reader.read(record, index)
        if isinstance(pair, Pair):
            return _Read(index, pair, pair.flaws)
        # The ones that are passed over are told where they are asked for themselves.
        asked_for = pair
        for distance in range(1, len(self)):
            stand_in = (index + distance) % len(self)
            pair = self.reader.read(self.pairs[stand_in], stand_in)
            if isinstance(pair, Pair):
                return _Read(stand_in, pair, [asked_for])
        raise ValueError(f"None of the {len(self)} pairs can be read; the first one: {asked_for}. Check the data set.")


class _Read(NamedTuple):
    index: int
    pair: Pair
    bad_records: list[BadRecord]  # what was wrong with the record that was asked for


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
                `bad_records`, always empty.
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
        # By way of NumPy, which reads nested lists several times faster
        image_codes, text_codes = (
            torch.from_numpy(np.array(codes, dtype=np.int64)) for codes in (rows["image_codes"], text_codes)
        )
        return [
            {
                "image_codes": image_codes[i],
                "text_codes": text_codes[i],
                "has_image": rows["has_image"][i],
                "has_text": rows["has_text"][i],
                "row": key.row,
                "index": key.index,
                "bad_records": [],
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
        generator = torch.Generator().manual_seed(keyed_bits("order", self.seed, epoch))
        return torch.randperm(self.num_rows, generator=generator).tolist()


def collate_pairs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches items of [`PairDataset`].

    Args:
        items (`list[dict]`): B items.

    Returns:
        `dict`: `pixel_values` (B, 3, H, W) float32, `input_ids` (B, S) int64, `has_image`, `has_text`, `truncated`
            and `is_stand_in` (B,) bool, `row` and `index` (B,) int64, and `bad_records`, the list of all the items'.
    """
    flags = ("has_image", "has_text", "truncated", "is_stand_in")
    return _collate(items, stacked=("pixel_values", "input_ids"), flags=flags)


def collate_codes(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches items of [`CodesDataset`].

    Args:
        items (`list[dict]`): B items.

    Returns:
        `dict`: `image_codes` (B, h, w) and `text_codes` (B, S/r, G) int64, `has_image` and `has_text` (B,) bool, `row`
            and `index` (B,) int64, and `bad_records`, an empty list.
    """
    return _collate(items, stacked=("image_codes", "text_codes"), flags=("has_image", "has_text"))


def _collate(items: list[dict[str, Any]], stacked: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: torch.stack([item[name] for item in items]) for name in stacked}
    batch |= {name: torch.tensor([item[name] for item in items], dtype=torch.bool) for name in flags}
    batch |= {name: torch.tensor([item[name] for item in items], dtype=torch.long) for name in ("row", "index")}
    batch["bad_records"] = [bad for item in items for bad in item["bad_records"]]
    return batch

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Pairs that are read as they come, for data that does not fit on the disk; resumed bit for bit.

The process itself reads the records, still encoded, and draws them from a shuffle buffer; the workers of a
`DataLoader` decode them. So the whole state is in one place and is small enough to save: the position in the source,
the records in the buffer, and those that have left it and are not in a batch yet. The buffer of `datasets` is not in
its state, and would lose its records.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any, NamedTuple

import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from .loader import PairDataset, collate_pairs
from .reader import Pair, PairReader, RowKey, keyed_bits
from .records import BadRecord
from .workers import outlast_signals

_MAX_SKIPPED_IN_A_ROW = 1000


class PairStream:
    """Pairs as [`PairReader`] reads them, in the order of a shuffle buffer.

    Args:
        pairs (`datasets.IterableDataset`): The split `train` of [`load_pairs`], streaming.
        reader ([`PairReader`]): How they are read; its seed is that of the order too.
        shuffle_buffer_size (`int`, defaults to 1000): Records, still encoded, among which the next one is drawn. They
            are in memory and in every checkpoint.

    Raises:
        ValueError: If `shuffle_buffer_size` is below 1.
    """

    def __init__(self, pairs: IterableDataset, reader: PairReader, shuffle_buffer_size: int = 1000):
        if shuffle_buffer_size < 1:
            raise ValueError(f"`shuffle_buffer_size` must be at least 1, got {shuffle_buffer_size}.")
        self.pairs = pairs
        self.reader = reader
        self.shuffle_buffer_size = shuffle_buffer_size

    def first_items(self, num_items: int) -> Iterator[dict[str, Any]]:
        """The first pairs of the stream that can be read, in its own order.

        Args:
            num_items (`int`): How many; there are fewer if the stream ends.

        Returns:
            `Iterator[dict]`: Items as [`PairDataset`] gives them for epoch 0.
        """
        bad_records: list[BadRecord] = []
        row = 0
        for index, record in enumerate(self.pairs):
            if row == num_items:
                return
            pair = self.reader.read(record, index)
            if isinstance(pair, BadRecord):
                bad_records.append(pair)
                continue
            item = self.reader.to_items([pair], [RowKey(0, index, row)])[0]
            yield item | {"index": index, "is_stand_in": False, "bad_records": bad_records + pair.flaws}
            bad_records, row = [], row + 1

    def batches(
        self,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        gradient_accumulation_steps: int = 1,
        num_workers: int = 0,
    ) -> "StreamBatches":
        """The endless batches of one process: pass after pass, each with the shards in a new order.

        With one process that is every record of the stream. Of several processes each has shards of its own where
        their number can be divided by that of the processes; otherwise, and where the first records are held out,
        each reads all records and keeps its share of them.

        Args:
            batch_size (`int`): Pairs of a batch.
            num_processes (`int`, defaults to 1): How many processes there are.
            process_index (`int`, defaults to 0): Which of them this is.
            gradient_accumulation_steps (`int`, defaults to 1): Batches of a process to an optimizer step.
            num_workers (`int`, defaults to 0): Processes that decode; they change nothing in what is read.

        Returns:
            [`StreamBatches`]
        """
        return StreamBatches(self, batch_size, num_processes, process_index, gradient_accumulation_steps, num_workers)


class _Record(NamedTuple):
    """A record on its way to a batch, still encoded."""

    epoch: int
    index: int  # in what this process reads in the epoch
    content: dict[str, Any]


class StreamBatches(Iterable):
    """The batches of a [`PairStream`], as of [`collate_pairs`], and the state from which they go on bit for bit.

    Made by [`PairStream.batches`], whose arguments it has, and iterated once. Rows are counted as
    [`ResumableBatchSampler`] does, so a state is to be taken between two optimizer steps.
    """

    def __init__(
        self,
        stream: PairStream,
        batch_size: int,
        num_processes: int,
        process_index: int,
        gradient_accumulation_steps: int,
        num_workers: int,
    ):
        self.stream = stream
        self.batch_size = batch_size
        self.num_processes, self.process_index = num_processes, process_index
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.num_workers = num_workers
        # A copy: the position of a stream is kept inside of it, and others may read it from its start meanwhile.
        self._source = split_dataset_by_node(deepcopy(stream.pairs), process_index, num_processes)
        self._epoch = self._num_read = self._num_drawn = 0
        self._source_state: dict[str, Any] | None = None
        self._buffer: list[_Record] = []
        self._sent: deque[_Record] = deque()  # drawn from the buffer, not in a batch yet

    def __iter__(self) -> Iterator[dict[str, Any]]:
        items, skipped, num_records, micro_step = [], [], 0, 0
        for item, bad_records in self._decoded():
            num_records += 1
            skipped += bad_records
            if item is None:
                if len(skipped) >= _MAX_SKIPPED_IN_A_ROW:
                    raise ValueError(f"{len(skipped)} records in a row cannot be read; the last one: {skipped[-1]}.")
                continue
            row = (micro_step * self.num_processes + self.process_index) * self.batch_size + len(items)
            items.append(item | {"row": row, "bad_records": skipped})
            skipped = []
            if len(items) == self.batch_size:
                for _ in range(num_records):
                    self._sent.popleft()
                batch, items, num_records = collate_pairs(items), [], 0
                micro_step = (micro_step + 1) % self.gradient_accumulation_steps
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """All that decides which batches follow: numbers, and the records on their way, still encoded."""
        return {
            "num_processes": self.num_processes,
            "epoch": self._epoch,
            "num_read": self._num_read,
            "num_drawn": self._num_drawn,
            "source": self._source.state_dict() or self._source_state,  # none of its own until it is read
            "buffer": [tuple(record) for record in self._buffer],
            "sent": [tuple(record) for record in self._sent],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after the batch that was the last when the state was taken; before the first batch is asked for.

        Raises:
            ValueError: If the state is that of another number of processes.
        """
        if state_dict["num_processes"] != self.num_processes:
            raise ValueError(
                f"The stream was read by {state_dict['num_processes']} processes and cannot be gone on with by "
                f"{self.num_processes}: each reads a part of its own. Resume with as many, or start anew."
            )
        self._epoch, self._num_read = state_dict["epoch"], state_dict["num_read"]
        self._num_drawn = state_dict["num_drawn"]
        self._source_state = state_dict["source"]
        self._source.load_state_dict(self._source_state)
        self._buffer = [_Record(*record) for record in state_dict["buffer"]]
        self._sent = deque(_Record(*record) for record in state_dict["sent"])

    def _decoded(self) -> Iterator[tuple[dict[str, Any] | None, list[BadRecord]]]:
        """For each record, in the order in which they were sent: its item, unless it is bad, and what is wrong."""
        loader = DataLoader(
            _RecordDecoder(self.stream.reader),
            sampler=self._sendings(),
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=outlast_signals,
            generator=torch.Generator(),  # so that nothing is drawn from the global one, which a checkpoint restores
        )
        for batch, outcomes in loader:
            row = 0
            for outcome in outcomes:
                if isinstance(outcome, BadRecord):
                    yield None, [outcome]
                else:
                    yield _item(batch, row), outcome
                    row += 1

    def _sendings(self) -> Iterator[list[_Record]]:
        """Lists of records for the loader: first those that were on their way when the state was taken."""
        on_their_way = [*self._sent]
        for start in range(0, len(on_their_way), self.batch_size):
            yield on_their_way[start : start + self.batch_size]
        drawn = self._drawn()
        while True:
            records = [*islice(drawn, self.batch_size)]
            self._sent += records
            yield records

    def _drawn(self) -> Iterator[_Record]:
        """The endless records, each drawn from the buffer; a pass draws every record once."""
        seed, size = self.stream.reader.seed, self.stream.shuffle_buffer_size
        while True:
            # `datasets` orders the shards by this number, if it is not 0.
            self._source.set_epoch(1 + keyed_bits("shards", seed, self._epoch) % 2**31)
            for content in self._source:
                self._buffer.append(_Record(self._epoch, self._num_read, content))
                self._num_read += 1
                if len(self._buffer) >= size:
                    yield self._draw(seed)
            if self._num_read == 0:
                raise ValueError("There is nothing in the stream for this process. Use fewer processes, or more data.")
            while self._buffer:
                yield self._draw(seed)
            self._source.load_state_dict(None)
            self._epoch, self._num_read = self._epoch + 1, 0

    def _draw(self, seed: int) -> _Record:
        place = keyed_bits("buffer", seed, self.process_index, self._num_drawn) % len(self._buffer)
        self._num_drawn += 1
        self._buffer[place], self._buffer[-1] = self._buffer[-1], self._buffer[place]
        return self._buffer.pop()


class _RecordDecoder(torch.utils.data.Dataset):
    """What the workers of the loader do: records in, a batch of the good ones out, and what is wrong with each."""

    def __init__(self, reader: PairReader):
        self.reader = reader

    def __getitem__(self, records: list[_Record]) -> tuple[dict[str, Any], list[list[BadRecord] | BadRecord]]:
        read = [self.reader.read(record.content, record.index) for record in records]
        good = [(pair, record) for pair, record in zip(read, records, strict=True) if isinstance(pair, Pair)]
        outcomes = [pair.flaws if isinstance(pair, Pair) else pair for pair in read]
        if not good:
            return {}, outcomes
        keys = [RowKey(record.epoch, record.index) for _, record in good]
        items = self.reader.to_items([pair for pair, _ in good], keys)
        rest = [{"index": record.index, "is_stand_in": False, "bad_records": []} for _, record in good]
        return collate_pairs([item | other for item, other in zip(items, rest, strict=True)]), outcomes


def _item(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """A row of a batch as an item again."""
    values = {name: value[row] for name, value in batch.items() if torch.is_tensor(value)}
    return {name: value if value.ndim else value.item() for name, value in values.items()}


def open_pairs(
    pairs: Dataset | IterableDataset, reader: PairReader, shuffle_buffer_size: int = 1000
) -> PairDataset | PairStream:
    """The pairs to train on: a [`PairStream`] if they are streamed, else a [`PairDataset`]."""
    if isinstance(pairs, IterableDataset):
        return PairStream(pairs, reader, shuffle_buffer_size)
    return PairDataset(pairs, reader)

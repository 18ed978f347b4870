# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Data stream.

The time of a pair, from a folder of JPEG pictures of 256 pixels with captions to batches of pictures of 64 pixels and
token ids, through a `DataLoader` without a worker and with one.

- `pictures`: `PairDataset` with `ResumableBatchSampler`, in its first epoch, and in later ones, when it has the
  pictures in memory. Peer: the way of diffusers' training examples, `with_transform` and `shuffle`, with equal pixels
  and token ids.
- `pictures, streamed`: `PairStream`, from parquet files with the same pictures, through a shuffle buffer that is part
  of its state. Peer: streaming, `shuffle(buffer_size)` and `map` of `datasets`, whose state leaves the buffer out, and
  without the 5 seconds that it waits at the end of an epoch. Each measurement is as long as an epoch, in which the
  buffer is filled and emptied once.
- `codes`: `CodesDataset`, the same pairs encoded once. Peer: the same table `with_format("torch")`.

With a worker, which is another process, the time is that of the clock on the wall.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset, DatasetDict, Image, IterableDataset, load_dataset, load_from_disk
from datasets.table import embed_table_storage
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from benchmarks.timing import NUM_ROUNDS, OURS, QUICK_NUM_ROUNDS, Row, alternate, ratios
from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import (
    CodesDataset,
    PairDataset,
    PairReader,
    PairStream,
    RecordCounts,
    ResumableBatchSampler,
    captions_of,
    collate_codes,
    collate_pairs,
    load_pairs,
    train_caption_tokenizer,
)
from hf_vqdit.data.shapes import all_scenes, describe, draw
from hf_vqdit.training.codes import write_codes

WITH_TRANSFORM, WITH_FORMAT = "datasets, with_transform", 'datasets, with_format("torch")'
STREAMING = "datasets, streaming"
NUM_SHARDS = 4  # of what is streamed
NUM_UNCOUNTED = 4  # batches until a worker has started and is as far ahead as it ever is

Stream = Callable[[], Iterator[dict[str, Any]]]  # opens an endless sequence of batches


class Size(NamedTuple):
    """Of the data set, and of what is read of it."""

    num_pictures: int
    picture_side: int
    resolution: int
    batch_size: int
    shuffle_buffer_size: int
    min_seconds: float  # of a measurement, where it is not as long as an epoch


SIZE, QUICK_SIZE = Size(640, 256, 64, 32, 256, 1.0), Size(24, 32, 16, 2, 8, 0.01)


def measure(quick: bool = False) -> list[Row]:
    """Rows of pictures and of codes, without a worker and with one."""
    size, num_rounds = (QUICK_SIZE, QUICK_NUM_ROUNDS) if quick else (SIZE, NUM_ROUNDS)
    found = []
    with TemporaryDirectory() as folder:
        splits, tokenizer = make_pairs(size, Path(folder, "pictures"), Path(folder, "cache"))
        pairs, shards, codes = splits["train"], Path(folder, "shards"), Path(folder, "codes")
        write_shards(splits, shards)
        own_pairs = PairDataset(pairs, PairReader(tokenizer, size.resolution))
        write_codes(codes, make_vqvae(tokenizer), own_pairs, batch_size=32, records=RecordCounts())
        num_batches = len(pairs) // size.batch_size  # of an epoch
        for num_workers in (0, 1):
            new = picture_streams(size, pairs, tokenizer, num_workers)
            read = {name: opened(stream, num_batches + 1) for name, stream in new.items()}
            streamed = {
                name: opened(stream) for name, stream in shard_streams(size, shards, tokenizer, num_workers).items()
            }
            encoded = code_streams(size, codes, num_workers)
            for name, streams, num_counted in (
                ("pictures, first epoch", new, num_batches - NUM_UNCOUNTED),
                ("pictures, later epochs", read, None),
                ("pictures, streamed", streamed, num_batches),
                ("codes", encoded, None),
            ):
                candidates = {
                    peer: seconds_of_pair(stream, size, num_workers, num_counted) for peer, stream in streams.items()
                }
                case = f"{name}, {num_workers} worker{'s' if num_workers == 0 else ''}"
                found += ratios(case, "time of a pair", alternate(candidates, num_rounds))
    return found


def seconds_of_pair(
    stream: Stream, size: Size, num_workers: int, num_counted: int | None = None
) -> Callable[[], float]:
    """What measures `num_counted` batches of a stream, or as many as take `size.min_seconds`.

    Seconds are those of this process on the CPU, or those of the clock if a worker does the work.
    """
    clock = time.process_time if num_workers == 0 else time.perf_counter

    def measure() -> float:
        batches = stream()
        for _ in range(NUM_UNCOUNTED):
            next(batches)
        start, num_batches = clock(), 0
        while num_batches < num_counted if num_counted else clock() - start < size.min_seconds:
            next(batches)
            num_batches += 1
        return (clock() - start) / (num_batches * size.batch_size)

    return measure


# Streams


def picture_streams(
    size: Size, pairs: Dataset, tokenizer: PreTrainedTokenizerBase, num_workers: int
) -> dict[str, Stream]:
    """Pictures and token ids, from the files on."""
    transformed = with_transform(size, pairs, tokenizer)

    def open_own() -> Iterator[dict]:
        return own_batches(
            size, PairDataset(pairs, PairReader(tokenizer, size.resolution)), collate_pairs, num_workers
        )

    return {OURS: open_own, WITH_TRANSFORM: lambda: peer_batches(size, transformed, num_workers)}


def shard_streams(size: Size, folder: Path, tokenizer: PreTrainedTokenizerBase, num_workers: int) -> dict[str, Stream]:
    """Pictures and token ids, from parquet files that are read as they come."""
    own = PairStream(
        load_pairs(train_data_dir=str(folder), streaming=True)["train"],
        PairReader(tokenizer, size.resolution),
        size.shuffle_buffer_size,
    )
    streamed = with_map(size, folder, tokenizer)
    return {
        OURS: lambda: iter(own.batches(size.batch_size, num_workers=num_workers)),
        STREAMING: lambda: peer_batches(size, streamed, num_workers),
    }


def code_streams(size: Size, folder: Path, num_workers: int) -> dict[str, Stream]:
    """Codes of pairs that were encoded once."""
    own, table = CodesDataset(folder), load_from_disk(str(folder)).with_format("torch")
    return {
        OURS: lambda: own_batches(size, own, collate_codes, num_workers),
        WITH_FORMAT: lambda: peer_batches(size, table, num_workers),
    }


def opened(stream: Stream, num_batches: int = 0) -> Stream:
    """A stream that is open already, and some batches ahead."""
    batches = stream()
    for _ in range(num_batches):
        next(batches)
    return lambda: batches


def own_batches(size: Size, dataset: Any, collate_fn: Callable, num_workers: int) -> Iterator[dict[str, Any]]:
    """Batches in the order of `ResumableBatchSampler`, which has no end."""
    sampler = ResumableBatchSampler(len(dataset), size.batch_size, max_train_steps=1_000_000)
    yield from DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_fn, num_workers=num_workers)


def peer_batches(size: Size, dataset: Dataset | IterableDataset, num_workers: int) -> Iterator[dict[str, Any]]:
    """Shuffled batches, epoch after epoch; a worker lives through all of them."""
    is_streamed = isinstance(dataset, IterableDataset)  # which has its own `shuffle`
    loader = DataLoader(
        dataset,
        size.batch_size,
        shuffle=not is_streamed,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    for epoch in itertools.count():
        if is_streamed:
            dataset.set_epoch(epoch)
        yield from loader


# Data


def make_pairs(size: Size, folder: Path, cache: Path) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    """Scenes as JPEG files with some grain, as photographs have, and their captions; and a tokenizer of these."""
    folder.mkdir()
    scenes = all_scenes(1)[:: len(all_scenes(1)) // size.num_pictures][: size.num_pictures]
    grain = PIL.Image.effect_noise((size.picture_side, size.picture_side), 40).convert("RGB")
    lines = ["file_name,text"]
    for index, scene in enumerate(scenes):
        picture = PIL.Image.blend(draw(scene, size.picture_side), grain, 0.2)
        picture.save(folder / f"{index}.jpg", quality=90)
        lines.append(f"{index}.jpg,{describe(scene, 0)}")
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    splits = load_pairs(train_data_dir=str(folder), cache_dir=str(cache))
    return splits, train_caption_tokenizer(captions_of(splits["train"]), vocab_size=384, model_max_length=16)


def write_shards(splits: DatasetDict, folder: Path) -> None:
    """The pairs as parquet files, which hold the pictures too."""
    folder.mkdir()
    for split, pairs in splits.items():
        table = pairs.select_columns(["image", "caption"]).with_format("arrow").map(embed_table_storage, batched=True)
        num_shards = NUM_SHARDS if split == "train" else 1
        for index in range(num_shards):
            table.shard(num_shards, index).to_parquet(folder / f"{split}-{index}.parquet")


def with_transform(size: Size, pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The pairs as diffusers' `train_text_to_image.py` reads them."""
    return pairs.cast_column("image", Image()).with_transform(partial(preprocess, size, tokenizer))


def with_map(size: Size, folder: Path, tokenizer: PreTrainedTokenizerBase) -> IterableDataset:
    """The same of parquet files, as `datasets` streams them."""
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else 5 s of an epoch, which is seldom as short as here
    pairs = load_dataset(str(folder), split="train", streaming=True).cast_column("image", Image())
    shuffled = pairs.shuffle(seed=0, buffer_size=size.shuffle_buffer_size)  # still encoded
    return shuffled.map(
        partial(preprocess, size, tokenizer),
        batched=True,
        batch_size=size.batch_size,
        remove_columns=pairs.column_names,
    )


def preprocess(size: Size, tokenizer: PreTrainedTokenizerBase, examples: dict[str, list]) -> dict[str, Any]:
    """What diffusers' `train_text_to_image.py` makes of rows, with NumPy in the place of torchvision."""
    side = (size.resolution, size.resolution)  # the pictures are squares: nothing to crop
    pictures = [image.convert("RGB").resize(side, PIL.Image.Resampling.LANCZOS) for image in examples["image"]]
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous() for picture in pictures]
    captions = [captions[0] + tokenizer.eos_token for captions in examples["caption"]]
    length = tokenizer.model_max_length
    tokens = tokenizer(captions, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    return {"pixel_values": [x.div(255).sub(0.5).div(0.5) for x in tensors], "input_ids": tokens.input_ids}


def make_vqvae(tokenizer: PreTrainedTokenizerBase) -> MultimodalVQVAE:
    """A small one, untrained, that makes a code of 4 x 4 pixels."""
    return MultimodalVQVAE(
        block_out_channels=(8, 16, 16), norm_num_groups=4, vocab_size=len(tokenizer), text_width=16
    ).eval()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The training pictures, with which generated ones are compared: read once, kept small, with their features."""

from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_vqdit.data import PairDataset, PairReader, collate_pairs
from hf_vqdit.data.workers import outlast_signals

from .features import extract_features, shrink, to_bytes, train_own_features
from .picture_sets import nearest


@dataclass(frozen=True)
class TrainingPictures:
    """Pictures of the training set, small enough to be searched.

    Args:
        dataset (`PairDataset`): Where they come from.
        rows (`list[int]`): Their rows in it.
        captions (`list[list[str]]`): The captions of each.
        thumbnails (`torch.ByteTensor` of shape `(N, 3, h, w)`): Each as [`~.features.shrink`] leaves it.
        network (`nn.Module`): The feature network.
        features (`torch.DoubleTensor` of shape `(N, D)`): The features of each, whole.
    """

    dataset: PairDataset
    rows: list[int]
    captions: list[list[str]]
    thumbnails: torch.Tensor
    network: nn.Module
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: list[int]) -> torch.Tensor:
        """Some of the pictures, whole.

        Args:
            indices (`list[int]`): Which of the N, at least one.

        Returns:
            `torch.FloatTensor` of shape `(B, 3, H, W)`: In [-1, 1].
        """
        keys = [(0, self.rows[index], self.rows[index]) for index in indices]
        return collate_pairs(self.dataset.__getitems__(keys))["pixel_values"]


def read_training_pictures(
    pairs: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    resolution: int,
    center_crop: bool = True,
    max_pictures: int = 50_000,
    network: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 250,
    num_workers: int = 0,
) -> TrainingPictures:
    """Reads the pictures of a training split, as training does, and takes their features on the way.

    Args:
        pairs (`Dataset` or `IterableDataset`): The split `"train"` of [`~hf_vqdit.data.load_pairs`]. Of a stream the
            first ones are kept in memory, as they come.
        tokenizer (`PreTrainedTokenizerBase`): The caption tokenizer.
        resolution (`int`): Side of the pictures in pixels.
        center_crop (`bool`, defaults to `True`): Whether pictures are cropped in the middle.
        max_pictures (`int`, defaults to 50000): Read no more than this many, in random order; of a stream the first.
        network (`nn.Module`, *optional*): A feature network; by default one is trained on the thumbnails.
        seed (`int`, defaults to 0): Seed of the order and of that training.
        batch_size (`int`, defaults to 250): Pictures at a time.
        num_workers (`int`, defaults to 0): Processes that decode them.

    Returns:
        [`TrainingPictures`]: Without rows that lack a picture or whose picture cannot be read.

    Raises:
        ValueError: If fewer than two pictures are left.
    """
    if isinstance(pairs, IterableDataset):
        rows = iter(pairs.take(max_pictures))
        chunks = iter(lambda: [*islice(rows, 1000)], [])  # one table of bytes holds 2 GiB at most
        pairs = concatenate_datasets([Dataset.from_list(chunk, features=pairs.features) for chunk in chunks])
    dataset = PairDataset(pairs, PairReader(tokenizer, resolution, center_crop, seed=seed))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_pictures]
    rows, thumbnails, features = [], [], []
    batches = [[(0, row, row) for row in some.tolist()] for some in order.split(batch_size)]
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate_pairs,
        num_workers=num_workers,
        worker_init_fn=outlast_signals,
    )
    for batch in tqdm(loader, desc="Reading the training pictures"):
        is_good = batch["has_image"] & ~batch["is_stand_in"]
        if not is_good.any():
            continue
        pixel_values = batch["pixel_values"][is_good]
        rows += batch["index"][is_good].tolist()
        thumbnails.append(to_bytes(shrink(pixel_values)))
        if network is not None:
            features.append(extract_features(network, pixel_values, batch_size))
    if len(rows) < 2:
        raise ValueError(
            f"Of {len(order)} training pictures {len(rows)} can be read; comparing sets of pictures takes at least 2. "
            "Check the data set, or leave these figures out."
        )
    thumbnails = torch.cat(thumbnails)
    if network is None:
        network = train_own_features(thumbnails, seed=seed)
        features = [extract_features(network, thumbnails, batch_size, "Features of the training pictures")]
    captions = [*pairs.select(rows)["caption"]]
    return TrainingPictures(dataset, rows, captions, thumbnails, network, torch.cat(features))


def nearest_on_pixels(
    pixel_values: torch.Tensor, thumbnails: torch.ByteTensor
) -> tuple[torch.Tensor, torch.LongTensor]:
    """The nearest of other pictures to each picture, thumbnails of both compared pixel by pixel.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1].
        thumbnails (`torch.ByteTensor` of shape `(M, 3, h, w)`): Pictures as [`~.features.shrink`] leaves them.

    Returns:
        The root mean square difference, of 255, a `torch.DoubleTensor` of shape `(N,)`, and rows of `thumbnails`, a
        `torch.LongTensor` of shape `(N,)`.
    """
    pixels = to_bytes(shrink(pixel_values)).flatten(1)  # (N, 3 h w)
    distances, rows = nearest(pixels, thumbnails.flatten(1))
    return distances / pixels.shape[1] ** 0.5, rows

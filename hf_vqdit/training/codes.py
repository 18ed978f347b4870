# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Pairs to codes, on the fly or once and for all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from hf_vqdit.data import (
    CODES_FORMAT_VERSION,
    CODES_METADATA_FILE,
    CodesDataset,
    PairDataset,
    RecordCounts,
    collate_pairs,
    encode_captions,
)
from hf_vqdit.data.workers import outlast_signals
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE


@torch.no_grad()
def encode_batch(vqvae: MultimodalVQVAE, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of pairs with its codes; a batch that holds codes already is returned as it is.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in float32, so that codes do not depend on the precision of training.
        batch (`dict`): What `collate_pairs` or `collate_codes` returned.

    Returns:
        `dict`: The batch with `image_codes` (B, h, w) and `text_codes` (B, S/r, G).
    """
    if "image_codes" in batch:
        return batch
    encoded = vqvae.encode(image=batch["pixel_values"], text=batch["input_ids"])
    return batch | {"image_codes": encoded.image_codes, "text_codes": encoded.text_codes}


def write_codes(
    folder: str | Path,
    vqvae: MultimodalVQVAE,
    dataset: PairDataset,
    batch_size: int,
    records: RecordCounts,
    num_workers: int = 0,
) -> None:
    """Encodes every picture and every caption of a data set once, for [`open_codes`].

    Args:
        folder (`str` or `Path`): Where to write.
        vqvae (`MultimodalVQVAE`): The tokenizer.
        dataset (`PairDataset`): The pairs; without augmentation, since each picture is encoded once.
        batch_size (`int`): Pairs at a time.
        records (`RecordCounts`): Where the records are counted.
        num_workers (`int`, defaults to 0): Processes that decode pictures.

    Raises:
        ValueError: If the data set augments pictures, or too many records are bad.
    """
    if dataset.reader.augments:
        raise ValueError(
            "`random_flip` and `random_shift` need pictures encoded on the fly: each is encoded once "
            "here. Leave them out, or train without `codes_dir`."
        )
    features = Features(
        image_codes=List(List(Value("int32"))),
        text_codes=List(List(List(Value("int32")))),
        has_image=Value("bool"),
        has_text=Value("bool"),
    )
    batches = [
        [(0, index) for index in range(start, min(start + batch_size, len(dataset)))]
        for start in range(0, len(dataset), batch_size)
    ]
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=list, num_workers=num_workers, worker_init_fn=outlast_signals
    )
    rows = [row for items in loader for row in _encode_rows(vqvae, dataset, items, records)]
    Dataset.from_list(rows, features=features).save_to_disk(str(folder))
    metadata = {"format_version": CODES_FORMAT_VERSION, "vqvae": weights_digest(vqvae)}
    (Path(folder) / CODES_METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _encode_rows(
    vqvae: MultimodalVQVAE, dataset: PairDataset, items: list[dict[str, Any]], records: RecordCounts
) -> list[dict[str, Any]]:
    batch = collate_pairs(items)
    records.add(batch)
    # A pair that could not be read is replaced by another, whose captions are at that other's index.
    captions = [dataset.pairs[item["index"]]["caption"] or [""] for item in items]
    input_ids = encode_captions(dataset.reader.tokenizer, [caption for row in captions for caption in row])
    image_codes = vqvae.encode(image=batch["pixel_values"].to(vqvae.device)).image_codes
    chunks = input_ids.to(vqvae.device).split(len(items))
    text_codes = torch.cat([vqvae.encode(text=chunk).text_codes for chunk in chunks])
    text_codes = text_codes.split([len(row) for row in captions])
    return [
        {
            "image_codes": item_image_codes.tolist(),
            "text_codes": item_text_codes.tolist(),
            "has_image": item["has_image"],
            "has_text": item["has_text"],
        }
        for item, item_image_codes, item_text_codes in zip(items, image_codes, text_codes, strict=True)
    ]


def open_codes(folder: str | Path, vqvae: MultimodalVQVAE, seed: int) -> CodesDataset:
    """Opens what [`write_codes`] wrote.

    Args:
        folder (`str` or `Path`): The folder.
        vqvae (`MultimodalVQVAE`): The tokenizer that the codes must be of.
        seed (`int`): Seed of which caption is drawn.

    Returns:
        `CodesDataset`

    Raises:
        ValueError: If they are the codes of another tokenizer.
    """
    dataset = CodesDataset(folder, seed)
    if dataset.metadata["vqvae"] != weights_digest(vqvae):
        raise ValueError(
            f"The codes in {folder} were written by another tokenizer than the one given: encode again with "
            "encode_codes.py, or name the tokenizer that wrote them."
        )
    return dataset


def weights_digest(model: torch.nn.Module) -> str:
    """A hash of all weights: equal for equal models."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Image-text pairs: built-in sets, `datasets` sources, the caption tokenizer, and the batches that training reads."""

from .captions import encode_captions, load_caption_tokenizer, train_caption_tokenizer
from .emoji import emoji_dataset
from .inspection import Inspection, format_inspection, inspect_pairs
from .loader import (
    CODES_FORMAT_VERSION,
    CODES_METADATA_FILE,
    CodesDataset,
    PairDataset,
    ResumableBatchSampler,
    collate_codes,
    collate_pairs,
)
from .pairs import captions_of, load_pairs
from .reader import PairReader, RowKey, choose_caption
from .records import BadRecord, RecordCounts
from .shapes import shapes_dataset
from .streaming import PairStream, StreamBatches, open_pairs

__all__ = [
    "BadRecord",
    "CODES_FORMAT_VERSION",
    "CODES_METADATA_FILE",
    "CodesDataset",
    "Inspection",
    "PairDataset",
    "PairReader",
    "PairStream",
    "RecordCounts",
    "ResumableBatchSampler",
    "RowKey",
    "StreamBatches",
    "captions_of",
    "choose_caption",
    "collate_codes",
    "collate_pairs",
    "emoji_dataset",
    "encode_captions",
    "format_inspection",
    "inspect_pairs",
    "load_caption_tokenizer",
    "load_pairs",
    "open_pairs",
    "shapes_dataset",
    "train_caption_tokenizer",
]

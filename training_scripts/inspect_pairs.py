# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Looks at the pairs before a long training: shows the first ones as it will see them, and reports what is wrong.

    python training_scripts/inspect_pairs.py --config training_scripts/configs/quickstart.yaml
    python training_scripts/inspect_pairs.py --train_data_dir pictures --resolution 64 --model_max_length 32 \
        --output_dir runs/mine

It takes the settings of the data that train_vqvae.py takes. Leaves in `output_dir`: `first_pairs.png`,
`inspection.md` and `inspection.json`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import PreTrainedTokenizerFast

from hf_vqdit.data import (
    PairDataset,
    PairStream,
    ResumableBatchSampler,
    captions_of,
    collate_pairs,
    format_inspection,
    inspect_pairs,
    load_caption_tokenizer,
    load_pairs,
    open_pairs,
    train_caption_tokenizer,
)
from hf_vqdit.evaluation.grids import GridItem, draw_section
from hf_vqdit.training.argument_groups import DataArguments, about
from hf_vqdit.training.arguments import parse_arguments
from hf_vqdit.training.previews import read_captions, to_pictures


@dataclass(kw_only=True)
class InspectArguments(DataArguments):
    """Settings of `training_scripts/inspect_pairs.py`."""

    output_dir: str = field(metadata=about("Where the report and the picture grid go."))
    max_inspected: int = field(default=10_000, metadata=about("Records read of each split, at most; 0 for all."))
    num_shown: int = field(default=24, metadata=about("Pairs in the picture grid, the first that training reads."))
    tokenizer_name_or_path: str | None = field(
        default=None, metadata=about("Caption tokenizer; by default one is trained as train_vqvae.py does.")
    )
    vocab_size: int = field(default=512, metadata=about("Most tokens of a caption tokenizer trained here."))
    model_max_length: int = field(default=16, metadata=about("Tokens a caption, the end token included."))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(InspectArguments, "inspect", argv)
    logging.getLogger("hf_vqdit.data.records").setLevel(logging.ERROR)  # the report names the bad records

    # The pairs as training reads them
    splits = load_pairs(**args.pairs)
    tokenizer = make_tokenizer(args, splits["train"])
    train_set = open_pairs(splits["train"], args.reader(tokenizer, augment=True), args.shuffle_buffer_size)
    batch = first_batch(args, train_set)

    # What is in them
    inspections = {
        name: inspect_pairs(split, train_set.reader, args.max_inspected or None, args.dataloader_num_workers, name)
        for name, split in splits.items()
    }
    num_shared = len(inspections["train"].pictures.keys() & inspections["validation"].pictures.keys())
    text = format_inspection(inspections)
    text += f"\n\n{num_shared:,} pictures of the validation split are in the training split too.\n"
    records = inspections["train"].records
    if records.exceeds(args.max_bad_fraction):
        share = records.totals["bad"] / records.totals["read"]
        text += f"\n{share:.1%} bad records are more than `max_bad_fraction` allows: training would end by them.\n"
    report = {name: inspection.report() for name, inspection in inspections.items()}

    # Report
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_pairs(batch, tokenizer).save(output_dir / "first_pairs.png")
    (output_dir / "inspection.md").write_text(text, encoding="utf-8")
    report |= {"validation_pictures_in_train": num_shared}
    (output_dir / "inspection.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(text)


def make_tokenizer(args: InspectArguments, pairs: Dataset | IterableDataset) -> PreTrainedTokenizerFast:
    """The tokenizer that is named, or one as train_vqvae.py would train it."""
    if args.tokenizer_name_or_path is not None:
        return load_caption_tokenizer(args.tokenizer_name_or_path, args.model_max_length)
    return train_caption_tokenizer(captions_of(pairs), args.vocab_size, args.model_max_length)


def first_batch(args: InspectArguments, train_set: PairDataset | PairStream) -> dict[str, Any]:
    """The first pairs that training reads: cropped, augmented and drawn as there."""
    if isinstance(train_set, PairStream):
        return next(iter(train_set.batches(args.num_shown)))
    sampler = ResumableBatchSampler(len(train_set), args.num_shown, seed=args.seed, max_train_steps=1)
    return collate_pairs(train_set.__getitems__(next(iter(sampler))))


def draw_pairs(batch: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Image.Image:
    """Pictures over their captions, both as training sees them."""
    captions = read_captions(tokenizer, batch["input_ids"])
    marks = zip(captions, batch["truncated"].tolist(), batch["has_text"].tolist(), strict=True)
    captions = [caption + " [cut]" * is_cut if has_text else "[no caption]" for caption, is_cut, has_text in marks]
    pictures = to_pictures(batch["pixel_values"])
    items = [GridItem((picture,), caption) for picture, caption in zip(pictures, captions, strict=True)]
    return draw_section("First pairs", items, "as training sees them; a gray square is a missing picture")


if __name__ == "__main__":
    main()

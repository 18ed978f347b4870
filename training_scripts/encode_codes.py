# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Encodes every picture and every caption of a data set once, for `train_dit.py --codes_dir`.

    python training_scripts/encode_codes.py --config training_scripts/configs/quickstart.yaml

Leaves `train/` and `validation/` in `output_dir`. Training on them gives the same losses as encoding on the fly.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import PairDataset, RecordCounts, load_caption_tokenizer, load_pairs
from hf_vqdit.evaluation.report import SUMMARY_FILE
from hf_vqdit.training.arguments import EncodeCodesArguments, parse_arguments
from hf_vqdit.training.codes import write_codes
from hf_vqdit.training.tokenizer_check import check_tokenizer

logger = logging.getLogger("hf_vqdit.encode_codes")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(EncodeCodesArguments, "codes", argv)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("hf_vqdit").setLevel(logging.INFO)
    start = time.perf_counter()

    tokenizer = load_caption_tokenizer(args.vqvae_model_name_or_path, subfolder="tokenizer")
    vqvae = MultimodalVQVAE.from_pretrained(args.vqvae_model_name_or_path, subfolder="vqvae")
    vqvae = vqvae.to(PartialState().device).eval()

    records = RecordCounts(args.max_bad_fraction)
    reader = args.reader(tokenizer, augment=True)  # `write_codes` refuses what is drawn anew each epoch
    datasets = {split: PairDataset(pairs, reader) for split, pairs in load_pairs(**args.pairs).items()}
    check_tokenizer(vqvae, datasets["validation"], args.tokenizer_floors)
    for split, dataset in datasets.items():
        folder = Path(args.output_dir) / split
        write_codes(folder, vqvae, dataset, args.train_batch_size, records, args.dataloader_num_workers)
        logger.info("Encoded %d pairs of the split %s.", len(dataset), split)
    for line in records.warnings():
        logger.warning(line)
    summary = {"seconds": time.perf_counter() - start, "records": records.report()}
    (Path(args.output_dir) / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the read-out by transitions gains on captions of predicted codes, for several numbers of passes.

    python benchmarks/read_out.py --pipeline runs/quickstart/pipeline --config training_scripts/configs/quickstart.yaml

The pipeline describes held-out pictures, from the same draws with and without its tokenizer's transitions: the codes
are the same, what is read differs. A tokenizer that has none gets those of training captions' bigrams, as
`train_vqvae.py` gives them to one with a `text_transition_rank`.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline

import hf_vqdit
from hf_vqdit.data import PairDataset, PairReader, collate_pairs, load_pairs
from hf_vqdit.evaluation.metrics import read_captions, share_equal
from hf_vqdit.evaluation.sampling import HeldOutPairs, read_held_out, sample
from hf_vqdit.training.arguments import TrainVQVAEArguments, parse_arguments
from hf_vqdit.training.transitions import fit_bigram_transitions

RANK = 32
NUM_BIGRAM_PAIRS = 2048


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or repository of a trained pipeline")
    parser.add_argument("--config", required=True, help="the configuration that it was trained by: its pairs are read")
    parser.add_argument("--num_inference_steps", nargs="+", type=int, default=[4, 8, 16], help="passes, each in turn")
    parser.add_argument("--num_samples", type=int, default=200, help="held-out pictures, at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    args = parser.parse_args(argv)

    settings = parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", args.config])
    pairs = load_pairs(**settings.pairs)
    pipeline = hf_vqdit.VQDiTPipeline.from_pretrained(args.pipeline)
    picture = (settings.resolution, settings.center_crop)
    held_out = read_held_out(pairs["validation"], pipeline.tokenizer, *picture, max_pairs=args.num_samples)
    pipeline.vqvae = with_transitions(pipeline, pairs["train"], settings.resolution)
    page = [f"# Captions of {len(held_out)} held-out pictures that are right, %", ""]
    page += ["| passes | likeliest tokens | with transitions |", "|---|---|---|"]
    for steps in args.num_inference_steps:
        shares = [compare(pipeline, held_out, seed, steps) for seed in args.seeds]
        page.append(f"| {steps} | {' | '.join(map(_cell, zip(*shares, strict=True)))} |")
    print("\n".join(page))
    if args.table is not None:
        args.table.write_text("\n".join(page) + "\n", encoding="utf-8")


def with_transitions(pipeline: DiffusionPipeline, pairs: Dataset, resolution: int) -> hf_vqdit.MultimodalVQVAE:
    """The pipeline's tokenizer, with its transitions or those of bigrams."""
    vqvae = pipeline.vqvae
    if vqvae.config.text_transition_rank is not None:
        return vqvae
    dataset = PairDataset(pairs, PairReader(pipeline.tokenizer, resolution))
    keys = [(0, index) for index in range(min(NUM_BIGRAM_PAIRS, len(dataset)))]
    other = hf_vqdit.MultimodalVQVAE.from_config(vqvae.config, text_transition_rank=RANK).eval().requires_grad_(False)
    other.load_state_dict(vqvae.state_dict(), strict=False)
    fit_bigram_transitions(other, [collate_pairs(dataset.__getitems__(keys))])
    return other


def compare(pipeline: DiffusionPipeline, held_out: HeldOutPairs, seed: int, num_steps: int) -> tuple[float, float]:
    """Shares of pictures whose caption is right, without and with transitions."""
    target = pipeline.vqvae.text_transitions.target
    learned, shares = target.detach().clone(), []
    for own in (torch.zeros_like(learned), learned):  # at 0 the likeliest token of each position is read
        target.data.copy_(own)
        given = {"pixel_values": held_out.pixel_values, "num_text_inference_steps": num_steps}
        texts = sample(pipeline, len(held_out), seed, **given).texts
        if held_out.scenes is not None:
            shares.append(share_equal(read_captions(texts), held_out.scenes))
        else:
            is_right = [text in captions for text, captions in zip(texts, held_out.references, strict=True)]
            shares.append(statistics.mean(is_right))
    return tuple(shares)


def _cell(shares: Sequence[float]) -> str:
    mean, low, high = (f"{100 * share:.1f}" for share in (statistics.mean(shares), min(shares), max(shares)))
    return f"{mean} ({low} to {high})" if len(shares) > 1 else mean


if __name__ == "__main__":
    main()

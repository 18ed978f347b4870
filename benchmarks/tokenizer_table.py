# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Trains the tokenizer with each of its parts on and off, and writes a table of what that gains and costs.

    python benchmarks/tokenizer_table.py --output_dir runs/tokenizer_table --table docs/tokenizer_table.md
    python benchmarks/tokenizer_table.py --output_dir runs/tokenizer_table --datasets shapes --parts base alignment

Every run of a data set has the steps, the batches and the model of its configuration (shapes and emoji at 32 pixels);
a part changes what is named after it and nothing else. A run that is done is kept and not done again, so the command
may be interrupted, and called again with other parts. The table, with the figures of all runs beside it as JSON, is
written anew after each run. Figures are those of held-out pairs.
"""

import argparse
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import PairDataset, RowKey, collate_pairs, load_caption_tokenizer, load_pairs
from hf_vqdit.data.shapes import SCENE_TYPES, parse
from hf_vqdit.evaluation.judge import ShapesJudge, train_judge
from hf_vqdit.evaluation.metrics import reconstruct, share_equal, tokenizer_figures
from hf_vqdit.training.arguments import TrainVQVAEArguments, parse_arguments
from hf_vqdit.training.run import choose_precision

ROOT = Path(__file__).parents[1]
TRAIN_SCRIPT = ROOT / "training_scripts" / "train_vqvae.py"
CONFIGS = ROOT / "training_scripts" / "configs"
FIGURES_FILE = "figures.json"
SECONDS_FILE = "seconds_per_step.json"
NUM_PAIRS = 512  # held-out pairs measured, at most
NUM_CANDIDATES = 64  # pairs among which a caption finds its picture, and the reverse
NUM_PROBE_PAIRS = 2048
NUM_MOSAIC_PICTURES = 64  # in one large picture, to be coded by tiles
NUM_TILE_CODES = 8  # rows and columns of codes that are kept of a tile
NUM_JUDGE_STEPS = None  # those that make a judge
BATCH_SIZE = 64
TIMED_STEPS, TIMED_WINDOW = 64, 16  # R1 is due once in each window


class Dataset(NamedTuple):
    """A configuration, and what is changed of it in every run."""

    config: Path
    model: dict[str, Any] = {}
    flags: tuple[str, ...] = ()


DATASETS = {
    "shapes": Dataset(CONFIGS / "quickstart.yaml"),
    "emoji": Dataset(CONFIGS / "emoji.yaml", {"patch_size": 2}, ("--resolution", "32")),  # f = 4: 8 x 8 codes
}


class Part(NamedTuple):
    """What is changed of a data set's run."""

    model: dict[str, Any] = {}
    losses: dict[str, float] = {}
    discriminator: dict[str, Any] = {}
    flags: tuple[str, ...] = ()
    of: str = "base"  # the part that it is compared with


LOSSY_TEXT = {"text_downsample_factor": 4, "text_num_groups": 1}
ADVERSARIAL = {"image_adversarial": 0.5}
PARTS = {
    "base": Part(),
    "rotation trick": Part(flags=("--gradient_estimator", "rotation_trick")),
    "codebook on the gradient": Part(flags=("--codebook_update", "gradient")),
    "shared codebook": Part(model={"shared_codebook": True}),
    "layer norm": Part(model={"norm_type": "layer"}),
    "attention": Part(model={"mid_block_add_attention": True}),
    "discriminator, adaptive weight": Part(losses=ADVERSARIAL),
    "discriminator, fixed weight": Part(losses={"image_adversarial": 0.05}, discriminator={"adaptive": False}),
    "discriminator without R1": Part(losses=ADVERSARIAL, discriminator={"r1_gamma": 0.0}),
    "discriminator with LeCAM": Part(losses=ADVERSARIAL, discriminator={"lecam_weight": 0.01}),
    "perceptual": Part(losses={"image_perceptual": 0.1}),
    "alignment": Part(model={"projection_dim": 64}, losses={"alignment": 0.1}),
    "random flips": Part(flags=("--random_flip", "true")),
    "text r = 2, G = 2": Part(model={"text_downsample_factor": 2, "text_num_groups": 2}),
    "text r = 4, G = 4": Part(model={"text_downsample_factor": 4, "text_num_groups": 4}),
    "text r = 4, G = 1": Part(model=LOSSY_TEXT),
    "text r = 4, G = 1, bigrams": Part(model=LOSSY_TEXT | {"text_transition_rank": 32}, of="text r = 4, G = 1"),
    "text r = 4, G = 1, CRF": Part(
        model=LOSSY_TEXT | {"text_transition_rank": 32}, losses={"text_crf": 0.5}, of="text r = 4, G = 1"
    ),
}
COLUMNS = {  # figure -> its title and how it is written
    "image_psnr_db": ("PSNR, dB", "{:.2f}"),
    "image_ssim": ("SSIM", "{:.3f}"),
    "image_judged": ("judged, %", "{:.1%}"),
    "image_tiling_psnr_db": ("tiles, dB", "{:+.3f}"),
    "image_codebook_usage": ("codes used, %", "{:.1%}"),
    "image_codebook_perplexity": ("perplexity", "{:.0f}"),
    "text_reconstruction_exact": ("captions exact, %", "{:.1%}"),
    "text_exact_by_argmax": ("by argmax, %", "{:.1%}"),
    "retrieval_probe": ("R@1, probe, %", "{:.1%}"),
    "retrieval_embeds": ("R@1, embeddings, %", "{:.1%}"),
    "seconds_per_step": ("s a step", "{:.3f}"),
}
NOTES = """\
- Tiles: what PSNR gains or loses when a picture, a mosaic of held-out ones, is coded tile by tile and not whole.
- R@1: of {candidates} held-out captions, how many find their picture first, and the reverse, on average; equal
  captions are all right. Probe: by a linear map (ridge regression, fitted on {probe} training pairs) from the codes of
  pictures to those of captions. Embeddings: by the model's own, where it has them.
- By argmax: the same model, read out without its transitions.
- S a step: on one core of a CPU, with all that a part trains; of each part the fastest {window} steps of {timed}.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--datasets", nargs="+", default=[*DATASETS], help="shapes, emoji, or configurations")
    parser.add_argument("--parts", nargs="+", help=f"of {', '.join(PARTS)}; by default all that can be trained")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=int, help="by default those of the configuration")
    parser.add_argument("--mixed_precision", help="of all runs; by default what this machine is fast at")
    parser.add_argument("--perceptual_model_name_or_path", help="network of the part `perceptual`")
    parser.add_argument("--table", type=Path, help="Markdown file to write; the JSON goes beside it")
    args = parser.parse_args(argv)
    parts = args.parts or [name for name in PARTS if name != "perceptual" or args.perceptual_model_name_or_path]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    if "perceptual" in parts and not args.perceptual_model_name_or_path:
        parser.error("the part `perceptual` needs weights: name them by --perceptual_model_name_or_path")

    if args.mixed_precision is None:  # once: beside other work a run might choose otherwise than the one before
        args.mixed_precision = choose_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for seed, dataset, name in itertools.product(args.seeds, args.datasets, parts):  # one seed of everything first
        run(name, dataset, seed, args)
        write_table(args.output_dir, args.table)
    for dataset, name in itertools.product(args.datasets, parts):
        time_steps(name, dataset, args)
        write_table(args.output_dir, args.table)
    print(table_of(read_records(args.output_dir)))


# Runs


def run(name: str, dataset: str, seed: int, args: argparse.Namespace) -> None:
    """Trains and measures one tokenizer, unless that is done."""
    folder = folder_of(name, dataset, args) / f"seed-{seed}"
    if (folder / FIGURES_FILE).is_file():
        return
    print(f"{folder}", flush=True)
    flags = flags_of(PARTS[name], dataset, args)
    flags += ["--output_dir", str(folder), "--seed", str(seed)]
    # Threads that spin while they wait would make a run beside other work many times slower.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, TRAIN_SCRIPT, *flags], check=True, env=environment)
    settings = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
    figures = measure(folder, settings)
    record = {"dataset": Path(dataset).stem, "part": name, "seed": seed, "steps": settings.max_train_steps}
    record |= {"mixed_precision": args.mixed_precision, "figures": figures}
    (folder / FIGURES_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def time_steps(name: str, dataset: str, args: argparse.Namespace) -> None:
    """Measures what a step takes on one core, unless that is done, with all that comes in only later in a run.

    The fastest of some windows of steps: other work on the machine makes steps slower, never faster.
    """
    folder = folder_of(name, dataset, args)
    if (folder / SECONDS_FILE).is_file():
        return
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    flags = [*flags_of(PARTS[name], dataset, args, TIMED_STEPS), "--logging_steps", str(TIMED_WINDOW)]
    with TemporaryDirectory() as output_dir:
        flags += ["--output_dir", output_dir, "--report_to", "none"]
        training = subprocess.run(
            [sys.executable, TRAIN_SCRIPT, *flags], env=environment, stderr=subprocess.PIPE, text=True
        )
    if training.returncode != 0:
        raise RuntimeError(f"Steps of {name!r} could not be timed: {training.stderr}")
    speeds = [float(speed) for speed in re.findall(r"steps_per_second (\S+)", training.stderr)]
    seconds = 1 / max(speeds[1:])  # the first window has the start of the run in it
    (folder / SECONDS_FILE).write_text(json.dumps(seconds) + "\n", encoding="utf-8")


def folder_of(name: str, dataset: str, args: argparse.Namespace) -> Path:
    """Where everything about a part goes."""
    return args.output_dir / Path(dataset).stem / name.replace(" ", "_").replace(",", "")


def flags_of(part: Part, dataset: str, args: argparse.Namespace, timed_steps: int | None = None) -> list[str]:
    """The command line of a run, without output and seed: settings over those of the configuration.

    Where steps are timed, what a run begins with later is there from the first step on.
    """
    dataset = DATASETS.get(dataset, Dataset(Path(dataset)))
    common = ["--config", str(dataset.config), *dataset.flags]
    base = parse_arguments(TrainVQVAEArguments, "vqvae", [*common, "--output_dir", "x"])
    steps = timed_steps or args.max_train_steps or base.max_train_steps
    model = dataset.model | part.model
    if model.get("shared_codebook"):  # the codebook of the pictures
        model |= {"text_codebook_size": base.model_init_kwargs["image_codebook_size"]}
        model |= {"text_code_dim": base.model_init_kwargs["code_dim"]}
    flags = [*common, *part.flags, "--max_train_steps", str(steps), "--validation_steps", "0"]
    flags += ["--mixed_precision", args.mixed_precision]
    flags += ["--checkpointing_steps", "0"]  # a run that was interrupted begins anew
    flags += ["--model_init_kwargs", json.dumps(model), "--loss_weights", json.dumps(part.losses)]
    if part.losses.get("image_adversarial"):
        start = {"start_step": steps // 4, "warmup_steps": steps // 12, "ramp_steps": steps // 6}
        if timed_steps:
            start = {"start_step": 1, "warmup_steps": 1, "ramp_steps": 1}
        start |= {"num_layers": 2}
        flags += ["--discriminator_kwargs", json.dumps(start | {"width": 32} | part.discriminator)]
    if part.losses.get("image_perceptual"):
        flags += ["--perceptual_model_name_or_path", args.perceptual_model_name_or_path]
    if timed_steps:
        flags += ["--quantizer_start_step", "1", "--alignment_ramp_steps", "1"]
    return flags


# Its figures


def measure(folder: Path, settings: TrainVQVAEArguments) -> dict[str, float]:
    """What held-out pairs say of a trained tokenizer."""
    vqvae = MultimodalVQVAE.from_pretrained(folder, subfolder="vqvae").eval().requires_grad_(False)
    vqvae.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_caption_tokenizer(folder, subfolder="tokenizer")
    pairs = load_pairs(**settings.pairs)
    held_out, known = (PairDataset(pairs[split], settings.reader(tokenizer)) for split in ("validation", "train"))
    batches = list(read_batches(held_out, NUM_PAIRS, vqvae.device))
    figures = tokenizer_figures(vqvae, batches, tokenizer.pad_token_id)
    pixel_values = torch.cat([batch["pixel_values"] for batch in batches]).cpu()
    figures["image_tiling_psnr_db"] = tiling_gain(vqvae, pixel_values)
    if settings.dataset_name == "shapes":
        truth = [parse(captions[0]) for captions in pairs["validation"][: len(pixel_values)]["caption"]]
        scenes = get_judge(truth[0]).read(reconstruct(vqvae, pixel_values))
        figures["image_judged"] = share_equal(scenes, truth)
    if vqvae.config.text_transition_rank is not None:
        vqvae.text_transitions.target.zero_()  # the read-out is then the likeliest token of each position
        plain = tokenizer_figures(vqvae, batches, tokenizer.pad_token_id)
        figures["text_exact_by_argmax"] = plain["text_reconstruction_exact"]
    probe = fit_probe(vqvae, read_batches(known, NUM_PROBE_PAIRS, vqvae.device))
    found = {"retrieval_probe": [], "retrieval_embeds": []}
    for batch in batches:
        image, text = pooled_codes(vqvae, batch)
        found["retrieval_probe"].append(retrieval_at_1(image @ probe, text, batch["input_ids"]))
        if vqvae.config.projection_dim is not None:
            output = vqvae(batch["pixel_values"], batch["input_ids"])
            found["retrieval_embeds"].append(
                retrieval_at_1(output.image_embeds, output.text_embeds, batch["input_ids"])
            )
    return figures | {name: statistics.mean(values) for name, values in found.items() if values}


def read_batches(dataset: PairDataset, num_pairs: int, device: torch.device) -> Iterable[dict[str, Any]]:
    """The first pairs of a data set, in whole batches as far as they go."""
    rows = range(min(num_pairs, len(dataset)))
    for start in rows[::BATCH_SIZE]:
        batch = collate_pairs([dataset[RowKey(0, row)] for row in rows[start : start + BATCH_SIZE]])
        yield {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def tiling_gain(vqvae: MultimodalVQVAE, pixel_values: torch.Tensor) -> float:
    """PSNR of a mosaic of pictures `(N, 3, H, W)` that is coded by tiles less that of the same coded whole, in dB."""
    side = math.isqrt(min(NUM_MOSAIC_PICTURES, len(pixel_values)))
    rows = pixel_values[: side**2].split(side)
    mosaic = torch.cat([torch.cat([*row], dim=-1) for row in rows], dim=-2)[None]  # (1, 3, side H, side W)
    whole = reconstruct(vqvae, mosaic)
    vqvae.enable_tiling(2 * vqvae.tile_margin + NUM_TILE_CODES * vqvae.image_downsample_factor)
    tiled = reconstruct(vqvae, mosaic)
    vqvae.disable_tiling()
    tiled_psnr, psnr = (peak_signal_noise_ratio(x, mosaic, data_range=(-1.0, 1.0)) for x in (tiled, whole))
    return (tiled_psnr - psnr).item()


_judges: dict[int, ShapesJudge] = {}


def get_judge(scene: Any) -> ShapesJudge:
    """A judge for such scenes, trained once."""
    num_objects = next(number for number, scene_type in SCENE_TYPES.items() if type(scene) is scene_type)
    if num_objects not in _judges:
        _judges[num_objects] = train_judge(num_objects, num_train_steps=NUM_JUDGE_STEPS)
    return _judges[num_objects]


def pooled_codes(vqvae: MultimodalVQVAE, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Code vectors of pictures, by quarters, and of captions, averaged: `(B, 4 D + 1)` and `(B, G D)`, float64."""
    codes = vqvae.encode(batch["pixel_values"], batch["input_ids"])
    image = vqvae.image_quantizer.lookup(codes.image_codes).double().movedim(-1, 1)
    image = F.adaptive_avg_pool2d(image, 2).flatten(1)
    is_real = (codes.text_codes < vqvae.text_codebook_size).unsqueeze(-1)  # (B, S/r, G, 1)
    text = vqvae.text_quantizer.lookup(codes.text_codes.clamp(max=vqvae.text_codebook_size - 1)).double() * is_real
    text = (text.sum(dim=1) / is_real.sum(dim=1)).flatten(1)
    return F.pad(image, (0, 1), value=1.0), text


def fit_probe(vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]], ridge: float = 1e-3) -> torch.Tensor:
    """The linear map from codes of pictures to codes of captions, `(4 D + 1, G D)`, by ridge regression."""
    images, texts = zip(*(pooled_codes(vqvae, batch) for batch in batches), strict=True)
    image, text = torch.cat(images), torch.cat(texts)
    penalty = ridge * len(image) * torch.eye(image.shape[1], dtype=image.dtype, device=image.device)
    return torch.linalg.solve(image.T @ image + penalty, image.T @ text)


def retrieval_at_1(image: torch.Tensor, text: torch.Tensor, input_ids: torch.LongTensor) -> float:
    """Share of pictures whose nearest caption is theirs, and of captions whose nearest picture is, on average."""
    image, text, input_ids = image[:NUM_CANDIDATES], text[:NUM_CANDIDATES], input_ids[:NUM_CANDIDATES]
    similarity = F.normalize(image - image.mean(dim=0), dim=1) @ F.normalize(text - text.mean(dim=0), dim=1).T
    is_right = (input_ids.unsqueeze(0) == input_ids.unsqueeze(1)).all(dim=-1)
    ways = [is_right.gather(1, own.argmax(dim=1, keepdim=True)) for own in (similarity, similarity.T)]
    return torch.cat(ways).double().mean().item()


# The table


def read_records(output_dir: Path) -> list[dict[str, Any]]:
    """What was measured of each run of a folder, with the seconds of its part, where those are known."""
    records = []
    for file in sorted(output_dir.glob(f"*/*/*/{FIGURES_FILE}")):
        record = json.loads(file.read_text(encoding="utf-8"))
        seconds_file = file.parents[1] / SECONDS_FILE
        if seconds_file.is_file():
            record["figures"]["seconds_per_step"] = json.loads(seconds_file.read_text(encoding="utf-8"))
        records.append(record)
    return records


def write_table(output_dir: Path, table: Path | None) -> None:
    """Writes the table, and beside it the figures of each run as JSON."""
    if table is not None:
        records = read_records(output_dir)
        table.write_text(table_of(records), encoding="utf-8")
        table.with_suffix(".json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def table_of(records: list[dict[str, Any]]) -> str:
    """All runs as Markdown: the mean over the seeds, in brackets the least and the greatest."""
    page = ["# The tokenizer, part by part", ""]
    for dataset in sorted({record["dataset"] for record in records}, reverse=True):
        own = [record for record in records if record["dataset"] == dataset]
        columns = [name for name in COLUMNS if any(name in record["figures"] for record in own)]
        steps, precisions = ({record[name] for record in own} for name in ("steps", "mixed_precision"))
        settings = f"{' and '.join(map(str, sorted(steps)))} steps, mixed precision {' and '.join(sorted(precisions))}"
        page += [f"## {dataset}: {settings}", ""]
        page += ["| part | seeds | " + " | ".join(COLUMNS[name][0] for name in columns) + " | PSNR against |"]
        page += ["|" + "---|" * (len(columns) + 3)]
        for part in PARTS:
            figures = [record["figures"] for record in own if record["part"] == part]
            if figures:
                cells = [_cell([x[column] for x in figures if column in x], column) for column in columns]
                page.append(f"| {part} | {len(figures)} | {' | '.join(cells)} | {_difference(part, own)} |")
        page.append("")
    return "\n".join(
        [*page, NOTES.format(candidates=NUM_CANDIDATES, probe=NUM_PROBE_PAIRS, window=TIMED_WINDOW, timed=TIMED_STEPS)]
    )


def _cell(values: list[float], column: str) -> str:
    if not values:
        return ""
    form = COLUMNS[column][1]
    mean, low, high = (form.format(value).rstrip("%") for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if low != high else mean


def _difference(part: str, records: list[dict[str, Any]]) -> str:
    """PSNR of a part less that of what it is compared with, over the seeds that both have."""
    other = PARTS[part].of
    psnr = {(record["part"], record["seed"]): record["figures"]["image_psnr_db"] for record in records}
    differences = [
        psnr[part, seed] - psnr[other, seed] for name, seed in psnr if name == part and (other, seed) in psnr
    ]
    return f"{statistics.mean(differences):+.2f} ({other})" if differences and part != other else ""


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The report of an evaluation: `report.json` for programs, `report.md` for people."""

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .picture_sets import NUM_NEIGHBORS

SUMMARY_FILE = "train_summary.json"  # in the folder of each training script's run; holds `seconds`


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Args:
        key (`str`): Its name in `report.json`; see [`Figure.key_on`].
        title (`str`): What it is, in words.
        style (`str`, defaults to `"{:.1%}"`): How its value is printed, as for `str.format`.
        target (`float`, *optional*): What the quickstart is expected to reach.
        is_limit (`bool`, defaults to `False`): Whether the target is the most, rather than the least, allowed.
        on_features (`bool`, defaults to `False`): Whether it rests on features of pictures.
    """

    key: str
    title: str
    style: str = "{:.1%}"
    target: float | None = None
    is_limit: bool = False
    on_features: bool = False

    def key_on(self, features: str | None) -> str:
        """Its name in `report.json`: one that rests on features ends in their name, say `"own_features"`."""
        return f"{self.key}_{features}" if self.on_features else self.key

    def is_reached(self, value: float) -> bool:
        """Whether a value meets the target."""
        return value <= self.target if self.is_limit else value >= self.target


FIGURES = (
    Figure("image_psnr_db", "picture reconstruction, PSNR", "{:.1f} dB", 27),
    Figure("image_ssim", "picture reconstruction, SSIM", "{:.3f}"),
    Figure("image_rfid", "picture reconstruction, FID to the originals", "{:.2f}", on_features=True),
    Figure("image_reconstruction_judged", "every attribute right in the reconstruction", target=0.95),
    Figure("text_reconstruction_exact", "captions through the text codec at r = 2, exact", target=0.99),
    Figure("text_reconstruction_exact_r1", "captions through the text codec at r = 1, exact"),
    Figure("text_reconstruction_exact_r4", "captions through the text codec at r = 4, exact"),
    Figure("image_codebook_usage", "picture codes with a share above .01/V", target=0.90),
    Figure("image_codebook_perplexity", "picture codebook, perplexity", "{:.0f}"),
    Figure("text_codebook_usage", "text codes with a share above .01/V"),
    Figure("text_codebook_perplexity", "text codebook, perplexity", "{:.0f}"),
    Figure("text_to_image_judged", "text to image, every attribute right", target=0.75),
    Figure("image_to_text_parsed", "image to text, the caption tells exactly the picture", target=0.75),
    Figure("image_to_text_exact", "image to text, the caption is one of the picture's"),
    Figure("image_to_text_chrf", "image to text, chrF", "{:.1f}"),
    Figure("image_to_text_chrf_en", "image to text, chrF of English names", "{:.1f}"),
    Figure("image_to_text_chrf_zh", "image to text, chrF of Chinese names", "{:.1f}"),
    Figure("translation_exact", "English to Chinese names, exact"),
    Figure("translation_chrf", "English to Chinese names, chrF", "{:.1f}"),
    Figure("num_compositions", "held-out compositions: skin tones, hair, colors", "{:.0f}"),
    Figure("image_to_text_attributes", "on these, image to text, the caption's agree"),
    Figure("nearest_attributes", "on these, the name's of the nearest training picture agree"),
    Figure("text_to_image_attributes", "on these, text to image, the name's of the real picture nearest to it agree"),
    Figure("reconstruction_attributes", "on these, the same for what the tokenizer gives back"),
    Figure("image_to_text_bleu", "image to text, BLEU (sacrebleu's, tokens of `zh`)", "{:.1f}"),
    Figure("image_to_text_in_training", "image to text, the caption is one of a training picture's"),
    Figure("joint_text_in_training", "joint, the caption is one of a training picture's"),
    Figure("held_out_text_in_training", "held-out captions that are one of a training picture's"),
    Figure("text_to_image_clip_score", "text to image, CLIPScore", "{:.2f}"),
    Figure("image_to_text_clip_score", "image to text, CLIPScore", "{:.2f}"),
    Figure("joint_clip_score", "joint, CLIPScore", "{:.2f}"),
    Figure("real_clip_score", "held-out pairs, CLIPScore", "{:.2f}"),
    Figure("exchanged_clip_score", "held-out pictures with each other's captions, CLIPScore", "{:.2f}"),
    Figure("joint_agreement", "joint pairs that agree", target=0.75),
    Figure(
        "joint_marginal_distance", "joint, attribute furthest from the data (total variation)", "{:.3f}", 0.1, True
    ),
    Figure("joint_distinct", "joint, distinct combinations relative to real draws", target=0.80),
    Figure("inpaint_judged", "half of a picture hidden, every attribute right", target=0.75),
    Figure("fill_words_exact", "`[MASK]` words filled rightly", target=0.80),
    Figure("text_to_image_passes", "text to image, passes of the network", "{:.1f}"),
    Figure("text_to_image_seconds", "text to image, seconds a picture", "{:.3f}"),
    Figure("image_to_text_passes", "image to text, passes of the network", "{:.1f}"),
    Figure("image_to_text_seconds", "image to text, seconds a caption", "{:.3f}"),
    Figure("joint_passes", "joint, passes of the network", "{:.1f}"),
    Figure("joint_seconds", "joint, seconds a pair", "{:.3f}"),
    Figure("judge_accuracy", "judge on real held-out pictures", target=0.99),
    Figure("minutes", "minutes of the whole run", "{:.1f}"),
    Figure("matmul_gflops", "speed of the machine in GFLOP/s, float32", "{:.0f}"),
)
SET_FIGURES = (  # of sets of pictures
    Figure("num_pictures", "pictures from a seed", "{:.0f}"),
    Figure("fid", "FID to the training pictures", "{:.2f}", on_features=True),
    Figure("fid_floor", "FID of as many training pictures to the others", "{:.2f}", on_features=True),
    Figure("kid", "KID to the training pictures", "{:.4f}", on_features=True),
    Figure("precision", "precision", "{:.3f}", on_features=True),
    Figure("recall", "recall", "{:.3f}", on_features=True),
    Figure("density", "density", "{:.3f}", on_features=True),
    Figure("coverage", "coverage", "{:.3f}", on_features=True),
    Figure("diversity", "diversity, training pictures = 1", "{:.3f}", on_features=True),
    Figure("nearest_distance", "distance to the nearest training picture", "{:.3f}", on_features=True),
    Figure("near_duplicates", "near duplicates, on features", on_features=True),
    Figure("near_duplicates_pixels", "near duplicates, on pixels"),
    Figure("exact_duplicates", "exact duplicates"),
)
SET_TITLES = {
    "text_to_image": "Text to image",
    "joint": "Joint",
    "reconstruction": "Reconstruction",
    "held_out": "Held out",
}
BOUND_TITLES = {"x": "p(x)", "y": "p(y)", "x|y": "p(x given y)", "y|x": "p(y given x)", "x,y": "p(x, y)"}


def write_report(figures: Mapping[str, Any], output_dir: str | Path, with_targets: bool) -> None:
    """Writes `report.json` and `report.md`.

    Args:
        figures (`Mapping[str, Any]`):
            Values by the keys of `FIGURES`, as many as were measured; `spread` (key -> least and greatest value over
            the sampling seeds), `bounds` (see [`summarize_bounds`]), `features`, `comparison` and `picture_sets` (see
            [`~.comparison.compare_answers`]), `notes` (sentences), `samples` (what was drawn how often) and `measured`
            (see [`describe_machine`]).
        output_dir (`str` or `Path`): The folder; made if it is not there.
        with_targets (`bool`): Whether to print the quickstart's targets beside the figures.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_without_nan(figures), indent=2, allow_nan=False)
    (output_dir / "report.json").write_text(f"{content}\n", encoding="utf-8")
    (output_dir / "report.md").write_text(format_report(figures, with_targets), encoding="utf-8")


def _without_nan(figures: Any) -> Any:
    """The same with `None` for numbers that JSON does not know: what could not be measured."""
    if isinstance(figures, Mapping):
        return {key: _without_nan(value) for key, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [_without_nan(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def format_report(figures: Mapping[str, Any], with_targets: bool) -> str:
    """The report in Markdown; arguments as for [`write_report`]."""
    columns = ["what", "key", "measured", "over the seeds", *(["target", "reached"] if with_targets else [])]
    rows = [_format_row(figure, figures, with_targets) for figure in FIGURES if _key(figure, figures) in figures]
    lines = ["# Report", "", *format_table(columns, rows)]
    if "joint_marginals" in figures:
        distances = ", ".join(f"{name} {distance:.3f}" for name, distance in figures["joint_marginals"].items())
        lines += ["", f"Joint samples, total variation of each attribute from the data: {distances}."]
    if figures.get("picture_sets"):
        lines += ["", *_format_sets(figures)]
    if "bounds" in figures:
        lines += ["", *_format_bounds(figures["bounds"])]
    if figures.get("notes"):
        lines += ["", "## Notes", "", *(f"- {note}" for note in figures["notes"])]
    lines += ["", "## Measured", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in figures.get("measured", {}).items()]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in figures.get("samples", {}).items()]
    return "\n".join(lines) + "\n"


def _key(figure: Figure, figures: Mapping[str, Any]) -> str:
    return figure.key_on(figures.get("features"))


def _format_row(figure: Figure, figures: Mapping[str, Any], with_targets: bool) -> list[str]:
    key = _key(figure, figures)
    value, spread = figures[key], figures.get("spread", {}).get(key)
    row = [figure.title, f"`{key}`", figure.style.format(value), _format_spread(figure, spread)]
    if with_targets and figure.target is not None:
        at = "at most" if figure.is_limit else "at least"
        row += [f"{at} {figure.style.format(figure.target)}", "yes" if figure.is_reached(value) else "no"]
    elif with_targets:
        row += ["", ""]
    return row


def _format_spread(figure: Figure, spread: Sequence[float] | None) -> str:
    return " to ".join(figure.style.format(end) for end in spread) if spread else ""


def _format_sets(figures: Mapping[str, Any]) -> list[str]:
    sets, rests_on = figures["picture_sets"], figures["comparison"]
    rows = []
    for figure in SET_FIGURES:
        key, cells = _key(figure, figures), []
        for own in sets.values():
            spread = own["spread"].get(key)
            around = f" ({_format_spread(figure, spread)})" if spread and spread[0] < spread[1] else ""
            cells.append(figure.style.format(own[key]) + around if key in own else "")
        if any(cells):
            rows.append([figure.title, f"`{key}`", *cells])
    lines = ["## Sets of pictures", "", *format_table(["what", "key", *(SET_TITLES[name] for name in sets)], rows), ""]
    lines += [
        f"- Features: {rests_on['features']}. Figures whose names end in `{figures['features']}` compare with figures "
        "on the same features only.",
        f"- Training pictures: {rests_on['training_pictures']}. Held out: the real pictures of the captions that were "
        "asked for, which a perfect pipeline would draw. Reconstruction: these as they come back from their codes.",
        "- FID falls with the number of pictures: it compares with that of as many, and with the row below it, which "
        "is what as many real pictures have. KID, the mean over 100 subsets of 1,000 pictures or of all if there are "
        "fewer, does not, and is about 0 for real pictures.",
        f"- Precision, recall, density and coverage: against as many training pictures, {NUM_NEIGHBORS} neighbors.",
    ]
    if "near_distance" in rests_on:
        lines += [
            "- The distance to the nearest training picture is a median, that of held-out pictures as they come back "
            "from their codes being 1. A near duplicate is nearer than 99 % of these "
            f"{rests_on['held_out_pictures']} ({rests_on['near_distance']:.3f} on features, "
            f"{rests_on['near_distance_pixels']:.1f} of 255 on pixels): of new pictures 1 % are. An exact duplicate "
            "equals its nearest training picture or what comes back from that one's codes. `nearest.png` shows the "
            "nearest pairs.",
        ]
    return lines


def _format_bounds(bounds: Mapping[str, Any]) -> list[str]:
    rows = [
        [title, f"{bounds[name]['bits_per_pair']:.1f}", f"{bounds[name]['bits_per_code']:.3f}"]
        for name, title in BOUND_TITLES.items()
    ]
    lines = ["## Bounds on -log p", "", "x is the picture's codes, y the caption's.", ""]
    lines += format_table(["of", "bits a pair", "bits a code"], rows)
    holds = {True: "yes", False: "no"}
    return lines + [
        "",
        f"- p(x given y) below p(x): {holds[bounds['image_is_helped_by_text']]}",
        f"- p(y given x) below p(y): {holds[bounds['text_is_helped_by_image']]}",
        f"- p(x, y) against p(y) and p(x given y) together: {bounds['joint_gap_bits']:+.1f} bits a pair",
    ]


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def summarize_bounds(bits: Mapping[str, float], num_image_codes: int, num_text_codes: int) -> dict[str, Any]:
    """Puts bounds in bits a pair beside each other.

    Args:
        bits (`Mapping[str, float]`): Bits a pair, by the names of `BOUND_TITLES`.
        num_image_codes (`int`): Codes a picture, L_x.
        num_text_codes (`int`): Codes a caption, padding included, L_y.

    Returns:
        `dict`: For each bound `bits_per_pair` and `bits_per_code`; whether the bound of each modality is lower given
            the other; and `joint_gap_bits`, by how much the joint bound exceeds that of y plus that of x given y. For
            exact posteriors it is 0.
    """
    num_codes = {name: num_image_codes if name.startswith("x") else num_text_codes for name in BOUND_TITLES}
    num_codes["x,y"] = num_image_codes + num_text_codes
    summary: dict[str, Any] = {
        name: {"bits_per_pair": bits[name], "bits_per_code": bits[name] / num_codes[name]} for name in BOUND_TITLES
    }
    summary["image_is_helped_by_text"] = bits["x|y"] < bits["x"]
    summary["text_is_helped_by_image"] = bits["y|x"] < bits["y"]
    summary["joint_gap_bits"] = bits["x,y"] - (bits["y"] + bits["x|y"])
    return summary


def summarize_seeds(by_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean of each figure over the sampling seeds, and under `spread` its least and its greatest value.

    Args:
        by_seed (`Sequence[Mapping[str, float]]`): The same figures for each seed.

    Returns:
        `dict`
    """
    values = {key: [figures[key] for figures in by_seed] for key in by_seed[0]}
    means = {key: sum(own) / len(own) for key, own in values.items()}
    return means | {"spread": {key: [min(own), max(own)] for key, own in values.items()}}


def merge_figures(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Figures from several sources as one `dict`, and their `spread` too."""
    spread = {key: ends for part in parts for key, ends in part.get("spread", {}).items()}
    return {key: value for part in parts for key, value in part.items()} | {"spread": spread}


def read_training_minutes(run_dirs: Sequence[str | Path]) -> dict[str, float]:
    """How long each training run took, from the `train_summary.json` that it left.

    Args:
        run_dirs (`Sequence[str | Path]`): The `output_dir` of each training script.

    Returns:
        `dict[str, float]`: Minutes by the folder's name.

    Raises:
        ValueError: If a folder has no such file.
    """
    minutes = {}
    for folder in map(Path, run_dirs):
        file = folder / SUMMARY_FILE
        if not file.is_file():
            raise ValueError(f"{folder} has no {SUMMARY_FILE}: name folders of finished training runs in `run_dirs`.")
        minutes[folder.name] = json.loads(file.read_text(encoding="utf-8"))["seconds"] / 60
    return minutes


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """When, on what and with what figures were measured.

    Args:
        device (`torch.device`): That of the pipeline.
        dtype (`torch.dtype`): That of the pipeline.

    Returns:
        `dict[str, str]`
    """
    processor = f"{_processor_name()}, {torch.get_num_threads()} threads"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _processor_name() -> str:
    """The model's name where Linux tells it; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_matmul_gflops(size: int = 2048, num_repeats: int = 5) -> float:
    """The speed of a float32 matrix product on this processor, at its best of a few.

    Args:
        size (`int`, defaults to 2048): Side of the matrices.
        num_repeats (`int`, defaults to 5): Products.

    Returns:
        `float`: In 10^9 operations a second.
    """
    matrix = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9

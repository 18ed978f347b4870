# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Measures a trained pipeline on held-out pairs, in every direction.

    python training_scripts/evaluate.py --config training_scripts/configs/quickstart.yaml
    python training_scripts/evaluate.py --pipeline runs/mine --train_data_dir my_pictures --output_dir runs/mine
    python training_scripts/evaluate.py --config training_scripts/configs/quickstart.yaml --sweep

Leaves in `output_dir`: `report.md`, `report.json` and `grid.png`; with `--sweep` instead `sweep.md`, `sweep.json` and
`sweep.png`, which compare settings of the sampling. A judge network, trained on the spot, reads the pictures of the
built-in `shapes`; for other data the figures are those that need none.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image

from hf_vqdit import MultimodalVQVAE, VQDiTPipeline
from hf_vqdit.data import load_caption_tokenizer, load_pairs
from hf_vqdit.data.shapes import OneObject
from hf_vqdit.evaluation.bounds import bound_bits
from hf_vqdit.evaluation.grids import GridItem, draw_section, show_hidden, stack_sections
from hf_vqdit.evaluation.judge import ShapesJudge, judge_accuracy, judge_answers, train_judge
from hf_vqdit.evaluation.metrics import caption_chrf, caption_exact, reconstruct, share_equal, tokenizer_figures
from hf_vqdit.evaluation.report import (
    BOUND_TITLES,
    describe_machine,
    format_report,
    measure_matmul_gflops,
    read_training_minutes,
    summarize_bounds,
    summarize_seeds,
    write_report,
)
from hf_vqdit.evaluation.sampling import Answers, HeldOutPairs, Tasks, answer_tasks, make_tasks, read_held_out
from hf_vqdit.evaluation.sweep import DIRECTIONS, run_sweep
from hf_vqdit.evaluation.sweep_report import format_sweep, write_sweep
from hf_vqdit.training.arguments import CALL_DEFAULTS, DataArguments, parse_arguments
from hf_vqdit.training.previews import to_pictures

NUM_SHOWN = 8  # samples a section of the grid: the first ones, not selected


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(kw_only=True)
class EvaluateArguments(DataArguments):
    """Settings of `training_scripts/evaluate.py`."""

    pipeline: str = field(metadata=_help("The trained pipeline: a folder or a repository."))
    output_dir: str = field(metadata=_help("Where the report and the grid, or the sweep, go."))
    sweep: bool = field(
        default=False, metadata=_help("Compare settings of the sampling, in place of the report: takes longer.")
    )
    sweep_directions: list[str] = field(
        default_factory=lambda: [*DIRECTIONS],
        metadata=_help(f"What a sweep compares: some of {', '.join(DIRECTIONS)}."),
    )
    sweep_samples: int = field(default=100, metadata=_help("Samples of a sweep's setting, for each sampling seed."))
    compare_text_vqvae: str | None = field(
        default=None,
        metadata=_help("A second text codec to measure, of another r: a folder with `vqvae` and `tokenizer` inside."),
    )
    run_dirs: list[str] = field(
        default_factory=list, metadata=_help("Folders of the training runs whose minutes are added up.")
    )
    num_validation_pairs: int = field(default=1000, metadata=_help("Held-out pairs for the tokenizer's figures."))
    num_samples: int = field(default=100, metadata=_help("Samples of each direction, for each sampling seed."))
    num_joint_samples: int = field(default=1000, metadata=_help("Joint samples, over all sampling seeds together."))
    num_sampling_seeds: int = field(default=3, metadata=_help("Sampling seeds; the report gives mean and spread."))
    num_inference_steps: int = field(default=CALL_DEFAULTS["num_inference_steps"], metadata=_help("Sampling steps."))
    num_text_inference_steps: int | None = field(
        default=None, metadata=_help("Sampling steps of captions; by default as many.")
    )
    joint_order: str = field(
        default=CALL_DEFAULTS["joint_order"],
        metadata=_help('Joint samples: "text_first", "image_first" or "together".'),
    )
    guidance_scale: float = field(
        default=CALL_DEFAULTS["guidance_scale"], metadata=_help("Guidance of pictures by captions.")
    )
    text_guidance_scale: float = field(
        default=CALL_DEFAULTS["text_guidance_scale"], metadata=_help("Guidance of captions by pictures.")
    )
    num_bound_pairs: int = field(default=200, metadata=_help("Held-out pairs for the bounds."))
    num_bound_samples: int = field(default=4, metadata=_help("Draws a pair for the bounds."))
    eval_batch_size: int = field(default=125, metadata=_help("Samples a call."))

    @property
    def call(self) -> dict[str, Any]:
        """The settings that every call of the pipeline takes."""
        text_steps = self.num_text_inference_steps
        return {
            "num_inference_steps": self.num_inference_steps,
            "num_text_inference_steps": self.num_inference_steps if text_steps is None else text_steps,
            "guidance_scale": self.guidance_scale,
            "text_guidance_scale": self.text_guidance_scale,
            "joint_order": self.joint_order,
        }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(EvaluateArguments, "evaluate", argv)
    training_minutes = read_training_minutes(args.run_dirs)
    start = time.perf_counter()

    # What is measured, and on what
    pipeline = VQDiTPipeline.from_pretrained(args.pipeline).to(PartialState().device)
    pairs = load_pairs(**args.pairs)["validation"]
    read = partial(
        read_held_out,
        pairs,
        resolution=args.resolution,
        center_crop=args.center_crop,
        seed=args.seed,
        max_pairs=args.num_validation_pairs,
    )
    held_out = read(tokenizer=pipeline.tokenizer)
    if args.sweep:
        compare_settings(args, pipeline, held_out)
        return
    is_shapes = held_out.scenes is not None
    tasks = make_tasks(held_out.first(args.num_samples), pipeline.tokenizer, args.seed)

    # Tokenizer and likelihood
    restored = reconstruct(pipeline.vqvae, held_out.pixel_values, args.eval_batch_size)
    figures = measure_tokenizer(args, pipeline.vqvae, held_out)
    if args.compare_text_vqvae is not None:
        figures |= measure_other_text_codec(args, read, pipeline.vqvae.text_downsample_factor)
    figures["bounds"] = measure_bounds(args, pipeline, held_out.first(args.num_bound_pairs))

    # Every direction, from several seeds
    num_joint = args.num_joint_samples if is_shapes else NUM_SHOWN * args.num_sampling_seeds
    answers = [
        answer_tasks(pipeline, tasks, count, seed, batch_size=args.eval_batch_size, **args.call)
        for seed, count in enumerate(split_evenly(num_joint, args.num_sampling_seeds))
    ]
    if is_shapes:
        judge = make_judge(args, held_out)
        figures["judge_accuracy"] = judge_accuracy(judge)
        figures["image_reconstruction_judged"] = share_equal(judge.read(restored), held_out.scenes)
        figures |= judge_answers(judge, tasks, answers)
    else:
        figures |= score_captions(tasks, answers)

    # Report
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_page(tasks, restored, answers[0]).save(output_dir / "grid.png")
    own_minutes = (time.perf_counter() - start) / 60
    figures["minutes"] = sum(training_minutes.values()) + own_minutes
    figures["minutes_of"] = training_minutes | {"evaluate": own_minutes}
    figures["matmul_gflops"] = measure_matmul_gflops()
    figures["measured"] = describe_machine(pipeline.device, pipeline.transformer.dtype)
    figures["samples"] = {
        "held_out_pairs": len(held_out),
        "left_out_pairs": min(len(pairs), args.num_validation_pairs) - len(held_out),
        "samples_of_each_direction": f"{len(tasks.pairs)} from each of {args.num_sampling_seeds} seeds",
        "joint_samples": num_joint,
        "pairs_for_the_bounds": f"{min(len(held_out), args.num_bound_pairs)}, {args.num_bound_samples} draws each",
        **args.call,
    }
    write_report(figures, output_dir, with_targets=is_shapes)
    print(format_report(figures, with_targets=is_shapes))


def compare_settings(args: EvaluateArguments, pipeline: VQDiTPipeline, held_out: HeldOutPairs) -> None:
    """The sweep: quality against passes, for settings of the sampling around those of `args`."""
    judge = make_judge(args, held_out) if held_out.scenes is not None else None
    sweep = run_sweep(
        pipeline,
        held_out,
        args.call,
        args.sweep_directions,
        args.sweep_samples,
        args.num_sampling_seeds,
        judge,
        args.eval_batch_size,
    )
    notes = describe_machine(pipeline.device, pipeline.transformer.dtype)
    notes |= {"samples_a_call": args.eval_batch_size, "held_out_pictures_compared_with": len(held_out)}
    write_sweep(sweep, args.output_dir, notes)
    print(format_sweep(sweep, notes))


def make_judge(args: EvaluateArguments, held_out: HeldOutPairs) -> ShapesJudge:
    """The judge for the kind of scenes at hand."""
    return train_judge(1 if isinstance(held_out.scenes[0], OneObject) else 2, args.resolution, seed=args.seed)


def measure_tokenizer(args: EvaluateArguments, vqvae: MultimodalVQVAE, held_out: HeldOutPairs) -> dict[str, Any]:
    """Figures of a tokenizer; the text codec's bears its r in its name, unless that is 2."""
    batches = held_out.batches(args.eval_batch_size, vqvae.device)
    figures = tokenizer_figures(vqvae, batches, vqvae.config.pad_token_id)
    factor = vqvae.text_downsample_factor
    if factor != 2:
        figures[f"text_reconstruction_exact_r{factor}"] = figures.pop("text_reconstruction_exact")
    return figures


def measure_other_text_codec(args: EvaluateArguments, read: Any, pipeline_factor: int) -> dict[str, float]:
    """Exact captions of a second text codec."""
    vqvae = MultimodalVQVAE.from_pretrained(args.compare_text_vqvae, subfolder="vqvae").to(PartialState().device)
    if vqvae.text_downsample_factor == pipeline_factor:
        raise ValueError(
            f"`compare_text_vqvae` {args.compare_text_vqvae} has r = {pipeline_factor}, as the pipeline's own text "
            "codec has: name one of another r."
        )
    held_out = read(tokenizer=load_caption_tokenizer(args.compare_text_vqvae, subfolder="tokenizer"))
    figures = measure_tokenizer(args, vqvae, held_out)
    return {name: value for name, value in figures.items() if name.startswith("text_reconstruction_exact")}


def measure_bounds(args: EvaluateArguments, pipeline: VQDiTPipeline, held_out: HeldOutPairs) -> dict[str, Any]:
    """The bounds on -log p of held-out codes, in each direction."""
    vqvae = pipeline.vqvae
    with torch.no_grad():
        encoded = [
            vqvae.encode(image=batch["pixel_values"], text=batch["input_ids"])
            for batch in held_out.batches(args.eval_batch_size, vqvae.device)
        ]
    image_codes = torch.cat([output.image_codes for output in encoded])  # (N, h, w)
    text_codes = torch.cat([output.text_codes for output in encoded])  # (N, S/r, G)
    generator = torch.Generator().manual_seed(args.seed)
    bits = {
        which: bound_bits(pipeline.transformer, image_codes, text_codes, which, args.num_bound_samples, generator)
        for which in BOUND_TITLES
    }
    return summarize_bounds(bits, image_codes[0].numel(), text_codes[0].numel())


def score_captions(tasks: Tasks, answers: Sequence[Answers]) -> dict[str, Any]:
    """Figures of the captions that were written, for data whose pictures nobody can judge."""
    references = tasks.pairs.references
    return summarize_seeds(
        [
            {
                "image_to_text_exact": caption_exact(own.written, references),
                "image_to_text_chrf": caption_chrf(own.written, references),
                "fill_words_exact": share_equal(own.filled, tasks.pairs.captions),
            }
            for own in answers
        ]
    )


def draw_page(tasks: Tasks, restored: torch.Tensor, answers: Answers) -> Image.Image:
    """The first samples of every direction, none of them selected."""
    real, drawn, back, inpainted, joint = (
        to_pictures(pixel_values[:NUM_SHOWN])
        for pixel_values in (
            tasks.pairs.pixel_values,
            answers.drawn,
            restored[: len(tasks.pairs)],
            answers.inpainted,
            answers.joint.pixel_values,
        )
    )
    masks = [Image.fromarray(mask[0].mul(255).byte().numpy()) for mask in tasks.half_masks]
    hidden = [show_hidden(picture, mask) for picture, mask in zip(real, masks, strict=False)]
    captions, words = tasks.pairs.captions, [(index,) for index in tasks.hidden_words]

    def draw(title: str, description: str, pictures: tuple[list, ...], *columns: Sequence) -> Image.Image:
        items = [GridItem(*item) for item in zip(zip(*pictures, strict=True), *columns, strict=False)]
        return draw_section(title, items[: NUM_SHOWN // len(pictures)], description)

    return stack_sections(
        [
            draw("Text to image", "pictures drawn for held-out captions", (drawn,), captions),
            draw("Image to text", "captions written for held-out pictures", (real,), answers.written),
            draw("Joint", "pictures and captions made up together", (joint,), answers.joint.texts),
            draw("Reconstruction", "held-out pictures and what their codes give back", (real, back)),
            draw("Inpainting", "the caption and half of the picture given", (hidden, inpainted), captions),
            draw("Words", "the colored word was hidden and is filled in", (real,), answers.filled, words),
        ]
    )


def split_evenly(total: int, num_parts: int) -> list[int]:
    """`total` as a sum of nearly equal parts."""
    return [total // num_parts + (part < total % num_parts) for part in range(num_parts)]


if __name__ == "__main__":
    main()

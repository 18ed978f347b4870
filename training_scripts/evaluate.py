# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Measures a trained pipeline on held-out pairs, in every direction.

    python training_scripts/evaluate.py --config training_scripts/configs/quickstart.yaml
    python training_scripts/evaluate.py --pipeline runs/mine --train_data_dir my_pictures --output_dir runs/mine
    python training_scripts/evaluate.py --pipeline runs/mine --train_data_dir my_pictures --output_dir runs/mine \\
        --feature_model_name_or_path facebook/dinov2-small --clip_model_name_or_path openai/clip-vit-base-patch32
    python training_scripts/evaluate.py --config training_scripts/configs/quickstart.yaml --sweep

Leaves in `output_dir`: `report.md`, `report.json`, `grid.png` with the first samples, and `nearest.png` with those
nearest to a training picture. Sets of pictures are compared on features of a network that is named or, if none is,
trained on the spot; a judge, trained on the spot too, reads the pictures of the built-in `shapes`. With `--sweep` the
folder gets `sweep.md`, `sweep.json` and `sweep.png` instead, which compare settings of the sampling.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_vqdit import MultimodalVQVAE, VQDiTPipeline
from hf_vqdit.data import load_caption_tokenizer, load_pairs
from hf_vqdit.data.shapes import OneObject
from hf_vqdit.evaluation.answers import draw_samples, measure_costs, score_captions, score_pairs
from hf_vqdit.evaluation.clip import ClipScorer
from hf_vqdit.evaluation.comparison import compare_answers, note_limits
from hf_vqdit.evaluation.emoji_names import score_names
from hf_vqdit.evaluation.features import load_feature_network
from hf_vqdit.evaluation.judge import ShapesJudge, judge_accuracy, judge_answers, train_judge
from hf_vqdit.evaluation.metrics import reconstruct, share_equal, tokenizer_figures
from hf_vqdit.evaluation.pipeline_bounds import measure_bounds
from hf_vqdit.evaluation.report import (
    describe_machine,
    format_report,
    measure_matmul_gflops,
    merge_figures,
    read_training_minutes,
    write_report,
)
from hf_vqdit.evaluation.sampling import HeldOutPairs, answer_tasks, make_tasks, read_held_out
from hf_vqdit.evaluation.sweep import DEFAULT_DIRECTIONS, DIRECTIONS, run_sweep
from hf_vqdit.evaluation.sweep_report import format_sweep, write_sweep
from hf_vqdit.evaluation.training_pictures import read_training_pictures
from hf_vqdit.hub import add_evaluation
from hf_vqdit.training.argument_groups import DataArguments, about
from hf_vqdit.training.arguments import CALL_DEFAULTS, parse_arguments

PARTS = ("bounds", "judge", "picture_sets", "copies")  # what can be left out


@dataclass(kw_only=True)
class EvaluateArguments(DataArguments):
    """Settings of `training_scripts/evaluate.py`."""

    pipeline: str = field(metadata=about("The trained pipeline: a folder or a repository."))
    output_dir: str = field(metadata=about("Where the report and the grid, or the sweep, go."))
    sweep: bool = field(
        default=False, metadata=about("Compare settings of the sampling, in place of the report: takes longer.")
    )
    sweep_directions: list[str] = field(
        default_factory=lambda: [*DEFAULT_DIRECTIONS],
        metadata=about(f"What a sweep compares: some of {', '.join(DIRECTIONS)}."),
    )
    sweep_samples: int = field(default=100, metadata=about("Samples of a sweep's setting, for each sampling seed."))
    compare_text_vqvae: str | None = field(
        default=None,
        metadata=about("A second text codec to measure, of another r: a folder with `vqvae` and `tokenizer` inside."),
    )
    feature_model_name_or_path: str | None = field(
        default=None,
        metadata=about(
            "Network on whose features sets of pictures are compared: a vision model of transformers (a folder or a "
            'name on the Hub), or "inception"; by default a small one is trained on the training pictures.'
        ),
    )
    clip_model_name_or_path: str | None = field(
        default=None,
        metadata=about("A CLIP for CLIPScores, a folder or a name on the Hub; by default there are none."),
    )
    max_training_pictures: int = field(
        default=50_000,
        metadata=about("Training pictures to compare with, at most; drawn by the seed, of a stream the first."),
    )
    leave_out: list[str] = field(
        default_factory=list,
        metadata=about(f"Parts to leave out, which takes less time: some of {', '.join(PARTS)}."),
    )
    update_model_card: bool = field(
        default=False, metadata=about("Put the report and the grids into the card of the pipeline, a folder.")
    )
    run_dirs: list[str] = field(
        default_factory=list, metadata=about("Folders of the training runs whose minutes are added up.")
    )
    num_validation_pairs: int = field(default=1000, metadata=about("Held-out pairs for the tokenizer's figures."))
    num_samples: int = field(default=100, metadata=about("Samples of each direction, for each sampling seed."))
    num_joint_samples: int = field(default=1000, metadata=about("Joint samples, over all sampling seeds together."))
    num_sampling_seeds: int = field(default=3, metadata=about("Sampling seeds; the report gives mean and spread."))
    num_inference_steps: int = field(default=CALL_DEFAULTS["num_inference_steps"], metadata=about("Sampling steps."))
    num_text_inference_steps: int | None = field(
        default=None, metadata=about("Sampling steps of captions; by default as many.")
    )
    joint_order: str = field(
        default=CALL_DEFAULTS["joint_order"],
        metadata=about('Joint samples: "text_first", "image_first" or "together".'),
    )
    joint_text_temperature: float | None = field(
        default=None,
        metadata=about(
            "Temperature of the captions of joint samples; by default that of the text scheduler. A low one, which is "
            "best where a picture is given, makes up few captions."
        ),
    )
    guidance_scale: float = field(
        default=CALL_DEFAULTS["guidance_scale"], metadata=about("Guidance of pictures by captions.")
    )
    text_guidance_scale: float = field(
        default=CALL_DEFAULTS["text_guidance_scale"], metadata=about("Guidance of captions by pictures.")
    )
    num_bound_pairs: int = field(default=200, metadata=about("Held-out pairs for the bounds."))
    num_bound_samples: int = field(default=4, metadata=about("Draws a pair for the bounds."))
    eval_batch_size: int = field(default=125, metadata=about("Samples a call."))

    def __post_init__(self) -> None:
        unknown = [name for name in self.leave_out if name not in PARTS]
        if unknown:
            raise ValueError(f"`leave_out` must name some of {PARTS}, got {unknown}.")
        if "picture_sets" in self.leave_out and self.feature_model_name_or_path is not None:
            raise ValueError(
                f"`leave_out` names picture_sets, for which alone `feature_model_name_or_path` "
                f"({self.feature_model_name_or_path}) is there: leave out one of the two."
            )
        if min(self.num_samples, self.num_sampling_seeds) < 1 or self.num_joint_samples < self.num_sampling_seeds:
            raise ValueError(
                f"`num_samples` ({self.num_samples}) and `num_sampling_seeds` ({self.num_sampling_seeds}) must be at "
                f"least 1, `num_joint_samples` ({self.num_joint_samples}) at least as many as there are seeds."
            )

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
    training_minutes = {} if args.sweep else read_training_minutes(args.run_dirs)
    if args.update_model_card and not (Path(args.pipeline) / "README.md").is_file():
        raise ValueError(
            f"`update_model_card` needs a folder with a card: `pipeline` {args.pipeline} has no README.md."
        )
    start = time.perf_counter()

    # What is measured, and on what
    pipeline = VQDiTPipeline.from_pretrained(args.pipeline).to(PartialState().device)
    pairs = load_pairs(**args.pairs)
    read = partial(
        read_held_out,
        pairs["validation"],
        resolution=args.resolution,
        center_crop=args.center_crop,
        seed=args.seed,
        max_pairs=args.num_validation_pairs,
    )
    held_out = read(tokenizer=pipeline.tokenizer)
    if args.sweep:
        if args.joint_text_temperature is not None:
            warnings.warn(
                "`joint_text_temperature` is for the report; a sweep has temperatures of its own.", stacklevel=2
            )
        compare_settings(args, pipeline, held_out)
        return
    if pipeline.transformer.config.unet_kwargs is not None:
        raise ValueError(
            f"The report asks for every direction, but the network of {args.pipeline} is a U-Net, which draws "
            "pictures alone: measure those by `--sweep --sweep_directions image`, of a transformer likewise."
        )
    if args.joint_text_temperature is not None and "temperature" not in pipeline.text_scheduler.config:
        raise ValueError(
            f"`joint_text_temperature` is for a masked process; {type(pipeline.text_scheduler).__name__} has none."
        )
    tasks = make_tasks(held_out.first(args.num_samples), pipeline.tokenizer, args.seed)
    num_joint = split_evenly(args.num_joint_samples, args.num_sampling_seeds)

    # What measures, loaded first so that a wrong name costs no time
    network = clip = None
    if args.feature_model_name_or_path is not None:
        network = load_feature_network(args.feature_model_name_or_path).to(pipeline.device)
    if args.clip_model_name_or_path is not None:
        clip = ClipScorer(args.clip_model_name_or_path, pipeline.device)

    # Tokenizer and likelihood
    restored = reconstruct(pipeline.vqvae, held_out.pixel_values, args.eval_batch_size)
    parts = [measure_tokenizer(args, pipeline.vqvae, held_out)]
    if args.compare_text_vqvae is not None:
        parts.append(measure_other_text_codec(args, read, pipeline.vqvae.text_downsample_factor))
    if "bounds" not in args.leave_out:
        few = held_out.first(args.num_bound_pairs)
        bounds = measure_bounds(pipeline, few, args.num_bound_samples, args.seed, args.eval_batch_size)
        parts.append({"bounds": bounds})

    # The training pictures, and what few pictures allow
    training, notes, with_copies = None, [], "copies" not in args.leave_out
    if "picture_sets" not in args.leave_out:
        training = read_training_pictures(
            pairs["train"],
            pipeline.tokenizer,
            args.resolution,
            args.center_crop,
            args.max_training_pictures,
            network,
            args.seed,
            args.eval_batch_size,
            args.dataloader_num_workers,
        )
        counts = dict.fromkeys(("text_to_image", "reconstruction", "held_out"), len(tasks.pairs))
        notes = note_limits(counts | {"joint": min(num_joint)}, training, held_out if with_copies else None)
        for note in notes:
            print(f"Note: {note}")

    # Every direction, from several seeds
    answers = [
        answer_tasks(
            pipeline,
            tasks,
            count,
            seed,
            args.joint_text_temperature,
            batch_size=args.eval_batch_size,
            **args.call,
        )
        for seed, count in enumerate(num_joint)
    ]
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    draw_samples(tasks, restored, answers[0], training).save(output_dir / "grid.png")

    # Their figures
    parts.append(score_captions(tasks, answers, None if training is None else training.captions))
    parts.append(measure_costs(answers))
    is_judged = held_out.scenes is not None and "judge" not in args.leave_out
    if is_judged:
        judge = make_judge(args, held_out)
        judged = {"judge_accuracy": judge_accuracy(judge)}
        judged["image_reconstruction_judged"] = share_equal(judge.read(restored), held_out.scenes)
        parts += [judged, judge_answers(judge, tasks, answers)]
    if clip is not None:
        parts.append(score_pairs(clip, tasks, answers, args.eval_batch_size))
    if training is not None:
        if args.dataset_name == "emoji" and args.dataset_config_name in (None, "en-zh"):
            shown = restored[: len(tasks.pairs)]
            call = args.call | {"batch_size": args.eval_batch_size}
            parts.append(score_names(pipeline, tasks, answers, training, shown, **call))
        compared, page = compare_answers(
            training, pipeline.vqvae, held_out, restored, answers, with_copies, args.seed, args.eval_batch_size
        )
        parts.append(compared)
        if page is not None:
            page.save(output_dir / "nearest.png")

    # Report
    figures = merge_figures(*parts)
    own_minutes = (time.perf_counter() - start) / 60
    figures["minutes"] = sum(training_minutes.values()) + own_minutes
    figures["minutes_of"] = training_minutes | {"evaluate": own_minutes}
    figures["matmul_gflops"] = measure_matmul_gflops()
    figures["measured"] = describe_machine(pipeline.device, pipeline.transformer.dtype)
    figures["samples"] = {
        "held_out_pairs": len(held_out),
        "left_out_pairs": min(len(pairs["validation"]), args.num_validation_pairs) - len(held_out),
        "samples_of_each_direction": f"{len(tasks.pairs)} from each of {args.num_sampling_seeds} seeds",
        "joint_samples": args.num_joint_samples,
        "pairs_for_the_bounds": f"{min(len(held_out), args.num_bound_pairs)}, {args.num_bound_samples} draws each",
        "clip": args.clip_model_name_or_path or "none",
        "left_out_parts": ", ".join(args.leave_out) or "none",
        **args.call,
        "joint_text_temperature": "that of the text scheduler"
        if args.joint_text_temperature is None
        else args.joint_text_temperature,
    }
    figures["notes"] = notes
    write_report(figures, output_dir, with_targets=is_judged)
    if args.update_model_card:
        grids = {"Samples": "grid.png", "Samples nearest to training pictures": "nearest.png"}
        grids = {title: output_dir / name for title, name in grids.items() if (output_dir / name).exists()}
        add_evaluation(args.pipeline, format_report(figures, with_targets=False), grids)
    print(format_report(figures, with_targets=is_judged))


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


def split_evenly(total: int, num_parts: int) -> list[int]:
    """`total` as a sum of nearly equal parts."""
    return [total // num_parts + (part < total % num_parts) for part in range(num_parts)]


if __name__ == "__main__":
    main()

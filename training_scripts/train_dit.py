# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Trains the Diffusion Transformer over the codes of a trained tokenizer.

    accelerate launch training_scripts/train_dit.py --config training_scripts/configs/quickstart.yaml
    accelerate launch training_scripts/train_dit.py --train_data_dir pictures --resolution 64 \
        --vqvae_model_name_or_path runs/mine/vqvae --output_dir runs/mine/pipeline

What is diffused are the codes (`--process masked`), or with `--process gaussian` their vectors, under the noise of a
scheduler of diffusers.

Or distils a trained pipeline into a student that takes a few passes, without guidance, where it took many with it:

    accelerate launch training_scripts/train_dit.py --train_data_dir pictures --resolution 64 \
        --distill_from runs/mine/pipeline --learning_rate 5e-4 --output_dir runs/mine/student

Leaves in `output_dir` a pipeline that `DiffusionPipeline.from_pretrained` loads, checkpoints, logs and samples.
`--help` lists the settings; `--dry_run` prints configuration, number of parameters and FLOPs a step, and ends.
"""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from hf_vqdit import MultimodalVQVAE, VQDiTModel, VQDiTPipeline
from hf_vqdit.data import (
    PairDataset,
    PairStream,
    collate_codes,
    collate_pairs,
    load_caption_tokenizer,
    load_pairs,
    open_pairs,
)
from hf_vqdit.evaluation.pipeline_bounds import pipeline_bound_bits
from hf_vqdit.hub import push_to_hub, save_pipeline, write_model_card
from hf_vqdit.training.arguments import TrainDiTArguments, parse_arguments
from hf_vqdit.training.codes import encode_batch, open_codes, weights_digest
from hf_vqdit.training.distillation import (
    DistillationConfig,
    distillation_objective,
    student_scheduler,
)
from hf_vqdit.training.gaussian import gaussian_objective
from hf_vqdit.training.masked import masked_objective
from hf_vqdit.training.overfitting import OverfittingSignal
from hf_vqdit.training.previews import preview_pipeline
from hf_vqdit.training.processes import (
    LOSS_CONFIGS,
    check_sizes,
    embed_by_vectors,
    load_scheduler,
    measure_priors,
    scheduler_settings,
    warn_of_another_tokenizer,
    warn_of_unused_settings,
)
from hf_vqdit.training.rows import PairLoss
from hf_vqdit.training.run import TrainingRun, make_optimizer
from hf_vqdit.training.times import TimeMixture, TimeTable, draw_times, row_generator, step_generator
from hf_vqdit.training.tokenizer_check import check_tokenizer

logger = logging.getLogger("hf_vqdit.train_dit")

NUM_PRIOR_SAMPLES = 2000  # pairs in which codes are counted

# What is logged of a validation -> the direction whose bound on -log2 p it is, in bits a pair.
BOUNDS = {"bits_x": "x", "bits_y": "y", "bits_x_given_y": "x|y", "bits_y_given_x": "y|x", "bits_x_and_y": "x,y"}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(TrainDiTArguments, "dit", argv)
    run = TrainingRun(args, "dit")
    accelerator = run.accelerator

    # Tokenizer and data
    source = args.vqvae_model_name_or_path or args.pretrained_model_name_or_path or args.distill_from
    tokenizer = load_caption_tokenizer(source, subfolder="tokenizer")
    vqvae = MultimodalVQVAE.from_pretrained(source, subfolder="vqvae").to(accelerator.device).eval()
    run.pin("tokenizer", weights_digest(vqvae))
    train_set, validation_set, collate_fn = open_data(args, run, vqvae, tokenizer)
    if args.codes_dir is None and run.checkpoint is None:  # else it was checked before
        check_tokenizer(vqvae, validation_set, args.tokenizer_floors)
    batches = run.batches(train_set, collate_fn)
    held_out, seen = (
        [encode_batch(vqvae, batch) for batch in run.some_batches(dataset, collate_fn, args.num_validation_samples)]
        for dataset in (validation_set, train_set)
    )

    # Model, optimizer, averaged weights, the pipeline around them
    model, schedulers = make_model(args, vqvae, held_out[0])
    if args.process == "gaussian":
        measure_priors(vqvae, model, run.some_batches(train_set, collate_fn, NUM_PRIOR_SAMPLES))
    distill_config = DistillationConfig(**args.distill_config) if args.distill_from is not None else None
    objective = make_objective(run, model, vqvae, distill_config)
    optimizer = make_optimizer(model, args)
    schedule = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    transformer, optimizer = accelerator.prepare(model, optimizer)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True) if args.use_ema else None
    overfitting = OverfittingSignal()
    run.register("transformer", model, ema, schedule, overfitting)
    shipped = schedulers
    if distill_config is not None:
        shipped = [student_scheduler(scheduler, distill_config) for scheduler in schedulers]
    pipeline = VQDiTPipeline(vqvae, model, tokenizer, *shipped)
    pipeline.check_schedulers()
    pipeline.set_progress_bar_config(disable=True)
    mixture, loss_config = TimeMixture(**args.time_mixture), LOSS_CONFIGS[args.process](**args.loss_config)

    def compute_loss(model: torch.nn.Module, batch: dict[str, Any], times: TimeTable, step: int) -> PairLoss:
        """Hides or noises codes of a micro-batch and predicts; each row draws from a generator of its own."""
        rows = batch["row"].cpu()
        generators = [row_generator(args.seed, step, row) for row in rows.tolist()]
        return objective(
            model,
            batch["image_codes"],
            batch["text_codes"],
            times.select(rows),
            *schedulers,
            generators,
            loss_config,
            batch["has_image"],
            batch["has_text"],
        )

    if args.dry_run:
        batch = encode_batch(vqvae, run.next_batch(batches))
        times = draw_times(run.global_batch_size, mixture, step_generator(args.seed, 0))
        run.print_dry_run(lambda: compute_loss(transformer, batch, times, step=0).loss)
        return

    # Loop
    figures: dict[str, float] = {}
    for step in range(run.resume(), args.max_train_steps):
        model.train()
        times = draw_times(run.global_batch_size, mixture, step_generator(args.seed, step))  # of all processes
        for _ in range(args.gradient_accumulation_steps):
            batch = encode_batch(vqvae, run.next_batch(batches))
            with accelerator.accumulate(transformer):
                losses = compute_loss(transformer, batch, times, step)
                accelerator.backward(losses.loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(transformer.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            run.gather({"loss": losses.loss[None]})
            run.gather_sums(losses.sums)
        averages = run.averages(step + 1)  # ends the run here if one is NaN

        schedule.step()
        if ema is not None:
            ema.step(model.parameters())

        steps_done = step + 1
        if run.is_due(args.logging_steps, steps_done):
            rates = {"lr": optimizer.param_groups[0]["lr"], "grad_norm": grad_norm.item()}
            run.log(steps_done, averages | rates)
        if run.is_due(args.validation_steps, steps_done):
            if accelerator.is_main_process:
                figures = validate(run, pipeline, held_out, seen, compute_loss, mixture, overfitting, steps_done)
            run.restart_clock(steps_done)
        if run.is_due(args.checkpointing_steps, steps_done):
            run.save_checkpoint(steps_done)
            run.restart_clock(steps_done)
        run.leave_if_interrupted(steps_done)

    # Result: the pipeline with the averaged weights
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            save_pipeline(pipeline, run.output_dir)
        samples = sorted(run.output_dir.glob("samples/*.png"))
        write_model_card(
            run.output_dir,
            repo_id=run.repo_id,
            dataset=args.dataset_name,
            config=run.settings,
            figures=figures,
            image=samples[-1] if samples else None,
            call_arguments=distill_config and distill_config.call_arguments,
        )
        if args.push_to_hub:
            push_to_hub(run.output_dir, run.repo_id)
    transformer, optimizer = accelerator.free_memory(transformer, optimizer)  # `finish` says why
    run.finish(figures)


def open_data(
    args: TrainDiTArguments, run: TrainingRun, vqvae: MultimodalVQVAE, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset | PairStream, Dataset, Callable]:
    """Training set, validation set and how they are batched: codes that were written once, or pairs to encode."""
    if args.codes_dir is not None:
        train_set, validation_set = (
            open_codes(Path(args.codes_dir) / split, vqvae, args.seed) for split in ("train", "validation")
        )
        return train_set, validation_set, collate_codes
    with run.accelerator.main_process_first():
        pairs = load_pairs(**args.pairs)
    train_set = open_pairs(pairs["train"], args.reader(tokenizer, augment=True), args.shuffle_buffer_size)
    return train_set, PairDataset(pairs["validation"], args.reader(tokenizer)), collate_pairs


def make_model(
    args: TrainDiTArguments, vqvae: MultimodalVQVAE, example: dict[str, Any]
) -> tuple[VQDiTModel, tuple[SchedulerMixin, SchedulerMixin]]:
    """The transformer to fine-tune or distil, or a new one in the sizes of the codes; schedulers of image and text."""
    height, width = example["image_codes"].shape[1:]
    text_length, text_num_groups = example["text_codes"].shape[1:]
    sizes = {
        "image_codebook_size": vqvae.image_codebook_size,
        "text_codebook_size": vqvae.text_codebook_size,
        "sample_size": height if height == width else (height, width),
        "text_length": text_length,
        "text_num_groups": text_num_groups,
    }
    if args.process == "gaussian":
        sizes |= {"image_code_dim": vqvae.config.code_dim, "text_code_dim": vqvae.config.text_code_dim}
    source = args.pretrained_model_name_or_path or args.distill_from
    settings = {"scheduler": args.scheduler_kwargs, "text_scheduler": args.text_scheduler_kwargs}
    if source is not None:
        model = VQDiTModel.from_pretrained(source, subfolder="transformer")
        saved = (model.config.process, "dit" if model.config.unet_kwargs is None else "unet")
        if (args.process, args.backbone) != saved:
            raise ValueError(
                f"`process` and `backbone` are {args.process!r} and {args.backbone!r}, but those of {source} are "
                f"{saved[0]!r} and {saved[1]!r}: pass `--process {saved[0]} --backbone {saved[1]}`."
            )
        schedulers = [load_scheduler(source, name, args.scheduler_class, own) for name, own in settings.items()]
        if args.distill_from is not None:
            check_sizes(model, sizes, "distill_from")
        else:
            # Pictures and captions of other sizes need no other weights.
            tables = {name: size for name, size in sizes.items() if name not in ("sample_size", "text_length")}
            check_sizes(model, tables, "pretrained_model_name_or_path")
            warn_of_unused_settings(model, args.model_init_kwargs, source)
            if args.vqvae_model_name_or_path is not None:
                warn_of_another_tokenizer(vqvae, source)
    else:
        model = VQDiTModel(**args.model_init_kwargs | sizes, process=args.process)
        if args.embed_by_vectors:
            embed_by_vectors(vqvae, model)
        fitting = scheduler_settings(model, args.scheduler_class) if args.process == "gaussian" else {}
        with torch.device("cpu"):  # where the tables of schedulers are, whatever the device of the model
            schedulers = [args.scheduler_class(**fitting | own) for own in settings.values()]
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model, tuple(schedulers)


def make_objective(
    run: TrainingRun, model: VQDiTModel, vqvae: MultimodalVQVAE, distill_config: DistillationConfig | None
) -> Callable[..., PairLoss]:
    """The objective on the data, or that of a student whose teacher is the model as it is now, before any step."""
    run.pin("teacher", None if distill_config is None else weights_digest(model))
    if model.config.process == "gaussian":
        vectors = {f"{name}_vectors": model.code_vectors(name, vqvae).detach() for name in ("image", "text")}
        return partial(gaussian_objective, **vectors)
    if distill_config is None:
        return masked_objective
    teacher = deepcopy(model).eval().requires_grad_(False)
    teacher = run.accelerator.prepare_model(teacher, evaluation_mode=True)  # the precision of the run
    return partial(distillation_objective, teacher=teacher, distill_config=distill_config)


def validate(
    run: TrainingRun,
    pipeline: VQDiTPipeline,
    held_out: Sequence[dict[str, Any]],
    seen: Sequence[dict[str, Any]],
    compute_loss: Callable[..., PairLoss],
    mixture: TimeMixture,
    overfitting: OverfittingSignal,
    step: int,
) -> dict[str, float]:
    """Measures the averaged weights on held-out and on training codes, and draws samples."""
    args, model = run.arguments, pipeline.transformer
    model.eval()

    def measure_losses(batches: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Nats a hidden code, or the error of a noisy one, with the same times, masks and noise each time."""
        times = draw_times(sum(len(batch["row"]) for batch in batches), mixture, step_generator(args.seed, -1))
        objectives = [compute_loss(model, batch, times, step=-1) for batch in batches]
        sums = {name: sum(objective.sums[name] for objective in objectives) for name in objectives[0].sums}
        return {name: (total / count).item() for name, (total, count) in sums.items() if count}

    with run.averaged_weights(), torch.no_grad():
        figures, on_training = measure_losses(held_out), measure_losses(seen)
        on_training = {name: value for name, value in on_training.items() if "/" not in name}  # over all times
        for warning in overfitting.update(step, figures, on_training):
            logger.warning(warning)
        figures |= {f"training_{name}": value for name, value in on_training.items()}

        is_whole = torch.cat([batch["has_image"] & batch["has_text"] for batch in held_out])
        codes = [torch.cat([batch[name] for batch in held_out])[is_whole] for name in ("image_codes", "text_codes")]
        if args.num_bound_samples > 0:
            for name, which in BOUNDS.items() if args.backbone == "dit" else [("bits_x", "x")]:
                generator = torch.Generator().manual_seed(args.seed)
                figures[name] = pipeline_bound_bits(pipeline, *codes, which, args.num_bound_samples, generator)
        page = preview_pipeline(
            pipeline,
            *codes,
            prompts=args.validation_prompts,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            seed=args.seed,
        )
    run.save_samples(step, page)
    run.log_validation(step, figures)
    return figures


if __name__ == "__main__":
    main()

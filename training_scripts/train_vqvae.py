# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Trains the tokenizer: a multimodal VQ-VAE on image-text pairs.

    accelerate launch training_scripts/train_vqvae.py --config training_scripts/configs/quickstart.yaml
    accelerate launch training_scripts/train_vqvae.py --train_data_dir pictures --resolution 64 --output_dir runs/mine

Leaves in `output_dir`: `vqvae/` and `tokenizer/` (both load with `from_pretrained`), checkpoints, logs and samples.
`--help` lists the settings; `--dry_run` prints configuration, number of parameters and FLOPs a step, and ends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from transformers import PreTrainedTokenizerFast

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import (
    PairDataset,
    captions_of,
    collate_pairs,
    load_caption_tokenizer,
    load_pairs,
    open_pairs,
    train_caption_tokenizer,
)
from hf_vqdit.evaluation.metrics import tokenizer_figures
from hf_vqdit.hub import push_to_hub, write_model_card
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAEOutput
from hf_vqdit.training.arguments import TrainVQVAEArguments, parse_arguments
from hf_vqdit.training.codebook import CodebookTrainer
from hf_vqdit.training.latents import measure_latents
from hf_vqdit.training.losses import tokenizer_losses, weighted_mean
from hf_vqdit.training.previews import preview_reconstructions
from hf_vqdit.training.run import TrainingRun, make_optimizer

NUM_LATENTS_PAIRS = 2048  # training pairs over which the statistics of the codes are taken


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(TrainVQVAEArguments, "vqvae", argv)
    run = TrainingRun(args, "vqvae")
    accelerator = run.accelerator

    # Data
    with accelerator.main_process_first():
        pairs = load_pairs(**args.pairs)
    tokenizer = make_tokenizer(args, run, pairs["train"])
    crop = (args.resolution, args.center_crop)
    train_set = open_pairs(pairs["train"], tokenizer, *crop, args.random_flip, args.seed, args.shuffle_buffer_size)
    validation_set = PairDataset(pairs["validation"], tokenizer, *crop, seed=args.seed)
    batches = run.batches(train_set, collate_pairs)

    # Model, optimizer, codebooks, averaged weights
    model = make_model(args, tokenizer)
    optimizer = make_optimizer(model, args)
    schedule = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    vqvae, optimizer = accelerator.prepare(model, optimizer)
    codebooks = make_codebook_trainer(args, model)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True) if args.use_ema else None
    run.register("vqvae", model, ema, schedule, codebooks, tokenizer=tokenizer)

    def reconstruct(batch: dict[str, Any]) -> tuple[MultimodalVQVAEOutput, dict[str, torch.Tensor]]:
        """A micro-batch through the model: its output, and the terms of the loss, row by row."""
        image = batch["pixel_values"] if "image" in args.modalities else None
        text = batch["input_ids"] if "text" in args.modalities else None
        output = vqvae(image=image, text=text, quantize=codebooks.quantize)
        has = (batch["has_image"], batch["has_text"])
        return output, tokenizer_losses(
            output, batch["pixel_values"], batch["input_ids"], *has, tokenizer.pad_token_id
        )

    if args.dry_run:
        run.print_dry_run(lambda: weighted_mean(reconstruct(run.next_batch(batches))[1], args.loss_weights))
        return

    # Loop
    figures: dict[str, float] = {}
    for step in range(run.resume(), args.max_train_steps):
        model.train()
        for _ in range(args.gradient_accumulation_steps):
            batch = run.next_batch(batches)
            with accelerator.accumulate(vqvae):
                output, terms = reconstruct(batch)
                loss = weighted_mean(terms, args.loss_weights)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(vqvae.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            observe(codebooks, output, batch, tokenizer.pad_token_id)
            run.gather({"loss": loss[None], **terms})
        losses = run.averages(step + 1)  # ends the run here if one is NaN

        # After the optimizer the codebooks follow the encoder, and the averages follow both
        schedule.step()
        usage = codebooks.step(step + 1)
        if ema is not None:
            ema.step(model.parameters())

        steps_done = step + 1
        if run.is_due(args.logging_steps, steps_done):
            rates = {"lr": optimizer.param_groups[0]["lr"], "grad_norm": grad_norm.item()}
            run.log(steps_done, losses | usage | rates)
        if run.is_due(args.validation_steps, steps_done):
            if accelerator.is_main_process:
                figures = validate(run, model, tokenizer, validation_set, steps_done)
            run.restart_clock(steps_done)
        if run.is_due(args.checkpointing_steps, steps_done):
            run.save_checkpoint(steps_done)
            run.restart_clock(steps_done)

    # Result: the averaged weights, with the statistics of their codes
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            model.eval()
            measure_latents(model, run.first_batches(train_set, collate_pairs, NUM_LATENTS_PAIRS))
            model.save_pretrained(run.output_dir / "vqvae")
        tokenizer.save_pretrained(run.output_dir / "tokenizer")
        write_model_card(
            run.output_dir,
            template="vqvae",
            repo_id=run.repo_id,
            dataset=args.dataset_name,
            config=run.settings,
            figures=figures,
        )
        if args.push_to_hub:
            push_to_hub(run.output_dir, run.repo_id)
    vqvae, optimizer = accelerator.free_memory(vqvae, optimizer)  # `finish` says why
    run.finish(figures)


def make_tokenizer(
    args: TrainVQVAEArguments, run: TrainingRun, pairs: Dataset | IterableDataset
) -> PreTrainedTokenizerFast:
    """The caption tokenizer: that of the run to resume or of the model to fine-tune, a named one, or a new one."""
    if run.checkpoint is not None:
        return load_caption_tokenizer(run.checkpoint, subfolder="tokenizer")
    if args.pretrained_model_name_or_path is not None:
        return load_caption_tokenizer(args.pretrained_model_name_or_path, subfolder="tokenizer")
    if args.tokenizer_name_or_path is not None:
        return load_caption_tokenizer(args.tokenizer_name_or_path, args.model_max_length)
    return train_caption_tokenizer(captions_of(pairs), args.vocab_size, args.model_max_length)


def make_model(args: TrainVQVAEArguments, tokenizer: PreTrainedTokenizerFast) -> MultimodalVQVAE:
    """The model to fine-tune, or a new one with the codecs of the modalities to train."""
    if args.pretrained_model_name_or_path is not None:
        model = MultimodalVQVAE.from_pretrained(args.pretrained_model_name_or_path, subfolder="vqvae")
    else:
        settings = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "mask_token_id")}
        if "image" not in args.modalities:
            settings["image_codebook_size"] = None
        if "text" not in args.modalities:
            settings["text_codec"] = None
        model = MultimodalVQVAE(vocab_size=len(tokenizer), **args.model_init_kwargs | settings)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def make_codebook_trainer(args: TrainVQVAEArguments, model: MultimodalVQVAE) -> CodebookTrainer:
    """The trainer of the model's codebooks; fine-tuning goes on from the codes that are there, without a start."""
    children = model.named_children()
    quantizers = {name.removesuffix("_quantizer"): child for name, child in children if name.endswith("_quantizer")}
    # The decoder gets used to the codes at the end of training: none is restarted there.
    settings = {"restart_until_step": int(0.8 * args.max_train_steps), **args.codebook_kwargs}
    trainer = CodebookTrainer(quantizers, start_step=args.quantizer_start_step, seed=args.seed, **settings)
    if args.pretrained_model_name_or_path is not None:
        codebooks = {name: quantizer.codebook.detach() for name, quantizer in quantizers.items()}
        trainer.load_state_dict(
            {
                name: {
                    "cluster_size": torch.ones_like(codebook[:, 0]),  # as if each code had been chosen once a step
                    "vector_sum": codebook.clone(),
                    "reservoir": codebook[:0].clone(),
                    "is_started": True,
                }
                for name, codebook in codebooks.items()
            }
        )
    return trainer


def observe(
    codebooks: CodebookTrainer, output: MultimodalVQVAEOutput, batch: dict[str, Any], pad_token_id: int
) -> None:
    """Shows the codebooks what a micro-batch was encoded to; without padding and missing modalities."""
    if output.image_latents is not None:
        latents = output.image_latents.movedim(1, -1)  # (B, h, w, D)
        mask = batch["has_image"][:, None, None].expand(latents.shape[:-1])
        codebooks.observe("image", latents, output.image_codes, mask)
    if output.text_latents is not None:
        latents = output.text_latents  # (B, S/r, G, D)
        is_token = batch["input_ids"] != pad_token_id  # (B, S)
        is_chunk = is_token.unflatten(1, (latents.shape[1], -1)).any(dim=-1) & batch["has_text"][:, None]
        codebooks.observe("text", latents, output.text_codes, is_chunk[:, :, None].expand(latents.shape[:-1]))


def validate(
    run: TrainingRun,
    model: MultimodalVQVAE,
    tokenizer: PreTrainedTokenizerFast,
    validation_set: PairDataset,
    step: int,
) -> dict[str, float]:
    """Measures the averaged weights on held-out pairs and draws some of them."""
    model.eval()
    with run.averaged_weights():
        batches = list(run.first_batches(validation_set, collate_pairs, run.arguments.num_validation_samples))
        figures = tokenizer_figures(model, batches, tokenizer.pad_token_id)
        run.save_samples(step, preview_reconstructions(model, tokenizer, batches[0]))
    run.log_validation(step, figures)
    return figures


if __name__ == "__main__":
    main()

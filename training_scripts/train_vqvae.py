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
from hf_vqdit.models.vq_model import from_vq_model, load_vq_model
from hf_vqdit.training.adversarial import AdversarialTrainer
from hf_vqdit.training.arguments import TrainVQVAEArguments, parse_arguments
from hf_vqdit.training.codebook import CodebookTrainer
from hf_vqdit.training.latents import measure_latents
from hf_vqdit.training.losses import RECONSTRUCTION_TERMS, ramp, tokenizer_losses, weighted_mean
from hf_vqdit.training.perceptual import PerceptualLoss, load_perceptual_loss
from hf_vqdit.training.previews import preview_reconstructions
from hf_vqdit.training.run import TrainingRun, make_optimizer
from hf_vqdit.training.transitions import MAX_BIGRAM_VOCABULARY, fit_bigram_transitions

NUM_STATISTICS_PAIRS = 2048  # training pairs over which the statistics that ship are taken


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(TrainVQVAEArguments, "vqvae", argv)
    run = TrainingRun(args, "vqvae")
    accelerator = run.accelerator

    # Data
    with accelerator.main_process_first():
        pairs = load_pairs(**args.pairs)
    tokenizer = make_tokenizer(args, run, pairs["train"])
    train_set = open_pairs(pairs["train"], args.reader(tokenizer, augment=True), args.shuffle_buffer_size)
    validation_set = PairDataset(pairs["validation"], args.reader(tokenizer))
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
    perceptual = make_perceptual_loss(args, accelerator.device)
    adversary = make_adversary(args, model)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True) if args.use_ema else None
    stateful = [part for part in (schedule, codebooks, adversary) if part is not None]
    run.register("vqvae", model, ema, *stateful, tokenizer=tokenizer)

    def compute_loss(
        batch: dict[str, Any], step: int
    ) -> tuple[MultimodalVQVAEOutput, dict[str, torch.Tensor], torch.Tensor]:
        """A micro-batch through the model: its output, the terms of the loss, row by row, and the loss."""
        image = batch["pixel_values"] if "image" in args.modalities else None
        text = batch["input_ids"] if "text" in args.modalities else None
        output = vqvae(image, text, codebooks.quantize, args.gradient_estimator)
        critic = adversary.critic(step) if adversary is not None else None
        inputs = [batch[name] for name in ("pixel_values", "input_ids", "has_image", "has_text")]
        transitions = model.text_transitions if args.loss_weights["text_crf"] > 0 else None
        terms = tokenizer_losses(output, *inputs, tokenizer.pad_token_id, perceptual, critic, transitions)
        weights = dict(args.loss_weights)
        weights["alignment"] *= ramp(step, args.quantizer_start_step, args.alignment_ramp_steps)
        if critic is not None:
            reconstruction = {name: terms[name] for name in RECONSTRUCTION_TERMS if name in terms}
            weights["image_adversarial"] *= adversary.weight(step) * adversary.adaptive_weight(
                weighted_mean(reconstruction, weights),
                terms["image_adversarial"].mean(),
                model.image_decoder.decoder.conv_out.weight,
            )
        return output, terms, weighted_mean(terms, weights)

    if args.dry_run:
        run.print_dry_run(lambda: compute_loss(run.next_batch(batches), run.first_step)[2])
        return

    # Loop
    figures: dict[str, float] = {}
    for step in range(run.resume(), args.max_train_steps):
        model.train()
        for _ in range(args.gradient_accumulation_steps):
            batch = run.next_batch(batches)
            with accelerator.accumulate(vqvae):
                output, terms, loss = compute_loss(batch, step)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(vqvae.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            observe(codebooks, output, batch, tokenizer.pad_token_id)
            run.gather({"loss": loss[None], **terms})
            if adversary is not None:
                run.gather(adversary.observe(step, batch["pixel_values"], output.image, batch["has_image"]))
        losses = run.averages(step + 1)  # ends the run here if one is NaN

        # After the optimizer the codebooks follow the encoder, and the averages follow both
        if adversary is not None:
            adversary.step()
        usage = codebooks.step(step + 1, schedule.get_last_lr()[0])
        schedule.step()
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
        run.leave_if_interrupted(steps_done)

    # Result: the averaged weights, with the statistics of codes and captions
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with run.averaged_weights():
            model.eval()
            measure_latents(model, run.some_batches(train_set, collate_pairs, NUM_STATISTICS_PAIRS))
            if model.config.text_transition_rank is not None and args.loss_weights["text_crf"] == 0:
                fit_bigram_transitions(model, run.some_batches(train_set, collate_pairs, NUM_STATISTICS_PAIRS))
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
    """The model to fine-tune, or a new one with the codecs of the modalities to train; that of images may be given."""
    if args.pretrained_model_name_or_path is not None:
        model = MultimodalVQVAE.from_pretrained(args.pretrained_model_name_or_path, subfolder="vqvae")
    else:
        settings = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "mask_token_id")}
        if "image" not in args.modalities:
            settings["image_codebook_size"] = None
        if "text" not in args.modalities:
            settings["text_codec"] = None
        settings = args.model_init_kwargs | settings
        if args.vq_model_name_or_path is not None:
            image_codec = load_vq_model(args.vq_model_name_or_path)
            model = from_vq_model(image_codec, vocab_size=len(tokenizer), **settings)
        else:
            model = MultimodalVQVAE(vocab_size=len(tokenizer), **settings)
    check_model(args, model, tokenizer)
    if model.config.text_transition_rank is not None:  # otherwise they are set from bigrams, at the end
        model.text_transitions.requires_grad_(args.loss_weights["text_crf"] > 0)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def check_model(args: TrainVQVAEArguments, model: MultimodalVQVAE, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ends the run before it begins if model, tokenizer and losses do not go together."""
    for term, setting in (("alignment", "projection_dim"), ("text_crf", "text_transition_rank")):
        if args.loss_weights[term] > 0 and model.config[setting] is None:
            raise ValueError(
                f"`loss_weights` has {term}: that needs a model with a `{setting}`, which this one lacks."
            )
    if model.config.text_codec is not None and tokenizer.model_max_length % model.text_downsample_factor:
        raise ValueError(
            f"r = {model.text_downsample_factor} (`text_downsample_factor`) does not divide the text context of "
            f"{tokenizer.model_max_length} tokens: choose another `model_max_length`."
        )
    from_bigrams = model.config.text_transition_rank is not None and args.loss_weights["text_crf"] == 0
    if from_bigrams and len(tokenizer) > MAX_BIGRAM_VOCABULARY:
        raise ValueError(
            f"Transitions from bigrams are for vocabularies of up to {MAX_BIGRAM_VOCABULARY} tokens; this one has "
            f"{len(tokenizer)}: train them instead, by a weight of text_crf in `loss_weights`."
        )


def make_codebook_trainer(args: TrainVQVAEArguments, model: MultimodalVQVAE) -> CodebookTrainer:
    """The trainer of the model's codebooks; codes that were trained before are gone on from, without a start."""
    if model.config.shared_codebook:
        quantizers = {"shared": model.image_quantizer}
    else:
        children = model.named_children()
        quantizers = {name.removesuffix("_quantizer"): part for name, part in children if name.endswith("_quantizer")}
    # The decoder gets used to the codes at the end of training: none is restarted there.
    settings = {"restart_until_step": int(0.8 * args.max_train_steps), **args.codebook_kwargs}
    trainer = CodebookTrainer(
        quantizers, start_step=args.quantizer_start_step, update=args.codebook_update, seed=args.seed, **settings
    )
    if args.pretrained_model_name_or_path is not None:
        trainer.start_from_codes(*quantizers)
    elif args.vq_model_name_or_path is not None:
        trainer.start_from_codes(*(name for name in quantizers if name != "text"))
    return trainer


def make_perceptual_loss(args: TrainVQVAEArguments, device: torch.device) -> PerceptualLoss | None:
    """The network that was named to compare pictures by, if any."""
    if args.perceptual_model_name_or_path is None:
        return None
    return load_perceptual_loss(args.perceptual_model_name_or_path, args.resolution).to(device)


def make_adversary(args: TrainVQVAEArguments, model: MultimodalVQVAE) -> AdversarialTrainer | None:
    """The trainer of the discriminator, if its term has a weight."""
    if args.loss_weights["image_adversarial"] <= 0:
        return None
    return AdversarialTrainer(
        resolution=args.resolution,
        max_train_steps=args.max_train_steps,
        in_channels=model.config.in_channels,
        seed=args.seed,
        device=model.device,
        **args.discriminator_kwargs,
    )


def observe(
    codebooks: CodebookTrainer, output: MultimodalVQVAEOutput, batch: dict[str, Any], pad_token_id: int
) -> None:
    """Shows the codebooks what a micro-batch was encoded to; without padding and missing modalities."""
    image, text = ("shared", "shared") if "shared" in codebooks.quantizers else ("image", "text")
    if output.image_latents is not None:
        latents = output.image_latents.movedim(1, -1)  # (B, h, w, D)
        mask = batch["has_image"][:, None, None].expand(latents.shape[:-1])
        codebooks.observe(image, latents, output.image_codes, mask)
    if output.text_latents is not None:
        latents = output.text_latents  # (B, S/r, G, D)
        is_token = batch["input_ids"] != pad_token_id  # (B, S)
        is_chunk = is_token.unflatten(1, (latents.shape[1], -1)).any(dim=-1) & batch["has_text"][:, None]
        codebooks.observe(text, latents, output.text_codes, is_chunk[:, :, None].expand(latents.shape[:-1]))


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
        batches = list(run.some_batches(validation_set, collate_pairs, run.arguments.num_validation_samples))
        figures = tokenizer_figures(model, batches, tokenizer.pad_token_id)
        run.save_samples(step, preview_reconstructions(model, tokenizer, batches[0]))
    run.log_validation(step, figures)
    return figures


if __name__ == "__main__":
    main()

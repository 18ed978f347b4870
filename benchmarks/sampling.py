# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Sampling loop.

What generation costs besides the transformer, and what it spares the transformer.

- `loop`: a step of guided generation outside of the forward passes. Peer: `AmusedPipeline`, given embedded prompts.
  The peer of a whole call is the forward passes in it: what is missing to 1 is everything else.
- `steps`: what the scheduler does in a run, on given logits. Peer: `AmusedScheduler`, which draws in float32, and all
  codes instead of the masked ones.
- `draw`: all codes, with their log-probabilities, drawn once in float64. Peer: softmax and `torch.multinomial` in
  float32.
- `pairs`: captions of 16 codes first, then their pictures, with guidance. Peer: the same if every step computed all of
  its rows anew.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from diffusers import AmusedPipeline, AmusedScheduler, SchedulerMixin, VQModel

from benchmarks.timing import NUM_ROUNDS, OURS, QUICK_NUM_ROUNDS, Row, alternate, compare, cpu_seconds, ratios
from benchmarks.transformer import Size, make_uvit, make_vqdit
from hf_vqdit import MaskedDiffusionScheduler, MultimodalVQVAE, VQDiTPipeline
from hf_vqdit.data import train_caption_tokenizer
from hf_vqdit.data.shapes import all_scenes, describe

SIZE, QUICK_SIZE = Size(4, 16, 8, 512, 192, 6, 6), Size(2, 16, 2, 16, 32, 1, 2)
NUM_STEPS, QUICK_NUM_STEPS = 12, 3
CODES = ((8, 8, 512), (4, 16, 1024), (1, 32, 8192))  # batch size, side of the grid, codes
QUICK_CODES = ((2, 2, 16),)
PAIR_STEPS = ((16, 16), (24, 16), (24, 24))  # of the picture, of the caption
QUICK_PAIR_STEPS = ((2, 32),)


def measure(quick: bool = False) -> list[Row]:
    """Rows of the loop, of the scheduler alone, and of pairs."""
    num_rounds = QUICK_NUM_ROUNDS if quick else NUM_ROUNDS
    size, num_steps = (QUICK_SIZE, QUICK_NUM_STEPS) if quick else (SIZE, NUM_STEPS)
    found = measure_loop(size, num_steps, num_rounds)
    for batch_size, side, num_codes in QUICK_CODES if quick else CODES:
        logits = 2 * torch.randn(batch_size, side, side, num_codes, generator=torch.Generator().manual_seed(0))
        sizes = f"{batch_size} x {side} x {side} of {num_codes} codes"
        found += compare(f"{num_steps} steps, {sizes}", scheduler_runs(logits, num_steps), num_rounds)
        found += compare(f"draw, {sizes}", draws(logits.flatten(0, 2)), num_rounds)
    for image_steps, text_steps in QUICK_PAIR_STEPS if quick else PAIR_STEPS:
        found += measure_pairs(size, image_steps, text_steps, num_rounds)
    return found


# The loop


class LoopSeconds(NamedTuple):
    """CPU seconds of one call of a pipeline."""

    whole: float
    forward: float  # of the transformer
    step: float  # outside of the transformer


class ForwardClock:
    """CPU seconds in the forward passes of a module, as they add up."""

    def __init__(self, module: torch.nn.Module):
        self.seconds = 0.0
        module.register_forward_pre_hook(lambda *_: self._add(-time.process_time()))
        module.register_forward_hook(lambda *_: self._add(time.process_time()))

    def _add(self, seconds: float) -> None:
        self.seconds += seconds


def loop_seconds(clock: ForwardClock, call: Callable[[Callable], object]) -> Callable[[], LoopSeconds]:
    """What measures a pipeline's call, which is given what to call at the end of each step."""

    def measure() -> LoopSeconds:
        outside = []  # at the end of each step

        def on_step_end(*_) -> dict:
            outside.append(time.process_time() - clock.seconds)
            return {}

        start, forward = time.process_time(), clock.seconds
        call(on_step_end)
        whole, forward = time.process_time() - start, clock.seconds - forward
        return LoopSeconds(whole, forward, (outside[-1] - outside[0]) / (len(outside) - 1))

    return measure


def measure_loop(size: Size, num_steps: int, num_rounds: int) -> list[Row]:
    """A step outside of the transformer, and the share of the transformer in a call."""
    case = f"loop, {size.batch_size} x {size.image_side} x {size.image_side} codes, {num_steps} steps"
    candidates = {OURS: vqdit_loop(size, num_steps), "diffusers AmusedPipeline": amused_loop(size, num_steps)}
    seconds = alternate(candidates, num_rounds)
    steps = {name: [x.step for x in measured] for name, measured in seconds.items()}
    calls = {OURS: [x.whole for x in seconds[OURS]], "its forward passes": [x.forward for x in seconds[OURS]]}
    return ratios(case, "time of a step, transformer aside", steps) + ratios(case, "time of a call", calls)


def vqdit_loop(size: Size, num_steps: int) -> Callable[[], LoopSeconds]:
    """What measures `VQDiTPipeline`, from given captions to the codes of pictures."""
    pipeline = make_pipeline(size)
    generator = torch.Generator().manual_seed(0)
    return loop_seconds(
        ForwardClock(pipeline.transformer),
        lambda on_step_end: pipeline(
            ["a red circle"] * size.batch_size,
            num_inference_steps=num_steps,
            guidance_scale=3.0,
            generator=generator,
            output_type="latent",
            callback_on_step_end=on_step_end,
        ),
    )


def amused_loop(size: Size, num_steps: int) -> Callable[[], LoopSeconds]:
    """What measures `AmusedPipeline`, from embedded captions to the codes of pictures."""
    pipeline = AmusedPipeline(
        vqvae=VQModel(block_out_channels=(32,), num_vq_embeddings=size.num_codes),  # not called: the output is codes
        tokenizer=None,
        text_encoder=None,
        transformer=make_uvit(size).model.eval(),
        scheduler=AmusedScheduler(mask_token_id=size.num_codes),
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(size.batch_size, size.text_length, size.hidden_size, generator=generator)
    return loop_seconds(
        ForwardClock(pipeline.transformer),
        lambda on_step_end: pipeline(
            prompt_embeds=text[:, 0],
            encoder_hidden_states=text,
            negative_prompt_embeds=torch.zeros_like(text[:, 0]),
            negative_encoder_hidden_states=torch.zeros_like(text),
            num_inference_steps=num_steps,
            guidance_scale=3.0,
            generator=generator,
            output_type="latent",
            callback=on_step_end,
        ),
    )


def make_pipeline(size: Size, pipeline_class: type[VQDiTPipeline] = VQDiTPipeline) -> VQDiTPipeline:
    """An untrained pipeline that draws pictures by confidence and captions in random order."""
    captions = [describe(scene, 0) for scene in all_scenes(1)]
    tokenizer = train_caption_tokenizer(captions, vocab_size=384, model_max_length=size.text_length)
    vqvae = MultimodalVQVAE(
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        image_codebook_size=size.num_codes,
        vocab_size=len(tokenizer),
        text_codebook_size=size.num_codes,
        text_width=64,
        num_text_decoder_layers=1,
    )
    pipeline = pipeline_class(
        vqvae.eval(),
        make_vqdit(size).model.eval(),
        tokenizer,
        MaskedDiffusionScheduler(choice_temperature=3.0),
        MaskedDiffusionScheduler(mask_schedule="linear", order="random", temperature=0.8),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# The scheduler


def scheduler_runs(logits: torch.Tensor, num_steps: int) -> dict[str, Callable[[], torch.LongTensor]]:
    """All steps of a run on the same logits (B, h, w, V), from MASK to codes (B, h, w)."""
    mask_token_id, generator = logits.shape[-1], torch.Generator().manual_seed(0)

    def run(scheduler: SchedulerMixin, model_output: torch.Tensor) -> torch.LongTensor:
        scheduler.set_timesteps(num_steps)
        sample = torch.full(logits.shape[:-1], mask_token_id)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(model_output, timestep, sample, generator=generator).prev_sample
        return sample

    return {
        OURS: partial(run, MaskedDiffusionScheduler(), logits),
        "diffusers AmusedScheduler": partial(run, AmusedScheduler(mask_token_id), logits.movedim(-1, 1).contiguous()),
    }


def draws(logits: torch.Tensor) -> dict[str, Callable[[], tuple[torch.LongTensor, torch.Tensor]]]:
    """A code (M,) for each row of logits (M, V), and its log-probability."""
    scheduler, generator = MaskedDiffusionScheduler(), torch.Generator().manual_seed(0)

    def in_float64() -> tuple[torch.LongTensor, torch.Tensor]:
        return scheduler._draw(logits, torch.rand(len(logits), generator=generator, dtype=torch.float64))

    def in_float32() -> tuple[torch.LongTensor, torch.Tensor]:
        codes = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        return codes.squeeze(1), logits.log_softmax(dim=-1).gather(1, codes).squeeze(1)

    return {OURS: in_float64, "softmax, torch.multinomial": in_float32}


# Rows that are not computed again


class WithoutReuse(VQDiTPipeline):
    """Forgets what the transformer predicted before, at every step."""

    def _forward_rows(self, inputs: dict, rows: dict) -> None:
        rows.clear()
        super()._forward_rows(inputs, rows)


def measure_pairs(size: Size, image_steps: int, text_steps: int, num_rounds: int) -> list[Row]:
    """Time of joint generation, and rows that go through the transformer."""
    pipelines = {OURS: make_pipeline(size), "no reuse": make_pipeline(size, WithoutReuse)}

    def generate(pipeline: VQDiTPipeline) -> None:
        pipeline(
            num_images_per_prompt=size.batch_size,
            num_inference_steps=image_steps,
            num_text_inference_steps=text_steps,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(size.batch_size)],
            output_type="latent",
        )

    calls = {name: partial(generate, pipeline) for name, pipeline in pipelines.items()}
    case = f"pairs, {image_steps} steps of the picture, {text_steps} of the caption"
    found = ratios(case, "time", alternate({name: cpu_seconds(call) for name, call in calls.items()}, num_rounds))
    return found + ratios(case, "rows", {name: [pipeline.num_forward_rows] for name, pipeline in pipelines.items()})

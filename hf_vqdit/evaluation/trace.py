# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How a sample comes about: the codes after every step of a pipeline's call, as an animation."""

from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from .grids import GridItem, draw_section, show_hidden

UNKNOWN_TOKEN = "_"
LAST_FRAME_STEPS = 8  # how many steps long the finished samples stay


class SamplingTrace:
    """A `callback_on_step_end` that remembers the codes of every step, and shows them when the call is done.

    A call that takes no step (`strength=0`) leaves what was remembered of the last one.

    A code that is not decoded yet is a field of the checkerboard, a token that is not decoded yet is `_`.

    Args:
        num_samples (`int`, defaults to 8): Remember the first samples of the call, this many.

    Example:

    ```py
    >>> trace = SamplingTrace()
    >>> pipe("a red circle", callback_on_step_end=trace)
    >>> trace.save(pipe, "sampling.webp")
    ```
    """

    def __init__(self, num_samples: int = 8):
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
        self.num_samples = num_samples
        self.steps: list[dict[str, torch.Tensor]] = []

    def __call__(
        self, pipeline: DiffusionPipeline, step: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Called by the pipeline after each step; changes nothing. A first step forgets the last call's."""
        if not {"image_codes", "text_codes"} <= callback_kwargs.keys():
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must hold 'image_codes' and 'text_codes', as by default, got "
                f"{tuple(callback_kwargs)}."
            )
        if step == 0:
            self.steps = []
        self.steps.append({name: codes[: self.num_samples].clone() for name, codes in callback_kwargs.items()})
        return {}

    def draw(self, pipeline: DiffusionPipeline, picture_size: int = 128) -> list[Image.Image]:
        """Draws a frame for each step.

        Args:
            pipeline (`VQDiTPipeline`): The pipeline that was called.
            picture_size (`int`, defaults to 128): Side of a picture in the frames, in pixels.

        Returns:
            `list[PIL.Image.Image]`: Frames of one size, the last with everything that was generated.

        Raises:
            ValueError: If no step was recorded.
        """
        if not self.steps:
            raise ValueError("No step was recorded: pass this object to a pipeline as `callback_on_step_end` first.")
        last = self.steps[-1]
        num_columns = min(8, len(last["image_codes"]))
        pages = [
            draw_section(
                f"step {step} of {len(self.steps)}",
                self._items(pipeline, codes, last),
                num_columns=num_columns,
                picture_size=picture_size,
            )
            for step, codes in enumerate(self.steps, start=1)
        ]
        # Captions wrap as they grow: every frame is as high as the highest.
        height = max(page.height for page in pages)
        frames = [Image.new("RGB", (page.width, height), "white") for page in pages]
        for frame, page in zip(frames, pages, strict=True):
            frame.paste(page, (0, 0))
        return frames

    def save(self, pipeline: DiffusionPipeline, file: str | Path, seconds_per_step: float = 0.25) -> None:
        """Saves the frames as an animation that repeats.

        Args:
            pipeline (`VQDiTPipeline`): The pipeline that was called.
            file (`str` or `Path`): Of a kind that holds animations: `.webp`, `.gif`, `.png`.
            seconds_per_step (`float`, defaults to 0.25): How long a frame is shown; the last one eight times as long.
        """
        frames = self.draw(pipeline)
        milliseconds = [round(1000 * seconds_per_step)] * len(frames)
        milliseconds[-1] *= LAST_FRAME_STEPS
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)

    @staticmethod
    @torch.no_grad()
    def _items(
        pipeline: DiffusionPipeline, codes: dict[str, torch.Tensor], last: dict[str, torch.Tensor]
    ) -> list[GridItem]:
        """What is known after a step. Unknown codes are those of the last step while decoding, and hidden after it."""
        mask_ids = {"image_codes": pipeline.transformer.image_mask_id, "text_codes": pipeline.transformer.text_mask_id}
        is_unknown = {name: codes[name] == mask_id for name, mask_id in mask_ids.items()}
        filled = {name: torch.where(is_unknown[name], last[name], codes[name]) for name in mask_ids}
        # A modality that was neither given nor generated is MASK to the end: any code will do.
        filled = {name: value.masked_fill(value == mask_ids[name], 0) for name, value in filled.items()}
        decoded = pipeline.vqvae.decode(**filled)
        pictures = VaeImageProcessor().postprocess(decoded.image.float(), output_type="pil")
        token_ids = pipeline.vqvae.read_text(decoded.text_logits).tolist()  # (B, S)
        is_unknown_token = (
            is_unknown["text_codes"].any(dim=-1).repeat_interleave(pipeline.vqvae.text_downsample_factor, dim=1)
        )
        items = []
        for row, picture in enumerate(pictures):
            mask = Image.fromarray(is_unknown["image_codes"][row].byte().mul(255).cpu().numpy())
            hidden = show_hidden(picture, mask.resize(picture.size, Image.Resampling.NEAREST))
            caption = read_known(pipeline.tokenizer, token_ids[row], is_unknown_token[row].tolist())
            items.append(GridItem((hidden,), caption))
        return items


def read_known(tokenizer: Any, token_ids: list[int], is_unknown: list[bool]) -> str:
    """A caption up to its end, each unknown token as `_`."""
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokens = list(zip(token_ids, is_unknown, strict=True))
    tokens = list(takewhile(lambda token: token[1] or token[0] not in ends, tokens))
    pieces = []
    for unknown, run in groupby(tokens, key=lambda token: token[1]):
        ids = [token_id for token_id, _ in run]  # decoded together: a letter may take several tokens
        pieces.append(f" {UNKNOWN_TOKEN}" * len(ids) if unknown else tokenizer.decode(ids))
    return "".join(pieces).strip()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Sample grids while training: what a look at the run would want to see first."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import PreTrainedTokenizerBase

from hf_vqdit.data import encode_captions
from hf_vqdit.evaluation.grids import GridItem, draw_section, stack_sections, to_pictures
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE
from hf_vqdit.pipelines.pipeline_vqdit import VQDiTPipelineOutput

NUM_PREVIEWS = 8


@torch.no_grad()
def preview_reconstructions(
    vqvae: MultimodalVQVAE, tokenizer: PreTrainedTokenizerBase, batch: dict[str, Any]
) -> Image.Image:
    """Draws pairs of a batch beside what comes back of them.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer.
        tokenizer (`PreTrainedTokenizerBase`): The caption tokenizer.
        batch (`dict`): A batch of pairs; its first eight are drawn.

    Returns:
        `PIL.Image.Image`: Pictures beside their reconstructions, each with the caption that comes back under it.
    """
    pixel_values, input_ids = batch["pixel_values"][:NUM_PREVIEWS], batch["input_ids"][:NUM_PREVIEWS]
    pictures = [(picture,) for picture in to_pictures(pixel_values)]
    captions = read_captions(tokenizer, input_ids)
    if vqvae.image_codebook_size is not None:
        codes = vqvae.encode(image=pixel_values).image_codes
        reconstructions = to_pictures(vqvae.decode(image_codes=codes).image)
        pictures = [(*pair, other) for pair, other in zip(pictures, reconstructions, strict=True)]
    if vqvae.config.text_codec is not None:
        codes = vqvae.encode(text=input_ids).text_codes
        captions = read_captions(tokenizer, vqvae.read_text(vqvae.decode(text_codes=codes).text_logits))
    items = [GridItem(*item) for item in zip(pictures, captions, strict=True)]
    return draw_section("Reconstructions", items, "picture, what comes back of it, and its caption as it comes back")


@torch.no_grad()
def preview_pipeline(
    pipeline: DiffusionPipeline,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    *,
    prompts: Sequence[str] | None = None,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int = 0,
) -> Image.Image:
    """Draws what the pipeline generates in three directions, with the same noise each time.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        image_codes (`torch.LongTensor` of shape `(B, h, w)`): Codes of real pictures, the first eight to be described.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`): Codes of real captions, the first eight to be drawn.
        prompts (`Sequence[str]`, *optional*): Captions to draw instead.
        num_inference_steps (`int`): Sampling steps.
        guidance_scale (`float`): Guidance of pictures by captions.
        seed (`int`, *optional*, defaults to 0): Seed of the samples.

    Returns:
        `PIL.Image.Image`: Pictures over their prompts, real pictures over their captions, and pairs made up together.
    """
    real = pipeline.vqvae.decode(image_codes=image_codes[:NUM_PREVIEWS], text_codes=text_codes[:NUM_PREVIEWS])
    pictures, prompts = to_pictures(real.image), list(prompts or [])[:NUM_PREVIEWS]
    if not prompts:
        prompts = read_captions(pipeline.tokenizer, pipeline.vqvae.read_text(real.text_logits))
        # What a poor text codec makes of a caption may be more tokens than the pipeline takes.
        _, is_too_long = encode_captions(pipeline.tokenizer, prompts, return_truncated=True)
        prompts = [prompt for prompt, is_long in zip(prompts, is_too_long.tolist(), strict=True) if not is_long]

    def generate(count: int, **given: Any) -> VQDiTPipelineOutput:
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(count)]
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        return pipeline(**given, generator=generators, **settings)

    if pipeline.transformer.config.unet_kwargs is not None:  # it knows pictures alone
        drawn = generate(NUM_PREVIEWS, num_images_per_prompt=NUM_PREVIEWS, output_modalities=("image",)).images
        return draw_section("Pictures", [GridItem((picture,), "") for picture in drawn])

    sections = {}
    if prompts:
        drawn = generate(len(prompts), prompt=prompts).images
        sections["Prompt to picture"] = zip(drawn, prompts, strict=True)
    written = generate(len(pictures), image=pictures).texts
    sections["Picture to caption"] = zip(pictures, written, strict=True)
    pairs = generate(NUM_PREVIEWS, num_images_per_prompt=NUM_PREVIEWS)
    sections["Pairs"] = zip(pairs.images, pairs.texts, strict=True)
    return stack_sections(
        [
            draw_section(title, [GridItem((picture,), caption) for picture, caption in items])
            for title, items in sections.items()
        ]
    )


def read_captions(tokenizer: PreTrainedTokenizerBase, token_ids: torch.LongTensor) -> list[str]:
    """Token ids (B, S) as captions, up to EOS."""
    lengths = ((token_ids == tokenizer.eos_token_id).cumsum(dim=1) == 0).sum(dim=1)
    rows = [ids[:length] for ids, length in zip(token_ids.tolist(), lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

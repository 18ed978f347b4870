# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The pipeline: everything that is given is kept, everything that is left out is generated."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import zip_longest
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import BaseOutput
from transformers import PreTrainedTokenizerBase

MODALITIES = ("image", "text")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
JOINT_ORDERS = ("text_first", "image_first", "together")
GUIDANCE_SCHEDULES = ("constant", "linear")

# The schedulers of diffusers that take the steps of a Gaussian process, and what the transformer then predicts.
_NOISE_TYPES = ("epsilon", "v_prediction", "sample")
_FLOW_TYPES = ("flow_prediction",)
GAUSSIAN_SCHEDULERS = {
    f"{name}Scheduler": prediction_types
    for names, prediction_types in (
        ("DDIM DDIMParallel DDPM DDPMParallel EulerDiscrete HeunDiscrete LMSDiscrete TCD", _NOISE_TYPES),
        ("EulerAncestralDiscrete KDPM2AncestralDiscrete KDPM2Discrete PNDM", _NOISE_TYPES[:2]),
        ("DEISMultistep DPMSolverMultistep DPMSolverSinglestep SASolver UniPCMultistep", _NOISE_TYPES + _FLOW_TYPES),
        ("FlowMapEulerDiscrete FlowMatchEulerDiscrete FlowMatchHeunDiscrete", _FLOW_TYPES),
    )
    for name in names.split()
}


@dataclass
class VQDiTPipelineOutput(BaseOutput):
    """
    Output of [`VQDiTPipeline`]. What was not generated is `None`.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            `"pil"`: B pictures; `"np"`: `(B, H, W, 3)` and `"pt"`: `(B, 3, H, W)`, both in [0, 1]; `"latent"`: image
            codes `(B, h, w)`.
        texts (`list[str]` or `torch.LongTensor`):
            B captions; with `"latent"` text codes `(B, S/r, G)`.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None
    texts: list[str] | torch.LongTensor | None = None


class PromptTokens(NamedTuple):
    """What the prompts say of each of the S tokens; rows are items."""

    input_ids: torch.LongTensor  # (B, S), [MASK] where nothing is known
    is_known: torch.BoolTensor  # (B, S), given: words, and EOS and PAD after them unless the end is open
    is_word: torch.BoolTensor  # (B, S), a [MASK] that stands for exactly one token, which is no special one


class ForwardRows(NamedTuple):
    """Rows of one kind, one for each sample: what the transformer was last given and what it predicted from it."""

    inputs: dict[str, torch.Tensor]
    predictions: tuple[torch.Tensor, torch.Tensor]  # of image and text


class VQDiTPipeline(DiffusionPipeline):
    r"""
    Pictures from captions, captions from pictures, both from nothing, and the missing parts of either.

    **Everything you give is kept, everything you leave out is generated.** Pictures are kept as codes, so a kept part
    comes back as the VQ-VAE reconstructs it (`composite=True` brings the pixels back); given words come back letter
    for letter.

    | call | generated |
    |---|---|
    | `pipe("a red circle").images` | image |
    | `pipe(image=image).texts` | text |
    | `pipe(num_images_per_prompt=4)` | matching pairs: `.images` and `.texts` |
    | `pipe(output_modalities=("image",))` or `("text",)` | one of them alone |
    | `pipe("...", image, mask)` | the white part of the image |
    | `pipe("...", image, image_position="center", height=64, width=64)` | the canvas around the image |
    | `pipe("a [MASK] circle", image)` | the missing words |
    | `pipe("...", image, strength=0.6)` | the image, changed to fit the text |
    | `pipe(image=image, strength=0.6, output_modalities=("image",))` | a variation of the image |

    Without its `prompt` each of these generates the text as well, unless `output_modalities` says otherwise.

    Args:
        vqvae ([`MultimodalVQVAE`]):
            Pictures and captions to codes and back.
        transformer ([`VQDiTModel`]):
            Predicts the clean codes of both modalities, or their vectors where its process is Gaussian.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Words to token ids. Its `[PAD]`, `[EOS]` and `[MASK]` are three distinct special tokens.
        scheduler ([`MaskedDiffusionScheduler`] or one of `GAUSSIAN_SCHEDULERS`, of diffusers):
            Takes the steps of the image. Order, temperature, solver and the like are settings of its config.
        text_scheduler (the same, *optional*):
            Takes the steps of the text; by default a copy of `scheduler`.

    Of the last call `num_forward_passes` tells how often it called the transformer, and `num_forward_rows` how many
    rows went through it.
    """

    # The order of their last use, as in diffusers' inpainting pipelines: the VQ-VAE also encodes before.
    model_cpu_offload_seq = "transformer->vqvae"
    _optional_components = ["text_scheduler"]
    _callback_tensor_inputs = ["image_codes", "text_codes", "image_latents", "text_latents"]

    def __init__(
        self,
        vqvae: ModelMixin,
        transformer: ModelMixin,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: SchedulerMixin,
        text_scheduler: SchedulerMixin | None = None,
    ):
        super().__init__()
        if text_scheduler is None or text_scheduler is scheduler:  # one object cannot hold the state of two runs
            text_scheduler = scheduler.from_config(scheduler.config)
        self.register_modules(
            vqvae=vqvae,
            transformer=transformer,
            tokenizer=tokenizer,
            scheduler=scheduler,
            text_scheduler=text_scheduler,
        )
        self.image_processor = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_rgb=True)
        self.mask_processor = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)
        self.num_forward_passes = self.num_forward_rows = 0

    @property
    def guidance_scale(self) -> float:
        """Of the last call: see `guidance_scale` of `__call__`."""
        return self._guidance_scale

    @property
    def text_guidance_scale(self) -> float:
        """Of the last call: see `text_guidance_scale` of `__call__`."""
        return self._text_guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the run is to end before its next step: a callback sets `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        image_position: tuple[int, int] | str | None = None,
        strength: float | None = None,
        composite: bool = False,
        output_modalities: tuple[str, ...] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 12,
        num_text_inference_steps: int | None = None,
        joint_order: str = "text_first",
        guidance_scale: float = 2.0,
        text_guidance_scale: float = 1.0,
        guidance_schedule: str = "constant",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        num_prompts_per_image: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("image_codes", "text_codes"),
    ) -> VQDiTPipelineOutput | tuple:
        r"""
        Generate what is not given.

        `prompt`, `image`, `mask_image` and `negative_prompt` may each be one item or a list (for pictures also a
        batched tensor or array). Lists have the same length; an item that is not in a list goes with every entry of
        the lists. Steps and guidance of a modality that is not generated have no effect.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The captions. `[MASK]` stands for one word piece to fill in; a prompt that ends in `[MASK]` leaves open
                everything from there on, the length included. An empty string is a given, empty caption: to condition
                on nothing, leave `prompt` out.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                The pictures: `(H, W, 3)` arrays or `(3, H, W)` tensors in [0, 1], if not PIL.
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                White (0.5 or more) where `image` shall be generated anew, in the size of `image`. Nothing under the
                mask is looked at (but with `strength` below 1), and every code that the mask touches is generated.
            negative_prompt (`str` or `list[str]`, *optional*):
                What the picture is guided away from: it stands for the unknown caption in the guidance of the picture,
                and nowhere else. Ignored, with a warning, where that guidance is off.
            image_position (`tuple[int, int]` or `"center"`, *optional*):
                Outpainting: the (left, top) pixel of a canvas of `height` x `width` where `image` lies, not resized.
                Codes wholly inside it are kept, most if it lies on the code grid, as `"center"` does.
            strength (`float`, *optional*):
                Generates the given image (with `mask_image` its white part) anew from a noised state: the last
                `strength` of the steps run, from codes masked or noised for the time of the first of them. 0, or less
                than one step, returns the image as it is encoded; 1 keeps nothing of it and is plain generation.
            composite (`bool`, *optional*, defaults to `False`):
                Whether pixels that were given and not masked are put back into the generated pictures, exactly as
                given (after resizing). Needs `mask_image` or `image_position`.
            output_modalities (`tuple[str, ...]`, *optional*):
                What to generate of `"image"` and `"text"`; by default everything that is not given. What is neither
                given nor generated stays unknown.
            height (`int`, *optional*):
                Height in pixels, to which `image` is resized or which the canvas has; by default that of `image`, or
                else the trained one.
            width (`int`, *optional*):
                Width in pixels, likewise.
            num_inference_steps (`int`, *optional*, defaults to 12):
                Number of steps of the image. A step calls the transformer once, or not at all if it has seen the same
                codes before.
            num_text_inference_steps (`int`, *optional*):
                Number of steps of the text; by default as many.
            joint_order (`str`, *optional*, defaults to `"text_first"`):
                Where both are generated: `"text_first"` draws the text, then the image given it; `"image_first"` the
                other way round; `"together"` takes their steps side by side, until the one with fewer is done.
            guidance_scale (`float`, *optional*, defaults to 2.0):
                Guidance of the picture by the caption: `u + guidance_scale * (o - u)` of logits or vectors, with o
                given the caption and u without it (Ho & Salimans 2022). Off at 1 or below. Each active guidance adds
                its rows to the batch.
            text_guidance_scale (`float`, *optional*, defaults to 1.0):
                Guidance of the caption by the picture, likewise.
            guidance_schedule (`str`, *optional*, defaults to `"constant"`):
                `"linear"` lets both scales grow from 1, which is no guidance, at the first step of a schedule to their
                values at the last (Muse, Chang 2023, Sec. 2.7).
            guidance_interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
                The times, from 1 (nothing known) down to 0, at which there is guidance (Kynkäänniemi 2024), both ends
                included; at others the rows that it needs are not computed.
            num_images_per_prompt (`int`, *optional*, defaults to 1):
                Samples for each item; those of an item follow each other.
            num_prompts_per_image (`int`, *optional*, defaults to 1):
                The same number by its name for captions. A sample has one image and one text: the two are not
                multiplied, and must be equal if both are above 1.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for the batch, or one for each sample; with a list, a sample does not depend on the others.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"`, or `"latent"` for codes.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VQDiTPipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, `PipelineCallback` or `MultiPipelineCallbacks`, *optional*):
                Called after each step as `callback_on_step_end(pipeline, step, timestep, callback_kwargs)`; returns
                the entries of `callback_kwargs` that it changed. If it sets `pipeline._interrupt = True`, generation
                ends with the current prediction.
            callback_on_step_end_tensor_inputs (`tuple`, *optional*, defaults to `("image_codes", "text_codes")`):
                What `callback_kwargs` holds: `image_codes` `(B, h, w)` and `text_codes` `(B, S/r, G)`, MASK included.
                Of a Gaussian process they are those nearest to the prediction, to look at; what it may change are
                `image_latents` `(B, C, h, w)` and `text_latents` `(B, C, S/r, G)`, in the scale of the scheduler.

        Returns:
            [`VQDiTPipelineOutput`], or the tuple `(images, texts)`; `None` stands for what was not generated.

        Raises:
            `ValueError` or `TypeError`: An argument has the wrong type, size or length, or nothing is left to
            generate.
        """
        # 1. Check the arguments
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if num_text_inference_steps is None:
            num_text_inference_steps = num_inference_steps
        given = {"prompt": prompt, "negative_prompt": negative_prompt, "image": image, "mask_image": mask_image}
        counts = {
            "num_inference_steps": num_inference_steps,
            "num_text_inference_steps": num_text_inference_steps,
            "num_images_per_prompt": num_images_per_prompt,
            "num_prompts_per_image": num_prompts_per_image,
        }
        choices = {
            "joint_order": (joint_order, JOINT_ORDERS),
            "guidance_schedule": (guidance_schedule, GUIDANCE_SCHEDULES),
            "output_type": (output_type, OUTPUT_TYPES),
        }
        self.check_inputs(
            given,
            counts,
            choices,
            image_position,
            strength,
            composite,
            output_modalities,
            guidance_interval,
            callback_on_step_end_tensor_inputs,
        )
        (prompts, negative_prompts, pictures, masks), num_items = _align(**given)
        num_repeats = max(num_images_per_prompt, num_prompts_per_image)
        if isinstance(generator, (list, tuple)) and len(generator) != num_items * num_repeats:
            raise ValueError(
                f"`generator` must be one generator or a list of {num_items * num_repeats}, one for each sample"
                f" ({num_items} items, {num_repeats} samples each), got a list of {len(generator)}."
            )
        self._guidance_scale, self._text_guidance_scale = guidance_scale, text_guidance_scale
        self._guidance_schedule, self._guidance_interval = guidance_schedule, guidance_interval
        self.num_forward_passes = self.num_forward_rows = 0
        self._interrupt = False

        # 2. Encode what is given; with `strength` none of the picture is, but for what lies outside a mask
        tokens = self.tokenize(prompts, num_items)
        text_codes = self.prepare_text_codes(tokens)  # (B, S/r, G)
        hide = strength is None or strength == 1
        pixels, masked_pixels = self.preprocess(pictures, masks, height, width, num_items, image_position, hide)
        image_codes, image_given = self.prepare_image_codes(pixels, masked_pixels)  # (B, h, w)
        if strength is not None and masks is None:
            image_given = torch.zeros_like(image_given)
        repeat = partial(torch.repeat_interleave, repeats=num_repeats, dim=0)
        negative_codes = None
        if negative_prompts is not None:
            negative_tokens = self.tokenize(negative_prompts, num_items, "negative_prompt")
            negative_codes = repeat(self.prepare_text_codes(negative_tokens))
        tokens = PromptTokens(*map(repeat, tokens))
        text_codes, image_codes, image_given = map(repeat, (text_codes, image_codes, image_given))

        # 3. What is generated
        text_given = text_codes != self.transformer.text_mask_id
        generated = _choose_modalities(output_modalities, not bool(image_given.all()), not bool(text_given.all()))
        if (strength is not None or composite) and "image" not in generated:
            raise ValueError("`strength` and `composite` need a generated image, and this call generates none.")
        has_text = bool(text_given.any()) or negative_codes is not None
        if self.transformer.config.unet_kwargs is not None and (generated != {"image"} or has_text):
            raise ValueError('A U-Net knows pictures alone: pass `output_modalities=("image",)`, and no prompt.')
        if num_prompts_per_image > 1 and "text" not in generated:
            raise ValueError("`num_prompts_per_image` needs a generated text: pass `num_images_per_prompt` instead.")
        if negative_codes is not None and not ("image" in generated and guidance_scale > 1):
            warnings.warn("`negative_prompt` is ignored: it guides an image, at `guidance_scale` > 1.", stacklevel=3)
        forbidden_tokens = self._forbidden_tokens(tokens)  # (B, S, vocabulary)
        forbidden_codes = self._forbidden_text_codes(tokens, forbidden_tokens)  # (B, S/r, 1, V_y + 1)

        # 4. Where and when each modality begins; the one that is done is a condition for the other
        make_run = partial(self.transformer.make_run, vqvae=self.vqvae, generator=generator)
        image = make_run("image", self.scheduler, image_codes, image_given)
        text = make_run("text", self.text_scheduler, text_codes, text_given, forbidden_codes)
        negative_text = None
        if negative_codes is not None:
            is_known = negative_codes != self.transformer.text_mask_id
            negative_text = make_run("text", self.text_scheduler, negative_codes, is_known).state(None)
        if "image" in generated:
            image.begin(num_inference_steps, strength, generator)
        if "text" in generated:
            text.begin(num_text_inference_steps, None, generator)
        plan = _plan_steps(image.steps, text.steps, joint_order)
        self._num_timesteps = len(plan)

        # 5. Denoise
        last_rows: dict[str, ForwardRows] = {}
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for step, (image_step, text_step) in enumerate(plan):
                if self.interrupt:
                    break
                # By a condition of which nothing is known yet there is no guidance.
                scale = text_scale = 1.0
                if image_step is not None and (negative_text is not None or text.is_known):
                    scale = self._guidance_at(image_step, image.times, self.guidance_scale)
                if text_step is not None and image.is_known:
                    text_scale = self._guidance_at(text_step, text.times, self.text_guidance_scale)
                states = (image.state(image_step), text.state(text_step))
                predicted = self.predict(*states, scale, text_scale, negative_text, last_rows)
                image.advance(image_step, predicted[0], generator)
                text.advance(text_step, predicted[1], generator)
                del predicted, states  # or they would live beside the next ones
                if text_step is not None and text_step + 1 == text.steps.stop:
                    text.settle(self._pad_after_end(text.result()))  # the image may go on, given it as it is returned

                if callback_on_step_end is not None:
                    own = {"image": image.tensors, "text": text.tensors}
                    tensors = {f"{name}_{key}": x for name, kept in own.items() for key, x in kept.items()}
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    is_of_text = image_step is None or (text_step is not None and len(text.steps) > len(image.steps))
                    timestep = text.timesteps[text_step] if is_of_text else image.timesteps[image_step]
                    tensors |= callback_on_step_end(self, step, timestep, callback_kwargs) or {}
                    image.update(**{key: tensors[f"image_{key}"] for key in own["image"]})
                    text.update(**{key: tensors[f"text_{key}"] for key in own["text"]})
                progress_bar.update()

        # 6. Read out
        images = texts = None
        if "image" in generated:
            images = self.decode_images(image.result(), output_type, (pixels, masked_pixels) if composite else None)
        if "text" in generated:
            text_codes = self._pad_after_end(text.result())
            texts = text_codes if output_type == "latent" else self.decode_texts(text_codes, tokens, forbidden_tokens)

        self.maybe_free_model_hooks()
        if not return_dict:
            return images, texts
        return VQDiTPipelineOutput(images=images, texts=texts)

    # What is given

    def check_inputs(
        self,
        given: dict[str, Any],
        counts: dict[str, Any],
        choices: dict[str, tuple[Any, tuple[str, ...]]],
        image_position: tuple[int, int] | str | None,
        strength: float | None,
        composite: bool,
        output_modalities: tuple[str, ...] | None,
        guidance_interval: tuple[float, float],
        callback_on_step_end_tensor_inputs: tuple[str, ...],
    ) -> None:
        """Raise on arguments that are wrong by themselves; sizes and lengths are checked where they are known."""
        # Types and values
        for name, value in given.items():
            is_text = name.endswith("prompt")
            types = str if is_text else (PIL.Image.Image, np.ndarray, torch.Tensor)
            wrong = [x for x in (value if _is_list(value) else [value]) if not isinstance(x, types)]
            if value is not None and wrong:
                kind = "a string" if is_text else "a PIL picture (`diffusers.utils.load_image`), an array, a tensor"
                raise TypeError(f"`{name}` must be {kind} or a list of them, got {type(wrong[0]).__name__}.")
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")
        if not (_is_pair(image_position, int, 0, float("inf")) or str(image_position) in ("None", "center")):
            raise ValueError(
                f'`image_position` must be "center" or a pair (left, top) of integers >= 0, got {image_position!r}.'
            )
        if strength is not None and not (isinstance(strength, Real) and 0 <= strength <= 1):
            raise ValueError(f"`strength` must be a number in [0, 1], got {strength!r}.")
        if not _is_pair(guidance_interval, Real, 0, 1) or guidance_interval[0] > guidance_interval[1]:
            raise ValueError(
                f"`guidance_interval` must be two times 0 <= low <= high <= 1, got {guidance_interval!r}."
            )
        if output_modalities is not None and (
            isinstance(output_modalities, str) or not output_modalities or not set(output_modalities) <= {*MODALITIES}
        ):
            raise ValueError(
                "`output_modalities` must be one or both of 'image' and 'text', such as (\"image\",), got"
                f" {output_modalities!r}."
            )
        tensor_inputs = self._callback_tensor_inputs[: 4 if self.transformer.config.process == "gaussian" else 2]
        if not set(callback_on_step_end_tensor_inputs) <= set(tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {tensor_inputs}, got"
                f" {callback_on_step_end_tensor_inputs}."
            )
        self.check_schedulers()

        # What does not go together
        needs_image = {"mask_image": given["mask_image"], "image_position": image_position, "strength": strength}
        for name, value in needs_image.items():
            if value is not None and given["image"] is None:
                raise ValueError(f"`{name}` says what to do with `image`: pass `image` as well, or leave it out.")
        if image_position is not None and strength is not None:
            raise ValueError(
                "`strength` needs a picture everywhere, and `image_position` leaves the canvas around it empty: pass"
                " one of them, and the other in a second call."
            )
        is_latent = choices["output_type"][0] == "latent"
        if composite and ((given["mask_image"] is None and image_position is None) or is_latent):
            raise ValueError(
                "`composite` puts kept pixels back into a picture: pass `mask_image` or `image_position` with it, and"
                f" an `output_type` other than 'latent', got {choices['output_type'][0]!r}."
            )
        num_images, num_prompts = counts["num_images_per_prompt"], counts["num_prompts_per_image"]
        if 1 < num_images != num_prompts > 1:
            raise ValueError(
                "`num_images_per_prompt` and `num_prompts_per_image` are one number, of samples with an image and a"
                f" text each, got {num_images} and {num_prompts}: pass one of them."
            )

    def tokenize(self, prompts: list[str] | None, batch_size: int, name: str = "prompt") -> PromptTokens:
        """
        The tokens `(B, S)` of the prompts, one for each item: words, EOS, and PAD up to the context's length; all
        unknown without prompts. `name` is what a `ValueError` calls a prompt that does not fit into the context, or
        that holds `[PAD]` or `[EOS]`.
        """
        tokenizer = self.tokenizer
        mask_id, eos_id, pad_id = tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        context_length = self.transformer.config.text_length * self.vqvae.text_downsample_factor  # S
        input_ids = torch.full((batch_size, context_length), mask_id)
        is_word = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts or ()):
            ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
            if eos_id in ids or pad_id in ids:
                raise ValueError(
                    f"`{name}` {prompt!r} holds {tokenizer.eos_token} or {tokenizer.pad_token}: leave them"
                    " out, the end of the text is added."
                )
            is_open = ids[-1:] == [mask_id]  # and stands for everything that follows
            ids = ids if is_open else [*ids, eos_id]
            if len(ids) > context_length:
                raise ValueError(
                    f"`{name}` {prompt!r} has {len(ids)} tokens{'' if is_open else ', the end of the text included'},"
                    f" but this model's context holds {context_length}: shorten it."
                )
            input_ids[row, : len(ids)] = torch.tensor(ids)
            is_word[row, : len(ids) - 1] = input_ids[row, : len(ids) - 1] == mask_id  # the last is the end
            if not is_open:
                input_ids[row, len(ids) :] = pad_id
        is_known = input_ids != mask_id
        return PromptTokens(*(x.to(self._execution_device) for x in (input_ids, is_known, is_word)))

    def prepare_text_codes(self, tokens: PromptTokens) -> torch.LongTensor:
        """Text codes `(B, S/r, G)` of the prompts; a chunk that holds an unknown token is MASK."""
        text_codes = self.vqvae.encode(text=tokens.input_ids).text_codes
        is_unknown = self._chunks(~tokens.is_known).any(dim=-1)  # (B, S/r)
        return text_codes.masked_fill(is_unknown[..., None], self.transformer.text_mask_id)

    def preprocess(
        self,
        pictures: list[Any] | None,
        masks: list[Any] | None,
        height: int | None,
        width: int | None,
        batch_size: int = 1,
        image_position: tuple[int, int] | str | None = None,
        hide: bool = True,
    ) -> tuple[torch.Tensor | None, torch.BoolTensor]:
        """
        Pictures and masks, one for each item, to tensors of one size on the CPU: pixels `(B, 3, H, W)` in [-1, 1], and
        masked pixels `(B, 1, H, W)`, True where to generate; without pictures `None`, and a mask of `batch_size` rows.

        They are resized to `height` x `width`, by default the size of the pictures, or placed on a canvas of that size
        at `image_position`. With `hide`, masked pixels are replaced by what surrounds them before anything else:
        pictures that differ under the mask alone are equal from here on. A `ValueError` says which sizes or numbers of
        channels do not fit.
        """
        if pictures is None:
            factor, trained = self.vqvae.image_downsample_factor, self.transformer.config.sample_size
            trained = (trained, trained) if isinstance(trained, int) else trained
            size = self._choose_size(height, width, [side * factor for side in trained])
            return None, torch.ones(batch_size, 1, *size, dtype=torch.bool)
        pixels = [self._picture_to_tensor(picture) for picture in pictures]  # of (1, 3, H, W)
        sizes = sorted({tuple(x.shape[2:]) for x in pixels})
        if len(sizes) > 1 and (height is None or width is None):
            raise ValueError(
                f"The pictures of `image` have the sizes (height, width) {sizes}: pass `height` and `width` to resize"
                " them."
            )
        if image_position is not None and height is None and width is None:
            raise ValueError("`image_position` places `image` on a larger canvas: pass its `height` and `width`.")
        size = self._choose_size(height, width, sizes[0])
        if masks is None:
            is_masked = [torch.zeros_like(x[:, :1], dtype=torch.bool) for x in pixels]
        else:
            is_masked = [self._mask_to_tensor(mask) for mask in masks]  # of (1, 1, H, W)
        for x, mask in zip(pixels, is_masked, strict=True):
            if mask.shape != x[:, :1].shape:
                raise ValueError(
                    "`mask_image` must have one channel and the size of `image`, (height, width) ="
                    f" {tuple(x.shape[2:])}, got (channels, height, width) = {tuple(mask.shape[1:])}."
                )
        if image_position is not None:
            margins = [self._margins(x.shape[2:], size, image_position) for x in pixels]
            pixels = [F.pad(x, margin) for x, margin in zip(pixels, margins, strict=True)]
            is_masked = [F.pad(mask, margin, value=True) for mask, margin in zip(is_masked, margins, strict=True)]
        if hide:
            pixels = [_fill(x, mask) if mask.any() else x for x, mask in zip(pixels, is_masked, strict=True)]
        pixels = torch.cat([_resize(x, size) for x in pixels])
        # A resized pixel is masked if any of the pixels in it was. At its own size a mask stays as it is.
        is_masked = torch.cat([F.adaptive_max_pool2d(mask.float(), size) > 0 for mask in is_masked])
        return pixels, is_masked

    def prepare_image_codes(
        self, pixels: torch.Tensor | None, masked_pixels: torch.BoolTensor
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Image codes `(B, h, w)` of the pictures, and which are given: those of which the mask touches no pixel."""
        is_masked = F.max_pool2d(masked_pixels.float(), self.vqvae.image_downsample_factor).squeeze(1).bool()
        is_masked = is_masked.to(self._execution_device)  # (B, h, w)
        if pixels is None:
            return torch.full_like(is_masked, self.transformer.image_mask_id, dtype=torch.long), ~is_masked
        pixels = pixels.float().to(is_masked.device, self.vqvae.dtype)
        return self.vqvae.encode(image=pixels).image_codes, ~is_masked

    # What is predicted

    def predict(
        self,
        image: torch.LongTensor,
        text: torch.LongTensor,
        guidance_scale: float = 1.0,
        text_guidance_scale: float = 1.0,
        negative_text: torch.LongTensor | None = None,
        last_rows: dict[str, ForwardRows] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What the transformer predicts of both modalities from their states: of codes `(B, h, w)` and `(B, S/r, G)` with
        MASK in them raw logits `(B, h, w, V_x)` and `(B, S/r, G, V_y + 1)`; of noisy vectors what it is trained for.

        A modality that is guided (a scale above 1) is predicted once more with the other one wholly unknown, its given
        parts included, or with `negative_text` in place of the text. All rows go through the transformer in one batch,
        but those that are still as in `last_rows`, which is brought up to date.
        """
        rows = {} if last_rows is None else last_rows
        unknown, guide = self.transformer.unknown, self.transformer.guide
        states = {"both": (image, text)}
        if guidance_scale > 1:
            states["image"] = (image, unknown("text", text) if negative_text is None else negative_text)
        if text_guidance_scale > 1:
            states["text"] = (unknown("image", image), text)
        inputs = {
            kind: self.transformer.inputs("image", x) | self.transformer.inputs("text", y)
            for kind, (x, y) in states.items()
        }
        self._forward_rows(inputs, rows)
        image_prediction, text_prediction = rows["both"].predictions
        if guidance_scale > 1:
            image_prediction = guide(image_prediction, rows["image"].predictions[0], guidance_scale)
        if text_guidance_scale > 1:
            text_prediction = guide(text_prediction, rows["text"].predictions[1], text_guidance_scale)
        return image_prediction, text_prediction

    def _forward_rows(self, inputs: dict[str, dict[str, torch.Tensor]], rows: dict[str, ForwardRows]) -> None:
        """Bring `rows` up to date with the transformer's inputs of each kind, in one batch of those that changed."""
        # A cache of diffusers' own needs the same batch each time.
        has_cache = getattr(self.transformer, "is_cache_enabled", False)
        for kind in [kind for kind in rows if has_cache or kind not in inputs]:  # predictions are large
            del rows[kind]
        is_new = {}  # (B,) of each kind
        for kind, given in inputs.items():
            last = rows[kind].inputs if kind in rows else None
            changes = [x != last[name] if last else torch.ones_like(x, dtype=torch.bool) for name, x in given.items()]
            is_new[kind] = torch.stack([change.reshape(len(change), -1).any(dim=1) for change in changes]).any(dim=0)
            if is_new[kind].all():
                rows.pop(kind, None)  # before there are others
        batch = {
            name: torch.cat([given[name][is_new[kind]] for kind, given in inputs.items()]) for name in inputs["both"]
        }
        counts = [int(new.sum()) for new in is_new.values()]
        if sum(counts) == 0:
            return
        with self.transformer.cache_context("+".join(inputs)):
            predictions = self.transformer(**batch, return_dict=False)
        self.num_forward_passes += 1
        self.num_forward_rows += sum(counts)
        for kind, *parts in zip(inputs, *(x.split(counts) for x in predictions), strict=True):
            if kind in rows:
                last = zip(rows[kind].predictions, parts, strict=True)
                parts = [x.index_put((is_new[kind],), new) for x, new in last]
            # Copies, since a callback may write into its tensors.
            rows[kind] = ForwardRows({name: x.clone() for name, x in inputs[kind].items()}, tuple(parts))

    def check_schedulers(self) -> None:
        """Raise on a scheduler that does not fit the transformer, or has a setting that does not."""
        model = self.transformer.config
        fitting = ["MaskedDiffusionScheduler"]
        if model.process == "gaussian":
            fitting = [name for name, types in GAUSSIAN_SCHEDULERS.items() if model.prediction_type in types]
        for name in ("scheduler", "text_scheduler"):
            scheduler, class_name = getattr(self, name), type(getattr(self, name)).__name__
            if not {cls.__name__ for cls in type(scheduler).__mro__} & set(fitting):
                raise ValueError(
                    f"`{name}` must fit the transformer, whose process is {model.process!r} (if Gaussian, with the"
                    f" prediction type {model.prediction_type!r}): one of {', '.join(fitting)}, got {class_name}."
                )
            if model.process == "gaussian":
                self._check_settings(name, scheduler)

    def _check_settings(self, name: str, scheduler: SchedulerMixin) -> None:
        """Raise on a setting of a scheduler of diffusers that does not fit the transformer."""
        model, class_name = self.transformer.config, type(scheduler).__name__
        is_flow = model.prediction_type == "flow_prediction"
        wanted = {"prediction_type": model.prediction_type, "use_flow_sigmas": is_flow}
        wanted |= {"timestep_type": "discrete", "interpolation_type": "linear"}  # else not the timesteps of its sigmas
        wanted |= {"shift": 1.0} if class_name == "FlowMatchHeunDiscreteScheduler" else {}  # which would shift twice
        # Vectors have no range to clip to; a flow is no consistency model, ends at x_0, and has a constant shift.
        unwanted = ["clip_sample", "thresholding", "stochastic_sampling", "use_dynamic_shifting", "invert_sigmas"]
        if is_flow and hasattr(scheduler, "alphas_cumprod"):  # of which these are sigmas, and not of the flow
            unwanted += ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
        unwanted += ["rescale_betas_zero_snr"] if model.prediction_type == "epsilon" else []  # 0 / 0
        wanted |= dict.fromkeys(unwanted, False)
        if scheduler.config.get("variance_type") not in (None, "fixed_small", "fixed_small_log", "fixed_large"):
            learns = model.learn_sigma and class_name.startswith("DDPM")  # others take the first three channels
            wanted["variance_type"] = "learned_range" if learns else None
        for key, value in wanted.items():
            if key in signature(type(scheduler).__init__).parameters and scheduler.config[key] != value:
                raise ValueError(
                    f"`{name}`, {class_name}, has `{key}` {scheduler.config[key]!r}, and this transformer needs"
                    f" {value!r}: {class_name}.from_config(pipe.{name}.config, {key}={value!r})."
                )
        # Solvers divide by what is left of x_0 at the last level, and so does x_0 from epsilon.
        is_divisor = model.prediction_type == "epsilon" or not class_name.startswith(("DDIM", "DDPM", "TCD"))
        if not is_flow and is_divisor and scheduler.alphas_cumprod[-1] == 0:
            raise ValueError(
                f"`{name}`, {class_name}, has betas (`trained_betas` or `beta_end`) that end at 1: let them end below."
                " Only DDIM, DDPM and TCD take such, where the transformer predicts 'v_prediction' or 'sample'."
            )

    def _guidance_at(self, index: int, timesteps: torch.Tensor, guidance_scale: float) -> float:
        """The scale of guidance at a step of a schedule; 1 is none."""
        low, high = torch.tensor(self._guidance_interval).to(timesteps)
        if not low <= timesteps[index] <= high:
            return 1.0
        if self._guidance_schedule == "linear" and len(timesteps) > 1:
            return 1 + (guidance_scale - 1) * index / (len(timesteps) - 1)
        return guidance_scale

    def _forbidden_tokens(self, tokens: PromptTokens) -> torch.BoolTensor:
        """Tokens `(B, S, vocabulary)` that may not be generated: [MASK], and special ones in place of a word."""
        is_special, is_mask = tokens.is_word.new_zeros(2, self.vqvae.config.vocab_size)
        is_special[self.tokenizer.all_special_ids] = True
        is_mask[self.tokenizer.mask_token_id] = True
        return is_mask | (tokens.is_word[..., None] & is_special)

    def _forbidden_text_codes(self, tokens: PromptTokens, forbidden_tokens: torch.BoolTensor) -> torch.BoolTensor:
        """Text codes `(B, S/r, 1, V_y + 1)` that may not be drawn: PAD up to the last chunk with a given token."""
        pad_id = self.transformer.text_pad_id
        # From the start of a text up to its last given token each token is a given one or stands for a word.
        is_text = tokens.is_word | (tokens.is_known & (tokens.input_ids != self.tokenizer.pad_token_id))
        is_text = self._chunks(is_text).any(dim=-1)  # (B, S/r)
        forbidden = torch.zeros(*is_text.shape, 1, pad_id + 1, dtype=torch.bool, device=is_text.device)
        forbidden[..., pad_id] = is_text[..., None]
        if self.vqvae.config.text_codec == "identity":  # a code is a token, and no decoder chooses another one later
            forbidden[:, :, 0, :pad_id] = forbidden_tokens
        return forbidden

    def _pad_after_end(self, text_codes: torch.LongTensor) -> torch.LongTensor:
        """Text codes `(B, S/r, G)` that end at the first padding."""
        pad_id = self.transformer.text_pad_id
        return text_codes.masked_fill((text_codes == pad_id).any(-1, keepdim=True).cumsum(dim=1) > 0, pad_id)

    # What is returned

    def decode_images(
        self, image_codes: torch.LongTensor, output_type: str, kept: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """
        Pictures of image codes `(B, h, w)`, see `output_type` of `__call__`; with the pixels `(B, 3, H, W)` and masked
        pixels `(B, 1, H, W)` of each item, unmasked pixels in their place.
        """
        if output_type == "latent":
            return image_codes
        images = (self.vqvae.decode(image_codes=image_codes).image * 0.5 + 0.5).clamp(0, 1)
        if kept is not None:
            kept = ((kept[0] * 0.5 + 0.5).float(), kept[1])
            pixels, is_masked = (x.repeat_interleave(len(images) // len(x), dim=0).to(images.device) for x in kept)
            images = torch.where(is_masked, images.float(), pixels)
        return self.image_processor.postprocess(images, output_type)

    def decode_texts(
        self, text_codes: torch.LongTensor, tokens: PromptTokens, forbidden_tokens: torch.BoolTensor
    ) -> list[str]:
        """Captions of text codes `(B, S/r, G)`, up to EOS; given tokens are read as they were given."""
        logits = self.vqvae.decode(text_codes=text_codes).text_logits.masked_fill(forbidden_tokens, -torch.inf)
        given = torch.full_like(logits, -torch.inf).scatter(-1, tokens.input_ids[..., None], 0.0)
        token_ids = self.vqvae.read_text(torch.where(tokens.is_known[..., None], given, logits))
        is_end = (token_ids == self.tokenizer.eos_token_id) | (token_ids == self.tokenizer.pad_token_id)
        lengths = (is_end.cumsum(dim=1) == 0).sum(dim=1).tolist()
        return [
            self.tokenizer.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids, length in zip(token_ids.tolist(), lengths, strict=True)
        ]

    # Sizes

    def _chunks(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S) -> (B, S/r, r)"""
        return tokens.unflatten(1, (-1, self.vqvae.text_downsample_factor))

    def _picture_to_tensor(self, picture: PIL.Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
        """One picture to (1, 3, H, W) in [-1, 1], in float64: kept pixels come back as exactly what they were."""
        if not isinstance(picture, PIL.Image.Image) and (picture.ndim != 3 or not _is_float(picture)):
            raise ValueError(
                "An `image` that is not PIL must hold floats in [0, 1], as an array (H, W, 3) or a tensor (3, H, W),"
                f" got {picture.dtype} and shape {tuple(picture.shape)}. `PIL.Image.fromarray` reads arrays of bytes."
            )
        pixels = self.image_processor.preprocess(picture).cpu().double()
        if pixels.shape[1] != self.vqvae.config.in_channels or not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"`image` must have {self.vqvae.config.in_channels} channels, last in an array and first in a tensor,"
                f" and values in [0, 1], got {pixels.shape[1]} channels and values from {pixels.min():g} to"
                f" {pixels.max():g}."
            )
        return 2 * pixels - 1

    def _mask_to_tensor(self, mask: PIL.Image.Image | np.ndarray | torch.Tensor) -> torch.BoolTensor:
        """One mask to (1, 1, H, W), True where it is white."""
        if not isinstance(mask, PIL.Image.Image) and not _is_float(mask) and mask.dtype not in (torch.bool, np.bool_):
            raise ValueError(f"A `mask_image` that is not PIL must hold floats in [0, 1] or bools, got {mask.dtype}.")
        return self.mask_processor.preprocess(mask).cpu() >= 0.5

    def _margins(
        self, picture_size: tuple[int, int], size: tuple[int, int], image_position: tuple[int, int] | str
    ) -> tuple[int, int, int, int]:
        """What lies left, right, above and below of a picture (H, W) that is placed on a canvas of another size."""
        (height, width), factor = picture_size, self.vqvae.image_downsample_factor
        if image_position == "center":
            left, top = (max(0, space) // 2 // factor * factor for space in (size[1] - width, size[0] - height))
        else:
            left, top = image_position
        margins = (left, size[1] - width - left, top, size[0] - height - top)
        if min(margins) < 0:
            raise ValueError(
                f"`image` of {height} x {width} pixels does not fit on a canvas of `height` x `width` = {size[0]} x"
                f" {size[1]} at (left, top) = ({left}, {top}): pass a height of at least {top + height} and a width of"
                f" at least {left + width}, or resize the picture first."
            )
        return margins

    def _choose_size(self, height: int | None, width: int | None, default: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels, checked."""
        height, width = default[0] if height is None else height, default[1] if width is None else width
        multiple = self.vqvae.image_downsample_factor * self.transformer.config.patch_size
        if height % multiple or width % multiple or min(height, width) < 1:
            nearest = tuple(max(1, round(x / multiple)) * multiple for x in (height, width))
            raise ValueError(
                f"Height and width must be multiples of {multiple} (the VQ-VAE's downsampling times the transformer's"
                f" patch size), got {height} x {width} pixels. A given `image` is resized to `height` and `width`, or"
                f" placed on them by `image_position`: {nearest[0]} x {nearest[1]} is nearest, sample_size"
                f" {self.transformer.config.sample_size} times {self.vqvae.image_downsample_factor} what was trained."
            )
        return height, width


def _is_list(value: Any) -> bool:
    """Whether `value` holds items: a list, or a batched array or tensor."""
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 4)


def _is_float(array: np.ndarray | torch.Tensor) -> bool:
    return array.is_floating_point() if isinstance(array, torch.Tensor) else array.dtype.kind == "f"


def _is_pair(value: Any, number: type, low: float, high: float) -> bool:
    """Whether `value` is two numbers of a type in [low, high]."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and all(isinstance(x, number) and low <= x <= high for x in value)


def _align(**values: str | PipelineImageInput | list[str] | None) -> tuple[list[list[Any] | None], int]:
    """Lists of one length of what is given, single items repeated, and that length."""
    lengths = {name: len(value) for name, value in values.items() if _is_list(value)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            f"Lists must have one length, at least 1, got {lengths}. An item that goes with all the others is passed"
            " without a list."
        )
    batch_size = next(iter(lengths.values()), 1)
    repeated = (list(value) if _is_list(value) else [value] * batch_size for value in values.values())
    return [None if items[0] is None else items for items in repeated], batch_size


def _choose_modalities(output_modalities: tuple[str, ...] | None, image_is_open: bool, text_is_open: bool) -> set[str]:
    """The modalities to generate, each of which has something left to generate."""
    is_open = {"image": image_is_open, "text": text_is_open}
    chosen = {name for name in MODALITIES if is_open[name]} if output_modalities is None else set(output_modalities)
    given = sorted(name for name in chosen or MODALITIES if not is_open[name])
    if given:
        raise ValueError(
            f"Nothing is left to generate of {' and '.join(given)}: it is given whole. Leave it out, or hide a part,"
            " of the image by a `mask_image` with white in it, of the text by [MASK] in the `prompt`."
        )
    return chosen


def _plan_steps(image_steps: range, text_steps: range, joint_order: str) -> list[tuple[int | None, int | None]]:
    """The steps that image and text take at each step of a call; `None` where one of them takes none."""
    if joint_order == "together":
        return list(zip_longest(image_steps, text_steps))
    image, text = [(step, None) for step in image_steps], [(None, step) for step in text_steps]
    return text + image if joint_order == "text_first" else image + text


def _fill(pixels: torch.Tensor, is_masked: torch.BoolTensor) -> torch.Tensor:
    """
    (B, C, H, W) with masked pixels (B, 1, H, W) replaced by what surrounds them: some rings pixel by pixel, the rest
    from the picture at half its size. Blank ones would change codes all over: the encoder's group norms see them.
    """
    known, pixels = (~is_masked).to(pixels), pixels.masked_fill(is_masked, 0)
    for _ in range(4):
        num_known = F.avg_pool2d(known, 3, stride=1, padding=1, divisor_override=1)
        ring = F.avg_pool2d(pixels, 3, stride=1, padding=1, divisor_override=1) / num_known.clamp(min=1)
        pixels, known = torch.where(known > 0, pixels, ring), (num_known > 0).to(pixels)
    if known.all() or max(pixels.shape[2:]) == 1:
        return pixels
    share_known = F.avg_pool2d(known, 2, ceil_mode=True)
    half = F.avg_pool2d(pixels, 2, ceil_mode=True) / torch.where(share_known > 0, share_known, 1)
    half = _fill(half, share_known == 0)
    return torch.where(known > 0, pixels, F.interpolate(half, pixels.shape[2:]))


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] to another size, antialiased."""
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The pipeline: everything that is given is kept, everything that is left out is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


class VQDiTPipeline(DiffusionPipeline):
    r"""
    Pictures from captions, captions from pictures, both from nothing, and the missing parts of either.

    **Everything you give is kept, everything you leave out is generated.** Pictures are kept as codes, so a kept part
    comes back as the VQ-VAE reconstructs it; given words come back letter for letter.

    Args:
        vqvae ([`MultimodalVQVAE`]):
            Pictures and captions to codes and back.
        transformer ([`VQDiTModel`]):
            Predicts the clean codes of both modalities.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Words to token ids. Its `[PAD]`, `[EOS]` and `[MASK]` are three distinct special tokens.
        scheduler ([`MaskedDiffusionScheduler`]):
            Draws image codes. Order, temperature and the like are settings of its config.
        text_scheduler ([`MaskedDiffusionScheduler`], *optional*):
            Draws text codes; by default a copy of `scheduler`.

    Example:

    ```py
    >>> import hf_vqdit

    >>> pipe = hf_vqdit.VQDiTPipeline.from_pretrained("runs/quickstart/pipeline")
    >>> image = pipe("a red circle above a blue square").images[0]  # text -> image
    >>> caption = pipe(image=image).texts[0]  # image -> text
    >>> output = pipe(num_images_per_prompt=4)  # pairs: output.images, output.texts
    >>> image = pipe(output_modalities=("image",)).images[0]  # a picture alone
    >>> image = pipe("a red circle", image=image, mask_image=mask).images[0]  # white parts of the mask anew
    >>> caption = pipe("a [MASK] circle", image=image).texts[0]  # fill words
    ```
    """

    # The VQ-VAE encodes before the transformer and decodes after it. This is the order of their last use, as in
    # diffusers' inpainting pipelines; the VQ-VAE is the small one.
    model_cpu_offload_seq = "transformer->vqvae"
    _optional_components = ["text_scheduler"]
    _callback_tensor_inputs = ["image_codes", "text_codes"]

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
        self.image_processor = VaeImageProcessor(do_resize=False, do_convert_rgb=True)
        self.mask_processor = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)

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
        output_modalities: tuple[str, ...] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 16,
        num_text_inference_steps: int | None = None,
        guidance_scale: float = 3.0,
        text_guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("image_codes", "text_codes"),
    ) -> VQDiTPipelineOutput | tuple:
        r"""
        Generate what is not given.

        `prompt`, `image` and `mask_image` may each be one item or a list (for pictures also a batched tensor or
        array). Lists have the same length; an item that is not in a list goes with every entry of the lists.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The captions. `[MASK]` stands for one word piece to fill in; a prompt that ends in `[MASK]` leaves open
                everything from there on, the length included. An empty string is a given, empty caption: to condition
                on nothing, leave `prompt` out.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                The pictures: `(H, W, 3)` arrays or `(3, H, W)` tensors in [0, 1], if not PIL.
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                White (0.5 or more) where `image` shall be generated anew, in the size of `image`. Nothing of the
                picture under the mask is looked at, and every code that the mask touches is generated.
            output_modalities (`tuple[str, ...]`, *optional*):
                What to generate of `"image"` and `"text"`; by default everything that is not given. What is neither
                given nor generated stays unknown.
            height (`int`, *optional*):
                Height in pixels, to which `image` is resized. By default that of `image`, or else the trained one.
            width (`int`, *optional*):
                Width in pixels, likewise.
            num_inference_steps (`int`, *optional*, defaults to 16):
                Number of steps of the image.
            num_text_inference_steps (`int`, *optional*):
                Number of steps of the text; by default as many. Both begin together. The one with fewer steps ends
                first and is a given condition for the rest, so with one step of text for many of the image the
                caption is drawn first, then a picture of it.
            guidance_scale (`float`, *optional*, defaults to 3.0):
                Guidance of the picture by the caption: logits `u + guidance_scale * (o - u)`, with o given the caption
                and u without it (Ho & Salimans 2022). Off at 1 or below. Each active guidance adds its rows to the
                batch.
            text_guidance_scale (`float`, *optional*, defaults to 1.0):
                Guidance of the caption by the picture, likewise.
            num_images_per_prompt (`int`, *optional*, defaults to 1):
                Samples for each item, also if the samples are captions; those of an item follow each other.
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

        Returns:
            [`VQDiTPipelineOutput`], or the tuple `(images, texts)`; `None` stands for what was not generated.

        Raises:
            `ValueError` or `TypeError`: An argument has the wrong type, size or length, or nothing is left to
            generate.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check the arguments
        self.check_inputs(
            prompt,
            image,
            mask_image,
            output_modalities,
            num_inference_steps,
            num_text_inference_steps,
            num_images_per_prompt,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        prompts, pictures, masks, num_items = _align(prompt, image, mask_image)
        num_samples = num_items * num_images_per_prompt
        if isinstance(generator, (list, tuple)) and len(generator) != num_samples:
            raise ValueError(
                f"`generator` must be one generator or a list of {num_samples}, one for each sample (items times"
                f" `num_images_per_prompt` = {num_images_per_prompt}), got a list of {len(generator)}."
            )
        self._guidance_scale = guidance_scale
        self._text_guidance_scale = text_guidance_scale
        self._interrupt = False

        # 2. Encode what is given; MASK is what is not
        tokens = self.tokenize(prompts, num_items)
        pixels, masked_pixels = self.preprocess(pictures, masks, height, width)
        text_codes = self.prepare_text_codes(tokens)  # (B, S/r, G)
        image_codes = self.prepare_image_codes(pixels, masked_pixels, num_items, height, width)  # (B, h, w)
        tokens = PromptTokens(*(x.repeat_interleave(num_images_per_prompt, dim=0) for x in tokens))
        image_codes = image_codes.repeat_interleave(num_images_per_prompt, dim=0)
        text_codes = text_codes.repeat_interleave(num_images_per_prompt, dim=0)

        # 3. What is generated, and by what it is guided
        image_mask_id, text_mask_id = self.transformer.image_mask_id, self.transformer.text_mask_id
        image_given, text_given = image_codes != image_mask_id, text_codes != text_mask_id
        generated = _choose_modalities(output_modalities, not bool(image_given.all()), not bool(text_given.all()))
        has_image = "image" in generated or bool(image_given.any())
        has_text = "text" in generated or bool(text_given.any())
        guides_image = "image" in generated and has_text and guidance_scale > 1
        guides_text = "text" in generated and has_image and text_guidance_scale > 1
        forbidden_tokens = self._forbidden_tokens(tokens)  # (B, S, vocabulary)
        forbidden_codes = self._forbidden_text_codes(tokens, forbidden_tokens)  # (B, S/r, 1, V_y + 1)

        # 4. Denoise; the modality with fewer steps ends first and is a condition from then on
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        self.text_scheduler.set_timesteps(
            num_inference_steps if num_text_inference_steps is None else num_text_inference_steps,
            device=self._execution_device,
        )
        image_timesteps = self.scheduler.timesteps if "image" in generated else ()
        text_timesteps = self.text_scheduler.timesteps if "text" in generated else ()
        timesteps = max(image_timesteps, text_timesteps, key=len)
        self._num_timesteps = len(timesteps)
        image_prediction, text_prediction = image_codes, text_codes
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                has_image_step, has_text_step = step < len(image_timesteps), step < len(text_timesteps)
                image_logits, text_logits = self.predict(
                    image_codes, text_codes, guides_image and has_image_step, guides_text and has_text_step
                )
                if has_image_step:
                    image_codes, image_prediction = self.scheduler.step(
                        image_logits,
                        image_timesteps[step],
                        image_codes,
                        frozen_mask=image_given,
                        generator=generator,
                        return_dict=False,
                    )
                if has_text_step:
                    # Only now: guidance needs raw logits, -inf minus -inf is NaN.
                    text_codes, text_prediction = self.text_scheduler.step(
                        text_logits.masked_fill(forbidden_codes, -torch.inf),
                        text_timesteps[step],
                        text_codes,
                        frozen_mask=text_given,
                        generator=generator,
                        return_dict=False,
                    )
                if step + 1 == len(text_timesteps):  # the image may go on, given the text as it is returned
                    text_codes = self._pad_after_end(text_codes)

                if callback_on_step_end is not None:
                    state = {"image_codes": image_codes, "text_codes": text_codes}
                    callback_kwargs = {name: state[name] for name in callback_on_step_end_tensor_inputs}
                    state.update(callback_on_step_end(self, step, timestep, callback_kwargs) or {})
                    image_codes, text_codes = state["image_codes"], state["text_codes"]
                progress_bar.update()

        # 5. Read out; only an interrupted run has codes left to fill in from its last prediction
        images = texts = None
        if "image" in generated:
            image_codes = torch.where(image_codes == image_mask_id, image_prediction, image_codes)
            images = self.decode_images(image_codes, output_type)
        if "text" in generated:
            text_codes = torch.where(text_codes == text_mask_id, text_prediction, text_codes)
            text_codes = self._pad_after_end(text_codes)
            texts = text_codes if output_type == "latent" else self.decode_texts(text_codes, tokens, forbidden_tokens)

        self.maybe_free_model_hooks()
        if not return_dict:
            return images, texts
        return VQDiTPipelineOutput(images=images, texts=texts)

    # What is given

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        image: PipelineImageInput | None,
        mask_image: PipelineImageInput | None,
        output_modalities: tuple[str, ...] | None,
        num_inference_steps: int,
        num_text_inference_steps: int | None,
        num_images_per_prompt: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: tuple[str, ...],
    ) -> None:
        """Raise on arguments that are wrong by themselves; sizes and lengths are checked where they are known."""
        texts = prompt if _is_list(prompt) else [prompt]
        if prompt is not None and not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`prompt` must be a string or a list of strings, got {prompt!r}.")
        for name, value in (("image", image), ("mask_image", mask_image)):
            pictures = value if _is_list(value) else [value]
            wrong = [x for x in pictures if not isinstance(x, (PIL.Image.Image, np.ndarray, torch.Tensor))]
            if value is not None and wrong:
                raise TypeError(
                    f"`{name}` must be a PIL picture, an array, a tensor or a list of them, got"
                    f" {type(wrong[0]).__name__}. A file or an address is opened by `diffusers.utils.load_image`."
                )
        if mask_image is not None and image is None:
            raise ValueError("`mask_image` says which part of `image` to generate: pass `image` as well.")
        if output_modalities is not None and (
            isinstance(output_modalities, str) or not output_modalities or not set(output_modalities) <= {*MODALITIES}
        ):
            raise ValueError(
                "`output_modalities` must be one or both of 'image' and 'text', such as (\"image\",), got"
                f" {output_modalities!r}."
            )
        counts = {
            "num_inference_steps": num_inference_steps,
            "num_text_inference_steps": 1 if num_text_inference_steps is None else num_text_inference_steps,
            "num_images_per_prompt": num_images_per_prompt,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if not set(callback_on_step_end_tensor_inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {self._callback_tensor_inputs}, got"
                f" {callback_on_step_end_tensor_inputs}."
            )

    def tokenize(self, prompts: list[str] | None, batch_size: int) -> PromptTokens:
        """
        The tokens of the prompts: words, EOS, and PAD up to the context's length; all unknown without prompts.

        Args:
            prompts (`list[str]`, *optional*):
                One for each item.
            batch_size (`int`):
                Number of items.

        Returns:
            `PromptTokens`: tensors of shape `(B, S)` on the execution device.

        Raises:
            `ValueError`: A prompt does not fit into the context, or holds `[PAD]` or `[EOS]`.
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
                    f"`prompt` {prompt!r} holds {tokenizer.eos_token} or {tokenizer.pad_token}: leave them"
                    " out, the end of the text is added."
                )
            is_open = ids[-1:] == [mask_id]
            if not is_open:
                ids = [*ids, eos_id]
            if len(ids) > context_length:
                raise ValueError(
                    f"`prompt` {prompt!r} has {len(ids)} tokens{'' if is_open else ', the end of the text included'},"
                    f" but this model's context holds {context_length}: shorten it."
                )
            input_ids[row, : len(ids)] = torch.tensor(ids)
            is_word[row, : len(ids)] = input_ids[row, : len(ids)] == mask_id
            if is_open:
                is_word[row, len(ids) - 1] = False  # it stands for everything that follows
            else:
                input_ids[row, len(ids) :] = pad_id
        is_known = input_ids != mask_id
        return PromptTokens(*(x.to(self._execution_device) for x in (input_ids, is_known, is_word)))

    def prepare_text_codes(self, tokens: PromptTokens) -> torch.LongTensor:
        """Text codes `(B, S/r, G)` of the prompts; a chunk that holds an unknown token is MASK."""
        text_codes = self.vqvae.encode(text=tokens.input_ids).text_codes
        is_unknown = self._chunks(~tokens.is_known).any(dim=-1)  # (B, S/r)
        return text_codes.masked_fill(is_unknown[..., None], self.transformer.text_mask_id)

    def preprocess(
        self, pictures: list[Any] | None, masks: list[Any] | None, height: int | None, width: int | None
    ) -> tuple[torch.Tensor | None, torch.BoolTensor | None]:
        """
        Pictures and masks to tensors of one size.

        Masked pixels are blanked before anything else: pictures that differ under the mask alone are equal from here
        on.

        Args:
            pictures (`list`, *optional*):
                One PIL picture, array or tensor for each item.
            masks (`list`, *optional*):
                The same for masks.
            height (`int`, *optional*):
                Height to resize to; by default that of the pictures, which must then agree.
            width (`int`, *optional*):
                Width, likewise.

        Returns:
            `tuple`: pixels `(B, 3, H, W)` in [-1, 1] and masked pixels `(B, 1, H, W)`, True where to generate. `None`
            for what is not given.

        Raises:
            `ValueError`: Sizes or numbers of channels do not fit.
        """
        if pictures is None:
            return None, None
        pixels = [self._picture_to_tensor(picture) for picture in pictures]  # of (1, 3, H, W)
        sizes = sorted({tuple(x.shape[2:]) for x in pixels})
        if len(sizes) > 1 and (height is None or width is None):
            raise ValueError(
                f"The pictures of `image` have the sizes (height, width) {sizes}: pass `height` and `width` to resize"
                " them."
            )
        size = (sizes[0][0] if height is None else height, sizes[0][1] if width is None else width)
        self._check_size(*size)
        if masks is None:
            return torch.cat([_resize(x, size) for x in pixels]), None

        is_masked = [self._mask_to_tensor(mask) for mask in masks]  # of (1, 1, H, W)
        for x, mask in zip(pixels, is_masked, strict=True):
            if mask.shape != x[:, :1].shape:
                raise ValueError(
                    "`mask_image` must have one channel and the size of `image`, (height, width) ="
                    f" {tuple(x.shape[2:])}, got (channels, height, width) = {tuple(mask.shape[1:])}."
                )
        pixels = [_resize(x.masked_fill(mask, 0), size) for x, mask in zip(pixels, is_masked, strict=True)]
        # A resized pixel is masked if any of the pixels in it was. At its own size a mask stays as it is.
        is_masked = [F.adaptive_max_pool2d(mask.float(), size) > 0 for mask in is_masked]
        return torch.cat(pixels).masked_fill(torch.cat(is_masked), 0), torch.cat(is_masked)

    def prepare_image_codes(
        self,
        pixels: torch.Tensor | None,
        masked_pixels: torch.BoolTensor | None,
        batch_size: int,
        height: int | None,
        width: int | None,
    ) -> torch.LongTensor:
        """Image codes `(B, h, w)` of the pictures; a code of which the mask touches a pixel is MASK."""
        factor = self.vqvae.image_downsample_factor
        if pixels is None:
            trained = self.transformer.config.sample_size
            rows, columns = (trained, trained) if isinstance(trained, int) else trained
            size = (rows * factor if height is None else height, columns * factor if width is None else width)
            self._check_size(*size)
            shape = (batch_size, size[0] // factor, size[1] // factor)
            return torch.full(shape, self.transformer.image_mask_id, device=self._execution_device)
        image_codes = self.vqvae.encode(image=pixels.to(self.vqvae.dtype)).image_codes
        if masked_pixels is None:
            return image_codes
        is_masked = F.max_pool2d(masked_pixels.float(), factor).squeeze(1).bool()  # (B, h, w)
        return image_codes.masked_fill(is_masked, self.transformer.image_mask_id)

    # What is predicted

    def predict(
        self,
        image_codes: torch.LongTensor,
        text_codes: torch.LongTensor,
        guides_image: bool = False,
        guides_text: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Logits of the clean codes, each modality guided by the other where asked.

        A guided modality is predicted once more with the other one wholly unknown, its given parts included; all rows
        go through the transformer in one batch, three for each sample if both are guided.

        Args:
            image_codes (`torch.LongTensor` of shape `(B, h, w)`):
                Image codes and MASK.
            text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
                Text codes and MASK.
            guides_image (`bool`, *optional*, defaults to `False`):
                Whether the image is guided by the text.
            guides_text (`bool`, *optional*, defaults to `False`):
                Whether the text is guided by the image.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: raw logits `(B, h, w, V_x)` and `(B, S/r, G, V_y + 1)`.
        """
        image_mask_id, text_mask_id = self.transformer.image_mask_id, self.transformer.text_mask_id
        image_rows, text_rows = [image_codes], [text_codes]
        if guides_image:
            image_rows.append(image_codes)
            text_rows.append(torch.full_like(text_codes, text_mask_id))
        if guides_text:
            image_rows.append(torch.full_like(image_codes, image_mask_id))
            text_rows.append(text_codes)
        num_rows = len(image_rows)
        images, texts = torch.cat(image_rows), torch.cat(text_rows)
        with self.transformer.cache_context("guidance"):
            image_logits, text_logits = self.transformer(
                image_codes=images,
                text_codes=texts,
                image_timestep=_mask_rate(images, image_mask_id),
                text_timestep=_mask_rate(texts, text_mask_id),
                return_dict=False,
            )
        image_logits, text_logits = image_logits.chunk(num_rows), text_logits.chunk(num_rows)
        image_output, text_output = image_logits[0], text_logits[0]
        if guides_image:
            image_output = image_logits[1] + self.guidance_scale * (image_output - image_logits[1])
        if guides_text:
            text_output = text_logits[-1] + self.text_guidance_scale * (text_output - text_logits[-1])
        return image_output, text_output

    def _forbidden_tokens(self, tokens: PromptTokens) -> torch.BoolTensor:
        """Tokens `(B, S, vocabulary)` that may not be generated: [MASK], and special ones in place of a word."""
        is_special, is_mask = torch.zeros(2, self.vqvae.config.vocab_size, dtype=torch.bool)
        is_special[self.tokenizer.all_special_ids] = True
        is_mask[self.tokenizer.mask_token_id] = True
        device = tokens.is_word.device
        return is_mask.to(device) | (tokens.is_word[..., None] & is_special.to(device))

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
        is_padding = (text_codes == self.transformer.text_pad_id).any(dim=-1).cumsum(dim=1) > 0  # (B, S/r)
        return text_codes.masked_fill(is_padding[..., None], self.transformer.text_pad_id)

    # What is returned

    def decode_images(
        self, image_codes: torch.LongTensor, output_type: str
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Pictures of image codes `(B, h, w)`; see `output_type` of `__call__`."""
        if output_type == "latent":
            return image_codes
        return self.image_processor.postprocess(self.vqvae.decode(image_codes=image_codes).image, output_type)

    def decode_texts(
        self, text_codes: torch.LongTensor, tokens: PromptTokens, forbidden_tokens: torch.BoolTensor
    ) -> list[str]:
        """Captions of text codes `(B, S/r, G)`, up to EOS; given tokens are read as they were given."""
        logits = self.vqvae.decode(text_codes=text_codes).text_logits  # (B, S, vocabulary)
        token_ids = logits.masked_fill(forbidden_tokens, -torch.inf).argmax(dim=-1)
        token_ids = torch.where(tokens.is_known, tokens.input_ids, token_ids)
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
        """One picture to (1, 3, H, W) in [-1, 1]."""
        if not isinstance(picture, PIL.Image.Image) and (picture.ndim != 3 or not _is_float(picture)):
            raise ValueError(
                "An `image` that is not PIL must hold floats in [0, 1], as an array (H, W, 3) or a tensor (3, H, W),"
                f" got {picture.dtype} and shape {tuple(picture.shape)}. `PIL.Image.fromarray` reads arrays of bytes."
            )
        pixels = self.image_processor.preprocess(picture).to(self._execution_device)
        if pixels.shape[1] != self.vqvae.config.in_channels or pixels.abs().max() > 1:
            raise ValueError(
                f"`image` must have {self.vqvae.config.in_channels} channels, last in an array and first in a tensor,"
                f" and values in [0, 1], got {pixels.shape[1]} channels and values up to {(pixels.max() + 1) / 2:g}."
            )
        return pixels

    def _mask_to_tensor(self, mask: PIL.Image.Image | np.ndarray | torch.Tensor) -> torch.BoolTensor:
        """One mask to (1, 1, H, W), True where it is white."""
        if not isinstance(mask, PIL.Image.Image) and not _is_float(mask) and mask.dtype not in (torch.bool, np.bool_):
            raise ValueError(f"A `mask_image` that is not PIL must hold floats in [0, 1] or bools, got {mask.dtype}.")
        return self.mask_processor.preprocess(mask).to(self._execution_device) >= 0.5

    def _check_size(self, height: int, width: int) -> None:
        multiple = self.vqvae.image_downsample_factor * self.transformer.config.patch_size
        if height % multiple or width % multiple or min(height, width) < 1:
            nearest = tuple(max(1, round(x / multiple)) * multiple for x in (height, width))
            raise ValueError(
                f"Height and width must be multiples of {multiple} (the VQ-VAE's downsampling times the transformer's"
                f" patch size), got {height} x {width} pixels. Pass `height={nearest[0]}, width={nearest[1]}`; a given"
                " `image` is resized to it."
            )


def _is_list(value: Any) -> bool:
    """Whether `value` holds items: a list, or a batched array or tensor."""
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 4)


def _is_float(array: np.ndarray | torch.Tensor) -> bool:
    return array.is_floating_point() if isinstance(array, torch.Tensor) else array.dtype.kind == "f"


def _align(
    prompt: str | list[str] | None, image: PipelineImageInput | None, mask_image: PipelineImageInput | None
) -> tuple[list[str] | None, list[Any] | None, list[Any] | None, int]:
    """Lists of one length of what is given, single items repeated, and that length."""
    values = {"prompt": prompt, "image": image, "mask_image": mask_image}
    lengths = {name: len(value) for name, value in values.items() if _is_list(value)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            f"Lists must have one length, at least 1, got {lengths}. An item that goes with all the others is passed"
            " without a list."
        )
    batch_size = next(iter(lengths.values()), 1)
    repeated = (list(value) if _is_list(value) else [value] * batch_size for value in values.values())
    return *(None if items[0] is None else items for items in repeated), batch_size


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


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] to another size, antialiased."""
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)


def _mask_rate(codes: torch.LongTensor, mask_token_id: int) -> torch.Tensor:
    """The time that the transformer is told: each row's fraction of MASK (B,), given codes included."""
    return (codes == mask_token_id).flatten(1).float().mean(dim=1)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Held-out pairs, what a pipeline is given of them in each direction, and what it makes of that from one seed."""

import inspect
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline, SchedulerMixin
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_vqdit.data import PairDataset, PairReader, choose_caption, collate_pairs
from hf_vqdit.data.shapes import ATTRIBUTE_WORDS, Scene, scene_from_facts

# The words of a shapes caption that tell a fact: "left" of "to the left of", but not "to the" and "of".
FACT_WORDS = {word for phrases in ATTRIBUTE_WORDS.values() for phrase in phrases for word in phrase.split()}
FACT_WORDS -= {"at", "in", "of", "the", "to"}


@dataclass(frozen=True)
class HeldOutPairs:
    """Pairs that training never saw, whole in memory.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1].
        input_ids (`torch.LongTensor` of shape `(N, S)`): One caption of each as token ids.
        captions (`list[str]`): The same captions.
        references (`list[list[str]]`): All captions of each picture.
        scenes (`list[Scene]`, *optional*): The facts, for shapes.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    captions: list[str]
    references: list[list[str]]
    scenes: list[Scene] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, num_pairs: int) -> "HeldOutPairs":
        """The first pairs, all if there are fewer."""
        return replace(self, **{name: value[:num_pairs] for name, value in vars(self).items() if value is not None})

    def batches(self, batch_size: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
        """The pairs in batches as of [`~hf_vqdit.data.collate_pairs`]."""
        for pixel_values, input_ids in zip(
            self.pixel_values.split(batch_size), self.input_ids.split(batch_size), strict=True
        ):
            is_there = torch.ones(len(input_ids), dtype=torch.bool)
            batch = {"pixel_values": pixel_values, "input_ids": input_ids, "has_image": is_there, "has_text": is_there}
            yield {name: value.to(device) for name, value in batch.items()}


def read_held_out(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    resolution: int,
    center_crop: bool = True,
    seed: int = 0,
    max_pairs: int | None = None,
) -> HeldOutPairs:
    """Reads a validation split as training does, in random order, and keeps the pairs that are whole.

    Args:
        pairs (`datasets.Dataset`): The split `"validation"` of [`~hf_vqdit.data.load_pairs`].
        tokenizer (`PreTrainedTokenizerBase`): The caption tokenizer.
        resolution (`int`): Side of the pictures in pixels.
        center_crop (`bool`, defaults to `True`): Whether pictures are cropped in the middle.
        seed (`int`, defaults to 0): Seed of the order, and of which caption is taken where a picture has several.
        max_pairs (`int`, *optional*): Read no more than this many.

    Returns:
        [`HeldOutPairs`]: Without pairs that lack a side, cannot be read or whose caption exceeds the context: that
            would be refused as a prompt.

    Raises:
        ValueError: If no pair is left.
    """
    dataset = PairDataset(pairs, PairReader(tokenizer, resolution, center_crop, seed=seed))
    # Data sets come in alphabetical and other orders: the first pairs shall stand for all of them.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_pairs].tolist()
    batch = collate_pairs(dataset.__getitems__([(0, index, index) for index in order]))
    is_whole = batch["has_image"] & batch["has_text"] & ~batch["truncated"] & ~batch["is_stand_in"]
    if not is_whole.any():
        raise ValueError(
            f"None of the {len(order)} pairs held out has a picture that can be read and a caption of less than "
            f"{tokenizer.model_max_length} tokens. Check the data set and `resolution`."
        )
    rows = batch["index"][is_whole].tolist()
    references = pairs.select(rows)["caption"]
    captions = [own[choose_caption(seed, 0, row, len(own))] for row, own in zip(rows, references, strict=True)]
    scenes = None
    if "scene" in pairs.column_names:
        scenes = [scene_from_facts(facts) for facts in pairs.select(rows)["scene"]]
    return HeldOutPairs(batch["pixel_values"][is_whole], batch["input_ids"][is_whole], captions, [*references], scenes)


@dataclass(frozen=True)
class Tasks:
    """What the pipeline is given in each direction.

    Args:
        pairs ([`HeldOutPairs`]): Prompts to draw and pictures to describe.
        half_masks (`torch.FloatTensor` of shape `(N, 1, H, W)`): 1 in the half of each picture that is hidden.
        fill_prompts (`list[str]`): The captions with a word hidden.
        hidden_words (`list[int]`): Its index in `caption.split()`.
    """

    pairs: HeldOutPairs
    half_masks: torch.Tensor
    fill_prompts: list[str]
    hidden_words: list[int]


def make_tasks(pairs: HeldOutPairs, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Tasks:
    """Hides a half of each picture, and a word of each caption; of a shapes caption one that tells a fact.

    Args:
        pairs ([`HeldOutPairs`]): Held-out pairs.
        tokenizer (`PreTrainedTokenizerBase`): The caption tokenizer.
        seed (`int`, defaults to 0): Seed of the choice of words.

    Returns:
        [`Tasks`]
    """
    generator = torch.Generator().manual_seed(seed)
    words = None if pairs.scenes is None else FACT_WORDS
    hidden = [mask_word(caption, tokenizer, generator, words) for caption in pairs.captions]
    prompts, indices = map(list, zip(*hidden, strict=True))
    return Tasks(pairs, hide_half(pairs.pixel_values), prompts, indices)


def hide_half(pixel_values: torch.Tensor) -> torch.Tensor:
    """Masks that hide the left, the right, the upper, the lower half of pictures, in turn.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): The pictures.

    Returns:
        `torch.FloatTensor` of shape `(B, 1, H, W)`: 1 where hidden, else 0.
    """
    masks = torch.zeros_like(pixel_values[:, :1])
    height, width = masks.shape[2:]
    halves = (np.s_[:, : width // 2], np.s_[:, width // 2 :], np.s_[: height // 2], np.s_[height // 2 :])
    for row, mask in enumerate(masks[:, 0]):
        mask[halves[row % len(halves)]] = 1
    return masks


def mask_word(
    caption: str, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator, words: set[str] | None = None
) -> tuple[str, int]:
    """Hides one word of a caption: a prompt to fill in.

    Args:
        caption (`str`): A caption of at least one word.
        tokenizer (`PreTrainedTokenizerBase`): A fast one. Each token of the word becomes one `[MASK]`.
        generator (`torch.Generator`): Chooses the word.
        words (`set[str]`, *optional*): Hide one of these, for instance `FACT_WORDS`; by default any.

    Returns:
        `tuple[str, int]`: The prompt, and the index of the hidden word in `caption.split()`.

    Raises:
        ValueError: If the caption has no such word.
    """
    spans = [match.span() for match in re.finditer(r"\S+", caption)]
    candidates = [i for i, (start, end) in enumerate(spans) if words is None or caption[start:end] in words]
    if not candidates:
        raise ValueError(f"The caption {caption!r} has no word to hide{f' of {sorted(words)}' if words else ''}.")
    index = candidates[int(torch.randint(len(candidates), (), generator=generator))]
    start, end = spans[index]
    left = spans[index - 1][1] if index else 0  # a blank before [MASK] goes with it, so it is hidden too
    offsets = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    num_tokens = sum(token_start < end and token_end > left for token_start, token_end in offsets)
    return caption[:start] + tokenizer.mask_token * num_tokens + caption[end:], index


class Cost(NamedTuple):
    """What samples cost."""

    forward_passes: float  # calls of the transformer for one call of the pipeline, on average
    forward_rows: float  # rows through the transformer for each sample
    seconds: float  # for each sample, from what is given to pixels and words


class Samples(NamedTuple):
    """What a pipeline generated; `None` for a modality that was given."""

    pixel_values: torch.Tensor | None  # (B, 3, H, W) in [-1, 1], on the CPU
    texts: list[str] | None
    cost: Cost


def sample(
    pipeline: DiffusionPipeline,
    num_samples: int,
    seed: int,
    prompts: list[str] | None = None,
    pixel_values: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    batch_size: int = 125,
    description: str = "Sampling",
    **settings: Any,
) -> Samples:
    """Calls a pipeline on many items, in batches.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        num_samples (`int`): How many samples; as many as there are items in what is given.
        seed (`int`): Seed of the generator that all batches draw from, one after the other.
        prompts (`list[str]`, *optional*): Prompts.
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*): Pictures in [-1, 1].
        masks (`torch.FloatTensor` of shape `(B, 1, H, W)`, *optional*): 1 where a picture is generated anew.
        batch_size (`int`, defaults to 125): Samples a call.
        description (`str`, defaults to `"Sampling"`): What the progress bar says.
        **settings: Further arguments of the pipeline, such as `num_inference_steps`.

    Returns:
        [`Samples`]
    """
    images = None if pixel_values is None else (pixel_values + 1) / 2
    given = {"prompt": prompts, "image": images, "mask_image": masks}
    given = {name: value for name, value in given.items() if value is not None}
    generator = torch.Generator().manual_seed(seed)
    pipeline.set_progress_bar_config(disable=True)
    outputs, num_passes, num_rows = [], [], []
    start_time = time.perf_counter()
    for start in tqdm(range(0, num_samples, batch_size), desc=description, leave=False):
        count = min(batch_size, num_samples - start)
        batch = {name: value[start : start + count] for name, value in given.items()}
        per_item = 1 if batch else count
        outputs.append(
            pipeline(**batch, num_images_per_prompt=per_item, generator=generator, output_type="pt", **settings)
        )
        num_passes.append(pipeline.num_forward_passes)
        num_rows.append(pipeline.num_forward_rows)
    drawn = [output.images.float().cpu() for output in outputs if output.images is not None]
    texts = [text for output in outputs for text in output.texts or ()]
    seconds = time.perf_counter() - start_time
    cost = Cost(sum(num_passes) / len(num_passes), sum(num_rows) / num_samples, seconds / num_samples)
    return Samples(2 * torch.cat(drawn) - 1 if drawn else None, texts or None, cost)


@contextmanager
def changed_schedulers(
    pipeline: DiffusionPipeline, scheduler: Mapping[str, Any], text_scheduler: Mapping[str, Any]
) -> Iterator[None]:
    """
    Gives a pipeline schedulers with other settings, and its own ones back at the end.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        scheduler (`Mapping[str, Any]`): What changes in the config of `pipeline.scheduler`.
        text_scheduler (`Mapping[str, Any]`): Likewise of `pipeline.text_scheduler`.

    Raises:
        ValueError: If a scheduler does not know a setting or refuses it.
    """
    changes = {"scheduler": scheduler, "text_scheduler": text_scheduler}
    own = {name: getattr(pipeline, name) for name in changes}
    changed = {name: _change(own[name], changes[name]) for name in changes}
    try:
        for name, other in changed.items():
            setattr(pipeline, name, other)
        yield
    finally:
        for name, before in own.items():
            setattr(pipeline, name, before)


def _change(scheduler: SchedulerMixin, changes: Mapping[str, Any]) -> SchedulerMixin:
    # `from_config` would drop what the class does not know, and the setting would be the base under another name.
    unknown = [name for name in changes if name not in inspect.signature(type(scheduler).__init__).parameters]
    if unknown:
        raise ValueError(f"{type(scheduler).__name__} has no setting {' and no '.join(f'`{x}`' for x in unknown)}.")
    return type(scheduler).from_config(scheduler.config, **changes)


class Answers(NamedTuple):
    """What a pipeline made of the tasks, from one seed."""

    drawn: torch.Tensor  # text to image, (N, 3, H, W) in [-1, 1]
    written: list[str]  # image to text
    inpainted: torch.Tensor  # the prompt and half of the picture given, (N, 3, H, W) in [-1, 1]
    filled: list[str]  # the picture and all but one word given
    joint: Samples  # nothing given
    costs: dict[str, Cost]  # of "text_to_image", "image_to_text" and "joint"


def answer_tasks(
    pipeline: DiffusionPipeline,
    tasks: Tasks,
    num_joint: int,
    seed: int,
    joint_text_temperature: float | None = None,
    **settings: Any,
) -> Answers:
    """Runs every direction once.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        tasks ([`Tasks`]): What it is given.
        num_joint (`int`): Pairs to make up.
        seed (`int`): Seed of the samples.
        joint_text_temperature (`float`, *optional*): Temperature of captions that are made up; by default that of the
            text scheduler, at which captions of pictures are written.
        **settings: Further arguments of [`sample`] and of the pipeline.

    Returns:
        [`Answers`]
    """
    prompts, pictures = tasks.pairs.captions, tasks.pairs.pixel_values

    def run(description: str, num_samples: int, **given: Any) -> Samples:
        return sample(pipeline, num_samples, seed, **given, description=f"{description}, seed {seed}", **settings)

    count = len(tasks.pairs)
    drawn = run("Text to image", count, prompts=prompts)
    written = run("Image to text", count, pixel_values=pictures)
    with changed_schedulers(
        pipeline, {}, {} if joint_text_temperature is None else {"temperature": joint_text_temperature}
    ):
        joint = run("Joint", num_joint)
    return Answers(
        drawn=drawn.pixel_values,
        written=written.texts,
        inpainted=run("Half hidden", count, prompts=prompts, pixel_values=pictures, masks=tasks.half_masks)[0],
        filled=run("Filling words", count, prompts=tasks.fill_prompts, pixel_values=pictures).texts,
        joint=joint,
        costs={"text_to_image": drawn.cost, "image_to_text": written.cost, "joint": joint.cost},
    )

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a pipeline made of its tasks, for any data: figures of captions and of pairs, and the page of samples."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .clip import ClipScorer
from .grids import GridItem, draw_section, show_hidden, stack_sections, to_pictures
from .metrics import caption_bleu, caption_chrf, caption_exact, share_equal, share_known
from .report import summarize_seeds
from .sampling import Answers, Tasks
from .training_pictures import TrainingPictures, nearest_on_pixels

NUM_SHOWN = 8  # samples a section of the page: the first ones, not selected


def score_captions(
    tasks: Tasks, answers: Sequence[Answers], training_captions: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """Figures of the captions that were written, filled in and made up.

    Args:
        tasks ([`Tasks`]): What the pipeline was given.
        answers (`Sequence[Answers]`): What it made of that, from each seed.
        training_captions (`Sequence[Sequence[str]]`, *optional*): The captions of each training picture: with them it
            is counted which captions are one of these.

    Returns:
        `dict`: As of [`summarize_seeds`].
    """
    references, captions = tasks.pairs.references, tasks.pairs.captions
    by_seed = [
        {
            "image_to_text_exact": caption_exact(own.written, references),
            "image_to_text_chrf": caption_chrf(own.written, references),
            "image_to_text_bleu": caption_bleu(own.written, references),
            "fill_words_exact": share_equal(own.filled, captions),
        }
        for own in answers
    ]
    if training_captions is None:
        return summarize_seeds(by_seed)
    known = {caption for own in training_captions for caption in own}
    for figures, own in zip(by_seed, answers, strict=True):
        figures["image_to_text_in_training"] = share_known(own.written, known)
        figures["joint_text_in_training"] = share_known(own.joint.texts, known)
    return summarize_seeds(by_seed) | {"held_out_text_in_training": share_known(captions, known)}


def measure_costs(answers: Sequence[Answers]) -> dict[str, Any]:
    """What the answers took, by direction: `{direction}_passes` of the network for a call of the pipeline, and
    `{direction}_seconds` for a sample, drawn in batches; as of [`summarize_seeds`]."""
    return summarize_seeds(
        [
            {f"{direction}_passes": cost.forward_passes for direction, cost in own.costs.items()}
            | {f"{direction}_seconds": cost.seconds for direction, cost in own.costs.items()}
            for own in answers
        ]
    )


def score_pairs(clip: ClipScorer, tasks: Tasks, answers: Sequence[Answers], batch_size: int = 125) -> dict[str, Any]:
    """The CLIPScore of pairs of which the pipeline made one side or both, and of real pairs.

    Args:
        clip ([`ClipScorer`]): The CLIP.
        tasks ([`Tasks`]): What the pipeline was given.
        answers (`Sequence[Answers]`): What it made of that, from each seed.
        batch_size (`int`, defaults to 125): Pairs at a time.

    Returns:
        `dict`: As of [`summarize_seeds`]; beside it `real_clip_score`, of the held-out pairs, and
            `exchanged_clip_score`, of their pictures each with the next one's caption: what the scores are to be
            compared with.
    """
    pictures, captions = tasks.pairs.pixel_values, tasks.pairs.captions
    by_seed = [
        {
            "text_to_image_clip_score": clip.score(own.drawn, captions, batch_size),
            "image_to_text_clip_score": clip.score(pictures, own.written, batch_size),
            "joint_clip_score": clip.score(own.joint.pixel_values, own.joint.texts, batch_size),
        }
        for own in answers
    ]
    return summarize_seeds(by_seed) | {
        "real_clip_score": clip.score(pictures, captions, batch_size),
        "exchanged_clip_score": clip.score(pictures, captions[1:] + captions[:1], batch_size),
    }


def find_filled_word(filled: str, caption: str, hidden_word: int) -> int:
    """Where in a caption the hidden word was filled in: where it was, or at the end of the word before, as a comma is.

    Args:
        filled (`str`): The caption with the word filled in.
        caption (`str`): The caption as it was.
        hidden_word (`int`): Index of the hidden word in `caption.split()`.

    Returns:
        `int`: Index in `filled.split()`.
    """
    is_apart = filled.split()[:hidden_word] == caption.split()[:hidden_word]
    return hidden_word if is_apart else max(hidden_word - 1, 0)


def draw_samples(
    tasks: Tasks, restored: torch.Tensor, answers: Answers, training: TrainingPictures | None = None
) -> Image.Image:
    """Draws the first samples of every direction, none of them selected.

    Args:
        tasks ([`Tasks`]): What the pipeline was given.
        restored (`torch.FloatTensor` of shape `(N, 3, H, W)`): Held-out pictures as they come back from their codes.
        answers ([`Answers`]): What the pipeline made of the tasks.
        training ([`TrainingPictures`], *optional*): With them each picture that was drawn for a caption is shown
            beside the nearest of them on pixels.

    Returns:
        `PIL.Image.Image`: A page with a section for each direction.
    """
    real, drawn, back, inpainted, joint = (
        to_pictures(pixel_values[:NUM_SHOWN])
        for pixel_values in (
            tasks.pairs.pixel_values,
            answers.drawn,
            restored[: len(tasks.pairs)],
            answers.inpainted,
            answers.joint.pixel_values,
        )
    )
    masks = [Image.fromarray(mask[0].mul(255).byte().numpy()) for mask in tasks.half_masks]
    hidden = [show_hidden(picture, mask) for picture, mask in zip(real, masks, strict=False)]
    captions = tasks.pairs.captions
    words = [
        (find_filled_word(filled, caption, index),)
        for filled, caption, index in zip(answers.filled, captions, tasks.hidden_words, strict=True)
    ]

    def draw(
        title: str, description: str, pictures: tuple[list, ...], *columns: Sequence, rows: int = 1
    ) -> Image.Image:
        items = [GridItem(*item) for item in zip(zip(*pictures, strict=True), *columns, strict=False)]
        return draw_section(title, items[: rows * NUM_SHOWN // len(pictures)], description)

    if training is None:
        text_to_image = draw("Text to image", "pictures drawn for held-out captions", (drawn,), captions)
    else:
        _, rows = nearest_on_pixels(answers.drawn[:NUM_SHOWN], training.thumbnails)
        originals = to_pictures(training.read(rows.tolist()))
        described = "pictures drawn for held-out captions, each with the training picture nearest to it"
        text_to_image = draw("Text to image", described, (drawn, originals), captions, rows=2)
    return stack_sections(
        [
            text_to_image,
            draw("Image to text", "captions written for held-out pictures", (real,), answers.written),
            draw("Joint", "pictures and captions made up together", (joint,), answers.joint.texts),
            draw("Reconstruction", "held-out pictures and what their codes give back", (real, back)),
            draw("Inpainting", "the caption and half of the picture given", (hidden, inpainted), captions),
            draw("Words", "the colored word was hidden and is filled in", (real,), answers.filled, words),
        ]
    )

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What names of emoji tell in English and Chinese: figures that exact captions and chrF do not show.

A held-out emoji is a composition if its name tells skin tones, hair or colors and training has all words of the name,
in names of others: "man farmer dark skin tone" where farmers of other tones and other people of this tone were seen.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from hf_vqdit.data.emoji import LANGUAGE_SEPARATOR

from .features import shrink, to_bytes
from .metrics import caption_chrf, share_equal
from .report import summarize_seeds
from .sampling import Answers, HeldOutPairs, Tasks, sample
from .training_pictures import TrainingPictures, nearest_on_pixels

# Longer phrases first: "medium-light skin tone" ends in "light skin tone", and hair is not a color. Nor are all canes
# white in both languages, and office workers in one of them.
_ATTRIBUTES = {
    "en": re.compile(
        r"(?:medium-light|medium-dark|medium|light|dark) skin tone|(?:blond|curly|red|white) hair|\bbald\b|\bbeard\b"
        r"|\b(?:light blue|black|blue|brown|gr[ae]y|green|orange|pink|purple|red|white(?! cane)|yellow)\b"
    ),
    "zh": re.compile(
        "中等浅肤色|中等深肤色|中等肤色|较浅肤色|较深肤色|金色头发|金发|卷发|红发|白发|秃顶|胡子"
        "|粉红|浅蓝|黑|蓝|棕|褐|灰|绿|橙|紫|红|白(?!领)|黄"
    ),
}
_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")


def split_languages(caption: str) -> dict[str, str]:
    """The name in each language that a caption holds: `{"en": ...}`, `{"zh": ...}`, or both."""
    return {"zh" if _IDEOGRAPH.search(name) else "en": name for name in caption.split(LANGUAGE_SEPARATOR)}


def read_attributes(name: str, language: str) -> list[str]:
    """Skin tones, hair and colors that a name tells, in its words and its order.

    What is told twice in a row counts once: a tone that two people have stands but once in their name.
    """
    return [attribute for attribute, _ in groupby(_ATTRIBUTES[language].findall(name))]


def attributes_agree(caption: str, references: Sequence[str]) -> bool:
    """Whether a caption tells the skin tones, hair and colors of a picture, those alone, in each language that it has.

    Args:
        caption (`str`): Any text.
        references (`Sequence[str]`): All captions of the picture.
    """
    truth = _names(references)
    return all(
        language in truth and read_attributes(name, language) == read_attributes(truth[language], language)
        for language, name in split_languages(caption).items()
    )


def find_compositions(references: Sequence[Sequence[str]], training_captions: Sequence[Sequence[str]]) -> list[int]:
    """Which pictures are compositions of what training saw.

    Args:
        references (`Sequence[Sequence[str]]`): All captions of each picture.
        training_captions (`Sequence[Sequence[str]]`): All captions of each training picture.

    Returns:
        `list[int]`: Rows of `references`.
    """
    seen = {word for captions in training_captions for word in _names(captions)["en"].split()}
    names = [_names(captions)["en"] for captions in references]
    return [row for row, name in enumerate(names) if read_attributes(name, "en") and set(name.split()) <= seen]


def score_names(
    pipeline: DiffusionPipeline,
    tasks: Tasks,
    answers: Sequence[Answers],
    training: TrainingPictures,
    restored: torch.Tensor,
    **settings: Any,
) -> dict[str, Any]:
    """Figures of a pipeline for emoji and their names in English and Chinese.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        tasks ([`Tasks`]): What it was given.
        answers (`Sequence[Answers]`): What it made of that, from each seed.
        training ([`TrainingPictures`]): All training pictures.
        restored (`torch.FloatTensor` of shape `(N, 3, H, W)`): The tasks' pictures as they come back from their codes.
        **settings: Arguments of [`~.sampling.sample`] and of the pipeline, for the translations.

    Returns:
        `dict`: As of [`~.report.summarize_seeds`]. `num_compositions`; over these the share whose skin tones, hair and
            colors agree: `image_to_text_attributes` of captions, `nearest_attributes` of the names of the training
            picture nearest to each picture, for comparison, and `text_to_image_attributes` of the names of the real
            picture nearest to each drawn one, with `reconstruction_attributes` for what the tokenizer allows;
            `image_to_text_chrf_en` and `image_to_text_chrf_zh`, over the captions that have a part in that language;
            `translation_exact` and `translation_chrf`, of names that were asked for as `English name | [MASK]`.
    """
    pairs = tasks.pairs
    rows = find_compositions(pairs.references, training.captions)
    references = [pairs.references[row] for row in rows]
    prompts, targets = _ask_for_translations(pairs.references, pipeline.tokenizer)

    by_seed = []
    for seed, own in enumerate(answers):
        figures = {f"image_to_text_chrf_{key}": _chrf(own.written, pairs.references, key) for key in _ATTRIBUTES}
        figures["image_to_text_attributes"] = _share_agreeing([own.written[row] for row in rows], references)
        nearest_names = _name_nearest(own.drawn[rows], pairs, training)
        figures["text_to_image_attributes"] = _share_agreeing(nearest_names, references)
        asked = {"description": f"Translation, seed {seed}", "output_modalities": ("text",)}
        texts = sample(pipeline, len(prompts), seed, prompts, **asked, **settings).texts
        translations = [split_languages(text).get("zh", "") for text in texts]
        figures["translation_exact"] = share_equal(translations, targets)
        figures["translation_chrf"] = caption_chrf(translations, [[target] for target in targets])
        by_seed.append(figures)
    return summarize_seeds(by_seed) | {
        "num_compositions": len(rows),
        "nearest_attributes": _share_agreeing(_name_nearest(pairs.pixel_values[rows], None, training), references),
        "reconstruction_attributes": _share_agreeing(_name_nearest(restored[rows], pairs, training), references),
    }


def _ask_for_translations(
    references: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[str]]:
    """Prompts that leave the Chinese name open, and these names; without prompts that fill the context."""
    prompts, targets = [], []
    for names in map(_names, references):
        prompt = f"{names['en']}{LANGUAGE_SEPARATOR}{tokenizer.mask_token}"
        if "zh" in names and len(tokenizer(prompt).input_ids) <= tokenizer.model_max_length:
            prompts.append(prompt)
            targets.append(names["zh"])
    return prompts, targets


def _names(references: Sequence[str]) -> dict[str, str]:
    """The name in each language that all captions of a picture have together."""
    return {language: name for caption in references for language, name in split_languages(caption).items()}


def _chrf(captions: Sequence[str], references: Sequence[Sequence[str]], language: str) -> float:
    """chrF of the parts in one language, of the captions that have one; NaN if none has."""
    found = [
        (names[language], [_names(own)[language]])
        for names, own in zip(map(split_languages, captions), references, strict=True)
        if language in names and language in _names(own)
    ]
    return caption_chrf(*zip(*found, strict=True)) if found else float("nan")


def _share_agreeing(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of captions that agree with the picture's; NaN of none."""
    if not captions:
        return float("nan")
    agreeing = [attributes_agree(caption, own) for caption, own in zip(captions, references, strict=True)]
    return sum(agreeing) / len(agreeing)


def _name_nearest(pixel_values: torch.Tensor, pairs: HeldOutPairs | None, training: TrainingPictures) -> list[str]:
    """The English name of the real picture nearest to each picture: one of training, or a held-out one too.

    Nearest on pixels: features that were trained to overlook small changes of color know less of skin tones.
    """
    thumbnails, captions = training.thumbnails, list(training.captions)
    if pairs is not None:
        thumbnails = torch.cat([thumbnails, to_bytes(shrink(pairs.pixel_values))])
        captions += pairs.references
    _, rows = nearest_on_pixels(pixel_values, thumbnails)
    return [_names(captions[row])["en"] for row in rows.tolist()]

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What names of emoji tell: attributes in two languages, compositions, and the figures that rest on them."""

import pytest
import torch

from hf_vqdit import VQDiTPipeline
from hf_vqdit.data.emoji import LANGUAGE_SEPARATOR
from hf_vqdit.evaluation.emoji_names import (
    attributes_agree,
    find_compositions,
    read_attributes,
    score_names,
    split_languages,
)
from hf_vqdit.evaluation.features import to_bytes
from hf_vqdit.evaluation.sampling import Answers, Cost, HeldOutPairs, Samples, make_tasks
from hf_vqdit.evaluation.training_pictures import TrainingPictures

DARK_FARMER = ["man farmer dark skin tone", "农夫 较深肤色", "man farmer dark skin tone | 农夫 较深肤色"]
LIGHT_FARMER = ["man farmer light skin tone", "农夫 较浅肤色", "man farmer light skin tone | 农夫 较浅肤色"]
DARK_HAND = ["hand dark skin tone", "手 较深肤色", "hand dark skin tone | 手 较深肤色"]


@pytest.mark.parametrize(
    ("name", "language", "attributes"),
    [
        ("kiss medium-light skin tone light skin tone", "en", ["medium-light skin tone", "light skin tone"]),
        ("亲吻 女人女人中等肤色中等浅肤色", "zh", ["中等肤色", "中等浅肤色"]),
        ("man light skin tone red hair", "en", ["light skin tone", "red hair"]),
        ("男人 较浅肤色红发", "zh", ["较浅肤色", "红发"]),
        ("kiss dark skin tone dark skin tone", "en", ["dark skin tone"]),
        ("light blue heart", "en", ["light blue"]),
        ("粉红色的心", "zh", ["粉红"]),
        ("person with white cane", "en", []),
        ("男白领", "zh", []),
        ("evergreen tree", "en", []),
    ],
)
def test_attributes_are_read_in_the_order_of_the_name(name, language, attributes):
    assert read_attributes(name, language) == attributes


def test_a_caption_agrees_if_all_its_languages_tell_the_attributes_of_the_picture_and_no_others():
    assert attributes_agree("woman farmer dark skin tone", DARK_FARMER)  # the rest is not looked at
    assert attributes_agree("手 较深肤色", DARK_FARMER)
    assert attributes_agree("farmer dark skin tone | 较深肤色", DARK_FARMER)
    assert not attributes_agree("man farmer", DARK_FARMER)
    assert not attributes_agree("man farmer dark skin tone red hair", DARK_FARMER)
    assert not attributes_agree("man farmer dark skin tone | 农夫 较浅肤色", DARK_FARMER)
    assert not attributes_agree("农夫", ["man farmer"])  # there is no Chinese name to compare it with


def test_a_caption_falls_into_the_languages_that_it_has():
    assert split_languages("red heart | 红心") == {"en": "red heart", "zh": "红心"}
    assert split_languages("红心") == {"zh": "红心"} and split_languages("red heart") == {"en": "red heart"}


def test_compositions_have_attributes_and_only_words_that_training_has():
    training = [DARK_HAND, LIGHT_FARMER, ["red apple"]]
    held_out = [DARK_FARMER, ["man farmer"], ["red hand"], ["blue hand"]]
    assert find_compositions(held_out, training) == [0, 2]


@pytest.fixture
def pipeline(saved_pipeline):
    return VQDiTPipeline.from_pretrained(saved_pipeline)


def flat_pictures(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()


def test_names_are_scored_on_compositions_against_the_nearest_training_picture(pipeline):
    """Two held-out compositions; the training picture nearest to the first has its color, that of the second not."""
    references = [["red star", "红星"], ["blue circle", "蓝圆"]]
    captions = [own[0] for own in references]
    pictures = flat_pictures(-0.5, 0.5)
    input_ids = torch.zeros(2, 8, dtype=torch.long)
    tasks = make_tasks(HeldOutPairs(pictures, input_ids, captions, references), pipeline.tokenizer)
    thumbnails = to_bytes(flat_pictures(-0.55, 0.55, 1.0))
    training = TrainingPictures(None, [0, 1, 2], [["red circle"], ["red star"], ["blue star"]], thumbnails, None, None)
    joint = Samples(pictures, captions, Cost(1, 1, 1))

    def answers(written: list[str], drawn: torch.Tensor) -> Answers:
        return Answers(drawn, written, drawn, captions, joint, {})

    right = answers(["red star", "蓝圆"], pictures)
    exchanged = answers(["blue star", "circle"], pictures.flip(0))
    call = {"num_inference_steps": 2, "batch_size": 2}
    figures = score_names(pipeline, tasks, [right, exchanged], training, pictures, **call)
    assert figures["num_compositions"] == 2
    assert figures["nearest_attributes"] == 0.5 and figures["reconstruction_attributes"] == 1
    assert figures["spread"]["image_to_text_attributes"] == [0, 1]
    assert figures["spread"]["text_to_image_attributes"] == [0, 1]
    assert figures["spread"]["image_to_text_chrf_en"][1] == pytest.approx(100)
    assert figures["image_to_text_chrf_zh"] != figures["image_to_text_chrf_zh"]  # the second seed wrote no Chinese
    assert figures["translation_exact"] == 0  # by a pipeline that was never trained
    assert 0 <= figures["translation_chrf"] < 50


def test_a_translation_keeps_the_name_that_was_given(pipeline):
    prompt = f"red{LANGUAGE_SEPARATOR}{pipeline.tokenizer.mask_token}"
    text = pipeline(prompt, output_modalities=("text",), num_inference_steps=2).texts[0]
    assert text.startswith(f"red{LANGUAGE_SEPARATOR}".rstrip())

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Guidance over the steps, away from a negative prompt; and how many samples an item has."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from pipeline_inputs import PROMPT, watch_transformer
from seeded import generator, generators

PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def watch_scales(pipeline, monkeypatch):
    """The two scales of guidance of every prediction from now on."""
    scales, predict = [], pipeline.predict

    def watched(image_codes, text_codes, guidance_scale, text_guidance_scale, *rest):
        scales.append((guidance_scale, text_guidance_scale))
        return predict(image_codes, text_codes, guidance_scale, text_guidance_scale, *rest)

    monkeypatch.setattr(pipeline, "predict", watched)
    return scales


def codes_of(pipeline, **arguments):
    return pipeline(output_type="latent", **{"num_inference_steps": 5, "generator": generator(), **arguments})


# Over the steps


def test_a_linear_schedule_grows_from_no_guidance_to_the_scale(tiny_pipeline, monkeypatch):
    calls, scales = watch_transformer(tiny_pipeline), watch_scales(tiny_pipeline, monkeypatch)
    settings = {"guidance_schedule": "linear", "guidance_scale": 5.0, "text_guidance_scale": 3.0}
    codes_of(tiny_pipeline, **settings, num_text_inference_steps=3, joint_order="together")
    assert scales == [(1, 1), (2, 2), (3, 3), (4, 1), (5, 1)]  # each over its own steps, and off after them
    assert [len(call["image_codes"]) for call in calls] == [1, 3, 3, 2, 2]
    text_first = [(1, 1)] * 3 + [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]  # by what is not known there is no guidance
    image_first = [(1, 1)] * 5 + [(1, 1), (1, 2), (1, 3)]
    for order, expected in (("text_first", text_first), ("image_first", image_first)):
        scales.clear()
        codes_of(tiny_pipeline, **settings, num_text_inference_steps=3, joint_order=order)
        assert scales == expected


def test_a_linear_schedule_is_one_of_the_scheduler_wherever_the_run_begins(tiny_pipeline, monkeypatch):
    scales = watch_scales(tiny_pipeline, monkeypatch)
    codes_of(tiny_pipeline, prompt=PROMPT, image=PICTURE, strength=0.6, guidance_schedule="linear", guidance_scale=5.0)
    assert scales == [(3, 1), (4, 1), (5, 1)]
    codes_of(tiny_pipeline, prompt=PROMPT, guidance_schedule="linear", guidance_scale=5.0, num_inference_steps=1)
    assert scales[3:] == [(5, 1)]


@pytest.mark.parametrize(("interval", "guided"), (((0.4, 0.8), [1, 2, 3]), ((0.0, 0.3), [4]), ((1.0, 1.0), [0])))
def test_guidance_acts_inside_its_interval_and_costs_nothing_outside(tiny_pipeline, monkeypatch, interval, guided):
    calls, scales = watch_transformer(tiny_pipeline), watch_scales(tiny_pipeline, monkeypatch)
    settings = {"guidance_scale": 3.0, "text_guidance_scale": 2.0, "guidance_interval": interval}
    codes_of(tiny_pipeline, **settings, joint_order="together")
    # At the first step neither side knows anything that could guide the other.
    assert scales == [(3, 2) if step in guided and step > 0 else (1, 1) for step in range(5)]
    assert [len(call["image_codes"]) for call in calls] == [
        3 if step in guided[guided[0] == 0 :] else 1 for step in range(5)
    ]
    scales.clear()
    codes_of(tiny_pipeline, **settings)  # the times are those of each modality
    assert scales == [(1, 1)] * 5 + [(3, 1) if step in guided else (1, 1) for step in range(5)]


def test_an_interval_holds_the_times_at_its_ends(tiny_pipeline, monkeypatch):
    """Times are float32: 0.7 as a step is not quite 0.7 as it is written."""
    scales = watch_scales(tiny_pipeline, monkeypatch)
    for tenths in range(1, 11):
        scales.clear()
        interval = (tenths / 10, tenths / 10)
        settings = {"guidance_scale": 3.0, "guidance_interval": interval}
        codes_of(tiny_pipeline, prompt=PROMPT, num_inference_steps=10, **settings)
        assert [scale for scale, _ in scales] == [3 if step == 10 - tenths else 1 for step in range(10)]


@pytest.mark.parametrize(
    "settings",
    (
        {"guidance_scale": 1.0, "guidance_schedule": "linear"},
        {"guidance_scale": 4.0, "text_guidance_scale": 3.0, "guidance_interval": (0.0, 0.1)},
        {"guidance_scale": 0.5, "text_guidance_scale": 1.0, "guidance_interval": (0.2, 0.6)},
    ),
)
def test_guidance_that_never_acts_is_none_bit_for_bit(tiny_pipeline, settings):
    calls = watch_transformer(tiny_pipeline)
    off, also_off = codes_of(tiny_pipeline, guidance_scale=1.0), codes_of(tiny_pipeline, **settings)
    assert torch.equal(off.images, also_off.images) and torch.equal(off.texts, also_off.texts)
    assert all(len(call["image_codes"]) == 1 for call in calls)


def test_a_callback_may_turn_guidance_off_and_on(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)

    def change(pipeline, step, timestep, callback_kwargs):
        pipeline._guidance_scale = 0.0 if step in (1, 2) else 3.0
        return {}

    codes_of(tiny_pipeline, prompt=PROMPT, callback_on_step_end=change)
    assert [len(call["image_codes"]) for call in calls] == [2, 2, 1, 1, 2]


# Away from a negative prompt


def test_a_negative_prompt_stands_for_the_unknown_text_where_the_image_is_guided(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    codes_of(tiny_pipeline, negative_prompt="a blue star", text_guidance_scale=2.0, joint_order="together")
    negative = tiny_pipeline.prepare_text_codes(tiny_pipeline.tokenize(["a blue star"], 1))
    assert len(calls[0]["text_codes"]) == 2  # of the picture nothing is known yet that could guide the text
    for call in calls[1:]:
        both, guides_image, guides_text = call["text_codes"]
        assert torch.equal(guides_image, negative[0]) and torch.equal(guides_text, both)
        assert call["text_timestep"][1] == 0
        assert torch.equal(call["image_codes"][0], call["image_codes"][1])
        assert call["image_timestep"][2] == 1
    calls.clear()
    codes_of(tiny_pipeline, negative_prompt="a blue star", num_text_inference_steps=2)  # the text first, by itself
    assert [len(call["text_codes"]) for call in calls] == [1] * 2 + [2] * 5
    assert all(torch.equal(call["text_codes"][1], negative[0]) for call in calls[2:])


def test_a_negative_prompt_pushes_the_image_away_from_it(tiny_pipeline):
    tiny_pipeline.transformer.double()
    plain = codes_of(tiny_pipeline, prompt=PROMPT, guidance_scale=1.0).images
    away, from_nothing = (codes_of(tiny_pipeline, prompt=PROMPT, negative_prompt=x).images for x in ("a star", None))
    assert not torch.equal(away, from_nothing)
    same = codes_of(tiny_pipeline, prompt=PROMPT, negative_prompt=PROMPT).images  # o equals u
    assert torch.equal(same, plain)
    unknown = codes_of(tiny_pipeline, prompt=PROMPT, negative_prompt="[MASK]").images
    assert torch.equal(unknown, from_nothing)


def test_a_negative_prompt_needs_no_prompt(tiny_pipeline):
    alone = {"output_modalities": ("image",)}
    away, plain = (codes_of(tiny_pipeline, **alone, **more).images for more in ({"negative_prompt": "a star"}, {}))
    assert not torch.equal(away, plain)


def test_every_item_has_its_own_negative_prompt_or_all_have_one(tiny_pipeline):
    tiny_pipeline.transformer.double()
    negatives = ["a star", "a blue circle"]
    together = codes_of(
        tiny_pipeline,
        prompt=PROMPT,
        negative_prompt=negatives,
        num_images_per_prompt=2,
        generator=generators(0, 1, 2, 3),
    ).images
    for sample in range(4):
        alone = codes_of(
            tiny_pipeline, prompt=PROMPT, negative_prompt=negatives[sample // 2], generator=generators(sample)
        )
        assert torch.equal(alone.images[0], together[sample])
    with pytest.raises(ValueError, match="'prompt': 3, 'negative_prompt': 2"):
        tiny_pipeline([PROMPT] * 3, negative_prompt=negatives)


@pytest.mark.parametrize(
    "arguments", ({"prompt": PROMPT, "guidance_scale": 1.0}, {"image": PICTURE}, {"output_modalities": ("text",)})
)
def test_a_negative_prompt_that_guides_nothing_warns(tiny_pipeline, arguments):
    with pytest.warns(UserWarning, match="`negative_prompt` is ignored"):
        codes_of(tiny_pipeline, negative_prompt="a star", **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes_of(tiny_pipeline, negative_prompt="a star", prompt=PROMPT)


# Samples of an item


def test_a_picture_may_have_several_captions(tiny_pipeline):
    by_either_name = [
        codes_of(tiny_pipeline, image=[PICTURE, PICTURE.rotate(90)], **{name: 3}).texts
        for name in ("num_prompts_per_image", "num_images_per_prompt")
    ]
    assert by_either_name[0].shape == (6, 16, 1) and torch.equal(*by_either_name)
    assert len(tiny_pipeline(image=PICTURE, num_prompts_per_image=3, num_inference_steps=2).texts) == 3


@pytest.mark.parametrize("numbers", ((4, 1), (1, 4), (4, 4)))
def test_the_number_of_pairs_has_two_names_and_is_not_a_product(tiny_pipeline, numbers):
    output = codes_of(tiny_pipeline, num_images_per_prompt=numbers[0], num_prompts_per_image=numbers[1])
    assert len(output.images) == len(output.texts) == 4


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"guidance_schedule": "cosine"}, ValueError, r"`guidance_schedule`.*'constant', 'linear'.*got 'cosine'"),
        ({"guidance_interval": (0.8, 0.2)}, ValueError, r"`guidance_interval`.*got \(0.8, 0.2\)"),
        ({"guidance_interval": (-0.1, 0.2)}, ValueError, r"0 <= low <= high <= 1, got \(-0.1"),
        ({"guidance_interval": 0.5}, ValueError, "`guidance_interval`.*got 0.5"),
        ({"guidance_interval": (0.1, 0.2, 0.3)}, ValueError, "`guidance_interval`.*two times"),
        ({"negative_prompt": 3}, TypeError, "`negative_prompt` must be a string or a list of them, got int"),
        ({"negative_prompt": "one word after another " * 9}, ValueError, r"`negative_prompt` .*has \d+ tokens"),
        ({"negative_prompt": "red [EOS]"}, ValueError, r"`negative_prompt` 'red \[EOS\]' holds \[EOS\]"),
        ({"prompt": [PROMPT] * 2, "negative_prompt": ["a", "b", "c"]}, ValueError, "'negative_prompt': 3"),
        ({"num_prompts_per_image": 0}, ValueError, "`num_prompts_per_image`.*got 0"),
        ({"num_prompts_per_image": 2, "num_images_per_prompt": 3}, ValueError, "one number.*got 3 and 2: pass one"),
        ({"prompt": PROMPT, "num_prompts_per_image": 2}, ValueError, "generated text: pass `num_images_per_prompt`"),
        (
            {"image": PICTURE, "num_prompts_per_image": 2, "generator": generators(1)},
            ValueError,
            r"list of 2.*\(1 items, 2 samples each\), got a list of 1",
        ),
    ),
)
def test_bad_input_is_an_error_that_names_the_value_and_the_remedy(tiny_pipeline, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_pipeline(**arguments)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Steps: each modality its own number, one after the other or side by side; and nothing is computed twice."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from pipeline_inputs import PROMPT, watch_transformer
from seeded import generator, generators

import hf_vqdit

PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
CORNER = PIL.Image.fromarray(np.pad(np.full((6, 6), 255, dtype=np.uint8), (0, 26)))


def watch_steps():
    """A callback, and the (step, time) that it has seen."""
    seen = []

    def see(pipeline, step, timestep, callback_kwargs):
        seen.append((step, round(timestep.item(), 4)))
        return {}

    return see, seen


# Each modality its own number, side by side


@pytest.mark.parametrize(
    ("given", "image_steps", "text_steps", "num_timesteps"),
    (
        ({}, 3, 7, 7),
        ({}, 6, 2, 6),
        ({}, 5, None, 5),
        ({"prompt": PROMPT}, 3, 7, 3),
        ({"output_modalities": ("text",)}, 3, 7, 7),
        ({"output_modalities": ("text",)}, 7, 3, 3),
        ({"image": PICTURE, "strength": 0.5}, 6, 5, 5),
        ({"image": PICTURE, "strength": 0.5}, 6, 2, 3),
    ),
)
def test_side_by_side_the_loop_is_as_long_as_the_longest_run_of_what_is_generated(
    tiny_pipeline, given, image_steps, text_steps, num_timesteps
):
    see, seen = watch_steps()
    settings = {"num_inference_steps": image_steps, "num_text_inference_steps": text_steps, "joint_order": "together"}
    output = tiny_pipeline(**given, **settings, output_type="latent", callback_on_step_end=see, generator=generator())
    start = 0.5 if (given.get("strength"), text_steps) == (0.5, 2) else 1
    assert seen == [(k, round(start * (1 - k / num_timesteps), 4)) for k in range(num_timesteps)]
    assert tiny_pipeline.num_timesteps == num_timesteps
    for codes, mask_id in (
        (output.images, tiny_pipeline.transformer.image_mask_id),
        (output.texts, tiny_pipeline.transformer.text_mask_id),
    ):
        assert codes is None or (codes != mask_id).all()


def test_equal_numbers_are_the_default(tiny_pipeline):
    settings = {"num_inference_steps": 5, "output_type": "latent", "text_guidance_scale": 2.0}
    default, same = (
        tiny_pipeline(**settings, **more, generator=generator()) for more in ({}, {"num_text_inference_steps": 5})
    )
    assert torch.equal(same.images, default.images) and torch.equal(same.texts, default.texts)


def test_the_modality_that_ends_first_is_a_given_condition_of_the_other(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    settings = {"text_guidance_scale": 2.0, "joint_order": "together", "output_type": "latent"}
    for first, image_steps, text_steps in (("text", 6, 2), ("image", 2, 6)):
        calls.clear()
        output = tiny_pipeline(
            **settings, num_inference_steps=image_steps, num_text_inference_steps=text_steps, generator=generator()
        )
        assert [len(call["image_codes"]) for call in calls] == [1, 3, 2, 2, 2, 2]  # at first nothing guides
        ended = output.texts if first == "text" else output.images
        for call in calls[2:]:  # the caption with its padding, as it is returned
            assert torch.equal(call[f"{first}_codes"][:1], ended) and call[f"{first}_timestep"][0] == 0
            assert call[f"{first}_timestep"][1] == 1


def test_one_step_of_text_draws_the_caption_and_then_its_picture(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    settings = {"num_inference_steps": 8, "num_text_inference_steps": 1, "guidance_scale": 1.0}
    pair = tiny_pipeline(**settings, joint_order="together", output_type="latent", generator=generator())
    assert calls[0]["image_timestep"] == 1 and calls[0]["text_timestep"] == 1  # p(y): of the picture nothing is known
    assert len(calls) == 8 and all(torch.equal(call["text_codes"], pair.texts) for call in calls[1:])


# One after the other


TIMES = {steps: [round(1 - k / steps, 4) for k in range(steps)] for steps in (4, 6)}


@pytest.mark.parametrize(
    ("given", "image_times", "text_times"),
    (
        ({}, TIMES[6], TIMES[4]),
        ({"image": PICTURE, "mask_image": CORNER}, TIMES[6], TIMES[4]),
        ({"prompt": "a [MASK] circle"}, TIMES[6], TIMES[4]),
        ({"image": PICTURE, "strength": 0.5}, TIMES[6][3:], TIMES[4]),
        ({"image": PICTURE, "strength": 0.0}, [], TIMES[4]),
        ({"prompt": PROMPT}, TIMES[6], []),
        ({"image": PICTURE}, [], TIMES[4]),
        ({"output_modalities": ("image",)}, TIMES[6], []),
        ({"output_modalities": ("text",)}, [], TIMES[4]),
    ),
)
def test_one_modality_takes_all_its_steps_and_then_the_other(tiny_pipeline, given, image_times, text_times):
    settings = {"num_inference_steps": 6, "num_text_inference_steps": 4, "output_type": "latent"}
    outputs = []
    for order, times in (
        ({}, text_times + image_times),
        ({"joint_order": "text_first"}, text_times + image_times),
        ({"joint_order": "image_first"}, image_times + text_times),
    ):
        see, seen = watch_steps()
        outputs.append(tiny_pipeline(**given, **settings, **order, callback_on_step_end=see, generator=generator()))
        assert seen == list(enumerate(times)) and tiny_pipeline.num_timesteps == len(times)
    is_joint = bool(image_times and text_times)
    for name in ("images", "texts"):
        default, text_first, image_first = (getattr(output, name) for output in outputs)
        if default is not None:
            assert torch.equal(default, text_first)
            assert is_joint or torch.equal(default, image_first)  # where one is drawn there is no order


def watch_predictions(pipeline, monkeypatch, shift=0):
    """
    The image and text codes that are looked at, and the logits that are predicted from them, from now on; by `shift`
    codes further at each step, so that no two steps predict the same.
    """
    seen, predict = [], pipeline.predict

    def watched(image_codes, text_codes, *rest):
        logits = [x.roll(shift * len(seen), dims=-1) for x in predict(image_codes, text_codes, *rest)]
        seen.append((image_codes.clone(), text_codes.clone(), *logits))
        return logits

    monkeypatch.setattr(pipeline, "predict", watched)
    return seen


def favour_padding(pipeline, logit=2.0):
    """Texts of an untrained transformer that end somewhere."""
    bias = pipeline.transformer.text_proj_out.bias.data
    bias.unflatten(0, (-1, pipeline.transformer.text_pad_id + 1))[:, -1] = logit


@pytest.mark.parametrize("given", ({}, {"image": PICTURE, "mask_image": CORNER}, {"height": 24, "width": 40}))
def test_text_first_is_the_text_alone_and_then_an_image_of_it(tiny_pipeline, monkeypatch, given):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    favour_padding(tiny_pipeline)
    seen, rngs = watch_predictions(tiny_pipeline, monkeypatch), generators(3, 4)
    settings = {"text_guidance_scale": 2.0, "num_inference_steps": 6, "num_text_inference_steps": 4, **given}
    settings |= {"output_type": "latent"}
    pair = tiny_pipeline(**settings, num_images_per_prompt=2, generator=generators(3, 4))
    text = tiny_pipeline(**settings, output_modalities=("text",), num_images_per_prompt=2, generator=rngs).texts
    monkeypatch.setattr(tiny_pipeline, "prepare_text_codes", lambda tokens: text)  # words are not always their codes
    image = tiny_pipeline([PROMPT] * 2, **settings, generator=rngs).images
    assert torch.equal(pair.texts, text) and torch.equal(pair.images, image)
    assert len(seen) == 20
    for joint, alone in zip(seen[:10], seen[10:], strict=True):
        assert torch.equal(joint[0], alone[0]) and torch.equal(joint[1], alone[1])


@pytest.mark.parametrize("given", ({}, {"prompt": "a [MASK] circle"}, {"height": 24, "width": 40}))
def test_image_first_is_the_image_alone_and_then_a_text_of_it(tiny_pipeline, monkeypatch, given):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    favour_padding(tiny_pipeline)
    seen, rngs = watch_predictions(tiny_pipeline, monkeypatch), generators(3, 4)
    settings = {"text_guidance_scale": 2.0, "num_inference_steps": 3, "num_text_inference_steps": 7, **given}
    settings |= {"output_type": "latent", "joint_order": "image_first"}
    pair = tiny_pipeline(**settings, num_images_per_prompt=2, generator=generators(3, 4))
    image = tiny_pipeline(**settings, output_modalities=("image",), num_images_per_prompt=2, generator=rngs).images
    is_given = torch.ones_like(image, dtype=torch.bool)
    monkeypatch.setattr(tiny_pipeline, "prepare_image_codes", lambda *pixels: (image, is_given))
    text = tiny_pipeline(image=[PICTURE] * 2, **settings, generator=rngs).texts
    assert torch.equal(pair.images, image) and torch.equal(pair.texts, text)
    assert len(seen) == 20
    for joint, alone in zip(seen[:10], seen[10:], strict=True):
        assert torch.equal(joint[0], alone[0]) and torch.equal(joint[1], alone[1])


@pytest.mark.parametrize(("first", "then", "scales"), (("text", "image", (3.0, 1.0)), ("image", "text", (1.0, 3.0))))
def test_the_second_is_guided_by_the_first_which_needs_no_rows_for_that(tiny_pipeline, first, then, scales):
    calls = watch_transformer(tiny_pipeline)
    pair = tiny_pipeline(
        joint_order=f"{first}_first",
        guidance_scale=scales[0],
        text_guidance_scale=scales[1],
        num_inference_steps=5,
        output_type="latent",
        generator=generator(),
    )
    assert [len(call["image_codes"]) for call in calls] == [1] * 5 + [2] * 5
    assert all(call[f"{then}_timestep"] == 1 for call in calls[:5])  # nothing is known of the second
    for call in calls[5:]:
        assert call[f"{first}_timestep"].tolist() == [0, 1]  # as it is returned, and unknown
        assert torch.equal(call[f"{first}_codes"][:1], getattr(pair, f"{first}s"))
        assert torch.equal(*call[f"{then}_codes"])


@pytest.mark.parametrize("order", ("text_first", "image_first", "together"))
@pytest.mark.parametrize("last_step", (0, 2, 3, 5))
def test_an_interrupted_run_shows_the_first_prediction_of_what_had_not_begun(
    tiny_pipeline, monkeypatch, order, last_step
):
    seen = watch_predictions(tiny_pipeline, monkeypatch, shift=1)

    def stop(pipeline, step, timestep, callback_kwargs):
        pipeline._interrupt = step == last_step
        return {}

    settings = {"num_inference_steps": 4, "joint_order": order, "callback_on_step_end": stop}
    output = tiny_pipeline(**settings, output_type="latent", num_images_per_prompt=2, generator=generator())
    num_steps = {"together": 4}.get(order, 8)
    assert tiny_pipeline.num_timesteps == num_steps and len(seen) == min(last_step + 1, num_steps)
    assert (output.images != tiny_pipeline.transformer.image_mask_id).all()
    assert (output.texts != tiny_pipeline.transformer.text_mask_id).all()
    if last_step < 4:
        if order == "text_first":
            assert torch.equal(output.images, seen[0][2].argmax(dim=-1))
        if order == "image_first":
            assert torch.equal(output.texts, tiny_pipeline._pad_after_end(seen[0][3].argmax(dim=-1)))
    images, texts = tiny_pipeline(**settings, return_dict=False)
    assert len(images) == len(texts) == 1 and isinstance(texts[0], str)


# No forward pass for what has been computed already


def without_reuse(pipeline, monkeypatch):
    predict = pipeline.predict
    monkeypatch.setattr(pipeline, "predict", lambda *arguments: predict(*arguments[:5]))


@pytest.mark.parametrize(
    "given",
    (
        {"image": [PICTURE, PICTURE.rotate(90)], "text_guidance_scale": 2.0, "num_text_inference_steps": 40},
        {"num_images_per_prompt": 2, "text_guidance_scale": 2.0, "num_text_inference_steps": 25},
        {"num_images_per_prompt": 2, "num_text_inference_steps": 25, "joint_order": "image_first"},
        {"num_images_per_prompt": 2, "num_text_inference_steps": 25, "joint_order": "together"},
        {"num_images_per_prompt": 2, "guidance_schedule": "linear", "num_text_inference_steps": 3},
        {
            "prompt": ["a [MASK] circle", "a [MASK]"],
            "image": PICTURE,
            "mask_image": CORNER,
            "text_guidance_scale": 3.0,
        },
        {"prompt": [PROMPT, "a star"], "image": PICTURE, "strength": 0.3, "guidance_interval": (0.1, 0.2)},
        {"prompt": [PROMPT, "a star"], "negative_prompt": "a circle", "num_inference_steps": 80},
    ),
)
def test_the_result_is_the_same_as_without_reuse_and_takes_fewer_rows(tiny_pipeline, monkeypatch, given):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    settings = {"num_inference_steps": 16, "output_type": "latent", **given}
    output = tiny_pipeline(**settings, generator=generators(3, 4))
    passes, rows = tiny_pipeline.num_forward_passes, tiny_pipeline.num_forward_rows
    without_reuse(tiny_pipeline, monkeypatch)
    expected = tiny_pipeline(**settings, generator=generators(3, 4))
    assert passes <= tiny_pipeline.num_forward_passes == tiny_pipeline.num_timesteps
    assert rows <= tiny_pipeline.num_forward_rows
    if given.get("strength") is None and given.get("guidance_schedule") is None:
        assert rows < tiny_pipeline.num_forward_rows
    for name in ("images", "texts"):
        codes, expected_codes = getattr(output, name), getattr(expected, name)
        assert (codes is None) == (expected_codes is None)
        assert codes is None or torch.equal(codes, expected_codes)


def test_the_calls_are_counted(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    for given in ({"prompt": "a [MASK] circle", "image": PICTURE}, {"text_guidance_scale": 2.0}, {"prompt": PROMPT}):
        calls.clear()
        tiny_pipeline(**given, num_inference_steps=12, generator=generator())
        assert tiny_pipeline.num_forward_passes == len(calls)
        assert tiny_pipeline.num_forward_rows == sum(len(call["image_codes"]) for call in calls)


def test_a_run_that_is_done_early_calls_the_transformer_no_more(tiny_pipeline):
    tiny_pipeline("a [MASK] circle", image=PICTURE, num_inference_steps=50, generator=generator())
    assert tiny_pipeline.num_timesteps == 50
    assert tiny_pipeline.num_forward_passes == 2  # before the one word is drawn, and after
    tiny_pipeline(image=PICTURE, num_text_inference_steps=200, generator=generator())
    assert tiny_pipeline.num_forward_passes <= 17  # of 16 codes at least one is new each time


def test_only_rows_whose_codes_have_changed_go_through_the_transformer(tiny_pipeline):
    tiny_pipeline.transformer.double()
    images = torch.randint(0, 33, (3, 8, 8), generator=generator())
    texts = torch.randint(0, 50, (3, 16, 1), generator=generator())
    calls, rows = watch_transformer(tiny_pipeline), {}

    def predict(expected, *, scales=(3.0, 2.0)):
        calls.clear()
        output = tiny_pipeline.predict(images, texts, *scales, None, rows)
        assert sum(len(call["image_codes"]) for call in calls) == expected and len(calls) == (expected > 0)
        for value, fresh in zip(output, tiny_pipeline.predict(images, texts, *scales), strict=True):
            torch.testing.assert_close(value, fresh, rtol=0, atol=1e-12)

    predict(9)
    predict(0)
    images[1, 4, 4] = 5
    predict(2)  # the row of this sample, and its row without the text
    texts[:2, 0] = 7
    predict(4)  # two samples, and their rows without the image
    predict(0, scales=(1.0, 1.0))
    images[0, 0, 0], texts[2, 3] = 9, 9
    predict(2, scales=(1.0, 1.0))
    predict(3, scales=(3.0, 1.0))  # rows that were not asked for are forgotten: logits are large
    predict(3)
    assert set(rows) == {"both", "image", "text"}


def test_codes_that_a_callback_changes_in_place_are_new(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)

    def rewrite(pipeline, step, timestep, callback_kwargs):
        callback_kwargs["text_codes"][:, 0] = step
        return {}

    tiny_pipeline(PROMPT, num_inference_steps=4, callback_on_step_end=rewrite, generator=generator())
    assert [call["text_codes"][0, 0].item() for call in calls[1:]] == [0, 1, 2]


@pytest.mark.parametrize(("order", "passes"), (("text_first", 28), ("image_first", 28), ("together", 20)))
def test_every_row_is_computed_for_a_transformer_that_caches_by_itself(tiny_pipeline, order, passes):
    tiny_pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    for _ in range(2):
        output = tiny_pipeline(
            num_inference_steps=8,
            num_text_inference_steps=20,
            joint_order=order,
            num_images_per_prompt=2,
            text_guidance_scale=2.0,
            guidance_interval=(0.2, 0.6),
        )
        assert len(output.images) == len(output.texts) == 2
        assert tiny_pipeline.num_forward_passes == passes


class RemaskingScheduler(hf_vqdit.MaskedDiffusionScheduler):
    """Turns a code of each row that was drawn back into MASK after every step but the last."""

    def step(self, model_output, timestep, sample, *, frozen_mask=None, **settings):
        prev, pred_original = super().step(model_output, timestep, sample, frozen_mask=frozen_mask, **settings)
        if timestep != self.timesteps[-1]:
            first = (~frozen_mask).flatten(1).int().argmax(dim=1)
            prev.flatten(1)[torch.arange(len(prev)), first] = model_output.shape[-1]
        return prev, pred_original


def test_codes_may_go_back_to_mask_between_steps(tiny_pipeline):
    tiny_pipeline.scheduler, tiny_pipeline.text_scheduler = RemaskingScheduler(), RemaskingScheduler()
    calls = watch_transformer(tiny_pipeline)
    settings = {"num_inference_steps": 12, "output_type": "latent", "generator": generator()}
    mask_ids = tiny_pipeline.transformer.image_mask_id, tiny_pipeline.transformer.text_mask_id
    output = tiny_pipeline("a [MASK] circle", image=PICTURE, mask_image=CORNER, **settings)
    assert (output.images != mask_ids[0]).all() and (output.texts != mask_ids[1]).all()
    given = calls[0]["image_codes"][0] != mask_ids[0]
    assert torch.equal(output.images[0][given], calls[0]["image_codes"][0][given])
    assert all((call["image_codes"][0] == mask_ids[0]).any() for call in calls)
    output = tiny_pipeline(image=PICTURE, strength=0.5, **settings)
    assert (output.images != mask_ids[0]).all() and (output.texts != mask_ids[1]).all()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"num_text_inference_steps": 0}, "`num_text_inference_steps` must be an integer >= 1, got 0"),
        ({"num_text_inference_steps": 2.0}, "`num_text_inference_steps`.*got 2.0"),
        ({"num_inference_steps": None}, "`num_inference_steps`.*got None"),
        ({"joint_order": "text"}, r"`joint_order`.*'text_first', 'image_first', 'together'\), got 'text'"),
        ({"prompt": PROMPT, "joint_order": None}, r"`joint_order`.*'text_first', 'image_first', 'together'.*got None"),
    ),
)
def test_a_bad_number_or_order_of_steps_is_named(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Steps of the two modalities: each its own number, in one loop; the first to end is a condition of the other."""

import pytest
import torch

PROMPT = "a small red circle on a white background"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def watch_transformer(pipeline):
    """The inputs of every call of the transformer from now on."""
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


@pytest.mark.parametrize(
    ("given", "image_steps", "text_steps", "num_timesteps"),
    (
        ({}, 3, 7, 7),
        ({}, 6, 2, 6),
        ({}, 5, None, 5),
        ({"prompt": PROMPT}, 3, 7, 3),
        ({"output_modalities": ("text",)}, 3, 7, 7),
        ({"output_modalities": ("text",)}, 7, 3, 3),
    ),
)
def test_the_loop_is_as_long_as_the_longest_run_of_what_is_generated(
    tiny_pipeline, given, image_steps, text_steps, num_timesteps
):
    seen = []

    def see(pipeline, step, timestep, callback_kwargs):
        seen.append((step, round(timestep.item(), 4), pipeline.num_timesteps))
        return {}

    settings = {"num_inference_steps": image_steps, "num_text_inference_steps": text_steps, "output_type": "latent"}
    output = tiny_pipeline(**given, **settings, callback_on_step_end=see, generator=generator())
    assert seen == [(k, round(1 - k / num_timesteps, 4), num_timesteps) for k in range(num_timesteps)]
    for codes, mask_id in (
        (output.images, tiny_pipeline.transformer.image_mask_id),
        (output.texts, tiny_pipeline.transformer.text_mask_id),
    ):
        assert codes is None or (codes != mask_id).all()


def test_equal_numbers_are_the_default(tiny_pipeline):
    settings = {"num_inference_steps": 5, "output_type": "latent", "text_guidance_scale": 2.0}
    same, default = (
        tiny_pipeline(**settings, **more, generator=generator()) for more in ({}, {"num_text_inference_steps": 5})
    )
    assert torch.equal(same.images, default.images) and torch.equal(same.texts, default.texts)


def test_the_modality_that_ends_first_is_a_given_condition_of_the_other(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    settings = {"guidance_scale": 3.0, "text_guidance_scale": 2.0, "output_type": "latent"}
    for first, image_steps, text_steps in (("text", 6, 2), ("image", 2, 6)):
        calls.clear()
        output = tiny_pipeline(
            **settings, num_inference_steps=image_steps, num_text_inference_steps=text_steps, generator=generator()
        )
        assert [len(call["image_codes"]) for call in calls] == [3, 3, 2, 2, 2, 2]
        ended = output.texts if first == "text" else output.images
        for call in calls[2:]:  # the caption with its padding, as it is returned
            assert torch.equal(call[f"{first}_codes"][:1], ended) and call[f"{first}_timestep"][0] == 0
            assert call[f"{first}_timestep"][1] == 1


def test_one_step_of_text_draws_the_caption_and_then_its_picture(tiny_pipeline):
    """The chain rule p(y) p(x | y): with the picture unknown at the first step the caption has the law of p(y)."""
    pair = tiny_pipeline(
        num_inference_steps=8, num_text_inference_steps=1, output_type="latent", generator=generator()
    )
    calls = watch_transformer(tiny_pipeline)
    tiny_pipeline(num_inference_steps=8, num_text_inference_steps=1, output_type="latent", generator=generator())
    assert (calls[0]["image_timestep"] == 1).all() and (calls[0]["text_timestep"] == 1).all()
    assert all(torch.equal(call["text_codes"][:1], pair.texts) for call in calls[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"num_text_inference_steps": 0}, "`num_text_inference_steps` must be an integer >= 1, got 0"),
        ({"num_text_inference_steps": 2.0}, "`num_text_inference_steps`.*got 2.0"),
        ({"num_inference_steps": None}, "`num_inference_steps`.*got None"),
    ),
)
def test_a_bad_number_of_steps_is_named(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)

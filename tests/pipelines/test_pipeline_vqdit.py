# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a user of the pipeline relies on: given parts are kept, the rest is generated, in every direction."""

import numpy as np
import PIL.Image
import pytest
import torch
from pipeline_inputs import LEFT_HALF, PROMPT, picture, rectangle, watch_transformer
from seeded import generator, generators

import hf_vqdit


def codes_of(pipeline, **arguments):
    output = pipeline(output_type="latent", num_inference_steps=4, **arguments)
    return output.images, output.texts


# Every direction


@pytest.mark.parametrize(
    ("given", "images", "texts"),
    (
        ({"prompt": PROMPT}, True, False),
        ({"image": picture()}, False, True),
        ({}, True, True),
        ({"output_modalities": ("image",)}, True, False),
        ({"output_modalities": ("text",)}, False, True),
        ({"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF}, True, False),
        ({"image": picture(), "mask_image": LEFT_HALF}, True, True),
        ({"image": picture(), "mask_image": LEFT_HALF, "output_modalities": ("image",)}, True, False),
        ({"image": picture(), "mask_image": LEFT_HALF, "output_modalities": ("text",)}, False, True),
        ({"prompt": "a [MASK] circle", "image": picture()}, False, True),
        ({"prompt": "a [MASK] circle"}, True, True),
        ({"prompt": "a [MASK] circle", "output_modalities": ("image",)}, True, False),
        ({"image": picture(), "mask_image": rectangle(0, 0, 0, 0)}, False, True),
    ),
)
def test_what_is_left_out_is_generated_and_nothing_else(tiny_pipeline, given, images, texts):
    output = tiny_pipeline(**given, num_inference_steps=3, generator=generator())
    assert (output.images is not None, output.texts is not None) == (images, texts)
    if images:
        assert [image.size for image in output.images] == [(32, 32)]
    if texts:
        assert len(output.texts) == 1 and isinstance(output.texts[0], str)


def test_the_given_modality_never_changes(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    tiny_pipeline(PROMPT, num_inference_steps=5, guidance_scale=1, generator=generator())
    assert all(torch.equal(call["text_codes"], calls[0]["text_codes"]) for call in calls)
    assert (calls[0]["text_codes"] < tiny_pipeline.transformer.text_mask_id).all()
    assert not torch.equal(calls[0]["image_codes"], calls[-1]["image_codes"])


def test_an_inpainted_picture_keeps_every_code_outside_the_mask(tiny_pipeline):
    mask = rectangle(5, 9, 20, 14)
    images, _ = codes_of(tiny_pipeline, prompt=PROMPT, image=picture(), mask_image=mask, generator=generator())
    pixels, _ = tiny_pipeline.preprocess([picture()], [mask], None, None)
    kept = tiny_pipeline.vqvae.encode(image=pixels.float()).image_codes
    is_masked = torch.zeros(1, 8, 8, dtype=torch.bool)
    is_masked[:, 1:5, 2:4] = True  # the cells of 4 x 4 pixels that it touches
    assert torch.equal(images[~is_masked], kept[~is_masked])


def test_every_code_that_the_mask_touches_is_generated(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    tiny_pipeline(PROMPT, image=picture(), mask_image=rectangle(7, 12, 8, 13), num_inference_steps=1, guidance_scale=1)
    is_masked = calls[0]["image_codes"] == tiny_pipeline.transformer.image_mask_id
    assert is_masked.nonzero().tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("size", ((32, 32), (24, 40), (64, 64)))
def test_masked_pixels_are_what_surrounds_them_before_the_encoder_sees_them(tiny_pipeline, size):
    red_left = PIL.Image.new("RGB", (32, 32), "white")
    red_left.paste("red", (0, 0, 16, 32))
    hidden = PIL.Image.composite(picture(), red_left, rectangle(4, 0, 28, 32))  # all but the edges
    pixels, is_masked = tiny_pipeline.preprocess([hidden], [rectangle(4, 0, 28, 32)], *size)
    left, right = pixels.tensor_split(2, dim=3)
    assert left[..., :2].double().allclose(torch.tensor([1.0, -1, -1]).view(3, 1, 1).double(), atol=0.05)
    assert (right[..., -2:] > 0.95).all()
    assert left[:, 0].min() > 0.9 and left[:, 1].mean() < -0.5 and right.mean() > 0.5  # red goes on, and so does white
    assert 24 / 32 <= is_masked.float().mean() <= 24 / 32 + 2 / min(size)


def test_a_picture_that_is_masked_whole_is_gray(tiny_pipeline):
    pixels, is_masked = tiny_pipeline.preprocess([picture()], [rectangle(0, 0, 32, 32)], None, None)
    assert is_masked.all() and not pixels.any()


@pytest.mark.parametrize("size", ({}, {"height": 24, "width": 40}, {"height": 64, "width": 64}))
def test_pictures_that_differ_under_the_mask_alone_give_the_same_output(tiny_pipeline, size):
    mask = rectangle(3, 5, 21, 18)
    other = PIL.Image.composite(picture(1), picture(), mask)
    outputs = [
        tiny_pipeline(
            PROMPT, image, mask, **size, num_inference_steps=4, generator=generator(), output_type="pt"
        ).images
        for image in (picture(), other)
    ]
    assert torch.equal(*outputs)


# Time and guidance


def test_the_transformer_is_told_the_fraction_of_masks(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    arguments = {"num_inference_steps": 4, "guidance_scale": 1, "generator": generator()}
    tiny_pipeline(PROMPT, **arguments)
    tiny_pipeline(image=picture(), **arguments)
    tiny_pipeline(output_modalities=("image",), **arguments)
    tiny_pipeline(PROMPT, image=picture(), mask_image=LEFT_HALF, **arguments)
    for modality, mask_id in (
        ("image", tiny_pipeline.transformer.image_mask_id),
        ("text", tiny_pipeline.transformer.text_mask_id),
    ):
        for call in calls:
            fraction = (call[f"{modality}_codes"] == mask_id).double().mean(dim=(1, 2)).float()
            assert torch.equal(call[f"{modality}_timestep"], fraction)
    text_to_image, image_to_text, image_alone, inpaint = (calls[i : i + 4] for i in range(0, 16, 4))
    assert all((call["text_timestep"] == 0).all() for call in text_to_image + inpaint)
    assert all((call["image_timestep"] == 0).all() for call in image_to_text)
    assert all((call["text_timestep"] == 1).all() for call in image_alone)
    assert (inpaint[0]["image_timestep"] == 0.5).all()


def test_guidance_at_one_or_below_is_off_and_one_forward(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    off, also_off, on = (
        codes_of(tiny_pipeline, prompt=PROMPT, guidance_scale=scale, generator=generator())[0]
        for scale in (1.0, 0.0, 3.0)
    )
    assert [len(call["image_codes"]) for call in calls] == [1] * 8 + [2] * 4
    assert torch.equal(off, also_off) and not torch.equal(off, on)


@pytest.mark.parametrize(
    ("given", "scales", "unknown"),
    (
        ({"prompt": PROMPT}, (3, 3), ["", "text"]),
        ({"image": picture()}, (3, 3), ["", "image"]),
        ({"image": picture()}, (3, 1), [""]),
        ({}, (3, 1), ["", "text"]),
        ({}, (1, 3), ["", "image"]),
        ({}, (3, 3), ["", "text", "image"]),
        ({"prompt": "a small [MASK]", "image": picture(), "mask_image": LEFT_HALF}, (3, 3), ["", "text", "image"]),
        ({"output_modalities": ("image",)}, (3, 3), [""]),
        ({"output_modalities": ("text",)}, (3, 3), [""]),
    ),
)
def test_guidance_adds_a_row_in_which_the_condition_is_unknown(tiny_pipeline, given, scales, unknown):
    calls = watch_transformer(tiny_pipeline)
    arguments = {"guidance_scale": scales[0], "text_guidance_scale": scales[1], "generator": generator()}
    tiny_pipeline(**given, **arguments, joint_order="together", num_inference_steps=3)
    assert len(calls) == 3
    if not given:  # by a condition of which nothing is known there is no guidance
        assert len(calls.pop(0)["image_codes"]) == 1
    for call in calls:
        assert len(call["image_codes"]) == len(unknown)
        for row, name in enumerate(unknown):
            for modality in ("image", "text"):
                codes = call[f"{modality}_codes"]
                if name == modality:
                    assert (codes[row] == getattr(tiny_pipeline.transformer, f"{modality}_mask_id")).all()
                    assert call[f"{modality}_timestep"][row] == 1
                else:
                    assert torch.equal(codes[row], codes[0])


def test_guided_logits_are_extrapolated_from_those_without_the_condition(tiny_pipeline):
    transformer = tiny_pipeline.transformer.double()
    images = torch.randint(0, 33, (2, 8, 8), generator=generator())
    texts = torch.randint(0, 50, (2, 16, 1), generator=generator())
    no_image, no_text = torch.full_like(images, 32), torch.full_like(texts, 49)
    image_logits, text_logits = tiny_pipeline.predict(images, texts, guidance_scale=3.0, text_guidance_scale=2.0)

    def forward(images, texts):
        rates = ((images == 32).float().mean((1, 2)), (texts == 49).float().mean((1, 2)))
        return transformer(images, texts, *rates)

    both, image_alone, text_alone = forward(images, texts), forward(images, no_text), forward(no_image, texts)
    torch.testing.assert_close(image_logits, 3 * both.image_logits - 2 * image_alone.image_logits)
    torch.testing.assert_close(text_logits, 2 * both.text_logits - text_alone.text_logits)


def test_guidance_by_nothing_changes_nothing(tiny_pipeline):
    tiny_pipeline.transformer.double()
    outputs = [
        codes_of(
            tiny_pipeline, prompt="[MASK]", output_modalities=("image",), guidance_scale=s, generator=generator()
        )[0]
        for s in (1.0, 5.0)
    ]
    assert torch.equal(*outputs)


# Batches and randomness


def test_with_a_list_of_generators_a_sample_does_not_depend_on_the_batch(tiny_pipeline):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    prompts = [PROMPT, "a [MASK] circle", "a small [MASK]"]
    masks = [LEFT_HALF, rectangle(0, 0, 9, 32), rectangle(0, 0, 32, 32)]
    images = [picture(seed) for seed in range(3)]
    arguments = {"guidance_scale": 3.0, "text_guidance_scale": 2.0, "output_type": "latent", "num_inference_steps": 5}
    together = tiny_pipeline(prompts, images, masks, **arguments, generator=generators(5, 6, 7))
    for i in range(3):
        alone = tiny_pipeline(prompts[i], images[i], masks[i], **arguments, generator=generators(5 + i))
        assert torch.equal(together.images[i], alone.images[0])
        if alone.texts is not None:
            assert torch.equal(together.texts[i], alone.texts[0])
    assert not torch.equal(together.images[2], together.images[1])


def test_samples_of_an_item_follow_each_other(tiny_pipeline):
    tiny_pipeline.transformer.double()
    items = {"prompt": ["a [MASK] one", "two words"], "image": [picture(), picture(1)]}
    settings = {"mask_image": LEFT_HALF, "num_inference_steps": 4, "output_type": "latent"}
    together = tiny_pipeline(**items, **settings, num_images_per_prompt=2, generator=generators(1, 2, 3, 4))
    assert together.images.shape == (4, 8, 8) and together.texts.shape == (4, 16, 1)
    for sample in range(4):
        item = {name: values[sample // 2] for name, values in items.items()}
        alone = tiny_pipeline(**item, **settings, generator=generators(sample + 1))
        assert torch.equal(together.images[sample], alone.images[0])
        if alone.texts is not None:
            assert torch.equal(together.texts[sample], alone.texts[0])


def test_an_item_without_a_list_goes_with_every_entry_of_the_lists(tiny_pipeline):
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    masks = [LEFT_HALF, rectangle(0, 0, 8, 8)]
    shared = tiny_pipeline(PROMPT, picture(), masks, **arguments, generator=generators(1, 2))
    spelled = tiny_pipeline([PROMPT] * 2, [picture()] * 2, masks, **arguments, generator=generators(1, 2))
    assert torch.equal(shared.images, spelled.images)


def test_a_seed_fixes_the_output_and_another_changes_it(tiny_pipeline):
    first, same, other = (codes_of(tiny_pipeline, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], same[0]) and torch.equal(first[1], same[1])
    assert not torch.equal(first[0], other[0])


def test_a_run_leaves_nothing_behind_for_the_next(tiny_pipeline):
    before, _ = codes_of(tiny_pipeline, prompt=PROMPT, generator=generator())
    tiny_pipeline(image=[picture(), picture(1)], num_inference_steps=3)
    after, _ = codes_of(tiny_pipeline, prompt=PROMPT, generator=generator())
    assert torch.equal(before, after)


# Sizes, formats, callbacks


@pytest.mark.parametrize(("height", "width"), ((16, 48), (40, 32)))
def test_sizes_other_than_the_trained_one_are_generated(tiny_pipeline, height, width):
    image = tiny_pipeline(PROMPT, height=height, width=width, num_inference_steps=2).images[0]
    assert image.size == (width, height)
    output = tiny_pipeline(image=picture(size=(height, width)), mask_image=rectangle(0, 0, 8, 8, (height, width)))
    assert output.images[0].size == (width, height)


def test_a_given_picture_is_resized_to_height_and_width(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    tiny_pipeline(image=[picture(size=(50, 30)), picture(size=(20, 20))], height=24, width=32, num_inference_steps=1)
    assert calls[0]["image_codes"].shape == (2, 6, 8)


def test_pil_arrays_and_tensors_are_the_same_picture(tiny_pipeline):
    array = np.asarray(picture(), dtype=np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    mask = np.asarray(LEFT_HALF) > 0
    forms = [
        (picture(), LEFT_HALF),
        (array, mask.astype(np.float32)),
        (tensor, torch.from_numpy(mask)[None]),
        (tensor[None], torch.from_numpy(mask)[None, None].float()),
        ([picture()], [LEFT_HALF.convert("RGB")]),
    ]
    outputs = [codes_of(tiny_pipeline, image=image, mask_image=mask, generator=generator()) for image, mask in forms]
    for images, texts in outputs[1:]:
        assert torch.equal(images, outputs[0][0]) and torch.equal(texts, outputs[0][1])


def test_output_types_show_the_same_sample(tiny_pipeline):
    pil, array, tensor, latent = (
        tiny_pipeline(output_type=output_type, num_inference_steps=3, num_images_per_prompt=2, generator=generator())
        for output_type in ("pil", "np", "pt", "latent")
    )
    assert array.images.shape == (2, 32, 32, 3) and tensor.images.shape == (2, 3, 32, 32)
    assert 0 <= tensor.images.min() and tensor.images.max() <= 1
    np.testing.assert_array_equal(array.images, tensor.images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pil.images[1]), (array.images[1] * 255).round().astype(np.uint8))
    assert pil.texts == array.texts == tensor.texts
    assert latent.images.shape == (2, 8, 8) and latent.texts.shape == (2, 16, 1)
    decoded = tiny_pipeline.vqvae.decode(image_codes=latent.images).image
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), tensor.images)
    images, texts = tiny_pipeline(
        num_inference_steps=3, num_images_per_prompt=2, generator=generator(), return_dict=False
    )
    assert texts == pil.texts and images == pil.images


def test_half_precision_runs(tiny_pipeline):
    tiny_pipeline.to(torch.bfloat16)
    output = tiny_pipeline("a [MASK] circle", image=picture(), mask_image=LEFT_HALF, num_inference_steps=2)
    assert output.images[0].size == (32, 32)


def test_the_callback_sees_every_step_and_may_change_the_codes(tiny_pipeline):
    seen = []

    def blacken(pipeline, step, timestep, callback_kwargs):
        seen.append((step, timestep.item(), pipeline.num_timesteps, pipeline.guidance_scale))
        assert set(callback_kwargs) == {"image_codes"}
        return {"image_codes": torch.full_like(callback_kwargs["image_codes"], 7)} if step == 3 else {}

    images, _ = codes_of(
        tiny_pipeline,
        prompt=PROMPT,
        callback_on_step_end=blacken,
        callback_on_step_end_tensor_inputs=("image_codes",),
    )
    assert seen == [(0, 1.0, 4, 2.0), (1, 0.75, 4, 2.0), (2, 0.5, 4, 2.0), (3, 0.25, 4, 2.0)]
    assert (images == 7).all()


def test_an_interrupted_run_ends_with_its_prediction(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)

    def stop(pipeline, step, timestep, callback_kwargs):
        pipeline._interrupt = step == 1
        return {}

    output = tiny_pipeline(num_inference_steps=10, callback_on_step_end=stop, guidance_scale=1, generator=generator())
    assert len(calls) == 2
    assert len(output.images) == len(output.texts) == 1
    assert len(tiny_pipeline(num_inference_steps=1).images) == 1  # the next call starts anew


def test_the_progress_bar_counts_the_steps(tiny_pipeline, capsys):
    tiny_pipeline.set_progress_bar_config(disable=False)
    tiny_pipeline(PROMPT, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err


def test_the_text_scheduler_is_a_copy_unless_one_is_given(tiny_pipeline):
    parts = {name: getattr(tiny_pipeline, name) for name in ("vqvae", "transformer", "tokenizer")}
    scheduler = hf_vqdit.MaskedDiffusionScheduler(mask_schedule="arccos", order="random", temperature=0.5)
    for text_scheduler in (None, scheduler):
        pipeline = hf_vqdit.VQDiTPipeline(**parts, scheduler=scheduler, text_scheduler=text_scheduler)
        assert pipeline.text_scheduler is not scheduler
        for name in ("mask_schedule", "order", "temperature", "choice_temperature"):
            assert pipeline.text_scheduler.config[name] == scheduler.config[name]
    own = hf_vqdit.MaskedDiffusionScheduler(order="ancestral")
    pipeline = hf_vqdit.VQDiTPipeline(**parts, scheduler=scheduler, text_scheduler=own)
    assert pipeline.text_scheduler is own
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(num_inference_steps=2).texts) == 1


# Bad input


BYTES = np.zeros((32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"prompt": 3}, TypeError, "`prompt` must be a string or a list of them, got int"),
        ({"prompt": [PROMPT, None]}, TypeError, "`prompt` must be a string or a list of them, got NoneType"),
        ({"prompt": "one word after another " * 9}, ValueError, r"has \d+ tokens.*holds 16: shorten"),
        ({"prompt": "red [EOS] circle"}, ValueError, r"holds \[EOS\]"),
        ({"prompt": []}, ValueError, "at least 1"),
        (
            {"prompt": [PROMPT] * 2, "image": [picture()] * 3, "mask_image": LEFT_HALF},
            ValueError,
            "'prompt': 2.*'image': 3",
        ),
        ({"prompt": PROMPT, "image": picture()}, ValueError, "Nothing is left to generate of image and text"),
        ({"prompt": PROMPT, "output_modalities": ("text",)}, ValueError, "Nothing is left to generate of text"),
        ({"image": picture(), "output_modalities": ("image", "text")}, ValueError, "left to generate of image:"),
        ({"prompt": PROMPT, "mask_image": LEFT_HALF}, ValueError, "pass `image` as well"),
        ({"output_modalities": "image"}, ValueError, "got 'image'"),
        ({"output_modalities": ("sound",)}, ValueError, "sound"),
        ({"output_modalities": ()}, ValueError, r"got \(\)"),
        ({"output_type": "png"}, ValueError, "'png'"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt.*got 0"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps.*got 0"),
        ({"generator": generators(1, 2, 3), "num_images_per_prompt": 2}, ValueError, "list of 2.*got a list of 3"),
        ({"height": 36}, ValueError, "multiples of 8.*got 36 x 32 pixels.*(32|40) x 32 is nearest"),
        ({"width": 0}, ValueError, "got 32 x 0"),
        ({"image": picture(size=(30, 32))}, ValueError, "got 30 x 32 pixels.*32 x 32 is nearest"),
        ({"image": [picture(), picture(size=(40, 40))]}, ValueError, r"\(32, 32\), \(40, 40\).*`height` and `width`"),
        ({"image": "cat.png"}, TypeError, "`image` must be a PIL picture.*load_image.*, an array, a tensor.*got str"),
        ({"image": [picture(), 3]}, TypeError, "`image` must be.*or a list of them, got int"),
        ({"image": picture(), "mask_image": "mask.png"}, TypeError, "`mask_image` must be.*load_image.*got str"),
        ({"image": BYTES}, ValueError, "uint8"),
        ({"image": torch.rand(4, 32, 32)}, ValueError, "3 channels.*got 4 channels"),
        ({"image": torch.rand(3, 32, 32) * 255}, ValueError, r"values in \[0, 1\]"),
        (
            {"image": picture(), "mask_image": rectangle(0, 0, 8, 8, (16, 16))},
            ValueError,
            r"\(32, 32\).*\(1, 16, 16\)",
        ),
        ({"image": picture(), "mask_image": BYTES[..., 0]}, ValueError, "uint8"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ("latents",)},
            ValueError,
            "latents",
        ),
    ),
)
def test_bad_input_is_an_error_that_names_the_value_and_the_remedy(tiny_pipeline, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_pipeline(**arguments)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_pixels_that_are_no_numbers_are_refused(tiny_pipeline, value):
    pixels = np.full((32, 32, 3), 0.5)
    pixels[3, 4] = value
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        tiny_pipeline(image=pixels)

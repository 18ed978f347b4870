# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A given picture that is changed, or lies on a larger canvas; kept pixels; and other sizes, in every mode."""

import numpy as np
import PIL.Image
import pytest
import torch
from pipeline_inputs import (
    LEFT_HALF,
    OFFLOADS,
    PROMPT,
    assert_same_when_offloaded,
    picture,
    rectangle,
    watch_transformer,
)
from seeded import generator, generators

SIZES = ((16, 48), (40, 24))


def codes_of(pipeline, **arguments):
    output = pipeline(output_type="latent", **{"num_inference_steps": 6, "generator": generator(), **arguments})
    return output.images, output.texts


def encode(pipeline, *pictures):
    return pipeline.prepare_image_codes(*pipeline.preprocess(list(pictures), None, None, None))[0]


# Image to image


@pytest.mark.parametrize("strength", (0, 0.0, 0.1))
def test_a_strength_of_less_than_a_step_returns_the_codes_of_the_image(tiny_pipeline, strength):
    images, texts = codes_of(tiny_pipeline, prompt=PROMPT, image=picture(), strength=strength)
    assert torch.equal(images, encode(tiny_pipeline, picture())) and texts is None
    assert tiny_pipeline.num_timesteps == tiny_pipeline.num_forward_passes == 0
    images, texts = codes_of(tiny_pipeline, image=picture(), strength=strength)  # and a caption of it
    assert torch.equal(images, encode(tiny_pipeline, picture()))
    assert torch.equal(texts, codes_of(tiny_pipeline, image=picture())[1])


@pytest.mark.parametrize("size", ({}, {"height": 24, "width": 40}))
@pytest.mark.parametrize(
    "given", ({"prompt": PROMPT}, {}, {"prompt": "a [MASK] circle"}, {"output_modalities": ("image",)})
)
def test_strength_one_is_plain_generation_bit_for_bit(tiny_pipeline, given, size):
    edited = codes_of(tiny_pipeline, **given, image=picture(), strength=1.0, **size)
    plain = codes_of(tiny_pipeline, **given, **size)
    for codes, expected in zip(edited, plain, strict=True):
        assert (codes is None and expected is None) or torch.equal(codes, expected)


def test_strength_one_is_plain_inpainting_and_does_not_look_under_the_mask(tiny_pipeline):
    masked = {"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF}
    plain, edited = (codes_of(tiny_pipeline, **masked, strength=strength)[0] for strength in (None, 1.0))
    assert torch.equal(plain, edited)
    masked["image"] = PIL.Image.composite(picture(1), picture(), LEFT_HALF)
    assert torch.equal(codes_of(tiny_pipeline, **masked, strength=1.0)[0], edited)


def test_the_noise_level_is_that_of_the_first_step_of_the_tail(tiny_pipeline):
    calls, seen = watch_transformer(tiny_pipeline), []

    def see(pipeline, step, timestep, callback_kwargs):
        seen.append(round(timestep.item(), 4))
        return {}

    for num_steps, strength, times in (
        (10, 0.4, [0.4, 0.3, 0.2, 0.1]),
        (10, 0.49, [0.4, 0.3, 0.2, 0.1]),
        (4, 0.99, [0.75, 0.5, 0.25]),
        (100, 0.29, [0.29 - k / 100 for k in range(29)]),  # 0.29 * 100 is a little less than 29
    ):
        calls.clear(), seen.clear()
        size = {"height": 128, "width": 128, "num_inference_steps": num_steps, "guidance_scale": 1.0}
        codes_of(tiny_pipeline, prompt=PROMPT, image=picture(), strength=strength, callback_on_step_end=see, **size)
        assert seen == pytest.approx(times, abs=1e-4) and tiny_pipeline.num_timesteps == len(times)
        start = calls[0]["image_codes"]
        is_masked = start == tiny_pipeline.transformer.image_mask_id
        rate = tiny_pipeline.scheduler.mask_rate(times[0]).item()
        assert abs(is_masked.float().mean() - rate) < 4 * (rate * (1 - rate) / start.numel()) ** 0.5
        codes = encode(tiny_pipeline, picture().resize((128, 128), PIL.Image.BICUBIC))
        assert start.shape == codes.shape and calls[0]["image_timestep"] == is_masked.float().mean()


def test_codes_that_the_noise_left_are_kept(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    images, _ = codes_of(tiny_pipeline, prompt=PROMPT, image=picture(), strength=0.5)
    is_kept = calls[0]["image_codes"][:1] != tiny_pipeline.transformer.image_mask_id
    codes = encode(tiny_pipeline, picture())
    assert torch.equal(images[is_kept], codes[is_kept]) and not torch.equal(images, codes)


def test_with_a_mask_only_the_masked_part_is_noised_and_seen_as_it_is(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    images, _ = codes_of(tiny_pipeline, prompt=PROMPT, image=picture(), mask_image=LEFT_HALF, strength=0.5)
    codes = encode(tiny_pipeline, picture())
    start = calls[0]["image_codes"][:1]
    is_masked = start == tiny_pipeline.transformer.image_mask_id
    assert not is_masked[..., 4:].any() and is_masked[..., :4].any() and not is_masked[..., :4].all()
    assert torch.equal(start[~is_masked], codes[~is_masked])
    assert torch.equal(images[~is_masked], codes[~is_masked]) and not torch.equal(images, codes)


def test_a_variation_without_a_prompt_comes_with_its_caption(tiny_pipeline):
    images, texts = codes_of(tiny_pipeline, image=picture(), strength=0.5, num_images_per_prompt=2)
    assert images.shape == (2, 8, 8) and texts.shape == (2, 16, 1)
    assert not torch.equal(images[0], images[1])
    images, texts = codes_of(tiny_pipeline, image=picture(), strength=0.5, output_modalities=("image",))
    assert images.shape == (1, 8, 8) and texts is None


def test_with_a_list_of_generators_an_edit_does_not_depend_on_the_batch(tiny_pipeline):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    prompts, images = [PROMPT, "a [MASK] circle", "a small [MASK]"], [picture(seed) for seed in range(3)]
    masks = [LEFT_HALF, rectangle(0, 0, 5, 5), rectangle(0, 0, 32, 32)]
    settings = {"strength": 0.6, "text_guidance_scale": 2.0, "num_inference_steps": 12, "num_text_inference_steps": 20}
    for masked in (True, False):
        given = {"prompt": prompts, "image": images, **({"mask_image": masks} if masked else {})}
        together = codes_of(tiny_pipeline, **given, **settings, generator=generators(5, 6, 7))
        for i in range(3):
            item = {name: values[i] for name, values in given.items()}
            alone = codes_of(tiny_pipeline, **item, **settings, generator=generators(5 + i))
            assert torch.equal(together[0][i], alone[0][0])
            assert alone[1] is None or torch.equal(together[1][i], alone[1][0])


# Outpainting


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    (
        ((8, 4), (1, 5), (2, 6)),
        ((0, 0), (0, 4), (0, 4)),
        ((16, 16), (4, 8), (4, 8)),
        ((5, 3), (1, 4), (2, 5)),  # codes that lie wholly inside
        ("center", (2, 6), (2, 6)),
    ),
)
def test_codes_that_lie_inside_the_placed_picture_are_kept(tiny_pipeline, position, rows, columns):
    calls = watch_transformer(tiny_pipeline)
    small, canvas = picture(size=(16, 16)), {"height": 32, "width": 32}
    images, _ = codes_of(tiny_pipeline, prompt=PROMPT, image=small, image_position=position, **canvas)
    is_given = calls[0]["image_codes"][0] != tiny_pipeline.transformer.image_mask_id
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(is_given, expected)
    left, top = (8, 8) if position == "center" else position
    pasted, mask = PIL.Image.new("RGB", (32, 32)), PIL.Image.new("L", (32, 32), 255)
    pasted.paste(small, (left, top))
    mask.paste(0, (left, top, left + 16, top + 16))
    by_hand, _ = codes_of(tiny_pipeline, prompt=PROMPT, image=pasted, mask_image=mask)
    assert torch.equal(images, by_hand)


def test_the_canvas_may_be_longer_in_one_direction_and_the_picture_masked_in_places(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    images, texts = codes_of(
        tiny_pipeline,
        image=[picture(), picture(1, (32, 16))],
        mask_image=[rectangle(0, 0, 4, 4), rectangle(0, 0, 0, 0, (32, 16))],
        image_position=(8, 0),
        height=32,
        width=48,
    )
    assert images.shape == (2, 8, 12) and texts is not None
    expected = torch.zeros(2, 8, 12, dtype=torch.bool)
    expected[0, :, 2:10] = expected[1, :, 2:6] = True
    expected[0, 0, 2] = False
    assert torch.equal(calls[0]["image_codes"][:2] != tiny_pipeline.transformer.image_mask_id, expected)
    assert codes_of(tiny_pipeline, image=picture(), image_position="center", width=40)[0].shape == (1, 8, 10)


def test_the_middle_lies_on_the_grid_of_codes(tiny_pipeline):
    calls = watch_transformer(tiny_pipeline)
    codes_of(tiny_pipeline, image=picture(size=(16, 16)), image_position="center", height=24, width=40)
    is_given = calls[0]["image_codes"][0] != tiny_pipeline.transformer.image_mask_id
    assert is_given.sum() == 16 and is_given[1:5, 3:7].all()


# Kept pixels


def to_floats(image):
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.parametrize("strength", (None, 0.5))
def test_kept_pixels_come_back_exactly_and_the_others_are_generated(tiny_pipeline, strength):
    mask = rectangle(5, 9, 20, 14)
    is_kept = np.asarray(mask) == 0
    settings = {"strength": strength, "num_inference_steps": 4, "num_images_per_prompt": 2}
    for output_type in ("pil", "np", "pt"):
        plain, composed = (
            tiny_pipeline(
                PROMPT, picture(), mask, output_type=output_type, composite=on, generator=generator(), **settings
            ).images
            for on in (False, True)
        )
        if output_type == "pt":
            assert plain.dtype == composed.dtype == torch.float32
            plain, composed = plain.permute(0, 2, 3, 1).numpy(), composed.permute(0, 2, 3, 1).numpy()
        given = np.asarray(picture()) if output_type == "pil" else to_floats(picture())
        for image, reconstructed in zip(composed, plain, strict=True):
            image, reconstructed = np.asarray(image), np.asarray(reconstructed)
            assert (image[is_kept] == given[is_kept]).all()
            assert (image[~is_kept] == reconstructed[~is_kept]).all()
            assert not (reconstructed[is_kept] == given[is_kept]).all()


def test_a_kept_tensor_comes_back_bit_for_bit_also_in_half_precision(tiny_pipeline):
    image = torch.rand(3, 32, 32, generator=generator())
    image[:, 20] *= 1e-6
    tiny_pipeline.to(torch.bfloat16)
    composed = tiny_pipeline(
        PROMPT, image, LEFT_HALF, composite=True, output_type="pt", num_inference_steps=2, generator=generator()
    ).images
    assert torch.equal(composed[0, ..., 16:], image[..., 16:])


def test_an_outpainted_picture_comes_back_exactly(tiny_pipeline):
    images = tiny_pipeline(
        PROMPT,
        [picture(0, (16, 16)), picture(1, (16, 24))],
        image_position=(5, 3),
        height=32,
        width=32,
        composite=True,
        num_inference_steps=2,
        num_images_per_prompt=2,
    ).images
    assert len(images) == 4
    for image, given in zip(images, [picture(0, (16, 16))] * 2 + [picture(1, (16, 24))] * 2, strict=True):
        assert (np.asarray(image.crop((5, 3, 5 + given.width, 19))) == np.asarray(given)).all()


def test_what_is_put_back_into_a_resized_picture_is_resized(tiny_pipeline):
    size = {"height": 64, "width": 48}
    composed = tiny_pipeline(PROMPT, picture(), LEFT_HALF, composite=True, num_inference_steps=2, **size).images[0]
    pixels, is_masked = tiny_pipeline.preprocess([picture()], [LEFT_HALF], 64, 48)
    expected = (pixels[0].permute(1, 2, 0) * 127.5 + 127.5).round().numpy()
    is_kept = ~is_masked[0, 0].numpy()
    assert composed.size == (48, 64) and (np.asarray(composed)[is_kept] == expected[is_kept]).all()


# Other sizes


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("given", "images", "texts"),
    (
        ({"prompt": PROMPT}, True, False),
        ({}, True, True),
        ({"output_modalities": ("image",)}, True, False),
        ({"output_modalities": ("text",)}, False, True),
        ({"image": picture()}, False, True),
        ({"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF}, True, False),
        ({"prompt": PROMPT, "image": picture(), "strength": 0.5}, True, False),
        ({"image": picture(), "mask_image": LEFT_HALF, "strength": 0.5}, True, True),
        ({"prompt": "a [MASK] circle", "image": picture(size=(16, 16)), "image_position": (0, 0)}, True, True),
    ),
)
def test_every_mode_knows_other_sizes_than_the_trained_one(tiny_pipeline, given, images, texts, height, width):
    calls = watch_transformer(tiny_pipeline)
    settings = {"num_inference_steps": 3, "num_images_per_prompt": 2, "text_guidance_scale": 2.0}
    negative = {"negative_prompt": "a star"} if images else {}
    output = tiny_pipeline(**given, **settings, **negative, height=height, width=width)
    assert all(call["image_codes"].shape[1:] == (height // 4, width // 4) for call in calls)
    assert (output.images is not None, output.texts is not None) == (images, texts)
    if images:
        assert [image.size for image in output.images] == [(width, height)] * 2


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading_hooks_change_nothing(tiny_pipeline, offload):
    """Without an accelerator the hooks move nothing, but each part must still be reached through one."""
    modes = (
        {},
        {"image": picture()},
        {"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF},
        {"prompt": PROMPT, "image": picture(), "strength": 0.5, "negative_prompt": "a star"},
        {"prompt": PROMPT, "image": picture(), "strength": 0.0},
        {"image": picture(size=(16, 16)), "image_position": "center", "height": 32, "width": 32},
    )
    assert_same_when_offloaded(tiny_pipeline, offload, modes, codes_of)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"image": picture(), "strength": -0.1}, r"`strength` must be a number in \[0, 1\], got -0.1"),
        ({"image": picture(), "strength": 1.5}, "`strength`.*got 1.5"),
        ({"image": picture(), "strength": float("nan")}, "`strength`.*got nan"),
        ({"image": picture(), "strength": "0.5"}, "`strength`.*got '0.5'"),
        ({"prompt": PROMPT, "strength": 0.5}, "`strength`.*pass `image` as well"),
        ({"image": picture(), "strength": 0.5, "output_modalities": ("text",)}, "`strength`.*need a generated image"),
        (
            {"image": picture(), "strength": 0.5, "mask_image": rectangle(0, 0, 0, 0)},
            "`strength`.*need a generated image",
        ),
        ({"image_position": (0, 0), "height": 64}, "`image_position`.*pass `image` as well"),
        ({"image": picture(), "image_position": (0, 0)}, "pass its `height` and `width`"),
        ({"image": picture(), "image_position": "middle", "height": 64}, "got 'middle'"),
        ({"image": picture(), "image_position": (-4, 0), "height": 64}, r"integers >= 0, got \(-4, 0\)"),
        ({"image": picture(), "image_position": (0.5, 0), "height": 64}, r"got \(0.5, 0\)"),
        ({"image": picture(), "image_position": (0, 0, 0), "height": 64}, r"got \(0, 0, 0\)"),
        (
            {"image": picture(), "image_position": (8, 0), "height": 64, "width": 32},
            r"32 x 32 pixels does not fit.*64 x 32 at \(left, top\) = \(8, 0\): .*height of at least 32.*at least 40",
        ),
        (
            {"image": picture(), "image_position": "center", "height": 16, "width": 64},
            "32 x 32 pixels does not fit.*16 x 64.*height of at least 32",
        ),
        ({"image": picture(), "image_position": (0, 0), "height": 68}, "multiples of 8.*got 68 x 32"),
        ({"prompt": PROMPT, "image": picture(), "image_position": (0, 0), "width": 32}, "Nothing is left to generate"),
        ({"image": picture(), "image_position": (0, 0), "width": 64, "strength": 0.5}, "one of them"),
        ({"image": picture(), "composite": True}, "pass `mask_image` or `image_position`"),
        ({"image": picture(), "composite": True, "strength": 0.5}, "pass `mask_image` or `image_position`"),
        ({"image": picture(), "mask_image": LEFT_HALF, "composite": True, "output_type": "latent"}, "got 'latent'"),
        (
            {"image": picture(), "mask_image": LEFT_HALF, "composite": True, "output_modalities": ("text",)},
            "`composite` need a generated image",
        ),
    ),
)
def test_bad_input_is_an_error_that_names_the_value_and_the_remedy(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)

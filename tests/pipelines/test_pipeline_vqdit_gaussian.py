# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The Gaussian process in the pipeline: the same rule, that what is given is kept and the rest is generated."""

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from gaussian_inputs import make_gaussian_pipeline
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

from hf_vqdit.evaluation.trace import SamplingTrace

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture
def pipeline(tiny_pipeline):
    """A Gaussian pipeline that draws noise: v-prediction, ancestral steps."""
    return make_gaussian_pipeline(tiny_pipeline)


@pytest.fixture
def flow(tiny_pipeline):
    """The same by a flow, whose steps draw no noise."""
    return make_gaussian_pipeline(tiny_pipeline, prediction_type="flow_prediction")


def codes_of(pipeline, **arguments):
    output = pipeline(output_type="latent", **{"num_inference_steps": 4, "generator": generator(), **arguments})
    return output.images, output.texts


def watch_latents(names=("image_latents", "text_latents")):
    """The settings of a call that remember the latents after every step, and the list of them."""
    seen = []

    def see(pipeline, step, timestep, tensors):
        seen.append({name: x.clone() for name, x in tensors.items()})
        return {}

    return {"callback_on_step_end": see, "callback_on_step_end_tensor_inputs": names}, seen


# Every direction


@pytest.mark.parametrize("kind", ("pipeline", "flow"))
@pytest.mark.parametrize(
    ("given", "images", "texts"),
    (
        ({"prompt": PROMPT}, True, False),
        ({"image": picture()}, False, True),
        ({}, True, True),
        ({"joint_order": "image_first"}, True, True),
        ({"joint_order": "together", "num_text_inference_steps": 2}, True, True),
        ({"output_modalities": ("image",)}, True, False),
        ({"output_modalities": ("text",)}, False, True),
        ({"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF}, True, False),
        ({"prompt": PROMPT, "image": picture(), "strength": 0.5}, True, False),
        ({"prompt": "a [MASK] circle", "image": picture()}, False, True),
        ({"prompt": PROMPT, "negative_prompt": "a star"}, True, False),
        ({"prompt": PROMPT, "height": 24, "width": 40}, True, False),
    ),
)
def test_what_is_left_out_is_generated_and_nothing_else(kind, given, images, texts, request):
    output = request.getfixturevalue(kind)(**given, num_inference_steps=3, generator=generator())
    assert (output.images is not None, output.texts is not None) == (images, texts)
    if images:
        assert [image.size for image in output.images] == [(given.get("width", 32), given.get("height", 32))]
    if texts:
        assert len(output.texts) == 1 and isinstance(output.texts[0], str)


def test_vectors_become_their_nearest_codes(flow):
    settings, seen = watch_latents()
    images, texts = codes_of(flow, joint_order="together", num_images_per_prompt=3, **settings)
    for name, codes, pads in (("image", images, []), ("text", texts, [flow.transformer.text_pad_vector.detach()])):
        vectors = torch.stack([*flow.vqvae.normalized_codebook(name), *pads])
        latents = seen[-1][f"{name}_latents"].movedim(1, -1)
        nearest = (latents[..., None, :] - vectors).square().sum(dim=-1).argmin(dim=-1)
        assert torch.equal(codes, flow._pad_after_end(nearest) if name == "text" else nearest)


def test_padding_is_a_vector_that_is_final_where_it_comes_and_forbidden_before_a_given_word(flow):
    flow.transformer.text_pad_vector.data.fill_(0)  # all that an untrained transformer says is near zero
    _, texts = codes_of(flow, output_modalities=("text",), num_images_per_prompt=8)
    is_padding = (texts == flow.transformer.text_pad_id).all(dim=-1)
    assert torch.equal(is_padding, is_padding.cummax(dim=1).values) and is_padding.any()
    _, texts = codes_of(flow, prompt="a [MASK] circle [MASK] here", image=picture())
    num_tokens = len(flow.tokenizer("a [MASK] circle [MASK] here").input_ids) + 1
    assert (texts[:, :num_tokens] < flow.transformer.text_pad_id).all()


# What is given


def test_given_words_come_back_letter_for_letter(pipeline):
    text = pipeline("a small [MASK] circle on a white background", image=picture(), num_inference_steps=3).texts[0]
    assert text.startswith("a small") and text.endswith("circle on a white background")


@pytest.mark.parametrize("kind", ("pipeline", "flow"))
@pytest.mark.parametrize("strength", (None, 0.5))
def test_every_code_outside_the_mask_is_kept(kind, strength, request):
    pipeline = request.getfixturevalue(kind)
    mask = rectangle(5, 9, 20, 14)  # of some patches a part
    images, _ = codes_of(pipeline, prompt=PROMPT, image=picture(), mask_image=mask, strength=strength)
    pixels, masked = pipeline.preprocess([picture()], [mask], None, None, hide=strength is None)
    kept, given = pipeline.prepare_image_codes(pixels, masked)
    assert torch.equal(images[given], kept[given]) and not torch.equal(images, kept)


def test_whole_patches_are_fed_clean_and_parts_of_others_with_the_noise_of_their_neighbours(flow):
    calls = watch_transformer(flow)
    mask = rectangle(0, 0, 8, 4)  # the left half of the first patch of 2 x 2 codes of 4 x 4 pixels
    codes_of(flow, prompt=PROMPT, image=picture(), mask_image=mask, guidance_scale=1.0)
    pixels, masked = flow.preprocess([picture()], [mask], None, None)
    codes, _ = flow.prepare_image_codes(pixels, masked)
    clean = flow.vqvae.normalized_codebook("image")[codes].movedim(-1, 1)
    is_clean = torch.ones(1, 8, 8, dtype=torch.bool)
    is_clean[:, :2, :2] = False
    noise = (calls[0]["image_latents"])[:, :, :2, :2]  # at time 1 there is nothing else
    for call in calls:
        assert torch.equal(call["image_given_mask"], is_clean)
        assert torch.equal(call["image_latents"][:, :, is_clean[0]], clean[:, :, is_clean[0]])
        time, part = call["image_timestep"], (slice(None), slice(None), slice(0, 2), slice(1, 2))
        expected = (1 - time) * clean[part] + time * noise[..., 1:]
        torch.testing.assert_close(call["image_latents"][part], expected, rtol=0, atol=1e-6)


def test_the_given_modality_is_clean_at_time_zero_and_an_absent_one_is_one_noise_at_time_one(pipeline):
    calls = watch_transformer(pipeline)
    codes_of(pipeline, prompt=PROMPT, guidance_scale=1.0)
    text = pipeline.prepare_text_codes(pipeline.tokenize([PROMPT], 1))
    vectors = torch.cat([pipeline.vqvae.normalized_codebook("text"), pipeline.transformer.text_pad_vector[None]])
    for call in calls:
        assert torch.equal(call["text_latents"], vectors[text].movedim(-1, 1)) and call["text_timestep"] == 0
        assert call["text_given_mask"].all() and not call["image_given_mask"].any()
    calls.clear()
    codes_of(pipeline, output_modalities=("image",))
    assert all(torch.equal(call["text_latents"], calls[0]["text_latents"]) for call in calls)
    assert all((call["text_timestep"] == 1).all() and not call["text_given_mask"].any() for call in calls)
    assert abs(calls[0]["text_latents"].std() - 1) < 0.3


@pytest.mark.parametrize(("first", "then"), (("text", "image"), ("image", "text")))
def test_the_second_is_drawn_with_the_first_as_it_is_returned(flow, first, then):
    calls = watch_transformer(flow)
    output = flow(joint_order=f"{first}_first", guidance_scale=1.0, output_type="latent", num_inference_steps=3)
    vectors = flow.vqvae.normalized_codebook(first)
    if first == "text":
        vectors = torch.cat([vectors, flow.transformer.text_pad_vector[None]])
    assert all(call[f"{then}_timestep"] == 1 for call in calls[:3])
    for call in calls[3:]:
        assert call[f"{first}_timestep"] == 0
        assert torch.equal(call[f"{first}_latents"], vectors[getattr(output, f"{first}s")].movedim(-1, 1))


# Guidance


@pytest.mark.parametrize("learn_sigma", (False, True))
def test_guidance_at_one_is_none_bit_for_bit_and_one_forward(tiny_pipeline, learn_sigma):
    pipeline = make_gaussian_pipeline(tiny_pipeline, learn_sigma=learn_sigma)
    calls = watch_transformer(pipeline)
    off, also_off, on = (codes_of(pipeline, prompt=PROMPT, guidance_scale=scale)[0] for scale in (1.0, 0.0, 3.0))
    assert [len(call["image_latents"]) for call in calls] == [1] * 8 + [2] * 4
    assert torch.equal(off, also_off) and not torch.equal(off, on)


def test_joint_guidance_takes_three_rows_in_one_batch(flow):
    calls = watch_transformer(flow)
    codes_of(flow, joint_order="together", guidance_scale=3.0, text_guidance_scale=2.0)
    assert [len(call["image_latents"]) for call in calls] == [1, 3, 3, 3]  # at first nothing is known that could guide
    for call in calls[1:]:
        both, no_text, no_image = range(3)
        assert torch.equal(call["image_latents"][both], call["image_latents"][no_text])
        assert torch.equal(call["text_latents"][both], call["text_latents"][no_image])
        assert torch.equal(call["text_latents"][no_text], calls[0]["text_latents"][0])  # its first noise
        assert torch.equal(call["image_latents"][no_image], calls[0]["image_latents"][0])
        time = call["image_timestep"][both]
        assert call["image_timestep"].tolist() == [time, time, 1] and call["text_timestep"].tolist() == [time, 1, time]


def test_all_mean_channels_are_guided_and_the_variance_is_that_of_the_condition(tiny_pipeline):
    pipeline = make_gaussian_pipeline(tiny_pipeline, learn_sigma=True)
    transformer = pipeline.transformer.double()
    image = transformer.make_run(
        "image",
        None,
        torch.zeros(2, 8, 8, dtype=torch.long),
        torch.zeros(2, 8, 8, dtype=torch.bool),
        vqvae=pipeline.vqvae,
    ).state(None)
    text_codes = torch.randint(0, 48, (2, 16, 1), generator=generator())
    text = transformer.make_run("text", None, text_codes, text_codes >= 0, vqvae=pipeline.vqvae).state(None)
    guided, _ = pipeline.predict(image, text, 3.0)
    conditional, _ = pipeline.predict(image, text)
    unconditional, _ = pipeline.predict(image, transformer.unknown("text", text))
    expected = 3 * conditional - 2 * unconditional
    torch.testing.assert_close(guided[:, :4], expected[:, :4])
    torch.testing.assert_close(guided[:, 4:], conditional[:, 4:])
    assert (conditional[:, 4:] - unconditional[:, 4:]).abs().min() > 0


def test_guidance_by_nothing_changes_nothing(flow):
    flow.transformer.double()
    settings = {"prompt": "[MASK]", "output_modalities": ("image",)}
    assert torch.equal(*(codes_of(flow, **settings, guidance_scale=scale)[0] for scale in (1.0, 5.0)))


def test_a_negative_prompt_stands_for_the_unknown_text(flow):
    calls = watch_transformer(flow)
    codes_of(flow, prompt=PROMPT, negative_prompt="a star")
    negative = flow.prepare_text_codes(flow.tokenize(["a star"], 1))
    vectors = torch.cat([flow.vqvae.normalized_codebook("text"), flow.transformer.text_pad_vector[None]])
    for call in calls:
        assert torch.equal(call["text_latents"][1:], vectors[negative].movedim(-1, 1))
        assert call["text_timestep"].tolist() == [0, 0]


# Strength


def test_strength_one_is_plain_generation_bit_for_bit(pipeline):
    plain, edited = (
        codes_of(pipeline, prompt=PROMPT, **more)[0] for more in ({}, {"image": picture(), "strength": 1.0})
    )
    assert torch.equal(plain, edited)


@pytest.mark.parametrize("strength", (0.0, 0.2))
def test_a_strength_of_less_than_a_step_returns_the_codes_of_the_image(pipeline, strength):
    images, _ = codes_of(pipeline, prompt=PROMPT, image=picture(), strength=strength)
    codes, _ = pipeline.prepare_image_codes(*pipeline.preprocess([picture()], None, None, None))
    assert torch.equal(images, codes) and pipeline.num_timesteps == 0


@pytest.mark.parametrize("scheduler_class", (DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, None))
def test_an_edit_begins_with_the_noise_of_the_first_of_its_steps(tiny_pipeline, scheduler_class):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type="flow_prediction")
    if scheduler_class is not None:
        scheduler = scheduler_class(clip_sample=False) if scheduler_class is DDPMScheduler else scheduler_class()
        pipeline = make_gaussian_pipeline(tiny_pipeline, scheduler, prediction_type="epsilon")
    calls = watch_transformer(pipeline)
    size = {"height": 128, "width": 128, "guidance_scale": 1.0, "num_inference_steps": 10}
    codes_of(pipeline, prompt=PROMPT, image=picture(), strength=0.4, **size)
    order, times = pipeline.scheduler.order, [call["image_timestep"].item() for call in calls]
    whole_run = pipeline.scheduler.timesteps
    assert len(calls) == len(whole_run) - 6 * order == pipeline.num_timesteps
    pixels = pipeline.preprocess([picture()], None, 128, 128)
    clean = pipeline.vqvae.normalized_codebook("image")[pipeline.prepare_image_codes(*pixels)[0]].movedim(-1, 1)
    if scheduler_class is None:
        alpha, sigma = 1 - times[0], times[0]
    else:
        alpha_bar = pipeline.scheduler.alphas_cumprod[whole_run[6 * order].round().long()].item()
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        assert times[0] == pytest.approx((whole_run[6 * order].item() + 1) / 1000)
    noise = (calls[0]["image_latents"] - alpha * clean) / sigma
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5 and abs(noise.std() - 1) < 4 / noise.numel() ** 0.5


# Batches, callbacks, numbers


@pytest.mark.parametrize("kind", ("pipeline", "flow"))
def test_with_a_list_of_generators_a_sample_does_not_depend_on_the_batch(kind, request):
    pipeline = request.getfixturevalue(kind)
    pipeline.vqvae.double(), pipeline.transformer.double()
    prompts, images = [PROMPT, "a [MASK] circle", "a small [MASK]"], [picture(seed) for seed in range(3)]
    masks = [LEFT_HALF, rectangle(0, 0, 9, 32), rectangle(0, 0, 32, 32)]
    settings = {"guidance_scale": 3.0, "text_guidance_scale": 2.0}
    together = codes_of(
        pipeline, prompt=prompts, image=images, mask_image=masks, **settings, generator=generators(5, 6, 7)
    )
    for i in range(3):
        given = {"prompt": prompts[i], "image": images[i], "mask_image": masks[i]}
        alone = codes_of(pipeline, **given, **settings, generator=generators(5 + i))
        assert torch.equal(together[0][i], alone[0][0])
        assert alone[1] is None or torch.equal(together[1][i], alone[1][0])


def test_a_seed_fixes_the_output_and_a_run_leaves_nothing_behind(tiny_pipeline):
    pipeline = make_gaussian_pipeline(tiny_pipeline, DPMSolverMultistepScheduler(), prediction_type="epsilon")
    first = codes_of(pipeline)
    pipeline(image=[picture(), picture(1)], num_inference_steps=3)
    same, other = codes_of(pipeline), codes_of(pipeline, generator=generator(1))
    assert torch.equal(first[0], same[0]) and torch.equal(first[1], same[1]) and not torch.equal(first[0], other[0])


def test_each_modality_has_a_scheduler_of_its_own_state(tiny_pipeline):
    """One solver for both would advance twice a step, and mix what it remembers."""
    pipeline = make_gaussian_pipeline(tiny_pipeline, DPMSolverMultistepScheduler(), prediction_type="epsilon")
    pipeline.transformer.double()
    output = codes_of(pipeline, joint_order="together", num_inference_steps=6)
    swapped = make_gaussian_pipeline(
        tiny_pipeline, pipeline.text_scheduler, pipeline.scheduler, prediction_type="epsilon"
    )
    swapped.transformer.double()
    for codes, same in zip(output, codes_of(swapped, joint_order="together", num_inference_steps=6), strict=True):
        assert torch.equal(codes, same)


def test_the_callback_sees_latents_and_codes_and_may_change_the_latents(flow):
    names = ("image_codes", "text_codes", "image_latents", "text_latents")

    def change(pipeline, step, timestep, tensors):
        assert set(tensors) == set(names)
        assert tensors["image_codes"].shape == (1, 8, 8) and tensors["image_codes"].max() < 32
        assert tensors["image_latents"].shape == (1, 4, 8, 8) and tensors["text_latents"].shape == (1, 4, 16, 1)
        return {"image_latents": torch.full_like(tensors["image_latents"], 9.0)} if step == 0 else {}

    changed = codes_of(flow, prompt=PROMPT, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names)
    assert not torch.equal(changed[0], codes_of(flow, prompt=PROMPT)[0])


@pytest.mark.parametrize("order", ("text_first", "image_first", "together"))
@pytest.mark.parametrize("kind", ("pipeline", "flow"))
def test_an_interrupted_run_ends_with_the_codes_of_its_prediction(kind, order, request):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        return {}

    images, texts = codes_of(request.getfixturevalue(kind), joint_order=order, callback_on_step_end=stop)
    assert images.shape == (1, 8, 8) and images.max() < 32 and texts.shape == (1, 16, 1) and texts.max() <= 48


def test_a_sample_can_be_traced_step_by_step(flow):
    trace = SamplingTrace()
    flow(num_inference_steps=3, callback_on_step_end=trace, generator=generator())
    assert len(trace.draw(flow)) == 6


def test_half_precision_runs_and_keeps_the_latents_in_float32(pipeline):
    settings, seen = watch_latents()
    pipeline.to(torch.bfloat16)
    output = pipeline("a [MASK] circle", image=picture(), mask_image=LEFT_HALF, num_inference_steps=2, **settings)
    assert output.images[0].size == (32, 32)
    assert all(x.dtype == torch.float32 for tensors in seen for x in tensors.values())


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading_hooks_change_nothing(pipeline, offload):
    modes = (
        {"prompt": PROMPT, "negative_prompt": "a star"},
        {"image": picture()},
        {"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF},
    )
    assert_same_when_offloaded(pipeline, offload, modes, codes_of)


# The U-Net in the transformer's place


@pytest.fixture
def unet(tiny_pipeline):
    sizes = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    sizes |= {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    return make_gaussian_pipeline(tiny_pipeline, unet_kwargs=sizes, prediction_type="flow_prediction")


def test_a_unet_draws_pictures_and_keeps_what_is_given(unet):
    alone = {"output_modalities": ("image",)}
    assert unet(**alone, num_inference_steps=2, height=24, width=40).images[0].size == (40, 24)
    images, texts = codes_of(unet, **alone, image=picture(), mask_image=LEFT_HALF)
    kept, given = unet.prepare_image_codes(*unet.preprocess([picture()], [LEFT_HALF], None, None))
    assert torch.equal(images[given], kept[given]) and texts is None


def test_what_is_given_to_a_unet_has_the_noise_of_its_neighbours(unet):
    calls = watch_transformer(unet)
    codes_of(unet, output_modalities=("image",), image=picture(), mask_image=LEFT_HALF)
    assert not any(call["image_given_mask"].any() for call in calls)
    assert calls[0]["image_latents"].std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    "given",
    ({"prompt": PROMPT}, {}, {"output_modalities": ("text",)}, {"image": picture()}, {"negative_prompt": "a star"}),
)
def test_a_unet_knows_no_text(unet, given):
    with pytest.raises(ValueError, match="A U-Net knows pictures alone: pass `output_modalities"):
        unet(**given)


# Bad input


def test_latents_are_no_state_of_a_masked_pipeline(tiny_pipeline):
    settings, _ = watch_latents()
    with pytest.raises(ValueError, match=r"must be of \['image_codes', 'text_codes'\]"):
        tiny_pipeline(PROMPT, **settings)


def test_a_tokenizer_without_statistics_is_refused(pipeline):
    pipeline.vqvae.text_latents_std.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="`text_latents_std`.*measure_latents"):
        pipeline(PROMPT)

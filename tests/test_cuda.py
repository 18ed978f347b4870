# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""On a CUDA device, where there is one: it computes what a CPU computes, and every way to run there draws."""

import pytest
import torch
from gaussian_inputs import make_gaussian_pipeline
from pipeline_inputs import LEFT_HALF, PROMPT, picture, watch_transformer
from script_runs import run_in_process, weights
from seeded import generator

import hf_vqdit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
DIRECTIONS = {
    "text_to_image": {"prompt": PROMPT},
    "image_to_text": {"image": picture()},
    "joint": {},
    "together": {"joint_order": "together", "text_guidance_scale": 2.0},
    "inpainting": {"prompt": PROMPT, "image": picture(), "mask_image": LEFT_HALF},
    "words": {"prompt": "a [MASK] circle", "image": picture()},
    "edit": {"prompt": PROMPT, "image": picture(), "strength": 0.5},
    "negative": {"prompt": PROMPT, "negative_prompt": "a star"},
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions take TF32 by default, which keeps 10 bits of a number."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=("masked", "gaussian"))
def pipeline(request, tiny_pipeline):
    return tiny_pipeline if request.param == "masked" else make_gaussian_pipeline(tiny_pipeline)


def codes_of(pipeline, direction):
    """Image and text codes, those that were drawn, from a generator on the CPU."""
    settings = {"output_type": "latent", "num_inference_steps": 4, "generator": generator()}
    output = pipeline(**DIRECTIONS[direction], **settings)
    return {name: codes.cpu() for name, codes in output.items() if codes is not None}


def assert_same_codes(found, expected):
    assert found.keys() == expected.keys() and expected
    assert all(torch.equal(found[name], codes) for name, codes in expected.items())


def transformer_inputs(pipeline):
    """What the transformer is given in a call."""
    calls = watch_transformer(pipeline)
    pipeline("a [MASK] circle", image=picture(), mask_image=LEFT_HALF, num_inference_steps=1, generator=generator())
    return calls[0]


def to_device(inputs):
    return {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in inputs.items()}


# Equal to a CPU


@torch.no_grad()
def test_the_transformer_predicts_what_it_does_on_a_cpu(pipeline):
    inputs = transformer_inputs(pipeline)
    expected = pipeline.transformer(**inputs)
    found = pipeline.transformer.to(DEVICE)(**to_device(inputs))
    for own, same in zip(found, expected, strict=True):
        torch.testing.assert_close(own.cpu(), same, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_tokenizer_encodes_and_decodes_what_it_does_on_a_cpu(tiny_pipeline):
    vqvae = tiny_pipeline.vqvae
    image = 2 * torch.rand(2, 3, 32, 32, generator=generator()) - 1
    text = torch.randint(3, vqvae.config.vocab_size, (2, 16), generator=generator())
    expected = vqvae(image, text)
    found = vqvae.to(DEVICE)(image.to(DEVICE), text.to(DEVICE))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_generator_on_the_cpu_draws_the_codes_of_a_cpu(pipeline, direction):
    expected = codes_of(pipeline, direction)
    assert_same_codes(codes_of(pipeline.to(DEVICE), direction), expected)


# Every way to run


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16_draws_in_every_direction_from_a_generator_of_the_device(pipeline, direction):
    pipeline.to(DEVICE, torch.bfloat16)
    own = torch.Generator(DEVICE).manual_seed(0)
    output = pipeline(**DIRECTIONS[direction], num_inference_steps=2, generator=own)
    assert output.images is None or output.images[0].size == (32, 32)
    assert output.texts is None or isinstance(output.texts[0], str)
    assert output.images is not None or output.texts is not None


@pytest.mark.parametrize("offload", ("enable_model_cpu_offload", "enable_sequential_cpu_offload"))
def test_parts_that_wait_on_the_cpu_draw_the_same(pipeline, offload):
    pipeline.to(DEVICE)
    expected = {direction: codes_of(pipeline, direction) for direction in DIRECTIONS}
    drawn = pipeline(num_inference_steps=2, generator=generator(), output_type="pt")  # pixels and captions, too
    pipeline.to("cpu")
    getattr(pipeline, offload)()
    for direction, codes in expected.items():
        assert_same_codes(codes_of(pipeline, direction), codes)
    again = pipeline(num_inference_steps=2, generator=generator(), output_type="pt")
    assert torch.equal(again.images, drawn.images) and again.texts == drawn.texts


@pytest.mark.slow
@torch.no_grad()
def test_the_transformer_compiles_as_one_graph(pipeline):
    inputs = to_device(transformer_inputs(pipeline))
    model = pipeline.transformer.to(DEVICE)
    expected, found = model(**inputs), torch.compile(model, fullgraph=True)(**inputs)
    for own, same in zip(found, expected, strict=True):
        torch.testing.assert_close(own, same, rtol=1e-4, atol=1e-4)


# Training


@pytest.mark.slow
@pytest.mark.parametrize("mixed_precision", ("no", "bf16"))
@pytest.mark.parametrize("process", ("masked", "gaussian"))
def test_a_step_of_each_script_leaves_a_pipeline_that_loads_and_draws(tmp_path, process, mixed_precision):
    flags = ["--max_train_steps", "1", "--mixed_precision", mixed_precision, "--validation_steps", "1"]
    tokenizer = run_in_process("train_vqvae", tmp_path / "tokenizer", *flags)
    flags += ["--process", process, "--vqvae_model_name_or_path", str(tokenizer)]
    folder = run_in_process("train_dit", tmp_path / "pipeline", *flags)
    assert all(tensor.isfinite().all() for tensor in weights(folder / "transformer").values())
    pipeline = hf_vqdit.VQDiTPipeline.from_pretrained(folder).to(DEVICE)
    output = pipeline(num_inference_steps=2, generator=generator())
    assert output.images[0].size == (32, 32) and isinstance(output.texts[0], str)

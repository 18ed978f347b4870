# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the pipeline give to it, and what they watch."""

import accelerate
import numpy as np
import PIL.Image
import torch
from seeded import generator

PROMPT = "a small red circle on a white background"


def picture(seed=0, size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def rectangle(top, left, bottom, right, size=(32, 32)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    return PIL.Image.fromarray(mask)


LEFT_HALF = rectangle(0, 0, 32, 16)


def offload_models(pipeline):
    """Each part on the accelerator while it is at work."""
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_layers(pipeline):
    """What `enable_sequential_cpu_offload` does, which refuses a CPU: outside its own call a layer has no weights."""
    for part in (pipeline.vqvae, pipeline.transformer):
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)


OFFLOADS = (offload_models, offload_layers)


def watch_transformer(pipeline):
    """The inputs of every call of the transformer from now on."""
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


def assert_same_when_offloaded(pipeline, offload, modes, codes_of):
    """Codes of each mode, and pixels and captions of a joint sample, are the same before and after `offload`."""
    before = [codes_of(pipeline, **given) for given in modes]
    drawn = pipeline(generator=generator(), output_type="pt", num_inference_steps=2)  # pixels and captions, too
    offload(pipeline)
    again = pipeline(generator=generator(), output_type="pt", num_inference_steps=2)
    assert torch.equal(again.images, drawn.images) and again.texts == drawn.texts
    for given, expected in zip(modes, before, strict=True):
        for codes, same in zip(codes_of(pipeline, **given), expected, strict=True):
            assert (codes is None and same is None) or torch.equal(codes, same)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the pipeline give to it, and what they watch."""

import numpy as np
import PIL.Image

PROMPT = "a small red circle on a white background"


def picture(seed=0, size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def rectangle(top, left, bottom, right, size=(32, 32)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[top:bottom, left:right] = 255
    return PIL.Image.fromarray(mask)


LEFT_HALF = rectangle(0, 0, 32, 16)


def watch_transformer(pipeline):
    """The inputs of every call of the transformer from now on."""
    calls = []
    pipeline.transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Blank rectangles in the tokenizer's training pictures, such as inpainting will leave."""

from collections.abc import Sequence

import torch


def blank_rectangles(
    pixel_values: torch.Tensor, probability: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Sets a random rectangle of some of the pictures to 0, which is what a pixel to be inpainted is set to.

    The tokenizer is trained to give back what it sees, blanks included, so that the codes beside a blank stay good.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pictures.
        probability (`float`): How likely a picture gets a rectangle, its sides uniform in 1..H and 1..W.
        generators (`Sequence[torch.Generator]`): One for each picture, on the CPU.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, H, W)`: New pictures.
    """
    height, width = pixel_values.shape[2:]
    blanked = pixel_values.clone()
    for picture, generator in zip(blanked, generators, strict=True):
        chance, u_height, u_width, u_top, u_left = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        if chance < probability:
            rows, columns = 1 + int(u_height * height), 1 + int(u_width * width)
            top, left = int(u_top * (height - rows + 1)), int(u_left * (width - columns + 1))
            picture[:, top : top + rows, left : left + columns] = 0
    return blanked

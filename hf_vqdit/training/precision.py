# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What `mixed_precision: auto` is on this machine."""

import logging
import time

import torch

logger = logging.getLogger(__name__)


def choose_precision(device: torch.device) -> str:
    """`"bf16"` where the processor is fast at it, else `"no"`.

    On a CPU bfloat16 can be several times faster than float32 or a hundred times slower: one matrix product of each
    is timed.

    Args:
        device (`torch.device`): Where training will run.

    Returns:
        `str`: A value for accelerate's `mixed_precision`.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type != "cpu":
        return "no"
    gflops = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        gflops[dtype] = 2 * len(matrix) ** 3 / min(times) / 1e9
    # Twice as fast at least: the casts to and fro cost something too.
    choice = "bf16" if gflops[torch.bfloat16] > 2 * gflops[torch.float32] else "no"
    logger.info("mixed_precision %s: %.0f GFLOP/s in float32, %.0f in bfloat16", choice, *gflops.values())
    return choice

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the scheduler go through."""

import math

SCHEDULES = ("cosine", "linear", "square", "arccos")
ORDERS = ("ancestral", "confidence", "entropy", "random", "halton")
COUNT_ORDERS = ORDERS[1:]
REFERENCE_MASK_RATE = {
    "linear": lambda t: t,
    "cosine": lambda t: math.sin(math.pi * t / 2),
    "square": lambda t: t * (2 - t),
    "arccos": lambda t: 2 / math.pi * math.acos(1 - t),
}

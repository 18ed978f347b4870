# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The corruption of codes and the sampling step that undoes it."""

from .scheduling_masked_diffusion import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput

__all__ = ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput"]

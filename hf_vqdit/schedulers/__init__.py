# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The corruption of codes and the sampling step that undoes it; noise-control sequences as betas."""

from .noise_control import betas_from_noise_control
from .scheduling_masked_diffusion import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput

__all__ = ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput", "betas_from_noise_control"]

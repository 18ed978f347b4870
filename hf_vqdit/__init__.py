# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A multimodal VQ-VAE and one diffusion transformer over its codes: image-text pairs in, a generator out.

Importing it registers its classes, so that `DiffusionPipeline.from_pretrained` finds them.
"""

from diffusers import ModelMixin, SchedulerMixin  # diffusers looks the base classes of our components up here

from . import hub
from .hub import save_pipeline
from .models.autoencoder_vqvae import MultimodalVQVAE
from .models.transformer_vqdit import VQDiTModel
from .pipelines.pipeline_vqdit import VQDiTPipeline, VQDiTPipelineOutput
from .registration import register
from .schedulers.noise_control import betas_from_noise_control
from .schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

__version__ = "0.1.0"

__all__ = [
    "MaskedDiffusionScheduler",
    "ModelMixin",
    "MultimodalVQVAE",
    "SchedulerMixin",
    "VQDiTModel",
    "VQDiTPipeline",
    "VQDiTPipelineOutput",
    "betas_from_noise_control",
    "hub",
    "save_pipeline",
]

register()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""One pipeline for every direction between pictures and captions."""

from .pipeline_vqdit import VQDiTPipeline, VQDiTPipelineOutput

__all__ = ["VQDiTPipeline", "VQDiTPipelineOutput"]

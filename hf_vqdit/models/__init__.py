# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The models: the multimodal VQ-VAE and the Diffusion Transformer over its codes."""

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the scheduler share: a loop that samples, and models to sample from."""

import pytest
import torch


@pytest.fixture(scope="session")
def run():
    def run(scheduler, model, sample, num_steps, generator=None, frozen_mask=None, begin=0):
        """Sample with `model(sample) -> logits`; returns the sample before every step and after the last."""
        scheduler.set_timesteps(num_steps)
        trace = [sample]
        for t in scheduler.timesteps[begin:]:
            output = scheduler.step(model(sample), t, sample, frozen_mask=frozen_mask, generator=generator)
            sample = output.prev_sample
            trace.append(sample)
        return trace

    return run


@pytest.fixture(scope="session")
def oracle():
    return lambda x_0, num_classes: lambda sample: 30.0 * torch.nn.functional.one_hot(x_0, num_classes).float()


@pytest.fixture(scope="session")
def noisy_model():
    def noisy_model(num_classes, seed=0):
        """Logits that depend on the row's own codes alone, different at every position."""
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(num_classes + 1, num_classes, generator=generator, dtype=torch.float64)

        def model(sample):
            rows = sample.flatten(1)
            context = table[rows].cumsum(dim=1)  # (B, L, V)
            return context.view(*sample.shape, num_classes)

        return model

    return noisy_model

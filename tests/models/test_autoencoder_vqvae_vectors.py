# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The vectors of codes, as processes that work on vectors read them."""

import pytest
import torch

from hf_vqdit.training.latents import measure_latents


def training_batches(num_batches=4, batch_size=8):
    generator = torch.Generator().manual_seed(0)
    is_there = torch.ones(batch_size, dtype=torch.bool)
    for _ in range(num_batches):
        pixel_values = torch.rand(batch_size, 3, 32, 32, generator=generator) * 2 - 1
        input_ids = torch.randint(5, 300, (batch_size, 16), generator=generator)
        input_ids[:, 12:] = 0
        yield {"pixel_values": pixel_values, "input_ids": input_ids, "has_image": is_there, "has_text": is_there}


def test_over_the_training_data_the_vectors_have_mean_zero_and_variance_one(tiny_pipeline):
    vqvae = tiny_pipeline.vqvae
    measure_latents(vqvae, training_batches())
    vectors = {"image": [], "text": []}
    for batch in training_batches():
        codes = vqvae.encode(image=batch["pixel_values"], text=batch["input_ids"])
        vectors["image"].append(vqvae.normalized_codebook("image")[codes.image_codes].flatten(0, -2))
        text_codes = codes.text_codes[codes.text_codes != vqvae.text_pad_id]
        vectors["text"].append(vqvae.normalized_codebook("text")[text_codes])
    for name, size in (("image", 32), ("text", 48)):
        assert vqvae.normalized_codebook(name).shape == (size, 4)
        all_vectors = torch.cat(vectors[name])
        torch.testing.assert_close(all_vectors.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(all_vectors.var(dim=0, unbiased=False), torch.ones(4), rtol=0, atol=1e-5)


def test_vectors_that_were_not_measured_are_refused_with_the_remedy(tiny_pipeline):
    with pytest.raises(ValueError, match="`image_latents_std`.*must have been measured.*measure_latents"):
        tiny_pipeline.vqvae.normalized_codebook("image")


def test_a_modality_without_a_codebook_is_refused(tiny_pipeline):
    vqvae = type(tiny_pipeline.vqvae)(image_codebook_size=None, text_codec="identity", vocab_size=400)
    for modality in ("image", "text"):
        with pytest.raises(ValueError, match=f"no codebook for the modality '{modality}'"):
            vqvae.normalized_codebook(modality)

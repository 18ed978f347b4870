# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer's loss against plain loops, and that a row's weight depends on the row alone."""

import math

import pytest
import torch

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAEOutput
from hf_vqdit.training.losses import TOKENIZER_LOSS_WEIGHTS, tokenizer_losses, weighted_mean

PAD = 0


def make_batch(num_rows: int = 4, seed: int = 0) -> tuple[MultimodalVQVAEOutput, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 7, (num_rows, 6), generator=generator)
    for row in range(num_rows):
        input_ids[row, 2 + row :] = PAD  # captions of 2, 3, 4, ... tokens
    output = MultimodalVQVAEOutput(
        image=torch.randn(num_rows, 3, 4, 4, generator=generator),
        text_logits=torch.randn(num_rows, 6, 7, generator=generator),
        image_commitment_loss=torch.rand(num_rows, generator=generator),
        text_commitment_loss=torch.rand(num_rows, generator=generator),
    )
    pixel_values = torch.randn(num_rows, 3, 4, 4, generator=generator)
    has = torch.ones(num_rows, dtype=torch.bool)
    return output, (pixel_values, input_ids, has, has.clone())


def test_terms_equal_a_plain_loop_in_float64():
    output, batch = make_batch()
    pixel_values, input_ids, _, _ = batch
    terms = tokenizer_losses(output, *batch, pad_token_id=PAD)
    for row in range(4):
        error = (output.image[row].double() - pixel_values[row].double()).flatten().tolist()
        assert terms["image_l1"][row].item() == pytest.approx(sum(map(abs, error)) / len(error), rel=1e-5)
        assert terms["image_l2"][row].item() == pytest.approx(sum(e * e for e in error) / len(error), rel=1e-5)
        losses = []
        for token, logits in zip(input_ids[row].tolist(), output.text_logits[row].double().tolist(), strict=True):
            if token != PAD:
                losses.append(math.log(sum(map(math.exp, logits))) - logits[token])
        assert terms["text_cross_entropy"][row].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_every_term_has_a_default_weight():
    output, batch = make_batch()
    assert set(tokenizer_losses(output, *batch, pad_token_id=PAD)) == set(TOKENIZER_LOSS_WEIGHTS)


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts():
    output, batch = make_batch()
    whole = weighted_mean(tokenizer_losses(output, *batch, pad_token_id=PAD), TOKENIZER_LOSS_WEIGHTS)
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = MultimodalVQVAEOutput(**{name: value[rows] for name, value in output.items()})
        terms = tokenizer_losses(part, *(value[rows] for value in batch), pad_token_id=PAD)
        parts.append(weighted_mean(terms, TOKENIZER_LOSS_WEIGHTS))
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_padding_and_missing_sides_carry_no_loss_and_no_gradient():
    output, (pixel_values, input_ids, has_image, has_text) = make_batch()
    has_image[1], has_text[2] = False, False
    output.image.requires_grad_(True)
    output.text_logits.requires_grad_(True)
    terms = tokenizer_losses(output, pixel_values, input_ids, has_image, has_text, pad_token_id=PAD)
    weighted_mean(terms, TOKENIZER_LOSS_WEIGHTS).backward()
    assert all(terms[name][1] == 0 for name in terms if name.startswith("image"))
    assert all(terms[name][2] == 0 for name in terms if name.startswith("text"))
    assert output.image.grad[1].abs().max() == 0 and output.image.grad[0].abs().min() > 0
    assert output.text_logits.grad[2].abs().max() == 0
    assert output.text_logits.grad[input_ids == PAD].abs().max() == 0
    assert output.text_logits.grad[0, :2].abs().min() > 0


def test_a_modality_that_is_left_out_has_no_terms():
    output, batch = make_batch()
    text_alone = MultimodalVQVAEOutput(
        text_logits=output.text_logits, text_commitment_loss=output.text_commitment_loss
    )
    assert set(tokenizer_losses(text_alone, *batch, pad_token_id=PAD)) == {"text_cross_entropy", "text_commitment"}

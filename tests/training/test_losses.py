# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer's loss against plain loops, and that a row's weight depends on the row alone."""

import math

import pytest
import torch

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAEOutput, TokenTransitions
from hf_vqdit.training.losses import TOKENIZER_LOSS_WEIGHTS, contrastive_loss, ramp, tokenizer_losses, weighted_mean
from hf_vqdit.training.transitions import crf_loss

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
        image_embeds=torch.nn.functional.normalize(torch.randn(num_rows, 5, generator=generator)),
        text_embeds=torch.nn.functional.normalize(torch.randn(num_rows, 5, generator=generator)),
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


def difference(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (image - target).flatten(1).mean(dim=1)


def patches(image: torch.Tensor) -> torch.Tensor:
    return image.flatten(2).mean(dim=1)  # a logit for each pixel


def test_every_term_has_a_default_weight():
    output, batch = make_batch()
    networks = {"perceptual": difference, "critic": patches, "transitions": TokenTransitions(7, 2, (1, PAD))}
    terms = tokenizer_losses(output, *batch, pad_token_id=PAD, **networks)
    assert set(terms) == set(TOKENIZER_LOSS_WEIGHTS)
    expected = crf_loss(networks["transitions"], output.text_logits, batch[1], PAD)
    torch.testing.assert_close(terms["text_crf"], expected)


def test_the_networks_terms_are_those_of_the_pictures():
    output, batch = make_batch()
    terms = tokenizer_losses(output, *batch, pad_token_id=PAD, perceptual=difference, critic=patches)
    torch.testing.assert_close(terms["image_perceptual"], difference(output.image, batch[0]))
    torch.testing.assert_close(terms["image_adversarial"], -output.image.flatten(1).mean(dim=1))


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts():
    output, batch = make_batch()
    # The contrastive term, whose wrong answers are the other rows, has no weight by default
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
    output.image_embeds.requires_grad_(True)
    batch = (pixel_values, input_ids, has_image, has_text)
    terms = tokenizer_losses(output, *batch, pad_token_id=PAD, perceptual=difference, critic=patches)
    weighted_mean(terms, dict.fromkeys(TOKENIZER_LOSS_WEIGHTS, 1.0)).backward()
    assert all(terms[name][1] == 0 for name in terms if name.startswith(("image", "alignment")))
    assert all(terms[name][2] == 0 for name in terms if name.startswith(("text", "alignment")))
    assert output.image_embeds.grad[1:3].abs().max() == 0 and output.image_embeds.grad[0].abs().min() > 0
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


# Alignment


def embeds(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed)))


def captions(*ids: int) -> torch.LongTensor:
    return torch.tensor(ids).unsqueeze(1).repeat(1, 3)


ALL = torch.ones(4, dtype=torch.bool)


def test_without_any_knowledge_the_contrastive_loss_is_the_log_of_the_batch():
    same = embeds(1).repeat(4, 1)
    losses = contrastive_loss(same, same, captions(1, 2, 3, 4), ALL)
    torch.testing.assert_close(losses, torch.full((4,), math.log(4)))


def test_the_contrastive_loss_falls_as_pairs_come_together():
    image, ids = embeds(4), captions(1, 2, 3, 4)
    losses = [contrastive_loss(image, text, ids, ALL).mean() for text in (embeds(4, seed=1), image)]
    assert losses[1] < 0.1 * losses[0]


def test_equal_captions_are_no_wrong_answers():
    image, text = embeds(4), embeds(4, seed=1)
    losses = contrastive_loss(image, text, captions(1, 1, 2, 3), ALL)
    logits = image.double() @ text.double().T / 0.07
    ways = []
    for own in (logits, logits.T):  # row 0 without answer 1, row 1 without answer 0
        ways.append(torch.stack([own[0, [0, 2, 3]].logsumexp(0) - own[0, 0], own[1, 1:].logsumexp(0) - own[1, 1]]))
    torch.testing.assert_close(losses[:2], (sum(ways) / 2).float(), atol=1e-5, rtol=1e-5)
    everything_equal = contrastive_loss(image, text, captions(1, 1, 1, 1), ALL)
    torch.testing.assert_close(everything_equal, torch.zeros(4))


def test_a_pair_that_is_not_whole_is_neither_question_nor_answer():
    image, text, ids = embeds(4), embeds(4, seed=1), captions(1, 2, 3, 4)
    has_pair = torch.tensor([True, True, True, False])
    losses = contrastive_loss(image, text, ids, has_pair)
    torch.testing.assert_close(losses[:3], contrastive_loss(image[:3], text[:3], ids[:3], ALL[:3]))
    assert losses[3] == 0


def test_the_order_of_the_pairs_does_not_matter():
    image, text, ids = embeds(4), embeds(4, seed=1), captions(1, 1, 2, 3)
    order = torch.tensor([2, 0, 3, 1])
    losses = contrastive_loss(image, text, ids, ALL)
    torch.testing.assert_close(contrastive_loss(image[order], text[order], ids[order], ALL), losses[order])


def test_a_ramp_rises_from_nothing_to_the_whole():
    assert [ramp(step, start_step=2, num_steps=4) for step in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(step, start_step=2, num_steps=0) for step in range(4)] == [0, 0, 1, 1]

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Likelihoods of captions under logits and transitions, against all sequences there are; transitions from counts."""

import itertools

import pytest
import torch
from vqvae_inputs import EOS, PAD, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import TokenTransitions
from hf_vqdit.training.transitions import bigram_scores, crf_loss, fit_bigram_transitions

VOCABULARY, LENGTH = 4, 5


def make_transitions(scale: float = 1.0) -> TokenTransitions:
    generator = torch.Generator().manual_seed(0)
    transitions = TokenTransitions(VOCABULARY, 3, (EOS, PAD))
    for parameter in transitions.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return transitions


def make_logits(seed: int, batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def all_sequences(length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(VOCABULARY), repeat=length)))


def test_the_probabilities_of_all_sequences_add_up_to_one():
    sequences = all_sequences(LENGTH)
    transitions, logits = make_transitions(), make_logits(0).expand(len(sequences), -1, -1)
    losses = crf_loss(transitions, logits, sequences, pad_token_id=VOCABULARY, beam_size=VOCABULARY)  # none is padding
    assert (-losses * LENGTH).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_loss_is_the_negative_log_share_of_the_caption_among_all_sequences_of_its_length():
    transitions, logits = make_transitions(), make_logits(1, batch_size=4)
    matrix = transitions.source.double() @ transitions.target.double().T
    text = torch.tensor([[3, 2, 2, 3, 1], [2, 3, 1, PAD, PAD], [1, PAD, PAD, PAD, PAD], [PAD] * 5])
    losses = crf_loss(transitions, logits, text, PAD, beam_size=VOCABULARY)
    for row, length in enumerate((5, 3, 1)):
        scores = []
        for sequence in [*all_sequences(length).tolist(), text[row, :length].tolist()]:
            emission = sum(logits[row, i, token].item() for i, token in enumerate(sequence))
            scores.append(emission + sum(matrix[i, j].item() for i, j in itertools.pairwise(sequence)))
        scores = torch.tensor(scores, dtype=torch.float64)
        expected = (scores[:-1].logsumexp(0) - scores[-1]) / length
        assert losses[row].item() == pytest.approx(expected.item(), abs=1e-4)
    assert losses[3] == 0  # no caption


def test_padding_carries_no_gradient():
    transitions, logits = make_transitions(), make_logits(1, batch_size=2).requires_grad_()
    text = torch.tensor([[2, 3, 1, PAD, PAD], [PAD] * 5])
    crf_loss(transitions, logits, text, PAD, beam_size=3).sum().backward()
    assert logits.grad.isfinite().all() and transitions.source.grad.isfinite().all()
    assert (logits.grad[text == PAD] == 0).all() and logits.grad[0, :3].abs().amin(dim=0).max() > 0


def test_without_transitions_it_is_the_cross_entropy():
    logits, text = make_logits(0, 3), torch.tensor([[3, 2, 2, 3, 1]] * 3)
    losses = crf_loss(TokenTransitions(VOCABULARY, 3, (EOS, PAD)), logits, text, PAD, beam_size=VOCABULARY)
    expected = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), text, reduction="none").mean(dim=1)
    torch.testing.assert_close(losses, expected)


def test_a_smaller_beam_gives_a_smaller_loss_and_always_holds_the_caption():
    transitions, logits = make_transitions(), make_logits(0, 8)
    text = logits.argmin(dim=-1)  # the unlikeliest tokens
    losses = [crf_loss(transitions, logits, text, PAD, beam_size=size) for size in (1, 2, 3, 4)]
    for smaller, larger in itertools.pairwise(losses):
        assert (smaller <= larger + 1e-6).all()
    torch.testing.assert_close(losses[0], torch.zeros(8))  # a beam of the caption alone


def test_the_loss_trains_both_factors_from_where_they_start_and_the_logits():
    transitions = TokenTransitions(VOCABULARY, 3, (EOS, PAD))
    optimizer = torch.optim.Adam(transitions.parameters(), lr=0.1)
    text = torch.tensor([[2, 3, 2, 3, 2]])
    logits = torch.zeros(1, LENGTH, VOCABULARY, requires_grad=True)
    losses = []
    for _ in range(60):
        loss = crf_loss(transitions, logits, text, PAD).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0] and logits.grad.abs().max() > 0
    assert torch.equal(transitions(logits.detach() + 0.01 * torch.tensor([0.0, 0, 1, 0]), 4), text)


# From counts


def test_bigram_scores_are_what_neighbours_gain_over_chance():
    text = torch.tensor([[2, 3, 1, 0], [2, 3, 2, 3]]).repeat(5000, 1)
    scores = bigram_scores(text, VOCABULARY, PAD)
    # After 2 comes always 3, which is 3 of 5 second tokens; after 3, 1 and 2 in equal shares, each 1 of 5.
    torch.testing.assert_close(scores[2, 3].exp(), torch.tensor(5 / 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(scores[3, 1:3].exp(), torch.full((2,), 2.5), atol=5e-3, rtol=0)
    assert scores[2, 2] < -5 and torch.equal(scores[PAD], torch.zeros(VOCABULARY))
    assert scores.isfinite().all()


def chain_captions(number: int) -> torch.Tensor:
    """Captions in which each token is followed by the next one, of a random start."""
    start = torch.randint(3, 40, (number, 1), generator=torch.Generator().manual_seed(0))
    return (start + torch.arange(8) - 3) % 37 + 3


def batches_of(text: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": part, "has_text": torch.ones(len(part), dtype=torch.bool)} for part in text.split(16)]


def test_transitions_from_counts_make_an_unsure_codec_read_better():
    text = chain_captions(128)
    vqvae = tiny_vqvae(text_transition_rank=40)  # untrained: its logits say nothing
    assert fit_bigram_transitions(vqvae, batches_of(text)) == 1.0
    logits = vqvae.decode(text_codes=vqvae.encode(text=text).text_codes).text_logits.detach()
    logits += 2.0 * torch.nn.functional.one_hot(text, 40)  # a hint of the truth
    likeliest, best = (
        (read == text).all(dim=1).float().mean() for read in (logits.argmax(-1), vqvae.read_text(logits))
    )
    assert likeliest < 0.5 and best > 0.9


def test_transitions_are_left_at_nothing_where_they_do_not_help():
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 40, (64, 8), generator=generator)
    text[torch.arange(64) % 4 != 0] = chain_captions(48)  # what is counted is not what is scored
    vqvae = tiny_vqvae(text_transition_rank=8)
    assert fit_bigram_transitions(vqvae, batches_of(text)) == 0.0
    assert (vqvae.text_transitions.target == 0).all()

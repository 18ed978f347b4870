# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The read-out of captions by logits and transitions, against all sequences there are."""

import itertools

import pytest
import torch
from vqvae_inputs import PAD, captions, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, TokenTransitions

VOCABULARY, LENGTH = 4, 5
ALL_SEQUENCES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


def make_transitions(rank: int = 3, scale: float = 1.0, vocab_size: int = VOCABULARY) -> TokenTransitions:
    generator = torch.Generator().manual_seed(0)
    transitions = TokenTransitions(vocab_size, rank, PAD)
    for parameter in transitions.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return transitions.requires_grad_(False)


def make_logits(seed: int, batch_size: int = 6, length: int = LENGTH, vocab_size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(batch_size, length, vocab_size, generator=torch.Generator().manual_seed(seed))


def scores_of(transitions: TokenTransitions, logits: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """Of each sequence (N, S) under each row of logits (B, S, V): (B, N), pair by pair."""
    matrix = transitions.source.double() @ transitions.target.double().T
    matrix[PAD], matrix[:, PAD] = 0, 0
    emissions = logits.double()[:, torch.arange(sequences.shape[1]), sequences].sum(dim=-1)
    return emissions + matrix[sequences[:, :-1], sequences[:, 1:]].sum(dim=-1)


@pytest.mark.parametrize("seed", range(3))
def test_viterbi_finds_the_best_of_all_sequences(seed):
    transitions, logits = make_transitions(), make_logits(seed)
    best = ALL_SEQUENCES[scores_of(transitions, logits, ALL_SEQUENCES).argmax(dim=1)]
    assert torch.equal(transitions(logits, beam_size=VOCABULARY), best)
    assert not torch.equal(best, logits.argmax(dim=-1))  # transitions matter here
    assert torch.equal(transitions(logits + make_logits(9, 6, LENGTH, 1), VOCABULARY), best)  # same for all tokens


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_a_beam_finds_the_best_sequence_of_its_candidates(beam_size):
    transitions, logits = make_transitions(scale=0.5), make_logits(0)
    found = transitions(logits, beam_size)
    kept = logits.topk(beam_size).indices
    for row in range(len(logits)):
        sequences = torch.tensor(list(itertools.product(*kept[row].tolist())))
        best = sequences[scores_of(transitions, logits[row : row + 1], sequences)[0].argmax()]
        assert torch.equal(found[row], best)


def test_without_scores_the_read_out_is_the_likeliest_token_of_each_position():
    logits = make_logits(0, vocab_size=90)
    assert torch.equal(TokenTransitions(90, 8, PAD)(logits, beam_size=64), logits.argmax(dim=-1))


def test_tokens_that_may_not_be_read_are_not_read():
    transitions, logits = make_transitions(), make_logits(0)
    logits[:, 1] = logits[:, 1].index_fill(-1, torch.tensor([0, 1, 3]), -torch.inf)  # only token 2
    logits[:, 3, 1] = -torch.inf
    read = transitions(logits, beam_size=VOCABULARY)
    assert (read[:, 1] == 2).all() and (read[:, 3] != 1).all()
    allowed = ALL_SEQUENCES[(ALL_SEQUENCES[:, 1] == 2) & (ALL_SEQUENCES[:, 3] != 1)]
    assert torch.equal(read, allowed[scores_of(transitions, logits, allowed).argmax(dim=1)])


def test_a_single_token_is_read_too():
    logits = make_logits(0, length=1)
    assert torch.equal(make_transitions()(logits, 2), logits.argmax(dim=-1))


def test_a_tokenizer_reads_by_its_transitions_and_keeps_padding(tmp_path):
    vqvae = tiny_vqvae(text_transition_rank=4, text_downsample_factor=2)
    text = captions(3, 6, [6, 3, 2])
    logits = vqvae.decode(text_codes=vqvae.encode(text=text).text_codes).text_logits
    assert torch.equal(vqvae.read_text(logits), logits.argmax(dim=-1))  # they start at 0
    torch.nn.init.normal_(vqvae.text_transitions.target)
    read = vqvae.read_text(logits)
    assert not torch.equal(read, logits.argmax(dim=-1))
    assert (read[1, 4:] == PAD).all() and (read[2, 2:] == PAD).all()
    vqvae.save_pretrained(tmp_path)
    assert torch.equal(MultimodalVQVAE.from_pretrained(tmp_path).read_text(logits), read)


def test_a_tokenizer_without_transitions_reads_the_likeliest_tokens():
    logits = make_logits(0, vocab_size=40)
    assert torch.equal(tiny_vqvae().read_text(logits), logits.argmax(dim=-1))
    with pytest.raises(ValueError, match="`text_transition_rank` needs `text_codec` = 'vq'"):
        tiny_vqvae(text_codec="identity", text_transition_rank=4)

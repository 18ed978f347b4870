# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The read-out of captions by logits and transitions, against all sequences there are."""

import itertools

import pytest
import torch
from vqvae_inputs import EOS, PAD, captions, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, TokenTransitions

ENDS = (EOS, PAD)
VOCABULARY, LENGTH = 5, 5
ALL_TOKENS = torch.arange(VOCABULARY).expand(LENGTH, -1)


def make_transitions(rank: int = 3, scale: float = 1.0, vocab_size: int = VOCABULARY) -> TokenTransitions:
    generator = torch.Generator().manual_seed(0)
    transitions = TokenTransitions(vocab_size, rank, ENDS)
    for parameter in transitions.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return transitions.requires_grad_(False)


def make_logits(seed: int, batch_size: int = 6, length: int = LENGTH, vocab_size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(batch_size, length, vocab_size, generator=torch.Generator().manual_seed(seed))


def length_of(logits: torch.Tensor) -> int:
    """Tokens of one row of logits (S, V) up to the likeliest end, which is one of them."""
    ends = [i for i, token in enumerate(logits.argmax(dim=-1).tolist()) if token in ENDS]
    return ends[0] + 1 if ends else len(logits)


def best_sequence(transitions: TokenTransitions, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of one row of logits (S, V): tried out on all sequences of the tokens (S, k) of each position."""
    length = length_of(logits)
    matrix = transitions.source.double() @ transitions.target.double().T
    sequences = torch.tensor(list(itertools.product(*tokens[:length].tolist())))
    scores = logits.double()[torch.arange(length), sequences].sum(dim=1)
    scores += matrix[sequences[:, :-1], sequences[:, 1:]].sum(dim=1)
    return torch.cat([sequences[scores.argmax()], logits[length:].argmax(dim=-1)])


@pytest.mark.parametrize("seed", range(3))
def test_viterbi_finds_the_best_of_all_sequences(seed):
    transitions, logits = make_transitions(), make_logits(seed, batch_size=12)
    best = torch.stack([best_sequence(transitions, row, ALL_TOKENS) for row in logits])
    assert torch.equal(transitions(logits, beam_size=VOCABULARY), best)
    assert not torch.equal(best, logits.argmax(dim=-1))  # transitions matter here
    assert torch.equal(transitions(logits + make_logits(9, 12, LENGTH, 1), VOCABULARY), best)  # same for all tokens
    assert len({length_of(row) for row in logits}) > 2


@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_a_beam_finds_the_best_sequence_of_its_candidates(beam_size):
    transitions, logits = make_transitions(scale=0.5), make_logits(0)
    best = [best_sequence(transitions, row, row.topk(beam_size).indices) for row in logits]
    assert torch.equal(transitions(logits, beam_size), torch.stack(best))


def test_what_follows_the_end_of_a_text_counts_nothing():
    transitions, logits = make_transitions(), make_logits(0)
    logits[:, :2, ENDS] = -10.0
    logits[:, 2, EOS] = 5.0
    read = transitions(logits, beam_size=VOCABULARY)
    logits[:, 3:] = 10 * make_logits(1)[:, 3:]
    assert torch.equal(transitions(logits, beam_size=VOCABULARY)[:, :3], read[:, :3])
    assert torch.equal(transitions(logits[:, :3], beam_size=VOCABULARY), read[:, :3])


def test_without_scores_the_read_out_is_the_likeliest_token_of_each_position():
    logits = make_logits(0, vocab_size=90)
    assert torch.equal(TokenTransitions(90, 8, ENDS)(logits, beam_size=64), logits.argmax(dim=-1))


def test_tokens_that_may_not_be_read_are_not_read():
    transitions, logits = make_transitions(), make_logits(0)
    logits[:, 1] = logits[:, 1].index_fill(-1, torch.tensor([0, 1, 3, 4]), -torch.inf)  # only token 2
    logits[:, 3, 1] = -torch.inf
    read = transitions(logits, beam_size=VOCABULARY)
    assert (read[:, 1] == 2).all() and (read[:, 3] != 1).all()
    best = [best_sequence(transitions, row, ALL_TOKENS) for row in logits]
    assert torch.equal(read, torch.stack(best))


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

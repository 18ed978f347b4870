# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How the scores of neighbouring tokens are learned: by the likelihood of captions, or from counts of their pairs."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, TokenTransitions

logger = logging.getLogger(__name__)

BEAM_SIZE = 64
SMOOTHING = 1.0  # draws from p(j) that are counted after each token besides those seen
MAX_BIGRAM_VOCABULARY = 16384  # the table of all pairs is built: 1 GiB
STRENGTHS = (0.0, 0.1, 0.3, 1.0)
SCORED_AT_ONCE = 64  # captions


def crf_loss(
    transitions: TokenTransitions,
    text_logits: torch.Tensor,
    input_ids: torch.LongTensor,
    pad_token_id: int,
    beam_size: int = BEAM_SIZE,
) -> torch.Tensor:
    """-log p of captions under the linear chain of logits and transitions (NART-CRF, Sun 2019), row by row.

    The normalizer sums over the sequences of the beam, the caption among them, by the forward algorithm: exact if the
    beam holds the vocabulary, otherwise too small. Sequences are as long as the caption.

    Args:
        transitions (`TokenTransitions`): The scores of neighbouring tokens.
        text_logits (`torch.FloatTensor` of shape `(B, S, vocab_size)`): What the decoder gives.
        input_ids (`torch.LongTensor` of shape `(B, S)`): The captions.
        pad_token_id (`int`): Padding carries no loss: the decoder knows it from the codes.
        beam_size (`int`, *optional*, defaults to 64): Tokens a position in the normalizer.

    Returns:
        `torch.FloatTensor` of shape `(B,)`: Nats a token.
    """
    is_token = input_ids != pad_token_id  # (B, S)
    ranking = text_logits.scatter(-1, input_ids.unsqueeze(-1), torch.inf)  # the caption first
    candidates = ranking.topk(min(beam_size, ranking.shape[-1]), dim=-1).indices
    emissions, scores = transitions.lattice(text_logits, candidates, is_token)
    own = emissions[..., 0].sum(dim=1) + scores[..., 0, 0].sum(dim=1)
    total = emissions[:, 0]  # (B, k): log of the sum over all paths to each candidate
    for position in range(1, emissions.shape[1]):
        total = (total.unsqueeze(2) + scores[:, position - 1]).logsumexp(dim=1) + emissions[:, position]
    return (total.logsumexp(dim=1) - own) / is_token.sum(dim=1).clamp(min=1)


def bigram_scores(input_ids: torch.LongTensor, vocab_size: int, pad_token_id: int) -> torch.Tensor:
    """How much likelier a token is after another than anywhere: log p(j after i) / p(j), `(vocab_size, vocab_size)`.

    Unlike p(j after i) alone it counts nothing twice: how frequent a token is, the logits know. With smoothing, a pair
    (i, j) that was never seen scores next to nothing if i is rare.

    Args:
        input_ids (`torch.LongTensor` of shape `(N, S)`): Captions.
        vocab_size (`int`): Size of the vocabulary.
        pad_token_id (`int`): Padding forms no pairs.

    Returns:
        `torch.FloatTensor` of shape `(vocab_size, vocab_size)`.
    """
    before, after = input_ids[:, :-1].flatten(), input_ids[:, 1:].flatten()
    is_pair = (before != pad_token_id) & (after != pad_token_id)
    pairs = (before * vocab_size + after)[is_pair]
    counts = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size).float()
    share = (counts.sum(dim=0) + 1) / (counts.sum() + vocab_size)  # (V,): p(j), none of them 0
    smoothed = (counts + SMOOTHING * share) / (counts.sum(dim=1, keepdim=True) + SMOOTHING)
    return (smoothed / share).log()


@torch.no_grad()
def fit_bigram_transitions(
    vqvae: MultimodalVQVAE, batches: Iterable[dict[str, Any]], strengths: Sequence[float] = STRENGTHS
) -> float:
    """Sets a model's transitions to scaled bigram scores of training captions, in low rank.

    Logits that look at the whole caption know much of what bigrams know, so the scale is the one under which captions,
    as they come through the codec, are likeliest. At 0 the read-out is the likeliest token of each position.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer; its `text_transitions` are set.
        batches (`Iterable[dict]`): Batches of pairs. Neighbours are counted in three captions of four, scales are
            compared on the fourth.
        strengths (`Sequence[float]`, *optional*, defaults to `(0.0, 0.1, 0.3, 1.0)`): The scales to choose from.

    Returns:
        `float`: The scale.
    """
    captions = torch.cat([batch["input_ids"][batch["has_text"]] for batch in batches])  # (N, S)
    is_scored = torch.arange(len(captions)) % 4 == 0
    transitions, pad_token_id = vqvae.text_transitions, vqvae.config.pad_token_id
    scores = bigram_scores(captions[~is_scored], vqvae.config.vocab_size, pad_token_id)
    source, target = _factorize(scores, transitions.source.shape[1])
    transitions.source.copy_(source)

    totals = torch.zeros(len(strengths))
    for input_ids in captions[is_scored].split(SCORED_AT_ONCE):
        logits = vqvae.decode(text_codes=vqvae.encode(text=input_ids).text_codes).text_logits
        for index, strength in enumerate(strengths):
            transitions.target.copy_(strength * target)
            totals[index] += crf_loss(transitions, logits, input_ids, pad_token_id).sum().cpu()
    strength = strengths[totals.argmin()]
    transitions.target.copy_(strength * target)
    means = ", ".join(
        f"{total:.4g} at {own:g}" for total, own in zip(totals / is_scored.sum(), strengths, strict=True)
    )
    logger.info("Transitions from bigrams: strength %g. Nats a token: %s", strength, means)
    return strength


def _factorize(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors `(V, rank)` of nearly the best approximation of a square matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # it takes no generator
        left, singular, right = torch.svd_lowrank(matrix.cpu(), q=min(rank, len(matrix)), niter=8)
    factors = (x * singular.sqrt() for x in (left, right))
    return tuple(torch.nn.functional.pad(x, (0, rank - len(singular))) for x in factors)

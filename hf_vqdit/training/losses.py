# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The loss of the tokenizer: named terms, one number for each row, and their weighted sum."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAEOutput

# Every term that `tokenizer_losses` can return, with its default weight. A new term is one more entry here and there.
TOKENIZER_LOSS_WEIGHTS = {
    "image_l1": 1.0,
    "image_l2": 1.0,
    "image_commitment": 0.25,  # beta of van den Oord 2017, eq. 3
    "text_cross_entropy": 1.0,
    "text_commitment": 0.25,
}


def tokenizer_losses(
    output: MultimodalVQVAEOutput,
    pixel_values: torch.Tensor,
    input_ids: torch.LongTensor,
    has_image: torch.BoolTensor,
    has_text: torch.BoolTensor,
    pad_token_id: int,
) -> dict[str, torch.Tensor]:
    """The terms of the tokenizer's loss, row by row, in float32.

    A row is divided by its own fixed counts (pixels, or words and end token), never by those of a micro-batch, and a
    missing modality is 0: so the mean over rows is the same however the global batch is cut into micro-batches and
    processes.

    Args:
        output (`MultimodalVQVAEOutput`): What the model returned; a modality may be left out.
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): The pictures that the model was given.
        input_ids (`torch.LongTensor` of shape `(B, S)`): The token ids that it was given.
        has_image (`torch.BoolTensor` of shape `(B,)`): False where the picture is missing.
        has_text (`torch.BoolTensor` of shape `(B,)`): False where the caption is missing.
        pad_token_id (`int`): Padding carries no loss: the decoder knows it from the codes.

    Returns:
        `dict[str, torch.FloatTensor]`: Terms of shape `(B,)`, named as in `TOKENIZER_LOSS_WEIGHTS`.
    """
    terms = {}
    if output.image is not None:
        error = output.image.float() - pixel_values.float()
        image_terms = {
            "image_l1": error.abs().flatten(1).mean(dim=1),
            "image_l2": error.square().flatten(1).mean(dim=1),
            "image_commitment": output.image_commitment_loss.float(),
        }
        terms |= {name: term.where(has_image, 0.0) for name, term in image_terms.items()}
    if output.text_logits is not None:
        is_token = input_ids != pad_token_id  # (B, S)
        losses = F.cross_entropy(output.text_logits.float().movedim(-1, 1), input_ids, reduction="none")  # (B, S)
        text_terms = {
            "text_cross_entropy": (losses * is_token).sum(dim=1) / is_token.sum(dim=1).clamp(min=1),
            "text_commitment": output.text_commitment_loss.float(),
        }
        terms |= {name: term.where(has_text, 0.0) for name, term in text_terms.items()}
    return terms


def weighted_mean(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The loss of a micro-batch: the mean over its rows of the weighted sum of the terms.

    Args:
        terms (`Mapping[str, torch.FloatTensor]`): Terms of shape `(B,)` by name.
        weights (`Mapping[str, float]`): The weight of each.

    Returns:
        `torch.FloatTensor`: A scalar.
    """
    return sum(weights[name] * term for name, term in terms.items()).mean()

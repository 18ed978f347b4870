# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The loss of the tokenizer: named terms, one number for each row, and their weighted sum."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAEOutput, TokenTransitions
from hf_vqdit.training.transitions import crf_loss

# Every term that `tokenizer_losses` can return, with its default weight. A new term is one more entry here and there.
# Those at 0 need something besides: a network to compare by, a discriminator, transitions, embeddings.
TOKENIZER_LOSS_WEIGHTS = {
    "image_l1": 1.0,
    "image_l2": 1.0,
    "image_perceptual": 0.0,
    "image_adversarial": 0.0,
    "image_commitment": 0.25,  # beta of van den Oord 2017, eq. 3
    "text_cross_entropy": 1.0,
    "text_crf": 0.0,
    "text_commitment": 0.25,
    "alignment": 0.0,
}
# What the adversarial term is weighed against.
RECONSTRUCTION_TERMS = ("image_l1", "image_l2", "image_perceptual")
# The modalities without which a term cannot be, of those that are off by default.
TERM_MODALITIES = {
    "image_perceptual": {"image"},
    "image_adversarial": {"image"},
    "text_crf": {"text"},
    "alignment": {"image", "text"},
}
ALIGNMENT_TEMPERATURE = 0.07  # where CLIP starts (Radford 2021)


def tokenizer_losses(
    output: MultimodalVQVAEOutput,
    pixel_values: torch.Tensor,
    input_ids: torch.LongTensor,
    has_image: torch.BoolTensor,
    has_text: torch.BoolTensor,
    pad_token_id: int,
    perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    critic: Callable[[torch.Tensor], torch.Tensor] | None = None,
    transitions: TokenTransitions | None = None,
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
        perceptual (`Callable`, *optional*): Distances `(B,)` of two batches of pictures: a [`PerceptualLoss`].
        critic (`Callable`, *optional*): Logits `(B, patches)` of pictures, high for real: a [`PatchDiscriminator`].
        transitions (`TokenTransitions`, *optional*): The model's, if they are trained.

    Returns:
        `dict[str, torch.FloatTensor]`: Terms of shape `(B,)`, named as in `TOKENIZER_LOSS_WEIGHTS`. `alignment` is
        there for a model with embeddings of both modalities.
    """
    terms = {}
    if output.image is not None:
        error = output.image.float() - pixel_values.float()
        image_terms = {
            "image_l1": error.abs().flatten(1).mean(dim=1),
            "image_l2": error.square().flatten(1).mean(dim=1),
            "image_commitment": output.image_commitment_loss.float(),
        }
        if perceptual is not None:
            image_terms["image_perceptual"] = perceptual(output.image, pixel_values)
        if critic is not None:
            image_terms["image_adversarial"] = -critic(output.image).mean(dim=1)  # hinge (Lim & Ye 2017)
        terms |= {name: term.where(has_image, 0.0) for name, term in image_terms.items()}
    if output.text_logits is not None:
        is_token = input_ids != pad_token_id  # (B, S)
        losses = F.cross_entropy(output.text_logits.float().movedim(-1, 1), input_ids, reduction="none")  # (B, S)
        text_terms = {
            "text_cross_entropy": (losses * is_token).sum(dim=1) / is_token.sum(dim=1).clamp(min=1),
            "text_commitment": output.text_commitment_loss.float(),
        }
        if transitions is not None:
            text_terms["text_crf"] = crf_loss(transitions, output.text_logits, input_ids, pad_token_id)
        terms |= {name: term.where(has_text, 0.0) for name, term in text_terms.items()}
    if output.image_embeds is not None and output.text_embeds is not None:
        has_pair = has_image & has_text
        terms["alignment"] = contrastive_loss(output.image_embeds, output.text_embeds, input_ids, has_pair)
    return terms


def contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, input_ids: torch.LongTensor, has_pair: torch.BoolTensor
) -> torch.Tensor:
    """Which caption belongs to which picture, and the reverse: InfoNCE both ways (CLIP, Radford 2021), row by row.

    The others of the micro-batch are the wrong answers, without those whose caption is the same, which are right too.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(B, D)`): Of unit length.
        text_embeds (`torch.FloatTensor` of shape `(B, D)`): Of unit length.
        input_ids (`torch.LongTensor` of shape `(B, S)`): The captions.
        has_pair (`torch.BoolTensor` of shape `(B,)`): False where either side is missing: no answer, no loss.

    Returns:
        `torch.FloatTensor` of shape `(B,)`: Nats, the mean of both ways.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = image_embeds.float() @ text_embeds.float().T / ALIGNMENT_TEMPERATURE  # (B, B)
    answers = torch.arange(len(logits), device=logits.device)
    is_same = (input_ids.unsqueeze(0) == input_ids.unsqueeze(1)).all(dim=-1)
    is_own = answers.unsqueeze(0) == answers.unsqueeze(1)
    is_left_out = (is_same | ~has_pair) & ~is_own  # answer j of question i
    both_ways = [
        F.cross_entropy(own.masked_fill(is_left_out, -torch.inf), answers, reduction="none")
        for own in (logits, logits.T)
    ]
    return torch.stack(both_ways).mean(dim=0).where(has_pair, 0.0)


def weighted_mean(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The loss of a micro-batch: the mean over its rows of the weighted sum of the terms.

    Args:
        terms (`Mapping[str, torch.FloatTensor]`): Terms of shape `(B,)` by name.
        weights (`Mapping[str, float]`): The weight of each.

    Returns:
        `torch.FloatTensor`: A scalar.
    """
    return sum(weights[name] * term for name, term in terms.items()).mean()


def check_loss_weights(
    weights: Mapping[str, float],
    modalities: set[str],
    perceptual_model: str | None,
    discriminator_kwargs: Mapping[str, Any],
) -> None:
    """Sees to it that a term and what it needs go together: neither is silently left out.

    Args:
        weights (`Mapping[str, float]`): The weights of all terms.
        modalities (`set[str]`): Those that are trained, `"image"` and `"text"`.
        perceptual_model (`str`, *optional*): The network named to compare pictures by.
        discriminator_kwargs (`Mapping[str, Any]`): Settings of the discriminator.

    Raises:
        ValueError: If one is given without the other, or a modality of a term is not trained.
    """
    if (weights["image_perceptual"] > 0) != (perceptual_model is not None):
        raise ValueError(
            f"`loss_weights` has image_perceptual {weights['image_perceptual']} and `perceptual_model_name_or_path` "
            f"is {perceptual_model!r}: give both or neither. No network is fetched unasked."
        )
    if discriminator_kwargs and weights["image_adversarial"] <= 0:
        raise ValueError("`discriminator_kwargs` have no effect without a `loss_weights` of image_adversarial.")
    for name, needed in TERM_MODALITIES.items():
        if weights[name] > 0 and not needed <= modalities:
            raise ValueError(
                f"`loss_weights` has {name} {weights[name]}, which needs {sorted(needed)}; `train_modalities` are "
                f"{sorted(modalities)}."
            )


def ramp(step: int, start_step: int, num_steps: int) -> float:
    """A weight after `step` optimizer steps: 0 up to `start_step`, then rising over `num_steps` to 1."""
    return min(max((step - start_step + 1) / max(num_steps, 1), 0.0), 1.0)

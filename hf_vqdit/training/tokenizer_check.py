# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Go or no-go: whether a tokenizer is good enough for a transformer to be trained on its codes."""

import logging
from collections.abc import Mapping

import torch

from hf_vqdit.data import PairDataset, collate_pairs
from hf_vqdit.evaluation.metrics import tokenizer_figures
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

logger = logging.getLogger(__name__)

NUM_CHECKED_PAIRS = 256

# The least that is asked for, by the keys of `tokenizer_figures`. They catch a tokenizer that failed, not a mediocre
# one: a picture of its mean color has 10 to 14 dB, a collapsed codebook a perplexity near 1.
TOKENIZER_FLOORS = {"image_psnr_db": 16.0, "image_codebook_perplexity": 8.0, "text_reconstruction_exact": 0.5}
_REMEDIES = {
    "image_psnr_db": "train the tokenizer longer, or give it a smaller f, more codes or more channels",
    "image_codebook_perplexity": (
        "most pictures share few codes: train with another seed, a larger `quantizer_start_step` or restarts "
        '(`codebook_kwargs` {"restart_every": 25})'
    ),
    "text_reconstruction_exact": (
        "train longer, or make captions cheaper: a smaller `text_downsample_factor`, a larger `text_num_groups`"
    ),
}


def check_tokenizer(
    vqvae: MultimodalVQVAE, held_out: PairDataset, floors: Mapping[str, float] = TOKENIZER_FLOORS
) -> dict[str, float]:
    """Measures a tokenizer on held-out pairs before hours go into a transformer: what it loses, nothing brings back.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        held_out (`PairDataset`): Held-out pairs; up to 256 of them are read, evenly spread.
        floors (`Mapping[str, float]`, *optional*): The least of each figure, by default `TOKENIZER_FLOORS`; 0 asks for
            nothing.

    Returns:
        `dict[str, float]`: As of [`~hf_vqdit.evaluation.metrics.tokenizer_figures`].

    Raises:
        ValueError: If a figure is below its floor.
    """
    rows = range(0, len(held_out), max(1, len(held_out) // NUM_CHECKED_PAIRS))[:NUM_CHECKED_PAIRS]
    batches = (held_out.__getitems__([(0, row) for row in rows[i : i + 32]]) for i in range(0, len(rows), 32))
    on_device = (
        {name: value.to(vqvae.device) for name, value in collate_pairs(batch).items() if torch.is_tensor(value)}
        for batch in batches
    )
    figures = tokenizer_figures(vqvae, on_device, held_out.reader.tokenizer.pad_token_id)
    measured = ", ".join(
        f"{name} {value:.4g}" + (f" (floor {floors[name]:.4g})" if name in floors else "")
        for name, value in figures.items()
    )
    failed = [
        f"`{name}` is {figures[name]:.4g} where {floor:.4g} is the least ({_REMEDIES[name]})"
        for name, floor in floors.items()
        if name in figures and not figures[name] >= floor  # NaN fails too
    ]
    if failed:
        raise ValueError(
            f"No go: the tokenizer loses too much of held-out pairs. {'; '.join(failed)}. Measured: {measured}. "
            "To go on all the same, lower the floors: `tokenizer_floors`."
        )
    logger.info("The tokenizer is a go, on held-out pairs: %s. How good it is, its samples tell.", measured)
    return figures

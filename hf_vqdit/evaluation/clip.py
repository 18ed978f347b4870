# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""CLIPScore: how well pictures and captions fit, by a CLIP that somebody else trained."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from .grids import to_pictures


class ClipScorer:
    """Scores pairs of pictures and captions (CLIPScore, Hessel 2021).

    torchmetrics has this score for some models by name; here any model of transformers with two towers will do (CLIP,
    SigLIP, Chinese CLIP), from a folder too.

    Args:
        name_or_path (`str`): A folder or a name on the Hub.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where the model runs.

    Raises:
        ValueError: If there is no such model with its image processor and tokenizer, or it lacks weights.
    """

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        try:
            self.processor = AutoImageProcessor.from_pretrained(name_or_path)
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            model, loading = AutoModel.from_pretrained(name_or_path, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No CLIP can be loaded from {name_or_path!r}: {error}. Name a folder or a repository that holds one "
                "with its image processor and tokenizer."
            ) from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(
                f"{name_or_path!r} is a {type(model).__name__}, which has no features of both pictures and words. "
                "Name a CLIP."
            )
        if loading["missing_keys"]:
            raise ValueError(f"{name_or_path!r} has no weights for {sorted(loading['missing_keys'])[:3]}.")
        self.model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def score(self, pixel_values: torch.Tensor, captions: Sequence[str], batch_size: int = 125) -> float:
        """The mean score of pairs: 100 max(cos, 0), as in torchmetrics; the paper has 2.5 in place of 100.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1].
            captions (`Sequence[str]`): The caption of each. Those that are too long for the model lose their end.
            batch_size (`int`, defaults to 125): Pairs at a time.

        Returns:
            `float`: 0 to 100.
        """
        scores = []
        for start in tqdm(range(0, len(captions), batch_size), desc="CLIPScore", leave=False):
            images = self._embed_pictures(pixel_values[start : start + batch_size])  # (B, D)
            texts = self._embed_captions(captions[start : start + batch_size])  # (B, D)
            scores.append(100 * F.cosine_similarity(images, texts).clamp(min=0))
        return torch.cat(scores).mean().item()

    def _embed_pictures(self, pixel_values: torch.Tensor) -> torch.Tensor:
        inputs = self.processor(images=to_pictures(pixel_values), return_tensors="pt")["pixel_values"]
        inputs = inputs.to(self.model.device, self.model.dtype)
        return self.model.get_image_features(pixel_values=inputs).pooler_output.float()

    def _embed_captions(self, captions: Sequence[str]) -> torch.Tensor:
        # Padded to the full length, which CLIP does not notice and SigLIP was trained with.
        length = self.model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return self.model.get_text_features(**inputs.to(self.model.device)).pooler_output.float()

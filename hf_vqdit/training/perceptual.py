# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Distance of pictures in the features of a vision network whose weights the user names."""

import torch
from torch import nn
from transformers import AutoModel, ImageProcessingMixin

MAX_STAGES = 5  # compared of a network, evenly spaced: as many as of LPIPS' VGG


class PerceptualLoss(nn.Module):
    """Squared distance of unit-length features, stage by stage: LPIPS (Zhang 2018, eq. 1) without learned weights.

    Any vision model of transformers serves whose `hidden_states` are feature maps or patch tokens (ResNet, ConvNeXt,
    DINOv2, ...). It is never trained and never saved. Nothing but what was named is fetched.

    Args:
        network (`transformers.PreTrainedModel`): The network, called as `network(pixel_values,
            output_hidden_states=True)`.
        mean (`Sequence[float]`): Mean of its training pictures in [0, 1], by channel.
        std (`Sequence[float]`): Their standard deviation.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = network.float().eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in evaluation mode: its batch statistics are those it was trained with."""
        return super().train(False)

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Unit-length features of pictures in [-1, 1], `(B, positions, channels)`, stage by stage."""
        image = (image.float() * 0.5 + 0.5 - self.mean) / self.std
        stages = self.network(image, output_hidden_states=True).hidden_states
        picks = torch.linspace(0, len(stages) - 1, min(MAX_STAGES, len(stages))).round().long().tolist()
        maps = (stages[pick] for pick in picks)
        maps = (x.flatten(2).movedim(1, -1) if x.ndim == 4 else x for x in maps)  # convolutional or patch tokens
        return [nn.functional.normalize(x, dim=-1) for x in maps]

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)`, float32, each in [0, 4], of pictures `(B, 3, H, W)` in [-1, 1]."""
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.features(target)
            pairs = zip(self.features(image), wanted, strict=True)
            distances = [(one - other).square().sum(dim=-1).mean(dim=1) for one, other in pairs]
        return torch.stack(distances).mean(dim=0)


def load_perceptual_loss(name_or_path: str, resolution: int) -> PerceptualLoss:
    """Loads the network of a perceptual loss, and tries it on a picture.

    Args:
        name_or_path (`str`): A folder or a repository of the Hub, with the weights and `preprocessor_config.json`.
        resolution (`int`): Side of the pictures that will be compared, in pixels.

    Returns:
        [`PerceptualLoss`]

    Raises:
        ValueError: If it cannot be loaded, lacks weights, or does not take such pictures.
    """
    try:
        network, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True)
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # what it pools is not looked at
        if missing:
            raise ValueError(f"the weights {missing[:3]} are missing")
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        perceptual = PerceptualLoss(network, settings["image_mean"], settings["image_std"])
        picture = torch.zeros(1, 3, resolution, resolution)
        perceptual(picture, picture)
    except Exception as error:  # transformers raises many kinds, for a missing folder as for a network of text
        raise ValueError(
            f"The perceptual network {name_or_path!r} cannot be used at {resolution} pixels: "
            f"{type(error).__name__}: {error}. Name a folder or repository with a vision model that transformers' "
            "`AutoModel` loads, with its weights and its preprocessor_config.json."
        ) from error
    return perceptual

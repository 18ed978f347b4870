# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Features of pictures, on which sets of pictures are compared: four networks of one form.

Each takes pictures (B, 3, H, W) in [-1, 1] and gives features (B, D). Figures compare within one network only: so each
has a `name`, in which the names of all figures end that rest on it, and a `description` for the report.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.image.fid import NoTrainInceptionV3
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

from .grids import to_pictures

INCEPTION = "inception"
MAX_SIDE = 64  # in pixels: larger pictures are shrunk for the features trained here
NUM_OWN_FEATURES = 64  # few, so that a hundred pictures have a covariance of full rank
NUM_TRAIN_STEPS = 400
TRAIN_BATCH_SIZE = 64
TEMPERATURE = 0.1  # of the contrastive loss
NUM_SCALING_PICTURES = 2000  # from which mean and variance of the features are taken


def load_feature_network(name_or_path: str) -> nn.Module:
    """The feature network of that name.

    Args:
        name_or_path (`str`): `"inception"`, or a vision model of transformers: a folder or a name on the Hub.

    Returns:
        `nn.Module`

    Raises:
        ValueError: If there is no such network, or it has no trained weights.
    """
    return InceptionFeatures() if name_or_path == INCEPTION else TransformersFeatures(name_or_path)


@torch.no_grad()
def extract_features(
    network: nn.Module, pixel_values: torch.Tensor, batch_size: int = 250, description: str | None = None
) -> torch.Tensor:
    """Features of pictures, all of which are rounded to 8 bits first, as files are.

    Args:
        network (`nn.Module`): A feature network, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(N, 3, H, W)`): Pictures in [-1, 1], or bytes.
        batch_size (`int`, defaults to 250): Pictures at a time.
        description (`str`, *optional*): What the progress bar says; by default there is none.

    Returns:
        `torch.DoubleTensor` of shape `(N, D)`, on the CPU. Features of a picture that is not finite are NaN.
    """
    device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    features = []
    for batch in tqdm(pixel_values.split(batch_size), desc=description, disable=description is None, leave=False):
        is_finite = batch.isfinite().flatten(1).all(dim=1).cpu()
        own = network(to_floats(to_bytes(batch).to(device))).double().cpu()  # (B, D)
        features.append(own.masked_fill(~is_finite[:, None], torch.nan))
    return torch.cat(features)


def to_bytes(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] as bytes; bytes as they are."""
    if pixel_values.dtype == torch.uint8:
        return pixel_values
    return (127.5 * (pixel_values.float().nan_to_num() + 1)).round().clamp(0, 255).byte()


def to_floats(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as bytes in [-1, 1]."""
    return pictures.float() / 127.5 - 1


class TokenizerLatents(nn.Module):
    """The latents of a tokenizer's encoder, averaged over each quarter of the picture.

    They tell colors, shapes and where these are, as finely as the tokenizer has learned to, and need no network from
    elsewhere. Their scale is the tokenizer's own.

    Args:
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
    """

    name = "tokenizer_latents"
    description = "the latents of this pipeline's own tokenizer, averaged over each quarter of the picture"

    def __init__(self, vqvae: MultimodalVQVAE) -> None:
        super().__init__()
        self.vqvae = vqvae

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) to features (B, 4 code_dim)."""
        latents = self.vqvae.encode(image=pixel_values.to(self.vqvae.dtype)).image_latents  # (B, code_dim, h, w)
        return F.adaptive_avg_pool2d(latents.double(), 2).flatten(1)


class TransformersFeatures(nn.Module):
    """What a vision model of transformers pools from a picture, prepared as its own image processor does.

    It is the projected embedding of a model of pictures and words (CLIP, SigLIP), otherwise the pooled output (the
    class token of DINOv2, the average of a ResNet). Some checkpoints come without the weights of their pooler: then
    the last hidden states are averaged.

    Args:
        name_or_path (`str`): A folder or a name on the Hub.

    Raises:
        ValueError: If there is no such model or image processor, or the model lacks weights.
    """

    def __init__(self, name_or_path: str) -> None:
        super().__init__()
        try:
            self.processor = AutoImageProcessor.from_pretrained(name_or_path)
            self.model, loading = AutoModel.from_pretrained(name_or_path, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No vision model of transformers can be loaded from {name_or_path!r}: {error}. Name a folder or a "
                f'repository that holds one with its image processor, or "{INCEPTION}"; without a name features are '
                "trained on the training pictures."
            ) from error
        missing = [key for key in loading["missing_keys"] if "pooler" not in key]
        if missing:
            raise ValueError(f"{name_or_path!r} has no weights for {missing[:3]}: its features would be random.")
        self.has_pooler = not loading["missing_keys"]
        self.eval().requires_grad_(False)
        self.name = re.sub(r"\W+", "_", Path(name_or_path).name.lower()) + "_features"
        self.description = f"the pooled output of {Path(name_or_path).name} ({type(self.model).__name__})"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) to features (B, D)."""
        inputs = self.processor(images=to_pictures(pixel_values), return_tensors="pt")["pixel_values"]
        inputs = inputs.to(self.model.device, self.model.dtype)
        is_of_words_too = hasattr(self.model, "get_image_features")
        output = self.model.get_image_features(inputs) if is_of_words_too else self.model(inputs)
        if self.has_pooler and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)
        hidden_states = output.last_hidden_state  # (B, tokens, D) or (B, D, h, w)
        return hidden_states.mean(dim=1) if hidden_states.ndim == 3 else hidden_states.mean(dim=(2, 3))


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the Inception network on which FID is usually given (Heusel 2017).

    Raises:
        ValueError: If torch-fidelity or its weights, which it downloads once, cannot be had.
    """

    name = INCEPTION
    description = "the 2048 pooled features of torch-fidelity's Inception v3, those of the usual FID and KID"

    def __init__(self) -> None:
        super().__init__()
        try:
            self.model = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
        except (ImportError, OSError) as error:
            raise ValueError(
                f'"{INCEPTION}" needs torch-fidelity (`pip install torch-fidelity`) and its weights, which it '
                f"downloads once: {type(error).__name__}: {error}. Otherwise name a vision model that you have, or "
                "none: then features are trained on the training pictures."
            ) from error

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) to features (B, 2048)."""
        return self.model(to_bytes(pixel_values))


class OwnFeatures(nn.Module):
    """A small convolutional network, trained by [`train_own_features`].

    Args:
        num_features (`int`, defaults to 64): Features D.
        width (`int`, defaults to 32): Channels of the first layer.
    """

    name = "own_features"
    description = (
        f"{NUM_OWN_FEATURES} features of a small network, trained on the training pictures to know each of them again "
        "when it is moved and recolored a little (SimCLR, Chen 2020), and scaled to unit variance on them"
    )

    def __init__(self, num_features: int = NUM_OWN_FEATURES, width: int = 32) -> None:
        super().__init__()
        # Quarters, not the whole picture: where things are is a feature too.
        self.body = nn.Sequential(
            *halving_convolutions(width), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, num_features)
        )
        # The loss is taken behind a head, as in SimCLR: it may forget what the augmentation changes, the features not.
        self.head = nn.Sequential(nn.BatchNorm1d(num_features), nn.ReLU(), nn.Linear(num_features, 128))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) to features (B, D)."""
        return (self.body(to_floats(to_bytes(shrink(pixel_values)))) - self.mean) / self.std


def halving_convolutions(width: int) -> list[nn.Module]:
    """Three convolutions that make pictures (B, 3, H, W) to (B, 4 width, H/8, W/8)."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [
            nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return layers


def shrink(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) with a longer side of at most `MAX_SIDE` pixels: smaller ones as they are."""
    factor = MAX_SIDE / max(pixel_values.shape[2:])
    if factor >= 1:
        return pixel_values
    size = [max(1, round(side * factor)) for side in pixel_values.shape[2:]]
    return F.interpolate(pixel_values, size, mode="bilinear", antialias=True)


def train_own_features(pictures: torch.Tensor, num_train_steps: int = NUM_TRAIN_STEPS, seed: int = 0) -> OwnFeatures:
    """Trains a network to tell the pictures of a set apart, without labels and within a minute or two on a CPU.

    Two views of a picture are to have features closer to each other than to those of the other pictures of the batch
    (NT-Xent, Chen 2020, eq. 1). So everything counts by which one picture differs from another one: good features
    for finding copies, and for any set, whatever its captions tell. The views are weaker than those of SimCLR: a
    network that has to overlook blur, noise and crops would not see them in generated pictures either.

    Args:
        pictures (`torch.ByteTensor` of shape `(N, 3, H, W)`): At least two.
        num_train_steps (`int`, defaults to 400): Steps of 64 pictures, of all if there are fewer.
        seed (`int`, defaults to 0): Seed of weights, order and views.

    Returns:
        [`OwnFeatures`], in evaluation mode, on the CPU. Over `pictures`, 2,000 of them if there are more, each
            feature has mean 0 and variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torch's initialisers take no generator
        network = OwnFeatures()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_train_steps, pct_start=0.1)
    for _ in tqdm(range(num_train_steps), desc="Training the features"):
        rows = torch.randperm(len(pictures), generator=generator)[:TRAIN_BATCH_SIZE]
        batch = shrink(to_floats(pictures[rows]))  # (B, 3, h, w)
        views = torch.cat([draw_views(batch, generator), draw_views(batch, generator)])  # (2 B, 3, h, w)
        embeddings = F.normalize(network.head(network.body(views)))  # (2 B, 128)
        logits = (embeddings @ embeddings.T / TEMPERATURE).fill_diagonal_(-torch.inf)  # (2 B, 2 B)
        other_view = torch.arange(len(views)).roll(len(batch))
        loss = F.cross_entropy(logits, other_view)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    rows = torch.randperm(len(pictures), generator=generator)[:NUM_SCALING_PICTURES]
    features = extract_features(network, pictures[rows])
    network.mean.copy_(features.mean(dim=0))
    network.std.copy_(features.std(dim=0).clamp(min=1e-6))
    return network


def draw_views(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture moved by up to a tenth of its side, in whole pixels, and its colors scaled and shifted by up to .1.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pictures in [-1, 1].
        generator (`torch.Generator`): Draws the views, on the CPU.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, H, W)`
    """
    batch_size, _, height, width = pixel_values.shape
    reach = max(height, width) // 10
    padded = F.pad(pixel_values, (reach, reach, reach, reach), mode="reflect")
    corners = torch.randint(2 * reach + 1, (batch_size, 2), generator=generator).tolist()
    moved = torch.stack([row[:, y : y + height, x : x + width] for row, (y, x) in zip(padded, corners, strict=True)])
    gain, shift = 0.2 * torch.rand(2, batch_size, 3, 1, 1, generator=generator) - 0.1
    return moved * (1 + gain) + shift

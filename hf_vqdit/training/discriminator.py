# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The discriminator of reconstructed pictures, and its losses. It serves training alone and does not ship."""

import torch
import torch.nn.functional as F
from torch import nn


class PatchDiscriminator(nn.Module):
    """Tells real from reconstructed patches of a picture: PatchGAN (Isola 2017), with group norm for batch norm.

    Statistics of a batch would tie its rows together, differ from process to process, and make the gradient penalty,
    which is a matter of one picture, depend on the others.

    Args:
        in_channels (`int`, *optional*, defaults to 3): Channels of a picture.
        width (`int`, *optional*, defaults to 64): Channels of the first layer; they double to eightfold at most.
        num_layers (`int`, *optional*, defaults to 3): Layers of stride 2. A patch has 70 pixels with 3, 34 with 2.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, num_layers: int = 3):
        super().__init__()
        widths = [min(2**i, 8) * width for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(32, widths[i] // 4), widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits `(B, patches)`, float32, of pictures `(B, C, H, W)` in [-1, 1]: high for real."""
        with torch.autocast(image.device.type, enabled=False):
            return self.layers(image.float()).flatten(1)


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss (Lim & Ye 2017), row by row: 0 once real is above 1 and fake below -1.

    Args:
        real_logits (`torch.FloatTensor` of shape `(B, patches)`): Of real pictures.
        fake_logits (`torch.FloatTensor` of shape `(B, patches)`): Of reconstructions.

    Returns:
        `torch.FloatTensor` of shape `(B,)`.
    """
    return 0.5 * (F.relu(1 - real_logits) + F.relu(1 + fake_logits)).mean(dim=1)


def r1_penalty(discriminator: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Squared gradient of the mean logit at real pictures, halved, row by row (R1, Mescheder 2018, eq. 9).

    Args:
        discriminator (`torch.nn.Module`): Pictures to logits `(B, patches)`.
        image (`torch.FloatTensor` of shape `(B, C, H, W)`): Real pictures; they are not changed.

    Returns:
        `torch.FloatTensor` of shape `(B,)`, float32.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.detach().float().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(image).mean(dim=1).sum(), image, create_graph=True)
        return 0.5 * gradient.square().flatten(1).sum(dim=1)


class LeCam(nn.Module):
    """Keeps logits of real pictures near what those of fakes have been, and the reverse (LeCAM, Tseng 2021).

    With little data a discriminator learns its pictures by heart, and its logits part. The averages are buffers: they
    are saved, and the same on all processes.

    Args:
        decay (`float`, *optional*, defaults to 0.99): Decay of the averages, an optimizer step.
    """

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.tensor(float("nan")))  # NaN: not measured
        self.register_buffer("fake_mean", torch.tensor(float("nan")))

    def forward(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        """The penalty, row by row; 0 before the first [`update`].

        Args:
            real_logits (`torch.FloatTensor` of shape `(B, patches)`): Of real pictures.
            fake_logits (`torch.FloatTensor` of shape `(B, patches)`): Of reconstructions.

        Returns:
            `torch.FloatTensor` of shape `(B,)`.
        """
        if self.real_mean.isnan():
            return torch.zeros_like(real_logits[:, 0])
        distances = F.relu(real_logits - self.fake_mean).square() + F.relu(self.real_mean - fake_logits).square()
        return distances.mean(dim=1)

    def update(self, real_mean: torch.Tensor, fake_mean: torch.Tensor) -> None:
        """Takes in the mean logits of one optimizer step over all processes, scalars."""
        for average, value in ((self.real_mean, real_mean), (self.fake_mean, fake_mean)):
            average.copy_(value if average.isnan() else average.lerp(value, 1 - self.decay))

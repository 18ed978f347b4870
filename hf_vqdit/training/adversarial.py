# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How the discriminator is trained beside the tokenizer, and how much its opinion counts."""

from typing import Any

import torch

from hf_vqdit.training.discriminator import LeCam, PatchDiscriminator, hinge_loss, r1_penalty
from hf_vqdit.training.distributed import sum_over_ranks, world_size
from hf_vqdit.training.losses import ramp


class AdversarialTrainer:
    """Trains a [`PatchDiscriminator`] on what the tokenizer makes of its pictures (VQGAN, Esser 2021).

    From `start_step` on it is trained; `warmup_steps` later, when it knows something, its term begins to count, with a
    weight that rises from 0 to 1 over `ramp_steps`. Call [`critic`] and [`adaptive_weight`] for the tokenizer's loss,
    [`observe`] for each micro-batch once the tokenizer's gradient is taken, and [`step`] once an optimizer step.

    All processes hold the same discriminator: it starts from the same seed, and its gradients are averaged here. It
    computes in float32, whatever the tokenizer does. Its optimizer is Adam at a constant rate.

    Args:
        resolution (`int`): Side of the pictures in pixels.
        max_train_steps (`int`): Optimizer steps of the run.
        in_channels (`int`, *optional*, defaults to 3): Channels of a picture.
        start_step (`int`, *optional*, defaults to 0): Optimizer steps before the discriminator is trained.
        warmup_steps (`int`, *optional*, defaults to 500): Steps it is trained before its term counts.
        ramp_steps (`int`, *optional*, defaults to 500): Steps over which the weight of its term rises to the whole.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether the term is weighed by [`adaptive_weight`]. That takes gradients at one weight of the model, which
            a compiled or sharded (FSDP) one does not give: there the weight has to be fixed.
        max_adaptive_weight (`float`, *optional*, defaults to 10.0): Where the adaptive weight is clamped.
        r1_gamma (`float`, *optional*, defaults to 10.0): Weight of the gradient penalty; 0 for none.
        r1_every (`int`, *optional*, defaults to 16):
            Optimizer steps between two penalties, each of which then weighs as much as those left out (lazy
            regularization, Karras 2020).
        lecam_weight (`float`, *optional*, defaults to 0.0): Weight of [`LeCam`]; 0 for none.
        learning_rate (`float`, *optional*, defaults to 2e-4): Learning rate.
        max_grad_norm (`float`, *optional*, defaults to 1.0): Gradients are clipped to this norm.
        width (`int`, *optional*, defaults to 64): Channels of the first layer.
        num_layers (`int`, *optional*, defaults to 3): Layers of stride 2.
        seed (`int`, *optional*, defaults to 0): Seed of the first weights.
        device (`torch.device`, *optional*): Where it lives.

    Raises:
        ValueError: If the discriminator would start before the run or after its end, or if the pictures are too small
            for its layers.
    """

    def __init__(
        self,
        *,
        resolution: int,
        max_train_steps: int,
        in_channels: int = 3,
        start_step: int = 0,
        warmup_steps: int = 500,
        ramp_steps: int = 500,
        adaptive: bool = True,
        max_adaptive_weight: float = 10.0,
        r1_gamma: float = 10.0,
        r1_every: int = 16,
        lecam_weight: float = 0.0,
        learning_rate: float = 2e-4,
        max_grad_norm: float = 1.0,
        width: int = 64,
        num_layers: int = 3,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        if start_step < 0 or warmup_steps < 0 or start_step + warmup_steps >= max_train_steps:
            raise ValueError(
                f"The discriminator starts at step {start_step} and counts after {warmup_steps} more (`start_step`, "
                f"`warmup_steps`); both must be within the {max_train_steps} steps of the run (`max_train_steps`)."
            )
        if resolution >> num_layers < 3:
            raise ValueError(
                f"A discriminator of `num_layers` = {num_layers} needs pictures of at least {3 << num_layers} pixels; "
                f"these have {resolution}: take fewer layers."
            )
        self.start_step, self.count_step, self.ramp_steps = start_step, start_step + warmup_steps, ramp_steps
        self.adaptive, self.max_adaptive_weight = adaptive, max_adaptive_weight
        self.r1_gamma, self.r1_every, self.lecam_weight = r1_gamma, r1_every, lecam_weight
        self.max_grad_norm = max_grad_norm
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(in_channels, width, num_layers).to(device).requires_grad_(False)
        self.lecam = LeCam().to(device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        self._observed: list[torch.Tensor] = []  # of each micro-batch: sum of real and fake logits, number of rows

    # For the tokenizer

    def weight(self, step: int) -> float:
        """How much the term counts after `step` optimizer steps, from 0 to 1."""
        return ramp(step, self.count_step, self.ramp_steps)

    def critic(self, step: int) -> PatchDiscriminator | None:
        """The discriminator, without gradients for its own weights, once its term counts."""
        return self.discriminator if self.weight(step) > 0 else None

    def adaptive_weight(
        self, reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_weight: torch.nn.Parameter
    ) -> torch.Tensor:
        """The weight at which both losses pull the last layer equally hard (Esser 2021, eq. 7), clamped.

        Args:
            reconstruction_loss (`torch.FloatTensor`): A scalar.
            adversarial_loss (`torch.FloatTensor`): A scalar.
            last_weight (`torch.nn.Parameter`): The weight of the decoder's last layer.

        Returns:
            `torch.FloatTensor`: A scalar without gradient; 1 where the weight is fixed.
        """
        if not self.adaptive:
            return torch.ones((), device=adversarial_loss.device)
        wanted, own = (
            torch.autograd.grad(loss, last_weight, retain_graph=True)[0].float().norm()
            for loss in (reconstruction_loss, adversarial_loss)
        )
        return (wanted / (own + 1e-4)).clamp(max=self.max_adaptive_weight)

    # For the discriminator

    def observe(
        self, step: int, real: torch.Tensor, fake: torch.Tensor, has_image: torch.BoolTensor
    ) -> dict[str, torch.Tensor]:
        """Adds one micro-batch of this process to the discriminator's gradient.

        Args:
            step (`int`): Optimizer steps done before this one.
            real (`torch.FloatTensor` of shape `(B, C, H, W)`): Pictures.
            fake (`torch.FloatTensor` of shape `(B, C, H, W)`): Their reconstructions; no gradient goes there.
            has_image (`torch.BoolTensor` of shape `(B,)`): False for rows to leave out.

        Returns:
            `dict[str, torch.FloatTensor]`: `discriminator_hinge` and, when it is due, `discriminator_r1`, of shape
            `(B,)`; nothing before `start_step`.
        """
        if step < self.start_step:
            return {}
        self.discriminator.requires_grad_(True)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake.detach())
        terms = {"discriminator_hinge": hinge_loss(real_logits, fake_logits)}
        loss = terms["discriminator_hinge"] + self.lecam_weight * self.lecam(real_logits, fake_logits)
        if self.r1_gamma > 0 and (step - self.start_step) % self.r1_every == 0:
            terms["discriminator_r1"] = r1_penalty(self.discriminator, real)
            loss = loss + self.r1_gamma * self.r1_every * terms["discriminator_r1"]
        loss.where(has_image, 0.0).mean().backward()
        self.discriminator.requires_grad_(False)
        means = torch.stack([real_logits.detach().mean(dim=1), fake_logits.detach().mean(dim=1)])  # (2, B)
        self._observed.append(torch.cat([means.where(has_image, 0.0).sum(dim=1), has_image.sum()[None].float()]))
        return {name: term.detach().where(has_image, 0.0) for name, term in terms.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Moves the discriminator by what was observed on all processes, and forgets it."""
        if not self._observed:
            return
        for parameter in self.discriminator.parameters():
            sum_over_ranks(parameter.grad)
            parameter.grad /= len(self._observed) * world_size()
        torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        real_sum, fake_sum, num_rows = sums = torch.stack(self._observed).sum(dim=0)
        sum_over_ranks(sums)
        if num_rows > 0:
            self.lecam.update(real_sum / num_rows, fake_sum / num_rows)
        self._observed.clear()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {name: getattr(self, name).state_dict() for name in ("discriminator", "lecam", "optimizer")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what [`state_dict`] returned."""
        for name, state in state_dict.items():
            getattr(self, name).load_state_dict(state)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Few passes for many: a student whose every pass covers several guided sampling steps of its teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn

from hf_vqdit.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

from .masked import CodeLosses, HiddenCodes, MaskedLossConfig, hide_pair, mask_rate, weigh_losses
from .rows import PairLoss
from .times import TimeTable

MIN_LOG_TARGET = -30.0  # bounds the reverse divergence; e^-30 is nothing even summed over a large codebook


@dataclass(frozen=True)
class DistillationConfig:
    """
    How [`distillation_objective`] makes a student of few passes.

    The divergence at a code, with p the target and q the student's prediction, is
    `(1 - reverse_kl_weight) KL(p || q) + reverse_kl_weight KL(q || p)`. The teacher's steps are random, so one state
    has many targets. The forward KL is least where q is their mean, which is the law of that code in the teacher's own
    samples: nothing that the teacher makes gets lost. But codes of one pass are drawn independently, and independent
    draws from a mean mix what the teacher keeps apart. The reverse KL is least where the targets agree: what comes out
    fits together, and is less varied. A little of it goes far: where targets disagree its gradients are larger by as
    many nats as they differ, which is ten and more with guidance.

    Args:
        num_student_steps (`int`, defaults to 4):
            Passes that the student is made for.
        num_teacher_steps (`int`, defaults to 12):
            Passes of the teacher over the same way; a multiple of `num_student_steps`.
        guidance_scale (`float`, defaults to 2.0):
            Guidance of the teacher's picture by the caption, which becomes part of the student (guidance distillation,
            Meng 2023). Off at 1 or below.
        text_guidance_scale (`float`, defaults to 1.0):
            Guidance of the teacher's caption by the picture, likewise.
        reverse_kl_weight (`float`, defaults to 0.1):
            Share of the reverse KL divergence in [0, 1].
        student_temperature (`float`, defaults to 0.8):
            Temperature of the schedulers that the student ships with. A mean of targets is broader than any of them;
            below 1 it is sharpened back to what they agree on.
        grid_fraction (`float`, defaults to 0.5):
            Share of the rows whose times lie exactly where the student's passes begin, k / `num_student_steps`. The
            others lie between: for parts of pictures, and for other numbers of passes.

    Raises:
        `ValueError`: a value is out of range, or the numbers of steps do not divide.
    """

    num_student_steps: int = 4
    num_teacher_steps: int = 12
    guidance_scale: float = 2.0
    text_guidance_scale: float = 1.0
    reverse_kl_weight: float = 0.1
    student_temperature: float = 0.8
    grid_fraction: float = 0.5

    def __post_init__(self):
        for name in ("num_student_steps", "num_teacher_steps"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {getattr(self, name)!r}.")
        if self.num_teacher_steps % self.num_student_steps:
            nearest = max(1, round(self.num_teacher_steps / self.num_student_steps)) * self.num_student_steps
            raise ValueError(
                f"`num_teacher_steps` must be a multiple of `num_student_steps` = {self.num_student_steps}, so that"
                f" each of the student's passes covers the same number of the teacher's, got {self.num_teacher_steps}:"
                f" try {nearest}."
            )
        for name in ("guidance_scale", "text_guidance_scale", "student_temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a finite number >= 0, got {getattr(self, name)}.")
        for name in ("reverse_kl_weight", "grid_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")

    @property
    def call_arguments(self) -> dict[str, float]:
        """What to call the student's pipeline with: few passes, and no guidance, which is in the weights."""
        return {"num_inference_steps": self.num_student_steps, "guidance_scale": 1.0}


def student_scheduler(scheduler: MaskedDiffusionScheduler, config: DistillationConfig) -> MaskedDiffusionScheduler:
    """
    The scheduler that a student ships with.

    It is the teacher's with a temperature of its own and nothing cut off: the student has learnt what the teacher
    draws at its temperature, top-k and top-p.

    Args:
        scheduler (`MaskedDiffusionScheduler`):
            With which the teacher samples.
        config (`DistillationConfig`):
            Has the temperature.

    Returns:
        `MaskedDiffusionScheduler`
    """
    settings = {"temperature": config.student_temperature, "top_k": None, "top_p": 1.0}
    return type(scheduler).from_config(scheduler.config, **settings)


def distillation_objective(
    model: nn.Module,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
    times: TimeTable,
    scheduler: MaskedDiffusionScheduler,
    text_scheduler: MaskedDiffusionScheduler,
    generators: Sequence[torch.Generator],
    config: MaskedLossConfig | None = None,
    has_image: torch.BoolTensor | None = None,
    has_text: torch.BoolTensor | None = None,
    *,
    teacher: nn.Module,
    distill_config: DistillationConfig | None = None,
) -> PairLoss:
    """
    Hide codes of a micro-batch, let the teacher take some steps from there, and bring the student to where it gets.

    Self-distillation through time (SDTT, Deschenaux & Gulcehre 2024) with the guidance distilled in (Meng 2023). From
    the hidden state the teacher takes `num_teacher_steps / num_student_steps` sampling steps with the scheduler's own
    `step`. The target of a hidden code is the distribution that the teacher drew it from in the pass at which it was
    decoded: guided, and at the scheduler's temperature, top-k and top-p. For a code that is still hidden at the end it
    is the teacher's last prediction. The student predicts them all at once, and without a second row for the guidance.
    A condition that is not there guides nothing, so a row without one distils the teacher without guidance.

    Times are first moved to where the student's passes are: see `grid_fraction`. One may be exactly 1, where the first
    pass begins. What is trained is settled before, by the kind of the row: a condition, given or missing, never is.

    Args:
        model (`VQDiTModel`):
            The student, wrapped by accelerate or not.
        image_codes (`torch.LongTensor` of shape `(B, h, w)`):
            Clean image codes; any code where the image is missing.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
            Clean text codes and PAD; any code where the text is missing.
        times (`TimeTable`):
            The times of these B rows, as for [`masked_objective`].
        scheduler (`MaskedDiffusionScheduler`):
            Which hides image codes, and with which the teacher draws them.
        text_scheduler (`MaskedDiffusionScheduler`):
            The same for text codes.
        generators (`Sequence[torch.Generator]`):
            One for each row, of what is hidden in it and of the teacher's draws.
        config (`MaskedLossConfig`, *optional*):
            Weights; the defaults if left out. Its `label_smoothing` must be 0: the targets are soft already.
        has_image (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the image is missing: it is all MASK at time exactly 1 and carries no loss.
        has_text (`torch.BoolTensor` of shape `(B,)`, *optional*):
            False where the text is missing.
        teacher (`VQDiTModel`):
            In evaluation mode. It gets no gradient.
        distill_config (`DistillationConfig`, *optional*):
            Steps, guidance and divergence; the defaults if left out.

    Returns:
        [`PairLoss`]: in its `sums` the divergence stands in the place of the cross-entropy.

    Raises:
        `ValueError`: `label_smoothing` is not 0.
    """
    config, distill_config = config or MaskedLossConfig(), distill_config or DistillationConfig()
    if config.label_smoothing != 0:
        raise ValueError(
            f"`label_smoothing` must be 0 for a student, whose targets are soft already, got {config.label_smoothing}."
        )
    generators = list(generators)
    image, text = hide_pair(
        model,
        image_codes,
        text_codes,
        times,
        scheduler,
        text_scheduler,
        generators,
        config.region_fraction,
        has_image,
        has_text,
        move_times=partial(student_times, config=distill_config),
    )
    image_log_targets, text_log_targets = teacher_log_targets(
        teacher, image, text, scheduler, text_scheduler, generators, distill_config
    )
    output = model(image.noisy_codes, text.noisy_codes, image_timestep=image.rate, text_timestep=text.rate)
    weight = distill_config.reverse_kl_weight
    image_losses = _divergence(output.image_logits, image.hidden, image_log_targets, weight)
    text_losses = _divergence(output.text_logits, text.hidden, text_log_targets, weight)
    return weigh_losses(model, image, text, image_losses, text_losses, config)


# Times


def student_times(times: torch.Tensor, config: DistillationConfig) -> torch.Tensor:
    """
    Move times to where the student's passes are.

    Each of the n intervals ((k - 1) / n, k / n] is mapped onto itself: the upper `grid_fraction` of it to k / n, where
    a pass begins, the rest evenly over all of it. Times that are spread evenly before thus fall evenly on the passes.

    Args:
        times (`torch.FloatTensor` of shape `(B,)`):
            Times in (0, 1].
        config (`DistillationConfig`):
            The number n of passes, and `grid_fraction`.

    Returns:
        `torch.FloatTensor` of shape `(B,)` in (0, 1].
    """
    position = times.double() * config.num_student_steps
    start = position.ceil() - 1  # k - 1
    within = ((position - start) / (1 - config.grid_fraction)).clamp(max=1)  # x / 0 is infinite, and clamped
    return ((start + within) / config.num_student_steps).to(times.dtype)


def student_pass(times: torch.Tensor, config: DistillationConfig) -> torch.LongTensor:
    """
    Which of the student's passes, counted from 0, a time belongs to: the first one begins at time 1.

    Args:
        times (`torch.FloatTensor` of shape `(B,)`):
            Times in (0, 1].
        config (`DistillationConfig`):
            The number of passes.

    Returns:
        `torch.LongTensor` of shape `(B,)`
    """
    # k / n in float32 may lie a little above k / n, and belongs to the pass that begins there all the same.
    intervals = (times.double() * (config.num_student_steps * (1 - 1e-6))).ceil().long()
    return config.num_student_steps - intervals.clamp(1, config.num_student_steps)


# Teacher


@torch.no_grad()
def teacher_log_targets(
    teacher: nn.Module,
    image: HiddenCodes,
    text: HiddenCodes,
    scheduler: MaskedDiffusionScheduler,
    text_scheduler: MaskedDiffusionScheduler,
    generators: Sequence[torch.Generator],
    config: DistillationConfig,
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """
    What the student is to predict, by some sampling steps of the teacher.

    Args:
        teacher (`VQDiTModel`):
            In evaluation mode.
        image (`HiddenCodes`):
            The image's state of B rows, at times of [`student_times`].
        text (`HiddenCodes`):
            The text's state.
        scheduler (`MaskedDiffusionScheduler`):
            With which the teacher draws image codes; its own state is not touched.
        text_scheduler (`MaskedDiffusionScheduler`):
            With which it draws text codes.
        generators (`Sequence[torch.Generator]`):
            One for each row.
        config (`DistillationConfig`):
            Steps and guidance.

    Returns:
        `tuple[torch.FloatTensor, torch.FloatTensor]`: log-probabilities `(M, V)` of the M codes of `image.hidden` in
        row-major order, and the same for `text.hidden`.
    """
    walks = (_Walk(image, scheduler, generators, config), _Walk(text, text_scheduler, generators, config))
    num_steps = config.num_teacher_steps // config.num_student_steps
    for step in range(num_steps):
        for walk, logits in zip(walks, _guided_logits(teacher, *walks, config), strict=True):
            walk.learn(logits)
            if step + 1 < num_steps:  # what the last step would draw, nobody looks at
                walk.step(step, logits)
    return walks[0].log_targets, walks[1].log_targets


class _Walk:
    """The teacher's steps over one modality of a micro-batch."""

    def __init__(
        self,
        hidden_codes: HiddenCodes,
        scheduler: MaskedDiffusionScheduler,
        generators: Sequence[torch.Generator],
        config: DistillationConfig,
    ):
        self.codes = hidden_codes.noisy_codes.clone()  # (B, ...)
        self.mask_token_id, self.hidden = hidden_codes.mask_token_id, hidden_codes.hidden
        self.is_generated = self.hidden.flatten(1).any(dim=1)  # (B,)
        self.given = self.codes != self.mask_token_id
        self.scheduler, self.generators = scheduler, generators
        self.log_targets: torch.Tensor | None = None  # (M, V)

        # A scheduler takes all rows through the same times: so one for the rows of each of the student's passes.
        self.runs = []
        passes = student_pass(hidden_codes.time, config)
        for index in passes[self.is_generated].unique().tolist():
            run = type(scheduler).from_config(scheduler.config)
            run.set_timesteps(config.num_teacher_steps)
            first_step = index * config.num_teacher_steps // config.num_student_steps
            rows = (self.is_generated & (passes == index)).nonzero().flatten()
            self.runs.append((run, run.timesteps[first_step:], rows))

    def learn(self, logits: torch.Tensor) -> None:
        """The prediction becomes the target of the codes that are hidden still."""
        is_open = (self.codes == self.mask_token_id)[self.hidden]  # (M,)
        # In float64, as the scheduler draws: what top-p keeps must be the same.
        log_targets = self.scheduler.drawing_logits(logits[self.hidden][is_open].double()).log_softmax(dim=-1)
        log_targets = log_targets.float().clamp(min=MIN_LOG_TARGET)
        if self.log_targets is None:  # all of them are, before the first step
            self.log_targets = log_targets
        else:
            self.log_targets[is_open] = log_targets

    def step(self, step: int, logits: torch.Tensor) -> None:
        for run, timesteps, rows in self.runs:
            self.codes[rows] = run.step(
                logits[rows],
                timesteps[step],
                self.codes[rows],
                frozen_mask=self.given[rows],
                generator=[self.generators[row] for row in rows.tolist()],
                return_dict=False,
            )[0]


def _guided_logits(
    teacher: nn.Module, image: _Walk, text: _Walk, config: DistillationConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pipeline's guidance, row by row: where a modality is generated and something of the other one is known."""
    guides_image = image.is_generated & _is_known(text) & (config.guidance_scale > 1)  # (B,)
    guides_text = text.is_generated & _is_known(image) & (config.text_guidance_scale > 1)
    no_image = torch.full_like(image.codes[guides_text], image.mask_token_id)
    no_text = torch.full_like(text.codes[guides_image], text.mask_token_id)
    image_codes = torch.cat([image.codes, image.codes[guides_image], no_image])
    text_codes = torch.cat([text.codes, no_text, text.codes[guides_text]])
    output = teacher(
        image_codes,
        text_codes,
        image_timestep=mask_rate(image_codes, image.mask_token_id),
        text_timestep=mask_rate(text_codes, text.mask_token_id),
    )
    sizes = [len(image.codes), len(image_codes) - len(image.codes) - len(no_image), len(no_image)]
    image_logits, image_alone, _ = output.image_logits.split(sizes)
    text_logits, _, text_alone = output.text_logits.split(sizes)
    return (
        _extrapolate(image_logits, image_alone, guides_image, config.guidance_scale),
        _extrapolate(text_logits, text_alone, guides_text, config.text_guidance_scale),
    )


def _is_known(walk: _Walk) -> torch.Tensor:
    """Whether anything is known of a modality, `(B,)`."""
    return (walk.codes != walk.mask_token_id).flatten(1).any(dim=1)


def _extrapolate(logits: torch.Tensor, alone: torch.Tensor, rows: torch.Tensor, scale: float) -> torch.Tensor:
    """`u + scale * (o - u)` in some of the rows, with o the prediction and u that without the condition."""
    guided = logits.clone()
    guided[rows] = alone + scale * (logits[rows] - alone)
    return guided


# Student


def _divergence(
    logits: torch.Tensor, hidden: torch.Tensor, log_targets: torch.Tensor, reverse_kl_weight: float
) -> CodeLosses:
    """The divergence of [`DistillationConfig`] at each hidden code, of the shape of `hidden`."""
    log_probs = logits[hidden].float().log_softmax(dim=-1)  # (M, V)
    difference = log_targets - log_probs
    divergence = (1 - reverse_kl_weight) * (log_targets.exp() * difference).sum(dim=-1)
    if reverse_kl_weight > 0:
        divergence = divergence - reverse_kl_weight * (log_probs.exp() * difference).sum(dim=-1)
    losses = divergence.new_zeros(hidden.shape).masked_scatter(hidden, divergence)
    return CodeLosses(losses, losses.detach())

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Masked (absorbing-state) diffusion over discrete codes: one corruption, three ways to undo it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

MASK_SCHEDULES = ("cosine", "linear", "arccos")
ORDERS = ("ancestral", "confidence", "random")


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """
    Output of [`MaskedDiffusionScheduler.step`].

    Args:
        prev_sample (`torch.LongTensor` of shape `(B, ...)`):
            The codes after the step, some of them still MASK, except after the last step.
        pred_original_sample (`torch.LongTensor` of shape `(B, ...)`):
            The clean codes as drawn in this step: `sample` where it was known, a draw from the prediction elsewhere.
    """

    prev_sample: torch.LongTensor
    pred_original_sample: torch.LongTensor


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):
    r"""
    Masked diffusion: D3PM's absorbing state (Austin 2021) in continuous time (MDLM, Sahoo 2024, equations 3 to 7), and
    MaskGIT's decoding by counts (Chang 2022) over the same corruption.

    **Corruption.** Each code is kept with probability `alpha(t)` and turned into MASK otherwise, independently, with
    `alpha(0) = 1` and `alpha(1) = 0`:

        q(x_t | x_0) = alpha(t) [x_t = x_0] + (1 - alpha(t)) [x_t = MASK]

    **Posterior.** For `s < t` a code that is known at `t` was known at `s`, so it stays. A code that is MASK at `t`
    was MASK at `s` already, or was lost between the two. By Bayes' rule, with m = 1 - alpha the mask rate,

        q(x_s = x_0  | x_t = MASK, x_0) = (alpha(s) - alpha(t)) / (1 - alpha(t)) = (m(t) - m(s)) / m(t)
        q(x_s = MASK | x_t = MASK, x_0) = (1 - alpha(s)) / (1 - alpha(t))        = m(s) / m(t)

    Neither depends on `x_0`: whether a position is decoded and what it becomes are independent. The step draws `x_0`
    from the prediction `p(x_0 | x_t)`, and `order` says which masked positions keep what they drew:

    - `"ancestral"`: each with the probability above, independently. This is the reference: with the true posterior in
      the place of the prediction, its samples have the law of the data at any number of steps, up to codes that are
      decoded in the same step.
    - `"confidence"`: a fixed number for each row, those with the highest `log p(drawn code) + choice_temperature *
      mask_rate(t) * Gumbel noise` (MaskGIT).
    - `"random"`: the same number, at random positions.

    The orders by count leave `floor(n * mask_rate(s) / mask_rate(t_0))` codes MASK, where n of the row's codes were
    MASK at the run's first step and t_0 is the time of that step (1 unless a run starts in the middle). A row with
    fewer masks than there are steps has steps that decode nothing. The last step always decodes everything.

    Probabilities and noise are computed in float64: Gumbel noise from float32 uniforms ends at 16.6 and quietly lowers
    the temperature. A code is drawn by inverting the cumulative distribution at one uniform for each position. With a
    list of generators a row draws from its own alone, and a row without a MASK draws nothing: what is sampled for a
    row does not depend on the rest of the batch.

    Time runs from 0 (clean) to 1 (all MASK). `scheduler.order` is diffusers' attribute of that name (1: one model call
    a step); the order of decoding is `scheduler.config.order`.

    Args:
        mask_schedule (`str`, *optional*, defaults to `"cosine"`):
            The mask rate at time t. `"linear"`: t. `"cosine"`: sin(pi t / 2) (MaskGIT). `"arccos"`:
            (2 / pi) arccos(1 - t) (Halton-MaskGIT, Besnier 2025).
        order (`str`, *optional*, defaults to `"confidence"`):
            `"ancestral"`, `"confidence"` or `"random"`, see above.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before a code is drawn; 0 takes the most probable code. The confidence is that of the
            undivided logits.
        choice_temperature (`float`, *optional*, defaults to 1.0):
            Scale of the Gumbel noise of the confidence order. It is multiplied by the mask rate, so that it falls as
            the sample fills. 0 decodes the most confident codes first.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        *,  # diffusers forgets arguments passed by position: `from_config` would give them back their defaults
        mask_schedule: str = "cosine",
        order: str = "confidence",
        temperature: float = 1.0,
        choice_temperature: float = 1.0,
    ):
        if mask_schedule not in MASK_SCHEDULES:
            raise ValueError(f"`mask_schedule` must be one of {MASK_SCHEDULES}, got {mask_schedule!r}.")
        if order not in ORDERS:
            raise ValueError(f"`order` must be one of {ORDERS}, got {order!r}.")
        for name, value in (("temperature", temperature), ("choice_temperature", choice_temperature)):
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number >= 0, got {value}.")

        self.timesteps: torch.Tensor | None = None
        self.num_inference_steps: int | None = None
        self._start_rate: float | None = None
        self._start_num_masks: torch.Tensor | None = None  # (B,)

    # Corruption

    def mask_rate(self, timesteps: float | torch.Tensor) -> torch.Tensor:
        """
        The probability that a code is MASK, `1 - alpha(t)`.

        Args:
            timesteps (`float` or `torch.Tensor` of any shape):
                Times in [0, 1].

        Returns:
            `torch.Tensor` of the shape and dtype of `timesteps` (float64 for a number): exactly 0 at 0 and 1 at 1.
        """
        t = timesteps if isinstance(timesteps, torch.Tensor) else torch.tensor(timesteps, dtype=torch.float64)
        if not t.is_floating_point():
            raise TypeError(f"`timesteps` must be floats in [0, 1], got {t.dtype}.")
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"`timesteps` must lie in [0, 1], got {t.min().item()} to {t.max().item()}.")
        if self.config.mask_schedule == "linear":
            return t.clone()
        if self.config.mask_schedule == "cosine":
            rate = torch.sin(t * (math.pi / 2))
        else:
            rate = torch.acos(1 - t) * (2 / math.pi)
        # The ends are exact whatever the dtype and device: time 0 means given and time 1 means that nothing is known.
        return torch.where((t == 0) | (t == 1), t, rate.clamp(0, 1))

    def alpha(self, t: float | torch.Tensor) -> torch.Tensor:
        """The probability that a code is kept, `1 - mask_rate(t)`; arguments and result as for [`mask_rate`]."""
        return 1 - self.mask_rate(t)

    def add_noise(
        self,
        original_samples: torch.LongTensor,
        timesteps: torch.Tensor,
        *,
        mask_token_id: int,
        frozen_mask: torch.BoolTensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.LongTensor:
        """
        Draw `x_t` given `x_0`: each code becomes MASK with the mask rate of its row, independently.

        Args:
            original_samples (`torch.LongTensor` of shape `(B, ...)`):
                Codes in [0, `mask_token_id`]; one that is MASK already stays MASK.
            timesteps (`torch.Tensor` of shape `(B,)`):
                Times in [0, 1]; nothing is masked at 0 and everything at 1.
            mask_token_id (`int`):
                The id of MASK.
            frozen_mask (`torch.BoolTensor` of shape `(B, ...)`, *optional*):
                True where a code is given and must stay.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for the batch, or one for each row. Draws are made on the generator's device.

        Returns:
            `torch.LongTensor` of shape `(B, ...)`: the codes with MASK in them.

        Raises:
            `ValueError` or `TypeError`: An argument has the wrong shape, dtype or range.
        """
        _check_codes("original_samples", original_samples, mask_token_id)
        _check_frozen_mask(frozen_mask, original_samples)
        if timesteps.shape != original_samples.shape[:1]:
            raise ValueError(
                f"`timesteps` must have shape ({original_samples.shape[0]},), one time for each row of"
                f" `original_samples`, got {tuple(timesteps.shape)}."
            )
        codes = _rows(original_samples)  # (B, L)
        rate = self.mask_rate(timesteps).to(codes.device)
        uniform = _rand(codes.shape, generator, codes.device, torch.float32)
        noised = codes.masked_fill(uniform < rate[:, None], mask_token_id).view_as(original_samples)
        return noised if frozen_mask is None else torch.where(frozen_mask, original_samples, noised)

    # Sampling

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """
        Start a new run: `timesteps` become `1 - k / num_inference_steps` for k = 0, 1, ..., and the counts of the last
        run are forgotten.

        Args:
            num_inference_steps (`int`):
                Number of steps, at least 1.
            device (`str` or `torch.device`, *optional*):
                Where `timesteps` shall be.
        """
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be an integer >= 1, got {num_inference_steps!r}.")
        self.num_inference_steps = num_inference_steps
        times = [self._time(index) for index in range(num_inference_steps)]
        self.timesteps = torch.tensor(times, dtype=torch.float32, device=device)
        self._start_rate = None
        self._start_num_masks = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` as it is: codes are not scaled. For interchangeability with other schedulers."""
        return sample

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The index of `timestep` in `timesteps`; a `ValueError` if it is not among them."""
        if self.timesteps is None:
            raise ValueError("`timesteps` are not set: call `set_timesteps(num_inference_steps)` first.")
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=self.timesteps.device)
        matches = (self.timesteps == timestep).nonzero().flatten().tolist()
        if not matches:
            raise ValueError(
                f"`timestep` must be one of `scheduler.timesteps` ({self.num_inference_steps} values from 1 to"
                f" {self.timesteps[-1].item()}), got {timestep.item()}."
            )
        return matches[0]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.LongTensor,
        *,
        frozen_mask: torch.BoolTensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[torch.LongTensor, torch.LongTensor]:
        """
        Draw `x_s` given `x_t` and the prediction of `x_0`, where s is the next time of `timesteps` (0 after the last).

        Args:
            model_output (`torch.Tensor` of shape `(B, ..., V)`):
                Raw logits of the clean codes. MASK is class V, which is never predicted; -inf forbids a class.
            timestep (`float` or `torch.Tensor`):
                The time t of `sample`, one of `timesteps`.
            sample (`torch.LongTensor` of shape `(B, ...)`):
                Codes in [0, V], MASK = V.
            frozen_mask (`torch.BoolTensor` of shape `(B, ...)`, *optional*):
                True where a code is given: never changed and out of the counts. It may not be MASK there.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for the batch, or one for each row. Draws are made on the generator's device.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`MaskedDiffusionSchedulerOutput`] instead of a tuple.

        Returns:
            [`MaskedDiffusionSchedulerOutput`], or the tuple `(prev_sample, pred_original_sample)`.

        Raises:
            `ValueError` or `TypeError`: An argument has the wrong shape, dtype or range, `timestep` is not one of
            `timesteps`, or the logits of a masked position are no distribution (NaN, +inf, or everything forbidden).
        """
        index = self.index_for_timestep(timestep)
        self._check_step(model_output, sample, frozen_mask)
        device, mask_token_id = sample.device, model_output.shape[-1]
        if device.type == "mps":  # has no float64
            model_output, sample = model_output.cpu(), sample.cpu()

        codes = _rows(sample)  # (B, L)
        is_masked = codes == mask_token_id
        num_masks = is_masked.sum(dim=1)  # (B,)
        rate = self.mask_rate(self._time(index)).item()
        next_rate = self.mask_rate(self._time(index + 1)).item()
        if self._start_num_masks is None:
            self._start_rate, self._start_num_masks = rate, num_masks

        # What the masked positions become
        logits = model_output.reshape(*codes.shape, mask_token_id)[is_masked].double()  # (M, V)
        if self.config.temperature == 0:
            drawn = logits.argmax(dim=-1)
        else:
            uniform = self._rand_for_masked_rows(is_masked, generator)[is_masked]
            drawn = _invert_cdf(logits, self.config.temperature, uniform)
        log_probs = logits.log_softmax(dim=-1).gather(-1, drawn[:, None]).squeeze(-1)  # (M,)
        if log_probs.isnan().any():
            raise ValueError(
                "`model_output` holds NaN or +inf, or forbids every class, at a masked position. Check the weights,"
                " and the dtype if the model runs in half precision."
            )
        pred_original = codes.masked_scatter(is_masked, drawn)

        # Which of them are decoded in this step
        if self.config.order == "ancestral":
            is_decoded = self._rand_for_masked_rows(is_masked, generator) < (rate - next_rate) / rate
        else:
            if self.config.order == "random":
                scores = self._rand_for_masked_rows(is_masked, generator)
            else:
                scores = torch.zeros_like(codes, dtype=torch.float64).masked_scatter(is_masked, log_probs)
                if self.config.choice_temperature > 0:
                    noise = _gumbel(self._rand_for_masked_rows(is_masked, generator))
                    scores = scores + self.config.choice_temperature * rate * noise
            # The small term keeps products that are whole in exact arithmetic (0.29 * 100) from falling one short.
            target = (self._start_num_masks.double() * (next_rate / self._start_rate) + 1e-9).floor().long()
            is_decoded = _highest(scores, is_masked, (num_masks - target).clamp(min=0))

        prev = torch.where(is_decoded, pred_original, codes)
        prev, pred_original = (x.view_as(sample).to(device) for x in (prev, pred_original))
        if not return_dict:
            return prev, pred_original
        return MaskedDiffusionSchedulerOutput(prev_sample=prev, pred_original_sample=pred_original)

    def _time(self, index: int) -> float:
        """`t_k = 1 - k / n`, written so that it is exactly 1 at k = 0 and 0 at k = n."""
        return (self.num_inference_steps - index) / self.num_inference_steps

    def _rand_for_masked_rows(
        self, is_masked: torch.BoolTensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        """Uniforms in [0, 1) for each position; a row with its own generator uses it only if it holds a MASK."""
        return _rand(is_masked.shape, generator, is_masked.device, torch.float64, needed=is_masked.any(dim=1))

    def _check_step(
        self, model_output: torch.Tensor, sample: torch.LongTensor, frozen_mask: torch.BoolTensor | None
    ) -> None:
        if not model_output.is_floating_point():
            raise TypeError(f"`model_output` must be floating-point logits, got {model_output.dtype}.")
        if model_output.shape[:-1] != sample.shape:
            raise ValueError(
                "`model_output` must have the shape of `sample` and the classes last, got"
                f" {tuple(model_output.shape)} for a `sample` of shape {tuple(sample.shape)}."
            )
        mask_token_id = model_output.shape[-1]
        _check_codes("sample", sample, mask_token_id)
        _check_frozen_mask(frozen_mask, sample)
        if frozen_mask is not None and (frozen_mask & (sample == mask_token_id)).any():
            raise ValueError(
                f"`frozen_mask` must be False where `sample` is MASK ({mask_token_id}): nothing is given there."
            )
        if self._start_num_masks is not None and len(self._start_num_masks) != len(sample):
            raise ValueError(
                f"`sample` has {len(sample)} rows and this run began with {len(self._start_num_masks)}. Call"
                " `set_timesteps` to begin another."
            )


def _check_codes(name: str, codes: torch.LongTensor, mask_token_id: int) -> None:
    if codes.dtype != torch.int64:
        raise TypeError(f"`{name}` must be int64 codes, got {codes.dtype}.")
    if codes.numel() == 0:
        raise ValueError(f"`{name}` must hold at least one code, got shape {tuple(codes.shape)}.")
    if codes.min() < 0 or codes.max() > mask_token_id:
        raise ValueError(
            f"`{name}` must hold codes in [0, {mask_token_id}], where {mask_token_id} is MASK, got"
            f" {codes.min().item()} to {codes.max().item()}."
        )


def _check_frozen_mask(frozen_mask: torch.BoolTensor | None, codes: torch.LongTensor) -> None:
    if frozen_mask is None:
        return
    if frozen_mask.dtype != torch.bool:
        raise TypeError(f"`frozen_mask` must be bool, got {frozen_mask.dtype}.")
    if frozen_mask.shape != codes.shape:
        raise ValueError(
            f"`frozen_mask` must have the shape of the codes, {tuple(codes.shape)}, got {tuple(frozen_mask.shape)}."
        )


def _rows(codes: torch.LongTensor) -> torch.LongTensor:
    """(B, ...) -> (B, L)"""
    return codes.reshape(codes.shape[0], -1)


def _rand(
    shape: tuple[int, int],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype,
    needed: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """Uniforms in [0, 1) of shape (B, L), drawn where the generator is; rows not `needed` (B,) draw nothing."""
    if not isinstance(generator, (list, tuple)):
        where = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=where, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"`generator` must hold one generator for each of the {shape[0]} rows, got {len(generator)}.")
    uniform = torch.zeros(shape, dtype=dtype, device=device)
    rows = range(shape[0]) if needed is None else needed.nonzero().flatten().tolist()
    for row in rows:
        own = generator[row]
        uniform[row] = torch.rand(shape[1], generator=own, device=own.device, dtype=dtype).to(device)
    return uniform


def _invert_cdf(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.LongTensor:
    """The class at which the cumulated `softmax(logits / temperature)` (M, V) first exceeds `uniform` (M,)."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing to inf - inf inside the softmax.
    cdf = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1).cumsum(dim=-1)
    total = cdf[:, -1:].contiguous()
    # `right=True` steps over classes of probability 0, and so does the last class that may be drawn.
    drawn = torch.searchsorted(cdf, uniform[:, None] * total, right=True)
    last = (cdf < total).sum(dim=-1, keepdim=True)
    return torch.minimum(drawn, last).squeeze(-1)


def _gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from float64 uniforms in [0, 1), finite also at 0."""
    return -torch.log(-torch.log(uniform.clamp(min=2**-54)))


def _highest(scores: torch.Tensor, candidates: torch.BoolTensor, counts: torch.LongTensor) -> torch.BoolTensor:
    """The `counts` (B,) candidates with the highest scores in each row of (B, L), exactly so many also among ties."""
    scores = scores.masked_fill(~candidates, -math.inf)
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < counts[:, None]

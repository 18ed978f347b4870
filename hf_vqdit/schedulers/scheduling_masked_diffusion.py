# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Masked (absorbing-state) diffusion over discrete codes: one corruption, and the ways to undo it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging
from transformers import TopKLogitsWarper, TopPLogitsWarper

MASK_SCHEDULES = ("cosine", "linear", "square", "arccos")
ORDERS = ("ancestral", "confidence", "entropy", "random", "halton")
# Logits that are drawn from at once: in float64 2 MB on a CPU, which stay in its cache, and 128 MB elsewhere.
CPU_DRAWING_ENTRIES, MAX_DRAWING_ENTRIES = 2**18, 2**24
# The ways to remask, and the strengths at which their paper (ReMDM, Wang 2025) runs them.
REMASKING_ETAS = {"cap": 0.008, "rescale": 0.015, "confidence": 1.0, "loop": 0.02}

logger = logging.get_logger(__name__)


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """
    Output of [`MaskedDiffusionScheduler.step`].

    Args:
        prev_sample (`torch.LongTensor` of shape `(B, ...)`):
            The codes after the step, some of them still (or again) MASK, except after the last step.
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
    - `"entropy"`: the same number, those whose prediction has the highest entropy. What is drawn first then settles
      most of the rest, so that codes drawn together at later steps agree: for captions, of which the first few tokens
      tell how the sentence goes. Positions are chosen before anything is drawn, so at one code a step samples keep the
      law of the predictions (at temperature 1, nothing cut off); a choice by confidence changes it.
    - `"random"`: the same number, at random positions.
    - `"halton"`: the same number, in the order in which the points of the Halton sequence with bases 2 and 3 fall into
      the cells of the grid (Halton-MaskGIT, Besnier 2025): codes decoded together lie far apart, where they depend
      little on each other. The grid is h x w for a sample of shape `(B, h, w)`, S/r x G for text; in any other shape
      the codes form a line, on which this is the van der Corput sequence of base 2.

    The orders by count leave `floor(n * mask_rate(s) / mask_rate(t_0))` codes MASK, where n of the row's codes were
    MASK at the run's first step and t_0 is the time of that step (1 unless a run starts in the middle). A row with
    fewer masks than there are steps has steps that decode nothing. The last step always decodes everything.

    With `block_length` the orders by count go from left to right, block by block (semi-autoregressive decoding: LLaDA,
    Nie 2025): the number of codes a step decodes is the same, but they come from the first block that holds a MASK,
    and from the next only when that one is complete.

    **Remasking.** A code decoded too early may be taken back. Let a = 1 - m(t) / m(t_0) and b = 1 - m(s) / m(t_0) be
    the probabilities that a code which was MASK at t_0 is known at t and at s: alpha, if t_0 is 1. Every sigma in
    [0, sigma_max], sigma_max = min(1, (1 - b) / a), gives a posterior of the same corruption (ReMDM, Wang 2025):

        q(x_s = MASK | x_t = x_0)  = sigma
        q(x_s = x_0  | x_t = MASK) = (b - (1 - sigma) a) / (1 - a) = (m(t) - m(s) + sigma (m(t_0) - m(t))) / m(t)

    since a (1 - sigma) + (1 - a) q(x_s = x_0 | x_t = MASK) = b. Only codes decoded in this run are taken back, never
    given ones nor others that were known at its first step, and none in its last step, where sigma_max is 0. With
    eta = `remasking_eta`, `remasking` sets sigma:

    - `"cap"`: min(eta, sigma_max).
    - `"rescale"`: eta sigma_max.
    - `"confidence"`: sigma_max min(1 / e, eta / (n a)) for a MASK, and this times w_i for a code i that may be taken
      back, where w_i is exp(-psi_i) over its mean in the row, and psi_i the probability that the prediction gave the
      code when it was decoded. As n a of these codes are expected, some eta sigma_max are taken back a step, and with
      eta = 1 their sigma are the paper's sigma_max softmax(-psi). (For a MASK the paper's is 0: masks pile up.) The
      bound 1 / e keeps sigma_max w_i legal.
    - `"loop"`: the run goes down the mask schedule until a = `loop_alpha`, stays there from `loop_start` to `loop_end`
      of its time, with sigma = min(eta, sigma_max), and then goes on to the end; outside of the loop sigma is 0.
      `mask_rate` and `alpha` do not know of it: the network is told the masks it sees.

    `order="ancestral"` follows these probabilities for each code. The orders by count keep their counts exactly: a
    step remasks m of the codes that may be taken back, and decodes m more of the positions that were MASK before it.
    Those just remasked, for which the network was not asked, wait for the next step. m is the sum of the codes' sigma,
    rounded up or down at random so that its mean is kept; that sigma is at most sigma_max keeps m within the masks
    that are to remain. Which m is random; with `"confidence"` it is those of lowest psi.

    Probabilities and noise are computed in float64: Gumbel noise from float32 uniforms ends at 16.6 and quietly lowers
    the temperature. A code is drawn by inverting the cumulative distribution at one uniform for each position. With a
    list of generators a row draws from its own alone, and a row with nothing to decode or to remask draws nothing:
    what is sampled for a row does not depend on the rest of the batch.

    Time runs from 0 (clean) to 1 (all MASK). A run may begin at any of `timesteps`, with a sample that [`add_noise`]
    made for that time. `scheduler.order` is diffusers' attribute of that name (1: one model call a step); the order of
    decoding is `scheduler.config.order`.

    Args:
        mask_schedule (`str`, *optional*, defaults to `"cosine"`):
            The mask rate at time t. `"linear"`: t. `"cosine"`: sin(pi t / 2), and `"square"`: 1 - (1 - t)^2, which
            decode few codes first (both MaskGIT, Sec. 3.3). `"arccos"`: (2 / pi) arccos(1 - t) (Halton-MaskGIT,
            Besnier 2025).
        order (`str`, *optional*, defaults to `"confidence"`):
            `"ancestral"`, `"confidence"`, `"entropy"`, `"random"` or `"halton"`, see above.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the logits before a code is drawn; 0 takes the most probable code. Confidence and entropy are
            those of the undivided, unfiltered logits.
        choice_temperature (`float`, *optional*, defaults to 1.0):
            Scale of the Gumbel noise of the confidence order. It is multiplied by the mask rate, so that it falls as
            the sample fills. 0 decodes the most confident codes first.
        top_k (`int`, *optional*):
            Draw from the `top_k` most probable codes only, and those that equal the last of them.
        top_p (`float`, *optional*, defaults to 1.0):
            Draw from the fewest most probable codes that hold this much probability together, at `temperature` and
            after `top_k` (nucleus sampling, Holtzman 2020): the code that crosses `top_p` is kept. 1 keeps all.
        block_length (`int`, *optional*):
            Positions a block, along the first axis after the batch and with all codes at these positions: text
            positions with all their groups, or rows of a grid. Not with the ancestral order, nor with remasking.
        halton_randomize (`bool`, *optional*, defaults to `True`):
            Whether the grid is rolled over its edges by an offset that each row of the batch draws at the run's first
            step, so that rows differ.
        remasking (`str`, *optional*):
            `"cap"`, `"rescale"`, `"confidence"` or `"loop"`, see above. It pays with many steps, some 64 or more.
        remasking_eta (`float`, *optional*):
            Strength of the remasking. By default the paper's for many steps: 0.008 for `"cap"`, 0.015 for `"rescale"`,
            1 for `"confidence"` (where it counts codes and may exceed 1), 0.02 for `"loop"`.
        loop_start (`float`, *optional*, defaults to 0.55):
            Time at which the loop begins, as a fraction of the time of the run's first step. For `"loop"` alone.
        loop_end (`float`, *optional*, defaults to 0.05):
            Time at which it ends, likewise.
        loop_alpha (`float`, *optional*, defaults to 0.9):
            Fraction of the codes to decode that is known during the loop.
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
        top_k: int | None = None,
        top_p: float = 1.0,
        block_length: int | None = None,
        halton_randomize: bool = True,
        remasking: str | None = None,
        remasking_eta: float | None = None,
        loop_start: float = 0.55,
        loop_end: float = 0.05,
        loop_alpha: float = 0.9,
    ):
        if mask_schedule not in MASK_SCHEDULES:
            raise ValueError(f"`mask_schedule` must be one of {MASK_SCHEDULES}, got {mask_schedule!r}.")
        if order not in ORDERS:
            raise ValueError(f"`order` must be one of {ORDERS}, got {order!r}.")
        for name, value in (("temperature", temperature), ("choice_temperature", choice_temperature)):
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number >= 0, got {value}.")
        for name, count in (("top_k", top_k), ("block_length", block_length)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"`{name}` must be an integer >= 1, or None to leave it off, got {count!r}.")
        if not 0 < top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], where 1 keeps every code, got {top_p}.")
        if block_length is not None and order == "ancestral":
            raise ValueError(
                f"`block_length` ({block_length}) needs an order by count, one of {ORDERS[1:]}: with"
                ' `order="ancestral"` every masked code may be decoded at any step.'
            )
        if block_length is not None and remasking is not None:
            raise ValueError(
                f"`remasking` ({remasking!r}) takes back codes of blocks that are complete: leave out either it or"
                f" `block_length` ({block_length})."
            )
        _check_remasking(remasking, remasking_eta, loop_start, loop_end, loop_alpha)

        self.timesteps: torch.Tensor | None = None
        self.num_inference_steps: int | None = None
        self._forget_run()

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
        elif self.config.mask_schedule == "square":
            rate = 1 - (1 - t) ** 2
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
        Start a new run: `timesteps` become `1 - k / num_inference_steps` for k = 0, 1, ..., and what was kept of the
        last run (counts, order, confidences) is forgotten.

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
        self._forget_run()

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
        The first call after [`set_timesteps`] begins the run, at whichever of them.

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
        if self._start_shape is None:
            self._begin_run(sample, is_masked, index, generator)
        start_rate = self.mask_rate(self._start_time).item()
        rate = self.mask_rate(self._path_time(index)).item()
        next_rate = self.mask_rate(self._path_time(index + 1)).item()

        # What the masked positions become
        logits = model_output.reshape(*codes.shape, mask_token_id)[is_masked]  # (M, V)
        uniform = None if self.config.temperature == 0 else _rand_for(is_masked, generator)[is_masked]  # (M,)
        drawn, log_probs = self._draw(logits, uniform)  # (M,)
        if log_probs.isnan().any():
            raise ValueError(
                "`model_output` holds NaN or +inf, or forbids every class, at a masked position. Check the weights,"
                " and the dtype if the model runs in half precision."
            )
        pred_original = codes.masked_scatter(is_masked, drawn)
        log_probs = torch.zeros_like(codes, dtype=torch.float64).masked_scatter(is_masked, log_probs)  # (B, L)

        # Which known codes may become MASK again, and how probable that is for each
        is_remaskable = self._is_decoded & ~is_masked
        if frozen_mask is not None:
            is_remaskable &= ~_rows(frozen_mask).to(codes.device)
        sigma = self._sigma(is_remaskable, index, start_rate, rate, next_rate)

        # Which positions are decoded in this step, and which become MASK again
        if self.config.order == "ancestral":
            uniform = _rand_for(is_masked | is_remaskable, generator)
            is_decoded = is_masked & (uniform < (rate - next_rate + sigma * (start_rate - rate)) / rate)
            is_remasked = is_remaskable & (uniform < sigma)
        else:
            # The small term keeps products that are whole in exact arithmetic (0.29 * 100) from falling one short.
            target = (self._start_num_masks.double() * (next_rate / start_rate) + 1e-9).floor().long()
            scores = self._scores(logits, log_probs, is_masked, rate, generator)
            is_remasked = self._choose_remasked(is_remaskable, sigma, target, generator)
            counts = (num_masks - target + is_remasked.sum(dim=1)).clamp(min=0)
            is_decoded = _highest(scores, is_masked, counts, self._block_ids)

        self._is_decoded = is_decoded | (is_remaskable & ~is_remasked)
        self._confidences = torch.where(is_decoded, log_probs.exp(), self._confidences)
        prev = torch.where(is_decoded, pred_original, codes).masked_fill(is_remasked, mask_token_id)
        prev, pred_original = (x.view_as(sample).to(device) for x in (prev, pred_original))
        if not return_dict:
            return prev, pred_original
        return MaskedDiffusionSchedulerOutput(prev_sample=prev, pred_original_sample=pred_original)

    # The run: what the first step fixes, and what the steps remember

    def _forget_run(self) -> None:
        self._start_time: float | None = None
        self._start_shape: torch.Size | None = None
        self._start_num_masks: torch.LongTensor | None = None  # (B,)
        self._is_decoded: torch.BoolTensor | None = None  # (B, L), in this run, and not remasked since
        self._confidences: torch.Tensor | None = None  # (B, L) float64, probability of a code when it was decoded
        self._halton_ranks: torch.LongTensor | None = None  # (B, L)
        self._block_ids: torch.LongTensor | None = None  # (L,)

    def _begin_run(
        self,
        sample: torch.LongTensor,
        is_masked: torch.BoolTensor,
        index: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        if self.config.order == "halton":
            grid_size = sample.shape[1:] if sample.ndim == 3 else (is_masked.shape[1], 1)
            shifts = torch.zeros(len(sample), 2, dtype=torch.float64, device=sample.device)
            if self.config.halton_randomize:
                shifts = _rand(shifts.shape, generator, sample.device, torch.float64, needed=is_masked.any(dim=1))
            self._halton_ranks = _roll(_halton_ranks(*grid_size).to(sample.device), shifts)
        if self.config.block_length is not None:
            num_positions = sample.shape[1] if sample.ndim > 1 else 1
            block_ids = torch.arange(num_positions, device=sample.device) // self.config.block_length
            self._block_ids = block_ids.repeat_interleave(is_masked.shape[1] // num_positions)
        self._start_time = self._time(index)
        self._start_num_masks = is_masked.sum(dim=1)
        self._is_decoded = torch.zeros_like(is_masked)
        self._confidences = torch.zeros_like(is_masked, dtype=torch.float64)
        self._start_shape = sample.shape

    def _time(self, index: int) -> float:
        """`t_k = 1 - k / n`, written so that it is exactly 1 at k = 0 and 0 at k = n."""
        return (self.num_inference_steps - index) / self.num_inference_steps

    def _path_time(self, index: int) -> float:
        """Where on the mask schedule the run is at `t_k`: there, unless it loops."""
        time = self._time(index)
        if self.config.remasking != "loop":
            return time
        loop_start, loop_end = self.config.loop_start, self.config.loop_end
        loop_rate = (1 - self.config.loop_alpha) * self.mask_rate(self._start_time).item()
        loop_time = _time_of_mask_rate(self.config.mask_schedule, loop_rate)
        progress = time / self._start_time  # falls from exactly 1 to exactly 0
        if progress > loop_start:
            return self._start_time - (self._start_time - loop_time) * (1 - progress) / (1 - loop_start)
        return loop_time * min(1.0, progress / loop_end)

    # The choice of codes

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor | None) -> tuple[torch.LongTensor, torch.Tensor]:
        """A code (M,) for each row of logits (M, V), and the logarithm of its probability, by some rows at a time."""
        num_rows = _num_rows_at_once(logits)
        drawn = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        log_probs = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
        for start in range(0, len(logits), num_rows):
            rows = slice(start, start + num_rows)
            chunk = logits[rows].double()
            if uniform is None:
                drawn[rows] = chunk.argmax(dim=-1)
            else:
                drawn[rows] = _invert_cdf(self.drawing_logits(chunk), uniform[rows])
            log_probs[rows] = chunk.log_softmax(dim=-1).gather(-1, drawn[rows, None]).squeeze(-1)
        return drawn, log_probs

    # The choice of positions

    def _scores(
        self,
        logits: torch.Tensor,
        log_probs: torch.Tensor,
        is_masked: torch.BoolTensor,
        rate: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """(B, L): the masked positions with the highest are decoded first."""
        if self.config.order == "halton":
            return -self._halton_ranks.double()
        if self.config.order == "random":
            return _rand_for(is_masked, generator)
        if self.config.order == "entropy":
            return torch.zeros_like(log_probs).masked_scatter(is_masked, _entropy(logits))
        if self.config.choice_temperature == 0:
            return log_probs
        return log_probs + self.config.choice_temperature * rate * _gumbel(_rand_for(is_masked, generator))

    def _sigma(
        self, is_remaskable: torch.BoolTensor, index: int, start_rate: float, rate: float, next_rate: float
    ) -> float | torch.Tensor:
        """ReMDM's sigma: one number, or for each position (B, L) where it depends on the confidence."""
        known_rate = start_rate - rate
        if self.config.remasking is None or known_rate <= 0:
            return 0.0
        sigma_max = min(1.0, next_rate / known_rate)
        eta = self.config.remasking_eta
        if eta is None:
            eta = REMASKING_ETAS[self.config.remasking]
        if self.config.remasking == "rescale":
            return eta * sigma_max
        if self.config.remasking == "cap":
            return min(eta, sigma_max)
        if self.config.remasking == "loop":
            is_looping = self.config.loop_end < self._time(index) / self._start_time <= self.config.loop_start
            return min(eta, sigma_max) if is_looping else 0.0
        expected_known = self._start_num_masks[:, None].double() * (known_rate / start_rate)  # (B, 1), n a
        mean = sigma_max * (eta / expected_known).clamp(max=1 / math.e)  # (B, 1)
        weights = (-self._confidences).exp() * is_remaskable  # in [1 / e, 1]; no softmax, over nothing it is NaN
        mean_weight = weights.sum(dim=1, keepdim=True) / is_remaskable.sum(dim=1, keepdim=True)
        return mean * torch.where(is_remaskable, weights / mean_weight, 1.0)

    def _choose_remasked(
        self,
        is_remaskable: torch.BoolTensor,
        sigma: float | torch.Tensor,
        target: torch.LongTensor,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.BoolTensor:
        """(B, L): for the orders by count, at most `target` (B,) codes a row."""
        if self.config.remasking is None:
            return torch.zeros_like(is_remaskable)
        expected = (sigma * is_remaskable.double()).sum(dim=1)  # (B,)
        uniform = _rand((len(target), 1), generator, target.device, torch.float64, needed=is_remaskable.any(dim=1))
        counts = (expected + uniform.squeeze(1)).floor().long()
        counts = counts.minimum(target).minimum(is_remaskable.sum(dim=1))
        if self.config.remasking == "confidence":
            return _highest(-self._confidences, is_remaskable, counts)
        return _highest(_rand_for(is_remaskable, generator), is_remaskable, counts)

    def drawing_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """
        The logits whose softmax codes are drawn from: at `temperature`, -inf for classes that `top_k` and `top_p`
        leave out.

        Args:
            logits (`torch.Tensor` of shape `(M, V)`):
                Raw logits of M codes.

        Returns:
            `torch.Tensor` of shape `(M, V)`.
        """
        if self.config.temperature == 0:
            return torch.full_like(logits, -math.inf).scatter(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
        # Subtracting the maximum first keeps a tiny temperature from overflowing to inf - inf inside the softmax.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.config.temperature
        if self.config.top_k is not None:
            logits = TopKLogitsWarper(self.config.top_k)(None, logits)
        if self.config.top_p < 1:
            logits = TopPLogitsWarper(self.config.top_p)(None, logits)
        return logits

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
        if self._start_shape is not None and sample.shape != self._start_shape:
            raise ValueError(
                f"`sample` has {len(sample)} rows and this run began with {self._start_shape[0]} (the shapes are"
                f" {tuple(sample.shape)} and {tuple(self._start_shape)}). Call `set_timesteps` to begin another."
            )


def _check_remasking(
    remasking: str | None, eta: float | None, loop_start: float, loop_end: float, loop_alpha: float
) -> None:
    if not 0 < loop_end < loop_start < 1:
        raise ValueError(
            "`loop_end` and `loop_start` must be times with 0 < `loop_end` < `loop_start` < 1, since time falls, got"
            f" {loop_end} and {loop_start}."
        )
    if not 0 < loop_alpha < 1:
        raise ValueError(f"`loop_alpha` must lie between 0 and 1, got {loop_alpha}.")
    if remasking is None:
        if eta is not None:
            logger.warning(f"`remasking_eta` ({eta}) has no effect without `remasking`.")
        return
    if remasking not in REMASKING_ETAS:
        raise ValueError(f"`remasking` must be one of {tuple(REMASKING_ETAS)} or None, got {remasking!r}.")
    limit = {"confidence": math.inf, "loop": min(1.0, (1 - loop_alpha) / loop_alpha)}.get(remasking, 1.0)
    eta = REMASKING_ETAS[remasking] if eta is None else eta
    if not (0 < eta <= limit and eta < math.inf):
        raise ValueError(
            f"`remasking_eta` must be a finite number > 0 and at most {limit:g} with `remasking={remasking!r}`"
            f"{' and this `loop_alpha`' if remasking == 'loop' else ''}, got {eta}. To remask nothing, leave"
            " `remasking` out."
        )


def _check_codes(name: str, codes: torch.LongTensor, mask_token_id: int) -> None:
    if codes.dtype != torch.int64:
        raise TypeError(f"`{name}` must be int64 codes, got {codes.dtype}.")
    if codes.numel() == 0:
        raise ValueError(f"`{name}` must hold at least one code, got shape {tuple(codes.shape)}.")
    low, high = torch.stack(codes.aminmax()).tolist()
    if low < 0 or high > mask_token_id:
        raise ValueError(
            f"`{name}` must hold codes in [0, {mask_token_id}], where {mask_token_id} is MASK, got {low} to {high}."
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


def _time_of_mask_rate(mask_schedule: str, rate: float) -> float:
    """The inverse of [`MaskedDiffusionScheduler.mask_rate`]."""
    if mask_schedule == "linear":
        return rate
    if mask_schedule == "cosine":
        return math.asin(rate) * (2 / math.pi)
    if mask_schedule == "square":
        return 1 - math.sqrt(1 - rate)
    return 1 - math.cos(rate * (math.pi / 2))


def _rand_for(positions: torch.BoolTensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
    """Uniforms in [0, 1) for (B, L); a row with its own generator uses it only if any of its `positions` is True."""
    return _rand(positions.shape, generator, positions.device, torch.float64, needed=positions.any(dim=1))


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
    settings = {"device": generator[0].device, "dtype": dtype}
    is_needed = [True] * shape[0] if needed is None else needed.tolist()
    rows = [
        torch.rand(shape[1], generator=own, **settings) if draws else torch.zeros(shape[1], **settings)
        for own, draws in zip(generator, is_needed, strict=True)
    ]
    return torch.stack(rows).to(device)  # one copy for all rows: an accelerator waits for each


def _invert_cdf(logits: torch.Tensor, uniform: torch.Tensor) -> torch.LongTensor:
    """The class at which the cumulated `softmax(logits)` (M, V) first exceeds `uniform` (M,)."""
    cdf = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cdf[:, -1:].contiguous()
    # `right=True` steps over classes of probability 0, and so does the last class that may be drawn.
    drawn = torch.searchsorted(cdf, uniform[:, None] * total, right=True)
    last = torch.searchsorted(cdf, total).clamp(max=cdf.shape[-1] - 1)  # NaN, which is no code, lies beyond the end
    return torch.minimum(drawn, last).squeeze(-1)


def _num_rows_at_once(logits: torch.Tensor) -> int:
    """Of logits (M, V): float64 and sorting take ten times their memory."""
    return max(1, (CPU_DRAWING_ENTRIES if logits.is_cpu else MAX_DRAWING_ENTRIES) // logits.shape[1])


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """In nats, float64 (M,), of the distributions `softmax(logits)` (M, V)."""
    chunks = logits.split(_num_rows_at_once(logits))
    return torch.cat([torch.special.entr(chunk.double().softmax(dim=-1)).sum(dim=-1) for chunk in chunks])


def _gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from float64 uniforms in [0, 1), finite also at 0."""
    return -torch.log(-torch.log(uniform.clamp(min=2**-54)))


def _highest(
    scores: torch.Tensor,
    candidates: torch.BoolTensor,
    counts: torch.LongTensor,
    block_ids: torch.LongTensor | None = None,
) -> torch.BoolTensor:
    """
    The `counts` (B,) candidates with the highest scores in each row of (B, L), exactly so many also among ties; those
    of a lower block (L,) before all others.
    """
    order = scores.masked_fill(~candidates, -math.inf).argsort(dim=1, descending=True, stable=True)
    if block_ids is not None:
        blocks = block_ids.expand_as(order).masked_fill(~candidates, len(block_ids))  # who is no candidate comes last
        order = order.gather(1, blocks.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1) < counts[:, None]


def _halton_ranks(num_rows: int, num_columns: int) -> torch.LongTensor:
    """(h, w): when the Halton sequence, base 2 down the rows and 3 along the columns, first falls into each cell."""
    # With 2^i >= 2 h every row of the grid holds one of the 2^i equal parts of [0, 1) whole, and so do columns with
    # 3^j >= 2 w. Of 2^i 3^j consecutive points one falls into each pair of parts: no cell stays empty.
    num_points = 2 ** math.ceil(math.log2(2 * num_rows)) * 3 ** math.ceil(math.log(2 * num_columns, 3))
    indices = torch.arange(1, num_points + 1)
    rows, columns = _radical_inverse(indices, 2, num_rows), _radical_inverse(indices, 3, num_columns)
    first = torch.full((num_rows * num_columns,), num_points + 1)
    first.scatter_reduce_(0, rows * num_columns + columns, indices, "amin")
    return first.argsort().argsort().view(num_rows, num_columns)


def _radical_inverse(indices: torch.LongTensor, base: int, num_cells: int) -> torch.LongTensor:
    """The cell of [0, 1), cut into `num_cells`, that holds the mirrored digits 0.d_0 d_1 d_2 ... of each index."""
    mirrored, denominator = torch.zeros_like(indices), 1
    while indices.any():
        mirrored = mirrored * base + indices % base
        indices = indices // base
        denominator *= base
    return mirrored * num_cells // denominator  # in whole numbers: 1/3 * 3 must not fall short of 1


def _roll(grid: torch.LongTensor, shifts: torch.Tensor) -> torch.LongTensor:
    """Copies (B, h w) of a grid (h, w), rolled over its edges by `shifts` (B, 2), fractions of its sides."""
    size = torch.tensor(grid.shape, device=grid.device)
    offsets = (shifts * size).long().minimum(size - 1)  # (B, 2)
    rows, columns = (
        (torch.arange(length, device=grid.device) + offsets[:, axis, None]) % length  # (B, h), (B, w)
        for axis, length in enumerate(grid.shape)
    )
    return grid[rows[:, :, None], columns[:, None, :]].flatten(1)

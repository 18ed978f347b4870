# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The Diffusion Transformer over the codes of a text and of an image: one sequence, one time for each modality."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import (
    TimestepEmbedding,
    apply_rotary_emb,
    get_1d_rotary_pos_embed,
    get_timestep_embedding,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor

PROCESSES = ("masked", "gaussian")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass
class VQDiTOutput(BaseOutput):
    """
    Output of [`VQDiTModel`] where `process="masked"`.

    Args:
        image_logits (`torch.FloatTensor` of shape `(B, h, w, V_x)`):
            Raw scores of the clean image codes, always float32. MASK is not a class.
        text_logits (`torch.FloatTensor` of shape `(B, S/r, G, V_y + 1)`):
            Raw scores of the clean text codes, always float32. The last class is PAD; MASK is not a class.
    """

    # Defaults, because accelerate rebuilds outputs from a dictionary when it casts them to float32.
    image_logits: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None


@dataclass
class VQDiTGaussianOutput(BaseOutput):
    """
    Output of [`VQDiTModel`] where `process="gaussian"`.

    Args:
        image_sample (`torch.FloatTensor` of shape `(B, C, h, w)`, or `(B, 2 C, h, w)` with `learn_sigma`):
            What `prediction_type` says, always float32; the second half is the variance, as in DiT.
        text_sample (`torch.FloatTensor` of shape `(B, C, S/r, G)`, or `(B, 2 C, S/r, G)` with `learn_sigma`):
            The same for text.
    """

    image_sample: torch.FloatTensor | None = None
    text_sample: torch.FloatTensor | None = None


def mask_rate(codes: torch.LongTensor, mask_token_id: int) -> torch.FloatTensor:
    """What the transformer is told of a modality: each row's fraction of MASK among all its codes, `(B,)`."""
    return (codes == mask_token_id).flatten(1).float().mean(dim=1)


def original_sample(
    prediction_type: str, prediction: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """x_0 of what is predicted at x_t = alpha x_0 + sigma eps; in a flow alpha + sigma = 1, else their squares."""
    if prediction_type == "epsilon":
        return (x_t - sigma * prediction) / alpha
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * prediction
    return x_t - sigma * prediction


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """RMSNorm, scaled and shifted, in the dtype of the modulation, in which the next layer computes."""
    normed = F.rms_norm(hidden_states, hidden_states.shape[-1:], eps=1e-6).to(shift.dtype)
    return torch.addcmul(shift, normed, scale)


def gather_rows(rows: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Modulation rows `(B, 4, n, D)` to n tensors `(B, L, D)`; `index` `(B, L)` counts through all 4 B rows."""
    return tuple(
        row.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape) for row in rows.unbind(dim=2)
    )


def default_axes_dims_rope(head_dim: int) -> tuple[int, int, int]:
    """About an eighth of the head dimension for time, the rest in equal even parts for row and column."""
    spatial_dim = 2 * ((head_dim - head_dim // 8) // 4)
    return head_dim - 2 * spatial_dim, spatial_dim, spatial_dim


class VQDiTAttnProcessor:
    """Self-attention with normalised, rotated queries and keys, through diffusers' attention backends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: VQDiTAttention, hidden_states: torch.Tensor, rotary_emb: torch.Tensor) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))  # (B, L, N, K)

        # Under autocast the weight of the norm is float32 and its input is not, which would leave the fused kernel.
        query, key = attn.norm_q(query.to(attn.norm_q.weight.dtype)), attn.norm_k(key.to(attn.norm_k.weight.dtype))
        query = apply_rotary_emb(query, rotary_emb, use_real=False)
        key = apply_rotary_emb(key, rotary_emb, use_real=False)

        # On a CPU the backward pass of bfloat16 attention is several times slower than that of float32.
        dtype = torch.float32 if value.is_cpu else value.dtype
        with torch.autocast("cpu", enabled=False):
            attended = dispatch_attention_fn(
                *(x.to(dtype) for x in (query, key, value)),
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        attended = attended.flatten(2, 3).to(value.dtype)  # (B, L, D)
        return attn.to_out[1](attn.to_out[0](attended))


class VQDiTAttention(nn.Module, AttentionModuleMixin):
    """Self-attention over the whole sequence, text and image alike; nothing is hidden from it."""

    _default_processor_cls = VQDiTAttnProcessor
    _available_processors = [VQDiTAttnProcessor]

    def __init__(self, hidden_size: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.head_dim = hidden_size // heads
        self.use_bias = False  # read by `fuse_projections`
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size), nn.Dropout(dropout)])
        self.norm_q = nn.RMSNorm(self.head_dim, eps=1e-6)  # QK-norm (Dehghani 2023, ViT-22B)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, rotary_emb: torch.Tensor) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_emb)


class VQDiTBlock(nn.Module):
    """Attention and a SwiGLU, each behind RMSNorm and adaLN-Zero (Peebles & Xie 2023)."""

    def __init__(self, hidden_size: int, num_attention_heads: int, mlp_hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.attn = VQDiTAttention(hidden_size, num_attention_heads, dropout)
        self.ff = FeedForward(
            hidden_size, inner_dim=mlp_hidden_size, activation_fn="swiglu", dropout=dropout, bias=False
        )
        # This block's own part of the modulation, added to what all blocks share (PixArt-alpha, Chen 2023, Sec. 2.3).
        self.scale_shift_table = nn.Parameter(torch.zeros(4, 6, hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        modulation_index: torch.Tensor,
        rotary_emb: torch.Tensor,
    ) -> torch.Tensor:
        rows = (modulation + self.scale_shift_table).to(modulation.dtype)  # (B, 4, 6, D)
        attn_shift, attn_scale, attn_gate, ff_shift, ff_scale, ff_gate = gather_rows(rows, modulation_index)

        attended = self.attn(modulate(hidden_states, attn_shift, attn_scale), rotary_emb)
        hidden_states = hidden_states + attn_gate * attended
        return hidden_states + ff_gate * self.ff(modulate(hidden_states, ff_shift, ff_scale))


# diffusers' cache hooks (`enable_cache`) look a block's class up here. The module is private to diffusers: if another
# version has moved it, caching is lost and everything else still works.
try:
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
except ImportError:
    pass
else:
    TransformerBlockRegistry.register(VQDiTBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class ModalityRun:
    """
    One modality in one call of a sampler: its codes, which of them are given, and the steps that generate the others.

    The steps are indices of the scheduler's `timesteps`; a step of `None` is one of the other modality. What a run
    looks like in between is its process's: see [`MaskedRun`] and [`GaussianRun`].
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        codes: torch.LongTensor,
        given: torch.BoolTensor,
        forbidden: torch.BoolTensor | None,
    ):
        self.scheduler, self.source, self.given, self.forbidden = scheduler, codes, given, forbidden
        self.timesteps, self.steps = (), range(0)

    def begin(
        self,
        num_inference_steps: int,
        strength: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> None:
        """Choose the steps, by default all, and noise what is not given for the first of the last `strength`."""
        self._set_timesteps(num_inference_steps, device=self.source.device)
        self.timesteps = self.scheduler.timesteps
        # The small term keeps products that are whole in exact arithmetic (0.29 * 100) from falling one short.
        num_steps = num_inference_steps if strength is None else int(strength * num_inference_steps + 1e-9)
        first_step = self.scheduler.order * (num_inference_steps - num_steps)
        self.steps = range(min(first_step, len(self.timesteps)), len(self.timesteps))
        if self.steps:
            self._start(generator)
        else:
            self.settle(self.source)

    def _set_timesteps(self, num_inference_steps: int, **settings: Any) -> None:
        self.scheduler.set_timesteps(num_inference_steps, **settings)


class MaskedRun(ModalityRun):
    """A run whose state are its codes, MASK where nothing is known yet."""

    def __init__(self, scheduler, codes, given, forbidden, mask_id: int):
        super().__init__(scheduler, codes, given, forbidden)
        self.mask_id = mask_id
        self.codes = codes.masked_fill(~given, mask_id)
        self.prediction: torch.LongTensor | None = None  # (B, ...), of all codes

    @property
    def is_known(self) -> bool:
        """Whether anything is known that could guide the other modality."""
        return bool((self.codes != self.mask_id).any())

    @property
    def times(self) -> torch.Tensor:
        """The time in [0, 1] at which each of the scheduler's steps begins."""
        return self.timesteps

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a callback may look at, and change by `update`."""
        return {"codes": self.codes}

    def update(self, codes: torch.LongTensor) -> None:
        """Take over what a callback has changed."""
        self.codes = codes

    def state(self, step: int | None) -> torch.LongTensor:
        """What the transformer looks at before a step."""
        return self.codes

    def settle(self, codes: torch.LongTensor) -> None:
        """From here on all codes are known."""
        self.codes = codes

    def _start(self, generator: torch.Generator | list[torch.Generator] | None) -> None:
        if self.steps.start > 0:  # else nothing is drawn: this is plain generation, bit for bit
            time = self.timesteps[self.steps.start].expand(len(self.codes))
            self.codes = self.scheduler.add_noise(
                self.source, time, mask_token_id=self.mask_id, frozen_mask=self.given, generator=generator
            )

    def advance(
        self, step: int | None, logits: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> None:
        """Draw codes from what was predicted."""
        if self.forbidden is not None:  # only now: guidance needs raw logits, -inf minus -inf is NaN
            logits = logits.masked_fill(self.forbidden, -torch.inf)
        if step is not None:
            settings = {"frozen_mask": self.given, "generator": generator, "return_dict": False}
            self.codes, self.prediction = self.scheduler.step(logits, self.timesteps[step], self.codes, **settings)
        elif self.prediction is None:  # what an interrupted call shows of a modality that had not begun
            self.prediction = logits.argmax(dim=-1)

    def result(self) -> torch.LongTensor:
        """The codes; only an interrupted call has some left to fill in from the last prediction."""
        if self.prediction is None:
            return self.codes
        return torch.where(self.codes == self.mask_id, self.prediction, self.codes)


class NoisyLatents(NamedTuple):
    """The state of a [`GaussianRun`]."""

    latents: torch.FloatTensor  # (B, C, ...), as the transformer takes them
    timestep: torch.FloatTensor  # (B,)
    given_mask: torch.BoolTensor  # (B, ...)
    noise: torch.FloatTensor  # (B, C, ...), stands for nothing known


class GaussianRun(ModalityRun):
    """
    A run whose state are noisy vectors of codes; at the end they become the nearest codes, of `vectors` `(V, C)`.

    It begins with `noise` `(B, C, ...)`, which also stands for the modality where nothing is known of it. Given
    vectors are fed clean, whole patches of them. In a patch of which a part is given that part has the noise of the
    others (RePaint, Lugmayr 2022), and is put back at the end.
    """

    def __init__(self, scheduler, codes, given, forbidden, vectors, noise, patch_size, config: FrozenDict):
        super().__init__(scheduler, codes, given, forbidden)
        self.vectors, self.noise, self.config = vectors, noise, config
        self.own_settings = signature(type(scheduler).__init__).parameters  # its config may keep another class's
        self.is_flow = config.prediction_type == "flow_prediction"
        self.latents = noise  # in the scheduler's own scale
        self.is_under_way = False  # between the first noise that is less than all, and the last step
        self.original: torch.FloatTensor | None = None  # (B, C, ...), x_0 as last predicted
        self.clean = self._embed(codes)
        is_open = F.max_pool2d((~given).float(), patch_size).bool()
        self.kept = ~is_open.repeat_interleave(patch_size[0], dim=1).repeat_interleave(patch_size[1], dim=2)

    @property
    def is_known(self) -> bool:
        """Whether anything is known that could guide the other modality."""
        return self.is_under_way or bool(self.kept.any())

    @property
    def times(self) -> torch.Tensor:
        """The time in [0, 1] of each of the scheduler's steps."""
        if self.is_flow:  # not from the timesteps, which some schedulers cut to integers
            return self.scheduler.sigmas[: len(self.timesteps)].float()
        return (self.timesteps.float() + 1) / self.scheduler.config.num_train_timesteps

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a callback may look at: the codes nearest to the prediction; and the latents, to change by `update`."""
        return {"codes": self.result(), "latents": self.latents}

    def update(self, latents: torch.FloatTensor, codes: torch.LongTensor) -> None:
        """Take over what a callback has changed."""
        self.latents = latents

    def state(self, step: int | None) -> NoisyLatents:
        """What the transformer looks at before a step."""
        latents, time = self.noise, torch.ones(())
        if step is not None or self.is_under_way:
            step = self.steps.start if step is None else step
            latents, time = self._model_input(step), self.times[step]
        latents = torch.where(self.kept[:, None], self.clean, latents)
        timestep = time.to(latents.device) * ~self.kept.flatten(1).all(dim=1)
        return NoisyLatents(latents, timestep, self.kept, self.noise)

    def settle(self, codes: torch.LongTensor) -> None:
        """From here on all codes are known."""
        self.source, self.clean, self.original = codes, self._embed(codes), None
        self.given = self.kept = torch.ones_like(self.given)
        self.is_under_way = False

    def _set_timesteps(self, num_inference_steps: int, **settings: Any) -> None:
        if "shift" in self.own_settings and "sigmas" in signature(self.scheduler.set_timesteps).parameters:
            # Its own sigmas FlowMatchEulerDiscreteScheduler would shift a second time.
            settings["sigmas"] = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super()._set_timesteps(num_inference_steps, **settings)

    def _start(self, generator: torch.Generator | list[torch.Generator] | None) -> None:
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self.steps.start)
        self.is_under_way = self.steps.start > 0  # from a picture
        is_known = self.given | self.is_under_way
        noise = self.noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self.latents = torch.where(is_known[:, None], self._noised(self.steps.start), noise)

    def advance(
        self, step: int | None, prediction: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> None:
        """Take a step by what was predicted."""
        mean = prediction[:, : self.noise.shape[1]]
        if step is None:
            if self.original is None:  # what an interrupted call shows of a modality that had not begun
                self.original = self._original(None, mean)
            return
        self.original, self.is_under_way = self._original(step, mean), True
        if "variance_type" in self.own_settings and "learned" in str(self.scheduler.config.variance_type):
            mean = prediction
        if isinstance(generator, (list, tuple)):  # a row that is given draws nothing of its own
            rows = zip(generator, self.given.flatten(1).all(dim=1).tolist(), strict=True)
            generator = [torch.Generator(g.device) if is_given else g for g, is_given in rows]
        settings = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}
        self.latents = self.scheduler.step(mean, self.timesteps[step], self.latents, return_dict=False, **settings)[0]
        if step + 1 == self.steps.stop:
            self.settle(self._nearest(self.latents))
        else:
            self.latents = torch.where(self.given[:, None], self._noised(step + 1), self.latents)

    def result(self) -> torch.LongTensor:
        """The codes; those that an interrupted call has left are nearest to the last prediction."""
        return self.source if self.original is None else self._nearest(self.original)

    def _embed(self, codes: torch.LongTensor) -> torch.FloatTensor:
        """The vectors (B, C, ...) of codes; of MASK any."""
        return F.embedding(codes.clamp(max=len(self.vectors) - 1), self.vectors).movedim(-1, 1)

    def _nearest(self, latents: torch.FloatTensor) -> torch.LongTensor:
        """The codes (B, ...) of the nearest vectors, but where they are given."""
        if not latents.isfinite().all():
            raise ValueError(
                f"{type(self.scheduler).__name__} led to vectors that are not finite, and no code is nearest to them:"
                " its settings do not fit each other, or the transformer predicts such values (in float32, too?)."
            )
        latents = latents.movedim(1, -1)
        distances = torch.cdist(latents.flatten(0, -2), self.vectors).unflatten(0, latents.shape[:-1])  # (B, ..., V)
        if self.forbidden is not None:
            distances = distances.masked_fill(self.forbidden, torch.inf)
        return torch.where(self.given, self.source, distances.argmin(dim=-1))

    def _noised(self, step: int) -> torch.FloatTensor:
        """The clean vectors with the noise of a step, in the scheduler's own scale."""
        timestep = self.timesteps[step].expand(len(self.clean))
        if hasattr(self.scheduler, "scale_noise"):
            return self.scheduler.scale_noise(self.clean, timestep, self.noise)
        return self.scheduler.add_noise(self.clean, self.noise, timestep)

    def _model_input(self, step: int) -> torch.FloatTensor:
        """x_t = alpha x_0 + sigma eps, which some schedulers hold in another scale."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return self.latents
        return self.scheduler.scale_model_input(self.latents, self.timesteps[step])

    def _original(self, step: int | None, prediction: torch.FloatTensor) -> torch.FloatTensor:
        """x_0 as predicted at a step, or where nothing is known yet; at the nearest level of a fractional timestep."""
        x_t = self.noise if step is None else self._model_input(step)
        if self.is_flow:
            sigma = torch.ones(()) if step is None else self.times[step]
            return original_sample(self.config.prediction_type, prediction, x_t, 1 - sigma, sigma)
        level = -1 if step is None else self.timesteps[step].round().long()
        alpha_bar = self.scheduler.alphas_cumprod.to(x_t.device)[level]
        return original_sample(self.config.prediction_type, prediction, x_t, alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


class VQDiTModel(ModelMixin, ConfigMixin, AttentionMixin, CacheMixin, PeftAdapterMixin):
    r"""
    A Diffusion Transformer (Peebles & Xie 2023) over one sequence of text codes and image codes, with one time for
    each modality (UniDiffuser, Bao 2023), so that one network holds p(x|y), p(y|x), p(x, y), p(x) and p(y).

    Two processes share the backbone. In absorbing-state ("masked") diffusion a hidden code is MASK, and the network
    predicts the clean codes from those that are left. It is told each modality's *mask rate*, never a schedule's time.
    In `"gaussian"` diffusion the vectors of the codes are noised, x_t = alpha_t x_0 + sigma_t eps, and the network
    predicts eps, v, x_0 or the flow. With `learn_sigma` it is the density N(mu_theta, Sigma_theta) of Nichol &
    Dhariwal 2021: the log-variance lies between log beta_t and that of the posterior (eq. 15). The vectors have mean 0
    and variance 1 in each channel, and a fixed `text_pad_vector` stands for PAD.

    Args:
        image_codebook_size (`int`, defaults to 1024):
            Number V_x of image codes. MASK is V_x.
        text_codebook_size (`int`, defaults to 1024):
            Number V_y of text codes. PAD is V_y, MASK is V_y + 1.
        sample_size (`int` or `tuple[int, int]`, defaults to 8):
            The code grid (h, w) the model is trained on. Other grids that `patch_size` divides run as well.
        text_length (`int`, defaults to 16):
            Number S/r of text positions the model is trained on.
        text_num_groups (`int`, defaults to 1):
            Codes G of a text position. They are embedded side by side into one token and predicted one by one.
        patch_size (`int`, defaults to 1):
            p x p neighbouring image codes make one token: embedded side by side, predicted one by one.
        hidden_size (`int`, defaults to 384):
            Width D.
        num_layers (`int`, defaults to 12):
            Number of blocks.
        num_attention_heads (`int`, defaults to 6):
            Number of heads; divides `hidden_size` into an even head dimension of at least 4.
        mlp_ratio (`float`, defaults to 4.0):
            The SwiGLU has as many weights as a plain two-layer MLP whose inner width is `mlp_ratio * hidden_size`,
            so its own inner width is two thirds of that (Shazeer 2020), rounded to a multiple of 32.
        axes_dims_rope (`tuple[int, int, int]`, *optional*):
            How the head dimension is split over the rotary axes (time, row, column) of an image token, all even. By
            default about an eighth goes to time and the rest, in equal parts, to row and column. Text turns by its
            index over the full head dimension.
        rope_theta (`float`, defaults to 10000.0):
            Base of the rotary frequencies.
        dropout (`float`, defaults to 0.0):
            Dropout after the attention's output projection and inside the MLP.
        process (`str`, defaults to `"masked"`):
            The diffusion process, `"masked"` or `"gaussian"`. What follows matters to the latter alone.
        image_code_dim (`int`, defaults to 8):
            Channels C of the vector of an image code.
        text_code_dim (`int`, defaults to 8):
            Channels C of the vector of a text code.
        prediction_type (`str`, defaults to `"v_prediction"`):
            `"epsilon"`, `"v_prediction"` (alpha eps - sigma x_0: Salimans & Ho 2022), `"sample"` (x_0), or
            `"flow_prediction"` (eps - x_0, where x_t = (1 - t) x_0 + t eps: Lipman 2023). The names are those of the
            schedulers of diffusers.
        learn_sigma (`bool`, defaults to `False`):
            Whether the variance is predicted too: twice the channels come out. Not with a flow, whose steps have no
            variance.
        unet_kwargs (`dict[str, Any]`, *optional*):
            A U-Net of pictures alone in the transformer's place: the arguments of diffusers' `UNet2DModel`. Its
            downsampling is then the `patch_size`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VQDiTBlock"]
    _repeated_blocks = ["VQDiTBlock"]
    _skip_layerwise_casting_patterns = ["embed", "norm", "modulation"]
    # A sliver of the work, where mask rates that are one code apart must stay apart.
    _keep_in_fp32_modules = ["time_embed", "given_embed"]

    @register_to_config
    def __init__(
        self,
        image_codebook_size: int = 1024,
        text_codebook_size: int = 1024,
        sample_size: int | tuple[int, int] = 8,
        text_length: int = 16,
        text_num_groups: int = 1,
        patch_size: int = 1,
        hidden_size: int = 384,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        mlp_ratio: float = 4.0,
        axes_dims_rope: tuple[int, int, int] | None = None,
        rope_theta: float = 10000.0,
        dropout: float = 0.0,
        process: str = "masked",
        image_code_dim: int = 8,
        text_code_dim: int = 8,
        prediction_type: str = "v_prediction",
        learn_sigma: bool = False,
        unet_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        if process not in PROCESSES:
            raise ValueError(f"`process` must be one of {PROCESSES}, but is {process!r}.")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, but is {prediction_type!r}.")
        if learn_sigma and (process != "gaussian" or prediction_type == "flow_prediction"):
            raise ValueError(
                '`learn_sigma` needs `process="gaussian"` and a `prediction_type` other than "flow_prediction", whose '
                f"steps have no variance, but they are {process!r} and {prediction_type!r}."
            )
        self.gradient_checkpointing = False
        if process == "gaussian":
            # Beyond the vectors of codes, whose entries are about 1. Parameters, as weight averages keep no buffers.
            self.text_pad_vector = nn.Parameter(torch.full((text_code_dim,), 2.0), requires_grad=False)
            # How often codes come, for the bound: log-probabilities up to a constant
            self.image_log_prior = nn.Parameter(torch.zeros(image_codebook_size), requires_grad=False)
            self.text_log_prior = nn.Parameter(torch.zeros(text_codebook_size + 1), requires_grad=False)
        if unet_kwargs is not None:
            self._make_unet()
            return
        if hidden_size % (2 * num_attention_heads) != 0 or hidden_size < 4 * num_attention_heads:
            raise ValueError(
                "`hidden_size` / `num_attention_heads` must be an even head dimension of at least 4, so that rows and "
                f"columns have a rotary frequency each, but they are {hidden_size} and {num_attention_heads}."
            )
        head_dim = hidden_size // num_attention_heads
        self.axes_dims_rope = default_axes_dims_rope(head_dim) if axes_dims_rope is None else tuple(axes_dims_rope)
        if (
            len(self.axes_dims_rope) != 3
            or sum(self.axes_dims_rope) != head_dim
            or any(dim < 0 or dim % 2 != 0 for dim in self.axes_dims_rope)
        ):
            raise ValueError(
                "`axes_dims_rope` must be three even numbers (time, row, column) that sum to the head dimension "
                f"{head_dim}, but is {axes_dims_rope}. The default is {default_axes_dims_rope(head_dim)}."
            )

        # Codes to tokens. The tables hold MASK, and the text's PAD, besides the codes. Vectors need no tables.
        is_masked = process == "masked"
        image_dim, text_dim = (hidden_size, hidden_size) if is_masked else (image_code_dim, text_code_dim)
        self.image_embed = nn.Embedding(image_codebook_size + 1, hidden_size) if is_masked else None
        self.image_proj_in = nn.Linear(patch_size**2 * image_dim, hidden_size)
        self.text_embed = nn.Embedding(text_codebook_size + 2, hidden_size) if is_masked else None
        self.text_proj_in = nn.Linear(text_num_groups * text_dim, hidden_size)
        self.modality_embed = nn.Parameter(torch.empty(2, hidden_size))  # text, image

        # Times to modulation: the rows (text, given), (text, unknown), (image, given), (image, unknown).
        self.time_embed = TimestepEmbedding(in_channels=256, time_embed_dim=hidden_size)
        self.given_embed = nn.Parameter(torch.empty(4, hidden_size))
        self.modulation_proj = nn.Linear(hidden_size, 6 * hidden_size)
        self.norm_out_proj = nn.Linear(hidden_size, 2 * hidden_size)

        mlp_hidden_size = 32 * max(1, round(mlp_ratio * hidden_size * 2 / 3 / 32))
        self.transformer_blocks = nn.ModuleList(
            [VQDiTBlock(hidden_size, num_attention_heads, mlp_hidden_size, dropout) for _ in range(num_layers)]
        )

        # Tokens to logits of clean codes, or to what is predicted of vectors, and its variance.
        image_dim, text_dim = image_codebook_size, text_codebook_size + 1
        if not is_masked:
            image_dim, text_dim = ((1 + learn_sigma) * dim for dim in (image_code_dim, text_code_dim))
        self.image_proj_out = nn.Linear(hidden_size, patch_size**2 * image_dim)
        self.text_proj_out = nn.Linear(hidden_size, text_num_groups * text_dim)

        self._initialize_weights()

    def _make_unet(self) -> None:
        config, channels = self.config, self.config.image_code_dim
        if config.process != "gaussian":
            raise ValueError(f'`unet_kwargs` needs `process="gaussian"`, but `process` is {config.process!r}.')
        sizes = {"in_channels": channels, "out_channels": channels * (1 + config.learn_sigma)}
        self.unet = UNet2DModel(**sizes | {"sample_size": config.sample_size} | config.unet_kwargs)
        self.register_to_config(patch_size=2 ** (len(self.unet.config.block_out_channels) - 1))

    def _initialize_weights(self) -> None:
        """Xavier for the matrices, and every zero that makes the network the identity at the start, in one place."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for embed in (self.modality_embed, self.given_embed):
            nn.init.normal_(embed, std=0.02)
        # adaLN-Zero: shift, scale and gate start at zero, the blocks' tables too; so does the head.
        for module in (self.modulation_proj, self.norm_out_proj, self.image_proj_out, self.text_proj_out):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        for block in self.transformer_blocks:
            nn.init.zeros_(block.scale_shift_table)

    @property
    def image_mask_id(self) -> int:
        """Id of a hidden image code: V_x, the number of classes of `image_logits`."""
        return self.config.image_codebook_size

    @property
    def text_pad_id(self) -> int:
        """Id of the codes of a text position that is all padding: V_y, the last class of `text_logits`."""
        return self.config.text_codebook_size

    @property
    def text_mask_id(self) -> int:
        """Id of a hidden text code: V_y + 1, the number of classes of `text_logits`."""
        return self.config.text_codebook_size + 1

    # Sampling

    def inputs(self, modality: str, state: torch.LongTensor | NoisyLatents) -> dict[str, torch.Tensor]:
        """The arguments of `forward` that say all of one modality; the time of codes `(B, ...)` is their mask rate."""
        if self.config.process == "masked":
            return {f"{modality}_codes": state, f"{modality}_timestep": mask_rate(state, self._mask_id(modality))}
        names = ("latents", "timestep", "given_mask")
        return {f"{modality}_{name}": getattr(state, name) for name in names}

    def unknown(self, modality: str, state: torch.LongTensor | NoisyLatents) -> torch.LongTensor | NoisyLatents:
        """The same modality where nothing is known of it: MASK throughout, or pure noise at time 1."""
        if self.config.process == "masked":
            return torch.full_like(state, self._mask_id(modality))
        is_given = torch.zeros_like(state.given_mask)
        return NoisyLatents(state.noise, torch.ones_like(state.timestep), is_given, state.noise)

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
        """u + guidance_scale (o - u) of predictions of one modality; a variance (`learn_sigma`) stays that of o."""
        if not self.config.learn_sigma:
            return unconditional + guidance_scale * (conditional - unconditional)
        (mean, variance), (unguided, _) = conditional.chunk(2, dim=1), unconditional.chunk(2, dim=1)
        return torch.cat([unguided + guidance_scale * (mean - unguided), variance], dim=1)

    def make_run(
        self,
        modality: str,
        scheduler: SchedulerMixin,
        codes: torch.LongTensor,
        given: torch.BoolTensor,
        forbidden: torch.BoolTensor | None = None,
        *,
        vqvae: ModelMixin,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> ModalityRun:
        """
        One modality in one call of a sampler: its codes `(B, ...)`, where they are given, and what of `(B, ..., V)`
        may not be drawn. For the Gaussian process `vqvae` has the vectors of codes, and the noise is drawn here.
        """
        if self.config.process == "masked":
            return MaskedRun(scheduler, codes, given, forbidden, self._mask_id(modality))
        patch_size = (1, self.config.text_num_groups) if modality == "text" else (self.config.patch_size,) * 2
        if self.config.unet_kwargs is not None:
            patch_size = tuple(codes.shape[1:])  # it is not told what part of a picture is given
        vectors = self.code_vectors(modality, vqvae)
        shape = (len(codes), vectors.shape[1], *codes.shape[1:])
        noise = randn_tensor(shape, generator=generator, device=codes.device, dtype=torch.float32)
        return GaussianRun(scheduler, codes, given, forbidden, vectors, noise, patch_size, self.config)

    def code_vectors(self, modality: str, vqvae: ModelMixin) -> torch.FloatTensor:
        """The vectors `(V, C)` of all codes that the Gaussian process noises; text has PAD's after them."""
        vectors = vqvae.normalized_codebook(modality)
        return self._append_pad(vectors) if modality == "text" else vectors

    @apply_forward_hook
    def _append_pad(self, vectors: torch.FloatTensor) -> torch.FloatTensor:
        return torch.cat([vectors, self.text_pad_vector[None].to(vectors)])

    def _mask_id(self, modality: str) -> int:
        return self.image_mask_id if modality == "image" else self.text_mask_id

    # Network

    def forward(
        self,
        image_codes: torch.LongTensor | None = None,
        text_codes: torch.LongTensor | None = None,
        image_timestep: torch.FloatTensor | None = None,
        text_timestep: torch.FloatTensor | None = None,
        *,
        image_latents: torch.FloatTensor | None = None,
        text_latents: torch.FloatTensor | None = None,
        image_given_mask: torch.BoolTensor | None = None,
        text_given_mask: torch.BoolTensor | None = None,
        return_dict: bool = True,
    ) -> VQDiTOutput | VQDiTGaussianOutput | tuple[torch.FloatTensor, torch.FloatTensor]:
        """
        Predict the clean codes of both modalities, or what of their noisy vectors `prediction_type` says.

        Args:
            image_codes (`torch.LongTensor` of shape `(B, h, w)`, *optional*):
                Image codes, 0..V_x - 1, or MASK = V_x. `patch_size` divides h and w.
            text_codes (`torch.LongTensor` of shape `(B, S/r, G)`, *optional*):
                Text codes, 0..V_y - 1, PAD = V_y, or MASK = V_y + 1.
            image_timestep (`torch.FloatTensor` of shape `(B,)`):
                Time of the image, from 0 (all given) to 1 (nothing known). In masked diffusion it is the mask rate,
                the row's fraction of MASK among its codes; in a flow t = sigma; else (i + 1) / N at index i of N.
            text_timestep (`torch.FloatTensor` of shape `(B,)`):
                Time of the text.
            image_latents (`torch.FloatTensor` of shape `(B, C, h, w)`, *optional*):
                For the Gaussian process in place of codes: noisy vectors x_t, clean where given, and pure noise at
                time 1 where nothing is known.
            text_latents (`torch.FloatTensor` of shape `(B, C, S/r, G)`, *optional*):
                The same for text. Channels come second, as the schedulers of diffusers want them.
            image_given_mask (`torch.BoolTensor` of shape `(B, h, w)`, *optional*):
                True where vectors are given, which counts for whole patches; by default where time is 0.
            text_given_mask (`torch.BoolTensor` of shape `(B, S/r, G)`, *optional*):
                The same for text.
            return_dict (`bool`, defaults to `True`):
                Whether to return an output object instead of a tuple.

        Returns:
            [`VQDiTOutput`], or the tuple `(image_logits, text_logits)`; for the Gaussian process
            [`VQDiTGaussianOutput`], or the tuple `(image_sample, text_sample)`.

        Raises:
            `ValueError`: a shape does not fit the configuration. The range of the codes is left to the embedding.
        """
        config, is_masked = self.config, self.config.process == "masked"
        image, text = (image_codes, text_codes) if is_masked else (image_latents, text_latents)
        self._check_inputs(image, text, image_timestep, text_timestep, image_given_mask, text_given_mask)

        if config.unet_kwargs is not None:
            image = self.unet(image.to(self.dtype), 1000 * image_timestep, return_dict=False)[0].float()
            text = torch.zeros_like(text).repeat(1, 1 + config.learn_sigma, 1, 1)  # it knows none
            return VQDiTGaussianOutput(image, text) if return_dict else (image, text)

        # 1. Codes or vectors to tokens, text first
        text_tokens, text_given = self._text_tokens(text, text_given_mask, text_timestep)  # (B, S/r, D), (B, S/r)
        image_tokens, image_given = self._image_tokens(image, image_given_mask, image_timestep)  # (B, h w / p^2, D)
        if not is_masked:
            text, image = text[:, 0], image[:, 0]  # of the shape of codes
        hidden_states = torch.cat([text_tokens, image_tokens], dim=1)  # (B, L, D)

        # 2. Rotations and modulation rows
        rotary_emb = self._rotary_emb(text, image)  # (1, L, K / 2)
        modulation, norm_out_modulation = self._modulation(image_timestep, text_timestep)  # (B, 4, 6, D), (B, 4, 2, D)
        modulation_index = self._modulation_index(text_given, image_given)  # (B, L)

        # 3. Blocks
        conditions = (modulation, modulation_index, rotary_emb)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, *conditions)
            else:
                hidden_states = block(hidden_states, *conditions)

        # 4. Heads
        hidden_states = modulate(hidden_states, *gather_rows(norm_out_modulation, modulation_index))
        text_tokens, image_tokens = hidden_states.split([text_tokens.shape[1], image_tokens.shape[1]], dim=1)
        image = self._from_patches(self.image_proj_out(image_tokens), *image.shape[1:]).float()  # (B, h, w, V_x or C)
        text = self.text_proj_out(text_tokens).unflatten(-1, (text.shape[2], -1)).float()  # (B, S/r, G, V_y + 1 or C)
        if not is_masked:
            image, text = image.movedim(-1, 1), text.movedim(-1, 1)

        if not return_dict:
            return image, text
        return VQDiTOutput(image, text) if is_masked else VQDiTGaussianOutput(image, text)

    def _text_tokens(self, text, given_mask, timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """The G codes or vectors of a position side by side make one token; it is given when all of them are."""
        if self.config.process == "masked":
            vectors, given = self.text_embed(text), text != self.text_mask_id
        else:
            vectors, given = text.movedim(1, -1).to(self.modality_embed.dtype), given_mask
            given = (timestep == 0)[:, None, None].expand(vectors.shape[:-1]) if given is None else given
        return self.text_proj_in(vectors.flatten(2)) + self.modality_embed[0], given.all(dim=-1)

    def _image_tokens(self, image, given_mask, timestep) -> tuple[torch.Tensor, torch.Tensor]:
        """The p x p codes or vectors of a patch side by side make one token; it is given when all of them are."""
        if self.config.process == "masked":
            image = self._to_patches(image)  # (B, h w / p^2, p^2)
            vectors, given = self.image_embed(image), image != self.image_mask_id
        else:
            vectors = self._to_patches(image.movedim(1, -1).to(self.modality_embed.dtype))  # (B, h w / p^2, p^2, C)
            given = (timestep == 0)[:, None, None].expand(image[:, 0].shape) if given_mask is None else given_mask
            given = self._to_patches(given)
        return self.image_proj_in(vectors.flatten(2)) + self.modality_embed[1], given.all(dim=-1)

    def _to_patches(self, image: torch.Tensor) -> torch.Tensor:
        """(B, h, w, ...) -> (B, h w / p^2, p^2, ...)"""
        p = self.config.patch_size
        patches = image.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (B, h/p, p, w/p, p, ...)
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _from_patches(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The inverse: tokens (B, h w / p^2, p^2 V), which predict their p x p codes one by one, to (B, h, w, V)."""
        p = self.config.patch_size
        patches = tokens.unflatten(1, (height // p, width // p)).unflatten(-1, (p, p, -1))  # (B, h/p, w/p, p, p, V)
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _rotary_emb(self, text_codes: torch.Tensor, image_codes: torch.Tensor) -> torch.Tensor:
        """
        Complex rotations e^{i m w_j}, w_j = theta^(-2j / dim) (Su 2021, RoFormer), `(1, L, K / 2)`: text turns by its
        index over the full head dimension, image patches by (time, row, column).
        """
        p, theta, device = self.config.patch_size, self.config.rope_theta, text_codes.device
        frames, rows, columns = 1, image_codes.shape[1] // p, image_codes.shape[2] // p
        axes = torch.meshgrid(*(torch.arange(n, device=device) for n in (frames, rows, columns)), indexing="ij")
        image = [
            get_1d_rotary_pos_embed(dim, positions.flatten(), theta)
            for positions, dim in zip(axes, self.axes_dims_rope, strict=True)
        ]
        index = torch.arange(text_codes.shape[1], device=device)
        text = get_1d_rotary_pos_embed(sum(self.axes_dims_rope), index, theta)
        return torch.cat([text, torch.cat(image, dim=-1)])[None]

    def _modulation(self, image_timestep: torch.Tensor, text_timestep: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Four rows for each item: (text, given), (text, unknown), (image, given), (image, unknown)."""
        rates = torch.stack([text_timestep, image_timestep], dim=1).float()  # (B, 2)
        features = get_timestep_embedding(1000 * rates.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedded = self.time_embed(features.to(self.given_embed.dtype)).unflatten(0, rates.shape)  # (B, 2, D)
        conditioning = F.silu(embedded.repeat_interleave(2, dim=1) + self.given_embed)  # (B, 4, D)
        conditioning = conditioning.to(self.modality_embed.dtype)
        modulation = self.modulation_proj(conditioning).unflatten(-1, (6, -1))
        norm_out_modulation = self.norm_out_proj(conditioning).unflatten(-1, (2, -1))
        for rows in (modulation, norm_out_modulation):
            rows[:, :, 1::3] += 1  # the scales are offsets from one
        return modulation, norm_out_modulation

    def _modulation_index(self, text_given: torch.Tensor, image_given: torch.Tensor) -> torch.Tensor:
        """Which of the batch's 4 B modulation rows each token takes."""
        row = torch.cat([1 - text_given.long(), 3 - image_given.long()], dim=1)  # (B, L), in 0..3
        return row + 4 * torch.arange(row.shape[0], device=row.device)[:, None]

    def _check_inputs(self, image, text, image_timestep, text_timestep, image_given_mask, text_given_mask) -> None:
        """Shapes and dtypes only: looking at values would make the device wait."""
        config, is_masked = self.config, self.config.process == "masked"
        p, groups, kind = config.patch_size, config.text_num_groups, "codes" if is_masked else "latents"
        if any(x is None for x in (image, text, image_timestep, text_timestep)):
            raise ValueError(
                f"A transformer of the process {config.process!r} needs `image_{kind}`, `text_{kind}`, "
                "`image_timestep` and `text_timestep`."
            )
        for name, x in (("image", image), ("text", text)):
            is_right, wanted = x.ndim == 3 and x.dtype == torch.int64, "an int64 tensor with 3 axes"
            if not is_masked:
                channels = config[f"{name}_code_dim"]
                is_right = x.ndim == 4 and x.shape[1] == channels and x.is_floating_point()
                wanted = f"a floating-point tensor with 4 axes, the second of `{name}_code_dim` = {channels} channels"
            if not is_right:
                raise ValueError(
                    f"`{name}_{kind}` must be {wanted}, but has shape {tuple(x.shape)} and dtype {x.dtype}. Image "
                    "codes are (batch, h, w), text codes (batch, positions, groups)."
                )
        if not is_masked:
            image, text = image[:, 0], text[:, 0]  # of the shape of codes
        if image.shape[1] % p != 0 or image.shape[2] % p != 0:
            raise ValueError(
                f"`patch_size` {p} must divide the code grid, but that of `image_{kind}` is {tuple(image.shape[1:])}. "
                f"Choose a height and width in pixels that the VQ-VAE's downsampling factor times {p} divides."
            )
        if text.shape[2] != groups:
            raise ValueError(
                f"`text_{kind}` must have `text_num_groups` = {groups} codes a position, but has {text.shape[2]}. Was "
                "this model trained with another VQ-VAE?"
            )
        shapes = [tuple(x.shape) for x in (text[:, 0, 0], image_timestep, text_timestep)]
        if any(shape != image.shape[:1] for shape in shapes):
            raise ValueError(
                f"`text_{kind}`, `image_timestep` and `text_timestep` must have the batch size of `image_{kind}`, "
                f"{len(image)}, and the timesteps one axis, but have {len(text)} rows and the shapes {shapes[1]} and "
                f"{shapes[2]}."
            )
        for name, mask, codes in (("image", image_given_mask, image), ("text", text_given_mask, text)):
            if mask is not None and (is_masked or mask.shape != codes.shape):
                raise ValueError(
                    f"`{name}_given_mask` must have the shape of the codes, {tuple(codes.shape)}, and the process "
                    f"'masked' takes none, since it sees MASK. Got {tuple(mask.shape)} for {config.process!r}."
                )

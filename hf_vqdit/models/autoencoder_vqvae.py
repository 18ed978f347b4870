# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The multimodal VQ-VAE: pictures and captions to discrete codes, and back.

This file travels with every checkpoint that carries its code, so it imports nothing of hf_vqdit.
Shapes: B batch, H W pixels, f image downsampling, h w = H/f W/f, S text tokens, r text downsampling, G code groups a
text position, V codebook size, D code dimension.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.vae import AutoencoderMixin, Decoder, Encoder
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

# Logit of a token known for certain (identity codec, padding): finite, so that the read-out can still forbid it.
CERTAIN_LOGIT = 50.0


@dataclass
class MultimodalVQVAEEncoderOutput(BaseOutput):
    """Output of [`MultimodalVQVAE.encode`]; `None` for a modality that was not given.

    Args:
        image_codes (`torch.LongTensor` of shape `(B, h, w)`): Codes in `0..V_x-1`.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`): Codes in `0..V_y-1`, or PAD = V_y in a whole chunk.
        image_latents (`torch.FloatTensor` of shape `(B, D, h, w)`): The vectors before quantization.
        text_latents (`torch.FloatTensor` of shape `(B, S/r, G, D)`): The same for text, but with the identity codec.
    """

    image_codes: torch.LongTensor | None = None
    text_codes: torch.LongTensor | None = None
    image_latents: torch.FloatTensor | None = None
    text_latents: torch.FloatTensor | None = None


@dataclass
class MultimodalVQVAEDecoderOutput(BaseOutput):
    """Output of [`MultimodalVQVAE.decode`]; `None` for a modality that was not given.

    Args:
        image (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pixels, about [-1, 1], not clamped.
        text_logits (`torch.FloatTensor` of shape `(B, S, vocab_size)`): Token logits, float32.
    """

    image: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None


@dataclass
class MultimodalVQVAEOutput(BaseOutput):
    """Output of [`MultimodalVQVAE.forward`]: the reconstructions, and what training needs to know of the quantization.

    Codes are `None` when `quantize=False`. Commitment losses have shape `(B,)`: a mean over each row's own vectors
    (without padding), so that the weight of a row does not depend on the rows beside it. Embeddings, of shape
    `(B, projection_dim)` and unit length, are there when the model has a `projection_dim`.
    """

    image: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    image_codes: torch.LongTensor | None = None
    text_codes: torch.LongTensor | None = None
    image_latents: torch.FloatTensor | None = None
    text_latents: torch.FloatTensor | None = None
    image_commitment_loss: torch.FloatTensor | None = None
    text_commitment_loss: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None

    def __post_init__(self):
        # accelerate rebuilds an output from a dictionary, which lands in the first field; diffusers unpacks it, but
        # leaves it there where the dictionary has no such entry: for text alone.
        super().__post_init__()
        if isinstance(self.image, dict):
            self.image = self.image.get("image")


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor, max_entries: int = 2**20) -> torch.LongTensor:
    """Index of the nearest row of `codebook` for each vector, exact, in float32; of equal ones the lowest index.

    argmin |z - e|^2 = argmin (|e|^2 - 2 z.e), in chunks of rows so that no more than `max_entries` scores exist at
    once (4 MB in float32, about a processor's cache; the full N x K table is never built). On a CPU `argmin` is the
    slow part and `amin` is vectorised, so the minimum is first taken of blocks of 32 codes, then searched in the
    winning block.

    Args:
        vectors (`torch.Tensor` of shape `(N, D)`): The vectors to quantize, any floating dtype.
        codebook (`torch.Tensor` of shape `(V, D)`): The codes, any floating dtype.
        max_entries (`int`, *optional*, defaults to 1048576): Scores held at once.

    Returns:
        `torch.LongTensor` of shape `(N,)`.
    """
    block_size = 32
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.detach().float(), codebook.detach().float()
        pad = -codebook.shape[0] % block_size
        bias = F.pad(codebook.square().sum(1), (0, pad), value=float("inf"))  # (V'), codes that fill a block never win
        weight = F.pad(-2.0 * codebook, (0, 0, 0, pad)).T.contiguous()  # (D, V')
        codes = []
        for chunk in vectors.split(max(64, max_entries // weight.shape[1])):
            scores = _exact_matmul_add(bias, chunk, weight).unflatten(1, (-1, block_size))  # (n, V'/32, 32)
            block = scores.amin(dim=2).argmin(dim=1)  # (n,)
            within = scores[torch.arange(chunk.shape[0], device=chunk.device), block].argmin(dim=1)
            codes.append(block * block_size + within)
    return torch.cat(codes)


def _exact_matmul_add(bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """bias + left @ right in true float32: TF32 keeps 10 bits of the mantissa and flips near ties."""
    if left.device.type != "cuda":
        return torch.addmm(bias, left, right)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return torch.addmm(bias, left, right)
    finally:
        torch.set_float32_matmul_precision(precision)


class VectorQuantizer(nn.Module):
    """A codebook: vectors to the index of their nearest code, and back (van den Oord 2017, eq. 1 and 2).

    `forward` never changes the codebook. It is trained from outside, by statistics gathered over a whole optimizer
    step, and is a parameter without gradient rather than a buffer, because weight averages copy and save parameters
    only.

    Args:
        num_codes (`int`): Codebook size V.
        code_dim (`int`): Dimension D of a code.
        l2_normalize (`bool`, *optional*, defaults to `True`):
            Vectors and codes live on the unit sphere (ViT-VQGAN, Yu 2022).
    """

    def __init__(self, num_codes: int, code_dim: int, l2_normalize: bool = True):
        super().__init__()
        self.l2_normalize = l2_normalize
        codebook = torch.randn(num_codes, code_dim)
        self.codebook = nn.Parameter(self.normalize(codebook), requires_grad=False)  # (V, D)

    def normalize(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors in the space where distances are taken: float32, of unit length with `l2_normalize`."""
        vectors = vectors.float()
        return F.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    def forward(self, vectors: torch.Tensor) -> torch.LongTensor:
        """Codes `(...)` of normalized vectors `(..., D)`."""
        return nearest_codes(vectors.reshape(-1, vectors.shape[-1]), self.codebook).view(vectors.shape[:-1])

    @apply_forward_hook  # as no call of the module comes first, which would load offloaded weights
    def lookup(self, codes: torch.LongTensor) -> torch.Tensor:
        """Vectors `(..., D)`, float32, of codes `(...)`."""
        # Normalized again: a codebook cast to bfloat16 is no longer of unit length.
        return self.normalize(F.embedding(codes, self.codebook))


def straight_through(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The value of `targets` with the gradient of `vectors` (Bengio 2013)."""
    return vectors + (targets - vectors).detach()


def rotation_trick(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The value of `targets` `(..., D)`, as a constant rotation and scaling of `vectors` `(..., D)` (Fifty 2024).

    The gradient turns with the vector: it arrives at the angle to `vectors` that it has to `targets`.
    """
    source, target = F.normalize(vectors.detach(), dim=-1), F.normalize(targets.detach(), dim=-1)
    middle = F.normalize(source + target, dim=-1)
    # R = I - 2 middle middle^T + 2 target source^T turns source into target, in the plane of the two.
    along_middle, along_source = ((vectors * axis).sum(dim=-1, keepdim=True) for axis in (middle, source))
    rotated = vectors - 2 * along_middle * middle + 2 * along_source * target
    length = vectors.detach().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return rotated * (targets.detach().norm(dim=-1, keepdim=True) / length)


GRADIENT_ESTIMATORS = {"straight_through": straight_through, "rotation_trick": rotation_trick}

# What both networks of the image codec take from the configuration as it is.
BLOCK_SETTINGS = ("block_out_channels", "layers_per_block", "norm_num_groups", "act_fn", "mid_block_add_attention")


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position of `(B, C, ...)`, as in ConvNeXt (Liu 2022)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.movedim(1, -1)).movedim(-1, 1)


def _make_norms_local(network: nn.Module) -> None:
    """Puts layer norms in the place of group norms, whose statistics are those of the whole picture."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, LayerNorm2d(child.num_channels, eps=child.eps))


class ImageEncoder(nn.Module):
    """Pixels to vectors: a convolutional encoder over patches of pixels, and a linear shortcut around it.

    The shortcut maps each f x f patch of pixels straight to its vector (as the residual autoencoding of DC-AE, Chen
    2024, does without weights), so that training starts from a linear codec that keeps colours, and the convolutions
    learn the rest.
    """

    def __init__(self, config: FrozenDict, factor: int):
        super().__init__()
        self.patch_size, self.factor = config.patch_size, factor
        types = config.down_block_types or ("DownEncoderBlock2D",) * len(config.block_out_channels)
        width = config.latent_channels or config.code_dim
        in_channels, patch_channels = (config.in_channels * size**2 for size in (config.patch_size, factor))
        settings = {name: config[name] for name in BLOCK_SETTINGS}
        self.encoder = Encoder(in_channels, width, down_block_types=types, double_z=False, **settings)
        self.quant_conv = nn.Conv2d(width, config.code_dim, 1) if config.latent_channels else nn.Identity()
        self.shortcut = nn.Conv2d(patch_channels, config.code_dim, 1) if config.linear_shortcut else None
        if config.linear_shortcut:
            nn.init.zeros_(self.encoder.conv_out.weight)
        if config.norm_type == "layer":
            _make_norms_local(self.encoder)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        latents = self.quant_conv(self.encoder(F.pixel_unshuffle(image, self.patch_size)))
        if self.shortcut is not None:
            latents = latents + self.shortcut(F.pixel_unshuffle(image, self.factor))
        return latents  # (B, D, h, w)


class ImageDecoder(nn.Module):
    """Vectors to pixels: the mirror of [`ImageEncoder`]."""

    def __init__(self, config: FrozenDict, factor: int):
        super().__init__()
        self.patch_size, self.factor, self.is_spatial = config.patch_size, factor, config.norm_type == "spatial"
        types = config.up_block_types or ("UpDecoderBlock2D",) * len(config.block_out_channels)
        width = config.latent_channels or config.code_dim
        out_channels, patch_channels = (config.in_channels * size**2 for size in (config.patch_size, factor))
        settings = {name: config[name] for name in BLOCK_SETTINGS}
        settings["norm_type"] = "spatial" if self.is_spatial else "group"
        self.post_quant_conv = nn.Conv2d(config.code_dim, width, 1) if config.latent_channels else nn.Identity()
        self.decoder = Decoder(width, out_channels, up_block_types=types, **settings)
        self.shortcut = nn.Conv2d(config.code_dim, patch_channels, 1) if config.linear_shortcut else None
        if config.linear_shortcut:
            nn.init.zeros_(self.decoder.conv_out.weight)
        if config.norm_type == "layer":
            _make_norms_local(self.decoder)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        image = self.decoder(self.post_quant_conv(latents), latents if self.is_spatial else None)
        image = F.pixel_shuffle(image, self.patch_size)
        if self.shortcut is not None:
            image = image + F.pixel_shuffle(self.shortcut(latents), self.factor)
        return image  # (B, C, H, W)


class TokenEmbedding(nn.Embedding):
    """Token ids to vectors; the same table reads tokens out again."""

    @apply_forward_hook
    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Vectors `(..., width)` to logits `(..., vocab_size)`: tied by use, as tied parameters do not save."""
        return F.linear(hidden_states, self.weight)


class TextEncoder(nn.Module):
    """Token ids to one vector for each code group of each chunk of r tokens.

    A chunk is read alone. Its codes therefore do not depend on the padding that follows, nor on a word hidden beside
    it.
    """

    def __init__(self, downsample_factor: int, num_groups: int, width: int, code_dim: int):
        super().__init__()
        self.downsample_factor, self.num_groups, self.code_dim = downsample_factor, num_groups, code_dim
        chunk_width, inner_width = downsample_factor * width, 2 * downsample_factor * width
        self.norm = nn.LayerNorm(chunk_width)
        self.mlp = nn.Sequential(nn.Linear(chunk_width, inner_width), nn.GELU(), nn.Linear(inner_width, chunk_width))
        self.norm_out = nn.LayerNorm(chunk_width)
        self.proj_out = nn.Linear(chunk_width, num_groups * code_dim)

    def forward(self, token_embeddings: torch.Tensor) -> torch.Tensor:
        hidden_states = token_embeddings.unflatten(1, (-1, self.downsample_factor)).flatten(2)  # (B, S/r, r width)
        hidden_states = hidden_states + self.mlp(self.norm(hidden_states))
        latents = self.proj_out(self.norm_out(hidden_states))
        return latents.unflatten(-1, (self.num_groups, self.code_dim))  # (B, S/r, G, D)


class TextDecoder(nn.Module):
    """Code vectors to token states. Chunks that are all padding are kept out of attention."""

    def __init__(self, downsample_factor: int, num_groups: int, width: int, code_dim: int, num_layers: int):
        super().__init__()
        self.downsample_factor, self.width = downsample_factor, width
        self.proj_in = nn.Linear(num_groups * code_dim, downsample_factor * width)
        num_heads = max(1, width // 64)
        block_size = (width, num_heads, width // num_heads)
        self.blocks = nn.ModuleList(BasicTransformerBlock(*block_size, attention_bias=True) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.gradient_checkpointing = False

    def forward(self, latents: torch.Tensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        hidden_states = self.proj_in(latents.flatten(2))  # (B, S/r, r width)
        hidden_states = hidden_states.unflatten(-1, (-1, self.width)).flatten(1, 2)  # (B, S, width)
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        embeds = get_1d_sincos_pos_embed_from_grid(self.width, positions, output_type="pt", dtype=torch.float32)
        hidden_states = hidden_states + embeds.to(hidden_states.dtype)

        # A row that is all padding attends to everything: softmax over nothing is NaN.
        is_hidden = is_padding & ~is_padding.all(dim=1, keepdim=True)
        attention_bias = hidden_states.new_zeros(is_hidden.shape).masked_fill(is_hidden, float("-inf"))
        attention_bias = attention_bias.repeat_interleave(self.downsample_factor, dim=1)[:, None]  # (B, 1, S)

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, attention_bias)
            else:
                hidden_states = block(hidden_states, attention_mask=attention_bias)
        return self.norm_out(hidden_states)  # (B, S, width)


class TokenTransitions(nn.Module):
    """Low-rank scores of neighbouring tokens, and the token sequence that they and the logits together favour.

    A sequence y scores sum_t logits_t[y_t] + sum_t M[y_{t-1}, y_t] with M = source target^T, the linear chain of
    NART-CRF (Sun 2019), of which each position keeps the `beam_size` likeliest tokens. M starts at 0. What follows the
    end of a text counts nothing.
    """

    def __init__(self, vocab_size: int, rank: int, end_token_ids: tuple[int, ...]):
        super().__init__()
        self.end_token_ids = end_token_ids
        self.source = nn.Parameter(torch.randn(vocab_size, rank) * rank**-0.5)
        self.target = nn.Parameter(torch.zeros(vocab_size, rank))

    def score(self, tokens: torch.LongTensor, next_tokens: torch.LongTensor) -> torch.Tensor:
        """M for each pair of `tokens` `(..., m)` and `next_tokens` `(..., n)`: `(..., m, n)`, float32."""
        with torch.autocast(self.source.device.type, enabled=False):
            return self.source[tokens].float() @ self.target[next_tokens].float().transpose(-1, -2)

    def lattice(
        self, logits: torch.Tensor, candidates: torch.LongTensor, is_text: torch.BoolTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, S, k)` of `candidates` `(B, S, k)`, and the scores `(B, S-1, k, k)` of those side by side."""
        emissions, scores = logits.gather(-1, candidates).float(), self.score(candidates[:, :-1], candidates[:, 1:])
        nothing = emissions.new_full(emissions.shape[2:], -torch.inf)
        nothing[0] = 0.0  # after the end, one path goes on from each, by the first candidates
        return emissions.where(is_text[..., None], nothing), scores * is_text[:, 1:, None, None]

    def forward(self, logits: torch.Tensor, beam_size: int) -> torch.LongTensor:
        """The sequence `(B, S)` of the highest score in the beam (Viterbi 1967), up to the likeliest end."""
        candidates = logits.topk(min(beam_size, logits.shape[-1]), dim=-1).indices
        is_end = torch.isin(candidates[..., 0], candidates.new_tensor(self.end_token_ids)).long()
        emissions, scores = self.lattice(logits, candidates, is_end.cumsum(dim=1) - is_end == 0)
        best, pointers = emissions[:, 0], []  # (B, k): of the best path to each candidate
        for position in range(1, emissions.shape[1]):
            best, pointer = (best.unsqueeze(2) + scores[:, position - 1]).max(dim=1)
            best = best + emissions[:, position]
            pointers.append(pointer)
        path = [best.argmax(dim=1, keepdim=True)]
        for pointer in reversed(pointers):
            path.append(pointer.gather(1, path[-1]))
        return candidates.gather(-1, torch.stack(path[::-1], dim=1)).squeeze(-1)


class PooledProjection(nn.Module):
    """Code vectors of a picture or a caption to one embedding of unit length in a space that both share."""

    def __init__(self, code_dim: int, projection_dim: int):
        super().__init__()
        self.proj_in = nn.Linear(code_dim, projection_dim)
        self.proj_out = nn.Linear(projection_dim, projection_dim)

    def forward(self, vectors: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        hidden_states = F.gelu(self.proj_in(vectors.to(self.proj_in.weight.dtype)))  # (B, L, projection_dim)
        is_real = is_real.unsqueeze(-1)
        pooled = (hidden_states * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1)
        return F.normalize(self.proj_out(pooled).float(), dim=-1)  # (B, projection_dim)


class MultimodalVQVAE(ModelMixin, AutoencoderMixin, ConfigMixin):
    r"""A VQ-VAE with one branch for pictures and one for captions; each can be used, or left out, alone.

    The image codec is the convolutional encoder and decoder of VQGAN (Esser 2021); the text codec turns r tokens into
    G codes. Each vector goes to its nearest code with a straight-through gradient (van den Oord 2017).

    Ids: image codes are `0..V_x-1` and MASK = V_x; text codes are `0..V_y-1`, PAD = V_y for a chunk that is all
    padding, MASK = V_y+1. [`encode`] never returns MASK and [`decode`] refuses it.

    Args:
        in_channels (`int`, *optional*, defaults to 3): Channels of a picture, in [-1, 1].
        patch_size (`int`, *optional*, defaults to 1):
            Pixels along each side that the first convolution takes in as channels: 2 makes the codec about four times
            cheaper.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(64, 128, 256)`):
            Channels at each resolution. n entries downsample by f = patch_size * 2^(n-1).
        layers_per_block (`int`, *optional*, defaults to 1): Residual blocks a resolution (one more in the decoder).
        norm_num_groups (`int`, *optional*, defaults to 16): Groups of the group normalization.
        norm_type (`str`, *optional*, defaults to `"group"`):
            `"group"`; `"layer"`, whose statistics are those of each position, so that a code depends on the pixels
            around it alone; or `"spatial"` (MoVQ, Zheng 2022) in the decoder.
        act_fn (`str`, *optional*, defaults to `"silu"`): Activation function of the image codec.
        mid_block_add_attention (`bool`, *optional*, defaults to `False`): Attention at the lowest resolution.
        down_block_types, up_block_types (`tuple[str, ...]`, *optional*): Types of blocks, convolutional by default.
        latent_channels (`int`, *optional*): Channels that 1 x 1 convolutions, if it is set, turn into `code_dim`.
        linear_shortcut (`bool`, *optional*, defaults to `True`): Linear maps of f x f pixels around the networks.
        image_codebook_size (`int`, *optional*, defaults to 1024): V_x; `None` for a tokenizer of text alone.
        code_dim (`int`, *optional*, defaults to 8): Dimension of an image code.
        l2_normalize (`bool`, *optional*, defaults to `True`): Vectors and codes of unit length.
        shared_codebook (`bool`, *optional*, defaults to `False`):
            One codebook for both modalities, of equal sizes and dimensions, with projections into it and out of it.
        text_codec (`str`, *optional*, defaults to `"vq"`):
            `"vq"`, `"identity"` (codes are token ids: the plain-token baseline) or `None` (pictures alone).
        vocab_size (`int`, *optional*): Size of the text tokenizer's vocabulary; needed unless `text_codec` is `None`.
        text_codebook_size (`int`, *optional*, defaults to 1024): V_y of the `"vq"` codec.
        text_code_dim (`int`, *optional*, defaults to 8): Dimension of a text code.
        text_downsample_factor (`int`, *optional*, defaults to 1): r, tokens a chunk.
        text_num_groups (`int`, *optional*, defaults to 1):
            G, codes a chunk. r tokens come back exactly only if G log2(V_y) reaches the r log2(vocabulary) bits that
            they carry.
        text_width (`int`, *optional*, defaults to 256): Width of the text codec.
        num_text_decoder_layers (`int`, *optional*, defaults to 2): Transformer blocks of the text decoder.
        text_transition_rank (`int`, *optional*): Rank of scores of neighbouring tokens, by which captions are read.
        projection_dim (`int`, *optional*): Dimension of embeddings that align the modalities; none by default.
        pad_token_id (`int`, *optional*, defaults to 0): Token id of padding.
        eos_token_id (`int`, *optional*, defaults to 1): Token id of the end of the text.
        mask_token_id (`int`, *optional*, defaults to 2): Token id of `[MASK]`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D"]
    _keep_in_fp32_modules = ["image_quantizer", "text_quantizer"]
    _skip_layerwise_casting_patterns = ["quantizer", "norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
        norm_type: str = "group",
        act_fn: str = "silu",
        mid_block_add_attention: bool = False,
        down_block_types: tuple[str, ...] | None = None,
        up_block_types: tuple[str, ...] | None = None,
        latent_channels: int | None = None,
        linear_shortcut: bool = True,
        image_codebook_size: int | None = 1024,
        code_dim: int = 8,
        l2_normalize: bool = True,
        shared_codebook: bool = False,
        text_codec: str | None = "vq",
        vocab_size: int | None = None,
        text_codebook_size: int = 1024,
        text_code_dim: int = 8,
        text_downsample_factor: int = 1,
        text_num_groups: int = 1,
        text_width: int = 256,
        num_text_decoder_layers: int = 2,
        text_transition_rank: int | None = None,
        projection_dim: int | None = None,
        pad_token_id: int = 0,
        eos_token_id: int = 1,
        mask_token_id: int = 2,
    ):
        super().__init__()
        self._check_config()
        self.use_slicing, self.use_tiling, self.tile_size = False, False, 0
        if image_codebook_size is not None:
            self.image_encoder = ImageEncoder(self.config, self.image_downsample_factor)
            self.image_decoder = ImageDecoder(self.config, self.image_downsample_factor)
            self.image_quantizer = VectorQuantizer(image_codebook_size, code_dim, l2_normalize)
            # Statistics of the code vectors over the training data, for processes on vectors; NaN = not measured.
            self.image_latents_mean = nn.Parameter(torch.full((code_dim,), float("nan")), requires_grad=False)
            self.image_latents_std = nn.Parameter(torch.full((code_dim,), float("nan")), requires_grad=False)
        if text_codec == "vq":
            layout = (text_downsample_factor, text_num_groups, text_width, text_code_dim)
            self.token_embedding = TokenEmbedding(vocab_size, text_width)
            nn.init.normal_(self.token_embedding.weight, std=text_width**-0.5)  # it is the output matrix too
            self.text_encoder = TextEncoder(*layout)
            self.text_decoder = TextDecoder(*layout, num_layers=num_text_decoder_layers)
            if shared_codebook:  # registered once: tied parameters do not save
                object.__setattr__(self, "text_quantizer", self.image_quantizer)
            else:
                self.text_quantizer = VectorQuantizer(text_codebook_size, text_code_dim, l2_normalize)
            self.text_latents_mean = nn.Parameter(torch.full((text_code_dim,), float("nan")), requires_grad=False)
            self.text_latents_std = nn.Parameter(torch.full((text_code_dim,), float("nan")), requires_grad=False)
            if text_transition_rank is not None:
                end_token_ids = (eos_token_id, pad_token_id)
                self.text_transitions = TokenTransitions(vocab_size, text_transition_rank, end_token_ids)
        for name in ("image_project_in", "image_project_out", "text_project_in", "text_project_out"):
            setattr(self, name, nn.Linear(code_dim, code_dim) if shared_codebook else nn.Identity())
            if shared_codebook:  # they start as the identity
                nn.init.eye_(getattr(self, name).weight)
                nn.init.zeros_(getattr(self, name).bias)
        if projection_dim is not None:
            self.image_projection = PooledProjection(code_dim, projection_dim)
            self.text_projection = PooledProjection(text_num_groups * text_code_dim, projection_dim)

    def _check_config(self) -> None:
        config = self.config
        if config.norm_type not in ("group", "layer", "spatial"):
            raise ValueError(f"`norm_type` is {config.norm_type!r}; it must be 'group', 'layer' or 'spatial'.")
        for name in ("shared_codebook", "projection_dim"):
            if config[name] and (config.image_codebook_size is None or config.text_codec != "vq"):
                raise ValueError(
                    f"`{name}` needs two codecs with a codebook; got `image_codebook_size` = "
                    f"{config.image_codebook_size} and `text_codec` = {config.text_codec!r}."
                )
        image, text = (config.image_codebook_size, config.code_dim), (config.text_codebook_size, config.text_code_dim)
        if config.shared_codebook and image != text:
            raise ValueError(
                "`shared_codebook` is one table: `image_codebook_size` and `text_codebook_size`, `code_dim` and "
                f"`text_code_dim` must be equal; got {image} for images and {text} for text."
            )
        if config.text_codec not in ("vq", "identity", None):
            raise ValueError(f"`text_codec` is {config.text_codec!r}; it must be 'vq', 'identity' or None.")
        if config.text_transition_rank is not None and config.text_codec != "vq":
            raise ValueError(f"`text_transition_rank` needs `text_codec` = 'vq'; it is {config.text_codec!r}.")
        if config.text_codec is None:
            if config.image_codebook_size is None:
                raise ValueError("Neither modality has a codec: set `image_codebook_size` or `text_codec`.")
            return
        if config.vocab_size is None:
            raise ValueError("`vocab_size` is needed for a text codec: pass `len(tokenizer)`.")
        special_ids = (config.pad_token_id, config.eos_token_id, config.mask_token_id)
        if len(set(special_ids)) < 3 or not all(0 <= token_id < config.vocab_size for token_id in special_ids):
            raise ValueError(
                "`pad_token_id`, `eos_token_id` and `mask_token_id` must be three different ids below `vocab_size` = "
                f"{config.vocab_size}; got {special_ids}."
            )
        if config.text_codec == "identity" and (config.text_downsample_factor, config.text_num_groups) != (1, 1):
            raise ValueError(
                "The identity text codec has one code a token: `text_downsample_factor` and `text_num_groups` must be "
                f"1, got {config.text_downsample_factor} and {config.text_num_groups}."
            )

    # ------------------------------------------------------------------------------------------------ sizes and ids

    @property
    def image_downsample_factor(self) -> int:
        """f: pixels a code, along each side."""
        return self.config.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def text_downsample_factor(self) -> int:
        """r: tokens a chunk."""
        return self.config.text_downsample_factor

    @property
    def image_codebook_size(self) -> int | None:
        """V_x: number of image codes."""
        return self.config.image_codebook_size

    @property
    def text_codebook_size(self) -> int:
        """V_y: number of text codes (the vocabulary's size for the identity codec)."""
        return self.config.vocab_size if self.config.text_codec == "identity" else self.config.text_codebook_size

    @property
    def image_mask_id(self) -> int:
        """MASK for image codes: V_x."""
        return self.image_codebook_size

    @property
    def text_pad_id(self) -> int:
        """PAD for text codes: V_y."""
        return self.text_codebook_size

    @property
    def text_mask_id(self) -> int:
        """MASK for text codes: V_y + 1."""
        return self.text_codebook_size + 1

    # Slices and tiles

    @property
    def tile_margin(self) -> int:
        """Pixels beyond a code's own that the convolutions see on each side, rounded up to a multiple of f."""
        config, factor = self.config, self.image_downsample_factor
        pixels = [config.patch_size * 2**level for level in range(len(config.block_out_channels))]  # a position
        # The decoder sees further: its first and last convolution, two residual blocks in the middle, one more than in
        # the encoder at each resolution, and the convolutions between them.
        reach = pixels[0] + 5 * pixels[-1] + 2 * (config.layers_per_block + 1) * sum(pixels) + sum(pixels[:-1])
        return -(-reach // factor) * factor

    def enable_tiling(self, tile_size: int | None = None) -> None:
        """Lets [`encode`] and [`decode`] take large pictures tile by tile, in the memory of one tile.

        Of each tile, what lies within `tile_margin` of its inner edges is not used. So the result is that of the whole
        picture with `norm_type="layer"` and no attention; group norms and attention see the tile instead.

        Args:
            tile_size (`int`, *optional*): Side of a tile in pixels; by default 512, or more if the codec sees further.

        Raises:
            ValueError: If a tile is smaller than what a code depends on, or no multiple of f.
        """
        factor, smallest = self.image_downsample_factor, 2 * self.tile_margin + self.image_downsample_factor
        tile_size = tile_size if tile_size is not None else max(512 // factor * factor, 2 * smallest)
        if tile_size < smallest or tile_size % factor:
            raise ValueError(
                f"`tile_size` is {tile_size} pixels; it must be a multiple of f = {factor} and at least {smallest}, "
                "which one code depends on."
            )
        self.use_tiling, self.tile_size = True, tile_size

    def _in_parts(self, network: nn.Module, inputs: torch.Tensor, in_scale: int, out_scale: int) -> torch.Tensor:
        """A network on `(B, C, H, W)`, by slices and tiles where enabled; a code has `in_scale`^2 inputs."""
        if self.use_slicing and len(inputs) > 1:
            return torch.cat([self._in_parts(network, one, in_scale, out_scale) for one in inputs.split(1)])
        size, margin = (pixels // self.image_downsample_factor for pixels in (self.tile_size, self.tile_margin))
        if not self.use_tiling or max(inputs.shape[2:]) <= size * in_scale:
            return network(inputs)

        def along(axis: int, inputs: torch.Tensor) -> torch.Tensor:
            if axis == 4:
                return network(inputs)
            side, parts = inputs.shape[axis] // in_scale, []
            for start in range(0, side, size - 2 * margin):
                first, end = max(start - margin, 0), min(start + size - 2 * margin, side)
                seen = inputs.narrow(axis, first * in_scale, (min(end + margin, side) - first) * in_scale)
                kept = ((start - first) * out_scale, (end - start) * out_scale)
                parts.append(along(axis + 1, seen).narrow(axis, *kept))
            return torch.cat(parts, dim=axis)

        return along(2, inputs)

    # Encode, decode

    @apply_forward_hook
    def encode(
        self, image: torch.Tensor | None = None, text: torch.LongTensor | None = None, return_dict: bool = True
    ) -> MultimodalVQVAEEncoderOutput | tuple:
        """Codes of pictures, of captions, or of both.

        Args:
            image (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*): In [-1, 1], H and W multiples of f.
            text (`torch.LongTensor` of shape `(B, S)`, *optional*): Token ids, padded; S a multiple of r.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an output object, not a tuple.

        Returns:
            [`MultimodalVQVAEEncoderOutput`], or the tuple of its entries.

        Raises:
            ValueError: If neither modality is given, or a shape does not fit.
        """
        self._check_one_given(image=image, text=text)
        image_codes = text_codes = image_latents = text_latents = None
        if image is not None:
            image = self._check_image(image)
            latents = self._in_parts(self.image_encoder, image, self.image_downsample_factor, 1)
            vectors = self._image_vectors(latents)  # (B, h, w, D)
            image_codes = self.image_quantizer(vectors)
            image_latents = vectors.movedim(-1, 1)
        if text is not None:
            is_padding = self._is_padding_chunk(text)
            if self.config.text_codec == "identity":
                text_codes = text.unsqueeze(-1)  # (B, S, 1)
            else:
                text_latents = self._text_vectors(text)
                text_codes = self.text_quantizer(text_latents)
            text_codes = text_codes.masked_fill(is_padding.unsqueeze(-1), self.text_pad_id)
        values = (image_codes, text_codes, image_latents, text_latents)
        return MultimodalVQVAEEncoderOutput(*values) if return_dict else values

    @apply_forward_hook
    def decode(
        self,
        image_codes: torch.LongTensor | None = None,
        text_codes: torch.LongTensor | None = None,
        return_dict: bool = True,
    ) -> MultimodalVQVAEDecoderOutput | tuple:
        """Pixels and token logits of codes.

        Args:
            image_codes (`torch.LongTensor` of shape `(B, h, w)`, *optional*): Codes in `0..V_x-1`, any h and w.
            text_codes (`torch.LongTensor` of shape `(B, S/r, G)`, *optional*): Codes in `0..V_y-1`, or PAD.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an output object, not a tuple.

        Returns:
            [`MultimodalVQVAEDecoderOutput`], or the tuple of its entries.

        Raises:
            ValueError: If neither modality is given, or a code is MASK or out of range.
        """
        self._check_one_given(image_codes=image_codes, text_codes=text_codes)
        image = text_logits = None
        if image_codes is not None:
            self._check_codes("image_codes", image_codes, num_classes=self.image_codebook_size)
            latents = self._image_latents(self.image_quantizer.lookup(image_codes))
            image = self._in_parts(self.image_decoder, latents, 1, self.image_downsample_factor)
        if text_codes is not None:
            self._check_codes("text_codes", text_codes, num_classes=self.text_codebook_size + 1)
            is_padding = (text_codes == self.text_pad_id).all(dim=-1)  # (B, S/r)
            if self.config.text_codec == "identity":
                text_logits = self._identity_logits(text_codes.squeeze(-1), is_padding)
            else:
                vectors = self.text_quantizer.lookup(text_codes.clamp(max=self.text_codebook_size - 1))
                text_logits = self._decode_text(vectors, is_padding)
        return MultimodalVQVAEDecoderOutput(image, text_logits) if return_dict else (image, text_logits)

    @apply_forward_hook
    def read_text(self, text_logits: torch.Tensor, beam_size: int = 64) -> torch.LongTensor:
        """Token ids of the logits that [`decode`] gives: the likeliest at each position, or, where the model has
        transitions between tokens, the best sequence.

        Args:
            text_logits (`torch.FloatTensor` of shape `(B, S, vocab_size)`): Minus infinity forbids a token.
            beam_size (`int`, *optional*, defaults to 64): Tokens of each position that a sequence may take.

        Returns:
            `torch.LongTensor` of shape `(B, S)`.
        """
        if self.config.text_transition_rank is None:
            return text_logits.argmax(dim=-1)
        return self.text_transitions(text_logits, beam_size)

    @apply_forward_hook
    def normalized_codebook(self, modality: str) -> torch.Tensor:
        """The vectors of all codes of a modality, with mean 0 and variance 1 in each channel over the training data.

        Args:
            modality (`str`): `"image"` or `"text"`.

        Returns:
            `torch.FloatTensor` of shape `(V, D)`, float32.

        Raises:
            ValueError: If the modality has no codebook, or mean and variance were not measured.
        """
        quantizer = getattr(self, f"{modality}_quantizer", None)
        if quantizer is None:
            raise ValueError(f"This tokenizer has no codebook for the modality {modality!r}, so no vectors of codes.")
        mean, std = (getattr(self, f"{modality}_latents_{name}").float() for name in ("mean", "std"))
        if not (std > 0).all():  # NaN = not measured
            raise ValueError(
                f"`{modality}_latents_std` of this tokenizer must have been measured, but is {std.tolist()}: "
                "train_vqvae.py does so at its end, `hf_vqdit.training.latents.measure_latents` for another tokenizer."
            )
        return (quantizer.lookup(torch.arange(len(quantizer.codebook), device=mean.device)) - mean) / std

    def forward(
        self,
        image: torch.Tensor | None = None,
        text: torch.LongTensor | None = None,
        quantize: bool = True,
        gradient_estimator: str = "straight_through",
        return_dict: bool = True,
    ) -> MultimodalVQVAEOutput | tuple:
        """Reconstruction with a gradient that passes the quantization: what training calls.

        Args:
            image (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*): In [-1, 1], H and W multiples of f.
            text (`torch.LongTensor` of shape `(B, S)`, *optional*): Token ids, padded; S a multiple of r.
            quantize (`bool`, *optional*, defaults to `True`):
                `False` passes vectors on as they are: the first steps of training, before the codebooks start.
            gradient_estimator (`str`, *optional*, defaults to `"straight_through"`):
                How the gradient passes: `"straight_through"` or `"rotation_trick"`. The values are the same.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an output object, not a tuple.

        Returns:
            [`MultimodalVQVAEOutput`], or the tuple of its entries.

        Raises:
            ValueError: If neither modality is given, a shape does not fit, or the estimator is unknown.
        """
        self._check_one_given(image=image, text=text)
        if gradient_estimator not in GRADIENT_ESTIMATORS:
            known = list(GRADIENT_ESTIMATORS)
            raise ValueError(f"`gradient_estimator` is {gradient_estimator!r}; it must be one of {known}.")
        output = {}
        if image is not None:
            image = self._check_image(image)
            vectors = self._image_vectors(self.image_encoder(image))  # (B, h, w, D)
            passed, codes, losses = self._quantize(self.image_quantizer, vectors, quantize, gradient_estimator)
            output["image_codes"] = codes
            output["image_latents"] = vectors.movedim(-1, 1)
            output["image"] = self.image_decoder(self._image_latents(passed))
            output["image_commitment_loss"] = losses.flatten(1).mean(dim=1)  # (B,)
            if self.config.projection_dim is not None:
                is_real = vectors.new_ones(vectors.shape[:-1]).flatten(1)
                output["image_embeds"] = self.image_projection(passed.flatten(1, 2), is_real)
        if text is not None:
            is_padding = self._is_padding_chunk(text)
            if self.config.text_codec == "identity":
                codes, vectors = text.unsqueeze(-1), None
                output["text_logits"] = self._identity_logits(text, is_padding)
                output["text_commitment_loss"] = torch.zeros(text.shape[0], device=text.device)
            else:
                vectors = self._text_vectors(text)  # (B, S/r, G, D)
                passed, codes, losses = self._quantize(self.text_quantizer, vectors, quantize, gradient_estimator)
                output["text_logits"] = self._decode_text(passed, is_padding)
                losses = losses.mean(dim=(2, 3)).masked_fill(is_padding, 0.0)  # (B, S/r)
                output["text_commitment_loss"] = losses.sum(dim=1) / (~is_padding).sum(dim=1).clamp(min=1)  # (B,)
                if self.config.projection_dim is not None:
                    output["text_embeds"] = self.text_projection(passed.flatten(2), ~is_padding)
            output["text_latents"] = vectors
            if codes is not None:
                output["text_codes"] = codes.masked_fill(is_padding.unsqueeze(-1), self.text_pad_id)
        output = MultimodalVQVAEOutput(**output)
        return output if return_dict else tuple(getattr(output, name) for name in output.__dataclass_fields__)

    # Pieces

    def _check_image(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) as the encoder takes them."""
        if self.image_codebook_size is None:
            raise ValueError("This tokenizer has no image codec (`image_codebook_size` is None).")
        factor = self.image_downsample_factor
        if image.ndim != 4 or image.shape[1] != self.config.in_channels or not image.is_floating_point():
            raise ValueError(
                f"`image` must be floating point, of shape (B, {self.config.in_channels}, H, W); got {image.dtype}, "
                f"{tuple(image.shape)}."
            )
        if image.shape[2] % factor or image.shape[3] % factor:
            sides = f"{image.shape[2]} x {image.shape[3]}"
            raise ValueError(f"`image` is {sides}; both sides must be multiples of f = {factor}: resize or crop it.")
        return image.to(self.image_encoder.encoder.conv_in.weight.dtype)

    def _image_vectors(self, latents: torch.Tensor) -> torch.Tensor:
        """What the encoder gives, (B, D, h, w), to the vectors that are quantized, (B, h, w, D), float32."""
        return self.image_quantizer.normalize(self.image_project_in(latents.movedim(1, -1)))

    def _image_latents(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (B, h, w, D) to what the decoder takes, (B, D, h, w)."""
        dtype = self.image_decoder.decoder.conv_in.weight.dtype
        return self.image_project_out(vectors.to(dtype)).movedim(-1, 1)

    def _text_vectors(self, text: torch.LongTensor) -> torch.Tensor:
        """Token ids (B, S) to the vectors that are quantized, (B, S/r, G, D), float32."""
        latents = self.text_encoder(self.token_embedding(text))
        return self.text_quantizer.normalize(self.text_project_in(latents))

    def _is_padding_chunk(self, text: torch.LongTensor) -> torch.BoolTensor:
        """Token ids (B, S) to (B, S/r): whether all r tokens of a chunk are padding."""
        if self.config.text_codec is None:
            raise ValueError("This tokenizer has no text codec (`text_codec` is None).")
        factor = self.text_downsample_factor
        if text.ndim != 2 or text.dtype != torch.long or text.shape[1] % factor:
            raise ValueError(
                f"`text` must be int64 token ids of shape (B, S), S a multiple of r = {factor}; got {text.dtype}, "
                f"{tuple(text.shape)}: pad it with `pad_token_id` = {self.config.pad_token_id}."
            )
        return (text == self.config.pad_token_id).unflatten(1, (-1, factor)).all(dim=-1)

    @staticmethod
    def _quantize(
        quantizer: VectorQuantizer, vectors: torch.Tensor, quantize: bool, gradient_estimator: str
    ) -> tuple[torch.Tensor, torch.LongTensor | None, torch.Tensor]:
        """What the decoder sees, the codes, and the squared distance to them, element by element."""
        if not quantize:
            return vectors, None, torch.zeros_like(vectors)
        codes = quantizer(vectors)
        quantized = quantizer.lookup(codes)
        passed = GRADIENT_ESTIMATORS[gradient_estimator](vectors, quantized)
        # The commitment loss pulls the encoder to the (fixed) code; the codebook is trained from outside.
        return passed, codes, (vectors - quantized.detach()).square()

    def _decode_text(self, vectors: torch.Tensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        """Vectors (B, S/r, G, D) to token logits (B, S, vocabulary); a padding chunk reads padding."""
        vectors = self.text_project_out(vectors.to(self.text_decoder.proj_in.weight.dtype))
        vectors = vectors.masked_fill(is_padding[:, :, None, None], 0.0)
        hidden_states = self.text_decoder(vectors, is_padding)
        return self._read_padding(self.token_embedding.logits(hidden_states).float(), is_padding)

    def _identity_logits(self, token_ids: torch.LongTensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        token_ids = token_ids.clamp(max=self.config.vocab_size - 1)  # PAD = vocab_size is set below
        logits = CERTAIN_LOGIT * F.one_hot(token_ids, self.config.vocab_size).float()
        return self._read_padding(logits, is_padding)

    def _read_padding(self, logits: torch.Tensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        padding_logits = torch.zeros_like(logits[0, 0])
        padding_logits[self.config.pad_token_id] = CERTAIN_LOGIT
        is_padding = is_padding.repeat_interleave(self.text_downsample_factor, dim=1)  # (B, S)
        return torch.where(is_padding.unsqueeze(-1), padding_logits, logits)

    @staticmethod
    def _check_one_given(**inputs: torch.Tensor | None) -> None:
        if all(value is None for value in inputs.values()):
            raise ValueError(f"Nothing to do: give at least one of {' and '.join(f'`{name}`' for name in inputs)}.")

    @staticmethod
    def _check_codes(name: str, codes: torch.Tensor, num_classes: int | None) -> None:
        if num_classes is None:
            raise ValueError(f"`{name}` was given, but this tokenizer has no codec for that modality.")
        if codes.ndim != 3 or codes.dtype != torch.long:
            raise ValueError(f"`{name}` must be int64 with 3 axes; got {codes.dtype}, shape {tuple(codes.shape)}.")
        low, high = codes.aminmax()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`{name}` must lie in 0..{num_classes - 1}; got {int(low)}..{int(high)}. MASK is {num_classes}: "
                "codes are decoded once all of them are generated."
            )

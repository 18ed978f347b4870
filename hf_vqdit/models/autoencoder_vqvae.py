# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The multimodal VQ-VAE: pictures and captions to discrete codes, and back.

This file travels with every checkpoint that carries its code, so it imports nothing of hf_vqdit.
Shapes: B batch, H W pixels, f image downsampling, h w = H/f W/f, S text tokens, r text downsampling, G code groups a
text position, V codebook size, D code dimension.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

# Logit of a token that is known for certain (identity codec, padding): finite, so that the read-out can still forbid
# it.
CERTAIN_LOGIT = 50.0


@dataclass
class MultimodalVQVAEEncoderOutput(BaseOutput):
    """Output of [`MultimodalVQVAE.encode`]; `None` for a modality that was not given.

    Args:
        image_codes (`torch.LongTensor` of shape `(B, h, w)`): Codes in `0..V_x-1`.
        text_codes (`torch.LongTensor` of shape `(B, S/r, G)`):
            Codes in `0..V_y-1`, or PAD = V_y in all groups of a chunk.
        image_latents (`torch.FloatTensor` of shape `(B, D, h, w)`): The vectors before quantization.
        text_latents (`torch.FloatTensor` of shape `(B, S/r, G, D)`):
            The same for text; `None` with the identity codec.
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
    (without padding), so that the weight of a row does not depend on the rows beside it.
    """

    image: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    image_codes: torch.LongTensor | None = None
    text_codes: torch.LongTensor | None = None
    image_latents: torch.FloatTensor | None = None
    text_latents: torch.FloatTensor | None = None
    image_commitment_loss: torch.FloatTensor | None = None
    text_commitment_loss: torch.FloatTensor | None = None

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
        num_codes = weight.shape[1]
        codes = torch.empty(vectors.shape[0], dtype=torch.long, device=vectors.device)
        chunk_size = max(64, max_entries // num_codes)
        for start in range(0, vectors.shape[0], chunk_size):
            chunk = vectors[start : start + chunk_size]
            scores = _exact_matmul_add(bias, chunk, weight).view(chunk.shape[0], -1, block_size)  # (n, V'/32, 32)
            block = scores.amin(dim=2).argmin(dim=1)  # (n,)
            within = scores[torch.arange(chunk.shape[0], device=chunk.device), block].argmin(dim=1)
            codes[start : start + chunk.shape[0]] = block * block_size + within
    return codes


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

    def lookup(self, codes: torch.LongTensor) -> torch.Tensor:
        """Vectors `(..., D)`, float32, of codes `(...)`."""
        # Normalized again: a codebook cast to bfloat16 is no longer of unit length.
        return self.normalize(F.embedding(codes, self.codebook))


class ImageEncoder(nn.Module):
    """Pixels to vectors: a convolutional encoder over patches of pixels, and a linear shortcut around it.

    The shortcut maps each f x f patch of pixels straight to its vector (as the residual autoencoding of DC-AE, Chen
    2024, does without weights), so that training starts from a linear codec that keeps colours, and the convolutions
    learn the rest.
    """

    def __init__(self, in_channels: int, patch_size: int, factor: int, code_dim: int, **blocks):
        super().__init__()
        self.patch_size, self.factor = patch_size, factor
        down_block_types = ("DownEncoderBlock2D",) * len(blocks["block_out_channels"])
        self.encoder = Encoder(
            in_channels * patch_size**2, code_dim, down_block_types=down_block_types, double_z=False, **blocks
        )
        self.shortcut = nn.Conv2d(in_channels * factor**2, code_dim, kernel_size=1)
        nn.init.zeros_(self.encoder.conv_out.weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        latents = self.encoder(F.pixel_unshuffle(image, self.patch_size))
        return latents + self.shortcut(F.pixel_unshuffle(image, self.factor))  # (B, D, h, w)


class ImageDecoder(nn.Module):
    """Vectors to pixels: the mirror of [`ImageEncoder`]."""

    def __init__(self, out_channels: int, patch_size: int, factor: int, code_dim: int, **blocks):
        super().__init__()
        self.patch_size, self.factor = patch_size, factor
        up_block_types = ("UpDecoderBlock2D",) * len(blocks["block_out_channels"])
        self.decoder = Decoder(code_dim, out_channels * patch_size**2, up_block_types=up_block_types, **blocks)
        self.shortcut = nn.Conv2d(code_dim, out_channels * factor**2, kernel_size=1)
        nn.init.zeros_(self.decoder.conv_out.weight)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        image = F.pixel_shuffle(self.decoder(latents), self.patch_size)
        return image + F.pixel_shuffle(self.shortcut(latents), self.factor)  # (B, C, H, W)


class TextEncoder(nn.Module):
    """Token ids to one vector for each code group of each chunk of r tokens.

    A chunk is read alone. Its codes therefore do not depend on the padding that follows, nor on a word hidden beside
    it.
    """

    def __init__(self, downsample_factor: int, num_groups: int, width: int, code_dim: int):
        super().__init__()
        self.downsample_factor, self.num_groups, self.code_dim = downsample_factor, num_groups, code_dim
        chunk_width = downsample_factor * width
        self.norm = nn.LayerNorm(chunk_width)
        self.mlp = nn.Sequential(
            nn.Linear(chunk_width, 2 * chunk_width), nn.GELU(), nn.Linear(2 * chunk_width, chunk_width)
        )
        self.norm_out = nn.LayerNorm(chunk_width)
        self.proj_out = nn.Linear(chunk_width, num_groups * code_dim)

    def forward(self, token_embeddings: torch.Tensor) -> torch.Tensor:
        batch_size, num_tokens, _ = token_embeddings.shape
        hidden_states = token_embeddings.reshape(
            batch_size, num_tokens // self.downsample_factor, -1
        )  # (B, S/r, r width)
        hidden_states = hidden_states + self.mlp(self.norm(hidden_states))
        latents = self.proj_out(self.norm_out(hidden_states))
        return latents.view(batch_size, -1, self.num_groups, self.code_dim)  # (B, S/r, G, D)


class TextDecoder(nn.Module):
    """Code vectors to token states. Chunks that are all padding are kept out of attention."""

    def __init__(self, downsample_factor: int, num_groups: int, width: int, code_dim: int, num_layers: int):
        super().__init__()
        self.downsample_factor, self.width = downsample_factor, width
        self.proj_in = nn.Linear(num_groups * code_dim, downsample_factor * width)
        num_heads = max(1, width // 64)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(width, num_heads, width // num_heads, attention_bias=True) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.gradient_checkpointing = False

    def forward(self, latents: torch.Tensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        batch_size, num_chunks = is_padding.shape
        hidden_states = self.proj_in(latents.flatten(2))  # (B, S/r, r width)
        hidden_states = hidden_states.view(
            batch_size, num_chunks * self.downsample_factor, self.width
        )  # (B, S, width)
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        hidden_states = hidden_states + get_1d_sincos_pos_embed_from_grid(
            self.width, positions, output_type="pt", dtype=torch.float32
        ).to(hidden_states.dtype)

        # A row that is all padding attends to everything: softmax over nothing is NaN.
        is_hidden = is_padding & ~is_padding.all(dim=1, keepdim=True)
        attention_bias = torch.zeros(is_hidden.shape, dtype=hidden_states.dtype, device=hidden_states.device)
        attention_bias = attention_bias.masked_fill(is_hidden, float("-inf"))
        attention_bias = attention_bias.repeat_interleave(self.downsample_factor, dim=1)[:, None]  # (B, 1, S)

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, attention_bias)
            else:
                hidden_states = block(hidden_states, attention_mask=attention_bias)
        return self.norm_out(hidden_states)  # (B, S, width)


class MultimodalVQVAE(ModelMixin, ConfigMixin):
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
        image_codebook_size (`int`, *optional*, defaults to 1024): V_x; `None` for a tokenizer of text alone.
        code_dim (`int`, *optional*, defaults to 8): Dimension of an image code.
        l2_normalize (`bool`, *optional*, defaults to `True`): Vectors and codes of unit length.
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
        image_codebook_size: int | None = 1024,
        code_dim: int = 8,
        l2_normalize: bool = True,
        text_codec: str | None = "vq",
        vocab_size: int | None = None,
        text_codebook_size: int = 1024,
        text_code_dim: int = 8,
        text_downsample_factor: int = 1,
        text_num_groups: int = 1,
        text_width: int = 256,
        num_text_decoder_layers: int = 2,
        pad_token_id: int = 0,
        eos_token_id: int = 1,
        mask_token_id: int = 2,
    ):
        super().__init__()
        self._check_text_config()
        if image_codebook_size is not None:
            blocks = {"block_out_channels": block_out_channels, "layers_per_block": layers_per_block}
            blocks |= {"norm_num_groups": norm_num_groups, "mid_block_add_attention": False}
            self.image_encoder = ImageEncoder(
                in_channels, patch_size, self.image_downsample_factor, code_dim, **blocks
            )
            self.image_decoder = ImageDecoder(
                in_channels, patch_size, self.image_downsample_factor, code_dim, **blocks
            )
            self.image_quantizer = VectorQuantizer(image_codebook_size, code_dim, l2_normalize)
            # Statistics of the code vectors over the training data, for processes that work on vectors; NaN = not
            # measured.
            self.image_latents_mean = nn.Parameter(torch.full((code_dim,), float("nan")), requires_grad=False)
            self.image_latents_std = nn.Parameter(torch.full((code_dim,), float("nan")), requires_grad=False)
        if text_codec == "vq":
            layout = (text_downsample_factor, text_num_groups, text_width, text_code_dim)
            self.token_embedding = nn.Embedding(vocab_size, text_width)
            nn.init.normal_(self.token_embedding.weight, std=text_width**-0.5)  # it is the output matrix too
            self.text_encoder = TextEncoder(*layout)
            self.text_decoder = TextDecoder(*layout, num_layers=num_text_decoder_layers)
            self.text_quantizer = VectorQuantizer(text_codebook_size, text_code_dim, l2_normalize)
            self.text_latents_mean = nn.Parameter(torch.full((text_code_dim,), float("nan")), requires_grad=False)
            self.text_latents_std = nn.Parameter(torch.full((text_code_dim,), float("nan")), requires_grad=False)

    def _check_text_config(self) -> None:
        config = self.config
        if config.text_codec not in ("vq", "identity", None):
            raise ValueError(f"`text_codec` is {config.text_codec!r}; it must be 'vq', 'identity' or None.")
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
                "The identity text codec has one code a token: `text_downsample_factor` and `text_num_groups` "
                "must be 1, got "
                f"{config.text_downsample_factor} and {config.text_num_groups}."
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

    # Encode, decode

    @apply_forward_hook
    def encode(
        self, image: torch.Tensor | None = None, text: torch.LongTensor | None = None, return_dict: bool = True
    ) -> MultimodalVQVAEEncoderOutput | tuple:
        """Codes of pictures, of captions, or of both.

        Args:
            image (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*):
                Pictures in [-1, 1], H and W multiples of f.
            text (`torch.LongTensor` of shape `(B, S)`, *optional*):
                Token ids, padded with `pad_token_id`; S a multiple of r.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an output object rather than a tuple.

        Returns:
            [`MultimodalVQVAEEncoderOutput`], or the tuple of its entries.

        Raises:
            ValueError: If neither modality is given, or a shape does not fit.
        """
        self._check_one_given(image=image, text=text)
        image_codes = text_codes = image_latents = text_latents = None
        if image is not None:
            vectors = self._image_vectors(image)  # (B, h, w, D)
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
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an output object rather than a tuple.

        Returns:
            [`MultimodalVQVAEDecoderOutput`], or the tuple of its entries.

        Raises:
            ValueError: If neither modality is given, or a code is MASK or out of range.
        """
        self._check_one_given(image_codes=image_codes, text_codes=text_codes)
        image = text_logits = None
        if image_codes is not None:
            self._check_codes("image_codes", image_codes, ndim=3, num_classes=self.image_codebook_size)
            image = self._decode_image(self.image_quantizer.lookup(image_codes))
        if text_codes is not None:
            self._check_codes("text_codes", text_codes, ndim=3, num_classes=self.text_codebook_size + 1)
            is_padding = (text_codes == self.text_pad_id).all(dim=-1)  # (B, S/r)
            if self.config.text_codec == "identity":
                text_logits = self._identity_logits(text_codes.squeeze(-1), is_padding)
            else:
                vectors = self.text_quantizer.lookup(text_codes.clamp(max=self.text_codebook_size - 1))
                text_logits = self._decode_text(vectors, is_padding)
        return MultimodalVQVAEDecoderOutput(image, text_logits) if return_dict else (image, text_logits)

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
        codes = torch.arange(quantizer.codebook.shape[0], device=std.device)
        return (quantizer.lookup(codes) - mean) / std

    def forward(
        self,
        image: torch.Tensor | None = None,
        text: torch.LongTensor | None = None,
        quantize: bool = True,
        return_dict: bool = True,
    ) -> MultimodalVQVAEOutput | tuple:
        """Reconstruction with the straight-through gradient: what training calls.

        Args:
            image (`torch.FloatTensor` of shape `(B, 3, H, W)`, *optional*):
                Pictures in [-1, 1], H and W multiples of f.
            text (`torch.LongTensor` of shape `(B, S)`, *optional*):
                Token ids, padded with `pad_token_id`; S a multiple of r.
            quantize (`bool`, *optional*, defaults to `True`):
                `False` passes the vectors on as they are: the first steps of training, before the codebooks are
                started.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an output object rather than a tuple.

        Returns:
            [`MultimodalVQVAEOutput`], or the tuple of its entries.
        """
        self._check_one_given(image=image, text=text)
        output = {}
        if image is not None:
            vectors = self._image_vectors(image)  # (B, h, w, D)
            passed, output["image_codes"], losses = self._quantize(self.image_quantizer, vectors, quantize)
            output["image_latents"] = vectors.movedim(-1, 1)
            output["image"] = self._decode_image(passed)
            output["image_commitment_loss"] = losses.flatten(1).mean(dim=1)  # (B,)
        if text is not None:
            is_padding = self._is_padding_chunk(text)
            if self.config.text_codec == "identity":
                codes, vectors = text.unsqueeze(-1), None
                output["text_logits"] = self._identity_logits(text, is_padding)
                output["text_commitment_loss"] = torch.zeros(text.shape[0], device=text.device)
            else:
                vectors = self._text_vectors(text)  # (B, S/r, G, D)
                passed, codes, losses = self._quantize(self.text_quantizer, vectors, quantize)
                output["text_logits"] = self._decode_text(passed, is_padding)
                losses = losses.mean(dim=(2, 3)).masked_fill(is_padding, 0.0)  # (B, S/r)
                output["text_commitment_loss"] = losses.sum(dim=1) / (~is_padding).sum(dim=1).clamp(min=1)  # (B,)
            output["text_latents"] = vectors
            if codes is not None:
                output["text_codes"] = codes.masked_fill(is_padding.unsqueeze(-1), self.text_pad_id)
        output = MultimodalVQVAEOutput(**output)
        return output if return_dict else tuple(getattr(output, name) for name in output.__dataclass_fields__)

    # Pieces

    def _image_vectors(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures (B, C, H, W) to the vectors that are quantized, (B, h, w, D), float32."""
        if self.image_codebook_size is None:
            raise ValueError("This tokenizer has no image codec (`image_codebook_size` is None).")
        factor = self.image_downsample_factor
        if image.ndim != 4 or image.shape[1] != self.config.in_channels or not image.is_floating_point():
            raise ValueError(
                f"`image` must be floating point, of shape (B, {self.config.in_channels}, H, W); got {image.dtype}, "
                f"{tuple(image.shape)}."
            )
        if image.shape[2] % factor or image.shape[3] % factor:
            raise ValueError(
                f"`image` is {image.shape[2]} x {image.shape[3]}; both sides must be multiples of f = {factor}: "
                f"resize or crop it."
            )
        latents = self.image_encoder(image.to(self.image_encoder.shortcut.weight.dtype))  # (B, D, h, w)
        return self.image_quantizer.normalize(latents.movedim(1, -1))

    def _text_vectors(self, text: torch.LongTensor) -> torch.Tensor:
        """Token ids (B, S) to the vectors that are quantized, (B, S/r, G, D), float32."""
        return self.text_quantizer.normalize(self.text_encoder(self.token_embedding(text)))

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
        quantizer: VectorQuantizer, vectors: torch.Tensor, quantize: bool
    ) -> tuple[torch.Tensor, torch.LongTensor | None, torch.Tensor]:
        """What the decoder sees, the codes, and the squared distance to them, element by element."""
        if not quantize:
            return vectors, None, torch.zeros_like(vectors)
        codes = quantizer(vectors)
        quantized = quantizer.lookup(codes)
        # The commitment loss pulls the encoder to the (fixed) code; the codebook follows by its moving average.
        return vectors + (quantized - vectors).detach(), codes, (vectors - quantized.detach()).square()

    def _decode_image(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (B, h, w, D) to pixels (B, C, H, W)."""
        return self.image_decoder(vectors.movedim(-1, 1).to(self.image_decoder.shortcut.weight.dtype))

    def _decode_text(self, vectors: torch.Tensor, is_padding: torch.BoolTensor) -> torch.Tensor:
        """Vectors (B, S/r, G, D) to token logits (B, S, vocabulary); a padding chunk reads padding."""
        vectors = vectors.masked_fill(is_padding[:, :, None, None], 0.0)
        hidden_states = self.text_decoder(vectors.to(self.text_decoder.proj_in.weight.dtype), is_padding)
        logits = F.linear(
            hidden_states, self.token_embedding.weight
        ).float()  # tied by use: tied parameters do not save
        return self._read_padding(logits, is_padding)

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
    def _check_codes(name: str, codes: torch.Tensor, ndim: int, num_classes: int | None) -> None:
        if num_classes is None:
            raise ValueError(f"`{name}` was given, but this tokenizer has no codec for that modality.")
        if codes.ndim != ndim or codes.dtype != torch.long:
            raise ValueError(
                f"`{name}` must be int64 with {ndim} axes; got {codes.dtype}, shape {tuple(codes.shape)}."
            )
        low, high = codes.aminmax()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`{name}` must lie in 0..{num_classes - 1}; got {int(low)}..{int(high)}. MASK is "
                f"{num_classes}: codes are decoded "
                "once all of them are generated."
            )

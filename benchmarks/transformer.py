# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Transformer.

One pass of `VQDiTModel` over text codes and image codes, without (`forward`) and with its gradients (`training`).

Peers of diffusers, of the same width, depth, heads, tokens and classes: `DiTTransformer2DModel`, on a square grid of
as many tokens, and `UVit2DModel` of aMUSEd, which reads the text by cross-attention and has convolutional blocks
besides. Beside the time of a pass, and so of a token, stand the time for each parameter (DiT has a network for the
modulation in every block, `VQDiTModel` one for all) and for each FLOP. The last rows have `VQDiTModel` with fused
projections, and both DiTs with their blocks compiled, for which torch needs a C++ compiler.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UVit2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import NUM_ROUNDS, OURS, QUICK_NUM_ROUNDS, Row, alternate, cpu_seconds, peak_bytes, ratios
from hf_vqdit import VQDiTModel

DIT, UVIT = "diffusers DiTTransformer2DModel", "diffusers UVit2DModel"


class Size(NamedTuple):
    """What the models have in common. S + h^2 is a square number, for DiT's grid."""

    batch_size: int
    text_length: int  # S
    image_side: int  # h
    num_codes: int
    hidden_size: int
    num_layers: int
    num_heads: int

    @property
    def num_tokens(self) -> int:
        """Of text and image together."""
        return self.text_length + self.image_side**2

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.num_tokens} tokens, D = {self.hidden_size}, {self.num_layers} blocks"


SIZES = (Size(16, 15, 7, 512, 192, 6, 6), Size(2, 60, 14, 1024, 384, 12, 6))
QUICK_SIZES = (Size(2, 5, 2, 16, 32, 1, 2),)


class Network(NamedTuple):
    """A model, and how it is called on a batch: a tuple of outputs."""

    model: ModelMixin
    call: Callable[[ModelMixin], tuple[torch.Tensor, ...]]

    def forward(self) -> None:
        """One pass without gradients."""
        with torch.no_grad():
            self.call(self.model)

    def training(self) -> None:
        """One pass with the gradients of all parameters."""
        self.model.zero_grad()
        sum(output.square().mean() for output in self.call(self.model)).backward()

    def changed(self, change: Callable[[ModelMixin], None]) -> "Network":
        """A copy with a changed model."""
        model = deepcopy(self.model)
        change(model)
        return Network(model, self.call)


def measure(quick: bool = False) -> list[Row]:
    """Rows for each size, forward and training."""
    num_rounds = QUICK_NUM_ROUNDS if quick else NUM_ROUNDS
    found = []
    for size in QUICK_SIZES if quick else SIZES:
        networks = {OURS: make_vqdit(size), DIT: make_dit(size), UVIT: make_uvit(size)}
        variants = {
            "fused": {
                OURS: networks[OURS].changed(lambda model: model.fuse_qkv_projections()),
                "hf_vqdit, projections apart": networks[OURS],
            }
        }
        if not quick:  # compilation takes longer than all the rest
            compiled = {name: networks[name].changed(compile_blocks) for name in (OURS, DIT)}
            variants["compiled"] = compiled | {"hf_vqdit, not compiled": networks[OURS]}
        for kind in ("forward", "training"):
            case = f"{kind}, {size}"
            found += compare_networks(case, kind, networks, num_rounds)
            for suffix, changed in variants.items():
                seconds = seconds_of_passes(kind, changed, num_rounds)
                found += ratios(f"{case}, {suffix}", "time a token", seconds)
    return found


def compare_networks(case: str, kind: str, networks: dict[str, Network], num_rounds: int) -> list[Row]:
    """Time a token, a parameter and a FLOP, and memory."""
    seconds = seconds_of_passes(kind, networks, num_rounds)
    passes = {name: getattr(network, kind) for name, network in networks.items()}
    sizes = {
        "time a token": dict.fromkeys(networks, 1),
        "time a parameter": {name: network.model.num_parameters() for name, network in networks.items()},
        "time a FLOP": {name: num_flops(run) for name, run in passes.items()},
    }
    found = []
    for quantity, size in sizes.items():
        found += ratios(case, quantity, {name: [x / size[name] for x in seconds[name]] for name in networks})
    return found + ratios(case, "peak memory", {name: [peak_bytes(run)] for name, run in passes.items()})


def seconds_of_passes(kind: str, networks: dict[str, Network], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a pass of each network, in each round."""
    return alternate({name: cpu_seconds(getattr(network, kind)) for name, network in networks.items()}, num_rounds)


def num_flops(run: Callable[[], None]) -> int:
    """Multiplications and additions of matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def compile_blocks(model: ModelMixin) -> None:
    """`ModelMixin.compile_repeated_blocks`, also for a model that does not name its blocks."""
    for block in model.transformer_blocks:
        block.compile()


# The networks


def make_vqdit(size: Size) -> Network:
    """`VQDiTModel` over text codes and an image's."""
    model = VQDiTModel(
        image_codebook_size=size.num_codes,
        text_codebook_size=size.num_codes,
        sample_size=size.image_side,
        text_length=size.text_length,
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        num_attention_heads=size.num_heads,
    )
    generator = torch.Generator().manual_seed(0)
    image_shape = (size.batch_size, size.image_side, size.image_side)
    image_codes = torch.randint(size.num_codes + 1, image_shape, generator=generator)
    text_codes = torch.randint(size.num_codes + 2, (size.batch_size, size.text_length, 1), generator=generator)
    rate = torch.rand(size.batch_size, generator=generator)
    return Network(initialized(model), lambda m: m(image_codes, text_codes, rate, rate, return_dict=False))


def make_dit(size: Size) -> Network:
    """`DiTTransformer2DModel` over vectors, with a class, and as many outputs a token as there are codes."""
    side = round(size.num_tokens**0.5)
    model = DiTTransformer2DModel(
        num_attention_heads=size.num_heads,
        attention_head_dim=size.hidden_size // size.num_heads,
        in_channels=4,
        out_channels=size.num_codes,
        num_layers=size.num_layers,
        sample_size=side,
        patch_size=1,
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(size.batch_size, 4, side, side, generator=generator)
    timestep, labels = torch.randint(1000, (2, size.batch_size), generator=generator)
    return Network(initialized(model), lambda m: m(latents, timestep, labels, return_dict=False))


def make_uvit(size: Size) -> Network:
    """`UVit2DModel` over image codes, with vectors for the text."""
    width, micro_conditions = size.hidden_size, 5
    model = UVit2DModel(
        hidden_size=width,
        cond_embed_dim=width,
        micro_cond_encode_dim=32,
        micro_cond_embed_dim=32 * micro_conditions,
        encoder_hidden_size=width,
        vocab_size=size.num_codes + 1,
        codebook_size=size.num_codes,
        in_channels=width,
        block_out_channels=width,
        num_res_blocks=1,
        block_num_heads=size.num_heads,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        intermediate_size=round(width * 8 / 3),
        sample_size=size.image_side,
    )
    generator = torch.Generator().manual_seed(0)
    image_shape = (size.batch_size, size.image_side, size.image_side)
    image_codes = torch.randint(size.num_codes + 1, image_shape, generator=generator)
    text = torch.randn(size.batch_size, size.text_length, width, generator=generator)
    conditions = torch.rand(size.batch_size, micro_conditions, generator=generator)
    return Network(initialized(model), lambda m: (m(image_codes, text, text[:, 0], conditions),))


def initialized(model: ModelMixin) -> ModelMixin:
    """Weights of which none is zero, as after some training."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model

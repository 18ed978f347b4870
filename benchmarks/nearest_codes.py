# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Nearest codes.

What a tokenizer does with N vectors: find the nearest of V codes of dimension D (`search`), and in training also look
them up, with the straight-through gradient and the commitment loss (`quantize`).

Peers: `torch.cdist` and `argmin`, as it is mostly written; `VectorQuantizer` of diffusers; `VectorQuantize` of
vector-quantize-pytorch in evaluation, where it computes no loss. Vectors and codes have unit length, the default of
`MultimodalVQVAE`. All find the same codes, but where two distances are equal within the rounding of float32: the
benchmark ends with an error if they do not.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vq_model import VectorQuantizer as DiffusersQuantizer

from benchmarks.timing import NUM_ROUNDS, OURS, QUICK_NUM_ROUNDS, Row, compare
from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, VectorQuantizer

try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError:
    VectorQuantize = None

SIZES = (  # N, V, D
    (512, 128, 8),  # captions of the quickstart, one training batch
    (2048, 512, 8),  # its pictures
    (16384, 1024, 8),
    (16384, 8192, 8),
    (4096, 1024, 256),  # VQGAN (Esser 2021): 16 pictures of 256 pixels
    (4096, 16384, 32),
)
QUICK_SIZES = ((64, 40, 4),)


def measure(quick: bool = False) -> list[Row]:
    """Rows for each size."""
    if VectorQuantize is None:
        warnings.warn("Without the rows of vector-quantize-pytorch: pip install '.[benchmarks]'", stacklevel=2)
    found = []
    for num_vectors, num_codes, dim in QUICK_SIZES if quick else SIZES:
        generator = torch.Generator().manual_seed(0)
        vectors = F.normalize(torch.randn(num_vectors, dim, generator=generator), dim=-1)
        codebook = F.normalize(torch.randn(num_codes, dim, generator=generator), dim=-1)
        for name, make in (("search", searches), ("quantize", quantizations)):
            functions = make(vectors, codebook)
            for function in functions.values():
                check_nearest(function(), vectors, codebook)
            case = f"{name}, N = {num_vectors}, V = {num_codes}, D = {dim}"
            found += compare(case, functions, QUICK_NUM_ROUNDS if quick else NUM_ROUNDS)
    return found


def searches(vectors: torch.Tensor, codebook: torch.Tensor) -> dict[str, Callable[[], torch.LongTensor]]:
    """Ways to the codes (N,) of vectors (N, D)."""
    quantizer = VectorQuantizer(*codebook.shape)
    quantizer.codebook.data.copy_(codebook)
    return {
        OURS: lambda: quantizer(vectors),
        "torch.cdist": lambda: torch.cdist(vectors, codebook).argmin(dim=1),
    }


@torch.no_grad()
def quantizations(vectors: torch.Tensor, codebook: torch.Tensor) -> dict[str, Callable[[], torch.LongTensor]]:
    """Ways to quantize vectors (N, D), in the layout that each quantizer is given; they return the codes (N,)."""
    quantizer = VectorQuantizer(*codebook.shape)
    quantizer.codebook.copy_(codebook)
    of_diffusers = DiffusersQuantizer(*codebook.shape, beta=0.25, legacy=False)
    of_diffusers.embedding.weight.copy_(codebook)
    grid = vectors.T[None, :, None]  # (1, D, 1, N)
    functions = {
        OURS: lambda: MultimodalVQVAE._quantize(quantizer, vectors, True)[1],
        "diffusers VectorQuantizer": lambda: of_diffusers(grid)[2][2],
    }
    if VectorQuantize is not None:
        of_package = VectorQuantize(codebook.shape[1], codebook.shape[0], freeze_codebook=True).eval()
        of_package._codebook.embed.copy_(codebook)
        functions["vector-quantize-pytorch"] = lambda: of_package(vectors[None])[1][0]
    return {name: torch.no_grad()(function) for name, function in functions.items()}


def check_nearest(codes: torch.LongTensor, vectors: torch.Tensor, codebook: torch.Tensor) -> None:
    """Raise if a code is farther from its vector than another one, by more than what float32 rounds off."""
    for own, chunk in zip(codes.split(256), vectors.double().split(256), strict=True):
        distances = torch.cdist(chunk, codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")  # (256, V)
        excess = distances.gather(1, own[:, None]).square().squeeze(1) - distances.amin(dim=1).square()
        if excess.max() > 1e-6:
            raise RuntimeError(f"A code is not the nearest: its squared distance is {excess.max():g} above the least.")

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Sets of pictures, and distances and overlaps of two of them on the features of any network."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

KERNEL_SUBSET_SIZE = 1000  # pictures of each set, or all if there are fewer
NUM_NEIGHBORS = 5  # k of precision, recall, density and coverage
_CHUNK_NUMEL = 2**24  # distances held at a time


class PictureSet(NamedTuple):
    """Pictures that were looked at."""

    pixel_values: torch.Tensor  # (N, 3, H, W) in [-1, 1]
    captions: Sequence[str]
    features: torch.Tensor  # (N, D), float64

    def first(self, num_pictures: int) -> "PictureSet":
        """The first pictures, all if there are fewer."""
        return PictureSet(*(own[:num_pictures] for own in self))


def frechet_distance(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """||m - m'||^2 + tr(S + S' - 2 (S S')^(1/2)) of means and covariances: FID (Heusel 2017, eq. 6), on any features.

    It falls with the number of pictures: only sets of equal size compare, and only within one feature network.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Of generated pictures, at least two.
        real_features (`torch.Tensor` of shape `(M, D)`): Of real pictures, at least two.

    Returns:
        `float`: At least 0; NaN if a feature is not finite.
    """
    if not (features.isfinite().all() and real_features.isfinite().all()):
        return float("nan")  # the eigenvalues of such a matrix end the process in some builds of LAPACK
    metric = FrechetInceptionDistance(_identity(features))
    metric.update(real_features, real=True)
    metric.update(features, real=False)
    # Between equal sets rounding may take it a little below 0. (`max` would turn NaN into the best value.)
    return metric.compute().clamp(min=0).item()


def kernel_distance(features: torch.Tensor, real_features: torch.Tensor, seed: int = 0) -> float:
    """The squared maximum mean discrepancy of a cubic kernel: KID (Binkowski 2018), on any features.

    Its expectation does not depend on the number of pictures, and is 0 between sets of one distribution; it may come
    out below. The mean over a hundred random subsets.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Of generated pictures, at least two.
        real_features (`torch.Tensor` of shape `(M, D)`): Of real pictures, at least two.
        seed (`int`, defaults to 0): Seed of the subsets.

    Returns:
        `float`
    """
    subset_size = min(KERNEL_SUBSET_SIZE, len(features), len(real_features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that all features are kept: they are here already
        metric = KernelInceptionDistance(_identity(features), subset_size=subset_size)
    metric.update(real_features, real=True)
    metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the metric takes no generator
        mean, _ = metric.compute()
    return mean.item()


def _identity(features: torch.Tensor) -> nn.Module:
    """What torchmetrics takes for a network: it is fed with features, since each picture is looked at only once."""
    identity = nn.Identity()
    identity.num_features = features.shape[1]
    return identity


def neighborhood_figures(
    features: torch.Tensor, real_features: torch.Tensor, num_neighbors: int = NUM_NEIGHBORS
) -> dict[str, float]:
    """How far two sets lie within each other, by balls that reach from each picture to its k-th neighbor in its set.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Of generated pictures, more than k.
        real_features (`torch.Tensor` of shape `(M, D)`): Of real pictures, more than k; as many as generated ones, or
            precision and recall do not compare.
        num_neighbors (`int`, defaults to 5): k.

    Returns:
        `dict[str, float]`: `precision`, the share of generated pictures in a ball of a real one, and `recall`, the
            share of real ones in a ball of a generated one (Kynkaanniemi 2019, eq. 2); `density`, by how many real
            balls a generated picture is covered, relative to k, and `coverage`, the share of real balls that hold a
            generated picture (Naeem 2020).
    """
    real_radii = _radii(real_features, num_neighbors)  # (M,)
    radii = _radii(features, num_neighbors)  # (N,)
    num_covering, is_recalled, is_covered = [], [], torch.zeros(len(real_features), dtype=torch.bool)
    for rows in _chunks(features, len(real_features)):
        distances = torch.cdist(rows, real_features)  # (n, M)
        is_in_real = distances <= real_radii
        num_covering.append(is_in_real.sum(dim=1))
        is_covered |= is_in_real.any(dim=0)
    for rows in _chunks(real_features, len(features)):
        is_recalled.append((torch.cdist(rows, features) <= radii).any(dim=1))
    num_covering = torch.cat(num_covering).double()  # (N,)
    return {
        "precision": (num_covering > 0).double().mean().item(),
        "recall": torch.cat(is_recalled).double().mean().item(),
        "density": num_covering.mean().item() / num_neighbors,
        "coverage": is_covered.double().mean().item(),
    }


def _radii(features: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """The distance of each row to its k-th nearest other row."""
    # Nearest of all is the row itself.
    return torch.cat(
        [torch.cdist(rows, features).kthvalue(num_neighbors + 1).values for rows in _chunks(features, len(features))]
    )


def diversity(features: torch.Tensor, real_features: torch.Tensor) -> float:
    """The mean distance between two pictures of a set, relative to that of real ones: 0 is one picture for everything.

    The diversity of BicycleGAN (Zhu 2017), with any features in the place of those of LPIPS.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Of generated pictures, at least two.
        real_features (`torch.Tensor` of shape `(M, D)`): Of real pictures, at least two.

    Returns:
        `float`: 1 if generated pictures are as diverse as the real ones.
    """
    return (_mean_distance(features) / _mean_distance(real_features)).item()


def _mean_distance(features: torch.Tensor) -> torch.Tensor:
    """Over all pairs of different rows."""
    total = sum(torch.cdist(rows, features).sum() for rows in _chunks(features, len(features)))
    return total / (len(features) * (len(features) - 1))


def nearest(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.LongTensor]:
    """The nearest of other rows to each row.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): At least one row.
        others (`torch.Tensor` of shape `(M, D)`): At least one row. Bytes do: they are made floats in parts.

    Returns:
        Euclidean distances, a `torch.DoubleTensor` of shape `(N,)`, and rows of `others`, a `torch.LongTensor` of
        shape `(N,)`.
    """
    features = features.float()
    best, rows = torch.full((len(features),), torch.inf), torch.zeros(len(features), dtype=torch.long)
    start = 0
    for part in _chunks(others, max(features.shape)):
        distances, own_rows = torch.cdist(features, part.float()).min(dim=1)
        is_nearer = distances < best
        best, rows = best.where(~is_nearer, distances), rows.where(~is_nearer, own_rows + start)
        start += len(part)
    # `cdist` goes by way of squares, which leave little of a small distance.
    return (features.double() - others[rows].double()).norm(dim=1), rows


def _chunks(rows: torch.Tensor, num_columns: int) -> tuple[torch.Tensor, ...]:
    """Parts of a matrix, so that its product with one of so many columns stays small."""
    return rows.split(max(1, _CHUNK_NUMEL // num_columns))

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from hf_vqdit.evaluation import picture_sets
from hf_vqdit.evaluation.picture_sets import (
    diversity,
    frechet_distance,
    kernel_distance,
    nearest,
    neighborhood_figures,
)


def draw(num_pictures: int, seed: int = 0, num_features: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_pictures, num_features, generator=generator, dtype=torch.float64)


REAL, OTHER = draw(60), 0.7 * draw(40, seed=1) + 0.5


# Distances


def test_the_frechet_distance_is_that_of_the_formula():
    real, other = REAL.numpy(), OTHER.numpy()
    # tr (S S')^(1/2) = tr (S^(1/2) S' S^(1/2))^(1/2), whose roots are those of symmetric matrices
    values, vectors = np.linalg.eigh(np.cov(real.T))
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ np.cov(other.T) @ root)).sum()
    expected = ((real.mean(0) - other.mean(0)) ** 2).sum() + np.trace(np.cov(real.T) + np.cov(other.T)) - 2 * cross
    assert frechet_distance(OTHER, REAL) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_have_no_distance_and_it_grows_with_a_shift():
    assert frechet_distance(REAL, REAL.clone()) == pytest.approx(0, abs=1e-6)
    near, far = (frechet_distance(REAL + shift, REAL) for shift in (0.5, 1.0))
    assert near == pytest.approx(6 * 0.5**2) and far == pytest.approx(6 * 1.0**2)


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_features_that_are_no_numbers_have_no_distance_rather_than_the_best(value):
    broken = OTHER.clone()
    broken[0, 0] = value
    assert not frechet_distance(broken, REAL) >= 0
    assert not abs(kernel_distance(broken, REAL[:40])) >= 0


def test_fewer_pictures_than_features_have_a_distance_that_falls_with_their_number():
    real = draw(2000, num_features=30)
    distances = [frechet_distance(draw(count, seed=3, num_features=30), real) for count in (5, 20, 200)]
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_kernel_distance_is_the_unbiased_discrepancy_of_the_cubic_kernel():
    real, other = REAL[:40].tolist(), OTHER.tolist()  # of as many, so that each subset is all of them

    def kernel(one: list[float], two: list[float]) -> float:
        return (sum(a * b for a, b in zip(one, two, strict=True)) / 6 + 1) ** 3

    def mean_within(rows: list[list[float]]) -> float:
        pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(one, two) for one in real for two in other) / 40**2
    expected = mean_within(real) + mean_within(other) - 2 * between
    assert kernel_distance(OTHER, REAL[:40]) == pytest.approx(expected, rel=1e-6)


def test_the_subsets_of_the_kernel_distance_are_those_of_the_seed_alone():
    state = torch.get_rng_state()
    values = [kernel_distance(OTHER, REAL, seed) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_kernel_distance_of_one_distribution_is_about_zero_however_few_pictures():
    values = [kernel_distance(draw(20, seed), draw(200, seed + 100)) for seed in range(30)]
    shifted = [kernel_distance(draw(20, seed) + 1, draw(200, seed + 100)) for seed in range(30)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 30**0.5
    assert np.mean(shifted) > 10 * abs(np.mean(values))


# Neighborhoods


@pytest.mark.parametrize("chunk_numel", [1, 100, 2**24])
@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_neighborhoods_are_those_of_the_definitions(num_neighbors, chunk_numel, monkeypatch):
    monkeypatch.setattr(picture_sets, "_CHUNK_NUMEL", chunk_numel)
    real, other = REAL.tolist(), OTHER.tolist()

    def radius(rows: list[list[float]], i: int) -> float:
        distances = [np.linalg.norm(np.subtract(rows[i], row)) for j, row in enumerate(rows) if j != i]
        return sorted(distances)[num_neighbors - 1]

    def covers(rows: list[list[float]], points: list[list[float]]) -> np.ndarray:
        """(points, rows): whether each point lies in the ball of each row."""
        balls = [(row, radius(rows, i)) for i, row in enumerate(rows)]
        return np.array([[np.linalg.norm(np.subtract(point, row)) <= far for row, far in balls] for point in points])

    by_real, by_other = covers(real, other), covers(other, real)
    assert neighborhood_figures(OTHER, REAL, num_neighbors) == pytest.approx(
        {
            "precision": by_real.any(axis=1).mean(),
            "recall": by_other.any(axis=1).mean(),
            "density": by_real.sum() / (num_neighbors * len(other)),
            "coverage": by_real.any(axis=0).mean(),
        }
    )


def test_a_set_lies_within_itself_and_not_within_one_far_away():
    same = neighborhood_figures(REAL, REAL.clone())
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert set(neighborhood_figures(REAL + 100, REAL).values()) == {0}


def test_a_collapsed_set_is_precise_and_recalls_little():
    collapsed = REAL[:1] + 0.01 * draw(60, seed=2)
    figures = neighborhood_figures(collapsed, REAL)
    assert figures["precision"] == 1
    assert figures["recall"] < 0.1 and figures["coverage"] < 0.5


# One by one


def test_diversity_is_the_ratio_of_mean_distances(monkeypatch):
    monkeypatch.setattr(picture_sets, "_CHUNK_NUMEL", 100)
    expected = torch.pdist(OTHER).mean() / torch.pdist(REAL).mean()
    assert diversity(OTHER, REAL) == pytest.approx(expected.item())
    assert diversity(3 * REAL, REAL) == pytest.approx(3)
    assert diversity(REAL[:1].expand(5, -1), REAL) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("chunk_numel", [1, 130, 2**24])
def test_the_nearest_is_found_among_bytes_too(chunk_numel, monkeypatch):
    monkeypatch.setattr(picture_sets, "_CHUNK_NUMEL", chunk_numel)
    generator = torch.Generator().manual_seed(0)
    others = torch.randint(256, (70, 48), generator=generator, dtype=torch.uint8)
    rows = torch.cat([others[[3, 69, 0]], torch.randint(256, (10, 48), generator=generator, dtype=torch.uint8)])
    distances, places = nearest(rows, others)
    differences = (rows[:, None].double() - others.double()).norm(dim=2)
    assert torch.equal(places, differences.argmin(dim=1)) and places[:3].tolist() == [3, 69, 0]
    torch.testing.assert_close(distances, differences.min(dim=1).values)
    assert distances[:3].tolist() == [0, 0, 0]

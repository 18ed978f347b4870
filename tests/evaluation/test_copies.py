# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
from PIL import ImageColor

from hf_vqdit.data import shapes_dataset
from hf_vqdit.evaluation.copies import CopyFigures, draw_nearest, find_neighbors
from hf_vqdit.evaluation.features import TokenizerLatents, extract_features, shrink, to_bytes
from hf_vqdit.evaluation.grids import ACCENT, GAP, MARGIN
from hf_vqdit.evaluation.metrics import reconstruct
from hf_vqdit.evaluation.picture_sets import PictureSet
from hf_vqdit.evaluation.sampling import read_held_out
from hf_vqdit.evaluation.training_pictures import read_training_pictures


@pytest.fixture
def training(tiny_pipeline):
    pairs = shapes_dataset("train", num_objects=1, num_rows=40)
    return read_training_pictures(
        pairs, tiny_pipeline.tokenizer, 32, network=TokenizerLatents(tiny_pipeline.vqvae), batch_size=16
    )


def look_at(training, pixel_values, captions=None) -> PictureSet:
    captions = captions or [""] * len(pixel_values)
    return PictureSet(pixel_values, captions, extract_features(training.network, pixel_values))


@pytest.fixture
def restored(tiny_pipeline) -> torch.Tensor:
    """Held-out pictures as they come back from their codes."""
    held_out = read_held_out(shapes_dataset("validation", 1, num_rows=150), tiny_pipeline.tokenizer, 32)
    return reconstruct(tiny_pipeline.vqvae, held_out.pixel_values)


@pytest.fixture
def copies(tiny_pipeline, training, restored) -> CopyFigures:
    return CopyFigures(training, tiny_pipeline.vqvae, find_neighbors(look_at(training, restored), training))


def test_the_neighbors_are_the_nearest_by_features_and_by_pixels(training, restored):
    pictures = look_at(training, restored[:10])
    neighbors = find_neighbors(pictures, training)
    distances = torch.cdist(pictures.features, training.features)
    assert torch.equal(neighbors.rows, distances.argmin(dim=1))
    torch.testing.assert_close(neighbors.distances, distances.min(dim=1).values, rtol=1e-4, atol=1e-6)
    differences = to_bytes(shrink(restored[:10])).double()[:, None] - training.thumbnails.double()
    pixel_distances = differences.square().flatten(2).mean(dim=2).sqrt()
    assert torch.equal(neighbors.pixel_rows, pixel_distances.argmin(dim=1))
    torch.testing.assert_close(neighbors.pixel_distances, pixel_distances.min(dim=1).values)


def test_training_pictures_are_exact_duplicates(training, copies):
    figures = copies.measure(find_neighbors(look_at(training, training.read([*range(12)])), training))
    assert figures["exact_duplicates"] == figures["near_duplicates"] == figures["near_duplicates_pixels"] == 1.0
    assert figures["nearest_distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("found_by", ["rows", "pixel_rows"])
def test_what_comes_back_from_the_codes_of_a_neighbor_is_an_exact_duplicate(tiny_pipeline, training, copies, found_by):
    pictures = look_at(training, reconstruct(tiny_pipeline.vqvae, training.read([*range(12)])))
    neighbors = find_neighbors(pictures, training)  # an untrained tokenizer takes them far from their originals
    own, others = torch.arange(12), torch.arange(12) + 12
    found = neighbors._replace(**{"rows": others, "pixel_rows": others} | {found_by: own})
    assert copies.measure(found)["exact_duplicates"] == 1.0
    assert copies.measure(neighbors._replace(rows=others, pixel_rows=others))["exact_duplicates"] < 0.5


def test_a_picture_that_differs_by_two_steps_is_no_exact_duplicate(training, copies):
    pictures = training.read([0, 1, 2, 3])
    step = 2 / 255 * torch.where(pictures[:, :, :1, :1] > 0, -1, 1)
    pictures[0, :, :1, :1] += step[0]
    pictures[1, :, :1, :1] += 2 * step[1]
    neighbors = find_neighbors(look_at(training, pictures), training)
    assert copies.measure(neighbors)["exact_duplicates"] == 3 / 4


def test_new_pictures_are_as_near_as_new_pictures_are(training, copies, restored):
    figures = copies.measure(find_neighbors(look_at(training, restored), training))
    assert figures == {
        "nearest_distance": 1.0,
        "near_duplicates": pytest.approx(1 / 150),
        "near_duplicates_pixels": pytest.approx(1 / 150),
        "exact_duplicates": 0.0,
    }


@pytest.mark.parametrize("num_held_out", [10, 100, 1000])
def test_of_further_new_pictures_one_percent_are_near_duplicates_or_as_few_as_the_held_out_ones_can_tell(
    training, restored, num_held_out
):
    found = find_neighbors(look_at(training, restored[:1]), training)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(2000):
        distances = torch.rand(num_held_out, generator=generator, dtype=torch.float64)
        near = CopyFigures(training, None, found._replace(distances=distances)).near_distance
        shares.append(near.item())  # of numbers drawn evenly from 0 to 1, so many are smaller
    expected = max(0.01, 1 / (num_held_out + 1))
    assert np.mean(shares) == pytest.approx(expected, rel=0.1)


def test_the_page_shows_the_nearest_pairs_first_and_marks_near_duplicates(training, copies, restored):
    def page(*parts: torch.Tensor) -> np.ndarray:
        sets = [find_neighbors(look_at(training, part, ["words"] * len(part)), training) for part in parts]
        return np.asarray(draw_nearest("Title", "description", sets, copies))

    originals, new = training.read([4, 7]), restored[:20]
    assert np.array_equal(page(new, originals), page(originals, new))
    alone = page(originals)
    two_pairs = np.s_[60 : len(alone) - 40, : MARGIN + 2 * (2 * 128 + 2 * GAP)]  # below the title
    assert np.array_equal(page(new, originals)[two_pairs], alone[two_pairs])
    accent = ImageColor.getrgb(ACCENT)
    assert (page(new, originals) == accent).all(axis=-1).sum() == (alone == accent).all(axis=-1).sum() > 0
    assert not (page(new[1:3]) == accent).all(axis=-1).any()

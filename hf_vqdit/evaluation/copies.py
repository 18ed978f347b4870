# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Whether a pipeline draws its training pictures again: the nearest training picture of each generated one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

from .features import to_bytes
from .grids import GridItem, draw_section, to_pictures
from .metrics import reconstruct
from .picture_sets import PictureSet, nearest
from .training_pictures import TrainingPictures, nearest_on_pixels

NEAR_SHARE = 0.01  # a near duplicate is nearer to a training picture than all but this share of held-out pictures
NUM_SHOWN = 8  # pairs a section of the page


class Neighbors(NamedTuple):
    """Pictures, and the nearest training picture of each by two distances."""

    pictures: PictureSet
    distances: torch.Tensor  # (N,), Euclidean, on the features
    rows: torch.Tensor  # (N,), the training pictures at these distances
    pixel_distances: torch.Tensor  # (N,), the root mean square over the pixels of thumbnails, of 255
    pixel_rows: torch.Tensor  # (N,), the training pictures at these distances


def find_neighbors(pictures: PictureSet, training: TrainingPictures) -> Neighbors:
    """The nearest training picture of each picture of a set."""
    distances, rows = nearest(pictures.features, training.features)
    return Neighbors(pictures, distances, rows, *nearest_on_pixels(pictures.pixel_values, training.thumbnails))


class CopyFigures:
    """Counts the copies of training pictures among generated ones.

    What is generated has gone through the tokenizer. So it is compared with held-out pictures that have too: pictures
    that are new, and as near to training pictures as new ones happen to be.

    Args:
        training ([`TrainingPictures`]): The training pictures.
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        restored ([`Neighbors`]): Held-out pictures as they come back from their codes.
        batch_size (`int`, defaults to 250): Pictures compared, and through the tokenizer, at a time.
    """

    def __init__(
        self, training: TrainingPictures, vqvae: MultimodalVQVAE, restored: Neighbors, batch_size: int = 250
    ) -> None:
        self.training, self.vqvae, self.batch_size = training, vqvae, batch_size
        self.usual_distance = restored.distances.median()
        # The lower of two: of n held-out pictures, a further new one is nearer than it with probability 1/(n + 1) at
        # least, and about `NEAR_SHARE` if n allows.
        self.near_distance, self.near_pixel_distance = (
            distances.quantile(NEAR_SHARE, interpolation="lower")
            for distances in (restored.distances, restored.pixel_distances)
        )

    def measure(self, neighbors: Neighbors) -> dict[str, float]:
        """
        The figures of a set of pictures.

        Args:
            neighbors ([`Neighbors`]): Of at least one picture.

        Returns:
            `dict[str, float]`: `nearest_distance`, the median distance to the nearest training picture on the
                features, relative to that of held-out pictures; `near_duplicates`, the share that is nearer than 99 %
                of the held-out pictures, on the features, and `near_duplicates_pixels`, the same on pixels: of new
                pictures it is 1 %; `exact_duplicates`, the share that equals one of these two neighbors or what comes
                back from its codes, but for one step of 255: at least so many, since of training pictures that are
                nearly alike another one may be nearer than the original.
        """
        return {
            "nearest_distance": (neighbors.distances.median() / self.usual_distance).item(),
            "near_duplicates": _share(neighbors.distances < self.near_distance),
            "near_duplicates_pixels": _share(neighbors.pixel_distances < self.near_pixel_distance),
            "exact_duplicates": _share(self._is_exact(neighbors)),
        }

    def _is_exact(self, neighbors: Neighbors) -> torch.Tensor:
        """Whether each picture equals one of its two neighbors, (N,)."""
        is_exact = []
        parts = (neighbors.pictures.pixel_values, neighbors.rows, neighbors.pixel_rows)
        for pixel_values, *rows in zip(*(part.split(self.batch_size) for part in parts), strict=True):
            own = to_bytes(pixel_values).short()  # (B, 3, H, W)
            is_equal = torch.zeros(len(own), dtype=torch.bool)
            for own_rows in rows:
                originals = self.training.read(own_rows.tolist())
                for others in (originals, reconstruct(self.vqvae, originals)):
                    difference = (own - to_bytes(others).short()).abs()
                    is_equal |= (difference <= 1).flatten(1).all(dim=1)
            is_exact.append(is_equal)
        return torch.cat(is_exact)


def _share(is_so: torch.Tensor) -> float:
    return is_so.double().mean().item()


def draw_nearest(title: str, description: str, sets: Sequence[Neighbors], copies: CopyFigures) -> Image.Image:
    """Draws the pictures that are nearest to a training picture on the features, each beside that one, nearest first.

    Args:
        title (`str`): What the pictures are.
        description (`str`): A line after the title.
        sets (`Sequence[Neighbors]`): Where they are chosen from, say those of each sampling seed.
        copies ([`CopyFigures`]): It tells which of them are near duplicates: their distance is in the accent color.

    Returns:
        `PIL.Image.Image`: A section of at most eight pairs. Under each stand the distance on the features, that on
            pixels, the picture's caption and the training picture's.
    """
    found = [(distance, own, i) for own in sets for i, distance in enumerate(own.distances.tolist())]
    found = sorted(found, key=lambda one: one[0])[:NUM_SHOWN]
    rows = [int(own.rows[i]) for _, own, i in found]
    pictures = to_pictures(torch.stack([own.pictures.pixel_values[i] for _, own, i in found]))
    originals = to_pictures(copies.training.read(rows))
    items = []
    for (distance, own, i), row, *pair in zip(found, rows, pictures, originals, strict=True):
        original_caption = next(iter(copies.training.captions[row]), "no caption")
        words = f"{distance:.2f} ({own.pixel_distances[i]:.0f}/255) {own.pictures.captions[i]} | {original_caption}"
        items.append(GridItem(tuple(pair), words, (0,) if distance < copies.near_distance else ()))
    return draw_section(title, items, description)

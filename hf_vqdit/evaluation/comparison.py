# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a pipeline drew, beside the training pictures: all figures of sets of pictures, and what too few do to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE

from .copies import NEAR_SHARE, CopyFigures, Neighbors, draw_nearest, find_neighbors
from .features import extract_features
from .grids import stack_sections
from .picture_sets import (
    NUM_NEIGHBORS,
    PictureSet,
    diversity,
    frechet_distance,
    kernel_distance,
    neighborhood_figures,
)
from .report import SET_FIGURES, SET_TITLES, summarize_seeds
from .sampling import Answers, HeldOutPairs
from .training_pictures import TrainingPictures


def set_figures(features: torch.Tensor, training_features: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """Figures of a set of pictures against the training pictures.

    Args:
        features (`torch.DoubleTensor` of shape `(N, D)`): Of the set, at least two rows.
        training_features (`torch.DoubleTensor` of shape `(M, D)`): Of the training pictures, at least two rows.
        seed (`int`, defaults to 0): Seed of the training pictures that are drawn where only as many are wanted.

    Returns:
        `dict[str, float]`: `num_pictures`, N; `fid` and `kid`, of [`frechet_distance`] and [`kernel_distance`] to all
            training pictures; `fid_floor`, the former between N of the training pictures, or half of them if there
            are fewer than 2 N, and the others; against N training pictures `precision`, `recall`, `density` and
            `coverage`, if N and M are large enough for [`neighborhood_figures`], and `diversity`, the mean distance
            of two pictures relative to theirs.
    """
    order = torch.randperm(len(training_features), generator=torch.Generator().manual_seed(seed))
    half = min(len(features), len(order) // 2)
    as_many = training_features[order[: len(features)]]
    figures = {
        "num_pictures": len(features),
        "fid": frechet_distance(features, training_features),
        "kid": kernel_distance(features, training_features, seed),
        "diversity": diversity(features, as_many),
    }
    if half >= 2:
        figures["fid_floor"] = frechet_distance(training_features[order[:half]], training_features[order[half:]])
    if min(len(features), len(as_many)) > NUM_NEIGHBORS:
        figures |= neighborhood_figures(features, as_many)
    return figures


def compare_answers(
    training: TrainingPictures,
    vqvae: MultimodalVQVAE,
    held_out: HeldOutPairs,
    restored: torch.Tensor,
    answers: Sequence[Answers],
    with_copies: bool = True,
    seed: int = 0,
    batch_size: int = 125,
) -> tuple[dict[str, Any], Image.Image | None]:
    """Measures the pictures drawn for captions, and those of joint samples, as sets.

    Beside them stand the pictures of the same captions as they are, and as they come back from their codes: what a
    perfect pipeline would draw, and one that is perfect but for its tokenizer.

    Args:
        training ([`TrainingPictures`]): What all sets are compared with.
        vqvae (`MultimodalVQVAE`): The tokenizer, in evaluation mode.
        held_out ([`HeldOutPairs`]): Held-out pairs; for the captions of the first of them pictures were drawn.
        restored (`torch.FloatTensor` of shape `(N, 3, H, W)`): Their pictures as they come back from their codes.
        answers (`Sequence[Answers]`): What the pipeline made, from each seed.
        with_copies (`bool`, defaults to `True`): Whether to look for copies of training pictures.
        seed (`int`, defaults to 0): As for [`set_figures`]; each sampling seed has a draw of its own.
        batch_size (`int`, defaults to 125): Pictures through a network at a time.

    Returns:
        `dict`: `picture_sets`, by the names of `SET_TITLES` the figures of [`set_figures`] and of
            [`~.copies.CopyFigures`], as of [`summarize_seeds`], without sets of a single picture; `image_rfid`, the
            Fréchet distance between all held-out pictures and what comes back of them; `features` and `comparison`,
            what all of that rests on. Where a figure rests on the features, its name ends in theirs.

        `PIL.Image.Image`: The pictures nearest to training pictures; `None` without copies.
    """

    def look_at(pixel_values: torch.Tensor, captions: Sequence[str], what: str) -> PictureSet:
        features = extract_features(training.network, pixel_values, batch_size, f"Features, {what}")
        return PictureSet(pixel_values, captions, features)

    # What there is, from each seed
    real = look_at(held_out.pixel_values, held_out.captions, "held-out pictures")
    codec = look_at(restored, held_out.captions, "reconstructions")
    num_asked = len(answers[0].drawn)
    sets = {
        "text_to_image": [look_at(own.drawn, held_out.captions[:num_asked], "text to image") for own in answers],
        "joint": [look_at(own.joint.pixel_values, own.joint.texts, "joint samples") for own in answers],
        "reconstruction": [codec.first(num_asked)],
        "held_out": [real.first(num_asked)],
    }
    sets = {name: by_seed for name, by_seed in sets.items() if min(len(own.features) for own in by_seed) > 1}

    # As sets
    by_seed = {
        name: [set_figures(own.features, training.features, seed + draw) for draw, own in enumerate(parts)]
        for name, parts in tqdm(sets.items(), desc="Sets of pictures")
    }
    rests_on = {
        "features": training.network.description,
        "number_of_features": training.features.shape[1],
        "training_pictures": len(training),
        "held_out_pictures": len(held_out),
    }

    # One by one
    page = None
    if with_copies and sets:
        copies = CopyFigures(training, vqvae, find_neighbors(codec, training), batch_size)
        neighbors = {
            name: [find_neighbors(own, training) for own in parts]
            for name, parts in tqdm(sets.items(), desc="Nearest training pictures")
        }
        for name, parts in neighbors.items():
            by_seed[name] = [own | copies.measure(near) for own, near in zip(by_seed[name], parts, strict=True)]
        rests_on["near_distance"] = copies.near_distance.item()
        rests_on["near_distance_pixels"] = copies.near_pixel_distance.item()
        page = _draw_page(neighbors, copies)

    name = training.network.name
    figures = {"features": name, "comparison": rests_on}
    if len(held_out) > 1:
        figures[f"image_rfid_{name}"] = frechet_distance(codec.features, real.features)
    keys = {figure.key: figure.key_on(name) for figure in SET_FIGURES}
    figures["picture_sets"] = {
        title: summarize_seeds([{keys[key]: value for key, value in own.items()} for own in parts])
        for title, parts in by_seed.items()
    }
    return figures, page


def _draw_page(neighbors: Mapping[str, Sequence[Neighbors]], copies: CopyFigures) -> Image.Image:
    """The nearest pairs of each set; of real pictures too, whose likeness is no sign of copying."""
    what = {
        "text_to_image": "pictures drawn for held-out captions",
        "joint": "pictures made up together with captions",
        "reconstruction": "held-out pictures as they come back from their codes",
    }
    return stack_sections(
        [
            draw_nearest(
                SET_TITLES[name],
                f"{what[name]}, nearest training picture, distance on features (on pixels)",
                parts,
                copies,
            )
            for name, parts in neighbors.items()
            if name in what
        ]
    )


def note_limits(
    num_pictures: Mapping[str, int], training: TrainingPictures, held_out: HeldOutPairs | None
) -> list[str]:
    """What figures of sets of pictures cannot tell, few pictures above all, before any time is spent on them.

    Args:
        num_pictures (`Mapping[str, int]`): Pictures from a seed, by the names of `SET_TITLES`.
        training ([`TrainingPictures`]): What they will be compared with.
        held_out ([`HeldOutPairs`], *optional*): By which near duplicates are told; `None` if none are looked for.

    Returns:
        `list[str]`: A sentence or two for each matter.
    """
    num_features, num_training = training.features.shape[1], len(training)

    def list_sets(is_small: Callable[[int], bool]) -> str:
        small = {name: count for name, count in num_pictures.items() if is_small(count)}
        return ", ".join(f"{SET_TITLES[name]} {count}" for name, count in small.items())

    notes = []
    if sets := list_sets(lambda count: count < 2):
        notes.append(f"No figures as sets of pictures, which take two pictures from a seed at least: {sets}.")
    if sets := list_sets(lambda count: 2 <= count <= num_features):
        notes.append(
            f"FID from no more pictures than the {num_features} features have dimensions ({sets}) is far above that "
            "of many pictures: compare it with that of real pictures beside it, or go by KID."
        )
    if num_training <= num_features:
        notes.append(
            f"There are no more training pictures ({num_training}) than the {num_features} features have dimensions: "
            "FID says little here."
        )
    if sets := list_sets(lambda count: count > 1 and min(count, num_training) <= NUM_NEIGHBORS):
        notes.append(
            f"No precision, recall, density and coverage, which take more than {NUM_NEIGHBORS} pictures: {sets}."
        )
    if sets := list_sets(lambda count: 2 * count > num_training):
        notes.append(
            f"The FID of real pictures is that of {num_training // 2} training pictures against the others, fewer "
            f"than the pictures it stands beside ({sets}), and so somewhat too large."
        )
    if held_out is not None and len(held_out) < round(1 / NEAR_SHARE):
        notes.append(
            f"Near duplicates are those nearer to training pictures than any of the {len(held_out)} held-out ones, "
            f"which are fewer than {1 / NEAR_SHARE:.0f}: of new pictures not 1 % are, but one in {len(held_out) + 1}."
        )
    if held_out is not None and held_out.scenes is not None:
        notes.append(
            "Training has none of the combinations of the held-out scenes: new pictures of combinations that it has, "
            "as joint samples are, are near duplicates more often than 1 % without being copies."
        )
    return notes

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A built-in set of pictures whose captions tell everything in them, so that both directions can be judged exactly.

A scene is a tuple of facts. One object: its shape, color, size and place, and the background (1,728 scenes). Two
objects: shape, color and size of both, how the first stands to the second, and the background (18,432 scenes).
[`draw`] turns the facts into a picture, [`describe`] into a caption and [`parse`] turns such a caption back into the
facts. A tenth of the scenes, chosen by a stable hash, is held out of training ([`is_held_out`]).
"""

import hashlib
import io
import itertools
import math
import re
import string
from functools import cache
from typing import NamedTuple

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw


class OneObject(NamedTuple):
    """The facts of a scene with one object: each an index into the words of `ATTRIBUTE_WORDS`."""

    shape: int
    color: int
    size: int
    place: int
    background: int


class TwoObjects(NamedTuple):
    """The facts of a scene with two objects, the left or upper one first; as in [`OneObject`]."""

    first_shape: int
    first_color: int
    first_size: int
    second_shape: int
    second_color: int
    second_size: int
    relation: int
    background: int


Scene = OneObject | TwoObjects
SCENE_TYPES: dict[int, type[Scene]] = {1: OneObject, 2: TwoObjects}

COLORS = {
    "red": (225, 30, 35),
    "green": (35, 165, 60),
    "blue": (40, 70, 235),
    "yellow": (250, 205, 20),
    "purple": (150, 45, 190),
    "cyan": (20, 190, 225),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (150, 150, 150), "black": (0, 0, 0), "pink": (250, 190, 205)}
SIZES = {"small": 5 / 32, "large": 7 / 32}  # half the side of the box around the object, in picture sides
PLACES = {  # phrase -> centre of the object as (x, y), in picture sides
    "at the top left": (0.25, 0.25),
    "at the top": (0.5, 0.25),
    "at the top right": (0.75, 0.25),
    "at the left": (0.25, 0.5),
    "in the middle": (0.5, 0.5),
    "at the right": (0.75, 0.5),
    "at the bottom left": (0.25, 0.75),
    "at the bottom": (0.5, 0.75),
    "at the bottom right": (0.75, 0.75),
}
RELATIONS = {  # phrase -> centres of the first and of the second object
    "to the left of": ((0.25, 0.5), (0.75, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
}


def _star() -> list[tuple[float, float]]:
    radii = itertools.cycle((1.05, 0.45))
    return [
        (radius * math.sin(math.pi * k / 5), 0.1 - radius * math.cos(math.pi * k / 5))
        for k, radius in zip(range(10), radii, strict=False)
    ]


SHAPES = {  # name -> outline in the box [-1, 1] x [-1, 1]; the less of the box a shape fills, the wider it is drawn
    "circle": [(0.92 * math.cos(math.pi * k / 24), 0.92 * math.sin(math.pi * k / 24)) for k in range(48)],
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -0.92), (1.0, 0.88), (-1.0, 0.88)],
    "star": _star(),
}

_FACT_WORDS = {
    "shape": list(SHAPES),
    "color": list(COLORS),
    "size": list(SIZES),
    "place": list(PLACES),
    "relation": list(RELATIONS),
    "background": list(BACKGROUNDS),
}
ATTRIBUTE_WORDS: dict[str, list[str]] = {
    name: _FACT_WORDS[name.removeprefix("first_").removeprefix("second_")]
    for scene_type in SCENE_TYPES.values()
    for name in scene_type._fields
}
ATTRIBUTE_SIZES: dict[str, int] = {name: len(words) for name, words in ATTRIBUTE_WORDS.items()}

_PAIR = "a {first_size} {first_color} {first_shape} {relation} a {second_size} {second_color} {second_shape}"
TEMPLATES: dict[type[Scene], tuple[str, ...]] = {
    OneObject: (
        "a {size} {color} {shape} {place} on a {background} background",
        "on a {background} background, a {size} {color} {shape} {place}",
        "a {background} picture with a {size} {color} {shape} {place}",
        "{place} of a {background} picture is a {size} {color} {shape}",
    ),
    TwoObjects: (
        _PAIR + " on a {background} background",
        "on a {background} background, " + _PAIR,
        "a {background} picture with " + _PAIR,
        "there is " + _PAIR + " on {background}",
    ),
}

JITTER = 1 / 64  # the most that an object moves off its place, in picture sides: half a pixel at 32 px
_SUPERSAMPLING = 4
_HELD_OUT_ONE_IN = 10


def all_scenes(num_objects: int) -> list[Scene]:
    """Every scene of one setting, in the order of its facts.

    Args:
        num_objects (`int`): 1 or 2.

    Returns:
        `list[Scene]`: 1,728 [`OneObject`] or 18,432 [`TwoObjects`].

    Raises:
        ValueError: If `num_objects` is neither 1 nor 2.
    """
    if num_objects not in SCENE_TYPES:
        raise ValueError(f"`num_objects` must be 1 or 2, got {num_objects!r}.")
    scene_type = SCENE_TYPES[num_objects]
    values = (range(ATTRIBUTE_SIZES[name]) for name in scene_type._fields)
    return [scene_type(*facts) for facts in itertools.product(*values)]


def scene_from_facts(facts: list[int]) -> Scene:
    """The scene that a list of facts stands for (the `scene` column of [`shapes_dataset`]): the inverse of `list`."""
    for scene_type in SCENE_TYPES.values():
        if len(facts) == len(scene_type._fields):
            return scene_type(*facts)
    expected = " or ".join(str(len(scene_type._fields)) for scene_type in SCENE_TYPES.values())
    raise ValueError(f"A scene has {expected} facts, got {len(facts)}: {facts}.")


def attributes(scene: Scene) -> dict[str, int]:
    """The facts by name; attribute `name` lies in `0..ATTRIBUTE_SIZES[name] - 1`."""
    return scene._asdict()


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this combination of facts: one in ten, the same on every machine."""
    return int.from_bytes(hashlib.sha256(bytes(scene)).digest()[:8]) % _HELD_OUT_ONE_IN == 0


def draw(scene: Scene, resolution: int, generator: torch.Generator | None = None) -> PILImage.Image:
    """Draws a scene, anti-aliased by four-fold supersampling.

    Args:
        scene (`Scene`): The facts.
        resolution (`int`): Side of the square picture in pixels; from 32 on every fact can be seen.
        generator (`torch.Generator`, *optional*): Moves each object by up to `JITTER` of the side; without one the
            objects stand exactly at their places.

    Returns:
        `PIL.Image.Image`: An RGB picture of `resolution` x `resolution` pixels.
    """
    words = {name: ATTRIBUTE_WORDS[name][fact] for name, fact in scene._asdict().items()}
    if isinstance(scene, OneObject):
        prefixes, centers = ("",), (PLACES[words["place"]],)
    else:
        prefixes, centers = ("first_", "second_"), RELATIONS[words["relation"]]
    jitter = torch.zeros(len(centers), 2)
    if generator is not None:
        jitter = (2 * torch.rand(len(centers), 2, generator=generator) - 1) * JITTER

    side = _SUPERSAMPLING * resolution
    picture = PILImage.new("RGB", (side, side), BACKGROUNDS[words["background"]])
    canvas = ImageDraw.Draw(picture)
    for prefix, (x, y), (dx, dy) in zip(prefixes, centers, jitter.tolist(), strict=True):
        radius = SIZES[words[prefix + "size"]]
        outline = SHAPES[words[prefix + "shape"]]
        corners = [(side * (x + dx + radius * u), side * (y + dy + radius * v)) for u, v in outline]
        canvas.polygon(corners, fill=COLORS[words[prefix + "color"]])
    return picture.reduce(_SUPERSAMPLING)


def describe(scene: Scene, template_index: int) -> str:
    """The caption of a scene in one of the `TEMPLATES` of its type; each tells every fact."""
    template = TEMPLATES[type(scene)][template_index]
    return template.format(**{name: ATTRIBUTE_WORDS[name][fact] for name, fact in scene._asdict().items()})


def parse(caption: str) -> Scene | None:
    """The facts that a caption tells: the exact inverse of [`describe`].

    Args:
        caption (`str`): Any text, for instance one that a model wrote.

    Returns:
        `Scene` or `None`: `None` for a text that is not, letter for letter, a caption of exactly one scene.
    """
    readings = set()
    for scene_type, pattern in _caption_patterns():
        if match := pattern.fullmatch(caption):
            facts = {name: ATTRIBUTE_WORDS[name].index(word) for name, word in match.groupdict().items()}
            readings.add(scene_type(**facts))
    return readings.pop() if len(readings) == 1 else None


@cache
def _caption_patterns() -> list[tuple[type[Scene], re.Pattern[str]]]:
    """Each template as a regular expression that captures the words of its facts."""
    patterns = []
    for scene_type, templates in TEMPLATES.items():
        for template in templates:
            pattern = ""
            for literal, name, _, _ in string.Formatter().parse(template):
                pattern += re.escape(literal)
                if name is not None:
                    pattern += f"(?P<{name}>{'|'.join(map(re.escape, ATTRIBUTE_WORDS[name]))})"
            patterns.append((scene_type, re.compile(pattern)))
    return patterns


def shapes_dataset(split: str, num_objects: int, num_rows: int, resolution: int = 32, seed: int = 0) -> Dataset:
    """Pictures with captions, drawn evenly over the scenes of a split.

    Row i does not depend on `num_rows`: the rows walk through the scenes in a random order, then again in another one,
    each time with a fresh jitter and a template drawn anew.

    Args:
        split (`str`): `"train"` (scenes that are not held out) or `"validation"` (held-out scenes).
        num_objects (`int`): 1 or 2.
        num_rows (`int`): How many pairs, at least 1.
        resolution (`int`, defaults to 32): Side of the pictures in pixels.
        seed (`int`, defaults to 0): Seed of order, jitter and templates.

    Returns:
        `datasets.Dataset`: Columns `image` (PNG), `caption` (a list with one `str`) and `scene` (the facts, see
        [`scene_from_facts`]).

    Raises:
        ValueError: If an argument is out of its range.
    """
    if split not in ("train", "validation"):
        raise ValueError(f'`split` must be "train" or "validation", got {split!r}.')
    if num_rows < 1:
        raise ValueError(f"`num_rows` must be at least 1, got {num_rows}.")
    if resolution < 1:
        raise ValueError(f"`resolution` must be at least 1 pixel, got {resolution}.")
    scenes = [scene for scene in all_scenes(num_objects) if is_held_out(scene) == (split == "validation")]
    templates = TEMPLATES[SCENE_TYPES[num_objects]]
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list] = {"image": [], "caption": [], "scene": []}
    order: list[int] = []
    for _ in range(num_rows):
        order = order or torch.randperm(len(scenes), generator=generator).tolist()
        scene = scenes[order.pop()]
        template_index = int(torch.randint(len(templates), (), generator=generator))
        rows["image"].append({"bytes": _png(draw(scene, resolution, generator)), "path": None})
        rows["caption"].append([describe(scene, template_index)])
        rows["scene"].append(list(scene))
    columns = {"image": Image(decode=False), "caption": List(Value("string")), "scene": List(Value("int64"))}
    return Dataset.from_dict(rows, features=Features(columns))


def _png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()

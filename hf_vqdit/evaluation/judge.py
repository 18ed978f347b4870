# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A small network that reads the facts of a `shapes` scene off a picture, so that generated pictures can be judged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from hf_vqdit.data.shapes import ATTRIBUTE_SIZES, SCENE_TYPES, Scene, all_scenes, draw, is_held_out

from .features import halving_convolutions
from .metrics import joint_figures, read_captions, share_equal
from .report import summarize_seeds
from .sampling import Answers, Tasks

NUM_TRAIN_STEPS = {1: 400, 2: 900}  # by number of objects: takes it to at least 99 % of unseen combinations
TRAIN_BATCH_SIZE = 64
NOISE_STD = 0.05  # so that it does not stumble over a reconstruction's faint unevenness; shapes stay as they are


class ShapesJudge(nn.Module):
    """A convolutional network with one classifier for each fact of a scene.

    Args:
        num_objects (`int`): Objects a scene, 1 or 2.
        resolution (`int`, defaults to 32): Side of the pictures in pixels, a multiple of 8, at least 32.
        width (`int`, defaults to 32): Channels of the first layer.
    """

    def __init__(self, num_objects: int, resolution: int = 32, width: int = 32) -> None:
        super().__init__()
        self.num_objects = num_objects
        self.scene_type = SCENE_TYPES[num_objects]
        self.resolution = resolution
        # Flattened, not averaged over the whole picture: places and relations are facts too.
        self.features = nn.Sequential(
            *halving_convolutions(width), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * width, 256), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(256, ATTRIBUTE_SIZES[name]) for name in self.scene_type._fields})

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each fact.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pictures in [-1, 1].

        Returns:
            `dict[str, torch.FloatTensor]`: By the fact's name, logits of shape `(B, ATTRIBUTE_SIZES[name])`.
        """
        hidden_states = self.features(pixel_values)  # (B, 256)
        return {name: head(hidden_states) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pixel_values: torch.Tensor, batch_size: int = 250) -> list[Scene]:
        """The most likely fact of each kind, for each picture.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Pictures in [-1, 1].
            batch_size (`int`, defaults to 250): Pictures read at a time.

        Returns:
            `list[Scene]`: One scene a picture.
        """
        scenes = []
        for batch in pixel_values.split(batch_size):
            logits = self(batch)
            facts = torch.stack([logits[name].argmax(dim=-1) for name in self.scene_type._fields], dim=1)  # (B, facts)
            scenes += [self.scene_type(*row) for row in facts.tolist()]
        return scenes


def train_judge(
    num_objects: int, resolution: int = 32, num_train_steps: int | None = None, seed: int = 0
) -> ShapesJudge:
    """Trains a judge on freshly drawn pictures of the scenes that are not held out.

    Args:
        num_objects (`int`): Objects a scene, 1 or 2.
        resolution (`int`, defaults to 32): Side of the pictures in pixels.
        num_train_steps (`int`, *optional*): Steps of 64 pictures; by default 400 for one object and 900 for two.
        seed (`int`, defaults to 0): Seed of weights, order, jitter and noise.

    Returns:
        [`ShapesJudge`], in evaluation mode.
    """
    num_train_steps = num_train_steps or NUM_TRAIN_STEPS[num_objects]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torch's initialisers take no generator
        judge = ShapesJudge(num_objects, resolution)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_train_steps, pct_start=0.1)
    scenes = [scene for scene in all_scenes(num_objects) if not is_held_out(scene)]
    for _ in tqdm(range(num_train_steps), desc="Training the judge"):
        rows = torch.randint(len(scenes), (TRAIN_BATCH_SIZE,), generator=generator).tolist()
        pixel_values, facts = draw_batch([scenes[row] for row in rows], resolution, generator)
        pixel_values += NOISE_STD * torch.randn(pixel_values.shape, generator=generator)
        logits = judge(pixel_values)
        loss = sum(F.cross_entropy(logits[name], facts[:, i]) for i, name in enumerate(judge.scene_type._fields))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def judge_accuracy(judge: ShapesJudge, num_pictures: int = 2000, seed: int = 1) -> float:
    """Share of real pictures of held-out scenes in which the judge reads every fact rightly.

    Args:
        judge ([`ShapesJudge`]): A trained judge.
        num_pictures (`int`, defaults to 2000): Pictures drawn for it.
        seed (`int`, defaults to 1): Seed of scenes and jitter.

    Returns:
        `float`: In [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = [scene for scene in all_scenes(judge.num_objects) if is_held_out(scene)]
    scenes = [scenes[row] for row in torch.randint(len(scenes), (num_pictures,), generator=generator).tolist()]
    pixel_values, _ = draw_batch(scenes, judge.resolution, generator)
    read = judge.read(pixel_values)
    return sum(scene == truth for scene, truth in zip(read, scenes, strict=True)) / num_pictures


def judge_answers(judge: ShapesJudge, tasks: Tasks, answers: Sequence[Answers]) -> dict[str, Any]:
    """Figures of every direction, for pictures that the judge can read and captions that can be parsed.

    Args:
        judge ([`ShapesJudge`]): A trained judge.
        tasks ([`Tasks`]): What the pipeline was given.
        answers (`Sequence[Answers]`): What it made of that, from each seed.

    Returns:
        `dict`: As of [`summarize_seeds`], and of [`joint_figures`] over the pairs of all seeds together.
    """
    scenes = tasks.pairs.scenes
    joint = [(judge.read(own.joint.pixel_values), read_captions(own.joint.texts)) for own in answers]
    by_seed = [
        {
            "text_to_image_judged": share_equal(judge.read(own.drawn), scenes),
            "image_to_text_parsed": share_equal(read_captions(own.written), scenes),
            "inpaint_judged": share_equal(judge.read(own.inpainted), scenes),
            "joint_agreement": share_equal(*of_seed),
        }
        for own, of_seed in zip(answers, joint, strict=True)
    ]
    image_scenes, text_scenes = ([scene for of_seed in joint for scene in of_seed[side]] for side in (0, 1))
    trained_on = [scene for scene in all_scenes(judge.num_objects) if not is_held_out(scene)]
    return summarize_seeds(by_seed) | joint_figures(image_scenes, text_scenes, trained_on)


def draw_batch(
    scenes: list[Scene], resolution: int, generator: torch.Generator
) -> tuple[torch.FloatTensor, torch.LongTensor]:
    """Draws scenes with a fresh jitter each: `pixel_values` (B, 3, H, W) in [-1, 1] and facts (B, number of facts)."""
    pictures = np.stack([np.asarray(draw(scene, resolution, generator)) for scene in scenes])  # (B, H, W, 3)
    return torch.from_numpy(pictures).movedim(-1, 1) / 127.5 - 1, torch.tensor([list(scene) for scene in scenes])

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Settings that several scripts share, in groups, and what a setting is made of."""

import argparse
import difflib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from hf_vqdit.data import PairReader, load_pairs

from .tokenizer_check import TOKENIZER_FLOORS


class Keywords(dict):
    """Arguments of some other class or function: a mapping in YAML, JSON on the command line."""

    def __init__(self, value: str | Iterable = ()):
        try:
            super().__init__(json.loads(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} is not a mapping in JSON: {error}") from error

    def check(self, name: str, known: Callable | Iterable[str]) -> None:
        """Raises a `ValueError` that names the first key which is no parameter of `known`."""
        check_known(self, list(inspect.signature(known).parameters) if callable(known) else known, f"`{name}`")


def about(text: str) -> dict[str, str]:
    """The metadata of a setting that `--help` shows."""
    return {"help": text}


@dataclass(kw_only=True)
class DataArguments:
    """The image-text pairs."""

    dataset_name: str | None = field(
        default=None,
        metadata=about(
            '"shapes" or "emoji" (built in), a data set of the Hub, a folder that holds one, or files ("x/*.tar").'
        ),
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata=about('Its configuration: "one_object" or "two_objects" for shapes, "en" or "en-zh" for emoji.'),
    )
    revision: str | None = field(default=None, metadata=about("Branch, tag or commit of the data set on the Hub."))
    train_data_dir: str | None = field(
        default=None,
        metadata=about("A folder of pictures with a metadata file or with a folder for each label, or of shards."),
    )
    train_split: str = field(default="train", metadata=about('The split to train on, or a part: "train[:90%%]".'))
    validation_split: str | None = field(
        default=None,
        metadata=about('The split held out; by default "validation", or else a part of the training split.'),
    )
    image_column: str | None = field(
        default=None, metadata=about("Column of the pictures; found by itself if left out.")
    )
    caption_column: str | None = field(
        default=None, metadata=about("Column of the captions or labels; found by itself if left out.")
    )
    caption_template: str = field(
        default="a photo of a {label}", metadata=about("The caption that a label becomes, by its name.")
    )
    label_names_file: str | None = field(
        default=None,
        metadata=about("The names of labels that have none in the data: a text file, one on each line."),
    )
    streaming: bool = field(
        default=False, metadata=about("Read the pairs as they are needed, for data that does not fit on the disk.")
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata=about("Streaming: pairs in memory, and in each checkpoint, of which the next is drawn."),
    )
    num_held_out_samples: int = field(
        default=1000,
        metadata=about("Streaming: pairs held out, the first of the validation split or else of all; kept in memory."),
    )
    max_train_samples: int | None = field(default=None, metadata=about("Train on no more than this many pairs."))
    num_train_rows: int | None = field(
        default=None, metadata=about("Pairs to draw, for the data sets that are drawn.")
    )
    validation_fraction: float = field(
        default=0.05,
        metadata=about("Part of the pairs that is held out, if the data set has no validation split."),
    )
    resolution: int = field(default=32, metadata=about("Side of the training pictures, in pixels."))
    center_crop: bool = field(
        default=True, metadata=about("Cut the square from the middle of a picture; otherwise from its upper left.")
    )
    random_flip: bool = field(
        default=False, metadata=about("Mirror half of the pictures whose captions do not speak of left and right.")
    )
    random_shift: float = field(
        default=0.0,
        metadata=about("Move pictures at random by up to this part of their side; their edge is repeated."),
    )
    max_bad_fraction: float = field(
        default=0.1,
        metadata=about("End the run if more than this part of the records read, 100 at least, is bad, beyond chance."),
    )
    cache_dir: str | None = field(default=None, metadata=about("Where data sets are kept."))
    dataloader_num_workers: int = field(
        default=0, metadata=about("Processes that load data; 0 loads in the main one.")
    )
    seed: int = field(default=0, metadata=about("Seed of everything that is random."))

    @property
    def pairs(self) -> dict[str, Any]:
        """The settings that `load_pairs` takes."""
        return {name: getattr(self, name) for name in inspect.signature(load_pairs).parameters}

    def reader(self, tokenizer: PreTrainedTokenizerBase, augment: bool = False) -> PairReader:
        """How pairs are read; with what is drawn at random for pictures to train on, or as all others are."""
        random = (self.random_flip, self.random_shift) if augment else (False, 0.0)
        return PairReader(tokenizer, self.resolution, self.center_crop, *random, seed=self.seed)


@dataclass(kw_only=True)
class OptimizationArguments:
    """How the weights move."""

    train_batch_size: int = field(default=32, metadata=about("Pairs a micro-batch, on each process."))
    gradient_accumulation_steps: int = field(default=1, metadata=about("Micro-batches an optimizer step."))
    gradient_checkpointing: bool = field(default=False, metadata=about("Less memory for more time; the same result."))
    learning_rate: float = field(default=1e-3, metadata=about("Learning rate after warm-up."))
    lr_scheduler: str = field(
        default="cosine",
        metadata=about(
            'How it goes on: "cosine", "linear", "constant_with_warmup", or another name that diffusers knows.'
        ),
    )
    lr_warmup_steps: int = field(default=100, metadata=about("Optimizer steps until the full learning rate."))
    adam_beta1: float = field(default=0.9, metadata=about("AdamW: decay of the mean."))
    adam_beta2: float = field(default=0.99, metadata=about("AdamW: decay of the mean square."))
    adam_weight_decay: float = field(
        default=0.03,
        metadata=about("AdamW: weight decay of the matrices. Norms, embeddings and biases have none."),
    )
    adam_epsilon: float = field(default=1e-8, metadata=about("AdamW: epsilon."))
    max_grad_norm: float = field(default=1.0, metadata=about("Gradients are clipped to this norm."))
    use_ema: bool = field(default=True, metadata=about("Keep a moving average of the weights, and ship it."))
    ema_decay: float = field(default=0.999, metadata=about("Decay of that average; it starts lower by itself."))
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        default="auto", metadata=about('"auto" takes bf16 where the processor is fast at it, and says so.')
    )


@dataclass(kw_only=True)
class LoopArguments:
    """How long, what is looked at on the way, and where everything goes."""

    output_dir: str = field(metadata=about("Where checkpoints, samples, logs and the result go."))
    max_train_steps: int = field(default=1000, metadata=about("Optimizer steps."))
    num_train_epochs: float | None = field(
        default=None, metadata=about("Passes over the training pairs; sets `max_train_steps` if given.")
    )
    logging_steps: int = field(default=20, metadata=about("Optimizer steps between two lines of the log."))
    logging_dir: str = field(default="logs", metadata=about("Folder of the trackers, inside `output_dir`."))
    report_to: str = field(default="tensorboard", metadata=about('A tracker that accelerate knows, "all", or "none".'))
    validation_steps: int = field(default=500, metadata=about("Optimizer steps between two validations; 0 for none."))
    num_validation_samples: int = field(default=256, metadata=about("Held-out pairs a validation."))
    checkpointing_steps: int = field(default=500, metadata=about("Optimizer steps between checkpoints; 0 for none."))
    checkpoints_total_limit: int | None = field(default=2, metadata=about("Checkpoints kept, the newest."))
    resume_from_checkpoint: str | None = field(
        default=None, metadata=about('A checkpoint folder, or "latest" (starts anew if there is none yet).')
    )
    dry_run: bool = field(default=False, metadata=about("Print configuration, parameters and FLOPs a step, and end."))


@dataclass(kw_only=True)
class HubArguments:
    """Sharing. The token is that of the environment or of `hf auth login`: no flag, so that no log can hold it."""

    push_to_hub: bool = field(default=False, metadata=about("Upload the result when training ends."))
    hub_model_id: str | None = field(default=None, metadata=about("Repository; by default named after `output_dir`."))


@dataclass(kw_only=True)
class TrainedTokenizerArguments:
    """The tokenizer whose codes are worked with, and what is asked of it."""

    vqvae_model_name_or_path: str | None = field(
        default=None, metadata=about("The tokenizer: a folder or repository with `vqvae` and `tokenizer` inside.")
    )
    tokenizer_floors: Keywords = field(
        default_factory=Keywords,
        metadata=about(
            "The least that is asked of the tokenizer on held-out pairs before work starts, as JSON, laid over "
            f"{TOKENIZER_FLOORS}; 0 asks for nothing."
        ),
    )

    def __post_init__(self) -> None:
        self.tokenizer_floors.check("tokenizer_floors", TOKENIZER_FLOORS)
        self.tokenizer_floors = Keywords(TOKENIZER_FLOORS | self.tokenizer_floors)


def check_known(keys: Iterable[str], known: Iterable[str], where: str | Path) -> None:
    """Raises a `ValueError` that names the first unknown key, where it stands, and the known ones like it."""
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)
            raise ValueError(f"{where} has the unknown key {key!r}. Did you mean: {', '.join(near)}?")

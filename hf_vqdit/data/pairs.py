# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Image-text pairs from any source that `datasets` reads, as splits to train on and to hold out."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset
from datasets.distributed import split_dataset_by_node

from .columns import as_pairs, find_columns
from .emoji import emoji_dataset
from .shapes import shapes_dataset
from .sources import load_splits

logger = logging.getLogger(__name__)

SHAPES_CONFIGS = {"one_object": 1, "two_objects": 2}
_BUILT_IN = ("shapes", "emoji")
_DEFAULT_SHAPES_ROWS = 20_000
_FEW_HELD_OUT = 50


def load_pairs(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_template: str = "a photo of a {label}",
    label_names_file: str | None = None,
    streaming: bool = False,
    resolution: int = 32,
    max_train_samples: int | None = None,
    validation_fraction: float = 0.05,
    num_held_out_samples: int = 1000,
    num_train_rows: int | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DatasetDict | dict[str, Dataset | IterableDataset]:
    """Loads image-text pairs for training and validation.

    Args:
        dataset_name (`str`, *optional*): `"shapes"` and `"emoji"` are built in and drawn in memory; any other name is
            one on the Hub, a folder, or parquet files or WebDataset tars (`"pairs/*.tar"`).
        dataset_config_name (`str`, *optional*): For shapes `"one_object"` (the default) or `"two_objects"`; for emoji
            the languages of the names, `"en-zh"` by default; else the configuration on the Hub.
        train_data_dir (`str`, *optional*): A folder of pictures with a `metadata.csv` (or `.jsonl`, `.parquet`) that
            has the columns `file_name` and, say, `text`, or with a sub-folder for each label; or a folder of parquet
            files or tars. With a `dataset_name`, a folder inside of it.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        train_split (`str`, defaults to `"train"`): The split to train on; unless streaming also a part of one
            (`"train[:90%]"`).
        validation_split (`str`, *optional*): The split held out; by default `"validation"`, if there is one.
        image_column (`str`, *optional*): Column of the pictures; by default the first of `IMAGE_COLUMNS` that is
            there.
        caption_column (`str`, *optional*): Column of the captions, a `str` or a list of `str`, or of labels; of tars
            and a `metadata.jsonl` also a member of the JSON. By default the first of `CAPTION_COLUMNS` that is there,
            then of `LABEL_COLUMNS`, where text is the name of a label.
        caption_template (`str`, defaults to `"a photo of a {label}"`): The caption that a label becomes; an underscore
            in its name becomes a blank.
        label_names_file (`str`, *optional*): A text file with the names of the labels, one on each line, where the
            source has numbers alone.
        streaming (`bool`, defaults to `False`): Whether the pairs to train on are read as they are needed, for data
            that does not fit on the disk. Built-in sets are in memory anyway.
        resolution (`int`, defaults to 32): Side in pixels at which the built-in sets are drawn.
        max_train_samples (`int`, *optional*): Trains on that many pairs at most, drawn by `seed`; of a stream on the
            first ones.
        validation_fraction (`float`, defaults to 0.05): Part of the training pairs that is set aside where the source
            has no split to hold out. For shapes: how many held-out pairs are drawn, as a fraction of the training
            pairs. Not for streams.
        num_held_out_samples (`int`, defaults to 1000): When streaming, as many pairs at most are read into memory as
            `validation`: the first of the split held out, or, where there is none, the first of all, which training
            then never reads.
        num_train_rows (`int`, *optional*): How many training pairs of shapes are drawn; 20,000 by default.
        cache_dir (`str`, *optional*): Cache of `datasets`.
        seed (`int`, defaults to 0): Seed of what is drawn, set aside and selected.

    Returns:
        `datasets.DatasetDict`: Splits `train` and `validation` with the columns `image`
            (`datasets.Image(decode=False)`), `caption` (a list of `str`, empty where the caption is missing), `key`
            (what messages call a record whose picture is no file) and `flaws` (what was wrong with its captions).
            Shapes carry their facts in a further column, `scene`. When streaming a `dict`, whose `train` is a
            `datasets.IterableDataset`.

    Raises:
        ValueError: If no source, an unknown configuration, split or column is named, if a column holds something else
            than pictures or captions, or if a split is empty.
    """
    _check(validation_fraction, max_train_samples, num_held_out_samples, caption_template)
    if train_split == validation_split:
        raise ValueError(f"`train_split` and `validation_split` are both {train_split!r}. Name two different ones.")
    is_built_in = dataset_name in _BUILT_IN
    source = dataset_name or train_data_dir
    if num_train_rows is not None and dataset_name != "shapes":
        warnings.warn(f"`num_train_rows` is for shapes; it is ignored for {source!r}.", stacklevel=2)
    for name, value in {"train_data_dir": train_data_dir, "streaming": streaming, "revision": revision}.items():
        if is_built_in and value:
            warnings.warn(f"{source!r} is built in; the `{name}` {value!r} is ignored.", stacklevel=2)

    further_columns: tuple[str, ...] = ()
    if dataset_name == "shapes":
        splits = _draw_shapes(dataset_config_name, resolution, num_train_rows, validation_fraction, seed)
        further_columns = ("scene",)
    elif dataset_name == "emoji":
        splits = emoji_dataset(resolution, tuple((dataset_config_name or "en-zh").split("-")))
    else:
        where = (dataset_name, dataset_config_name, train_data_dir, revision, cache_dir)
        splits = load_splits(*where, streaming, train_split, validation_split)
    label_names = _read_names(label_names_file)
    columns = find_columns(splits["train"], image_column, caption_column, caption_template, label_names)
    splits = {name: as_pairs(split, columns, name, further_columns) for name, split in splits.items()}
    if streaming and not is_built_in:
        return _hold_out_of_stream(splits, num_held_out_samples, max_train_samples)
    return _hold_out(splits, validation_fraction, max_train_samples, seed)


def captions_of(pairs: Dataset | IterableDataset, max_streamed: int = 10_000) -> Iterator[str]:
    """The captions on which a caption tokenizer is trained.

    Args:
        pairs (`Dataset` or `IterableDataset`): The split `train` of [`load_pairs`].
        max_streamed (`int`, defaults to 10000): How many pairs of a stream are read, the first ones.

    Returns:
        `Iterator[str]`
    """
    rows = pairs.take(max_streamed) if isinstance(pairs, IterableDataset) else pairs
    return (caption for captions in rows["caption"] for caption in captions)


def _check(
    validation_fraction: float, max_train_samples: int | None, num_held_out_samples: int, caption_template: str
) -> None:
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, got {validation_fraction}.")
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"`max_train_samples` must be at least 1, got {max_train_samples}.")
    if num_held_out_samples < 1:
        raise ValueError(f"`num_held_out_samples` must be at least 1, got {num_held_out_samples}.")
    try:
        has_label = caption_template.format(label="a") != caption_template.format(label="b")
    except (LookupError, ValueError):  # another name in braces, or a brace alone
        has_label = False
    if not has_label:
        raise ValueError(
            f"`caption_template` must hold the label as `{{label}}` and no other braces, got {caption_template!r}."
        )


def _draw_shapes(
    config_name: str | None, resolution: int, num_train_rows: int | None, validation_fraction: float, seed: int
) -> dict[str, Dataset]:
    config_name = config_name or "one_object"
    if config_name not in SHAPES_CONFIGS:
        raise ValueError(
            f"`dataset_config_name` of shapes must be one of {list(SHAPES_CONFIGS)}, got {config_name!r}."
        )
    num_objects = SHAPES_CONFIGS[config_name]
    num_rows = {"train": _DEFAULT_SHAPES_ROWS if num_train_rows is None else num_train_rows}
    num_rows["validation"] = max(1, round(validation_fraction * num_rows["train"]))
    return {split: shapes_dataset(split, num_objects, count, resolution, seed) for split, count in num_rows.items()}


def _read_names(file: str | None) -> tuple[str, ...]:
    if file is None:
        return ()
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _hold_out(
    splits: dict[str, Dataset], validation_fraction: float, max_train_samples: int | None, seed: int
) -> DatasetDict:
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        if len(train) < 2:
            raise ValueError(
                f"Setting pairs aside for validation takes at least 2 pairs, got {len(train)}. Add pairs."
            )
        parts = train.train_test_split(test_size=validation_fraction, seed=seed)
        train, validation = parts["train"], parts["test"]
        if len(validation) < _FEW_HELD_OUT:
            logger.warning(
                "Only %d of %d pairs are held out, on which every figure rests: raise `validation_fraction`.",
                len(validation),
                len(validation) + len(train),
            )
    if max_train_samples is not None and max_train_samples < len(train):
        train = train.shuffle(seed=seed).select(range(max_train_samples))
    return DatasetDict({"train": train, "validation": validation})


def _hold_out_of_stream(
    splits: dict[str, IterableDataset], num_held_out_samples: int, max_train_samples: int | None
) -> dict[str, Dataset | IterableDataset]:
    train = splits["train"]
    held_out = splits.get("validation", train)
    validation = Dataset.from_list([*held_out.take(num_held_out_samples)], features=held_out.features)
    if held_out is train:
        if len(validation) < num_held_out_samples:
            raise ValueError(
                f"The stream has {len(validation)} pairs: holding out the first `num_held_out_samples` "
                f"{num_held_out_samples} leaves none to train on. Lower it, or name a `validation_split`."
            )
        train = train.skip(num_held_out_samples)
    if max_train_samples is not None:
        train = train.take(max_train_samples)
    if train is not splits["train"]:
        # `skip` and `take` count over all shards. Several processes that each had shards of their own would divide
        # these counts among them, and so train on what is held out: let each read everything and keep its share.
        train = split_dataset_by_node(train, rank=0, world_size=1, strategy="examples")
    return {"train": train, "validation": validation}

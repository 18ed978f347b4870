# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Image-text pairs from any source that `datasets` reads, as two columns: `image` (still encoded) and `caption`."""

import warnings

from datasets import Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets, load_dataset
from datasets.data_files import EmptyDatasetError

from .emoji import emoji_dataset
from .shapes import shapes_dataset

SHAPES_CONFIGS = {"one_object": 1, "two_objects": 2}
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt", "description")
_DEFAULT_SHAPES_ROWS = 20_000


def load_pairs(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    resolution: int = 32,
    max_train_samples: int | None = None,
    validation_fraction: float = 0.05,
    num_train_rows: int | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Loads image-text pairs for training and validation.

    Args:
        dataset_name (`str`, *optional*): `"shapes"` and `"emoji"` are built in and drawn in memory; any other name
            goes to `datasets.load_dataset` (a name on the Hub or a folder). Without a name `train_data_dir` is read as
            an `imagefolder`.
        dataset_config_name (`str`, *optional*): For shapes `"one_object"` (the default) or `"two_objects"`; for emoji
            the languages of the names, `"en-zh"` by default; else the configuration on the Hub.
        train_data_dir (`str`, *optional*): A folder of pictures with a `metadata.csv` (or `.jsonl`, `.parquet`) that
            has the columns `file_name` and, say, `text`.
        image_column (`str`, *optional*): Column of the pictures; by default the first of `IMAGE_COLUMNS` that is
            there.
        caption_column (`str`, *optional*): Column of the captions, a `str` or a list of `str`; by default the first of
            `CAPTION_COLUMNS` that is there.
        resolution (`int`, defaults to 32): Side in pixels at which the built-in sets are drawn.
        max_train_samples (`int`, *optional*): Trains on that many pairs at most, drawn by `seed`.
        validation_fraction (`float`, defaults to 0.05): Part of the training pairs that is set aside where the source
            has no split `validation`. For shapes: how many held-out pairs are drawn, as a fraction of the training
            pairs.
        num_train_rows (`int`, *optional*): How many training pairs of shapes are drawn; 20,000 by default.
        cache_dir (`str`, *optional*): Cache of `datasets`.
        seed (`int`, defaults to 0): Seed of what is drawn, set aside and selected.

    Returns:
        `datasets.DatasetDict`: Splits `train` and `validation` with the columns `image`
            (`datasets.Image(decode=False)`) and `caption` (a list of `str`, empty where the caption is missing).
            Shapes carry their facts in a third column, `scene`.

    Raises:
        ValueError: If no source, an unknown configuration or a column that is not there is named, if a column holds
            something else than pictures or captions, or if a split is empty.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, got {validation_fraction}.")
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"`max_train_samples` must be at least 1, got {max_train_samples}.")
    if num_train_rows is not None and dataset_name != "shapes":
        source = dataset_name or train_data_dir
        warnings.warn(f"`num_train_rows` is for shapes; it is ignored for {source!r}.", stacklevel=2)
    if train_data_dir is not None and dataset_name in ("shapes", "emoji"):
        warnings.warn(
            f"{dataset_name!r} is built in; the `train_data_dir` {train_data_dir!r} is ignored.", stacklevel=2
        )

    if dataset_name == "shapes":
        splits = _draw_shapes(dataset_config_name, resolution, num_train_rows, validation_fraction, seed)
    elif dataset_name == "emoji":
        splits = emoji_dataset(resolution, tuple((dataset_config_name or "en-zh").split("-")))
    else:
        splits = _load_source(dataset_name, dataset_config_name, train_data_dir, cache_dir)
    further_columns = ["scene"] if dataset_name == "shapes" else []
    splits = {name: _as_pairs(split, image_column, caption_column, further_columns) for name, split in splits.items()}
    train, validation = splits["train"], splits.get("validation")
    if validation is None:
        if len(train) < 2:
            raise ValueError(
                f"Setting pairs aside for validation takes at least 2 pairs, got {len(train)}. Add pairs."
            )
        parts = train.train_test_split(test_size=validation_fraction, seed=seed)
        train, validation = parts["train"], parts["test"]
    if max_train_samples is not None and max_train_samples < len(train):
        train = train.shuffle(seed=seed).select(range(max_train_samples))
    return DatasetDict({"train": train, "validation": validation})


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


def _load_source(
    dataset_name: str | None, config_name: str | None, data_dir: str | None, cache_dir: str | None
) -> dict[str, Dataset]:
    """The splits of a Hub name, a folder or an imagefolder that serve training."""
    if dataset_name is None and data_dir is None:
        raise ValueError(
            'Give a `dataset_name` ("shapes", "emoji", a name on the Hub) or a `train_data_dir` with pictures.'
        )
    source = dataset_name or data_dir
    try:
        splits = load_dataset(dataset_name or "imagefolder", config_name, data_dir=data_dir, cache_dir=cache_dir)
    except (EmptyDatasetError, ValueError) as error:
        raise ValueError(
            f"No pairs can be loaded from {source!r}: {error}. A `train_data_dir` holds pictures and a `metadata.csv` "
            "with the columns `file_name` and `text`."
        ) from error
    if "train" not in splits:
        raise ValueError(f"{source!r} has no split `train`; its splits are {list(splits)}.")
    return {name: splits[name] for name in ("train", "validation") if name in splits}


def _as_pairs(
    split: Dataset, image_column: str | None, caption_column: str | None, further_columns: list[str]
) -> Dataset:
    """Brings a split to the columns `image`, `caption` and further ones; pictures are neither decoded nor copied."""
    image_column = _find_column("image", image_column, IMAGE_COLUMNS, split)
    caption_column = _find_column("caption", caption_column, CAPTION_COLUMNS, split)
    image_feature, caption_feature = split.features[image_column], split.features[caption_column]
    is_path = isinstance(image_feature, Value) and "string" in image_feature.dtype
    is_bytes = isinstance(image_feature, Value) and "binary" in image_feature.dtype
    is_encoded = isinstance(image_feature, dict) and set(image_feature) == {"bytes", "path"}
    if not (isinstance(image_feature, Image) or is_path or is_bytes or is_encoded):
        raise ValueError(
            f"The column {image_column!r} must hold pictures, got {image_feature}. Name another `image_column`."
        )
    single = caption_feature.feature if isinstance(caption_feature, List) else caption_feature
    if not (isinstance(single, Value) and "string" in single.dtype):
        raise ValueError(
            f"The column {caption_column!r} must hold a `str` or a list of `str`, got {caption_feature}. Name another "
            "`caption_column`."
        )

    images = split.select_columns([image_column]).rename_columns({image_column: "image"})
    further = split.select_columns(further_columns)
    captions = split.select_columns([caption_column]).map(
        _as_caption_lists,
        batched=True,
        input_columns=caption_column,
        remove_columns=[caption_column],
        features=Features({"caption": List(Value("string"))}),
        desc="Reading captions",
    )
    return concatenate_datasets([images.cast_column("image", Image(decode=False)), captions, further], axis=1)


def _as_caption_lists(column: list[str | list[str] | None]) -> dict[str, list[list[str]]]:
    """One caption, several or none a row -> a list a row, without the empty ones."""
    rows = [[row] if isinstance(row, str) else row or [] for row in column]
    return {"caption": [[caption.strip() for caption in row if caption and caption.strip()] for row in rows]}


def _find_column(kind: str, given: str | None, usual: tuple[str, ...], split: Dataset) -> str:
    if given is not None:
        if given not in split.column_names:
            raise ValueError(
                f"`{kind}_column` {given!r} is not in the data set; its columns are {split.column_names}."
            )
        return given
    for name in usual:
        if name in split.column_names:
            return name
    raise ValueError(
        f"No {kind} column found: none of {list(usual)} is among the columns {split.column_names}. Name it with "
        f"`{kind}_column`; a folder of pictures gets its captions from a `metadata.csv` with the columns "
        "`file_name` and `text`."
    )

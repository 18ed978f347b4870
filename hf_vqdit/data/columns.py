# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Where the two sides of a pair stand in a source, and its rows as pairs: `image`, `caption`, `key`, `flaws`."""

import itertools
import operator
import warnings
from dataclasses import dataclass, replace
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
    concatenate_datasets,
)
from datasets.features.features import FeatureType

from .pictures import has_picture
from .sources import DAMAGE_COLUMN, JSON_COLUMN, read_json_object

_PICTURE_FILES = ("jpg", "jpeg", "png", "webp")  # of a tar, whose samples need not all have the same
IMAGE_COLUMNS = ("image", "img", "picture", *_PICTURE_FILES)
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "prompt", "description")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "fine_label")
MAX_CAPTION_CHARACTERS = 10_000
_NAMING_COLUMNS = ("__key__", "__url__", DAMAGE_COLUMN)  # of a tar
_INSPECTED_ROWS = 100  # of JSON, to know the members of its objects

_CAPTION_FEATURES = {"caption": List(Value("string")), "key": Value("string"), "flaws": List(Value("string"))}
PAIR_FEATURES = Features({"image": Image(decode=False), **_CAPTION_FEATURES})


@dataclass(frozen=True)
class PairColumns:
    """Where the two sides of a pair stand in the rows of a source.

    Args:
        images (`tuple[str, ...]`): Columns of pictures; a row has its picture in one of them.
        caption (`str`): Column of captions or labels.
        member (`str`, *optional*): Where that column holds JSON objects: their member that is the caption.
        template (`str`, *optional*): Where it holds labels: the caption that a label becomes.
        label_names (`tuple[str, ...]`, *optional*): Where the labels are numbers: their names; empty if the numbers
            serve.
    """

    images: tuple[str, ...]
    caption: str
    member: str | None = None
    template: str | None = None
    label_names: tuple[str, ...] | None = None


def find_columns(
    split: Dataset | IterableDataset,
    image_column: str | None = None,
    caption_column: str | None = None,
    template: str = "a photo of a {label}",
    label_names: tuple[str, ...] = (),
) -> PairColumns:
    """Finds the columns of pictures and captions, by their names or by those that are usual.

    Args:
        split (`Dataset` or `IterableDataset`): A split of a source.
        image_column (`str`, *optional*): Column of the pictures; by default the first of `IMAGE_COLUMNS`.
        caption_column (`str`, *optional*): Column of captions or labels, or a member of the objects in a column
            `json`; by default the first of `CAPTION_COLUMNS`, as a column or a member, then of `LABEL_COLUMNS`. Text
            is a caption, but a label's name where one of the latter was found by default.
        template (`str`, defaults to `"a photo of a {label}"`): The caption that a label becomes.
        label_names (`tuple[str, ...]`, defaults to `()`): Names of labels whose column does not know them.

    Returns:
        [`PairColumns`]

    Raises:
        ValueError: If a column is not there or holds something else than pictures, captions or labels.
    """
    if split.features is None:
        raise ValueError(
            "The columns of this source are not known before it is read whole, so it cannot be streamed. Leave "
            "`streaming` out, or convert it to parquet."
        )
    images = _find_images(split, image_column)
    caption, member = _find_caption(split, caption_column)
    feature = split.features[caption]
    is_label = caption_column is None and (member or caption) in LABEL_COLUMNS
    if member is not None and is_label:
        return PairColumns(images, caption, member, template, label_names or None)
    is_class_of_tar = caption == "cls" and feature == Value("binary") and "__key__" in split.features
    if member is not None or (_holds_text(feature) and not is_class_of_tar):
        if label_names:
            warnings.warn(f"The captions are those of {caption!r}; `label_names_file` is ignored.", stacklevel=3)
        return PairColumns(images, caption, member, template if is_label else None)
    if not (is_class_of_tar or isinstance(feature, ClassLabel) or "int" in getattr(feature, "dtype", "")):
        raise ValueError(
            f"The column {caption!r} must hold a `str` or a list of `str`, or labels, got {feature}. Name another "
            "`caption_column`."
        )
    label_names = label_names or tuple(getattr(feature, "names", ()))
    if not label_names and caption_column is None:
        kind = "labels" if is_label else "captions"
        raise ValueError(
            f"The {kind} in the column {caption!r} are numbers without names. Give `label_names_file`, a text file "
            f"with a name on each line, another `caption_column`, or `caption_column` {caption!r} to put the numbers "
            "into the captions."
        )
    return PairColumns(images, caption, None, template, label_names)


def _find_images(split: Dataset | IterableDataset, given: str | None) -> tuple[str, ...]:
    if given is not None and given not in split.features:
        raise ValueError(f"`image_column` {given!r} is not in the data set; its columns are {[*split.features]}.")
    found = [name for name in IMAGE_COLUMNS if name in split.features] if given is None else [given]
    if not found:
        raise ValueError(_nothing_found("image", IMAGE_COLUMNS, split))
    if given is not None or found[0] not in _PICTURE_FILES:
        found = found[:1]
    for name in found:
        if not _holds_pictures(split.features[name]):
            raise ValueError(
                f"The column {name!r} must hold pictures, got {split.features[name]}. Name another `image_column`."
            )
    return tuple(found)


def _find_caption(split: Dataset | IterableDataset, given: str | None) -> tuple[str, str | None]:
    """The column of captions or labels, and the member of its JSON objects that is the caption."""
    columns, members = [*split.features], _json_members(split)
    if given is not None and given not in columns + members:
        inside = f", and the members of its JSON {members}" if members else ""
        raise ValueError(f"`caption_column` {given!r} is not in the data set; its columns are {columns}{inside}.")
    for name in CAPTION_COLUMNS + LABEL_COLUMNS if given is None else (given,):
        if name in columns:
            return name, None
        if name in members:
            return JSON_COLUMN, name
    raise ValueError(_nothing_found("caption", CAPTION_COLUMNS, split))


def _json_members(split: Dataset | IterableDataset) -> list[str]:
    """The members of the JSON objects at the start of a split, if it has a column of them."""
    if split.features.get(JSON_COLUMN) != Value("binary"):
        return []
    rows = itertools.islice(split.select_columns([JSON_COLUMN]), _INSPECTED_ROWS)
    objects = (read_json_object(_decode(row[JSON_COLUMN] or b"")) for row in rows)
    return [*dict.fromkeys(name for found in objects if found for name in found)]


def _holds_pictures(feature: FeatureType) -> bool:
    if isinstance(feature, Value):  # paths or files
        return "string" in feature.dtype or "binary" in feature.dtype
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _holds_text(feature: FeatureType) -> bool:
    single = feature.feature if isinstance(feature, List | LargeList) else feature
    # A column of missing values alone has the type null.
    return isinstance(single, Value) and any(name in single.dtype for name in ("string", "binary", "null"))


def _nothing_found(kind: str, usual: tuple[str, ...], split: Dataset | IterableDataset) -> str:
    return (
        f"No {kind} column found: none of {list(usual)} is among the columns {[*split.features]}. Name it with "
        f"`{kind}_column`; a folder of pictures gets its captions from a `metadata.csv` with the columns `file_name` "
        "and `text`."
    )


# Rows


def as_pairs(
    split: Dataset | IterableDataset, columns: PairColumns, name: str, further_columns: tuple[str, ...] = ()
) -> Dataset | IterableDataset:
    """Brings a split of a source to the columns `image`, `caption`, `key` and `flaws`.

    Pictures are neither decoded nor, but for those of a stream and of tars with several kinds of files, copied.

    Args:
        split (`Dataset` or `IterableDataset`): A split of a source.
        columns ([`PairColumns`]): Where its pairs stand.
        name (`str`): Name of the split, for the keys of rows that the source does not name.
        further_columns (`tuple[str, ...]`, defaults to `()`): Columns that are kept; not of a stream.

    Returns:
        `Dataset` or `IterableDataset`: `image` (`datasets.Image(decode=False)`), `caption` (a list of `str`, empty
            where the caption is missing), `key` (what the record is called in messages, unless its picture is a
            file) and `flaws` (a list of `"kind: reason"`: captions that were left out or cut).
    """
    feature = split.features[columns.caption]
    reader = _RowReader(columns, name)
    texts = [columns.caption, *(column for column in _NAMING_COLUMNS if column in split.features)]
    for column in columns.images:
        split = split.cast_column(column, Image(decode=False))
    if isinstance(split, IterableDataset):
        split = split.select_columns([*columns.images, *texts]).cast_column(columns.caption, _as_bytes(feature))
        return split.map(reader.read, with_indices=True, remove_columns=split.column_names, features=PAIR_FEATURES)

    images = split.select_columns([*columns.images])
    if len(columns.images) == 1:
        images = images.rename_columns({columns.images[0]: "image"})
    else:
        features = Features({"image": PAIR_FEATURES["image"]})
        images = images.map(reader.read_image, remove_columns=[*columns.images], features=features)
    captions = split.select_columns(texts)
    if _as_bytes(feature) != feature:
        captions = captions.cast_column(columns.caption, _as_bytes(feature))
    captions = captions.map(
        reader.read_captions,
        with_indices=True,
        remove_columns=texts,
        features=Features(_CAPTION_FEATURES),
        desc="Reading captions",
    )
    return concatenate_datasets([images, captions, split.select_columns(further_columns)], axis=1)


@dataclass(frozen=True)
class _RowReader:
    """Reads rows of a source; whatever a row holds, it becomes a pair, which tells what was wrong."""

    columns: PairColumns
    split_name: str

    def read(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"image": self.read_image(row)["image"], **self.read_captions(row, index)}

    def read_image(self, row: dict[str, Any]) -> dict[str, Any]:
        """The picture of a row, in the first of its columns that has one."""
        return {"image": next((row[name] for name in self.columns.images if has_picture(row[name])), None)}

    def read_captions(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        """Captions and key of a row, and what was wrong with them."""
        value, captions, flaws = row[self.columns.caption], [], []
        if row.get(DAMAGE_COLUMN) is not None:
            flaws.append(f"archive_damaged: {row[DAMAGE_COLUMN]}")
        if self.columns.member is not None and value is not None:
            members = read_json_object(_decode(value))
            if members is None:
                flaws.append("caption_not_text: no JSON object")
            value = (members or {}).get(self.columns.member)
        read = _read_text if self.columns.template is None else self._read_label
        for single in value if isinstance(value, list) else [value]:
            text, flaw = read(single)
            captions += [text] if text else []
            flaws += [flaw] if flaw else []
        key = f"{self.split_name} row {index}"
        if row.get("__key__") is not None:
            key = f"{row['__url__']}/{row['__key__']}"
        return {"caption": captions, "key": key, "flaws": flaws}

    def _read_label(self, value: Any) -> tuple[str, str | None]:
        """The caption of a label, empty if it has none, and what is wrong with it."""
        names = self.columns.label_names
        # Where labels are numbers, bytes are those of a tar's `.cls`, and text of JSON is a name.
        label, flaw = _read_text(value) if names is None or isinstance(value, str) else _name_label(value, names)
        return self.columns.template.format(label=label.replace("_", " ")) if label else "", flaw


def _name_label(value: Any, names: tuple[str, ...]) -> tuple[str, str | None]:
    """The name of a label that is a number, empty if it has none, and what is wrong with it."""
    if value is None:
        return "", None
    try:
        number = int(value) if isinstance(value, bytes) else operator.index(value)
    except (TypeError, ValueError):
        return "", f"caption_not_text: the label {value!r:.80} is no number"
    if number == -1:  # how `datasets` writes a label that is not known
        return "", None
    if names and not 0 <= number < len(names):
        return "", f"label_unknown: {number}, of {len(names)} names"
    return names[number] if names else str(number), None


def _read_text(value: Any) -> tuple[str, str | None]:
    """A caption, empty if it has to be left out, and what is wrong with it."""
    if value is None:
        return "", None
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        return "", f"caption_not_text: {value!r:.80}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return "", f"caption_not_utf8: at character {error.start} of {value!r:.80}"
    text = value.strip()
    if len(text) > MAX_CAPTION_CHARACTERS:
        return text[:MAX_CAPTION_CHARACTERS], f"caption_enormous: {len(text):,} characters"
    return text, None


def _decode(text: bytes) -> str:
    """UTF-8 as text, without the mark at its start that some editors write; what is no UTF-8 becomes surrogates."""
    return text.decode("utf-8-sig", "surrogateescape")


def _as_bytes(feature: FeatureType) -> FeatureType:
    """The feature of the same text as bytes: reading text that is not UTF-8 would raise."""
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_as_bytes(feature.feature))
    if isinstance(feature, Value) and "string" in feature.dtype:
        return Value("large_binary" if feature.dtype == "large_string" else "binary")
    return feature

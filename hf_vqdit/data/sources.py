# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Opens what `datasets` can load, so that no record of a source keeps the others from being read.

The builders of `datasets` for folders of pictures and for WebDataset tars decode text while they read, and end where
that fails. [`FolderPairs`] and [`TarPairs`] are the same builders with text left as bytes, which `columns` then reads
record by record. All other builders (parquet, Arrow, JSON, ...) are used as they are.
"""

import gzip
import inspect
import itertools
import json
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetBuilder, Features, IterableDataset, Value, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset

JSON_COLUMN = "json"  # of both builders: a JSON object as bytes, of which the caption is a member
DAMAGE_COLUMN = "__damage__"  # of tars: why the record stands for what could not be read
_FILE_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".tar.gz": "webdataset"}
_ROWS_AT_A_TIME = 10_000
_INSPECTED_SAMPLES = 100  # of a tar, to know which files its samples are made of


def load_splits(
    dataset_name: str | None,
    config_name: str | None = None,
    data_dir: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
    train_split: str = "train",
    validation_split: str | None = None,
) -> dict[str, Dataset | IterableDataset]:
    """Loads the splits that serve training from a Hub name, a folder or files.

    Args:
        dataset_name (`str`, *optional*): A name on the Hub, a folder, or files (`pairs/*.parquet`, `pairs/*.tar`).
        config_name (`str`, *optional*): Its configuration.
        data_dir (`str`, *optional*): Without a name, a folder of pictures, tars or parquet files; with one, a folder
            inside of it.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        cache_dir (`str`, *optional*): Cache of `datasets`.
        streaming (`bool`, defaults to `False`): Whether records are read as they are needed, and nothing is cached.
        train_split (`str`, defaults to `"train"`): The split to train on; unless streaming also a part of one
            (`"train[:90%]"`).
        validation_split (`str`, *optional*): The split held out; by default `"validation"`, if there is one.

    Returns:
        `dict[str, Dataset | IterableDataset]`: `train`, and `validation` if there is one.

    Raises:
        ValueError: If no source is named, nothing is there that can be loaded, or a split is not there.
    """
    if dataset_name is None and data_dir is None:
        raise ValueError(
            'Give a `dataset_name` ("shapes", "emoji", a name on the Hub, a folder, files) or a `train_data_dir` with '
            "pictures."
        )
    source = dataset_name or data_dir
    with _explained(source):
        if dataset_name is None and "://" not in data_dir and not Path(data_dir).is_dir():
            raise ValueError(f"there is no such folder in {Path.cwd()}")
        builder = _open_builder(dataset_name, config_name, data_dir, revision, cache_dir)
        if streaming:
            splits, read = builder.as_streaming_dataset(), builder.as_streaming_dataset
        else:
            builder.download_and_prepare()
            splits, read = builder.info.splits, builder.as_dataset
        wanted = {"train": train_split, "validation": validation_split or "validation"}
        if validation_split is None and "validation" not in splits:
            del wanted["validation"]
        for name in wanted.values():
            for part in name.split("+"):
                if (part if streaming else part.split("[")[0]) not in splits:
                    raise ValueError(f"it has no split `{part}`; its splits are {list(splits)}")
        return {purpose: read(split=name) for purpose, name in wanted.items()}


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Names the source in what `datasets` raises, and says what a source looks like."""
    try:
        yield
    except (ValueError, FileNotFoundError, DatasetGenerationError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(
            f"No pairs can be loaded from {source!r}: {' '.join(str(cause).split())}. A `train_data_dir` holds "
            "pictures and a `metadata.csv` with the columns `file_name` and `text`, in UTF-8 and with captions in "
            "quotes; or parquet files; or WebDataset tars."
        ) from error


def _open_builder(
    dataset_name: str | None,
    config_name: str | None,
    data_dir: str | None,
    revision: str | None,
    cache_dir: str | None,
) -> DatasetBuilder:
    """The builder that `datasets` finds for a source, or ours in its place."""
    settings = {"cache_dir": cache_dir, "revision": revision}
    file_format = next((name for suffix, name in _FILE_FORMATS.items() if (dataset_name or "").endswith(suffix)), None)
    if file_format is not None:
        builder = load_dataset_builder(file_format, config_name, data_files=dataset_name, **settings)
    elif dataset_name is not None or _holds_shards(Path(data_dir)):
        name, data_dir = (data_dir, None) if dataset_name is None else (dataset_name, data_dir)
        builder = load_dataset_builder(name, config_name, data_dir=data_dir, **settings)
    else:
        builder = load_dataset_builder("imagefolder", config_name, data_dir=data_dir, **settings)
    for builder_class in (FolderPairs, TarPairs):
        if isinstance(builder, builder_class.__base__):
            return _rebuilt(builder, builder_class, cache_dir)
    return builder


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds tars or parquet files; pictures are what else it may hold."""
    is_parquet = (path.name != "metadata.parquet" for path in folder.rglob("*.parquet"))
    return any(is_parquet) or any(folder.rglob("*.tar"))


def _rebuilt(builder: DatasetBuilder, builder_class: type[DatasetBuilder], cache_dir: str | None) -> DatasetBuilder:
    """The same source, read by another class, with a cache of its own."""
    config = {
        item.name: getattr(builder.config, item.name)
        for item in fields(builder.config)
        if item.name not in ("name", "version", "data_dir", "description")
    }
    return builder_class(
        cache_dir=cache_dir,
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=Hasher.hash([builder.hash, inspect.getsource(sys.modules[__name__])]),
        base_path=builder.base_path,
        token=builder.token,
        repo_id=builder.repo_id,
        storage_options=builder.storage_options,
        **config,
    )


class FolderPairs(ImageFolder):
    """A folder of pictures whose metadata may hold any bytes and, in `metadata.jsonl`, values of any type.

    The columns of a `metadata.csv` or `metadata.parquet` are bytes, but for the names of files. Of a `metadata.jsonl`
    there are the names of files and each line as it stands, in the column `json`.
    """

    def _read_metadata(self, metadata_file: str, metadata_ext: str = "") -> Iterator[pa.Table]:
        if metadata_ext == ".csv":
            # Every field is text, "NA" and "007" too; what is not UTF-8 passes as surrogates.
            options = {"dtype": object, "keep_default_na": False, "encoding_errors": "surrogateescape"}
            for rows in pd.read_csv(metadata_file, chunksize=_ROWS_AT_A_TIME, **options):
                yield _as_table({name: [*rows[name]] for name in rows})
        elif metadata_ext == ".jsonl":
            with open(metadata_file, encoding="utf-8-sig", errors="surrogateescape") as file:
                written = (line for line in file if line.strip())
                names: set[str] = set()
                while lines := [*itertools.islice(written, _ROWS_AT_A_TIME)]:
                    rows = [read_json_object(line) or {} for line in lines]
                    names = names or {name for row in rows for name in row if _is_file_name(name)}
                    yield _as_table({name: [row.get(name) for row in rows] for name in names} | {JSON_COLUMN: lines})
        else:
            for table in super()._read_metadata(metadata_file, metadata_ext):
                for index, field in enumerate(table.schema):
                    if not _is_file_name(field.name):
                        column = table[field.name].cast(_as_binary(field.type))
                        table = table.set_column(index, field.name, column)
                yield table


class TarPairs(WebDataset):
    """WebDataset tars whose files stay bytes. Samples may lack files, and the end of a tar may be missing.

    Its columns are the extensions of files in lower case, `__key__`, `__url__`, and `__damage__`, which is set in a
    record that stands for what could not be read of a tar.
    """

    DECODERS = {}

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path: str, tar_iterator: Iterable) -> Iterator[dict[str, Any]]:
        last_key = "the start"
        try:
            for sample in super()._get_pipeline_from_tar(tar_path, tar_iterator):
                last_key = sample["__key__"] = _as_utf8(sample["__key__"])
                yield {_as_utf8(name).lower(): value for name, value in sample.items()}
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
            damage = f"{type(error).__name__}: {error}"
            yield {"__key__": f"after {last_key}", "__url__": tar_path, DAMAGE_COLUMN: damage}

    def _split_generators(self, dl_manager: Any) -> list:
        if self.info.features is None:  # or five samples would have to be made of the same files
            first_tar = next(iter(dl_manager.download(self.config.data_files).values()))[0]
            samples = self._get_pipeline_from_tar(first_tar, dl_manager.iter_archive(first_tar))
            names = {name for sample in itertools.islice(samples, _INSPECTED_SAMPLES) for name in sample}
            texts = dict.fromkeys(("__key__", "__url__", DAMAGE_COLUMN), Value("string"))
            self.info.features = Features({name: Value("binary") for name in sorted(names - texts.keys())} | texts)
        return super()._split_generators(dl_manager)

    def _generate_examples(self, tar_paths: list[str], tar_iterators: list[Iterable]) -> Iterator[tuple[Any, dict]]:
        for key, sample in super()._generate_examples(tar_paths, tar_iterators):
            yield key, {name: sample[name] for name in self.info.features}


def _is_file_name(name: str) -> bool:
    """Whether a column of metadata names files of pictures: what `datasets` goes by."""
    return name == "file_name" or name.endswith("_file_name")


def read_json_object(text: str) -> dict[str, Any] | None:
    """The mapping that a JSON text holds, or `None` if it holds something else or is no JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _as_utf8(text: str) -> str:
    """The text with question marks in place of surrogates, which stand for bytes that are not UTF-8."""
    return text.encode(errors="replace").decode()


def _as_table(columns: dict[str, list[Any]]) -> pa.Table:
    """Columns of text as bytes, and names of files as text; surrogates stand for bytes that are not UTF-8."""
    arrays = {}
    for name, values in columns.items():
        texts = [value if isinstance(value, str) else None for value in values]
        if _is_file_name(name):
            arrays[name] = pa.array([text and _as_utf8(text) for text in texts], pa.string())
        else:
            arrays[name] = pa.array([text and text.encode(errors="surrogateescape") for text in texts], pa.binary())
    return pa.table(arrays)


def _as_binary(data_type: pa.DataType) -> pa.DataType:
    """The type of the same text, or lists of it, as bytes; any other type as it is."""
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return pa.large_binary()
    return pa.list_(_as_binary(data_type.value_type)) if pa.types.is_list(data_type) else data_type

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Writes pairs in each form that people have them in: folders with metadata, parquet files, WebDataset tars."""

import io
import struct
import tarfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def draw_pixels(seed: int, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(picture: np.ndarray | Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_that_promises(width: int, height: int) -> bytes:
    """A PNG whose header promises this many pixels; it has none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# Each takes (picture as a file's bytes, caption as bytes) for each pair, either of which may be missing, and returns
# what `load_pairs` takes.

Pairs = list[tuple[bytes | None, bytes | None]]


def write_folder(folder: Path, pairs: Pairs, metadata: str = "csv") -> dict[str, str]:
    """A folder of pictures `0.png`, `1.png`, ... and a `metadata.csv`, `.jsonl` or `.parquet`."""
    folder.mkdir(parents=True)
    names = [f"{i}.png" if picture is not None else None for i, (picture, _) in enumerate(pairs)]
    for name, (picture, _) in zip(names, pairs, strict=True):
        if name is not None:
            (folder / name).write_bytes(picture)
    file = folder / f"metadata.{metadata}"
    captions = [caption for _, caption in pairs]
    if metadata == "csv":
        lines = [b'%s,"%s"' % ((name or "").encode(), text or b"") for name, text in zip(names, captions, strict=True)]
        file.write_bytes(b"\n".join([b"file_name,text", *lines, b""]))
    elif metadata == "jsonl":
        quoted = [b"null" if text is None else b'"%s"' % text for text in captions]
        names = [b"null" if name is None else b'"%s"' % name.encode() for name in names]
        lines = [b'{"file_name": %s, "text": %s}' % row for row in zip(names, quoted, strict=True)]
        file.write_bytes(b"\n".join([*lines, b""]))
    else:
        pq.write_table(pa.table({"file_name": pa.array(names, pa.string()), "text": unchecked_text(captions)}), file)
    return {"train_data_dir": str(folder)}


def write_parquet(folder: Path, pairs: Pairs, num_files: int = 2, path: str | None = None) -> dict[str, str]:
    """Parquet files as the Hub has them: pictures as their bytes, with a name beside them; several row groups."""
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(pairs)), num_files)):
        pictures = [None if pairs[i][0] is None else {"bytes": pairs[i][0], "path": path} for i in part]
        pictures = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"image": pictures, "text": unchecked_text([pairs[i][1] for i in part])})
        pq.write_table(table, folder / f"train-{number:05d}-of-{num_files:05d}.parquet", row_group_size=3)
    return {"dataset_name": str(folder)}


def unchecked_text(values: list[bytes | None]) -> pa.Array:
    """A column of text that may hold bytes which are not UTF-8, as faulty writers leave it."""
    array = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def write_tars(folder: Path, pairs: Pairs, num_files: int = 2, caption_file: str = "txt") -> dict[str, str]:
    """WebDataset tars with a picture and a file for the caption in each sample."""
    folder.mkdir(parents=True)
    samples = [{"png": picture, caption_file: caption} for picture, caption in pairs]
    for number, part in enumerate(np.array_split(np.arange(len(pairs)), num_files)):
        write_tar(folder / f"{number:05d}.tar", {f"sample{i}": samples[i] for i in part})
    return {"train_data_dir": str(folder)}


def write_tar(file: Path, samples: dict[str, dict[str, bytes | None]]) -> None:
    """A tar whose samples, by their key, are made of files, by their extension."""
    with tarfile.open(file, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                if content is not None:
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


FORMS = {
    "folder with csv": partial(write_folder, metadata="csv"),
    "folder with jsonl": partial(write_folder, metadata="jsonl"),
    "folder with parquet": partial(write_folder, metadata="parquet"),
    "parquet": write_parquet,
    "tars": write_tars,
}

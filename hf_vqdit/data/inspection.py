# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A look at pairs before a long training: what would be skipped, cut or enlarged, what is missing or there twice."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .captions import count_tokens
from .pictures import PictureHeader, read_header
from .reader import PairReader, name_record
from .records import KINDS, BadRecord, RecordCounts

_MAX_EXAMPLES = 3


class Inspection:
    """What was found in the pairs of a split.

    Args:
        reader ([`PairReader`]): How training reads them.
    """

    def __init__(self, reader: PairReader):
        self.resolution, self.context = reader.resolution, reader.tokenizer.model_max_length
        self.records = RecordCounts(max_bad_fraction=1.0)
        self.headers: list[PictureHeader] = []
        self.pictures: dict[bytes, list[str]] = {}  # digest of the pixels that training sees -> keys of its records
        self.caption_digests: Counter[bytes] = Counter()
        self.num_captions: list[int] = []  # of each record that is used
        self.num_characters: list[int] = []  # of each caption, as the next two
        self.num_words: list[int] = []
        self.num_tokens: list[int] = []

    def add(self, examined: "_Examined") -> None:
        """Takes in a record."""
        self.records.count(
            examined.bad_records,
            num_used=int(examined.is_used),
            num_without_image=int(examined.is_used and examined.header is None),
            num_without_text=int(examined.is_used and not examined.captions),
            num_truncated=sum(count > self.context for count in examined.num_tokens),
        )
        if not examined.is_used:
            return
        if examined.header is not None:
            self.headers.append(examined.header)
            self.pictures.setdefault(examined.picture_digest, []).append(examined.key)
        self.num_captions.append(len(examined.captions))
        self.num_characters += map(len, examined.captions)
        self.num_words += (len(caption.split()) for caption in examined.captions)
        self.num_tokens += examined.num_tokens
        self.caption_digests.update(_digest(caption.encode()) for caption in examined.captions)

    def report(self) -> dict[str, Any]:
        """The figures as JSON holds them; shares are of pictures or captions, lengths of single captions."""
        num_smaller = sum(min(header.width, header.height) < self.resolution for header in self.headers)
        equal_pictures = [keys for keys in self.pictures.values() if len(keys) > 1]
        return {
            "records": self.records.report(),
            "pictures": {
                "number": len(self.headers),
                "width": _spread([header.width for header in self.headers]),
                "height": _spread([header.height for header in self.headers]),
                "smaller_than_resolution": _share(num_smaller, len(self.headers)),
                "cut_off": _spread([1 - min(h.width, h.height) / max(h.width, h.height) for h in self.headers]),
                "modes": dict(Counter(header.mode for header in self.headers).most_common()),
                "equal_to_an_earlier_one": len(self.headers) - len(self.pictures),
                "examples_of_equal_ones": [keys[:_MAX_EXAMPLES] for keys in equal_pictures[:_MAX_EXAMPLES]],
            },
            "captions": {
                "number": len(self.num_characters),
                "to_a_picture": _spread(self.num_captions),
                "characters": _spread(self.num_characters),
                "words": _spread(self.num_words),
                "tokens": _spread(self.num_tokens),
                "truncated": _share(self.records.totals["truncated_captions"], len(self.num_tokens)),
                "equal_to_an_earlier_one": self.caption_digests.total() - len(self.caption_digests),
            },
        }


def inspect_pairs(
    pairs: Dataset | IterableDataset,
    reader: PairReader,
    max_inspected: int | None = None,
    num_workers: int = 0,
    description: str = "Inspecting",
) -> Inspection:
    """Reads pairs as training does, and shows a progress bar.

    Args:
        pairs (`Dataset` or `IterableDataset`): A split of [`load_pairs`].
        reader ([`PairReader`]): How training reads them.
        max_inspected (`int`, *optional*): Reads no more than this many records, the first ones.
        num_workers (`int`, defaults to 0): Processes that decode.
        description (`str`, defaults to `"Inspecting"`): What the progress bar says.

    Returns:
        [`Inspection`]
    """
    total = None if isinstance(pairs, IterableDataset) else len(pairs)
    if max_inspected is not None:
        total = max_inspected if total is None else min(total, max_inspected)
        pairs = pairs.take(total)
    loader = DataLoader(_Examiner(reader), sampler=enumerate(pairs), batch_size=None, num_workers=num_workers)
    inspection = Inspection(reader)
    # tqdm would begin to iterate over the loader itself twice, and so lose what its workers read ahead.
    for examined in tqdm(iter(loader), desc=description, total=total, unit=" records"):
        inspection.add(examined)
    return inspection


def format_inspection(inspections: dict[str, Inspection]) -> str:
    """The report of one or several splits as Markdown.

    Args:
        inspections (`dict[str, Inspection]`): What was found in each split.

    Returns:
        `str`
    """
    return "\n\n".join("\n".join([f"## {name}", "", *_lines(inspection)]) for name, inspection in inspections.items())


def _lines(inspection: Inspection) -> Iterator[str]:
    report, resolution = inspection.report(), inspection.resolution
    records, pictures, captions = report["records"], report["pictures"], report["captions"]
    yield f"- {records['read']:,} records read, {records['bad']:,} of them bad"
    for kind, each in records["bad_by_kind"].items():
        keys = ", ".join([*each["examples"]][:_MAX_EXAMPLES])
        yield f"    - {each['count']:,} {kind}, {KINDS[kind]}: {keys}"
    yield f"- {records['without_image']:,} without a picture, {records['without_text']:,} without a caption"
    if pictures["number"]:
        modes = ", ".join(f"{mode} {count:,}" for mode, count in pictures["modes"].items())
        yield f"- {pictures['number']:,} pictures, {pictures['equal_to_an_earlier_one']:,} equal to an earlier one"
        for keys in pictures["examples_of_equal_ones"]:
            yield f"    - equal: {', '.join(keys)}"
        for side in ("width", "height"):
            yield f"    - {side} in pixels: {_to_text(pictures[side])}"
        yield f"    - {pictures['smaller_than_resolution']:.1%} smaller than {resolution} pixels, which are enlarged"
        cut_off = pictures["cut_off"]
        median, most = cut_off["median"], cut_off["greatest"]
        yield f"    - cut off to make them square: {median:.1%} of the median picture, {most:.1%} of the longest"
        yield f"    - modes: {modes}"
    if captions["number"]:
        yield f"- {captions['number']:,} captions, {captions['equal_to_an_earlier_one']:,} equal to an earlier one"
        for unit in ("to_a_picture", "characters", "words", "tokens"):
            yield f"    - {unit.replace('_', ' ')}: {_to_text(captions[unit])}"
        yield f"    - {captions['truncated']:.1%} of more than {inspection.context} tokens, which lose their end"


class _Examined(NamedTuple):
    """What is kept of a record."""

    key: str
    is_used: bool
    header: PictureHeader | None
    picture_digest: bytes | None
    captions: list[str]
    num_tokens: list[int]
    bad_records: list[BadRecord]


class _Examiner(torch.utils.data.Dataset):
    """What the workers of the loader do: a record in, what is kept of it out."""

    def __init__(self, reader: PairReader):
        self.reader = reader

    def __getitem__(self, numbered_record: tuple[int, dict[str, Any]]) -> _Examined:
        index, record = numbered_record
        key, pair = name_record(record, index), self.reader.read(record, index)
        if isinstance(pair, BadRecord):
            return _Examined(key, False, None, None, [], [], [pair])
        header = picture_digest = None
        if pair.picture is not None:
            header, picture_digest = read_header(record["image"]), _digest(pair.picture.tobytes())
        num_tokens = count_tokens(self.reader.tokenizer, pair.captions)
        return _Examined(key, True, header, picture_digest, pair.captions, num_tokens, pair.flaws)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": float(np.median(values)), "greatest": max(values)}


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _to_text(spread: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,g}" for name, value in spread.items())

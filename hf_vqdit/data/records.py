# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What can be wrong with a record, by kind, and the one place that counts it."""

import logging
import math
from collections import Counter
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

# A record with one of these is left out ...
PICTURE_KINDS = {
    "picture_missing": "its file is not there",
    "picture_empty": "it has no bytes",
    "picture_truncated": "its end is missing",
    "picture_enormous": "it has more pixels than Pillow's limit, `PIL.Image.MAX_IMAGE_PIXELS`; never decoded",
    "picture_unsupported": "its values have no known range (32-bit integers or floats)",
    "picture_unreadable": "it is nothing that Pillow reads",
}
RECORD_KINDS = {
    "record_empty": "it has neither a picture nor a caption",
    "archive_damaged": "a tar that cannot be read to its end; what is after the damage is left out",
}
# ... one with one of these loses a caption, and is used with what is left of it ...
CAPTION_KINDS = {
    "caption_not_utf8": "it is not text in UTF-8",
    "caption_not_text": "it is no text: a number, a mapping, or JSON that cannot be read",
    "label_unknown": "it is a label without a name",
}
# ... and these are told, but no reason to stop.
TOLERATED_KINDS = {"caption_enormous": "it is cut long before its tokens are counted"}
KINDS = PICTURE_KINDS | RECORD_KINDS | CAPTION_KINDS | TOLERATED_KINDS

_MIN_RECORDS = 100  # read before a share of them is judged
_MAX_EXAMPLES = 20  # of each kind that are logged and reported by their keys; all are counted


class BadRecord(NamedTuple):
    """What is wrong with a record: its `key` in the source, the `kind` it counts as (of `KINDS`), the `reason`."""

    key: str
    kind: str
    reason: str


class BadRecordError(ValueError):
    """Raised while a record is read that has to be left out; knows the `kind`."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


class RecordCounts:
    """Counts the records that are read, and the bad ones among them by kind.

    A record counts once each time it is asked for (in training once an epoch), whatever is wrong with it and however
    often it is passed over on the way to another one.

    Args:
        max_bad_fraction (`float`, defaults to 0.1): The share of bad records above which [`add`] raises, once a
            hundred have been read, and by three standard deviations of what random records of such a set would have.

    Raises:
        ValueError: If `max_bad_fraction` is not in [0, 1].
    """

    def __init__(self, max_bad_fraction: float = 0.1):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"`max_bad_fraction` must lie between 0 and 1, got {max_bad_fraction}.")
        self.max_bad_fraction = max_bad_fraction
        self.totals: Counter[str] = Counter()  # read, bad, without_image, without_text, truncated_captions
        self.by_kind: Counter[str] = Counter()
        self.examples: dict[str, dict[str, str]] = {}  # kind -> key -> reason

    def add(self, batch: dict[str, Any]) -> None:
        """Takes in a batch, and logs the bad records that it tells of.

        Args:
            batch (`dict`): What `collate_pairs` or `collate_codes` returned.

        Raises:
            ValueError: If too many records are bad.
        """
        # What stands in for a bad record counts where it is asked for itself.
        is_own = ~batch.get("is_stand_in", torch.zeros_like(batch["has_image"]))
        self.count(
            batch["bad_records"],
            num_used=int(is_own.sum()),
            num_without_image=int((is_own & ~batch["has_image"]).sum()),
            num_without_text=int((is_own & ~batch["has_text"]).sum()),
            num_truncated=int((is_own & batch["truncated"]).sum()) if "truncated" in batch else 0,
        )

    def count(
        self,
        bad_records: list[BadRecord],
        num_used: int,
        num_without_image: int = 0,
        num_without_text: int = 0,
        num_truncated: int = 0,
    ) -> None:
        """As [`add`], in numbers.

        Args:
            bad_records (`list[BadRecord]`): One for each record with which something was wrong.
            num_used (`int`): How many records are used; those that were left out are counted by `bad_records`.
            num_without_image (`int`, defaults to 0): Those without a picture among the ones used.
            num_without_text (`int`, defaults to 0): Those without a caption.
            num_truncated (`int`, defaults to 0): Captions that lost their end.

        Raises:
            ValueError: If too many records are bad.
        """
        num_left_out = sum(bad.kind in PICTURE_KINDS | RECORD_KINDS for bad in bad_records)
        self.totals["read"] += num_used + num_left_out
        self.totals["bad"] += sum(bad.kind not in TOLERATED_KINDS for bad in bad_records)
        self.totals["without_image"] += num_without_image
        self.totals["without_text"] += num_without_text
        self.totals["truncated_captions"] += num_truncated
        for bad in bad_records:
            self._note(bad)
        num_read, num_bad = self.totals["read"], self.totals["bad"]
        if num_read >= _MIN_RECORDS and self.exceeds(self.max_bad_fraction, num_deviations=3):
            raise ValueError(
                f"{num_bad:,} of the {num_read:,} records read are bad, more than `max_bad_fraction` "
                f"{self.max_bad_fraction} allows: {self}. Look at the data with training_scripts/inspect_pairs.py; "
                "repair it or leave those records out, or raise `max_bad_fraction`."
            )

    def exceeds(self, max_bad_fraction: float, num_deviations: float = 0.0) -> bool:
        """Whether more than this share of the records read is bad, however few they are, and by so many standard
        deviations: random records of a set that has the share have more bad ones half the time."""
        deviation = math.sqrt(max_bad_fraction * (1 - max_bad_fraction) * self.totals["read"])
        return self.totals["bad"] > max_bad_fraction * self.totals["read"] + num_deviations * deviation

    def _note(self, bad: BadRecord) -> None:
        self.by_kind[bad.kind] += 1
        examples = self.examples.setdefault(bad.kind, {})
        if bad.key in examples or len(examples) == _MAX_EXAMPLES:
            return
        examples[bad.key] = bad.reason
        logger.warning("%s: %s (%s)", bad.kind, bad.key, bad.reason)
        if len(examples) == _MAX_EXAMPLES:
            logger.warning("Further records with a %s are counted and not listed.", bad.kind)

    def __str__(self) -> str:
        """The bad records by kind, most first, with a few keys each."""
        return "; ".join(
            f"{kind} {count:,} ({', '.join([*self.examples[kind]][:3])})" for kind, count in self.by_kind.most_common()
        )

    def warnings(self) -> list[str]:
        """What a log should say at the end, in lines: nothing if all was well."""
        lines = []
        if self.by_kind:
            lines.append(f"{self.totals['bad']:,} of {self.totals['read']:,} records read were bad: {self}.")
        if self.totals["truncated_captions"]:
            count = self.totals["truncated_captions"]
            lines.append(f"{count:,} times a caption longer than the text context lost its end.")
        return lines

    def report(self) -> dict[str, Any]:
        """The counts as JSON holds them, with the keys and reasons of at most twenty bad records of each kind."""
        by_kind = {
            kind: {"count": count, "examples": self.examples[kind]} for kind, count in self.by_kind.most_common()
        }
        return {**self.totals, "bad_by_kind": by_kind}

    def state_dict(self) -> dict[str, Any]:
        """All counts, for [`load_state_dict`]."""
        return {"totals": dict(self.totals), "by_kind": dict(self.by_kind), "examples": self.examples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adds the counts of a state, of an earlier part of a run or of another process."""
        self.totals.update(state_dict["totals"])
        self.by_kind.update(state_dict["by_kind"])
        for kind, examples in state_dict["examples"].items():
            known = self.examples.setdefault(kind, {})
            known |= dict([*examples.items()][: _MAX_EXAMPLES - len(known)])

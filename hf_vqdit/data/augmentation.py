# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Which pictures may be mirrored: those whose captions stay true."""

import re
from collections.abc import Iterable

# Left and right and what turns on them, as words of their own ("bright" and "leftover" are none), in English; in
# Chinese, which puts no blanks between words, as characters.
_SIDES = re.compile(
    r"\b(?:left|right)(?:wards?|most|s)?\b"
    r"|\b(?:anti|counter)?-?clockwise\b|\bo['’]clock\b"
    r"|左|右|[顺逆]时针|[一二两三四五六七八九十\d]点",
    flags=re.IGNORECASE,
)


def names_sides(captions: Iterable[str]) -> bool:
    """Whether any of the captions of a picture speaks of left and right, so that its mirror image would belie it.

    English and Chinese are read, by words alone and on the safe side: the right answer keeps a picture as it is too.
    Letters in the picture that no caption speaks of are not found.

    Args:
        captions (`Iterable[str]`): All captions of one picture, whichever of them is drawn.

    Returns:
        `bool`
    """
    return any(_SIDES.search(caption) for caption in captions)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A built-in set of real pairs: emoji drawn by an installed colour font, with the names that Unicode CLDR gives them.

Names come from the PyPI package `emoji`. Skin tones and joined emoji are sequences of several characters that a font
turns into one picture; Pillow needs raqm and the system's libfribidi for that and otherwise draws several pictures
side by side without a word, so both are checked before any work. A tenth of the emoji, chosen by a stable hash, is
held out as the validation split.
"""

import hashlib
import io
import logging
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import emoji
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

_WELL_KNOWN_FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",  # Fedora
    "/System/Library/Fonts/Apple Color Emoji.ttc",  # macOS
    "C:/Windows/Fonts/seguiemj.ttf",  # Windows
)
LANGUAGE_SEPARATOR = " | "  # in no name
_BITMAP_SIZES = (109, 136, 128, 160, 96)  # a bitmap font loads at the sizes it holds only: Noto at 109, Apple at 160
_REFERENCE = "\N{GRINNING FACE}"  # in every emoji font: its box is the box of one picture
_UNASSIGNED = "\U0010fffd"  # in no font: how the font shows what it lacks
_HELD_OUT_ONE_IN = 10


def emoji_dataset(
    resolution: int = 32, languages: tuple[str, ...] = ("en", "zh"), font_path: str | Path | None = None
) -> DatasetDict:
    """Every fully qualified emoji that the font draws as one picture, on white, with its name in each language.

    With several languages there is one caption more, all names in one: `red heart | 红心`. A model that is trained on
    it translates: the caption `red heart | [MASK]` leaves the Chinese name open.

    Args:
        resolution (`int`, defaults to 32): Side of the square pictures in pixels. The font's own size is about 130.
        languages (`tuple[str]`, defaults to `("en", "zh")`): Languages of the names, of `emoji.LANGUAGES`, in the
            order of the captions.
        font_path (`str` or `Path`, *optional*): A colour-emoji font; by default an installed one.

    Returns:
        `datasets.DatasetDict`: Splits `train` and `validation` with the columns `image` (PNG) and `caption` (a list of
            `str`). The splits' `info.description` tells how many emoji are in which split and how many were left out,
            and why.

    Raises:
        ValueError: If a language is unknown.
        FileNotFoundError: If no colour-emoji font is installed.
        RuntimeError: If Pillow lacks raqm or fribidi, or cannot draw the font in colour.
    """
    unknown = [language for language in languages if language not in emoji.LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"`languages` must be some of {emoji.LANGUAGES}, got {languages!r}.")
    _check_text_layout()
    font_path = find_emoji_font() if font_path is None else Path(font_path)
    font = _load_color_font(font_path)
    for language in languages:
        emoji.config.load_language(language)

    rows: dict[str, dict[str, list]] = {split: {"image": [], "caption": []} for split in ("train", "validation")}
    left_out: Counter[str] = Counter()
    one_picture = 1.1 * font.getlength(_REFERENCE)
    missing = _render(_UNASSIGNED, font).tobytes()
    for character, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != emoji.STATUS["fully_qualified"]:
            continue
        if font.getlength(character) > one_picture:
            left_out["drawn as more than one picture"] += 1
            continue
        picture = _render(character, font)
        if picture.tobytes() == missing:
            left_out["not in the font"] += 1
            continue
        buffer = io.BytesIO()
        picture.resize((resolution, resolution), PILImage.Resampling.LANCZOS).save(buffer, format="PNG")
        split = rows["validation" if is_held_out(character) else "train"]
        split["image"].append({"bytes": buffer.getvalue(), "path": None})
        names = [_tidy(entry[language]) for language in languages if language in entry]
        split["caption"].append([*names, LANGUAGE_SEPARATOR.join(names)] if len(names) > 1 else names)

    description = "Emoji drawn with {}: {} for training, {} held out; left out: {}.".format(
        font_path.name,
        *(len(split["image"]) for split in rows.values()),
        ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none",
    )
    logger.info(description)
    columns = Features({"image": Image(decode=False), "caption": List(Value("string"))})
    splits = DatasetDict({name: Dataset.from_dict(split, features=columns) for name, split in rows.items()})
    for split in splits.values():
        split.info.description = description
    return splits


def is_held_out(character: str) -> bool:
    """Whether training never sees this emoji: one in ten, the same on every machine."""
    return int.from_bytes(hashlib.sha256(character.encode()).digest()[:8]) % _HELD_OUT_ONE_IN == 0


def find_emoji_font() -> Path:
    """The installed colour-emoji font: what fontconfig knows, else the places where systems keep it.

    Returns:
        `Path`: The font file.

    Raises:
        FileNotFoundError: If there is none.
    """
    candidates = []
    if shutil.which("fc-list"):
        query = ["fc-list", "--format", "%{file}\n", ":color=true:lang=und-zsye"]
        candidates = sorted(subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines())
    for candidate in [*candidates, *_WELL_KNOWN_FONTS]:
        if Path(candidate).is_file():
            return Path(candidate)
    raise FileNotFoundError(
        "No colour-emoji font is installed. Install one (Debian, Ubuntu: `apt-get install fonts-noto-color-emoji`) or "
        "pass its file as `font_path`."
    )


def _check_text_layout() -> None:
    if not features.check("raqm"):
        raise RuntimeError(
            "Pillow was built without raqm, so skin tones and joined emoji would be drawn as several pictures. "
            "Install the wheel of PyPI: `pip install --force-reinstall pillow`."
        )
    if not features.check("fribidi"):
        raise RuntimeError(
            "Pillow finds no fribidi library, so skin tones and joined emoji would be drawn as several pictures. "
            "Install it (Debian, Ubuntu: `apt-get install libfribidi0`; macOS: `brew install fribidi`)."
        )


def _load_color_font(path: Path) -> ImageFont.FreeTypeFont:
    if not path.is_file():
        raise FileNotFoundError(f"`font_path` is no file: {path}.")
    for size in _BITMAP_SIZES:
        try:
            font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.RAQM)
        except OSError:  # not a size of this bitmap font
            continue
        red, green, blue = _render(_REFERENCE, font).split()
        if red.tobytes() != blue.tobytes():
            return font
    raise RuntimeError(
        f"Pillow cannot draw emoji in colour with {path}. Use a font of colour bitmaps (Debian, Ubuntu: "
        "`apt-get install fonts-noto-color-emoji`)."
    )


def _render(character: str, font: ImageFont.FreeTypeFont) -> PILImage.Image:
    """One emoji at the font's own size in the middle of a white square."""
    left, top, right, bottom = font.getbbox(_REFERENCE)
    side = max(right - left, bottom - top)
    picture = PILImage.new("RGB", (side, side), "white")
    corner = ((side - (right - left)) // 2 - left, (side - (bottom - top)) // 2 - top)
    ImageDraw.Draw(picture).text(corner, character, font=font, embedded_color=True)
    return picture


def _tidy(name: str) -> str:
    """':red_heart:' -> 'red heart'."""
    return name.strip(":").replace("_", " ")

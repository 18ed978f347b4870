# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Labelled picture grids: enlarged pictures with a wrapped caption under each, in titled sections on one page."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, SOFT_INK, RULE, ACCENT = "#ffffff", "#1c2024", "#6b7280", "#d9dde3", "#c2410c"
TITLE_SIZE, CAPTION_SIZE = 25, 17  # in pixels: still read with ease when the page is shown at two thirds of its width
MARGIN, GAP = 40, 20
LINE_SPACING = 1.3
# Ideographs, kana and full-width punctuation: a line may break before each of them.
_BREAKABLE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"


@dataclass(frozen=True)
class GridItem:
    """One place of a grid.

    Args:
        pictures (`tuple[PIL.Image.Image, ...]`): One picture, or a few shown as steps from left to right.
        caption (`str`, defaults to `""`): The words under them, in any script for which a font is installed.
        highlighted_words (`tuple[int, ...]`, defaults to `()`):
            Indices of the words of `caption.split()` to print in the accent color.
    """

    pictures: tuple[Image.Image, ...]
    caption: str = ""
    highlighted_words: tuple[int, ...] = ()


def draw_section(
    title: str,
    items: Sequence[GridItem],
    description: str = "",
    num_columns: int | None = None,
    picture_size: int = 128,
    resample: Image.Resampling = Image.Resampling.NEAREST,
) -> Image.Image:
    """Draws a title and, below it, the items row by row.

    Args:
        title (`str`): What the section shows.
        items (`Sequence[GridItem]`): At least one, all with the same number of pictures.
        description (`str`, defaults to `""`): A line in softer ink after the title.
        num_columns (`int`, *optional*): Items a row; by default as many as make rows of eight pictures.
        picture_size (`int`, defaults to 128): Side of the square on the page that a picture is fitted into, in pixels.
        resample (`PIL.Image.Resampling`, defaults to `Image.Resampling.NEAREST`):
            How pictures are enlarged. Nearest shows each pixel as it is, enlarged by a whole number.

    Returns:
        `PIL.Image.Image`: The section, to be shown alone or handed to [`stack_sections`].

    Raises:
        ValueError: If there is no item or the items differ in their number of pictures.
    """
    num_pictures = {len(item.pictures) for item in items}
    if len(num_pictures) != 1 or 0 in num_pictures:
        raise ValueError(
            f"`items` must all hold the same number of pictures, one or more, got {sorted(num_pictures) or 'none'}."
        )
    item_width = num_pictures.pop() * (picture_size + GAP) - GAP
    num_columns = num_columns or max(1, 8 * (picture_size + GAP) // (item_width + GAP))
    rows = [
        [_draw_item(item, item_width, picture_size, resample) for item in items[start : start + num_columns]]
        for start in range(0, len(items), num_columns)
    ]
    header = _draw_header(title, description, num_columns * (item_width + GAP) - GAP)
    height = header.height + sum(max(cell.height for cell in row) + GAP for row in rows)
    section = Image.new("RGB", (header.width + 2 * MARGIN, height + GAP), PAPER)
    section.paste(header, (MARGIN, GAP))
    top = GAP + header.height
    for row in rows:
        for column, cell in enumerate(row):
            section.paste(cell, (MARGIN + column * (item_width + GAP), top))
        top += max(cell.height for cell in row) + GAP
    return section


def stack_sections(sections: Sequence[Image.Image]) -> Image.Image:
    """Stacks sections into one page, a thin rule between them.

    Args:
        sections (`Sequence[PIL.Image.Image]`): What [`draw_section`] returned, at least one.

    Returns:
        `PIL.Image.Image`: The page, as wide as the widest section.
    """
    width = max(section.width for section in sections)
    page = Image.new("RGB", (width, sum(section.height for section in sections)), PAPER)
    top = 0
    for section in sections:
        page.paste(section, (0, top))
        if top:
            ImageDraw.Draw(page).line([(MARGIN, top), (width - MARGIN, top)], fill=RULE)
        top += section.height
    return page


def to_pictures(pixel_values: torch.Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] as pictures."""
    return VaeImageProcessor().postprocess(pixel_values.float(), output_type="pil")


def show_hidden(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture with a checkerboard, the usual sign for "nothing here", where a mask is white.

    Args:
        picture (`PIL.Image.Image`): Any picture.
        mask (`PIL.Image.Image`): Of the same size; white where the picture is hidden, as the pipeline's `mask_image`.

    Returns:
        `PIL.Image.Image`: An RGB picture of the same size.
    """
    square = max(1, picture.width // 16)
    checkers = Image.new("RGB", (2, 2), "#f3f4f6")
    checkers.putpixel((0, 1), (209, 213, 219))
    checkers.putpixel((1, 0), (209, 213, 219))
    tiles = Image.new("RGB", picture.size)
    tile = checkers.resize((2 * square, 2 * square), Image.Resampling.NEAREST)
    for top in range(0, picture.height, 2 * square):
        for left in range(0, picture.width, 2 * square):
            tiles.paste(tile, (left, top))
    hidden = mask.convert("L").point(lambda value: 255 if value > 127 else 0)
    return Image.composite(tiles, picture.convert("RGB"), hidden)


def _draw_header(title: str, description: str, width: int) -> Image.Image:
    header = Image.new("RGB", (width, int(2.1 * TITLE_SIZE)), PAPER)
    canvas = ImageDraw.Draw(header)
    baseline = int(1.2 * TITLE_SIZE)
    title_font, soft_font = _font_for(title, TITLE_SIZE), _font_for(description, CAPTION_SIZE)
    # The font that ships with Pillow has one weight; a fine stroke makes it semibold.
    canvas.text((0, baseline), title, fill=INK, font=title_font, anchor="ls", stroke_width=0.5)
    left = title_font.getlength(title) + GAP
    canvas.text((left, baseline), description, fill=SOFT_INK, font=soft_font, anchor="ls")
    return header


def _draw_item(item: GridItem, width: int, picture_size: int, resample: Image.Resampling) -> Image.Image:
    """The pictures in a row, small arrows between them, the caption below."""
    font = _font_for(item.caption, CAPTION_SIZE)
    lines = _wrap(item, font, width)
    line_height = int(LINE_SPACING * CAPTION_SIZE)
    pictures = [_enlarge(picture, picture_size, resample) for picture in item.pictures]
    picture_height = max(picture.height for picture in pictures)
    caption_top = picture_height + GAP // 2
    cell = Image.new("RGB", (width, caption_top + len(lines) * line_height), PAPER)
    canvas = ImageDraw.Draw(cell)
    for index, picture in enumerate(pictures):
        left = index * (picture_size + GAP) + (picture_size - picture.width) // 2
        cell.paste(picture, (left, 0))
        canvas.rectangle([left, 0, left + picture.width - 1, picture.height - 1], outline=RULE)
        if index:
            x, y = index * (picture_size + GAP) - GAP // 2, picture_height // 2
            canvas.polygon([(x - 4, y - 6), (x + 4, y), (x - 4, y + 6)], fill=SOFT_INK)
    for number, line in enumerate(lines):
        left, baseline = 0.0, caption_top + number * line_height + CAPTION_SIZE
        for piece, is_highlighted in line:
            canvas.text((left, baseline), piece, fill=ACCENT if is_highlighted else INK, font=font, anchor="ls")
            left += font.getlength(piece)
    return cell


def _enlarge(picture: Image.Image, picture_size: int, resample: Image.Resampling) -> Image.Image:
    """Fits a picture into the square: enlarged by a whole number, or shrunk."""
    picture = picture.convert("RGB")
    longer = max(picture.size)
    if longer > picture_size:
        fitted = [max(1, side * picture_size // longer) for side in picture.size]
        return picture.resize(fitted, Image.Resampling.LANCZOS)
    return picture.resize([side * (picture_size // longer) for side in picture.size], resample)


def _wrap(item: GridItem, font: ImageFont.FreeTypeFont, width: int) -> list[list[tuple[str, bool]]]:
    """Breaks a caption into lines of (piece, is highlighted) that fit into `width` pixels."""
    lines: list[list[tuple[str, bool]]] = []
    for index, word in enumerate(item.caption.split()):
        is_highlighted = index in item.highlighted_words
        # A word wider than the line may break anywhere.
        pieces = re.findall(f"[{_BREAKABLE}]|[^{_BREAKABLE}]+" if font.getlength(word) <= width else ".", word)
        for number, piece in enumerate(pieces):
            space = " " if number == 0 and lines else ""
            used = sum(font.getlength(earlier) for earlier, _ in lines[-1]) if lines else width
            if lines and used + font.getlength(space + piece) <= width:
                lines[-1].append((space + piece, is_highlighted))
            else:
                lines.append([(piece, is_highlighted)])
    return lines


def _font_for(words: str, size: int) -> ImageFont.FreeTypeFont:
    """The font that ships with Pillow, or, since that has ASCII alone, an installed one that has all the letters."""
    foreign = "".join(sorted({character for character in words if not character.isascii()}))
    return (_installed_font(foreign, size) if foreign else None) or ImageFont.load_default(size)


@cache
def _installed_font(characters: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The sans-serif font that fontconfig finds for these characters."""
    charset = " ".join(f"{ord(character):x}" for character in characters)
    command = ["fc-match", "--format=%{file}\n%{index}", f"sans-serif:charset={charset}"]
    try:
        file, index = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return ImageFont.truetype(file, size, index=int(index))
    except (OSError, subprocess.CalledProcessError):
        return None  # no fontconfig, or only a font of bitmaps: the letters show as boxes

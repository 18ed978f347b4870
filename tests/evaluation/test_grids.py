# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from hf_vqdit.evaluation.grids import (
    ACCENT,
    GAP,
    INK,
    MARGIN,
    PAPER,
    GridItem,
    draw_section,
    show_hidden,
    stack_sections,
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def contains(page: Image.Image, picture: Image.Image) -> bool:
    """Whether the picture, but for its outline of one pixel, lies somewhere on the page."""
    inner, whole = np.asarray(picture)[1:-1, 1:-1], np.asarray(page)
    windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], (3, 3))
    corners = np.argwhere((windows == inner[:3, :3, 0]).all(axis=(2, 3)))
    return any(np.array_equal(whole[y : y + len(inner), x : x + inner.shape[1]], inner) for y, x in corners)


def count_pixels(page: Image.Image, color: str) -> int:
    return int((np.asarray(page) == ImageColor.getrgb(color)).all(axis=-1).sum())


@pytest.mark.parametrize(("size", "factor"), [((32, 32), 4), ((24, 40), 3), ((128, 64), 1), ((50, 50), 2)])
def test_a_picture_is_enlarged_by_a_whole_number_pixel_by_pixel(size, factor):
    picture = noise(*size)
    section = draw_section("title", [GridItem((picture,), "caption")], picture_size=128)
    enlarged = np.asarray(picture).repeat(factor, axis=0).repeat(factor, axis=1)
    assert contains(section, Image.fromarray(enlarged))


def test_a_picture_too_large_for_its_place_is_shrunk_into_it():
    section = draw_section("title", [GridItem((noise(500, 250),))], num_columns=1, picture_size=100)
    assert section.width == 100 + 2 * MARGIN


def test_every_picture_of_every_item_is_there():
    items = [GridItem((noise(16, 16, 2 * i), noise(16, 16, 2 * i + 1)), f"number {i}") for i in range(7)]
    section = draw_section("title", items, num_columns=3, picture_size=16)
    assert all(contains(section, picture) for item in items for picture in item.pictures)
    assert section.width == 3 * (2 * 16 + GAP) + 2 * GAP + 2 * MARGIN


def test_a_caption_stays_under_its_picture_however_long_it_is():
    words = "an uncommonly long caption about a donaudampfschifffahrtsgesellschaft and nothing else " * 3
    section = draw_section("", [GridItem((noise(32, 32),), words), GridItem((noise(32, 32, 1),))], picture_size=64)
    short = draw_section("", [GridItem((noise(32, 32),), "short"), GridItem((noise(32, 32, 1),))], picture_size=64)
    assert section.height > short.height + 200
    right_of_it = section.crop((MARGIN + 64 + GAP, section.height - 200, section.width, section.height))
    assert count_pixels(right_of_it, PAPER) == right_of_it.width * right_of_it.height


def test_highlighted_words_alone_are_in_the_accent_color():
    def page(*highlighted: int) -> Image.Image:
        return draw_section("", [GridItem((noise(8, 8),), "large large", highlighted)])

    assert count_pixels(page(), ACCENT) == count_pixels(page(0, 1), INK) == 0
    assert count_pixels(page(), INK) > 0
    assert 2 * count_pixels(page(0), ACCENT) == pytest.approx(count_pixels(page(0, 1), ACCENT), rel=0.2)
    assert count_pixels(page(0), INK) > 0


def test_other_scripts_are_drawn_with_a_font_that_has_them():
    has_font = (
        shutil.which("fc-list")
        and subprocess.run(["fc-list", ":charset=7ea2 5fc3"], capture_output=True, text=True, check=True).stdout
    )
    if not has_font:
        pytest.skip("no font with Chinese letters is installed")
    red, heart = (np.asarray(draw_section("", [GridItem((noise(8, 8),), letter)])) for letter in "红心")
    assert not np.array_equal(red, heart)  # a font that lacks both would draw the same box twice


def test_letters_that_no_font_has_do_not_stop_the_page(monkeypatch):
    monkeypatch.setenv("PATH", "")  # so that fontconfig's program is not found either
    unassigned = "\U000e0fff\u0378"
    section = draw_section(unassigned, [GridItem((noise(8, 8),), unassigned)], unassigned)
    assert section.height > 0


def test_sections_are_stacked_in_order_without_loss():
    sections = [draw_section(f"part {i}", [GridItem((noise(20, 20, i),))] * (i + 1)) for i in range(3)]
    page = stack_sections(sections)
    assert page.size == (max(section.width for section in sections), sum(section.height for section in sections))
    assert all(
        contains(page, Image.fromarray(np.asarray(noise(20, 20, i)).repeat(6, 0).repeat(6, 1))) for i in range(3)
    )


def test_what_a_mask_shows_is_unchanged_and_what_it_hides_is_gone():
    picture, other = noise(32, 32), noise(32, 32, 1)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    shown = np.asarray(show_hidden(picture, mask))
    assert np.array_equal(shown[:, :16], np.asarray(picture)[:, :16])
    assert np.array_equal(shown[:, 16:], np.asarray(show_hidden(other, mask))[:, 16:])
    assert len(np.unique(shown[:, 16:].reshape(-1, 3), axis=0)) == 2


def test_items_must_be_alike():
    with pytest.raises(ValueError, match="same number of pictures"):
        draw_section("title", [])
    with pytest.raises(ValueError, match=r"got \[1, 2\]"):
        draw_section("title", [GridItem((noise(8, 8),)), GridItem((noise(8, 8), noise(8, 8)))])

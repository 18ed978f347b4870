# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Every picture that Pillow reads becomes an upright opaque square, and every other one is told by its kind."""

import io
import warnings

import numpy as np
import pytest
from pair_files import draw_pixels, encode, png_that_promises
from PIL import Image

from hf_vqdit.data.pictures import open_picture, to_square
from hf_vqdit.data.records import BadRecordError


def read(data: bytes, resolution: int = 16, **options) -> np.ndarray:
    return to_square(open_picture({"bytes": data, "path": None}), resolution, **options)


# What is used


def test_transparent_pixels_show_white():
    pixels = draw_pixels(0, channels=4)
    pixels[..., 3] = np.where(np.arange(16) < 8, 0, 255)
    found = read(encode(pixels))
    assert (found[:, :8] == 255).all()
    np.testing.assert_array_equal(found[:, 8:], pixels[:, 8:, :3])


@pytest.mark.parametrize("transparency", [None, 0])
def test_a_palette_becomes_its_colors_and_its_transparent_one_white(transparency):
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 8, 16))
    found = read(encode(picture, **({} if transparency is None else {"transparency": transparency})))
    assert (found[:, :8] == [0, 0, 255]).all()
    assert (found[:, 8:] == ([255, 0, 0] if transparency is None else 255)).all()


@pytest.mark.parametrize(("file_format", "mode"), [("PNG", "L"), ("PNG", "I;16"), ("TIFF", "I;16"), ("PPM", "I;16")])
def test_greys_of_8_and_16_bits_become_the_same_colors(file_format, mode):
    greys = draw_pixels(0, channels=1)[..., 0]
    data = encode(greys if mode == "L" else greys.astype(np.uint16) * 257, file_format)
    np.testing.assert_array_equal(read(data), np.repeat(greys[..., None], 3, axis=-1))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_inks_become_colors(file_format):
    found = read(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), file_format, quality=100))
    np.testing.assert_allclose(found, np.broadcast_to([255, 0, 0], found.shape), atol=2)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(file_format):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_allclose(read(data), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=8)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_picture_that_a_camera_turned_is_upright(file_format):
    pixels = np.repeat(draw_pixels(0, 2, 2), 8, axis=0).repeat(8, axis=1)
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6  # shown after a quarter turn to the right
    found = read(encode(turned, file_format, exif=exif, **({"quality": 100} if file_format == "JPEG" else {})))
    np.testing.assert_allclose(found[4::8, 4::8].astype(int), pixels[4::8, 4::8].astype(int), atol=16)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16)])
def test_the_square_is_cut_from_the_middle_or_the_upper_left(height, width):
    pixels = draw_pixels(0, height, width)
    top, left = (height - 16) // 2, (width - 16) // 2
    np.testing.assert_array_equal(read(encode(pixels)), pixels[top : top + 16, left : left + 16])
    np.testing.assert_array_equal(read(encode(pixels), center_crop=False), pixels[:16, :16])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 100), (5, 9), (1, 1)])
def test_the_short_side_becomes_the_resolution(height, width):
    halves = np.zeros((height, width, 3), dtype=np.uint8)
    halves[(height + 1) // 2 :] = 200
    found = read(encode(halves), resolution=8)
    assert found.shape == (8, 8, 3)
    np.testing.assert_allclose(found[[0, -1]].mean(axis=(1, 2)), [0, 200 if height > 1 else 0], atol=13)


# What is not


WHOLE = {name: encode(draw_pixels(0, 64, 64), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF")}
GREYS = np.full((4, 4), 70000)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("picture_unreadable", b"garbage"),
        ("picture_unreadable", png_that_promises(0, 4)),
        ("picture_unreadable", png_that_promises(4, 0)),
        ("picture_empty", b""),
        *(("picture_truncated", data[: len(data) // 2]) for data in WHOLE.values()),
        ("picture_enormous", png_that_promises(10_000, 10_000)),  # of which Pillow would only warn
        ("picture_enormous", png_that_promises(30_000, 30_000)),
        ("picture_unsupported", encode(GREYS.astype(np.int32), "TIFF")),
        ("picture_unsupported", encode(GREYS.astype(np.float32), "TIFF")),
    ],
)
def test_a_picture_that_cannot_be_used_tells_its_kind(kind, data):
    with pytest.raises(BadRecordError) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        read(data)
    assert caught.value.kind == kind
    assert str(caught.value) and "0x" not in str(caught.value)  # the same words in every run


def test_a_file_that_is_not_there_or_empty_tells_its_kind(tmp_path):
    (tmp_path / "empty.png").touch()
    for name, kind in (("nowhere.png", "picture_missing"), ("empty.png", "picture_empty")):
        with pytest.raises(BadRecordError) as caught:
            open_picture({"bytes": None, "path": str(tmp_path / name)})
        assert caught.value.kind == kind


def test_a_picture_just_below_the_limit_of_pixels_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 256)
    assert read(encode(draw_pixels(0))).shape == (16, 16, 3)
    with pytest.raises(BadRecordError, match="DecompressionBombWarning.*272 pixels"):
        read(encode(draw_pixels(0, 16, 17)))

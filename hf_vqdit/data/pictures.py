# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""From an encoded picture to the pixels that training sees, or to the kind of damage that it has."""

import io
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from datasets import Image
from PIL import Image as PILImage
from PIL import ImageOps

from .records import BadRecordError

_DECODER = Image(decode=True)


class PictureHeader(NamedTuple):
    """Width and height of an upright picture in pixels, and the `mode` that Pillow reads it in."""

    width: int
    height: int
    mode: str


def open_picture(image: dict[str, Any]) -> PILImage.Image:
    """Decodes a picture and turns it upright (EXIF); of an animated one the first frame.

    Args:
        image (`dict`): A picture as `datasets.Image(decode=False)` gives it: its `bytes`, or the `path` of its file.

    Returns:
        `PIL.Image.Image`: In the mode of the file.

    Raises:
        BadRecordError: If it cannot be decoded, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`: what Pillow
            warns of up to twice that many is an error here, so that no small file takes gigabytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", PILImage.DecompressionBombWarning)
        try:
            return _DECODER.decode_example(image)
        except Exception as error:  # on bytes that they cannot read, Pillow's decoders raise many kinds
            raise BadRecordError(_kind_of(error, image), _describe(error)) from error


def to_square(picture: PILImage.Image, resolution: int, center_crop: bool = True) -> np.ndarray:
    """Brings a picture to what training sees: opaque on white, 8 bits a channel, cropped to a square and resized.

    Args:
        picture (`PIL.Image.Image`): What [`open_picture`] returned.
        resolution (`int`): Side of the square in pixels.
        center_crop (`bool`, defaults to `True`): Whether the square is cut from the middle; else from the upper left.

    Returns:
        `np.ndarray` of shape `(resolution, resolution, 3)`: Red, green and blue in 0..255.

    Raises:
        BadRecordError: If its values have no known range.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        # Pillow clips 16-bit greys to 255 instead of scaling them.
        picture = PILImage.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise BadRecordError("picture_unsupported", f"a {picture.format} file of mode {picture.mode}")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = PILImage.alpha_composite(PILImage.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if picture.size != (resolution, resolution):
        centering = (0.5, 0.5) if center_crop else (0.0, 0.0)
        picture = ImageOps.fit(picture, (resolution, resolution), PILImage.Resampling.LANCZOS, centering=centering)
    return np.asarray(picture)


def read_header(image: dict[str, Any]) -> PictureHeader:
    """What a picture's file says of itself; its pixels are not decoded.

    Args:
        image (`dict`): As for [`open_picture`], which can read it.

    Returns:
        [`PictureHeader`]
    """
    file = io.BytesIO(image["bytes"]) if image["bytes"] is not None else fsspec.open(image["path"])
    with file as opened, PILImage.open(opened) as picture:
        width, height = picture.size
        if picture.getexif().get(PILImage.ExifTags.Base.Orientation, 1) >= 5:  # turned by a quarter
            width, height = height, width
        return PictureHeader(width, height, picture.mode)


def has_picture(image: dict[str, Any] | None) -> bool:
    """Whether a record names or holds a picture at all, good or bad."""
    return image is not None and (image["bytes"] is not None or image["path"] is not None)


def _kind_of(error: Exception, image: dict[str, Any]) -> str:
    if isinstance(error, PILImage.DecompressionBombError | PILImage.DecompressionBombWarning):
        return "picture_enormous"
    if isinstance(error, FileNotFoundError):
        return "picture_missing"
    if image["bytes"] == b"" or (image["bytes"] is None and _is_empty_file(image["path"])):
        return "picture_empty"
    return "picture_truncated" if "truncated" in str(error).lower() else "picture_unreadable"


def _is_empty_file(path: str) -> bool:
    try:
        return Path(path).stat().st_size == 0
    except OSError:  # a URL
        return False


def _describe(error: Exception) -> str:
    """An error in words that are the same in every run, without addresses in memory."""
    return re.sub(r" object at 0x\w+", "", f"{type(error).__name__}: {error}")

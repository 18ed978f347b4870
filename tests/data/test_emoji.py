# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Emoji pairs: every emoji is one picture with its names. Needs a colour-emoji font."""

import io
import re

import emoji
import numpy as np
import pytest
from PIL import Image

from hf_vqdit.data import emoji as emoji_module
from hf_vqdit.data.emoji import emoji_dataset, find_emoji_font, is_held_out

try:
    find_emoji_font()
except FileNotFoundError as missing_font:
    pytest.skip(str(missing_font), allow_module_level=True)


@pytest.fixture(scope="module")
def splits():
    return emoji_dataset(resolution=32, languages=("en", "zh", "fr"))


def names_to_pictures(splits) -> dict[str, np.ndarray]:
    rows = [row for split in splits.values() for row in split]
    return {row["caption"][0]: np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows}


def test_every_emoji_is_drawn_or_counted_as_left_out(splits):
    description = splits["train"].info.description
    drawn, left_out = description.split("left out:")
    in_train, in_validation = map(int, re.findall(r"(\d+) (?:for training|held out)", drawn))
    assert (in_train, in_validation) == (len(splits["train"]), len(splits["validation"]))
    everything = sum(entry["status"] == emoji.STATUS["fully_qualified"] for entry in emoji.EMOJI_DATA.values())
    assert in_train + in_validation + sum(map(int, re.findall(r"(\d+) (?:drawn|not)", left_out))) == everything
    assert in_train + in_validation > 0.9 * everything


def test_a_tenth_of_the_emoji_is_held_out(splits):
    num_rows = len(splits["train"]) + len(splits["validation"])
    assert abs(len(splits["validation"]) - 0.1 * num_rows) < 4 * (0.09 * num_rows) ** 0.5
    characters = {
        entry["en"].strip(":").replace("_", " "): character
        for character, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
    }
    for name, split in splits.items():
        assert {is_held_out(characters[row["caption"][0]]) for row in split} == {name == "validation"}


def test_every_emoji_has_a_tidy_name_in_each_language(splits):
    for split in splits.values():
        for captions in split["caption"]:
            *names, all_names = captions
            assert len(names) == 3 and all_names == " | ".join(names)
            assert all(re.fullmatch(r"[^:_|]+", name) for name in names)
    names = [row[0] for split in splits.values() for row in split["caption"]]
    assert len(set(names)) == len(names)
    red_heart = ["red heart", "红心", "cœur rouge", "red heart | 红心 | cœur rouge"]
    assert red_heart in splits["train"]["caption"][:] + splits["validation"]["caption"][:]


def test_every_picture_shows_something_on_white(splits):
    for name, picture in names_to_pictures(splits).items():
        assert picture.shape == (32, 32, 3)
        assert picture.std() > 1, name


def test_skin_tones_and_joined_emoji_are_single_pictures_of_their_own(splits):
    pictures = names_to_pictures(splits)
    tones = ["", " light skin tone", " medium-light skin tone", " medium skin tone", " medium-dark skin tone"]
    for name in ("waving hand", "thumbs up", "woman astronaut", "man firefighter"):
        distinct = {pictures[name + tone].tobytes() for tone in tones}
        assert len(distinct) == len(tones), name
    assert pictures["heart on fire"].tobytes() != pictures["red heart"].tobytes()
    assert pictures["rainbow flag"].tobytes() != pictures["white flag"].tobytes()


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="'xx'"):
        emoji_dataset(languages=("en", "xx"))


def test_a_font_that_is_missing_or_no_colour_font_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.ttf"):
        emoji_dataset(font_path=tmp_path / "nowhere.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(RuntimeError, match="fonts-noto-color-emoji"):
        emoji_dataset(font_path=tmp_path / "broken.ttf")


@pytest.mark.parametrize(("library", "remedy"), [("raqm", "pip install"), ("fribidi", "libfribidi0")])
def test_a_missing_text_layout_library_is_named_with_its_remedy(monkeypatch, library, remedy):
    monkeypatch.setattr(emoji_module.features, "check", lambda name: name != library)
    with pytest.raises(RuntimeError, match=f"{library}.*{remedy}"):
        emoji_dataset()

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Every source of pairs comes out as the same two columns, or as an error that says what to do."""

import csv
import io

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_vqdit.data.emoji import find_emoji_font
from hf_vqdit.data.pairs import load_pairs
from hf_vqdit.data.shapes import is_held_out, parse, scene_from_facts


def png(color=(200, 30, 30), size=(8, 8)) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def write_image_folder(folder, captions: list[str], column: str = "text"):
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", column])
        for i, caption in enumerate(captions):
            (folder / f"{i}.png").write_bytes(png())
            writer.writerow([f"{i}.png", caption])
    return folder


def write_parquet(folder, columns: dict[str, list], features: Features | None = None) -> str:
    """A folder that `load_dataset` reads by name, as it reads one on the Hub."""
    folder.mkdir(parents=True)
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture
def cache_dir(tmp_path):
    return str(tmp_path / "cache")


def assert_is_pairs(splits):
    for split in splits.values():
        assert split.column_names[:2] == ["image", "caption"]
        assert split.features["image"] == Image(decode=False)
        assert split.features["caption"] == List(Value("string"))


@pytest.mark.parametrize("config_name", ["one_object", "two_objects", None])
def test_shapes_come_with_their_facts_and_a_held_out_validation_split(config_name):
    splits = load_pairs("shapes", config_name, num_train_rows=60, validation_fraction=0.2, resolution=16)
    assert_is_pairs(splits)
    assert (len(splits["train"]), len(splits["validation"])) == (60, 12)
    for name, split in splits.items():
        for row in split:
            scene = scene_from_facts(row["scene"])
            assert len(scene) == (8 if config_name == "two_objects" else 5)
            assert parse(row["caption"][0]) == scene
            assert is_held_out(scene) == (name == "validation")
            assert PILImage.open(io.BytesIO(row["image"]["bytes"])).size == (16, 16)


@pytest.mark.slow
def test_emoji_come_with_names_in_the_languages_of_their_configuration():
    try:
        find_emoji_font()
    except FileNotFoundError as missing_font:
        pytest.skip(str(missing_font))
    splits = load_pairs("emoji", "ja-en", resolution=8)
    assert_is_pairs(splits)
    assert ["すし", "sushi", "すし | sushi"] in splits["train"]["caption"][:] + splits["validation"]["caption"][:]


def test_a_folder_of_pictures_keeps_its_captions_and_sets_pairs_aside(tmp_path, cache_dir):
    captions = [f"caption {i}" for i in range(20)]
    folder = write_image_folder(tmp_path / "pictures", captions)
    splits = load_pairs(train_data_dir=str(folder), validation_fraction=0.25, cache_dir=cache_dir)
    assert_is_pairs(splits)
    assert splits["train"].column_names == ["image", "caption", "key", "flaws"]
    assert (len(splits["train"]), len(splits["validation"])) == (15, 5)
    rows = [row for split in splits.values() for row in split]
    assert {row["image"]["path"]: row["caption"] for row in rows} == {
        str(folder / f"{i}.png"): [caption] for i, caption in enumerate(captions)
    }
    again = load_pairs(train_data_dir=str(folder), validation_fraction=0.25, cache_dir=cache_dir)
    assert again["train"][:] == splits["train"][:]
    other = load_pairs(train_data_dir=str(folder), validation_fraction=0.25, cache_dir=cache_dir, seed=1)
    assert other["validation"][:] != splits["validation"][:]


def test_a_validation_folder_is_the_validation_split(tmp_path, cache_dir):
    write_image_folder(tmp_path / "pictures" / "train", ["a", "b", "c"])
    write_image_folder(tmp_path / "pictures" / "validation", ["d", "e"])
    splits = load_pairs(train_data_dir=str(tmp_path / "pictures"), cache_dir=cache_dir)
    assert splits["train"]["caption"][:] == [["a"], ["b"], ["c"]]
    assert splits["validation"]["caption"][:] == [["d"], ["e"]]


def test_a_picture_that_does_not_decode_is_no_error_here(tmp_path, cache_dir):
    folder = write_image_folder(tmp_path / "pictures", ["a", "b", "c", "d"])
    (folder / "1.png").write_bytes(b"garbage")
    splits = load_pairs(train_data_dir=str(folder), cache_dir=cache_dir)
    assert len(splits["train"]) + len(splits["validation"]) == 4


def test_missing_and_blank_captions_become_empty_lists(tmp_path, cache_dir):
    captions = {"caption": [["one", "two"], None, ["", " three "], [None], []]}
    features = Features({"image": Image(), "caption": List(Value("string"))})
    name = write_parquet(tmp_path / "set", {"image": [{"bytes": png(), "path": None}] * 5, **captions}, features)
    splits = load_pairs(name, cache_dir=cache_dir, validation_fraction=0.2)
    assert_is_pairs(splits)
    found = splits["train"]["caption"][:] + splits["validation"]["caption"][:]
    assert sorted(found) == [[], [], [], ["one", "two"], ["three"]]


@pytest.mark.parametrize(
    "features",
    [
        {"jpg": Image(), "txt": Value("string")},
        {"img": Value("binary"), "prompt": Value("large_string")},
        {"image": Value("string"), "text": Value("string")},
        {"picture": {"bytes": Value("binary"), "path": Value("string")}, "captions": List(Value("string"))},
    ],
    ids=["webdataset names", "bytes", "paths", "bytes and path"],
)
def test_columns_of_usual_names_and_kinds_are_found(tmp_path, cache_dir, features):
    (image_column, image_feature), (caption_column, caption_feature) = features.items()
    picture = {"bytes": png(), "path": None}
    image = {"binary": png(), "string": "a.png"}[image_feature.dtype] if type(image_feature) is Value else picture
    caption = ["words"] if isinstance(caption_feature, List) else "words"
    columns = {image_column: [image] * 4, caption_column: [caption] * 4}
    splits = load_pairs(write_parquet(tmp_path / "set", columns, Features(features)), cache_dir=cache_dir)
    assert_is_pairs(splits)
    expected = {"bytes": None, "path": "a.png"} if image == "a.png" else picture
    assert splits["train"].select_columns(["image", "caption"])[0] == {"image": expected, "caption": ["words"]}


def test_named_columns_are_taken_over_the_usual_ones(tmp_path, cache_dir):
    red, blue = ({"bytes": png(color), "path": None} for color in ((255, 0, 0), (0, 0, 255)))
    columns = {"image": [red] * 3, "other image": [blue] * 3, "text": ["no"] * 3, "label": ["yes"] * 3}
    features = Features({"image": Image(), "other image": Image(), "text": Value("string"), "label": Value("string")})
    name = write_parquet(tmp_path / "set", columns, features)
    splits = load_pairs(name, image_column="other image", caption_column="label", cache_dir=cache_dir)
    assert splits["train"].select_columns(["image", "caption"])[0] == {"image": blue, "caption": ["yes"]}


def test_training_can_be_cut_to_a_number_of_pairs(tmp_path, cache_dir):
    folder = str(write_image_folder(tmp_path / "pictures", [f"caption {i}" for i in range(20)]))
    everything = load_pairs(train_data_dir=folder, cache_dir=cache_dir)
    some = load_pairs(train_data_dir=folder, cache_dir=cache_dir, max_train_samples=5)
    assert len(some["train"]) == 5
    assert some["validation"][:] == everything["validation"][:]
    assert all(row in everything["train"]["caption"][:] for row in some["train"]["caption"])
    more = load_pairs(train_data_dir=folder, cache_dir=cache_dir, max_train_samples=1000)
    assert more["train"][:] == everything["train"][:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_column": "photo"},
            "`image_column` 'photo' is not in the data set; its columns are .'image', 'words'",
        ),
        (
            {"caption_column": "texts"},
            "`caption_column` 'texts' is not in the data set; its columns are .'image', 'words'",
        ),
        ({}, "none of .'caption'.* is among the columns .'image', 'words'"),
        ({"caption_column": "image"}, "'image' must hold a `str` or a list of `str`, or labels, got Image"),
    ],
)
def test_a_wrong_column_error_lists_what_is_there(tmp_path, cache_dir, arguments, message):
    folder = write_image_folder(tmp_path / "pictures", ["a", "b"], column="words")
    with pytest.raises(ValueError, match=message):
        load_pairs(train_data_dir=str(folder), cache_dir=cache_dir, **arguments)


def test_a_built_in_set_refuses_a_wrong_column_as_well():
    with pytest.raises(
        ValueError, match="'texts' is not in the data set; its columns are .'image', 'caption', 'scene'"
    ):
        load_pairs("shapes", caption_column="texts", num_train_rows=2)


def test_columns_of_the_wrong_kind_are_named(tmp_path, cache_dir):
    features = Features({"image": Value("int64"), "text": Value("float64"), "jpg": Image()})
    columns = {"image": [1, 2], "text": [0.5, 1.5], "jpg": [{"bytes": png(), "path": None}] * 2}
    name = write_parquet(tmp_path / "set", columns, features)
    with pytest.raises(ValueError, match="'image' must hold pictures, got Value.*int64"):
        load_pairs(name, cache_dir=cache_dir)
    with pytest.raises(ValueError, match="'text' must hold a `str` or a list of `str`, or labels, got Value.*float64"):
        load_pairs(name, image_column="jpg", cache_dir=cache_dir)


def test_an_empty_set_is_refused(tmp_path, cache_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="from '.*empty': .* doesn't contain any data files.*metadata.csv"):
        load_pairs(train_data_dir=str(tmp_path / "empty"), cache_dir=cache_dir)
    with pytest.raises(ValueError, match="from '.*absent': there is no such folder in "):
        load_pairs(train_data_dir=str(tmp_path / "absent"), cache_dir=cache_dir)
    features = Features({"image": Image(), "text": Value("string")})
    with pytest.raises(ValueError, match="from '.*no rows': .*no data"):
        load_pairs(write_parquet(tmp_path / "no rows", {"image": [], "text": []}, features), cache_dir=cache_dir)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        load_pairs(train_data_dir=str(write_image_folder(tmp_path / "one", ["alone"])), cache_dir=cache_dir)


def test_a_set_without_a_train_split_is_refused(tmp_path, cache_dir):
    write_image_folder(tmp_path / "pictures" / "test", ["a", "b"])
    with pytest.raises(ValueError, match="no split `train`; its splits are .'test'"):
        load_pairs(train_data_dir=str(tmp_path / "pictures"), cache_dir=cache_dir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give a `dataset_name`"),
        (
            {"dataset_name": "shapes", "dataset_config_name": "three_objects"},
            "'one_object', 'two_objects'.*three_objects",
        ),
        (
            {"dataset_name": "shapes", "validation_fraction": 0.0},
            "`validation_fraction` must lie between 0 and 1, got 0.0",
        ),
        ({"dataset_name": "shapes", "max_train_samples": 0}, "`max_train_samples` must be at least 1, got 0"),
        ({"dataset_name": "emoji", "dataset_config_name": "klingon"}, "klingon"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(**arguments)


def test_an_ignored_setting_warns(tmp_path, cache_dir):
    folder = write_image_folder(tmp_path / "pictures", ["a", "b"])
    with pytest.warns(UserWarning, match="`num_train_rows` is for shapes"):
        load_pairs(train_data_dir=str(folder), num_train_rows=5, cache_dir=cache_dir)
    with pytest.warns(UserWarning, match="'shapes' is built in; the `train_data_dir` .* is ignored"):
        load_pairs("shapes", train_data_dir=str(folder), num_train_rows=5)

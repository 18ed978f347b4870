# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Every form in which people have pairs gives the same pairs, streamed or not, whatever else stands in it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from pair_files import FORMS, draw_pixels, encode, write_folder, write_tar, write_tars

from hf_vqdit.data.columns import MAX_CAPTION_CHARACTERS
from hf_vqdit.data.pairs import load_pairs
from hf_vqdit.data.pictures import has_picture, open_picture

PICTURES = [encode(draw_pixels(i, 8, 8)) for i in range(8)]

both_ways = pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])


@pytest.fixture
def read(tmp_path):
    """All pairs of a source, held out or not: (the picture's size or `None`, captions, kinds of flaws) in order."""

    def read(streaming: bool, **source) -> list[tuple]:
        settings = {"num_held_out_samples": 1, "validation_fraction": 0.01, "cache_dir": str(tmp_path / "cache")}
        splits = load_pairs(streaming=streaming, **settings, **source)
        rows = sorted((row for split in splits.values() for row in split), key=lambda row: _natural(row["key"]))
        return [
            (
                open_picture(row["image"]).size if has_picture(row["image"]) else None,
                row["caption"],
                [flaw.split(": ")[0] for flaw in row["flaws"]],
            )
            for row in rows
        ]

    return read


def _natural(key: str) -> list[int]:
    return [int(digits) for digits in "".join(c if c.isdigit() else " " for c in key.rsplit("/")[-1]).split()]


# The same pairs in every form


@both_ways
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs_and_tells_what_is_missing(form, streaming, read, tmp_path):
    captions = [b"one", "zwei, drei — 四".encode(), None, b"  ", b"NA", b"007", b"only text", b"eight"]
    pictures = [*PICTURES[:6], None, PICTURES[7]]
    source = FORMS[form](tmp_path / "pairs", list(zip(pictures, captions, strict=True)))
    expected = [["one"], ["zwei, drei — 四"], [], [], ["NA"], ["007"], ["only text"], ["eight"]]
    sizes = [(8, 8)] * 6 + [None, (8, 8)]
    assert read(streaming, **source) == [(size, text, []) for size, text in zip(sizes, expected, strict=True)]


@both_ways
@pytest.mark.parametrize("form", FORMS)
def test_text_that_is_not_utf8_costs_its_own_caption_alone(form, streaming, read, tmp_path):
    captions = [b"one", "café".encode("latin-1"), b"three", "\ufeffé".encode() if form == "tars" else "é".encode()]
    source = FORMS[form](tmp_path / "pairs", list(zip(PICTURES, captions, strict=False)))
    found = read(streaming, **source)
    assert [(text, flaws) for _, text, flaws in found] == [
        (["one"], []),
        ([], ["caption_not_utf8"]),
        (["three"], []),
        (["é"], []),
    ]


@both_ways
@pytest.mark.parametrize("form", FORMS)
def test_an_enormous_caption_is_cut_and_told(form, streaming, read, tmp_path):
    captions = [b"one", b"a" * 300_000, b"three"]
    source = FORMS[form](tmp_path / "pairs", list(zip(PICTURES, captions, strict=False)))
    _, (_, (long,), flaws), _ = read(streaming, **source)
    assert (len(long), flaws) == (MAX_CAPTION_CHARACTERS, ["caption_enormous"])


@both_ways
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_no_picture_is_no_error_before_it_is_read(form, streaming, tmp_path):
    pictures = [*PICTURES[:3], b"garbage", b"", PICTURES[5][:20]]
    source = FORMS[form](tmp_path / "pairs", [(picture, b"words") for picture in pictures])
    splits = load_pairs(streaming=streaming, num_held_out_samples=1, cache_dir=str(tmp_path / "cache"), **source)
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == 6 and all(row["caption"] == ["words"] for row in rows)


# Several captions, and captions that are no text


@both_ways
def test_json_beside_a_picture_holds_one_caption_or_several_or_something_else(streaming, read, tmp_path):
    values = ["one", ["two", None, "  drei "], 4, {"a": 1}, None, "\ud83d", ["six", 7], "x"]
    objects = [json.dumps({"width": 8, "caption": value}).encode() for value in values]
    objects[-1] = b"{no json"
    expected = [
        (["one"], []),
        (["two", "drei"], []),
        ([], ["caption_not_text"]),
        ([], ["caption_not_text"]),
        ([], []),
        ([], ["caption_not_utf8"]),
        (["six"], ["caption_not_text"]),
        ([], ["caption_not_text"]),
    ]
    tars = write_tars(tmp_path / "tars", list(zip(PICTURES, objects, strict=True)), caption_file="json")
    assert [pair[1:] for pair in read(streaming, **tars)] == expected
    assert [pair[1:] for pair in read(streaming, caption_column="caption", **tars)] == expected

    folder = tmp_path / "folder"
    write_folder(folder, [(picture, None) for picture in PICTURES], "jsonl")
    lines = [b'{"file_name": "%d.png", %s' % (i, line[1:]) for i, line in enumerate(objects)]
    (folder / "metadata.jsonl").write_bytes(b"\n\n".join(lines))
    found = read(streaming, train_data_dir=str(folder))
    assert [pair[1:] for pair in found] == expected
    assert [size for size, _, _ in found] == [(8, 8)] * 7 + [None]  # nobody knows which picture the last line meant


@both_ways
def test_the_members_of_json_can_be_named_and_are_listed_where_none_is_usual(streaming, tmp_path, read):
    objects = [json.dumps({"alt": f"words {i}", "url": "x"}).encode() for i in range(4)]
    source = write_tars(tmp_path / "tars", list(zip(PICTURES, objects, strict=False)), caption_file="json")
    assert read(streaming, caption_column="alt", **source)[2][1] == ["words 2"]
    with pytest.raises(
        ValueError, match=r"'alto' is not in the data set; .* the members of its JSON \['alt', 'url'\]"
    ):
        read(streaming, caption_column="alto", **source)


# Tars


@both_ways
def test_samples_of_a_tar_need_not_be_made_of_the_same_files(streaming, read, tmp_path):
    samples = {
        "0": {"JPG": encode(draw_pixels(0, 8, 8), "JPEG"), "txt": b"zero"},
        "1": {"png": PICTURES[1], "txt": b"one"},
        "2": {"txt": b"two"},
        "3": {"jpg": PICTURES[3]},
        "4": {"npy": b"something else", "png": PICTURES[4], "txt": b"four"},
        **{str(i): {"jpg": PICTURES[0], "txt": b"more"} for i in range(5, 110)},
        "110": {"unseen": b"after the samples that tell the columns", "jpg": PICTURES[0], "txt": b"last"},
    }
    write_tar(tmp_path / "mixed.tar", samples)
    found = read(streaming, dataset_name=str(tmp_path / "mixed.tar"))
    assert found[:5] == [
        ((8, 8), ["zero"], []),
        ((8, 8), ["one"], []),
        (None, ["two"], []),
        ((8, 8), [], []),
        found[4],
    ]
    assert found[4] == ((8, 8), ["four"], []) and found[-1] == ((8, 8), ["last"], []) and len(found) == 111


@both_ways
def test_names_in_a_tar_need_not_be_utf8(streaming, read, tmp_path):
    file = tmp_path / "names.tar"
    write_tar(file, {"caf_ 1": {"png": PICTURES[0], "txt": b"one"}, "2": {"png": PICTURES[1], "t_t": b"two"}})
    content = file.read_bytes()
    file.write_bytes(_with_checksums(content.replace(b"caf_ 1", b"caf\xe9 1").replace(b"2.t_t", b"2.t\xe9t")))
    assert [pair[1] for pair in read(streaming, dataset_name=str(file))] == [["one"], []]


def _with_checksums(tar: bytes) -> bytes:
    """A tar whose headers, after a change, have right checksums again: the sum of their bytes, its place blank."""
    blocks = [bytearray(tar[start : start + 512]) for start in range(0, len(tar), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


@both_ways
def test_what_is_missing_of_a_tar_is_one_bad_record_and_the_next_tar_is_read(streaming, tmp_path):
    source = write_tars(tmp_path / "tars", [(picture, b"words") for picture in PICTURES])
    whole = (tmp_path / "tars" / "00000.tar").read_bytes()
    (tmp_path / "tars" / "00000.tar").write_bytes(whole[: whole.index(b"sample2.png") + 600])
    splits = load_pairs(streaming=streaming, num_held_out_samples=1, cache_dir=str(tmp_path / "cache"), **source)
    rows = {row["key"].removeprefix(str(tmp_path)): row["flaws"] for split in splits.values() for row in split}
    damaged = rows.pop("/tars/00000.tar/after sample1")
    assert len(damaged) == 1 and damaged[0].startswith("archive_damaged: ReadError: ")
    expected = [f"/tars/0000{i // 4}.tar/sample{i}" for i in (0, 1, 4, 5, 6, 7)]
    assert sorted(rows) == expected and not any(rows.values())


@both_ways
def test_classes_of_tars_become_captions_by_a_file_of_names(streaming, read, tmp_path):
    labels = [b"0", b"1", b" 2\n", b"-1", b"3", b"cat"]
    source = write_tars(tmp_path / "tars", list(zip(PICTURES, labels, strict=False)), caption_file="cls")
    (tmp_path / "names.txt").write_text("tabby_cat\ndog\n\npolar_bear\n")
    found = read(streaming, label_names_file=str(tmp_path / "names.txt"), **source)
    assert [pair[1:] for pair in found] == [
        (["a photo of a tabby cat"], []),
        (["a photo of a dog"], []),
        (["a photo of a polar bear"], []),
        ([], []),
        ([], ["label_unknown"]),
        ([], ["caption_not_text"]),
    ]
    with pytest.raises(ValueError, match="'cls' are numbers without names. Give `label_names_file`.*`caption_column`"):
        read(streaming, **source)
    numbered = read(streaming, caption_column="cls", caption_template="class {label}", **source)
    assert [pair[1] for pair in numbered[:3]] == [["class 0"], ["class 1"], ["class 2"]]


# Labels


def write_cifar10(folder):
    """`uoft-cs/cifar10` as the Hub has it, with other pictures."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "plain_text").mkdir(parents=True)
    features = Features({"img": Image(), "label": ClassLabel(names=names)})
    for split, labels in {"train": range(10), "test": (9, 8)}.items():
        pictures = [{"bytes": encode(draw_pixels(label, 32, 32)), "path": None} for label in labels]
        columns = {"img": pictures, "label": [*labels]}
        file = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        Dataset.from_dict(columns, features=features).to_parquet(file)
    listed = "".join(f"          '{i}': {name}\n" for i, name in enumerate(names))
    (folder / "README.md").write_text(
        "---\n"
        "dataset_info:\n"
        "  config_name: plain_text\n"
        "  features:\n"
        "  - name: img\n"
        "    dtype: image\n"
        "  - name: label\n"
        "    dtype:\n"
        "      class_label:\n"
        f"        names:\n{listed}"
        "  splits:\n"
        "  - name: train\n"
        "    num_examples: 10\n"
        "  - name: test\n"
        "    num_examples: 2\n"
        "configs:\n"
        "- config_name: plain_text\n"
        "  data_files:\n"
        "  - split: train\n"
        "    path: plain_text/train-*\n"
        "  - split: test\n"
        "    path: plain_text/test-*\n"
        "  default: true\n"
        "---\n"
    )


@both_ways
@pytest.mark.parametrize("config_name", [None, "plain_text"])
def test_cifar10_works_by_its_name(streaming, config_name, tmp_path, monkeypatch):
    write_cifar10(tmp_path / "uoft-cs" / "cifar10")
    monkeypatch.chdir(tmp_path)
    splits = load_pairs(
        "uoft-cs/cifar10", config_name, validation_split="test", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    assert [row["caption"] for row in splits["train"]][:2] == [["a photo of a airplane"], ["a photo of a automobile"]]
    assert [row["caption"] for row in splits["validation"]] == [["a photo of a truck"], ["a photo of a ship"]]
    assert open_picture(next(iter(splits["train"]))["image"]).size == (32, 32)


@both_ways
def test_folders_named_after_labels_become_captions(streaming, read, tmp_path):
    for i, name in enumerate(("red_fox", "owl", "owl")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(PICTURES[i])
    found = read(streaming, train_data_dir=str(tmp_path / "pictures"), caption_template="{label}, a drawing")
    assert sorted(text for _, (text,), _ in found) == ["owl, a drawing", "owl, a drawing", "red fox, a drawing"]


def write_labels(tmp_path, form: str, name: str, labels: list) -> dict[str, str]:
    """Pairs whose captions are in a column, or a member of JSON, of this name."""
    folder = tmp_path / "pairs"
    if form == "parquet":
        folder.mkdir()
        columns = {"image": [{"bytes": picture, "path": None} for picture in PICTURES[: len(labels)]], name: labels}
        pq.write_table(pa.table(columns), folder / "train.parquet")
        return {"dataset_name": str(folder)}
    if form == "tars":
        objects = [json.dumps({name: label}).encode() for label in labels]
        return write_tars(folder, list(zip(PICTURES, objects, strict=False)), caption_file="json")
    metadata = form.removeprefix("folder with ")
    write_folder(folder, [(picture, None) for picture in PICTURES[: len(labels)]], metadata)
    file = folder / f"metadata.{metadata}"
    names = [f"{i}.png" for i in range(len(labels))]
    if metadata == "parquet":
        pq.write_table(pa.table({"file_name": names, name: labels}), file)
    elif metadata == "csv":
        lines = [f"{picture},{label or ''}" for picture, label in zip(names, labels, strict=True)]
        file.write_text("\n".join([f"file_name,{name}", *lines]))
    else:
        rows = [{"file_name": picture, name: label} for picture, label in zip(names, labels, strict=True)]
        file.write_text("\n".join(map(json.dumps, rows)))
    return {"train_data_dir": str(folder)}


@both_ways
@pytest.mark.parametrize("name", ["label", "cls"])
@pytest.mark.parametrize("form", FORMS)
def test_text_in_a_column_of_labels_is_their_names_unless_it_is_named(form, name, streaming, read, tmp_path):
    source = write_labels(tmp_path, form, name, ["tabby_cat", "dog", None, "7"])
    found = read(streaming, **source)
    expected = [["a photo of a tabby cat"], ["a photo of a dog"], [], ["a photo of a 7"]]
    assert [pair[1:] for pair in found] == [(captions, []) for captions in expected]
    found = read(streaming, caption_template="{label}, drawn", **source)
    assert [pair[1] for pair in found[:2]] == [["tabby cat, drawn"], ["dog, drawn"]]
    named = read(streaming, caption_column=name, **source)
    assert [pair[1:] for pair in named] == [(captions, []) for captions in (["tabby_cat"], ["dog"], [], ["7"])]


@both_ways
@pytest.mark.parametrize("form", ["parquet", "folder with parquet", "folder with jsonl", "tars"])
def test_numbers_in_a_column_of_labels_become_captions_by_a_file_of_names(form, streaming, read, tmp_path):
    source = write_labels(tmp_path, form, "label", [1, 0, None, 2, -1])
    (tmp_path / "names.txt").write_text("tabby_cat\ndog\n")
    found = read(streaming, label_names_file=str(tmp_path / "names.txt"), **source)
    expected = [["a photo of a dog"], ["a photo of a tabby cat"], [], [], []]
    assert [pair[1] for pair in found] == expected
    assert [pair[2] for pair in found] == [[], [], [], ["label_unknown"], []]


@both_ways
def test_labels_in_json_are_numbers_or_names(streaming, read, tmp_path):
    source = write_labels(tmp_path, "tars", "label", [1, "owl", 0.5, [0, "fox"]])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    found = read(streaming, label_names_file=str(tmp_path / "names.txt"), caption_template="{label}!", **source)
    assert [pair[1:] for pair in found] == [
        (["dog!"], []),
        (["owl!"], []),
        ([], ["caption_not_text"]),
        (["cat!", "fox!"], []),
    ]
    found = read(streaming, caption_template="{label}!", **source)
    assert [pair[1:] for pair in found[:2]] == [([], ["caption_not_text"]), (["owl!"], [])]


# Captions in parquet files that are no text


@both_ways
@pytest.mark.parametrize("form", ["parquet", "folder with parquet"])
def test_a_column_of_numbers_is_no_column_of_captions_unless_it_is_named(form, streaming, read, tmp_path):
    source = write_labels(tmp_path, form, "text", [4, None, 5])
    with pytest.raises(ValueError, match="captions in the column 'text' are numbers.*another `caption_column`, or"):
        read(streaming, **source)
    named = read(streaming, caption_column="text", caption_template="number {label}", **source)
    assert [pair[1:] for pair in named] == [(["number 4"], []), ([], []), (["number 5"], [])]


@both_ways
@pytest.mark.parametrize("form", ["parquet", "folder with parquet"])
@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (pa.nulls(3), [[], [], []]),
        (pa.array([["one", None, "two"], None, []]), [["one", "two"], [], []]),
        (pa.array([["one"], None, ["two"]], pa.large_list(pa.large_string())), [["one"], [], ["two"]]),
        (pa.array([["one", "two"]] * 3, pa.list_(pa.string(), 2)), [["one", "two"]] * 3),
        (pa.array(["one", None, "two"], pa.string_view()), [["one"], [], ["two"]]),
        (pa.array(["one", None, "one"]).dictionary_encode(), [["one"], [], ["one"]]),
    ],
    ids=["nothing", "lists", "large lists", "lists of one length", "views", "a dictionary"],
)
def test_every_type_of_text_in_parquet_is_read(form, captions, expected, streaming, read, tmp_path):
    found = read(streaming, **write_labels(tmp_path, form, "text", captions))
    assert [pair[1:] for pair in found] == [(each, []) for each in expected]


@both_ways
@pytest.mark.parametrize("form", ["parquet", "folder with parquet"])
@pytest.mark.parametrize("captions", [[[1], [2], [3]], [0.5, 1.5, 2.5], [{"a": "b"}] * 3], ids=str)
def test_a_column_of_something_else_than_text_is_refused_by_its_type(form, captions, streaming, read, tmp_path):
    with pytest.raises(ValueError, match="'text' must hold a `str` or a list of `str`, or labels, got .*Name another"):
        read(streaming, **write_labels(tmp_path, form, "text", captions))


# Splits


def write_splits(tmp_path) -> str:
    folder = tmp_path / "pairs"
    for split, captions in {"train": "abcdef", "test": "gh", "extra": "ij"}.items():
        pairs = [(picture, caption.encode()) for picture, caption in zip(PICTURES, captions, strict=False)]
        write_folder(folder / split, pairs)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  drop_labels: true\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {split}/*\n" for split in ("train", "test", "extra"))
        + "---\n"
    )
    return str(folder)


def captions_of(splits, name: str) -> str:
    return "".join(row["caption"][0] for row in splits[name])


@both_ways
def test_splits_are_found_by_their_names(streaming, tmp_path):
    where = {"dataset_name": write_splits(tmp_path), "cache_dir": str(tmp_path / "cache"), "streaming": streaming}
    named = load_pairs(train_split="train+extra", validation_split="test", **where)
    assert (captions_of(named, "train"), captions_of(named, "validation")) == ("abcdefij", "gh")
    alone = load_pairs(train_split="extra", num_held_out_samples=1, **where)
    assert sorted(captions_of(alone, "train") + captions_of(alone, "validation")) == ["i", "j"]
    for name in ("train_split", "validation_split"):
        with pytest.raises(ValueError, match=r"no split `dev`; its splits are \['train', 'test', 'extra'\]"):
            load_pairs(**{name: "dev"}, **where)
    with pytest.raises(ValueError, match="`train_split` and `validation_split` are both 'train'"):
        load_pairs(validation_split="train", **where)


def test_a_part_of_a_split_can_be_held_out_unless_streaming(tmp_path):
    where = {"dataset_name": write_splits(tmp_path), "cache_dir": str(tmp_path / "cache")}
    splits = load_pairs(train_split="train[:4]", validation_split="train[4:]", **where)
    assert (captions_of(splits, "train"), captions_of(splits, "validation")) == ("abcd", "ef")
    with pytest.raises(ValueError, match=r"no split `train\[:4\]`"):
        load_pairs(train_split="train[:4]", streaming=True, **where)


# Mistakes


def test_names_of_labels_that_no_caption_needs_are_told(read, tmp_path):
    source = write_folder(tmp_path / "pairs", [(picture, b"words") for picture in PICTURES[:3]])
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.warns(UserWarning, match="captions are those of 'text'; `label_names_file` is ignored"):
        read(False, label_names_file=str(tmp_path / "names.txt"), **source)


@pytest.mark.parametrize("template", ["a photo", "a {name}", "{label} {0}", "{label"])
def test_a_template_without_a_place_for_the_label_is_refused(template):
    with pytest.raises(ValueError, match="`caption_template` must hold the label as `{label}`"):
        load_pairs("shapes", caption_template=template)


@both_ways
def test_a_metadata_file_with_a_stray_comma_is_refused_by_its_line(streaming, tmp_path):
    source = write_folder(tmp_path / "pairs", [(picture, b"words") for picture in PICTURES[:3]])
    (tmp_path / "pairs" / "metadata.csv").write_text("file_name,text\n0.png,a cat\n1.png,a cat, sleeping\n")
    with pytest.raises(ValueError, match="No pairs can be loaded from '.*pairs': .*in line 3, saw 3. .*in quotes"):
        load_pairs(streaming=streaming, cache_dir=str(tmp_path / "cache"), num_held_out_samples=1, **source)


def test_a_source_whose_columns_are_not_known_beforehand_is_not_streamed(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,text\n" + "a.png,words\n" * 4)
    with pytest.raises(ValueError, match="not known before it is read whole.*Leave `streaming` out"):
        load_pairs(str(tmp_path), streaming=True)


def test_a_place_where_nothing_is_is_refused(tmp_path):
    for name in ("nowhere", "nowhere/*.tar", "nowhere.parquet"):
        with pytest.raises(ValueError, match=f"No pairs can be loaded from '.*{name.replace('*', '.')}"):
            load_pairs(train_data_dir=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))

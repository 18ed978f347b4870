# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The caption tokenizer: texts come back letter for letter, special tokens are what the borders say."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_vqdit.data.captions import encode_captions, load_caption_tokenizer, train_caption_tokenizer
from hf_vqdit.data.shapes import SCENE_TYPES, TEMPLATES, all_scenes, describe


def shapes_captions(num_objects: int) -> list[str]:
    templates = range(len(TEMPLATES[SCENE_TYPES[num_objects]]))
    return [
        describe(scene, k) for scene in all_scenes(num_objects)[:: 1 if num_objects == 1 else 7] for k in templates
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(shapes_captions(1), vocab_size=512, model_max_length=16)


def byte_tokenizer(**special_tokens) -> PreTrainedTokenizerFast:
    """An untrained byte-level tokenizer as somebody might bring it."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **special_tokens)


@pytest.mark.parametrize(("num_objects", "longest"), [(1, 15), (2, 24)])
def test_every_word_of_the_shapes_becomes_one_token(num_objects, longest):
    captions = shapes_captions(num_objects)
    tokenizer = train_caption_tokenizer(captions, vocab_size=512, model_max_length=longest)
    _, truncated = encode_captions(tokenizer, captions[::7], return_truncated=True)
    assert not truncated.any()
    for caption in captions[::101]:
        assert len(tokenizer.tokenize(caption)) == len(caption.replace(",", " ,").split())


@pytest.mark.parametrize(
    "text", ["a red circle", "红心", "naïve  café\n\t", "👩🏽‍🚀 in space", " leading", "trailing ", "don't"]
)
def test_any_text_comes_back_letter_for_letter(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_the_first_three_ids(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (0, 1, 2)


@pytest.mark.parametrize(
    ("masked", "pieces"),
    [
        ("a [MASK] circle", ["a", "[MASK]", " circle"]),
        ("[MASK] small circle", ["[MASK]", " small circle"]),
        ("a [MASK] [MASK] circle", ["a", "[MASK]", "[MASK]", " circle"]),
        ("a small [MASK]", ["a small", "[MASK]"]),
    ],
)
def test_a_mask_is_one_token_without_a_stray_blank(tokenizer, masked, pieces):
    expected = [i for piece in pieces for i in tokenizer(piece).input_ids]
    assert tokenizer(masked).input_ids == expected
    assert expected.count(tokenizer.mask_token_id) == masked.count("[MASK]")


def test_captions_are_words_then_eos_then_padding(tokenizer):
    captions = ["a small red circle", "", "a"]
    input_ids, truncated = encode_captions(tokenizer, captions, return_truncated=True)
    assert input_ids.shape == (3, 16)
    assert input_ids.dtype == torch.int64
    for row, caption in zip(input_ids.tolist(), captions, strict=True):
        words = tokenizer(caption).input_ids
        assert row == words + [1] + [0] * (15 - len(words))
    assert truncated.tolist() == [False, False, False]
    assert torch.equal(encode_captions(tokenizer, captions), input_ids)


@pytest.mark.parametrize("num_words", [14, 15, 16, 40])
def test_only_captions_beyond_the_context_are_truncated(tokenizer, num_words):
    caption = "a" + " circle" * (num_words - 1)
    assert len(tokenizer(caption).input_ids) == num_words
    input_ids, truncated = encode_captions(tokenizer, [caption], return_truncated=True)
    assert truncated.item() == (num_words > 15)
    kept = min(num_words, 15)
    assert input_ids[0, :kept].tolist() == tokenizer(caption).input_ids[:kept]
    assert input_ids[0, kept] == tokenizer.eos_token_id


def test_the_name_of_a_special_token_in_a_caption_is_ordinary_text(tokenizer):
    (row,) = encode_captions(tokenizer, ["a [MASK]"]).tolist()
    assert tokenizer.mask_token_id not in row
    assert tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]) == "a [MASK]"
    assert tokenizer.mask_token_id in tokenizer("a [MASK]").input_ids  # a prompt still has its mask


@pytest.mark.parametrize("subfolder", ["", "tokenizer"])
def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path, subfolder):
    tokenizer.save_pretrained(tmp_path / subfolder)
    loaded = load_caption_tokenizer(tmp_path, subfolder=subfolder)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 16
    for text in ("a [MASK] circle", "红心 in the middle", "a small red circle at the top left"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert load_caption_tokenizer(tmp_path, model_max_length=32, subfolder=subfolder).model_max_length == 32


def test_a_tokenizer_gets_the_special_tokens_that_it_lacks(tmp_path):
    byte_tokenizer(eos_token="<end>").save_pretrained(tmp_path)
    loaded = load_caption_tokenizer(tmp_path, model_max_length=8)
    assert loaded.eos_token == "<end>"
    assert len({loaded.pad_token_id, loaded.eos_token_id, loaded.mask_token_id}) == 3
    assert loaded.convert_ids_to_tokens(loaded("a [MASK]b").input_ids) == ["a", "[MASK]", "b"]
    assert encode_captions(loaded, ["ab"]).tolist()[0][2:4] == [loaded.eos_token_id, loaded.pad_token_id]


@pytest.mark.parametrize(
    ("special_tokens", "model_max_length", "message"),
    [
        ({}, None, "Give a `model_max_length`"),
        ({"pad_token": "<end>", "eos_token": "<end>"}, 8, "three tokens"),
        ({"mask_token": AddedToken("<mask>", lstrip=False)}, 8, "lstrip=True"),
    ],
)
def test_a_tokenizer_that_would_break_captions_is_refused(tmp_path, special_tokens, model_max_length, message):
    byte_tokenizer(**special_tokens).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_caption_tokenizer(tmp_path, model_max_length)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="'runs/mine/vqvae' is neither a folder nor a name on the Hub"):
        load_caption_tokenizer("runs/mine/vqvae", subfolder="tokenizer")
    with pytest.raises(ValueError, match="neither a folder"):
        load_caption_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    ("captions", "vocab_size", "context", "message"),
    [
        (["a"], 258, 16, "at least 259 .* got 258"),
        (["a"], 300, 1, "at least 2 .* got 1"),
        ([], 300, 16, "no captions"),
    ],
)
def test_a_tokenizer_cannot_be_trained_from_nothing(captions, vocab_size, context, message):
    with pytest.raises(ValueError, match=message):
        train_caption_tokenizer(captions, vocab_size, context)

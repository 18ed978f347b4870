# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from hf_vqdit.data import encode_captions, load_pairs, shapes_dataset, train_caption_tokenizer
from hf_vqdit.data.shapes import all_scenes, describe, is_held_out, parse
from hf_vqdit.evaluation.sampling import (
    FACT_WORDS,
    answer_tasks,
    hide_half,
    make_tasks,
    mask_word,
    read_held_out,
    sample,
)

SHAPES = shapes_dataset("validation", num_objects=1, num_rows=24)
CAPTIONS = [describe(scene, index % 4) for n in (1, 2) for index, scene in enumerate(all_scenes(n)[::40])]


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(CAPTIONS, vocab_size=280, model_max_length=64)  # so that words take several


# Held-out pairs


def test_held_out_pairs_belong_together(tokenizer):
    pairs = read_held_out(SHAPES, tokenizer, resolution=32)
    assert len(pairs) == 24 and pairs.pixel_values.shape == (24, 3, 32, 32)
    assert [parse(caption) for caption in pairs.captions] == pairs.scenes
    assert all(map(is_held_out, pairs.scenes))
    assert torch.equal(pairs.input_ids, encode_captions(tokenizer, pairs.captions))
    assert pairs.first(5).captions == pairs.captions[:5]
    batches = list(pairs.batches(10, torch.device("cpu")))
    assert [len(batch["input_ids"]) for batch in batches] == [10, 10, 4]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), pairs.pixel_values)


def test_pairs_that_cannot_be_asked_for_are_left_out(tokenizer):
    good = SHAPES[0]["image"]
    rows = {
        "image": [good, {"bytes": b"no picture", "path": None}, good, good, good],
        "caption": [["a star", "a red star"], ["a circle"], ["word " * 100], [], ["a square"]],
    }
    features = Features({"image": Image(decode=False), "caption": List(Value("string"))})
    pairs = read_held_out(Dataset.from_dict(rows, features=features), tokenizer, resolution=16)
    assert sorted(pairs.references) == [["a square"], ["a star", "a red star"]]
    assert all(caption in own for caption, own in zip(pairs.captions, pairs.references, strict=True))
    assert torch.equal(pairs.input_ids, encode_captions(tokenizer, pairs.captions))
    assert pairs.scenes is None
    with pytest.raises(ValueError, match="None of the 2 pairs"):
        read_held_out(Dataset.from_dict(rows, features=features).select([1, 2]), tokenizer, resolution=16)


def test_the_first_pairs_stand_for_the_whole_set_whatever_its_order(tokenizer):
    ordered = SHAPES.map(lambda row, index: {"caption": [f"star {index}"]}, with_indices=True)
    numbers = [int(caption.split()[1]) for caption in read_held_out(ordered, tokenizer, resolution=32).captions]
    assert sorted(numbers) == list(range(24)) and numbers != sorted(numbers)
    few = read_held_out(ordered, tokenizer, resolution=32, max_pairs=6)
    assert few.captions == [f"star {number}" for number in numbers[:6]]
    other = read_held_out(ordered, tokenizer, resolution=32, max_pairs=6, seed=1)
    assert other.captions != few.captions


# What is hidden


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_the_four_halves_are_hidden_in_turn(size):
    masks = hide_half(torch.zeros(8, 3, *size))
    assert masks.shape == (8, 1, *size)
    left, right, top, bottom = masks[:4]
    for one, other in ((left, right), (top, bottom)):
        assert torch.equal(one + other, torch.ones(1, *size))
        assert one.sum() == other.sum()
    assert left[0, :, 0].all() and top[0, 0].all()
    assert torch.equal(masks[:4], masks[4:])


@pytest.mark.parametrize("words", [None, FACT_WORDS])
def test_each_token_of_the_hidden_word_is_a_mask_and_nothing_else_changes(tokenizer, words):
    generator = torch.Generator().manual_seed(0)
    for caption in CAPTIONS[::7]:
        prompt, index = mask_word(caption, tokenizer, generator, words)
        assert words is None or caption.split()[index] in words
        whole = tokenizer(caption, add_special_tokens=False).input_ids
        masked = tokenizer(prompt, add_special_tokens=False).input_ids
        hidden = [i for i, token in enumerate(masked) if token == tokenizer.mask_token_id]
        assert len(whole) == len(masked)
        assert all(whole[i] == masked[i] for i in range(len(whole)) if i not in hidden)
        assert tokenizer.decode([whole[i] for i in hidden]).strip() == caption.split()[index]


def test_every_word_that_tells_a_fact_is_hidden_sometimes(tokenizer):
    generator = torch.Generator().manual_seed(0)
    caption = "a small red star at the top left on a pink background"
    found = {caption.split()[mask_word(caption, tokenizer, generator, FACT_WORDS)[1]] for _ in range(100)}
    assert found == {"small", "red", "star", "top", "left", "pink"}


def test_a_caption_without_a_word_to_hide_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="no word to hide"):
        mask_word("a picture", tokenizer, torch.Generator(), FACT_WORDS)


# What a pipeline makes of it


def test_a_seed_gives_the_same_samples_and_another_one_others(tiny_pipeline):
    runs = [sample(tiny_pipeline, 5, seed, batch_size=3, num_inference_steps=2) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].pixel_values, runs[1].pixel_values) and runs[0].texts == runs[1].texts
    assert not torch.equal(runs[0].pixel_values, runs[2].pixel_values)
    assert runs[0].pixel_values.shape == (5, 3, 32, 32) and len(runs[0].texts) == 5
    assert runs[0].pixel_values.abs().max() <= 1


def test_every_direction_is_given_what_belongs_to_it(tiny_pipeline):
    pairs = read_held_out(SHAPES, tiny_pipeline.tokenizer, resolution=32).first(6)
    tasks = make_tasks(pairs, tiny_pipeline.tokenizer)
    answers = answer_tasks(tiny_pipeline, tasks, num_joint=3, seed=0, batch_size=4, num_inference_steps=2)
    assert answers.drawn.shape == answers.inpainted.shape == (6, 3, 32, 32)
    assert len(answers.written) == len(answers.filled) == 6
    assert len(answers.joint.texts) == len(answers.joint.pixel_values) == 3
    passes = {direction: cost.forward_passes for direction, cost in answers.costs.items()}
    assert passes == {"text_to_image": 2, "image_to_text": 2, "joint": 4}

    scheduler = tiny_pipeline.text_scheduler
    settings = {"num_joint": 3, "seed": 0, "batch_size": 4, "num_inference_steps": 2}
    colder = answer_tasks(tiny_pipeline, tasks, joint_text_temperature=0.01, **settings)
    assert colder.written == answers.written and colder.joint.texts != answers.joint.texts
    assert tiny_pipeline.text_scheduler is scheduler

    # The words that were given come back; only the hidden ones may differ.
    mask = tiny_pipeline.tokenizer.mask_token
    for prompt, filled in zip(tasks.fill_prompts, answers.filled, strict=True):
        before, after = prompt.split(mask)[0], prompt.split(mask)[-1]
        assert filled.startswith(before.rstrip()) and (not after or filled.endswith(after))

    # The hidden half is not looked at.
    elsewhere = torch.where(tasks.half_masks.bool(), -pairs.pixel_values, pairs.pixel_values)
    tasks = replace(tasks, pairs=replace(pairs, pixel_values=elsewhere))
    again = answer_tasks(tiny_pipeline, tasks, num_joint=3, seed=0, batch_size=4, num_inference_steps=2)
    assert torch.equal(again.inpainted, answers.inpainted)
    assert again.written != answers.written


def test_own_pairs_are_tasks_too(tmp_path):
    for index in range(8):
        SHAPES.cast_column("image", Image())[index]["image"].save(tmp_path / f"{index}.png")
    lines = ["file_name,text", *(f"{index}.png,picture number {index}" for index in range(8))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    split = load_pairs(train_data_dir=str(tmp_path), validation_fraction=0.5, cache_dir=str(tmp_path / "cache"))
    tokenizer = train_caption_tokenizer(["picture number"], vocab_size=300, model_max_length=16)
    pairs = read_held_out(split["validation"], tokenizer, resolution=32)
    tasks = make_tasks(pairs, tokenizer)
    assert len(tasks.fill_prompts) == 4 and pairs.scenes is None
    assert all(tokenizer.mask_token in prompt for prompt in tasks.fill_prompts)

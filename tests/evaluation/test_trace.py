# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The animation of a sample: what is known after each step is shown, what is not is hidden."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqdit.evaluation.trace import SamplingTrace, read_known


def run(pipeline, trace, **given):
    generator = torch.Generator().manual_seed(0)
    return pipeline(**given, num_inference_steps=4, generator=generator, callback_on_step_end=trace)


def test_recording_changes_nothing_and_holds_the_codes_of_every_step(tiny_pipeline):
    trace = SamplingTrace()
    output = run(tiny_pipeline, trace, output_type="latent")
    alone = run(tiny_pipeline, None, output_type="latent")
    assert torch.equal(output.images, alone.images) and torch.equal(output.texts, alone.texts)
    assert len(trace.steps) == tiny_pipeline.num_timesteps
    assert torch.equal(trace.steps[-1]["image_codes"], output.images)
    num_masks = [int((codes["image_codes"] == tiny_pipeline.transformer.image_mask_id).sum()) for codes in trace.steps]
    assert num_masks == sorted(num_masks, reverse=True) and num_masks[0] == 64 and num_masks[-1] == 0


def test_a_new_call_forgets_the_last_one(tiny_pipeline):
    trace = SamplingTrace()
    run(tiny_pipeline, trace)
    run(tiny_pipeline, trace, prompt="a red circle")
    assert len(trace.steps) == 4


def test_no_more_than_the_first_samples_are_remembered(tiny_pipeline):
    trace = SamplingTrace(num_samples=2)
    run(tiny_pipeline, trace, num_images_per_prompt=3)
    assert all(len(codes) == 2 for step in trace.steps for codes in step.values())


def test_unknown_codes_are_checkered_and_known_ones_are_the_picture(tiny_pipeline):
    trace = SamplingTrace()
    picture = run(tiny_pipeline, trace, prompt="a red circle").images[0]
    codes, last = trace.steps[1], trace.steps[-1]
    shown = np.asarray(trace._items(tiny_pipeline, codes, last)[0].pictures[0])
    is_hidden = (codes["image_codes"][0] == tiny_pipeline.transformer.image_mask_id).numpy()
    is_hidden = is_hidden.repeat(4, axis=0).repeat(4, axis=1)
    assert is_hidden.any() and not is_hidden.all()
    assert np.array_equal(shown[~is_hidden], np.asarray(picture)[~is_hidden])
    assert set(map(tuple, shown[is_hidden])) <= {(243, 244, 246), (209, 213, 219)}


def test_frames_are_of_one_size_and_the_animation_holds_them_all(tiny_pipeline, tmp_path):
    trace = SamplingTrace()
    run(tiny_pipeline, trace, num_images_per_prompt=2)
    frames = trace.draw(tiny_pipeline, picture_size=64)
    assert len({frame.size for frame in frames}) == 1 and len(frames) == len(trace.steps)
    trace.save(tiny_pipeline, tmp_path / "sampling.webp", seconds_per_step=0.1)
    with Image.open(tmp_path / "sampling.webp") as animation:
        assert animation.is_animated and animation.n_frames > 1


def test_a_modality_that_is_left_out_is_hidden_to_the_end(tiny_pipeline):
    trace = SamplingTrace()
    run(tiny_pipeline, trace, output_modalities=("image",))
    item = trace._items(tiny_pipeline, trace.steps[-1], trace.steps[-1])[0]
    assert set(item.caption) <= {"_", " "}


def test_a_caption_ends_where_its_end_is_known(tiny_pipeline):
    tokenizer = tiny_pipeline.tokenizer
    ids = tokenizer("a red circle").input_ids + [tokenizer.eos_token_id, tokenizer.pad_token_id]
    hidden = [False] * len(ids)
    assert read_known(tokenizer, ids, hidden) == "a red circle"
    assert read_known(tokenizer, ids, [True] * len(ids)) == " ".join("_" * len(ids))


def test_nothing_recorded_is_an_error_that_says_what_to_do(tiny_pipeline):
    with pytest.raises(ValueError, match="callback_on_step_end"):
        SamplingTrace().draw(tiny_pipeline)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        SamplingTrace(num_samples=0)


def test_letters_of_several_tokens_are_decoded_together(tiny_pipeline):
    ids = tiny_pipeline.tokenizer("红心 a").input_ids
    assert len(ids) > 4 and read_known(tiny_pipeline.tokenizer, ids, [False] * len(ids)) == "红心 a"


def test_both_modalities_must_be_recorded(tiny_pipeline):
    with pytest.raises(ValueError, match="must hold 'image_codes' and 'text_codes'"):
        tiny_pipeline(
            num_inference_steps=1,
            callback_on_step_end=SamplingTrace(),
            callback_on_step_end_tensor_inputs=("image_codes",),
        )

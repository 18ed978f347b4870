# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from vision_models import save_clip, save_vision_model

from hf_vqdit.data.shapes import all_scenes, describe
from hf_vqdit.evaluation.clip import ClipScorer
from hf_vqdit.evaluation.grids import to_pictures
from hf_vqdit.evaluation.judge import draw_batch

SCENES = all_scenes(1)[::300]
PICTURES, _ = draw_batch(SCENES, 32, torch.Generator().manual_seed(0))
CAPTIONS = [describe(scene, 0) for scene in SCENES]


@pytest.fixture
def clip_folder(tiny_pipeline, tmp_path):
    return save_clip(tmp_path / "clip", tiny_pipeline.tokenizer)


def test_the_score_is_the_cosine_of_the_embeddings(clip_folder):
    model, processor = CLIPModel.from_pretrained(clip_folder), AutoImageProcessor.from_pretrained(clip_folder)
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    expected = []
    for picture, caption in zip(to_pictures(PICTURES), CAPTIONS, strict=True):  # one by one, and without padding
        inputs = tokenizer(caption, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs, **processor(images=picture, return_tensors="pt"))
        expected.append(100 * (output.image_embeds @ output.text_embeds.T).clamp(min=0).item())
    assert len(set(expected)) == len(expected) == 6
    clip = ClipScorer(str(clip_folder))
    assert clip.score(PICTURES, CAPTIONS) == pytest.approx(sum(expected) / 6, rel=1e-4)
    assert clip.score(PICTURES, CAPTIONS, batch_size=4) == pytest.approx(clip.score(PICTURES, CAPTIONS), rel=1e-5)


def test_the_order_of_the_captions_matters(clip_folder):
    clip = ClipScorer(str(clip_folder))
    matched = clip.score(PICTURES, CAPTIONS)
    assert clip.score(PICTURES.flip(0), CAPTIONS[::-1]) == pytest.approx(matched, rel=1e-5)
    assert clip.score(PICTURES, CAPTIONS[::-1]) != pytest.approx(matched, rel=1e-5)


def test_a_caption_that_is_too_long_loses_its_end(clip_folder):
    clip = ClipScorer(str(clip_folder))
    words = "a large red circle in the middle on a white background "
    assert clip.score(PICTURES, [words * 3] * 6) == clip.score(PICTURES, [words * 5] * 6)


def test_what_is_no_clip_is_refused(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="No CLIP can be loaded"):
        ClipScorer(str(tmp_path / "nothing"))
    folder = save_vision_model(tmp_path / "vision")
    tiny_pipeline.tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="Dinov2Model, which has no features of both"):
        ClipScorer(str(folder))

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The perceptual loss, on tiny networks with weights of their own."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from vision_models import save_clip, save_vision_model

from hf_vqdit.training import perceptual as module
from hf_vqdit.training.perceptual import load_perceptual_loss


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", ["resnet", "dinov2", "vit_without_pooler"])
def test_it_is_the_distance_of_unit_features_and_nothing_between_equal_pictures(kind, tmp_path):
    perceptual = load_perceptual_loss(str(save_vision_model(tmp_path, kind)), resolution=32)
    image, target = pictures(0), pictures(1)
    distances = perceptual(image, target)
    assert distances.shape == (3,) and (distances > 1e-3).all() and (distances < 4).all()
    assert torch.equal(perceptual(image, image), torch.zeros(3))
    torch.testing.assert_close(perceptual(image[1:2], target[1:2]), distances[1:2])
    expected = []
    for one, other in zip(perceptual.features(image), perceptual.features(target), strict=True):
        cosine = (one * other).sum(dim=-1)  # |a - b|^2 = 2 - 2 cos
        expected.append((2 - 2 * cosine).mean(dim=1))
    assert len(expected) == 3  # the embedding, and two stages or layers
    torch.testing.assert_close(distances, torch.stack(expected).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_of_a_deep_network_some_stages_are_compared_the_first_and_the_last_among_them(tmp_path, monkeypatch):
    perceptual = load_perceptual_loss(str(save_vision_model(tmp_path, "dinov2")), resolution=32)
    first, _, last = perceptual.features(pictures(0))
    monkeypatch.setattr(module, "MAX_STAGES", 2)
    torch.testing.assert_close(perceptual.features(pictures(0)), [first, last])


def test_pictures_reach_the_network_as_it_was_trained_to_see_them(tmp_path):
    perceptual = load_perceptual_loss(str(save_vision_model(tmp_path, "resnet")), resolution=32)
    seen = []
    perceptual.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    perceptual(pictures(0), pictures(1))
    mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = ((pictures(1) + 1) / 2 - mean) / std
    torch.testing.assert_close(seen[0], expected)


def test_the_gradient_goes_to_the_reconstruction_alone_and_the_network_stays_as_it_is(tmp_path):
    perceptual = load_perceptual_loss(str(save_vision_model(tmp_path, "resnet")), resolution=32)
    before = {name: value.clone() for name, value in perceptual.state_dict().items()}
    image, target = pictures(0).requires_grad_(), pictures(1).requires_grad_()
    perceptual.train()
    with torch.autocast("cpu", torch.bfloat16):
        distances = perceptual(image, target)
    assert distances.dtype == torch.float32
    distances.sum().backward()
    assert image.grad.abs().max() > 0 and target.grad is None
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    for name, value in perceptual.state_dict().items():  # batch statistics among them
        assert torch.equal(value, before[name]), name


def test_a_network_that_cannot_serve_is_named(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="nowhere' cannot be used at 32 pixels"):
        load_perceptual_loss(str(tmp_path / "nowhere"), resolution=32)
    with pytest.raises(ValueError, match="cannot be used"):  # it wants words too
        load_perceptual_loss(str(save_clip(tmp_path / "clip", tiny_pipeline.tokenizer)), resolution=32)
    bare, partial = (save_vision_model(tmp_path / name, "resnet") for name in ("bare", "partial"))
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_perceptual_loss(str(bare), resolution=32)
    weights = load_file(partial / "model.safetensors")
    name = next(iter(weights))
    del weights[name]
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"weights \\['{name}'\\] are missing"):
        load_perceptual_loss(str(partial), resolution=32)

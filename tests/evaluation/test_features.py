# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, BertConfig, BertModel, CLIPModel, ViTModel
from vision_models import save_clip, save_vision_model

from hf_vqdit.data.shapes import all_scenes
from hf_vqdit.evaluation.features import (
    MAX_SIDE,
    OwnFeatures,
    TokenizerLatents,
    draw_views,
    extract_features,
    load_feature_network,
    shrink,
    to_bytes,
    to_floats,
    train_own_features,
)
from hf_vqdit.evaluation.grids import to_pictures
from hf_vqdit.evaluation.judge import draw_batch
from hf_vqdit.evaluation.picture_sets import frechet_distance, nearest

PICTURES, _ = draw_batch(all_scenes(1)[::14], 32, torch.Generator().manual_seed(0))  # (124, 3, 32, 32)


# All networks


def test_features_depend_neither_on_the_batch_nor_on_what_eight_bits_cannot_tell(tiny_pipeline):
    network = TokenizerLatents(tiny_pipeline.vqvae)
    whole = extract_features(network, PICTURES[:20])
    assert whole.shape == (20, 16) and whole.dtype == torch.float64
    torch.testing.assert_close(extract_features(network, PICTURES[:20], batch_size=3), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(extract_features(network, to_bytes(PICTURES[:20])), whole)
    assert torch.equal(extract_features(network, PICTURES[:20] + 1e-4), whole)


def test_a_broken_picture_has_no_features(tiny_pipeline):
    broken = PICTURES[:4].clone()
    broken[2, 0, 0, 0] = torch.nan
    features = extract_features(TokenizerLatents(tiny_pipeline.vqvae), broken)
    assert features.isnan().all(dim=1).tolist() == [False, False, True, False]


def test_bytes_are_the_pictures_of_files():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_floats(pictures)), pictures)
    assert to_bytes(torch.tensor([-1.5, -1, 1, 1.5])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("size", "shrunk"), [((32, 32), (32, 32)), ((128, 128), (64, 64)), ((96, 192), (32, 64))])
def test_pictures_are_shrunk_to_the_longest_side_allowed(size, shrunk):
    assert shrink(torch.zeros(1, 3, *size)).shape[2:] == shrunk and max(shrunk) <= MAX_SIDE


# Own features


@pytest.fixture(scope="module")
def own_features() -> OwnFeatures:
    """Trained for a tenth of the usual steps."""
    return train_own_features(to_bytes(PICTURES), num_train_steps=40)


def test_over_the_training_pictures_each_feature_has_mean_0_and_variance_1(own_features):
    features = extract_features(own_features, PICTURES)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(64).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(dim=0), torch.ones(64).double(), rtol=0, atol=1e-4)


def test_a_picture_is_known_again_when_it_is_moved_and_recolored(own_features):
    views = draw_views(PICTURES, torch.Generator().manual_seed(5))
    _, rows = nearest(extract_features(own_features, views), extract_features(own_features, PICTURES))
    known = (rows == torch.arange(len(PICTURES))).double().mean()
    pixel_rows = torch.cdist(views.flatten(1), PICTURES.flatten(1)).argmin(dim=1)
    assert known > 0.8 and known > (pixel_rows == torch.arange(len(PICTURES))).double().mean()


def test_a_set_that_is_blurred_noisy_shuffled_or_uniform_is_further_away(own_features):
    real = extract_features(own_features, PICTURES)
    generator = torch.Generator().manual_seed(0)
    changed = {
        "blurred": F.avg_pool2d(PICTURES, 3, stride=1, padding=1, count_include_pad=False),
        "noisy": PICTURES + 0.2 * torch.randn(PICTURES.shape, generator=generator),
        "shuffled": PICTURES.roll(16, dims=2),
        "uniform": PICTURES[:6].repeat(20, 1, 1, 1),
    }
    resampled, _ = draw_batch(all_scenes(1)[::14], 32, generator)  # the same scenes, drawn anew
    floor = frechet_distance(extract_features(own_features, resampled), real)
    for name, pictures in changed.items():
        assert frechet_distance(extract_features(own_features, pictures), real) > 2 * floor, name


def test_training_leaves_the_global_generator_alone_and_repeats_itself():
    state = torch.get_rng_state()
    first, second = (train_own_features(to_bytes(PICTURES[:9]), num_train_steps=2, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_large_pictures_and_their_thumbnails_have_the_same_features(own_features):
    large = to_floats(to_bytes(F.interpolate(PICTURES[:5], scale_factor=5, mode="bicubic")))
    features = extract_features(own_features, large)
    assert torch.equal(extract_features(own_features, to_bytes(shrink(large))), features)


def test_two_pictures_are_enough():
    assert extract_features(train_own_features(to_bytes(PICTURES[:2]), num_train_steps=2), PICTURES).isfinite().all()


def test_a_view_is_the_picture_moved_by_a_tenth_at_most_in_nearly_its_colors():
    pictures = PICTURES.new_full((50, 3, 40, 40), -0.5)
    pictures[:, :, 20, 20] = 0.5
    views = draw_views(pictures, torch.Generator().manual_seed(0))
    places = views[:, 0].flatten(1).argmax(dim=1)
    moves = torch.stack([places // 40, places % 40]) - 20
    assert moves.abs().max() == 4 and len(moves.unique()) == 9
    assert (views.amax(dim=(2, 3)) - 0.5).abs().max() <= 0.15
    assert (views.amin(dim=(2, 3)) + 0.5).abs().max() <= 0.15


# Named networks


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "vit"])
def test_a_vision_model_gives_what_it_pools(kind, tmp_path):
    network = load_feature_network(str(save_vision_model(tmp_path / "Some-Model.v2", kind)))
    assert network.name == "some_model_v2_features"
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "Some-Model.v2")(
        images=to_pictures(PICTURES[:3]), return_tensors="pt"
    )
    with torch.no_grad():
        expected = network.model(**inputs).pooler_output.flatten(1).double()
    torch.testing.assert_close(extract_features(network, PICTURES[:3]), expected)
    assert expected.shape == (3, 16)


def test_a_pooler_without_weights_is_not_used(tmp_path):
    folder = save_vision_model(tmp_path, "vit_without_pooler")
    inputs = AutoImageProcessor.from_pretrained(folder)(images=to_pictures(PICTURES[:3]), return_tensors="pt")
    with torch.no_grad():
        hidden_states = ViTModel.from_pretrained(folder, add_pooling_layer=False)(**inputs).last_hidden_state
    expected = hidden_states.mean(dim=1).double()
    torch.testing.assert_close(extract_features(load_feature_network(str(folder)), PICTURES[:3]), expected)


def test_of_a_clip_the_embeddings_of_pictures_are_taken(tiny_pipeline, tmp_path):
    folder = save_clip(tmp_path, tiny_pipeline.tokenizer)
    inputs = AutoImageProcessor.from_pretrained(folder)(images=to_pictures(PICTURES[:3]), return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).get_image_features(**inputs).pooler_output.double()
    torch.testing.assert_close(extract_features(load_feature_network(str(folder)), PICTURES[:3]), expected)


def test_what_is_no_vision_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No vision model"):
        load_feature_network(str(tmp_path / "nothing"))
    BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="No vision model"):
        load_feature_network(str(tmp_path / "bert"))


def test_a_model_without_trained_weights_is_refused(tmp_path):
    folder = save_vision_model(tmp_path)
    model = load_feature_network(str(folder)).model
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layernorm" not in name}
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match="no weights for .*layernorm"):
        load_feature_network(str(folder))


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_torch_fidelity_says_what_to_do():
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        load_feature_network("inception")

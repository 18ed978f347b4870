# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A `VQModel` of diffusers in the place of the image codec gives what it gives there."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from vqvae_inputs import captions, pictures

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE
from hf_vqdit.models.vq_model import from_vq_model, load_vq_model

TEXT = {"vocab_size": 40, "text_codebook_size": 48, "text_code_dim": 6, "text_width": 16}
THREE_LEVELS = {
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


def make_vq_model(**config) -> VQModel:
    torch.manual_seed(0)
    model = VQModel(**{"norm_num_groups": 4, "block_out_channels": (16,), "num_vq_embeddings": 64} | config).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)  # its own start puts all codes in one place
    return model


@pytest.mark.parametrize(
    "config",
    [
        {},
        THREE_LEVELS | {"layers_per_block": 2, "latent_channels": 6, "vq_embed_dim": 4},
        THREE_LEVELS | {"norm_type": "spatial", "latent_channels": 4, "block_out_channels": (32, 32, 32)},
        {"in_channels": 1, "out_channels": 1, "act_fn": "relu", "latent_channels": 5, "vq_embed_dim": 8},
    ],
    ids=["default", "attention", "spatial norm", "grey"],
)
def test_codes_and_pictures_are_those_of_the_vq_model(config, tmp_path):
    theirs = make_vq_model(**config)
    ours = from_vq_model(theirs, **TEXT).eval()
    image = pictures(2, 16, 24)[:, : theirs.config.in_channels]
    with torch.no_grad():
        latents = theirs.encode(image).latents
        expected = theirs.decode(latents).sample
        _, _, (_, _, expected_codes) = theirs.quantize(latents)
        encoded = ours.encode(image=image)
        decoded = ours.decode(image_codes=encoded.image_codes).image
    torch.testing.assert_close(encoded.image_latents, latents, atol=1e-5, rtol=0)
    assert torch.equal(encoded.image_codes.flatten(), expected_codes)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours(image=image).image, expected, atol=1e-4, rtol=0)
    ours.save_pretrained(tmp_path)
    loaded = MultimodalVQVAE.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(image_codes=encoded.image_codes).image, decoded)


def test_the_text_codec_is_new_and_works_beside_it():
    vqvae = from_vq_model(make_vq_model(), **TEXT, text_downsample_factor=2)
    codes = vqvae.encode(image=pictures(1), text=captions(1, 4, [4]))
    assert codes.text_codes.shape == (1, 2, 1) and not vqvae.image_quantizer.codebook.requires_grad


@pytest.mark.parametrize("subfolder", ["", "vqvae"])
def test_it_is_found_alone_and_in_a_pipeline(subfolder, tmp_path):
    theirs = make_vq_model()
    theirs.save_pretrained(tmp_path / subfolder)
    assert torch.equal(load_vq_model(str(tmp_path)).quantize.embedding.weight, theirs.quantize.embedding.weight)


def test_another_autoencoder_is_not_taken_for_it(tmp_path):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no `VQModel`.*a AutoencoderKL"):
        load_vq_model(str(tmp_path))
    with pytest.raises(ValueError, match="'nowhere' holds no `VQModel`"):
        load_vq_model("nowhere")


def test_what_cannot_be_taken_over_is_refused():
    with pytest.raises(ValueError, match="makes 4 channels of 3"):
        from_vq_model(make_vq_model(out_channels=4), **TEXT)
    with pytest.raises(ValueError, match=r"settles \['code_dim', 'patch_size'\]"):
        from_vq_model(make_vq_model(), **TEXT, patch_size=2, code_dim=8)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The image codec at every downsampling, with local norms and attention, in slices and in tiles."""

import pytest
import torch
from torch import nn
from vqvae_inputs import pictures, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import LayerNorm2d, MultimodalVQVAE

LOCAL = {"norm_type": "layer", "text_codec": None, "norm_num_groups": 4}


def local_vqvae(**config) -> MultimodalVQVAE:
    """With norms of each position, and networks that are not silent at the start."""
    vqvae = tiny_vqvae(**LOCAL | config)
    for network in (vqvae.image_encoder.encoder, vqvae.image_decoder.decoder):
        nn.init.normal_(network.conv_out.weight, std=0.3)
    return vqvae


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(
    "factor, patch_size, channels",
    [(4, 1, (8, 8, 16)), (8, 1, (8, 8, 8, 16)), (8, 2, (8, 8, 16)), (16, 1, (8, 8, 8, 8, 16)), (16, 4, (8, 8, 16))],
)
def test_every_downsampling_factor_works_with_and_without_attention(factor, patch_size, channels, attention):
    config = {"patch_size": patch_size, "block_out_channels": channels, "mid_block_add_attention": attention}
    vqvae = tiny_vqvae(**config)
    image = pictures(2, 2 * factor, 3 * factor)
    output, codes = vqvae(image=image), vqvae.encode(image=image).image_codes
    assert vqvae.image_downsample_factor == factor and codes.shape == (2, 2, 3)
    assert output.image.shape == image.shape
    torch.testing.assert_close(vqvae.decode(image_codes=codes).image, output.image, atol=1e-5, rtol=1e-5)
    has_attention = any("attentions" in name for name, _ in vqvae.named_parameters())
    assert has_attention == attention


def test_gradient_checkpointing_changes_no_gradient_of_any_block():
    gradients = []
    for checkpointing in (False, True):
        vqvae = local_vqvae(mid_block_add_attention=True).train()
        if checkpointing:
            vqvae.enable_gradient_checkpointing()
        vqvae(image=pictures(2)).image.square().mean().backward()
        gradients.append({name: p.grad for name, p in vqvae.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    torch.testing.assert_close(gradients[0], gradients[1])


# Norms


def test_a_layer_norm_is_that_of_each_position():
    norm, hidden = LayerNorm2d(8), torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    position = hidden[1, :, 2, 3]
    expected = (position - position.mean()) / (position.var(correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(norm(hidden)[1, :, 2, 3], expected)


def test_with_layer_norms_a_code_depends_on_the_pixels_around_it_alone():
    for norm_type, is_local in (("layer", True), ("group", False)):
        vqvae = local_vqvae(norm_type=norm_type, block_out_channels=(8, 16))
        image = pictures(1, 8, 64)
        changed = image.clone()
        changed[..., : 64 - vqvae.tile_margin - 2] = 0.9  # all but the last code's own two pixels and the margin
        with torch.no_grad():
            latents = [vqvae.encode(image=x).image_latents for x in (image, changed)]
        assert torch.equal(latents[0][..., -1], latents[1][..., -1]) == is_local
        assert not torch.allclose(latents[0][..., 0], latents[1][..., 0])


@pytest.mark.parametrize(
    "config", [{}, {"patch_size": 2}, {"layers_per_block": 2}, {"block_out_channels": (8, 16, 16)}]
)
def test_the_margin_is_all_that_a_pixel_depends_on_and_not_much_more(config):
    vqvae = local_vqvae(**{"block_out_channels": (8, 16)} | config)
    factor, margin = vqvae.image_downsample_factor, vqvae.tile_margin // vqvae.image_downsample_factor
    latents = torch.randn(1, 4, 3, 2 * margin + 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = vqvae.image_decoder(latents)
    middle = slice((margin + 2) * factor, (margin + 3) * factor)
    image[..., middle].square().sum().backward()
    reached = latents.grad.abs().sum(dim=(0, 1, 2)).nonzero().squeeze(1)
    assert margin - 1 <= margin + 2 - reached.min() <= margin and reached.max() - margin - 2 <= margin


def test_a_norm_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="`norm_type` is 'batch'"):
        tiny_vqvae(norm_type="batch")


# Slices and tiles


@pytest.mark.parametrize("size", [(112, 136), (16, 280), (280, 16)])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_tiles_give_what_the_whole_picture_gives(size, patch_size):
    vqvae = local_vqvae(patch_size=patch_size, block_out_channels=(8, 8))
    image, factor = pictures(1, *size), vqvae.image_downsample_factor
    with torch.no_grad():
        whole = vqvae.encode(image=image)
        pixels = vqvae.decode(image_codes=whole.image_codes).image
        for num_codes in (7, 9):  # that are kept of a tile
            vqvae.enable_tiling(2 * vqvae.tile_margin + num_codes * factor)
            assert max(size) > vqvae.tile_size
            tiled = vqvae.encode(image=image)
            torch.testing.assert_close(tiled.image_latents, whole.image_latents, atol=1e-5, rtol=0)
            assert (tiled.image_codes == whole.image_codes).float().mean() > 0.999  # but for ties
            torch.testing.assert_close(vqvae.decode(image_codes=whole.image_codes).image, pixels, atol=1e-4, rtol=0)


def test_a_tile_is_all_that_a_network_sees_at_once():
    vqvae = local_vqvae(block_out_channels=(8, 16))
    vqvae.enable_tiling(2 * vqvae.tile_margin + 20)
    vqvae.enable_slicing()
    seen = []
    for network, scale in ((vqvae.image_encoder, 1), (vqvae.image_decoder, 2)):
        network.register_forward_pre_hook(lambda module, inputs, scale=scale: seen.append((inputs[0].shape, scale)))
    with torch.no_grad():
        codes = vqvae.encode(image=pictures(2, 16, 200)).image_codes
        vqvae.decode(image_codes=codes)
    assert {shape[0] for shape, _ in seen} == {1} and len(seen) >= 2 * 2 * 200 // vqvae.tile_size
    assert max(max(shape[2:]) * scale for shape, scale in seen) == vqvae.tile_size


def test_slices_and_disabled_tiles_change_nothing():
    vqvae = tiny_vqvae()
    image = pictures(3)
    codes = vqvae.encode(image=image).image_codes
    vqvae.enable_slicing()
    vqvae.enable_tiling()
    assert torch.equal(vqvae.encode(image=image).image_codes, codes)  # smaller than a tile
    vqvae.disable_tiling()
    large = pictures(1, 640, 16)
    assert torch.equal(vqvae.encode(image=large).image_codes, tiny_vqvae().encode(image=large).image_codes)


@pytest.mark.parametrize("tile_size", [0, 48, 101])
def test_a_tile_smaller_than_what_a_code_depends_on_is_refused(tile_size):
    vqvae = local_vqvae(block_out_channels=(8, 16))
    smallest = 2 * vqvae.tile_margin + 2
    with pytest.raises(ValueError, match=rf"`tile_size` is {tile_size} pixels.*f = 2 and at least {smallest}"):
        vqvae.enable_tiling(tile_size)

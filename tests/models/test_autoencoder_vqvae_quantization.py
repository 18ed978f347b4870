# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How gradients pass the quantizers, and one codebook for both modalities."""

import copy

import pytest
import torch
from vqvae_inputs import captions, pictures, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, rotation_trick, straight_through


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Gradient estimators


@pytest.mark.parametrize("estimator", [straight_through, rotation_trick])
def test_an_estimator_gives_the_value_of_the_code(estimator):
    targets = vectors(1, 50, 4)
    torch.testing.assert_close(estimator(vectors(0, 50, 4), targets), targets)


def test_the_rotation_trick_turns_the_gradient_as_it_turns_the_vector():
    source, target, gradient = (vectors(seed, 50, 4) for seed in range(3))
    source.requires_grad_()
    rotation_trick(source, target).backward(gradient)
    # d(value)/d(source) is the constant matrix scale * R: the same product with the gradient as R^T applied to it
    for i in range(len(source)):
        a, b = source[i].detach() / source[i].detach().norm(), target[i] / target[i].norm()
        middle = (a + b) / (a + b).norm()
        rotation = torch.eye(4).double() - 2 * torch.outer(middle, middle) + 2 * torch.outer(b, a)
        torch.testing.assert_close(rotation @ a, b)
        scale = target[i].norm() / source[i].detach().norm()
        torch.testing.assert_close(source.grad[i], scale * rotation.T @ gradient[i])
    # So the angle between gradient and code is that between the encoder's gradient and its vector
    before = torch.cosine_similarity(gradient, target)
    torch.testing.assert_close(torch.cosine_similarity(source.grad, source.detach()), before)


def test_on_a_code_itself_both_estimators_are_the_identity():
    source, gradient = vectors(0, 50, 4), vectors(1, 50, 4)
    for estimator in (straight_through, rotation_trick):
        leaf = source.clone().requires_grad_()
        estimator(leaf, source).backward(gradient)
        torch.testing.assert_close(leaf.grad, gradient)


def test_the_rotation_trick_is_finite_where_no_plane_is_spanned():
    source = torch.cat([vectors(0, 1, 4), torch.zeros(1, 4).double()]).requires_grad_()
    target = torch.cat([-source[:1].detach(), vectors(1, 1, 4)])
    value = rotation_trick(source, target)
    torch.testing.assert_close(value[0], target[0])  # the opposite vector
    value.sum().backward()
    assert value.isfinite().all() and source.grad.isfinite().all()


def test_the_estimator_changes_gradients_and_no_value():
    outputs, gradients = [], []
    for estimator in ("straight_through", "rotation_trick"):
        vqvae = tiny_vqvae(l2_normalize=False)
        output = vqvae(pictures(2), captions(2, 4, [4, 2]), gradient_estimator=estimator)
        output.image.square().mean().backward()
        outputs.append(output)
        gradients.append(vqvae.image_encoder.shortcut.weight.grad)
    torch.testing.assert_close(outputs[0].image, outputs[1].image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0].text_logits, outputs[1].text_logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)
    with pytest.raises(ValueError, match="'gumbel'.*straight_through"):
        tiny_vqvae()(pictures(1), gradient_estimator="gumbel")


# One codebook for both modalities

SHARED = {"shared_codebook": True, "text_codebook_size": 32, "text_code_dim": 4}


def test_both_modalities_take_their_codes_from_the_shared_codebook():
    vqvae = tiny_vqvae(**SHARED)
    assert vqvae.text_quantizer is vqvae.image_quantizer
    assert sum(name.endswith("codebook") for name, _ in vqvae.named_parameters()) == 1
    before = vqvae.encode(pictures(2), captions(2, 4, [4, 2]))
    with torch.no_grad():  # code i becomes code i + 1
        vqvae.image_quantizer.codebook.copy_(vqvae.image_quantizer.codebook.roll(1, dims=0))
    after = vqvae.encode(pictures(2), captions(2, 4, [4, 2]))
    assert torch.equal(after.image_codes, (before.image_codes + 1) % 32)
    real = before.text_codes < 32
    assert torch.equal(after.text_codes[real], ((before.text_codes + 1) % 32)[real])


def test_decoding_the_codes_of_a_shared_codebook_is_the_reconstruction():
    vqvae = tiny_vqvae(**SHARED)
    for parameter in vqvae.image_project_out.parameters():
        torch.nn.init.normal_(parameter)
    codes, output = vqvae.encode(pictures(2), captions(2, 4, [4, 2])), vqvae(pictures(2), captions(2, 4, [4, 2]))
    decoded = vqvae.decode(codes.image_codes, codes.text_codes)
    torch.testing.assert_close(decoded.image, output.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded.text_logits, output.text_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["straight_through", "rotation_trick"])
def test_every_projection_of_a_shared_codebook_is_trained(estimator):
    vqvae = tiny_vqvae(**SHARED).train()
    output = vqvae(pictures(2), captions(2, 4, [4, 2]), gradient_estimator=estimator)
    (output.image.square().mean() + output.text_logits.square().mean()).backward()
    names = [f"{modality}_project_{way}" for modality in ("image", "text") for way in ("in", "out")]
    for name in names:
        assert getattr(vqvae, name).weight.grad.abs().max() > 0, name


def test_a_shared_codebook_saves_loads_and_copies_as_one(tmp_path):
    vqvae = tiny_vqvae(**SHARED)
    vqvae.save_pretrained(tmp_path)
    loaded = MultimodalVQVAE.from_pretrained(tmp_path)
    for other in (loaded, copy.deepcopy(vqvae)):
        assert other.text_quantizer is other.image_quantizer is not vqvae.image_quantizer
        assert torch.equal(other.image_quantizer.codebook, vqvae.image_quantizer.codebook)


# Embeddings


def test_embeddings_are_of_unit_length_and_know_nothing_of_padding_or_of_other_rows():
    vqvae = tiny_vqvae(projection_dim=8, text_num_groups=2)
    image, text = pictures(3), captions(3, 6, [6, 2, 4])
    output = vqvae(image, text)
    for embeds in (output.image_embeds, output.text_embeds):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
    longer = torch.nn.functional.pad(text, (0, 4), value=0)
    torch.testing.assert_close(vqvae(text=longer).text_embeds, output.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vqvae(image=image[1:2]).image_embeds, output.image_embeds[1:2], atol=1e-5, rtol=1e-5)
    assert vqvae(image=image).text_embeds is None and tiny_vqvae()(image, text).image_embeds is None


def test_embeddings_are_of_the_codes_and_train_both_encoders():
    vqvae = tiny_vqvae(projection_dim=8)
    image, text = pictures(2), captions(2, 4, [4, 2])
    codes, output = vqvae.encode(image, text), vqvae(image, text)
    vectors = vqvae.image_quantizer.lookup(codes.image_codes).flatten(1, 2)
    of_codes = vqvae.image_projection(vectors, torch.ones(vectors.shape[:2]))
    torch.testing.assert_close(of_codes, output.image_embeds, atol=1e-5, rtol=1e-5)
    (output.image_embeds * output.text_embeds).sum().backward()
    for parameter in (vqvae.image_encoder.shortcut.weight, vqvae.text_encoder.proj_out.weight):
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    "config, message",
    [
        (SHARED | {"text_code_dim": 6}, r"must be equal; got \(32, 4\) for images and \(32, 6\) for text"),
        (SHARED | {"text_codebook_size": 48}, "must be equal"),
        (SHARED | {"text_codec": "identity"}, "needs two codecs with a codebook"),
        (SHARED | {"image_codebook_size": None}, "`shared_codebook` needs two codecs with a codebook"),
        ({"projection_dim": 8, "text_codec": None}, "`projection_dim` needs two codecs with a codebook"),
    ],
)
def test_what_needs_two_codebooks_of_a_kind_is_refused_without_them(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_vqvae(**config)

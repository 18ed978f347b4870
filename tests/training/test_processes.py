# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from hf_vqdit import MultimodalVQVAE, VQDiTModel
from hf_vqdit.training.processes import EMBEDDING_STD, check_sizes, embed_by_vectors

NUM_CODES = 48


def make_vqvae(codebook: torch.Tensor) -> MultimodalVQVAE:
    vqvae = MultimodalVQVAE(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        image_codebook_size=NUM_CODES,
        code_dim=codebook.shape[1],
        text_codec=None,
    )
    vqvae.image_quantizer.codebook.data.copy_(codebook)
    return vqvae


@pytest.fixture
def model() -> VQDiTModel:
    torch.manual_seed(0)
    return VQDiTModel(NUM_CODES, 8, hidden_size=32, num_layers=1, num_attention_heads=2)


def test_embeddings_are_as_far_apart_as_the_vectors_of_their_codes(model):
    vqvae = make_vqvae(torch.randn(NUM_CODES, 4))
    before = model.image_embed.weight.detach().clone()
    embed_by_vectors(vqvae, model)
    embedded = model.image_embed.weight.detach()
    assert torch.equal(embedded[NUM_CODES:], before[NUM_CODES:])  # MASK
    assert embedded[:NUM_CODES].std() == pytest.approx(EMBEDDING_STD)

    vectors = vqvae.image_quantizer.lookup(torch.arange(NUM_CODES))
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0)
    ratio = torch.pdist(embedded[:NUM_CODES]) / torch.pdist(vectors)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))


def test_a_channel_in_which_all_codes_agree_and_more_channels_than_the_model_is_wide_are_no_trouble(model):
    codebook = torch.randn(NUM_CODES, 40)
    codebook[:, 0] = 0
    embed_by_vectors(make_vqvae(codebook), model)
    assert model.image_embed.weight.isfinite().all()


def test_a_model_for_codes_of_other_sizes_is_refused(model):
    sizes = {name: model.config[name] for name in ("image_codebook_size", "text_length", "sample_size")}
    check_sizes(model, sizes, "distill_from")
    height, width = (model.config.sample_size,) * 2
    check_sizes(model, sizes | {"sample_size": (height, width)}, "distill_from")
    for name, value in (("image_codebook_size", 64), ("text_length", 8), ("sample_size", (height, 16))):
        with pytest.raises(ValueError, match=f"`distill_from` .* `{name}` is .* and would have to be"):
            check_sizes(model, sizes | {name: value}, "distill_from")

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils.operations import convert_to_fp32
from diffusers.training_utils import EMAModel
from vqvae_inputs import MASK, PAD, captions, pictures, tiny_vqvae

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE, VectorQuantizer, nearest_codes

# ------------------------------------------------------------------------------------------------------- nearest code


@pytest.mark.parametrize("num_vectors, num_codes, dim", [(1, 1, 1), (7, 31, 3), (300, 33, 8), (1000, 1024, 5)])
def test_the_nearest_code_is_the_one_a_float64_search_finds(num_vectors, num_codes, dim):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_vectors, dim, generator=generator)
    codebook = torch.randn(num_codes, dim, generator=generator)
    distances = torch.cdist(vectors.double(), codebook.double()).square()
    found = distances.gather(1, nearest_codes(vectors, codebook).unsqueeze(1)).squeeze(1)
    assert (found - distances.amin(1) <= 1e-5 * (1 + distances.amin(1))).all()


def test_the_nearest_code_does_not_depend_on_the_size_of_the_chunks():
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = torch.randn(500, 8, generator=generator), torch.randn(100, 8, generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), nearest_codes(vectors, codebook, max_entries=1))


def test_of_equal_codes_the_first_is_taken():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(50, 1)
    assert nearest_codes(torch.tensor([[0.1, 2.0], [3.0, 0.0]]), codebook).tolist() == [1, 0]


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_a_code_is_its_own_nearest_code(l2_normalize):
    quantizer = VectorQuantizer(64, 8, l2_normalize)
    codes = torch.arange(64)
    assert torch.equal(quantizer(quantizer.lookup(codes)), codes)


def test_the_search_is_float32_under_autocast_and_after_a_cast():
    quantizer = VectorQuantizer(512, 8)
    vectors = quantizer.normalize(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(vectors), nearest_codes(vectors, quantizer.codebook))
    quantizer.to(torch.bfloat16)
    assert quantizer.lookup(torch.arange(3)).dtype == torch.float32
    assert torch.equal(quantizer(vectors), nearest_codes(vectors, quantizer.codebook.float()))


# ------------------------------------------------------------------------------------------------------ encode, decode


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (20, 4)])
@pytest.mark.parametrize("patch_size, channels", [(1, (8, 16, 16)), (2, (8, 16))])
def test_decoding_the_codes_is_the_reconstruction_at_any_size(size, patch_size, channels):
    vqvae = tiny_vqvae(patch_size=patch_size, block_out_channels=channels)
    assert vqvae.image_downsample_factor == 4
    image, text = pictures(2, *size), captions(2, 6, [6, 3])
    with torch.no_grad():
        codes = vqvae.encode(image, text)
        decoded = vqvae.decode(codes.image_codes, codes.text_codes)
        output = vqvae(image, text)
    assert codes.image_codes.shape == (2, size[0] // 4, size[1] // 4)
    assert torch.equal(output.image_codes, codes.image_codes) and torch.equal(output.text_codes, codes.text_codes)
    assert decoded.image.shape == image.shape
    torch.testing.assert_close(decoded.image, output.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded.text_logits, output.text_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor, groups", [(1, 1), (2, 2), (4, 2)])
def test_either_modality_alone_gives_the_codes_it_gives_in_company(factor, groups):
    vqvae = tiny_vqvae(text_downsample_factor=factor, text_num_groups=groups)
    image, text = pictures(2), captions(2, 8, [8, 5])
    with torch.no_grad():
        both, image_alone, text_alone = vqvae.encode(image, text), vqvae.encode(image=image), vqvae.encode(text=text)
    assert image_alone.text_codes is None and text_alone.image_codes is None
    assert torch.equal(both.image_codes, image_alone.image_codes)
    assert torch.equal(both.text_codes, text_alone.text_codes)
    assert both.text_codes.shape == (2, 8 // factor, groups)


@pytest.mark.parametrize("factor, groups", [(1, 1), (2, 2)])
def test_codes_of_real_chunks_depend_neither_on_padding_nor_on_a_word_hidden_elsewhere(factor, groups):
    vqvae = tiny_vqvae(text_downsample_factor=factor, text_num_groups=groups)
    text = captions(1, 4, [4])
    longer = F.pad(text, (0, 12), value=PAD)
    hidden = text.clone()
    hidden[0, 0] = MASK
    with torch.no_grad():
        codes, longer_codes, hidden_codes = (vqvae.encode(text=t).text_codes for t in (text, longer, hidden))
    num_chunks = 4 // factor
    assert torch.equal(longer_codes[:, :num_chunks], codes)
    assert (longer_codes[:, num_chunks:] == vqvae.text_pad_id).all()
    assert torch.equal(hidden_codes[:, 1:], codes[:, 1:])
    with torch.no_grad():
        logits, longer_logits = (
            vqvae.decode(text_codes=codes).text_logits,
            vqvae.decode(text_codes=longer_codes).text_logits,
        )
    torch.testing.assert_close(longer_logits[:, :4], logits, atol=1e-5, rtol=1e-5)
    assert (longer_logits[:, 4:].argmax(-1) == PAD).all()


def test_the_identity_codec_gives_every_token_back():
    vqvae = tiny_vqvae(text_codec="identity")
    text = captions(3, 6, [6, 4, 1])
    codes = vqvae.encode(text=text).text_codes
    assert vqvae.text_codebook_size == 40 and vqvae.text_pad_id == 40 and vqvae.text_mask_id == 41
    assert torch.equal(codes.squeeze(-1), text.masked_fill(text == PAD, 40))
    assert torch.equal(vqvae.decode(text_codes=codes).text_logits.argmax(-1), text)


def test_a_caption_of_padding_alone_is_all_pad_and_finite():
    vqvae = tiny_vqvae()
    output = vqvae(text=torch.zeros(2, 4, dtype=torch.long))
    assert (output.text_codes == vqvae.text_pad_id).all()
    assert output.text_logits.isfinite().all() and (output.text_commitment_loss == 0).all()


def test_a_row_gives_the_same_result_whatever_stands_beside_it():
    vqvae = tiny_vqvae().double()
    image, text = pictures(3).double(), captions(3, 6, [6, 2, 4])
    with torch.no_grad():
        batch, single = vqvae(image, text), vqvae(image[1:2], text[1:2])
    for name in ("image", "text_logits", "image_commitment_loss", "text_commitment_loss"):
        torch.testing.assert_close(batch[name][1:2], single[name], atol=1e-5, rtol=1e-5)


# Gradients


def test_the_straight_through_gradient_is_the_identity():
    quantizer = VectorQuantizer(16, 4)
    vectors = quantizer.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    passed, codes, _ = MultimodalVQVAE._quantize(quantizer, vectors, True, "straight_through")
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    (passed * weight).sum().backward()
    assert torch.equal(vectors.grad, weight)
    torch.testing.assert_close(passed, quantizer.lookup(codes))
    assert quantizer.codebook.grad is None


def test_the_commitment_loss_pulls_the_vectors_and_not_the_codes():
    quantizer = VectorQuantizer(16, 4, l2_normalize=False)
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, codes, losses = MultimodalVQVAE._quantize(quantizer, vectors, True, "straight_through")
    losses.mean().backward()
    torch.testing.assert_close(vectors.grad, 2 * (vectors - quantizer.lookup(codes)).detach() / vectors.numel())
    assert quantizer.codebook.grad is None


def test_forward_changes_no_parameter():
    vqvae = tiny_vqvae().train()
    before = {name: value.clone() for name, value in vqvae.state_dict().items()}
    vqvae(pictures(2), captions(2, 4, [4, 2])).image.sum().backward()
    for name, value in vqvae.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        vqvae = tiny_vqvae().train()
        if checkpointing:
            vqvae.enable_gradient_checkpointing()
            assert vqvae.image_encoder.encoder.gradient_checkpointing and vqvae.text_decoder.gradient_checkpointing
        output = vqvae(pictures(2), captions(2, 4, [4, 2]))
        (output.image.square().mean() + output.text_logits.square().mean()).backward()
        gradients.append({name: p.grad for name, p in vqvae.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


# Contract


def assert_same_weights(first: MultimodalVQVAE, second: MultimodalVQVAE) -> None:
    second_state = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value.nan_to_num(), second_state[name].nan_to_num()), name


def test_save_and_load_are_bit_equal(tmp_path):
    vqvae = tiny_vqvae(text_downsample_factor=2, text_num_groups=2)
    vqvae.save_pretrained(tmp_path)
    loaded = MultimodalVQVAE.from_pretrained(tmp_path)
    assert {**loaded.config, "block_out_channels": (8, 16, 16)}.items() >= {
        name: value for name, value in vqvae.config.items() if not name.startswith("_")
    }.items()
    assert_same_weights(vqvae, loaded)


def test_loading_in_bfloat16_keeps_the_codebooks_in_float32(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path)
    loaded = MultimodalVQVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.image_quantizer.codebook.dtype == torch.float32
    assert loaded.encode(pictures(1)).image_codes.shape == (1, 4, 4)
    assert loaded.decode(image_codes=torch.zeros(1, 4, 4, dtype=torch.long)).image.dtype == torch.bfloat16


def test_the_weight_average_ships_the_codebook(tmp_path):
    vqvae = tiny_vqvae()
    ema = EMAModel(vqvae.parameters(), model_cls=MultimodalVQVAE, model_config=vqvae.config)
    vqvae.image_quantizer.codebook.data.normal_()
    ema.step(vqvae.parameters())
    ema.store(vqvae.parameters())
    ema.copy_to(vqvae.parameters())
    vqvae.save_pretrained(tmp_path)
    assert torch.equal(
        MultimodalVQVAE.from_pretrained(tmp_path).image_quantizer.codebook, vqvae.image_quantizer.codebook
    )


def test_tuples_hold_what_the_output_objects_hold():
    vqvae = tiny_vqvae()
    image, text = pictures(1), captions(1, 4, [3])
    codes = vqvae.encode(image, text)
    as_tuple = vqvae.encode(image, text, return_dict=False)
    assert torch.equal(as_tuple[0], codes.image_codes) and torch.equal(as_tuple[1], codes.text_codes)
    decoded = vqvae.decode(codes.image_codes, codes.text_codes)
    pair = vqvae.decode(codes.image_codes, codes.text_codes, return_dict=False)
    assert torch.equal(pair[0], decoded.image) and torch.equal(pair[1], decoded.text_logits)
    assert torch.equal(vqvae(image, text, return_dict=False)[0], vqvae(image, text).image)


@pytest.mark.parametrize("given", ["image", "text"])
def test_an_output_survives_being_rebuilt_in_float32(given):
    inputs = {"image": pictures(1), "text": captions(1, 4, [3])}
    output = tiny_vqvae()(**{given: inputs[given]})
    rebuilt = convert_to_fp32(output)
    for name in output.__dataclass_fields__:
        before, after = getattr(output, name), getattr(rebuilt, name)
        assert (before is None and after is None) or torch.equal(before, after), name


def test_a_tokenizer_of_one_modality_has_no_weights_of_the_other():
    text_alone = tiny_vqvae(image_codebook_size=None)
    image_alone = tiny_vqvae(text_codec=None, vocab_size=None)
    assert not any(name.startswith("image") for name in text_alone.state_dict())
    assert not any(name.startswith(("text", "token")) for name in image_alone.state_dict())
    with pytest.raises(ValueError, match="no image codec"):
        text_alone.encode(image=pictures(1))
    with pytest.raises(ValueError, match="no text codec"):
        image_alone.encode(text=captions(1, 4, [4]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: v.encode(), "at least one"),
        (lambda v: v.decode(), "at least one"),
        (lambda v: v.encode(image=pictures(1, 18, 16)), "multiples of f = 4"),
        (lambda v: v.encode(image=torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "floating point"),
        (lambda v: v.encode(text=torch.zeros(1, 3, dtype=torch.long)), "multiple of r = 2"),
        (lambda v: v.decode(image_codes=torch.full((1, 2, 2), v.image_mask_id)), "MASK is 32"),
        (lambda v: v.decode(text_codes=torch.full((1, 2, 2), v.text_mask_id)), "MASK is 49"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_vqvae(text_downsample_factor=2, text_num_groups=2))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"text_codec": "bpe"}, "'bpe'"),
        ({"vocab_size": None}, "vocab_size"),
        ({"eos_token_id": 0}, "three different ids"),
        ({"text_codec": "identity", "text_downsample_factor": 2}, "one code a token"),
        ({"text_codec": None, "image_codebook_size": None}, "Neither modality"),
    ],
)
def test_a_config_that_cannot_work_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_vqvae(**config)

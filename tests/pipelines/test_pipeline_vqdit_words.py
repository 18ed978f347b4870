# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Words through the pipeline: what is given comes back letter for letter, and where a text ends."""

import numpy as np
import PIL.Image
import pytest
import torch

import hf_vqdit

PROMPT = "a small red circle on a white background"
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
TEXT_CODECS = {
    "r=1": {},
    "r=2": {"text_downsample_factor": 2, "text_num_groups": 2},
    "identity": {"text_codec": "identity"},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_text_codec(
    pipeline, text_codec="vq", text_downsample_factor=1, text_num_groups=1, text_transition_rank=None, seed=0
):
    """The same pipeline with another, untrained text codec and a transformer for it."""
    tokenizer = pipeline.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vqvae = hf_vqdit.MultimodalVQVAE(
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            image_codebook_size=32,
            code_dim=4,
            text_codec=text_codec,
            vocab_size=len(tokenizer),
            text_codebook_size=48,
            text_code_dim=4,
            text_downsample_factor=text_downsample_factor,
            text_num_groups=text_num_groups,
            text_width=16,
            num_text_decoder_layers=1,
            text_transition_rank=text_transition_rank,
        )
        if text_transition_rank is not None:  # they start at 0
            torch.nn.init.normal_(vqvae.text_transitions.target, std=3.0)
        transformer = hf_vqdit.VQDiTModel(
            image_codebook_size=32,
            text_codebook_size=vqvae.text_codebook_size,
            text_length=tokenizer.model_max_length // text_downsample_factor,
            text_num_groups=text_num_groups,
            patch_size=2,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
        )
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    pipeline = hf_vqdit.VQDiTPipeline(vqvae.eval(), transformer.eval(), tokenizer, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def favour_text_code(pipeline, code, logit=50.0):
    """Make the transformer want `code` at every text position."""
    bias = pipeline.transformer.text_proj_out.bias.data.unflatten(
        0, (-1, pipeline.transformer.config.text_codebook_size + 1)
    )
    bias[:, code] = logit


def text_codes_of(pipeline, **arguments):
    return pipeline(output_type="latent", num_inference_steps=4, **arguments).texts


@pytest.mark.parametrize("codec", TEXT_CODECS)
def test_given_words_come_back_letter_for_letter(tiny_pipeline, codec):
    pipeline = with_text_codec(tiny_pipeline, **TEXT_CODECS[codec])
    prompts = ["a small [MASK] circle on a white background", "[MASK] ö , 大 [MASK] !", PROMPT]
    output = pipeline(prompts, image=PICTURE, num_inference_steps=4, generator=generator())
    for prompt, text in zip(prompts, output.texts, strict=True):
        before, *between, after = prompt.split("[MASK]") if "[MASK]" in prompt else (prompt, "")
        assert text.startswith(before.rstrip()) and text.endswith(after)
        assert all(part.rstrip() in text for part in between)
    assert output.texts[2] == PROMPT


@pytest.mark.parametrize("codec", TEXT_CODECS)
def test_a_masked_word_is_one_token_and_no_special_one(tiny_pipeline, codec):
    pipeline = with_text_codec(tiny_pipeline, **TEXT_CODECS[codec])
    if codec == "identity":
        for token_id in pipeline.tokenizer.all_special_ids:
            favour_text_code(pipeline, token_id)
    tokens = pipeline.tokenize(["a [MASK] circle [MASK] here"], 1)
    forbidden_tokens = pipeline._forbidden_tokens(tokens)
    for seed in range(8):
        codes = text_codes_of(pipeline, prompt="a [MASK] circle [MASK] here", image=PICTURE, generator=generator(seed))
        logits = pipeline.vqvae.decode(text_codes=codes).text_logits
        filled = logits.masked_fill(forbidden_tokens, -torch.inf).argmax(-1)[tokens.is_word]
        assert len(filled) == 2
        text = pipeline.decode_texts(codes, tokens, forbidden_tokens)[0]
        words = [pipeline.tokenizer.decode(token_id) for token_id in filled.tolist()]
        assert text == f"a{words[0]} circle{words[1]} here"
        assert not set(filled.tolist()) & set(pipeline.tokenizer.all_special_ids)


def test_a_missing_word_is_read_together_with_the_given_ones_beside_it(tiny_pipeline):
    pipeline = with_text_codec(tiny_pipeline, text_downsample_factor=2, text_transition_rank=4)
    tokens = pipeline.tokenize(["a small [MASK] circle"], 1)
    forbidden_tokens = pipeline._forbidden_tokens(tokens)
    transitions, position = pipeline.vqvae.text_transitions, tokens.is_word[0].nonzero().item()
    before, after = tokens.input_ids[0, position - 1], tokens.input_ids[0, position + 1]
    differing = 0
    for seed in range(8):
        codes = text_codes_of(pipeline, prompt="a small [MASK] circle", image=PICTURE, generator=generator(seed))
        logits = pipeline.vqvae.decode(text_codes=codes).text_logits.masked_fill(forbidden_tokens, -torch.inf)
        logits, candidates = logits[0, position].topk(64)
        scores = logits + transitions.target[candidates] @ transitions.source[before]
        scores = scores + transitions.source[candidates] @ transitions.target[after]
        word = candidates[scores.argmax()]
        differing += int(word != candidates[0])
        text = pipeline.decode_texts(codes, tokens, forbidden_tokens)[0]
        assert text == f"a small{pipeline.tokenizer.decode(word.item())} circle"
    assert differing > 0


@pytest.mark.parametrize("codec", TEXT_CODECS)
def test_a_prompt_that_ends_in_mask_leaves_the_length_open(tiny_pipeline, codec):
    pipeline = with_text_codec(tiny_pipeline, **TEXT_CODECS[codec])
    arguments = {"prompt": "a small [MASK]", "image": PICTURE, "num_inference_steps": 4, "num_images_per_prompt": 8}
    favour_text_code(pipeline, pipeline.transformer.text_pad_id, logit=1.5)
    texts = pipeline(**arguments, generator=generator()).texts
    assert all(text.startswith("a small") for text in texts)
    assert len({len(pipeline.tokenizer(text).input_ids) for text in texts}) > 1
    # Padding that is wanted everywhere comes right after the last chunk with a given word.
    favour_text_code(pipeline, pipeline.transformer.text_pad_id)
    codes = text_codes_of(pipeline, prompt="a small [MASK]", image=PICTURE, generator=generator())
    num_given_chunks = -(-2 // pipeline.vqvae.text_downsample_factor)
    is_padding = (codes == pipeline.transformer.text_pad_id).all(dim=-1)[0]
    assert not is_padding[:num_given_chunks].any() and is_padding[num_given_chunks:].all()


@pytest.mark.parametrize("codec", TEXT_CODECS)
def test_padding_is_forbidden_before_the_last_given_word_and_final_after_it(tiny_pipeline, codec):
    pipeline = with_text_codec(tiny_pipeline, **TEXT_CODECS[codec])
    favour_text_code(pipeline, pipeline.transformer.text_pad_id)
    pad_id = pipeline.transformer.text_pad_id
    prompt = "a [MASK] circle [MASK] here"
    codes = text_codes_of(pipeline, prompt=prompt, image=PICTURE, generator=generator())
    num_tokens = len(pipeline.tokenizer(prompt).input_ids) + 1
    num_chunks = -(-num_tokens // pipeline.vqvae.text_downsample_factor)
    assert (codes[:, :num_chunks] < pad_id).all() and (codes[:, num_chunks:] == pad_id).all()

    favour_text_code(pipeline, pad_id, logit=2.0)
    codes = text_codes_of(pipeline, output_modalities=("text",), generator=generator(), num_images_per_prompt=16)
    is_padding = (codes == pad_id).all(dim=-1)
    assert torch.equal(is_padding, (codes == pad_id).any(dim=-1))
    assert torch.equal(is_padding, is_padding.cummax(dim=1).values)
    assert is_padding.any() and not is_padding.all()


@pytest.mark.parametrize("codec", TEXT_CODECS)
def test_a_text_that_an_interrupted_run_did_not_begin_keeps_to_the_same_rules(tiny_pipeline, codec):
    pipeline = with_text_codec(tiny_pipeline, **TEXT_CODECS[codec])
    prompt = "a [MASK] circle [MASK] here"
    tokens = pipeline.tokenize([prompt], 1)
    given = pipeline.prepare_text_codes(tokens)
    is_given = given != pipeline.transformer.text_mask_id

    def stop(pipeline, step, timestep, callback_kwargs):
        pipeline._interrupt = True
        return {}

    for unwanted in (pipeline.transformer.text_pad_id, pipeline.tokenizer.mask_token_id):
        favour_text_code(pipeline, unwanted)
        settings = {"joint_order": "image_first", "callback_on_step_end": stop}
        codes = text_codes_of(pipeline, prompt=prompt, **settings, generator=generator())
        assert torch.equal(codes[is_given], given[is_given])
        text = pipeline(prompt, **settings, generator=generator()).texts[0]
        assert text.startswith("a") and " circle" in text and text.endswith(" here") and "[" not in text


def test_a_text_is_cut_at_its_end_token(tiny_pipeline):
    pipeline = with_text_codec(tiny_pipeline, "identity")
    ids = pipeline.tokenizer(PROMPT).input_ids
    codes = torch.full((1, 16, 1), ids[0])
    codes[0, : len(ids), 0] = torch.tensor(ids)
    codes[0, len(ids), 0] = pipeline.tokenizer.eos_token_id
    tokens = pipeline.tokenize(None, 1)
    assert pipeline.decode_texts(codes, tokens, pipeline._forbidden_tokens(tokens)) == [PROMPT]


def test_the_mask_token_is_never_read_out(tiny_pipeline):
    pipeline = with_text_codec(tiny_pipeline, "identity")
    favour_text_code(pipeline, pipeline.tokenizer.mask_token_id)
    codes = text_codes_of(pipeline, output_modalities=("text",), generator=generator())
    assert (codes != pipeline.tokenizer.mask_token_id).all()

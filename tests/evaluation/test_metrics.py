# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import math
import random

import pytest
import torch

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data.shapes import OneObject, all_scenes, describe, is_held_out
from hf_vqdit.evaluation.metrics import (
    caption_bleu,
    caption_chrf,
    caption_exact,
    codebook_perplexity,
    codebook_usage,
    expected_distinct,
    joint_figures,
    marginal_distances,
    read_captions,
    reconstruct,
    share_equal,
    share_known,
    tokenizer_figures,
)

SCENES = all_scenes(1)
TRAINED_ON = [scene for scene in SCENES if not is_held_out(scene)]


def make_vqvae(seed: int = 0, **changes) -> MultimodalVQVAE:
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "image_codebook_size": 16,
        "code_dim": 4,
        "vocab_size": 20,
        "text_codebook_size": 24,
        "text_code_dim": 4,
        "text_width": 16,
        "num_text_decoder_layers": 1,
    }
    return MultimodalVQVAE(**config | changes).eval()


def make_batches(sizes: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """The same eight pairs in batches of any sizes: some lack a side, captions have their EOS at different places."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 20, (8, 6), generator=generator)
    for row, length in enumerate((5, 3, 4, 2, 5, 1, 3, 4)):
        input_ids[row, length], input_ids[row, length + 1 :] = 1, 0
    columns = {
        "pixel_values": 2 * torch.rand(8, 3, 16, 16, generator=generator) - 1,
        "input_ids": input_ids,
        "has_image": torch.tensor([True] * 6 + [False] * 2),
        "has_text": torch.tensor([False] + [True] * 7),
    }
    split = {name: column.split(sizes) for name, column in columns.items()}
    return [{name: parts[i] for name, parts in split.items()} for i in range(len(sizes))]


# The tokenizer


def test_tokenizer_figures_do_not_depend_on_the_batches():
    vqvae = make_vqvae()
    whole = tokenizer_figures(vqvae, make_batches((8,)), pad_token_id=0)
    parts = tokenizer_figures(vqvae, make_batches((1, 4, 3)), pad_token_id=0)
    assert whole == pytest.approx(parts, rel=1e-5)
    assert set(whole) == {
        "image_psnr_db",
        "image_ssim",
        "text_token_accuracy",
        "text_reconstruction_exact",
        "image_codebook_usage",
        "image_codebook_perplexity",
        "text_codebook_usage",
        "text_codebook_perplexity",
    }


def test_psnr_is_that_of_the_definition_over_the_pictures_that_there_are():
    vqvae, (batch,) = make_vqvae(), make_batches((8,))
    pixel_values = batch["pixel_values"][:6]
    restored = reconstruct(vqvae, pixel_values, batch_size=4)
    error = (restored.double() - pixel_values.double()).square().mean().item()
    figures = tokenizer_figures(vqvae, [batch], pad_token_id=0)
    assert figures["image_psnr_db"] == pytest.approx(10 * math.log10(2**2 / error), abs=1e-4)


def test_the_identity_codec_brings_back_every_caption():
    vqvae = make_vqvae(text_codec="identity")
    figures = tokenizer_figures(vqvae, make_batches((8,)), pad_token_id=0)
    assert figures["text_reconstruction_exact"] == figures["text_token_accuracy"] == 1.0
    assert "text_codebook_usage" not in figures


def test_exact_captions_are_those_whose_tokens_are_all_right():
    input_ids = torch.randint(3, 9, (300, 6), generator=torch.Generator().manual_seed(2))
    input_ids[:, 2:] = 0
    vqvae = make_vqvae(seed=4, vocab_size=9, image_codebook_size=None)  # untrained, but it gets some words right
    with torch.no_grad():
        read = vqvae.decode(text_codes=vqvae.encode(text=input_ids).text_codes).text_logits.argmax(dim=-1)
    is_there = torch.ones(300, dtype=torch.bool)
    figures = tokenizer_figures(vqvae, [{"input_ids": input_ids, "has_image": ~is_there, "has_text": is_there}], 0)
    exact = sum(one[:2] == other[:2] for one, other in zip(read.tolist(), input_ids.tolist(), strict=True)) / 300
    assert figures["text_reconstruction_exact"] == pytest.approx(exact)
    assert 0 < exact < figures["text_token_accuracy"] < 1


def test_a_tokenizer_of_one_modality_has_the_figures_of_that_one():
    image_only = tokenizer_figures(make_vqvae(text_codec=None, vocab_size=None), make_batches((8,)), pad_token_id=0)
    text_only = tokenizer_figures(make_vqvae(image_codebook_size=None), make_batches((8,)), pad_token_id=0)
    assert all(name.startswith("image") for name in image_only) and len(image_only) == 4
    assert all(name.startswith("text") for name in text_only) and len(text_only) == 4


def test_pictures_smaller_than_the_window_have_no_ssim():
    vqvae, (batch,) = make_vqvae(), make_batches((8,))
    small = batch | {"pixel_values": batch["pixel_values"][..., :8, :8]}
    figures = tokenizer_figures(vqvae, [small], pad_token_id=0)
    assert "image_ssim" not in figures and math.isfinite(figures["image_psnr_db"])


@pytest.mark.parametrize("size", [2, 64])
def test_a_codebook_is_used_whole_if_all_codes_are_chosen_alike(size):
    assert codebook_usage(torch.full((size,), 7.0)) == 1.0
    assert codebook_perplexity(torch.full((size,), 7.0, dtype=torch.float64)) == pytest.approx(size)


def test_a_codebook_of_which_one_code_is_chosen_is_hardly_used():
    counts = torch.zeros(50)
    counts[3] = 1000
    assert codebook_usage(counts) == pytest.approx(1 / 50)
    assert codebook_perplexity(counts) == pytest.approx(1)


def test_a_code_counts_as_used_above_a_hundredth_of_its_even_share():
    counts = torch.tensor([100_000.0, 240, 260, 0])  # of 100,500, an even share is 25,125
    assert codebook_usage(counts) == 0.5


# Captions


def test_the_truth_scores_one_and_an_exchanged_truth_low():
    scenes = random.Random(0).sample(SCENES, 200)
    captions = [describe(scene, index % 4) for index, scene in enumerate(scenes)]
    assert share_equal(read_captions(captions), scenes) == 1.0
    assert share_equal(read_captions(captions[1:] + captions[:1]), scenes) < 0.05


def test_a_caption_that_tells_no_scene_is_not_right():
    assert share_equal(read_captions(["a large red", ""]), SCENES[:2]) == 0.0


def test_any_of_the_captions_of_a_picture_is_right():
    references = [["red heart", "红心"], ["grinning face"]]
    assert caption_exact(["红心", "grinning face"], references) == 1.0
    assert caption_exact(["grinning face", "red heart"], references) == 0.0
    assert caption_chrf(["红心", "grinning face"], references) == pytest.approx(100)
    assert caption_chrf(["grinning cat", "red heart"], references) < 50
    assert caption_bleu(["红心", "grinning face"], references) == pytest.approx(100)
    assert caption_bleu(["grinning cat", "red heart"], references) < 50


def test_bleu_counts_runs_of_words_and_of_chinese_characters():
    # Of "a red star": 3 of 3 words, 1 of 2 pairs, 0 of 1 triples, which counts as a half (Chen & Cherry 2014).
    expected = 100 * (3 / 3 * 1 / 2 * 0.5 / 1) ** (1 / 3)
    assert caption_bleu(["a red star"], [["red star a"]]) == pytest.approx(expected)
    assert caption_bleu(["一红星"], [["红星一"]]) == pytest.approx(expected)
    assert caption_bleu([""], [["红星一"]]) == 0


def test_known_captions_are_known_letter_for_letter():
    assert share_known(["红心", "red heart", "Red heart", "red"], {"红心", "red heart"}) == 0.5


# Many samples at once


def test_the_distance_of_a_spread_to_itself_is_zero():
    assert set(marginal_distances(SCENES, SCENES).values()) == {0.0}
    assert set(marginal_distances(SCENES[::-1], SCENES).values()) == {0.0}


def test_the_distance_of_a_constant_is_all_but_its_own_share():
    distances = marginal_distances([OneObject(0, 0, 0, 0, 0)] * 10, SCENES)
    assert distances == pytest.approx(
        {"shape": 3 / 4, "color": 5 / 6, "size": 1 / 2, "place": 8 / 9, "background": 3 / 4}
    )


def test_no_scene_at_all_is_as_far_as_can_be():
    assert set(marginal_distances([], SCENES).values()) == {1.0}


def test_the_expected_number_of_kinds_is_that_of_real_draws():
    generator = torch.Generator().manual_seed(0)
    draws = [len(set(torch.randint(60, (100,), generator=generator).tolist())) for _ in range(400)]
    assert expected_distinct(60, 100) == pytest.approx(sum(draws) / 400, abs=0.5)
    assert expected_distinct(60, 1) == pytest.approx(1)


def test_pairs_drawn_from_the_data_agree_and_are_as_diverse_as_the_data():
    draws = random.Random(0).choices(TRAINED_ON, k=1000)
    figures = joint_figures(draws, draws, TRAINED_ON)
    assert figures["joint_agreement"] == 1.0
    assert figures["joint_distinct"] == pytest.approx(1, abs=0.05)
    assert figures["joint_marginal_distance"] == max(figures["joint_marginals"].values()) < 0.1


def test_a_collapsed_generator_agrees_with_itself_but_is_found_out():
    draws = [TRAINED_ON[5]] * 1000
    figures = joint_figures(draws, draws, TRAINED_ON)
    assert figures["joint_agreement"] == 1.0
    assert figures["joint_distinct"] < 0.01
    assert figures["joint_marginal_distance"] > 0.5


def test_captions_that_collapse_under_diverse_pictures_are_found_out():
    draws = random.Random(0).choices(TRAINED_ON, k=1000)
    figures = joint_figures(draws, [TRAINED_ON[5]] * 500 + [None] * 500, TRAINED_ON)
    assert figures["joint_agreement"] < 0.01
    assert figures["joint_distinct"] < 0.01
    assert figures["joint_marginal_distance"] > 0.5

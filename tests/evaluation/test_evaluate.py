# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""`training_scripts/evaluate.py` from its command line, on a pipeline that was never trained."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from datasets import Image as ImageColumn
from gaussian_inputs import make_gaussian_pipeline
from PIL import Image
from vision_models import save_clip, save_vision_model

from hf_vqdit import MultimodalVQVAE, save_pipeline
from hf_vqdit.data import load_caption_tokenizer, shapes_dataset, train_caption_tokenizer
from hf_vqdit.hub import write_model_card

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "evaluate.py"
FEW = ("--num_samples=9", "--num_inference_steps=2", "--num_sampling_seeds=2", "--num_bound_pairs=8")
FEW += ("--num_joint_samples=16",)
EVERYWHERE = {
    "text_to_image_seconds",
    "image_to_text_passes",
    "image_psnr_db",
    "image_ssim",
    "image_codebook_usage",
    "text_reconstruction_exact_r1",
}
EVERYWHERE |= {"fill_words_exact", "minutes", "matmul_gflops", "spread"}
EVERYWHERE |= {"image_to_text_exact", "image_to_text_chrf", "image_to_text_bleu"}
BESIDE_TRAINING = {"image_to_text_in_training", "joint_text_in_training", "held_out_text_in_training"}
BESIDE_TRAINING |= {"features", "comparison", "picture_sets"}
CLIP_SCORES = {f"{name}_clip_score" for name in ("text_to_image", "image_to_text", "joint", "real", "exchanged")}
JUDGED = {"image_reconstruction_judged", "text_to_image_judged", "image_to_text_parsed", "inpaint_judged"}
JUDGED |= {"joint_agreement", "joint_distinct", "joint_marginals", "joint_marginal_distance", "judge_accuracy"}


def evaluate(*arguments: str) -> None:
    spec = importlib.util.spec_from_file_location("evaluate", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([*map(str, arguments)])


def save_text_codec(folder: Path) -> Path:
    """An untrained text codec of r = 2, with a tokenizer of its own."""
    tokenizer = train_caption_tokenizer(["a red star"], vocab_size=270, model_max_length=64)
    sizes = {"text_codebook_size": 16, "text_width": 16, "num_text_decoder_layers": 1}
    vqvae = MultimodalVQVAE(
        image_codebook_size=None, vocab_size=len(tokenizer), text_downsample_factor=2, text_num_groups=2, **sizes
    )
    vqvae.save_pretrained(folder / "vqvae")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def read_outputs(folder: Path) -> tuple[dict, str]:
    assert Image.open(folder / "grid.png").height > 1000
    return json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text()


def save_own_pairs(folder: Path) -> tuple[str, ...]:
    """A folder of pictures and their captions, and the flags that name it; 12 of the 30 are held out."""
    pictures = shapes_dataset("train", num_objects=1, num_rows=30).cast_column("image", ImageColumn())
    for index, row in enumerate(pictures):
        row["image"].save(folder / f"{index}.png")
    lines = ["file_name,text", *(f'{index}.png,"{row["caption"][0]}"' for index, row in enumerate(pictures))]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return f"--train_data_dir={folder}", "--validation_fraction=0.4", f"--cache_dir={folder / 'cache'}"


def test_own_pairs_have_every_figure_that_needs_no_judge(saved_pipeline, tmp_path, capsys):
    data = save_own_pairs(tmp_path)
    other_codec = save_text_codec(tmp_path / "other_codec")
    features = save_vision_model(tmp_path / "Tiny-Features")
    clip = save_clip(tmp_path / "clip", load_caption_tokenizer(saved_pipeline, subfolder="tokenizer"))
    networks = (f"--feature_model_name_or_path={features}", f"--clip_model_name_or_path={clip}")
    codec = f"--compare_text_vqvae={other_codec}"
    order = ("--joint_order=together", "--num_text_inference_steps=3")
    output_dir = tmp_path / "output"
    evaluate(f"--pipeline={saved_pipeline}", f"--output_dir={output_dir}", codec, *order, *data, *networks, *FEW)
    figures, report = read_outputs(output_dir)
    assert EVERYWHERE | BESIDE_TRAINING | CLIP_SCORES | {"text_reconstruction_exact", "bounds"} <= set(figures)
    assert not JUDGED & set(figures)
    assert figures["samples"]["held_out_pairs"] == 12 and figures["comparison"]["training_pictures"] == 18
    assert figures["samples"]["joint_order"] == "together" and figures["samples"]["num_text_inference_steps"] == 3
    assert "`image_to_text_chrf`" in report and "target" not in report

    # Figures of sets of pictures are named after the features, and each sampled one has its spread
    assert "image_rfid_tiny_features_features" in figures
    for name, num_pictures in (("text_to_image", 9), ("joint", 8), ("reconstruction", 9), ("held_out", 9)):
        own = figures["picture_sets"][name]
        assert own["num_pictures"] == num_pictures
        assert {"fid_tiny_features_features", "recall_tiny_features_features", "exact_duplicates"} <= set(own)
        assert set(own["spread"]) == set(own) - {"spread"}
    assert {"image_to_text_bleu", "joint_clip_score", "joint_text_in_training"} <= set(figures["spread"])
    assert Image.open(output_dir / "nearest.png").height > 900

    # What the small numbers do to them is told at the start, and in the report
    notes = [line.removeprefix("Note: ") for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert notes == figures["notes"] and all(f"- {note}" in report for note in notes)
    assert any("16 features" in note for note in notes) and any("one in 13" in note for note in notes)


def test_a_gaussian_pipeline_has_the_same_figures(tiny_pipeline, tmp_path):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type="flow_prediction")
    save_pipeline(pipeline, tmp_path / "pipeline")
    where = (f"--pipeline={tmp_path / 'pipeline'}", *save_own_pairs(tmp_path), *FEW)
    evaluate(*where, f"--output_dir={tmp_path / 'output'}", "--leave_out", "picture_sets")
    figures, _ = read_outputs(tmp_path / "output")
    assert EVERYWHERE <= set(figures) and set(figures["bounds"]) >= {"x", "y", "x|y", "y|x", "x,y"}


def test_a_unet_which_draws_pictures_alone_is_sent_to_the_sweep(tiny_pipeline, tmp_path):
    unet = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    unet |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    save_pipeline(make_gaussian_pipeline(tiny_pipeline, unet_kwargs=unet), tmp_path / "pipeline")
    with pytest.raises(ValueError, match="U-Net.*--sweep --sweep_directions image"):
        evaluate(f"--pipeline={tmp_path / 'pipeline'}", *save_own_pairs(tmp_path), f"--output_dir={tmp_path}", *FEW)


def test_parts_that_take_long_can_be_left_out(saved_pipeline, tmp_path):
    where = (f"--pipeline={saved_pipeline}", *save_own_pairs(tmp_path), *FEW)
    evaluate(*where, f"--output_dir={tmp_path / 'one'}", "--leave_out", "bounds", "picture_sets")
    figures, _ = read_outputs(tmp_path / "one")
    assert EVERYWHERE <= set(figures) and not (BESIDE_TRAINING | {"bounds"}) & set(figures)
    assert not (tmp_path / "one" / "nearest.png").exists()
    with pytest.raises(ValueError, match="leave_out"):
        evaluate(*where, f"--output_dir={tmp_path / 'two'}", "--leave_out", "everything")


def test_a_stream_is_compared_with_its_first_pictures(saved_pipeline, tmp_path):
    where = (f"--pipeline={saved_pipeline}", *save_own_pairs(tmp_path), *FEW, "--streaming=true")
    networks = f"--feature_model_name_or_path={save_vision_model(tmp_path / 'features')}"
    few = ("--num_held_out_samples=10", "--max_training_pictures=8", "--dataloader_num_workers=1")
    evaluate(*where, networks, *few, f"--output_dir={tmp_path}", "--leave_out", "bounds")
    figures, _ = read_outputs(tmp_path)
    assert figures["comparison"]["training_pictures"] == 8 and figures["samples"]["held_out_pairs"] == 10


def test_the_figures_go_into_the_card_of_the_pipeline(saved_pipeline, tmp_path):
    data = (*save_own_pairs(tmp_path), *FEW, f"--output_dir={tmp_path / 'output'}", "--leave_out", "bounds", "copies")
    with pytest.raises(ValueError, match="`update_model_card` needs a folder with a card"):
        evaluate(f"--pipeline={saved_pipeline}", *data, "--update_model_card", "true")
    pipeline = shutil.copytree(saved_pipeline, tmp_path / "pipeline")
    write_model_card(pipeline)
    evaluate(f"--pipeline={pipeline}", *data, "--update_model_card", "true")
    card = (pipeline / "README.md").read_text()
    assert "## Evaluation" in card and "`image_to_text_chrf`" in card and "![Samples](grid.png)" in card
    assert (pipeline / "grid.png").exists() and "nearest.png" not in card


@pytest.mark.parametrize("wrong", ["--num_samples=0", "--num_sampling_seeds=0", "--num_joint_samples=1"])
def test_numbers_from_which_nothing_comes_are_refused(saved_pipeline, tmp_path, wrong):
    with pytest.raises(ValueError, match="num_joint_samples"):
        evaluate(f"--pipeline={saved_pipeline}", "--dataset_name=shapes", f"--output_dir={tmp_path}", *FEW, wrong)


def test_a_sweep_takes_the_place_of_the_report(saved_pipeline, tmp_path):
    few = ("--sweep_samples=4", "--num_sampling_seeds=2", "--sweep_directions", "text_to_image", "image_to_text")
    output_dir = tmp_path / "output"
    data = save_own_pairs(tmp_path)
    evaluate(
        f"--pipeline={saved_pipeline}", f"--output_dir={output_dir}", *data, "--num_inference_steps=2", "--sweep", *few
    )
    assert {path.name for path in output_dir.iterdir()} == {"sweep.json", "sweep.md", "sweep.png"}
    settings = json.loads((output_dir / "sweep.json").read_text())["settings"]
    assert {setting["direction"] for setting in settings} == {"text_to_image", "image_to_text"}
    assert settings[0]["label"] == "base" and settings[0]["call"]["num_text_inference_steps"] == 2
    assert all(len(setting["figures_by_seed"]) == 2 for setting in settings)
    report = (output_dir / "sweep.md").read_text()
    assert "Fréchet distance on tokenizer latents" in report and "chrF" in report and "Guidance beats none" in report


def test_a_missing_training_summary_is_told_before_any_work(saved_pipeline, tmp_path):
    run_dirs = ("--run_dirs", tmp_path)
    with pytest.raises(ValueError, match="has no train_summary.json"):
        evaluate(f"--pipeline={saved_pipeline}", "--dataset_name=shapes", f"--output_dir={tmp_path}", *run_dirs)


def test_a_second_text_codec_of_the_same_r_is_refused(saved_pipeline, tmp_path):
    with pytest.raises(ValueError, match="of another r"):
        evaluate(
            f"--pipeline={saved_pipeline}",
            f"--compare_text_vqvae={saved_pipeline}",
            "--dataset_name=shapes",
            "--num_train_rows=200",
            f"--output_dir={tmp_path}",
        )


@pytest.mark.slow
def test_shapes_have_every_figure_of_the_table(saved_pipeline, tmp_path):
    data = ("--dataset_name=shapes", "--num_train_rows=1000")
    enough_for_fid = ("--num_samples=60", "--num_joint_samples=120")
    evaluate(f"--pipeline={saved_pipeline}", f"--output_dir={tmp_path}", *data, *FEW, *enough_for_fid)
    figures, report = read_outputs(tmp_path)
    assert EVERYWHERE | JUDGED | BESIDE_TRAINING | {"bounds", "image_rfid_own_features"} <= set(figures)
    assert figures["judge_accuracy"] >= 0.99
    assert figures["text_to_image_judged"] < 0.3  # noise is not taken for what was asked for
    fid = {name: own["fid_own_features"] for name, own in figures["picture_sets"].items()}
    assert min(fid["text_to_image"], fid["joint"]) > 2 * fid["held_out"]  # nor for real pictures
    assert figures["held_out_text_in_training"] == 0  # held-out combinations are those that training never tells
    assert "| target |" in report

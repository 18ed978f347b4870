# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""`training_scripts/evaluate.py` from its command line, on a pipeline that was never trained."""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Image as ImageColumn
from PIL import Image

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import shapes_dataset, train_caption_tokenizer

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "evaluate.py"
FEW = ("--num_samples=9", "--num_inference_steps=2", "--num_sampling_seeds=2", "--num_bound_pairs=8")
EVERYWHERE = {"image_psnr_db", "image_ssim", "image_codebook_usage", "text_reconstruction_exact_r1"}
EVERYWHERE |= {"fill_words_exact", "bounds", "minutes", "matmul_gflops", "spread"}
UNJUDGED = {"image_to_text_exact", "image_to_text_chrf"}
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


def test_own_pairs_have_the_figures_that_need_no_judge(saved_pipeline, tmp_path):
    data = save_own_pairs(tmp_path)
    other_codec = save_text_codec(tmp_path / "other_codec")
    codec = f"--compare_text_vqvae={other_codec}"
    order = ("--joint_order=together", "--num_text_inference_steps=3")
    evaluate(f"--pipeline={saved_pipeline}", f"--output_dir={tmp_path / 'output'}", codec, *order, *data, *FEW)
    figures, report = read_outputs(tmp_path / "output")
    assert EVERYWHERE | UNJUDGED | {"text_reconstruction_exact"} <= set(figures) and not JUDGED & set(figures)
    assert figures["samples"]["held_out_pairs"] == 12
    assert figures["samples"]["joint_order"] == "together" and figures["samples"]["num_text_inference_steps"] == 3
    assert "`image_to_text_chrf`" in report and "target" not in report


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
    data = ("--dataset_name=shapes", "--num_train_rows=1000", "--num_joint_samples=20")
    evaluate(f"--pipeline={saved_pipeline}", f"--output_dir={tmp_path}", *data, *FEW)
    figures, report = read_outputs(tmp_path)
    assert EVERYWHERE | JUDGED <= set(figures) and not UNJUDGED & set(figures)
    assert figures["judge_accuracy"] >= 0.99
    assert figures["text_to_image_judged"] < 0.3  # noise is not taken for what was asked for
    assert "| target |" in report

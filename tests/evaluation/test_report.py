# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch

from hf_vqdit.evaluation.bounds import DIRECTIONS
from hf_vqdit.evaluation.report import (
    BOUND_TITLES,
    FIGURES,
    SUMMARY_FILE,
    describe_machine,
    format_report,
    measure_matmul_gflops,
    merge_figures,
    read_training_minutes,
    summarize_bounds,
    summarize_seeds,
    write_report,
)

TARGETS = {
    "image_psnr_db": 27,
    "image_reconstruction_judged": 0.95,
    "text_reconstruction_exact": 0.99,
    "image_codebook_usage": 0.9,
    "text_to_image_judged": 0.75,
    "image_to_text_parsed": 0.75,
    "joint_agreement": 0.75,
    "joint_marginal_distance": 0.1,
    "joint_distinct": 0.8,
    "inpaint_judged": 0.75,
    "fill_words_exact": 0.8,
    "judge_accuracy": 0.99,
}
PRINTED = {"minutes", "matmul_gflops", "text_reconstruction_exact_r1"}
BITS = {"x": 400.0, "y": 90.0, "x|y": 330.0, "y|x": 30.0, "x,y": 425.0}


def make_figures(**changes) -> dict:
    figures = {figure.key_on("own_features"): 0.5 for figure in FIGURES} | {"features": "own_features"}
    figures["bounds"] = summarize_bounds(BITS, num_image_codes=64, num_text_codes=16)
    figures["spread"] = {"joint_agreement": [0.25, 0.625]}
    return figures | changes


def row_of(report: str, key: str) -> list[str]:
    (line,) = [line for line in report.splitlines() if f"`{key}`" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_figure_that_is_asked_for_has_a_line_and_its_target():
    assert {figure.key: figure.target for figure in FIGURES if figure.target is not None} == TARGETS
    assert PRINTED <= {figure.key for figure in FIGURES}
    report = format_report(make_figures(), with_targets=True)
    for key in TARGETS | dict.fromkeys(PRINTED):
        assert len(row_of(report, key)) == 6


@pytest.mark.parametrize("figure", [figure for figure in FIGURES if figure.target is not None], ids=lambda f: f.key)
def test_a_target_is_reached_from_its_own_value_on(figure):
    sign = -1 if figure.is_limit else 1
    for value, reached in ((0, "yes"), (0.001, "yes"), (-0.001, "no")):
        report = format_report(make_figures(**{figure.key: figure.target + sign * value}), with_targets=True)
        assert row_of(report, figure.key)[-1] == reached


def test_without_targets_there_is_no_word_of_them():
    report = format_report(make_figures(), with_targets=False)
    assert "target" not in report and "reached" not in report
    assert len(row_of(report, "joint_agreement")) == 4


def test_what_was_not_measured_is_not_reported():
    report = format_report({"image_psnr_db": 25.04}, with_targets=False)
    assert row_of(report, "image_psnr_db")[2] == "25.0 dB"
    assert report.count("`") == 2 and "Bounds" not in report


def test_the_spread_over_the_seeds_is_beside_the_mean():
    by_seed = [{"joint_agreement": value} for value in (0.25, 0.5, 0.625)]
    figures = summarize_seeds(by_seed)
    assert figures["joint_agreement"] == pytest.approx(0.458333333)
    row = row_of(format_report(figures, with_targets=False), "joint_agreement")
    assert row[2:] == ["45.8%", "25.0% to 62.5%"]


def test_what_rests_on_features_bears_their_name():
    sets = {
        "text_to_image": {"num_pictures": 9, "fid_own_features": 3.0, "spread": {"fid_own_features": [2.5, 3.5]}},
        "held_out": {"num_pictures": 9, "spread": {"num_pictures": [9, 9]}},
    }
    rests_on = {"features": "some", "number_of_features": 64, "training_pictures": 50, "held_out_pictures": 9}
    figures = {"features": "own_features", "image_rfid_own_features": 1.25, "image_rfid_other_features": 7}
    figures |= {"comparison": rests_on, "picture_sets": sets}
    report = format_report(figures, with_targets=False)
    assert row_of(report, "image_rfid_own_features")[2] == "1.25" and "other_features" not in report
    assert row_of(report, "fid_own_features")[2:] == ["3.00 (2.50 to 3.50)", ""]  # the held-out ones have none
    assert row_of(report, "num_pictures")[2:] == ["9", "9"]
    assert "kid" not in report and "near duplicate" not in report
    rests_on |= {"near_distance": 1.5, "near_distance_pixels": 12.25}
    assert "(1.500 on features, 12.2 of 255 on pixels)" in format_report(figures, with_targets=False)


def test_notes_are_reported():
    report = format_report({"notes": ["Too few.", "Far too few."]}, with_targets=False)
    assert "## Notes\n\n- Too few.\n- Far too few.\n" in report
    assert "Notes" not in format_report({"notes": []}, with_targets=False)


def test_figures_of_several_sources_keep_their_spread():
    parts = [summarize_seeds([{"one": 1}, {"one": 2}]), {"alone": 5}, summarize_seeds([{"two": 3}])]
    assert merge_figures(*parts) == {
        "one": 1.5,
        "alone": 5,
        "two": 3,
        "spread": {"one": [1, 2], "two": [3, 3]},
    }


def test_bounds_are_compared_in_bits_a_pair():
    assert tuple(BOUND_TITLES) == tuple(DIRECTIONS)
    bounds = summarize_bounds(BITS, num_image_codes=64, num_text_codes=16)
    assert bounds["x|y"] == {"bits_per_pair": 330, "bits_per_code": 330 / 64}
    assert bounds["y|x"]["bits_per_code"] == 30 / 16
    assert bounds["x,y"]["bits_per_code"] == 425 / 80
    assert bounds["image_is_helped_by_text"] and bounds["text_is_helped_by_image"]
    assert bounds["joint_gap_bits"] == 425 - (90 + 330)
    other = summarize_bounds(BITS | {"x|y": 401.0, "y|x": 91.0}, num_image_codes=64, num_text_codes=16)
    assert not other["image_is_helped_by_text"] and not other["text_is_helped_by_image"]
    assert "+5.0 bits a pair" in format_report({"bounds": bounds}, with_targets=False)


def test_what_is_no_number_is_null_in_the_json(tmp_path):
    figures = {"image_psnr_db": float("nan"), "spread": {"image_psnr_db": [20.0, float("inf")]}}
    write_report(figures, tmp_path, with_targets=False)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert found == {"image_psnr_db": None, "spread": {"image_psnr_db": [20.0, None]}}


def test_the_json_holds_exactly_what_was_measured(tmp_path):
    figures = make_figures(measured=describe_machine(torch.device("cpu"), torch.float32))
    write_report(figures, tmp_path / "new" / "folder", with_targets=True)
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text()) == figures
    report = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert torch.__version__ in report and "dtype: float32" in report


def test_the_minutes_of_training_are_those_that_the_runs_wrote(tmp_path):
    for name, seconds in (("vqvae", 90), ("dit", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / SUMMARY_FILE).write_text(json.dumps({"seconds": seconds, "steps": 3}))
    assert read_training_minutes([tmp_path / "vqvae", str(tmp_path / "dit")]) == {"vqvae": 1.5, "dit": 5}
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match="unfinished has no train_summary.json"):
        read_training_minutes([tmp_path / "unfinished"])


def test_the_speed_of_the_machine_is_a_number_of_operations_a_second():
    assert 0.1 < measure_matmul_gflops(size=256, num_repeats=3) < 100_000

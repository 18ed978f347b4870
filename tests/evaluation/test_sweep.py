# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The comparison of sampling settings, on a pipeline that was never trained and on made-up numbers."""

import json
from dataclasses import replace

import pytest
from gaussian_inputs import make_gaussian_pipeline
from PIL import Image

from hf_vqdit import MaskedDiffusionScheduler
from hf_vqdit.data import shapes_dataset
from hf_vqdit.evaluation.features import TokenizerLatents, extract_features
from hf_vqdit.evaluation.judge import ShapesJudge
from hf_vqdit.evaluation.picture_sets import diversity, frechet_distance
from hf_vqdit.evaluation.sampling import HeldOutPairs, read_held_out, sample
from hf_vqdit.evaluation.sweep import (
    DEFAULT_DIRECTIONS,
    DIRECTIONS,
    FRECHET_DISTANCE,
    JUDGED_QUALITY,
    NUM_STEPS,
    QUESTIONS,
    Bench,
    Result,
    Setting,
    Statement,
    answer,
    changed_schedulers,
    compare,
    make_settings,
    run_sweep,
)
from hf_vqdit.evaluation.sweep_report import format_statement, write_sweep

CALL = {
    "num_inference_steps": 3,
    "num_text_inference_steps": 3,
    "guidance_scale": 3.0,
    "text_guidance_scale": 1.0,
    "joint_order": "text_first",
}
UNET = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
UNET |= {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
JUDGED = JUDGED_QUALITY["text_to_image"]
GUIDANCE, REMASKING = QUESTIONS


@pytest.fixture
def held_out(tiny_pipeline) -> HeldOutPairs:
    return read_held_out(shapes_dataset("validation", num_objects=1, num_rows=6), tiny_pipeline.tokenizer, 32)


def make_result(label: str, values: list[float], varied: str = "guidance", passes: float = 8, **properties) -> Result:
    """A result with made-up numbers."""
    setting = Setting("text_to_image", varied, label, {}, **properties)
    costs = {"forward_passes": passes, "forward_rows": 2 * passes, "seconds": 0.1}
    return Result(setting, [{JUDGED.key: value, FRECHET_DISTANCE.key: value, **costs} for value in values])


def give_back(results: list[Result]):
    """A `run` whose fresh samples are as good as those that were chosen from."""
    return lambda setting, seeds: next(result for result in results if result.setting is setting)


# Settings


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_setting_differs_from_the_base_in_one_thing(tiny_pipeline, direction):
    base, *variations = make_settings(direction, CALL, tiny_pipeline)
    alone = {"output_modalities": ("image",), "guidance_scale": 1.0} if direction == "image" else {}
    assert (base.varied, base.call, base.scheduler, base.text_scheduler) == ("base", CALL | alone, {}, {})
    assert len({setting.label for setting in variations}) == len(variations)
    generated = {"image": "scheduler", "text": "text_scheduler"}
    for setting in variations:
        changed = {name for name in base.call if setting.call[name] != base.call[name]}
        changed |= {name for name in generated.values() if getattr(setting, name)}
        steps = {f"num_{'text_' * (modality == 'text')}inference_steps" for modality in DIRECTIONS[direction]}
        assert changed in (
            steps,
            {"guidance_scale" if "image" in DIRECTIONS[direction] else "text_guidance_scale"},
            {generated[modality] for modality in DIRECTIONS[direction]},
            {"joint_order"},
        )
    assert [s.label for s in variations if s.varied == "steps"] == [f"{count} steps" for count in NUM_STEPS]
    varied = {"steps", "temperature", "mask schedule", "order", "remasking"}
    varied |= {"guidance"} if direction != "image" else set()
    assert {s.varied for s in variations} == varied | ({"joint order"} if direction == "joint" else set())


def test_a_variation_that_is_the_base_is_not_run_twice(tiny_pipeline):
    tiny_pipeline.scheduler = MaskedDiffusionScheduler(temperature=0.8, order="random")
    call = CALL | {"num_inference_steps": 8, "guidance_scale": 1.5}
    labels = {setting.label for setting in make_settings("text_to_image", call, tiny_pipeline)}
    assert not labels & {"8 steps", "guidance 1.5", "temperature 0.8", "random order", "no remasking"}
    assert {"base", "4 steps", "guidance 1", "temperature 1", "confidence order", "remask cap 0.1"} <= labels


def test_settings_know_whether_they_are_guided_and_remask(tiny_pipeline):
    settings = {setting.label: setting for setting in make_settings("text_to_image", CALL, tiny_pipeline)}
    assert settings["base"].is_guided and not settings["guidance 1"].is_guided
    assert settings["remask cap 0.1"].is_remasking and not settings["base"].is_remasking
    captions = {setting.label: setting for setting in make_settings("image_to_text", CALL, tiny_pipeline)}
    assert captions["guidance 2"].is_guided and not captions["base"].is_guided


def test_schedulers_are_changed_for_a_while_only(tiny_pipeline):
    own = tiny_pipeline.scheduler, tiny_pipeline.text_scheduler
    setting = Setting("text_to_image", "order", "random order", CALL, scheduler={"order": "random"})
    with (
        pytest.raises(RuntimeError, match="on the way"),
        changed_schedulers(tiny_pipeline, setting.scheduler, setting.text_scheduler),
    ):
        assert tiny_pipeline.scheduler.config.order == "random"
        assert tiny_pipeline.text_scheduler.config.order == "confidence"
        assert tiny_pipeline.scheduler.config.temperature == own[0].config.temperature
        raise RuntimeError("on the way")
    assert (tiny_pipeline.scheduler, tiny_pipeline.text_scheduler) == own


@pytest.mark.parametrize("changes", [{"no_such_thing": 1}, {"order": "no such order"}])
def test_a_scheduler_that_cannot_be_changed_so_is_left_as_it_was(tiny_pipeline, changes):
    own = tiny_pipeline.scheduler
    setting = Setting("text_to_image", "order", "?", CALL, scheduler=changes)
    with (
        pytest.raises(ValueError, match="no_such_thing|no such order"),
        changed_schedulers(tiny_pipeline, setting.scheduler, setting.text_scheduler),
    ):
        pass
    assert tiny_pipeline.scheduler is own


# Runs


def test_every_setting_is_run_or_named_as_left_out(tiny_pipeline, held_out, tmp_path):
    own = tiny_pipeline.scheduler, tiny_pipeline.text_scheduler
    judge = ShapesJudge(num_objects=1).eval()  # untrained: it reads something
    sweep = run_sweep(tiny_pipeline, held_out, CALL, num_samples=3, num_seeds=2, judge=judge)
    assert (tiny_pipeline.scheduler, tiny_pipeline.text_scheduler) == own
    tried = [(r.setting.direction, r.setting.label) for r in sweep.results]
    left_out = [(setting.direction, setting.label) for setting, _ in sweep.left_out]
    wanted = [(name, s.label) for name in DEFAULT_DIRECTIONS for s in make_settings(name, CALL, tiny_pipeline)]
    assert sorted(tried + left_out) == sorted(wanted)
    assert all(reason for _, reason in sweep.left_out)
    for result in sweep.results:
        assert len(result.figures) == 2
        assert all(0 <= value <= 1 for value in result.values(sweep.quality[result.setting.direction].key))
        assert all(value > 0 for name in ("forward_passes", "seconds") for value in result.values(name))
    assert len(sweep.statements) == 2 * len(DEFAULT_DIRECTIONS)

    write_sweep(sweep, tmp_path / "new", {"processor": "this one"})
    assert Image.open(tmp_path / "new" / "sweep.png").width == 1200
    report, figures = ((tmp_path / "new" / f"sweep.{suffix}").read_text() for suffix in ("md", "json"))
    assert all(title in report for title in ("## Text to image", "## Image to text", "## Joint", "this one"))
    assert len(json.loads(figures)["settings"]) == len(tried) and len(json.loads(figures)["left_out"]) == len(left_out)
    for setting, reason in sweep.left_out:
        assert f"{setting.label}: {reason}" in report


def test_what_the_scheduler_does_not_know_is_left_out_by_name(tiny_pipeline, held_out):
    class PlainScheduler(MaskedDiffusionScheduler):
        def __init__(self, *, temperature: float = 1.0):
            super().__init__(temperature=temperature)

    tiny_pipeline.scheduler = PlainScheduler()
    bench = Bench(tiny_pipeline, held_out, num_samples=2)
    for setting in make_settings("text_to_image", CALL, tiny_pipeline):
        if setting.varied in ("order", "remasking"):
            with pytest.raises(ValueError, match="PlainScheduler has no setting"):
                bench.run(setting, [0])


def test_passes_rows_and_figures_are_those_of_the_setting(tiny_pipeline, held_out):
    bench = Bench(tiny_pipeline, held_out, num_samples=4)
    settings = {setting.label: setting for setting in make_settings("text_to_image", CALL, tiny_pipeline)}
    base, unguided = (bench.run(settings[label], [0]).figures[0] for label in ("base", "guidance 1"))
    assert base["forward_passes"] == unguided["forward_passes"] == 3
    assert base["forward_rows"] == 6 and unguided["forward_rows"] == 3
    assert set(base) == {
        "fid_tokenizer_latents",
        "diversity_tokenizer_latents",
        "forward_passes",
        "forward_rows",
        "seconds",
    }
    captions = bench.run(make_settings("image_to_text", CALL, tiny_pipeline)[0], [0]).figures[0]
    assert {"image_to_text_chrf", "image_to_text_exact"} <= set(captions) and "fid_tokenizer_latents" not in captions


@pytest.mark.parametrize("config", ({}, {"unet_kwargs": UNET}), ids=("transformer", "unet"))
def test_pictures_alone_are_compared_whatever_the_process_and_the_network(tiny_pipeline, held_out, config):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type="flow_prediction", **config)
    sweep = run_sweep(pipeline, held_out, CALL, ("image",), num_samples=2, num_seeds=2)
    assert [result.setting.label for result in sweep.results] == ["base", *(f"{count} steps" for count in NUM_STEPS)]
    for result in sweep.results:  # a row for each pass
        num_steps = result.setting.call["num_inference_steps"]
        assert result.mean("forward_passes") == result.mean("forward_rows") == num_steps
        assert result.mean("fid_tokenizer_latents") > 0
    assert all("FlowMatchEulerDiscreteScheduler has no setting" in reason for _, reason in sweep.left_out)


def test_sets_of_pictures_are_compared_on_the_latents_of_the_tokenizer(tiny_pipeline, held_out):
    setting = make_settings("text_to_image", CALL, tiny_pipeline)[0]
    figures = Bench(tiny_pipeline, held_out, num_samples=4).run(setting, [3]).figures[0]
    drawn = sample(tiny_pipeline, 4, 3, prompts=held_out.captions[:4], **CALL).pixel_values
    latents = TokenizerLatents(tiny_pipeline.vqvae)
    features, real_features = (extract_features(latents, own) for own in (drawn, held_out.pixel_values))
    assert figures["fid_tokenizer_latents"] == pytest.approx(frechet_distance(features, real_features))
    assert figures["diversity_tokenizer_latents"] == pytest.approx(diversity(features, real_features))


@pytest.mark.parametrize(
    "wrong", [{"directions": ["sideways"]}, {"directions": []}, {"num_samples": 1}, {"num_seeds": 1}]
)
def test_a_sweep_that_cannot_be_is_refused(tiny_pipeline, held_out, wrong):
    with pytest.raises(ValueError, match="sideways|directions|at least 2"):
        run_sweep(tiny_pipeline, held_out, CALL, **wrong)


def test_a_base_that_cannot_be_run_is_no_sweep(tiny_pipeline, held_out):
    with pytest.raises(ValueError, match="joint_order"):
        run_sweep(tiny_pipeline, held_out, CALL | {"joint_order": "backwards"}, num_samples=2, num_seeds=2)


# Statements


def test_the_gain_has_the_sign_of_the_measure_and_the_spread_is_the_larger_range():
    assert compare([0.8, 0.9], [0.5, 0.55]) == pytest.approx((0.325, 0.1))
    assert compare([0.8, 0.9], [0.5, 0.55], is_lower_better=True) == pytest.approx((-0.325, 0.1))


@pytest.mark.parametrize(
    ("guided", "unguided", "expected"),
    [
        ([0.90, 0.92, 0.91], [0.80, 0.82, 0.81], True),  # better by 0.10, spread 0.02
        ([0.83, 0.85, 0.81], [0.80, 0.82, 0.81], False),  # better by 0.02, spread 0.04
        ([0.70, 0.72, 0.71], [0.80, 0.82, 0.81], False),  # worse
        ([0.81, 0.81, 0.81], [0.81, 0.81, 0.81], False),  # equal
    ],
)
def test_better_by_more_than_the_spread_is_yes_and_else_no(guided, unguided, expected):
    results = [make_result("base", unguided, "base"), make_result("guidance 2", guided, is_guided=True)]
    statement = answer(GUIDANCE, results, JUDGED, give_back(results), range(3))
    assert statement.answer is expected
    sentence = format_statement(statement, JUDGED)
    assert (": yes." if expected else ": no.") in sentence
    assert "guidance 2" in sentence and "base" in sentence and "points" in sentence
    # The same numbers as distances, of which less is better
    distance = answer(GUIDANCE, results, FRECHET_DISTANCE, give_back(results), range(3))
    assert distance.gain == pytest.approx(-statement.gain) and not (distance.answer and statement.answer)


def test_the_best_setting_is_judged_on_fresh_seeds():
    results = [
        make_result("base", [0.5, 0.5, 0.5], "base"),
        make_result("guidance 2", [0.7, 0.7, 0.7], is_guided=True),
        make_result("guidance 3", [0.9, 0.9, 0.9], is_guided=True),  # lucky
    ]
    asked = []

    def run(setting: Setting, seeds: range) -> Result:
        asked.append((setting.label, [*seeds]))
        return make_result(setting.label, [0.5, 0.5, 0.5], is_guided=setting.is_guided)

    statement = answer(GUIDANCE, results, JUDGED, run, range(3, 6))
    assert asked == [("guidance 3", [3, 4, 5]), ("base", [3, 4, 5])]
    assert statement.answer is False and statement.gain == 0


def test_remasking_is_compared_at_equal_passes():
    remasking = make_result("remask cap 0.1", [0.8, 0.8], "remasking", passes=24, is_remasking=True)
    base = make_result("base", [0.5, 0.5], "base", passes=16)
    more = make_result("32 steps", [0.6, 0.6], "steps", passes=24)
    most = make_result("64 steps", [0.9, 0.9], "steps", passes=48)
    for lacking, expected in (([base, more, most], more), ([base, most], most), ([base], base)):
        results = [*lacking, remasking]
        statement = answer(REMASKING, results, JUDGED, give_back(results), range(2))
        assert statement.lacking is expected and statement.having is remasking
    # A setting that varies something else is no side of the question
    results = [base, replace(remasking, setting=replace(remasking.setting, varied="order"))]
    assert answer(REMASKING, results, JUDGED, give_back(results), range(2)).answer is None


def test_a_question_without_two_sides_has_no_answer():
    results = [make_result("base", [0.5, 0.5], "base")]
    statement = answer(REMASKING, results, JUDGED, give_back(results), range(2))
    assert statement == Statement("remasking_beats_none", "text_to_image")
    assert "not compared" in format_statement(statement, JUDGED)

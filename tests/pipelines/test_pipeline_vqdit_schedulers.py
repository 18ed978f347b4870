# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The schedulers of diffusers in the Gaussian pipeline: they draw what an exact network knows, or are refused."""

import diffusers
import numpy as np
import pytest
import torch
from gaussian_inputs import MEAN, STD, install_oracle, make_gaussian_pipeline
from pipeline_inputs import PROMPT, watch_transformer
from seeded import generator

import hf_vqdit
from hf_vqdit.pipelines.pipeline_vqdit import GAUSSIAN_SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

VP = {"clip_sample": False, "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
END_AT_ONE = {"trained_betas": [*np.linspace(1e-4, 0.02, 999).tolist(), 1.0]}  # nothing of x_0 is left


def make_scheduler(name, prediction_type, **settings):
    scheduler_class = getattr(diffusers, f"{name}Scheduler")
    if prediction_type == "flow_prediction":
        return scheduler_class(**settings) if name.startswith("Flow") else scheduler_class(**FLOW, **settings)
    return scheduler_class.from_config(VP | {"prediction_type": prediction_type} | settings)


def draw(tiny_pipeline, scheduler, num_inference_steps=50, variance=None, **config):
    """The last latents of both modalities, drawn side by side from an exact network."""
    pipeline = make_gaussian_pipeline(tiny_pipeline, scheduler, **config)
    install_oracle(pipeline, variance)
    seen = []

    def see(pipeline, step, timestep, tensors):
        seen.append(tensors)
        return {}

    pipeline(
        num_images_per_prompt=32,
        num_inference_steps=num_inference_steps,
        joint_order="together",
        callback_on_step_end=see,
        callback_on_step_end_tensor_inputs=("image_latents", "text_latents"),
        generator=generator(),
        output_type="latent",
    )
    return seen[-1]["image_latents"], seen[-1]["text_latents"]


def assert_drawn_from(latents, mean=MEAN, std=STD, bias=0.03, spread=0.08):
    assert latents.dtype == torch.float32
    count = latents.numel()
    assert abs(latents.mean().item() - mean) < bias + 4 * std / count**0.5
    assert abs(latents.std().item() - std) < spread + 4 * std / count**0.5


# Schedulers that fit


@pytest.mark.parametrize("name", GAUSSIAN_SCHEDULERS)
def test_an_exact_network_is_sampled_exactly_by_every_scheduler_of_the_list(tiny_pipeline, name):
    prediction_type = GAUSSIAN_SCHEDULERS[name][0]
    scheduler = make_scheduler(name.removesuffix("Scheduler"), prediction_type)
    for latents in draw(tiny_pipeline, scheduler, prediction_type=prediction_type):
        assert_drawn_from(latents)


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        (name, prediction_type)
        for name in ("DDPM", "DDIM", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "EulerDiscrete")
        for prediction_type in GAUSSIAN_SCHEDULERS[f"{name}Scheduler"][1:]
    ],
)
def test_an_exact_network_is_sampled_exactly_whatever_it_predicts(tiny_pipeline, name, prediction_type):
    scheduler = make_scheduler(name, prediction_type)
    for latents in draw(tiny_pipeline, scheduler, prediction_type=prediction_type):
        assert_drawn_from(latents)


@pytest.mark.parametrize(
    ("name", "prediction_type", "settings"),
    (
        ("DDPM", "v_prediction", {"rescale_betas_zero_snr": True}),
        ("DDIM", "sample", {"rescale_betas_zero_snr": True}),
        ("EulerDiscrete", "v_prediction", {"rescale_betas_zero_snr": True}),
        ("DPMSolverMultistep", "epsilon", {"use_karras_sigmas": True}),
        ("DDPM", "epsilon", {"beta_schedule": "squaredcos_cap_v2"}),
        ("DDIM", "epsilon", {"trained_betas": np.linspace(0.001, 0.05, 200).tolist(), "num_train_timesteps": 200}),
        ("DDIM", "v_prediction", END_AT_ONE),
        ("DDPM", "sample", END_AT_ONE),
        ("TCD", "v_prediction", END_AT_ONE),
        ("UniPCMultistep", "epsilon", {"use_exponential_sigmas": True}),
        ("FlowMatchEulerDiscrete", "flow_prediction", {"shift": 3.0}),
        ("FlowMatchEulerDiscrete", "flow_prediction", {"use_karras_sigmas": True}),
        ("FlowMatchEulerDiscrete", "flow_prediction", {"use_exponential_sigmas": True}),
        ("FlowMatchEulerDiscrete", "flow_prediction", {"use_beta_sigmas": True}),
        ("FlowMatchEulerDiscrete", "flow_prediction", {"shift_terminal": 0.02}),
        ("UniPCMultistep", "flow_prediction", {"flow_shift": 3.0}),
    ),
)
def test_an_exact_network_is_sampled_exactly_under_other_noise(tiny_pipeline, name, prediction_type, settings):
    scheduler = make_scheduler(name, prediction_type, **settings)
    for latents in draw(tiny_pipeline, scheduler, prediction_type=prediction_type):
        assert_drawn_from(latents)


@pytest.mark.parametrize(("variance", "variance_type"), ((-1.0, "fixed_small"), (1.0, "fixed_large")))
def test_a_learned_variance_at_its_ends_is_a_fixed_one(tiny_pipeline, variance, variance_type):
    settings = {"timestep_spacing": "leading"}  # else the last step adds noise, of next to nothing in one of them
    learned = make_scheduler("DDPM", "epsilon", variance_type="learned_range", **settings)
    fixed = make_scheduler("DDPM", "epsilon", variance_type=variance_type, **settings)
    config = {"prediction_type": "epsilon", "learn_sigma": True, "variance": variance}
    for one, other in zip(draw(tiny_pipeline, learned, **config), draw(tiny_pipeline, fixed, **config), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_a_learned_variance_of_the_posterior_is_sampled_exactly(tiny_pipeline):
    scheduler = make_scheduler("DDPM", "epsilon", variance_type="learned_range")
    config = {"prediction_type": "epsilon", "learn_sigma": True, "variance": 0.0}
    for latents in draw(tiny_pipeline, scheduler, **config):
        assert_drawn_from(latents)


def test_without_a_scheduler_for_it_the_variance_is_left_out(tiny_pipeline):
    config = {"prediction_type": "epsilon", "learn_sigma": True}
    with_it, other = (
        draw(tiny_pipeline, make_scheduler("DPMSolverMultistep", "epsilon"), 10, variance, **config)
        for variance in (0.0, 5.0)
    )
    assert torch.equal(with_it[0], other[0]) and torch.equal(with_it[1], other[1])


@pytest.mark.parametrize("name", ("HeunDiscrete", "KDPM2Discrete", "EulerDiscrete", "LMSDiscrete", "PNDM"))
@pytest.mark.parametrize("order", ("together", "text_first", "image_first"))
def test_each_modality_may_take_its_own_number_of_steps(tiny_pipeline, name, order):
    pipeline = make_gaussian_pipeline(tiny_pipeline, make_scheduler(name, "epsilon"), prediction_type="epsilon")
    for steps, text_steps in ((4, 9), (9, 4)):
        output = pipeline(num_inference_steps=steps, num_text_inference_steps=text_steps, joint_order=order)
        assert len(output.images) == len(output.texts) == 1


def test_more_noise_for_text_is_a_scheduler_of_its_own(tiny_pipeline):
    image = make_scheduler("DPMSolverMultistep", "v_prediction")
    text = make_scheduler("DDPM", "v_prediction", beta_schedule="sigmoid", num_train_timesteps=400)
    for latents in draw(tiny_pipeline, image, prediction_type="v_prediction", text_scheduler=text):
        assert_drawn_from(latents)


# Times


def told_times(tiny_pipeline, scheduler, prediction_type, **settings):
    """The times of the image that the transformer is told, text given."""
    pipeline = make_gaussian_pipeline(tiny_pipeline, scheduler, prediction_type=prediction_type)
    calls = watch_transformer(pipeline)
    pipeline(PROMPT, **{"guidance_scale": 1.0, "num_inference_steps": 4, "generator": generator(), **settings})
    assert all(call["text_timestep"] == 0 for call in calls)
    return [call["image_timestep"].item() for call in calls], pipeline.scheduler


@pytest.mark.parametrize("spacing", ("leading", "trailing", "linspace"))
def test_index_i_of_a_table_of_n_levels_is_time_i_plus_one_of_n(tiny_pipeline, spacing):
    times, scheduler = told_times(
        tiny_pipeline, make_scheduler("DDIM", "epsilon", timestep_spacing=spacing), "epsilon"
    )
    assert times == pytest.approx([(timestep.item() + 1) / 1000 for timestep in scheduler.timesteps])
    assert (times[0] == 1) == (spacing != "leading")  # the last level that is trained


@pytest.mark.parametrize("name", ("DPMSolverMultistep", "UniPCMultistep", "FlowMatchEulerDiscrete"))
def test_the_time_of_a_flow_is_its_sigma_and_not_a_timestep_cut_to_an_integer(tiny_pipeline, name):
    times, scheduler = told_times(
        tiny_pipeline, make_scheduler(name, "flow_prediction"), "flow_prediction", num_inference_steps=7
    )
    assert times == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-7)


def test_a_flow_is_shifted_once(tiny_pipeline):
    scheduler = make_scheduler("FlowMatchEulerDiscrete", "flow_prediction", shift=3.0)
    times, _ = told_times(tiny_pipeline, scheduler, "flow_prediction")
    assert times == pytest.approx([3 * t / (1 + 2 * t) for t in (1.0, 0.75, 0.5, 0.25)])


def test_heun_looks_at_each_time_twice_but_the_first(tiny_pipeline):
    times, _ = told_times(tiny_pipeline, make_scheduler("HeunDiscrete", "epsilon"), "epsilon")
    assert len(times) == 7 and times[1:] == sorted(2 * sorted({*times[1:]}), reverse=True)


# Schedulers and settings that do not fit


@pytest.mark.parametrize(
    ("prediction_type", "scheduler", "message"),
    (
        ("epsilon", hf_vqdit.MaskedDiffusionScheduler(), "'gaussian'.*one of DDIM.*got MaskedDiffusionScheduler"),
        ("epsilon", diffusers.LCMScheduler(), r"'epsilon'\): one of .*got LCMScheduler"),
        ("epsilon", diffusers.EDMEulerScheduler(), "got EDMEulerScheduler"),
        ("epsilon", diffusers.FlowMatchEulerDiscreteScheduler(), "'epsilon'.*got FlowMatchEulerDiscreteScheduler"),
        ("sample", diffusers.PNDMScheduler(), "'sample'.*got PNDMScheduler"),
        ("flow_prediction", diffusers.DDIMScheduler(), "'flow_prediction'.*got DDIMScheduler"),
        (
            "epsilon",
            diffusers.DDPMScheduler(),
            r"`clip_sample` True.*needs False: DDPMScheduler.from_config\(pipe[.]",
        ),
        ("v_prediction", make_scheduler("DDIM", "epsilon"), "`prediction_type` 'epsilon'.*needs 'v_prediction'"),
        ("epsilon", make_scheduler("DDIM", "epsilon", thresholding=True), "`thresholding` True.*needs False"),
        ("epsilon", make_scheduler("DDIM", "epsilon", rescale_betas_zero_snr=True), "`rescale_betas_zero_snr` True"),
        (
            "flow_prediction",
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
            "`use_flow_sigmas` False",
        ),
        ("epsilon", diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "`use_flow_sigmas` True"),
        (
            "flow_prediction",
            diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
            "`stochastic_sampling`",
        ),
        (
            "flow_prediction",
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            "`use_dynamic_shifting`",
        ),
        ("flow_prediction", diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0), "`shift` 3.0.*needs 1.0"),
        (
            "epsilon",
            make_scheduler("DDPM", "epsilon", variance_type="learned_range"),
            "`variance_type` 'learned_range'",
        ),
        (
            "epsilon",
            make_scheduler("DDPM", "epsilon", variance_type="fixed_large_log"),
            "`variance_type` 'fixed_large_log'",
        ),
        (
            "v_prediction",
            make_scheduler("EulerDiscrete", "v_prediction", timestep_type="continuous"),
            "`timestep_type` 'continuous'.*needs 'discrete'",
        ),
        (
            "epsilon",
            make_scheduler("EulerDiscrete", "epsilon", interpolation_type="log_linear"),
            "`interpolation_type` 'log_linear'.*needs 'linear'",
        ),
        (
            "flow_prediction",
            diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            "`invert_sigmas` True.*needs False",
        ),
    ),
)
@pytest.mark.parametrize("name", ("scheduler", "text_scheduler"))
def test_a_scheduler_or_setting_that_does_not_fit_is_refused_by_name(
    tiny_pipeline, prediction_type, scheduler, message, name
):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type=prediction_type)
    calls = watch_transformer(pipeline)
    setattr(pipeline, name, scheduler)
    with pytest.raises(ValueError, match=f"`{name}`.*{message}"):
        pipeline()
    assert not calls


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, f"use_{kind}_sigmas")
        for name in ("UniPCMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "SASolver")
        for kind in ("karras", "exponential", "beta")
    ]
    + [("DPMSolverMultistep", "use_lu_lambdas")],
)
def test_sigmas_of_the_betas_are_refused_for_a_flow(tiny_pipeline, name, setting):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type="flow_prediction")
    pipeline.scheduler = make_scheduler(name, "flow_prediction", **{setting: True})
    with pytest.raises(ValueError, match=f"`scheduler`, {name}Scheduler, has `{setting}` True.*needs False"):
        pipeline.check_schedulers()


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        (name.removesuffix("Scheduler"), prediction_type)
        for name, prediction_types in GAUSSIAN_SCHEDULERS.items()
        for prediction_type in ("epsilon", "v_prediction")
        if prediction_type in prediction_types
        and (prediction_type == "epsilon" or not name.startswith(("DDIM", "DDPM", "TCD")))
    ],
)
def test_betas_that_leave_nothing_at_the_last_level_are_refused_where_it_is_divided_by(
    tiny_pipeline, name, prediction_type
):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type=prediction_type)
    pipeline.text_scheduler = make_scheduler(name, prediction_type, **END_AT_ONE)
    with pytest.raises(ValueError, match=f"`text_scheduler`, {name}.*`trained_betas`.*'v_prediction' or 'sample'"):
        pipeline.check_schedulers()


@pytest.mark.parametrize("joint_order", ("together", "text_first"))
def test_vectors_that_are_not_finite_become_an_error_and_no_codes(tiny_pipeline, joint_order):
    scheduler = make_scheduler("UniPCMultistep", "flow_prediction", solver_type="bh1")  # infinity at a last sigma of 0
    pipeline = make_gaussian_pipeline(tiny_pipeline, scheduler, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="UniPCMultistepScheduler led to vectors that are not finite"):
        pipeline(num_inference_steps=3, joint_order=joint_order)


def test_schedulers_of_diffusers_are_refused_by_a_masked_transformer(tiny_pipeline):
    tiny_pipeline.scheduler = make_scheduler("DDIM", "epsilon")
    with pytest.raises(ValueError, match="`scheduler`.*'masked'.*one of MaskedDiffusionScheduler, got DDIMScheduler"):
        tiny_pipeline(PROMPT)


# Schedulers that swap


def test_a_learned_variance_is_not_inherited_by_a_solver_that_would_cut_the_channels(tiny_pipeline):
    scheduler = make_scheduler("DDPM", "epsilon", variance_type="learned_range")
    pipeline = make_gaussian_pipeline(tiny_pipeline, scheduler, prediction_type="epsilon", learn_sigma=True)
    pipeline(PROMPT, num_inference_steps=2)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="`variance_type` 'learned_range'.*needs None.*variance_type=None"):
        pipeline(PROMPT)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, variance_type=None)
    assert len(pipeline(PROMPT, num_inference_steps=2).images) == 1


def test_a_learned_variance_that_the_class_before_took_is_left_out(tiny_pipeline):
    config = {"prediction_type": "epsilon", "learn_sigma": True, "variance": 0.0}
    learned = make_scheduler("DDPM", "epsilon", variance_type="learned_range")
    swapped, plain = (
        draw(tiny_pipeline, scheduler, 5, **config)
        for scheduler in (diffusers.DDIMScheduler.from_config(learned.config), make_scheduler("DDIM", "epsilon"))
    )
    assert torch.equal(swapped[0], plain[0]) and torch.equal(swapped[1], plain[1])


@pytest.mark.parametrize("name", ("DDIM", "EulerDiscrete", "UniPCMultistep", "DDPM", "PNDM", "HeunDiscrete"))
def test_schedulers_swap_the_diffusers_way(tiny_pipeline, name):
    pipeline = make_gaussian_pipeline(tiny_pipeline, prediction_type="v_prediction")
    for part in ("scheduler", "text_scheduler"):
        scheduler_class = getattr(diffusers, f"{name}Scheduler")
        setattr(pipeline, part, scheduler_class.from_config(getattr(pipeline, part).config))
    output = pipeline(num_inference_steps=5)
    assert len(output.images) == len(output.texts) == 1


@pytest.mark.parametrize("name", [name for name, types in GAUSSIAN_SCHEDULERS.items() if "flow_prediction" in types])
def test_schedulers_of_a_flow_swap_the_diffusers_way_and_back(tiny_pipeline, name):
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = make_gaussian_pipeline(tiny_pipeline, euler, prediction_type="flow_prediction")
    settings = {} if name.startswith("Flow") else dict(FLOW)
    if "Heun" in name:
        settings["shift"] = 1.0  # it would shift twice
    for part in ("scheduler", "text_scheduler"):
        scheduler_class = getattr(diffusers, name)
        setattr(pipeline, part, scheduler_class.from_config(getattr(pipeline, part).config, **settings))
    output = pipeline(num_inference_steps=5)
    assert len(output.images) == len(output.texts) == 1
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    times = told_times(tiny_pipeline, back, "flow_prediction")[0]
    assert times == pytest.approx([back.shift * t / (1 + (back.shift - 1) * t) for t in (1.0, 0.75, 0.5, 0.25)])


def test_a_shift_is_handed_over_under_the_name_that_the_other_class_has_for_it(tiny_pipeline):
    solver = diffusers.UniPCMultistepScheduler(**FLOW, flow_shift=3.0)
    euler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(solver.config, shift=solver.config.flow_shift)
    back = diffusers.UniPCMultistepScheduler.from_config(euler.config, **FLOW, flow_shift=euler.config.shift)
    times, drawn = [], []
    for scheduler in (solver, euler, back):
        times.append(told_times(tiny_pipeline, scheduler, "flow_prediction", num_inference_steps=7)[0])
        drawn.append(draw(tiny_pipeline, scheduler, 100, prediction_type="flow_prediction"))
    # The solver's steps divide what lies above 1 / 1000, Euler's what lies above 0.
    assert times[1] == pytest.approx([3 * t / (1 + 2 * t) for t in (1 - step / 7 for step in range(7))])
    assert times[0] == pytest.approx(times[1], abs=3e-3) and times[2] == times[0]
    for solved, stepped, again in zip(*drawn, strict=True):
        torch.testing.assert_close(stepped, solved, rtol=0, atol=0.1)
        assert torch.equal(again, solved)

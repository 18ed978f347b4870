# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A student of few passes: what its teacher shows it, the loss, and the script."""

import math
from copy import deepcopy

import pytest
import torch
from diffusers import DiffusionPipeline
from script_runs import (
    NAMES,
    assert_close,
    assert_equal,
    metrics,
    run_in_process,
    run_in_two_processes,
    weights,
)

import hf_vqdit
from hf_vqdit.training.distillation import (
    DistillationConfig,
    distillation_objective,
    student_pass,
    student_scheduler,
    student_times,
    teacher_log_targets,
)
from hf_vqdit.training.masked import HiddenCodes, MaskedLossConfig
from hf_vqdit.training.rows import PairLoss
from hf_vqdit.training.times import TimeMixture, TimeTable, draw_times, row_generator, step_generator

V_X, V_Y = 32, 48
MASK_X, PAD, MASK_Y = V_X, V_Y, V_Y + 1
KINDS = ["text_to_image", "image", "image_to_text", "text", "joint", "square"]
SCHEDULER = hf_vqdit.MaskedDiffusionScheduler()
TEXT_SCHEDULER = hf_vqdit.MaskedDiffusionScheduler(mask_schedule="linear", order="random", temperature=0.8)
ONE_TO_ONE = DistillationConfig(num_student_steps=4, num_teacher_steps=4, guidance_scale=1.0)


@pytest.fixture
def teacher(tiny_pipeline) -> torch.nn.Module:
    return tiny_pipeline.transformer.requires_grad_(False)


@pytest.fixture
def student(teacher) -> torch.nn.Module:
    """Another model than its teacher."""
    model = deepcopy(teacher).requires_grad_(True)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    return model


def make_codes(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 8 x 8 codes; captions of 16 positions, the last 0 to 6 of them PAD."""
    generator = torch.Generator().manual_seed(0)
    image_codes = torch.randint(0, V_X, (num_rows, 8, 8), generator=generator)
    text_codes = torch.randint(0, V_Y, (num_rows, 16, 1), generator=generator)
    for row, codes in enumerate(text_codes):
        codes[16 - row % 7 :] = PAD
    return image_codes, text_codes


def times_of(kind: str | None = None, num_rows: int = 12) -> TimeTable:
    """Times of rows of one kind, or of all."""
    weights = TimeMixture() if kind is None else TimeMixture(**dict.fromkeys(KINDS, 0.0) | {kind: 1.0})
    return draw_times(num_rows, weights, step_generator(0, 0))


def objective(
    student,
    teacher,
    times,
    distill_config=None,
    config=None,
    rows=None,
    schedulers=(SCHEDULER, TEXT_SCHEDULER),
    **kwargs,
) -> PairLoss:
    """The objective on some rows (all by default) of the global batch."""
    image_codes, text_codes = make_codes(len(times.kind))
    rows = torch.arange(len(image_codes)) if rows is None else rows
    return distillation_objective(
        student,
        image_codes[rows],
        text_codes[rows],
        times.select(rows),
        *schedulers,
        [row_generator(0, 0, row) for row in rows.tolist()],
        config,
        **{name: value[rows] for name, value in kwargs.items()},
        teacher=teacher,
        distill_config=distill_config,
    )


def all_hidden(num_rows: int, image_given: bool = False, text_given: bool = False) -> tuple[HiddenCodes, HiddenCodes]:
    """The state from which the first pass starts; what is not given is generated."""
    hidden = []
    for codes, mask_id, given in zip(make_codes(num_rows), (MASK_X, MASK_Y), (image_given, text_given), strict=True):
        noisy = codes if given else torch.full_like(codes, mask_id)
        time = torch.full((num_rows,), 0.0 if given else 1.0)
        hidden.append(HiddenCodes(codes, noisy, mask_id, time, time > 0))
    return tuple(hidden)


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(num)]


# What the teacher shows


@pytest.mark.parametrize("given", ["text", "image", "neither"])
def test_the_teacher_goes_the_way_that_the_pipeline_goes(tiny_pipeline, given):
    tiny_pipeline.vqvae.double(), tiny_pipeline.transformer.double()
    tiny_pipeline.scheduler, tiny_pipeline.text_scheduler = SCHEDULER, TEXT_SCHEDULER
    prompt = "a large red circle in the middle on a white background" if given == "text" else None
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)) if given == "image" else None
    seen = []

    def watch_model(model, args, kwargs):
        seen.append(args or (kwargs["image_codes"], kwargs["text_codes"]))

    tiny_pipeline.transformer.register_forward_pre_hook(watch_model, with_kwargs=True)
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "text_guidance_scale": 2.0}
    tiny_pipeline(prompt, picture, **settings, joint_order="together", generator=generators(1))
    states, seen = [tuple(codes[:1].clone() for codes in call) for call in seen], []
    image_codes, text_codes = states[0]
    image, text = (
        HiddenCodes(codes, codes, mask_id, torch.tensor([float(is_open)]), torch.tensor([is_open]))
        for codes, mask_id, is_open in (
            (image_codes, MASK_X, given != "image"),
            (text_codes, MASK_Y, given != "text"),
        )
    )
    config = DistillationConfig(num_student_steps=1, num_teacher_steps=6, guidance_scale=3.0, text_guidance_scale=2.0)
    teacher_log_targets(tiny_pipeline.transformer, image, text, SCHEDULER, TEXT_SCHEDULER, generators(1), config)
    assert len(seen) == len(states) == 6
    for found, expected in zip(seen, states, strict=True):
        assert torch.equal(found[0][:1], expected[0]) and torch.equal(found[1][:1], expected[1])


@pytest.mark.parametrize("order", ["ancestral", "confidence", "random"])
def test_the_target_of_a_code_is_the_prediction_of_the_pass_that_decoded_it(teacher, order):
    teacher.double()
    scheduler = hf_vqdit.MaskedDiffusionScheduler(order=order, temperature=0.7)
    image, text = all_hidden(3, text_given=True)
    config = DistillationConfig(num_student_steps=2, num_teacher_steps=8, guidance_scale=2.0)
    found, nothing = teacher_log_targets(teacher, image, text, scheduler, scheduler, generators(3), config)
    assert nothing.shape == (0, V_Y + 1)

    codes, expected = image.noisy_codes, torch.zeros(3, 8, 8, V_X)
    scheduler.set_timesteps(8)
    rows = generators(3)
    for timestep in scheduler.timesteps[:4]:
        rate = (codes == MASK_X).float().mean((1, 2))
        given = teacher(codes, text.noisy_codes, rate, torch.zeros(3)).image_logits
        alone = teacher(codes, torch.full_like(text.codes, MASK_Y), rate, torch.ones(3)).image_logits
        logits = alone + 2.0 * (given - alone)
        after = scheduler.step(logits, timestep, codes, generator=rows).prev_sample
        is_decoded = (codes == MASK_X) & (after != MASK_X)
        is_left = (after == MASK_X) & (timestep == scheduler.timesteps[3])
        for place in (is_decoded | is_left).nonzero().tolist():
            expected[tuple(place)] = (logits[tuple(place)] / 0.7).softmax(dim=-1)
        codes = after
    assert (codes != MASK_X).any() and (codes == MASK_X).any()
    torch.testing.assert_close(found.exp().view(3, 8, 8, V_X), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_targets_sum_to_one_and_are_one_code_at_temperature_zero(teacher, temperature):
    scheduler = hf_vqdit.MaskedDiffusionScheduler(temperature=temperature)
    config = DistillationConfig(guidance_scale=5.0, text_guidance_scale=5.0)
    targets = teacher_log_targets(teacher, *all_hidden(2), scheduler, scheduler, generators(2), config)
    for log_targets, num_classes in zip(targets, (V_X, V_Y + 1), strict=True):
        probs = log_targets.double().exp()
        assert log_targets.shape[1] == num_classes and log_targets.isfinite().all()
        torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(probs), dtype=torch.float64), rtol=0, atol=1e-5)
        assert temperature > 0 or (probs.max(dim=1).values == 1).all()


def test_guidance_reaches_rows_with_a_condition_and_no_others(student, teacher):
    for kind in KINDS[:4]:
        losses = [
            objective(
                student,
                teacher,
                times_of(kind),
                DistillationConfig(guidance_scale=scale, text_guidance_scale=scale),
                schedulers=(SCHEDULER, SCHEDULER),
            ).loss
            for scale in (1.0, 4.0)
        ]
        assert torch.allclose(*losses) == (kind in ("image", "text")), kind


def test_a_teacher_without_guidance_sees_each_row_once(student, teacher):
    sizes = []
    teacher.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    objective(student, teacher, times_of("text_to_image"), DistillationConfig(guidance_scale=1.0))
    objective(student, teacher, times_of("text_to_image"), DistillationConfig(guidance_scale=2.0))
    assert sizes == [12] * 3 + [24] * 3


# The loss


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_at_one_step_a_pass(teacher, weight):
    config = DistillationConfig(4, 4, guidance_scale=1.0, reverse_kl_weight=weight)
    loss = objective(deepcopy(teacher), teacher, times_of(), config, schedulers=(SCHEDULER, SCHEDULER))
    assert loss.sums["image_nats"][1] > 100 and loss.sums["text_nats"][1] > 20
    assert loss.image_loss_rows.abs().max() < 1e-6 and loss.text_loss_rows.abs().max() < 1e-6
    guided = objective(deepcopy(teacher), teacher, times_of(), DistillationConfig(reverse_kl_weight=weight))
    assert guided.image_loss_rows.max() > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_a_plain_loop(student, teacher, weight):
    times = times_of("text_to_image", 4)
    distill_config = DistillationConfig(4, 4, guidance_scale=1.0, reverse_kl_weight=weight)
    seen = []
    student.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    loss = objective(student, teacher, times, distill_config)
    args, kwargs = seen[0]
    log_q, log_p = (model(*args, **kwargs).image_logits.double().log_softmax(-1) for model in (student, teacher))
    forward = (log_p.exp() * (log_p - log_q)).sum(-1)
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
    expected = ((1 - weight) * forward + weight * reverse)[args[0] == MASK_X].sum() / 64 / 4
    assert loss.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.text_loss_rows.tolist() == [0] * 4


def test_what_is_known_has_no_gradient_at_the_head_and_the_teacher_has_none_at_all(student, teacher):
    teacher.requires_grad_(True)
    outputs = []
    student.register_forward_hook(lambda _, args, output: outputs.append((args, output)))
    loss = objective(student, teacher, times_of("joint"))
    (args, output), *more = outputs
    assert not more
    heads = torch.autograd.grad(loss.loss, [output.image_logits, output.text_logits], retain_graph=True)
    for grad, hidden in zip(heads, (args[0] == MASK_X, args[1] == MASK_Y), strict=True):
        assert hidden.any() and torch.equal(grad.abs().sum(dim=-1) > 0, hidden)
    loss.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_carry_no_loss_and_what_is_generated_does(student, teacher, kind):
    loss = objective(student, teacher, times_of(kind), config=MaskedLossConfig(region_fraction=0.5))
    assert (loss.image_loss_rows > 0).any() == (kind not in ("image_to_text", "text"))
    assert (loss.text_loss_rows > 0).any() == (kind not in ("text_to_image", "image"))
    missing, there = torch.zeros(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)
    only_text = objective(student, teacher, times_of(kind), has_image=missing, has_text=there)
    assert (only_text.text_loss_rows > 0).any() and (only_text.image_loss_rows == 0).all()
    neither = objective(student, teacher, times_of(kind), has_image=missing, has_text=missing)
    neither.loss.backward()
    assert neither.loss == 0 and all(p.grad.abs().max() == 0 for p in student.parameters())


@pytest.mark.parametrize("num_parts", [2, 4])
def test_accumulation_and_ranks_give_the_gradient_of_the_whole_batch(student, teacher, num_parts):
    times, has_text = times_of(), torch.arange(12) != 2
    whole, parts = student.double(), deepcopy(student)
    teacher.double()
    distill_config, config = DistillationConfig(text_guidance_scale=2.0), MaskedLossConfig(region_fraction=0.5)
    loss = objective(whole, teacher, times, distill_config, config, has_text=has_text)
    loss.loss.backward()
    for part in range(num_parts):
        rows = torch.arange(12)[part::num_parts]  # as interleaved ranks see them
        own = objective(parts, teacher, times, distill_config, config, rows=rows, has_text=has_text)
        (own.loss / num_parts).backward()
        torch.testing.assert_close(own.image_loss_rows, loss.image_loss_rows[rows])
        torch.testing.assert_close(own.text_loss_rows, loss.text_loss_rows[rows])
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_training_brings_the_student_to_its_teacher(teacher):
    student = deepcopy(teacher).requires_grad_(True)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = objective(student, teacher, times_of("text_to_image"), DistillationConfig(guidance_scale=2.0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


# Times


@pytest.mark.parametrize("num_steps", [1, 3, 4, 7, 12])
def test_times_of_a_pass_stay_in_it_and_end_where_it_begins_or_anywhere_in_it(num_steps):
    times = draw_times(1200, TimeMixture(1, 0, 0, 0, 0, 0), step_generator(0, 0)).image_time
    grid = torch.arange(1, num_steps + 1) / num_steps
    position = times.double() * num_steps
    is_clear = (position - position.round()).abs() > 1e-5  # of the rounding of float32
    for fraction in (0.0, 0.25, 1.0):
        config = DistillationConfig(num_steps, num_steps, grid_fraction=fraction)
        moved = student_times(times, config)
        assert (moved > 0).all() and (moved <= 1).all()
        passes = student_pass(moved, config)
        assert torch.equal(passes[is_clear], num_steps - position[is_clear].ceil().long())
        is_begin = (moved[:, None] == grid).any(dim=1)
        assert is_begin.float().mean().item() == pytest.approx(fraction, abs=0.02)
        between = moved[~is_begin]
        assert fraction == 1 or between.mean().item() == pytest.approx(0.5, abs=0.02)
    assert student_pass(grid, config).tolist() == list(range(num_steps))[::-1]


def test_the_first_pass_is_learnt_with_nothing_known(student, teacher):
    rates = []
    student.register_forward_pre_hook(lambda _, args, kwargs: rates.append(kwargs), with_kwargs=True)
    config = DistillationConfig(grid_fraction=1.0)
    for kind in ("text_to_image", "joint"):
        times = times_of(kind, 16)
        loss = objective(student, teacher, times, config)
        is_first = times.image_time > 0.75
        assert is_first.sum() == 4
        assert (rates[-1]["image_timestep"][is_first] == 1).all() and (loss.image_loss_rows[is_first] > 0).all()
        assert (rates[-1]["image_timestep"][~is_first] < 1).all()


# What ships, and what is refused


def test_a_student_ships_with_the_settings_of_its_teacher_but_for_what_is_in_its_weights():
    teachers = hf_vqdit.MaskedDiffusionScheduler.from_config(TEXT_SCHEDULER.config, top_k=5, top_p=0.9)
    student = student_scheduler(teachers, DistillationConfig(student_temperature=0.6))
    found, expected = dict(student.config), dict(TEXT_SCHEDULER.config) | {"temperature": 0.6}
    found.pop("_use_default_values"), expected.pop("_use_default_values")
    assert found == expected


def test_targets_are_cut_off_where_the_teacher_cuts_off(teacher):
    scheduler = hf_vqdit.MaskedDiffusionScheduler(top_k=3)
    image, text = all_hidden(2, text_given=True)
    found, _ = teacher_log_targets(teacher, image, text, scheduler, scheduler, generators(2), DistillationConfig())
    assert ((found.exp() > 1e-9).sum(dim=1) == 3).all()


@pytest.mark.parametrize(
    "config",
    [
        {"num_student_steps": 0},
        {"num_student_steps": 2.0},
        {"num_teacher_steps": 6},
        {"num_teacher_steps": 2},
        {"guidance_scale": -1.0},
        {"text_guidance_scale": math.inf},
        {"reverse_kl_weight": 1.1},
        {"grid_fraction": math.nan},
    ],
)
def test_a_setting_out_of_range_is_refused(config):
    (name,) = config
    with pytest.raises(ValueError, match=name):
        DistillationConfig(**config)


def test_smoothed_labels_are_refused(student, teacher):
    with pytest.raises(ValueError, match="label_smoothing"):
        objective(student, teacher, times_of(), config=MaskedLossConfig(label_smoothing=0.1))


# The script


@pytest.fixture(scope="module")
def run(saved_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "student"
    return run_in_process("distill", folder, "--distill_from", saved_pipeline, "--validation_steps", "4")


def without_validation(run) -> dict:
    return {key: value for key, value in metrics("distill", run).items() if not key[0].startswith("validation")}


def test_a_student_is_a_pipeline_with_the_codes_of_its_teacher_whose_card_says_how_to_call_it(run, saved_pipeline):
    pipeline = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    output = pipeline(num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator().manual_seed(0))
    assert output.images[0].size == (32, 32) and isinstance(output.texts[0], str)
    assert "`num_inference_steps=2, guidance_scale=1.0`" in (run / "README.md").read_text()
    teacher = DiffusionPipeline.from_pretrained(saved_pipeline, trust_remote_code=True)
    for name, tensor in teacher.vqvae.state_dict().items():
        torch.testing.assert_close(pipeline.vqvae.state_dict()[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(pipeline.transformer.text_proj_out.weight, teacher.transformer.text_proj_out.weight)


def test_without_a_step_the_student_is_its_teacher(run, saved_pipeline, tmp_path):
    flags = ["--distill_from", saved_pipeline, "--learning_rate", "0", "--max_train_steps", "1"]
    student = run_in_process("distill", tmp_path / "student", *flags)
    teacher = hf_vqdit.VQDiTModel.from_pretrained(saved_pipeline, subfolder="transformer")
    assert_equal(weights(student / "transformer"), dict(teacher.state_dict()))


def test_two_steps_a_resume_and_two_steps_are_four_steps_bit_for_bit(run, saved_pipeline, tmp_path):
    flags = ["--distill_from", saved_pipeline, "--resume_from_checkpoint", str(run / "checkpoint-2")]
    resumed = run_in_process("distill", tmp_path / "resumed", *flags)
    assert_equal(metrics("distill", resumed), {k: v for k, v in without_validation(run).items() if k[1] > 2})
    for name in ("transformer", "transformer_ema"):
        assert_equal(weights(resumed / "checkpoint-4" / name), weights(run / "checkpoint-4" / name))


@pytest.mark.parametrize(
    "change",
    [["--train_batch_size", "1", "--gradient_accumulation_steps", "4"], ["--gradient_checkpointing"]],
    ids=["accumulation", "checkpointing"],
)
def test_accumulation_and_gradient_checkpointing_change_nothing(run, saved_pipeline, change, tmp_path):
    changed = run_in_process("distill", tmp_path / "changed", "--distill_from", saved_pipeline, *change)
    assert_close(metrics("distill", changed), without_validation(run))
    assert_close(weights(changed / NAMES["distill"]), weights(run / NAMES["distill"]))


@pytest.mark.slow
def test_two_processes_hold_equal_models_and_equal_one_process(run, saved_pipeline, tmp_path):
    two = run_in_two_processes("distill", tmp_path / "two", "--distill_from", saved_pipeline)
    assert_close(metrics("distill", two), without_validation(run))
    assert_close(weights(two / NAMES["distill"]), weights(run / NAMES["distill"]))


def test_another_teacher_is_refused_on_resume(run, tmp_path):
    flags = ["--distill_from", str(run), "--resume_from_checkpoint", str(run / "checkpoint-2")]
    with pytest.raises(ValueError, match="another teacher"):
        run_in_process("distill", tmp_path / "resumed", *flags)


def test_codes_of_another_size_than_the_teachers_are_refused(saved_pipeline, tmp_path):
    flags = ["--distill_from", saved_pipeline, "--resolution", "64"]
    with pytest.raises(ValueError, match=r"`sample_size` is \(8, 8\) and would have to be \(16, 16\)"):
        run_in_process("distill", tmp_path / "run", *flags)


def test_a_dry_run_counts_the_work_of_the_teacher(saved_pipeline, tmp_path, capsys):
    flops = []
    for steps in (2, 4):
        config = f'{{"num_student_steps": 2, "num_teacher_steps": {steps}}}'
        flags = ["--distill_from", saved_pipeline, "--distill_config", config, "--dry_run"]
        run_in_process("distill", tmp_path / "run", *flags)
        flops.append(float(capsys.readouterr().out.split("FLOPs a step: ")[1].split()[0]))
    assert 1.2 * flops[0] < flops[1] < 1.6 * flops[0]

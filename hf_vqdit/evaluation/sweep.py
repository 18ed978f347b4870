# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How a trained pipeline's samples depend on the settings of the sampling: one is changed at a time.

[`run_sweep`] starts from a base setting for each direction, the pipeline's own schedulers and the arguments that it is
given, and changes the steps, the guidance, the temperature, the mask schedule, the order, the remasking and the joint
order. Then it answers two questions for each direction: does guidance beat none, and does remasking beat none?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from hf_vqdit.pipelines.pipeline_vqdit import JOINT_ORDERS
from hf_vqdit.schedulers.scheduling_masked_diffusion import MASK_SCHEDULES, ORDERS

from .features import TokenizerLatents, extract_features
from .judge import ShapesJudge
from .metrics import caption_chrf, caption_exact, read_captions, share_equal
from .picture_sets import diversity, frechet_distance
from .sampling import HeldOutPairs, Samples, changed_schedulers, sample

DIRECTIONS = {  # what is generated
    "text_to_image": ("image",),
    "image_to_text": ("text",),
    "joint": ("image", "text"),
    "image": ("image",),  # of nothing, which a U-Net can do too
}
DEFAULT_DIRECTIONS = ("text_to_image", "image_to_text", "joint")

# What is tried
NUM_STEPS = (2, 4, 8, 12, 16, 24, 32)
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)  # of pictures, by captions
TEXT_GUIDANCE_SCALES = (1.0, 1.5, 2.0)  # of captions, by pictures
TEMPERATURES = (0.6, 0.8, 1.0)
REMASKING = (  # kinds and strengths: ReMDM (Wang 2025) has many steps; at these few a stronger one may pay
    (None, None),
    ("cap", 0.02),
    ("cap", 0.1),
    ("rescale", 0.1),
    ("rescale", 0.3),
    ("confidence", 1.0),
    ("confidence", 3.0),
    ("loop", 0.02),
    ("loop", 0.1),
)


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Args:
        direction (`str`): `"text_to_image"`, `"image_to_text"`, `"joint"` or `"image"`, pictures alone.
        varied (`str`): What differs from the base: `"steps"`, `"guidance"`, ...; `"base"` for the base itself.
        label (`str`): Its name, unique within the direction.
        call (`Mapping[str, Any]`): All arguments of the pipeline's call, but for what is given and the generator.
        scheduler (`Mapping[str, Any]`, *optional*): What changes in the config of `pipeline.scheduler`.
        text_scheduler (`Mapping[str, Any]`, *optional*): Likewise of `pipeline.text_scheduler`.
        is_guided (`bool`, defaults to `False`): Whether there is guidance.
        is_remasking (`bool`, defaults to `False`): Whether codes may be masked again.
    """

    direction: str
    varied: str
    label: str
    call: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    text_scheduler: Mapping[str, Any] = field(default_factory=dict)
    is_guided: bool = False
    is_remasking: bool = False


@dataclass(frozen=True)
class Measure:
    """A figure of samples.

    Args:
        key (`str`): Its name in `sweep.json`.
        title (`str`): What it is, in words.
        style (`str`, defaults to `"{:.1%}"`): How its value is printed, as for `str.format`.
        is_lower_better (`bool`, defaults to `False`): Whether less is better.
    """

    key: str
    title: str
    style: str = "{:.1%}"
    is_lower_better: bool = False


FRECHET_DISTANCE = Measure("fid_tokenizer_latents", "Fréchet distance on tokenizer latents", "{:.4f}", True)
# The quality of each direction: for `shapes`, whose pictures and captions can be read, and for other data.
JUDGED_QUALITY = {
    "text_to_image": Measure("text_to_image_judged", "every attribute right"),
    "image_to_text": Measure("image_to_text_parsed", "caption tells exactly the picture"),
    "joint": Measure("joint_agreement", "picture and caption agree"),
    "image": FRECHET_DISTANCE,
}
OTHER_QUALITY = {
    "text_to_image": FRECHET_DISTANCE,
    "image_to_text": Measure("image_to_text_chrf", "chrF", "{:.1f}"),
    "joint": FRECHET_DISTANCE,
    "image": FRECHET_DISTANCE,
}
FURTHER_MEASURES = (
    FRECHET_DISTANCE,
    Measure("diversity_tokenizer_latents", "diversity, real = 1", "{:.2f}"),
    Measure("image_to_text_exact", "one of the picture's captions"),
)


@dataclass(frozen=True)
class Result:
    """What was measured of a setting.

    Args:
        setting ([`Setting`]): The setting.
        figures (`Sequence[Mapping[str, float]]`): For each sampling seed, values by the keys of measures, and the
            `forward_passes` (a call), `forward_rows` (a sample) and `seconds` (a sample) of [`~.sampling.Cost`].
    """

    setting: Setting
    figures: Sequence[Mapping[str, float]]

    def values(self, key: str) -> list[float]:
        """A figure, for each seed."""
        return [figures[key] for figures in self.figures]

    def mean(self, key: str) -> float:
        """A figure's mean over the seeds."""
        return sum(self.values(key)) / len(self.figures)


@dataclass(frozen=True)
class Question:
    """Whether settings that have a property beat those that do not.

    Args:
        key (`str`): Its name in `sweep.json`.
        varied (`str`): The variation that it is about.
        has_property (`Callable[[Setting], bool]`): Tells the two sides apart.
    """

    key: str
    varied: str
    has_property: Callable[[Setting], bool]


QUESTIONS = (
    Question("guidance_beats_none", "guidance", lambda setting: setting.is_guided),
    Question("remasking_beats_none", "remasking", lambda setting: setting.is_remasking),
)


@dataclass(frozen=True)
class Statement:
    """The answer to a question.

    Args:
        question (`str`): The question's key.
        direction (`str`): The direction.
        answer (`bool`, *optional*): `None` if nothing could be compared.
        having ([`Result`], *optional*): The best setting with the property, sampled anew.
        lacking ([`Result`], *optional*): What it is compared with, sampled anew.
        gain (`float`, *optional*): By how much the first mean is better; below 0 if it is worse.
        spread (`float`, *optional*): The larger of the two ranges over the seeds.
    """

    question: str
    direction: str
    answer: bool | None = None
    having: Result | None = None
    lacking: Result | None = None
    gain: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Sweep:
    """All of a sweep.

    Args:
        quality (`Mapping[str, Measure]`): The quality of each direction.
        results (`Sequence[Result]`): By direction, the base first.
        left_out (`Sequence[tuple[Setting, str]]`): What could not be run, and why.
        statements (`Sequence[Statement]`): The answers.
        num_samples (`int`): Samples of a setting from each seed.
        schedulers (`Mapping[str, Mapping[str, Any]]`): The settings of the base's schedulers.
    """

    quality: Mapping[str, Measure]
    results: Sequence[Result]
    left_out: Sequence[tuple[Setting, str]]
    statements: Sequence[Statement]
    num_samples: int
    schedulers: Mapping[str, Mapping[str, Any]]


def run_sweep(
    pipeline: DiffusionPipeline,
    held_out: HeldOutPairs,
    call: Mapping[str, Any],
    directions: Sequence[str] = DEFAULT_DIRECTIONS,
    num_samples: int = 100,
    num_seeds: int = 3,
    judge: ShapesJudge | None = None,
    batch_size: int = 125,
) -> Sweep:
    """Samples with every setting and compares them. The pipeline has its own schedulers afterwards.

    Args:
        pipeline (`VQDiTPipeline`): The pipeline.
        held_out ([`HeldOutPairs`]): Held-out pairs. The first `num_samples` are what is asked of the pipeline, with
            every setting and seed the same; the pictures of all are what sets of pictures are compared with.
        call (`Mapping[str, Any]`): The base's `num_inference_steps`, `num_text_inference_steps`, `guidance_scale`,
            `text_guidance_scale` and `joint_order`.
        directions (`Sequence[str]`, defaults to `("text_to_image", "image_to_text", "joint")`): What to compare.
        num_samples (`int`, defaults to 100): Samples of each setting from each seed.
        num_seeds (`int`, defaults to 3): Sampling seeds. As many further ones answer the questions.
        judge ([`ShapesJudge`], *optional*): Reads the pictures of `shapes`.
        batch_size (`int`, defaults to 125): Samples a call.

    Returns:
        [`Sweep`]

    Raises:
        ValueError: If a direction is unknown, a number is too small, or the base setting cannot be run.
    """
    unknown = [name for name in directions if name not in DIRECTIONS]
    if unknown or not directions:
        raise ValueError(f"`directions` must be some of {tuple(DIRECTIONS)}, got {tuple(directions)}.")
    if min(num_samples, len(held_out), num_seeds) < 2:
        raise ValueError(
            "A sweep needs at least 2 samples, 2 held-out pairs and 2 seeds, got "
            f"`num_samples` {num_samples}, {len(held_out)} pairs and `num_seeds` {num_seeds}."
        )
    bench = Bench(pipeline, held_out, num_samples, judge, batch_size)
    results, left_out, statements = [], [], []
    for direction in directions:
        own, own_left_out = _run_direction(bench, direction, call, range(num_seeds))
        results += own
        left_out += own_left_out
        fresh = range(num_seeds, 2 * num_seeds)
        statements += [answer(question, own, bench.quality[direction], bench.run, fresh) for question in QUESTIONS]
    schedulers = {
        name: {key: value for key, value in getattr(pipeline, name).config.items() if not key.startswith("_")}
        for name in ("scheduler", "text_scheduler")
    }
    return Sweep(bench.quality, results, left_out, statements, len(bench.pairs), schedulers)


def make_settings(direction: str, call: Mapping[str, Any], pipeline: DiffusionPipeline) -> list[Setting]:
    """The base setting, then everything that differs from it in one thing.

    Args:
        direction (`str`): The direction. What both modalities have is varied for both where both are generated.
        call (`Mapping[str, Any]`): As for [`run_sweep`].
        pipeline (`VQDiTPipeline`): Its schedulers are those of the base.

    Returns:
        `list[Setting]`: Without variations that are the base itself.
    """
    modalities = DIRECTIONS[direction]
    schedulers = {"image": "scheduler", "text": "text_scheduler"}
    configs = {name: getattr(pipeline, name).config for name in map(schedulers.get, modalities)}
    steps = [{"image": "num_inference_steps", "text": "num_text_inference_steps"}[name] for name in modalities]
    guided_by = "guidance_scale" if "image" in modalities else "text_guidance_scale"
    guidance_scales = GUIDANCE_SCALES if "image" in modalities else TEXT_GUIDANCE_SCALES
    if direction == "image":  # there is nothing to guide by
        call, guidance_scales = {**call, "output_modalities": ("image",), "guidance_scale": 1.0}, ()
    base = Setting(direction, "base", "base", dict(call))

    def vary_call(varied: str, label: str, **changes: Any) -> Setting:
        return replace(base, varied=varied, label=label, call={**call, **changes})

    def vary_schedulers(varied: str, label: str, **changes: Any) -> Setting:
        return replace(base, varied=varied, label=label, **dict.fromkeys(configs, changes))

    variations = [vary_call("steps", f"{count} steps", **dict.fromkeys(steps, count)) for count in NUM_STEPS]
    variations += [vary_call("guidance", f"guidance {scale:g}", **{guided_by: scale}) for scale in guidance_scales]
    variations += [vary_schedulers("temperature", f"temperature {x:g}", temperature=x) for x in TEMPERATURES]
    variations += [vary_schedulers("mask schedule", f"{name} schedule", mask_schedule=name) for name in MASK_SCHEDULES]
    variations += [vary_schedulers("order", f"{order} order", order=order) for order in ORDERS]
    for kind, eta in REMASKING:
        label = "no remasking" if kind is None else f"remask {kind} {eta:g}"
        variations.append(vary_schedulers("remasking", label, remasking=kind, remasking_eta=eta))
    if direction == "joint":
        variations += [vary_call("joint order", x.replace("_", " "), joint_order=x) for x in JOINT_ORDERS]

    settings = []
    for setting in [base, *variations]:
        changes = {name: getattr(setting, name) for name in configs}
        remasking = [changes[name].get("remasking", configs[name].get("remasking")) for name in configs]
        is_base = setting.call == base.call and all(
            configs[name].get(key) == value for name in configs for key, value in changes[name].items()
        )
        if setting is base or not is_base:
            is_guided, is_remasking = setting.call[guided_by] > 1, any(kind is not None for kind in remasking)
            settings.append(replace(setting, is_guided=is_guided, is_remasking=is_remasking))
    return settings


class Bench:
    """Samples with one setting after the other and measures them.

    Args:
        pipeline (`VQDiTPipeline`): As for [`run_sweep`], which has the other arguments too.
        held_out ([`HeldOutPairs`]): Held-out pairs.
        num_samples (`int`): Samples from each seed.
        judge ([`ShapesJudge`], *optional*): For `shapes`.
        batch_size (`int`, defaults to 125): Samples a call.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        held_out: HeldOutPairs,
        num_samples: int,
        judge: ShapesJudge | None = None,
        batch_size: int = 125,
    ) -> None:
        self.pipeline, self.judge, self.batch_size = pipeline, judge, batch_size
        self.pairs = held_out.first(num_samples)
        self.quality = OTHER_QUALITY if judge is None else JUDGED_QUALITY
        self.latents = TokenizerLatents(pipeline.vqvae)
        self.real_features = extract_features(self.latents, held_out.pixel_values)

    def run(self, setting: Setting, seeds: Sequence[int]) -> Result:
        """
        Samples with a setting, from each seed.

        Args:
            setting ([`Setting`]): The setting.
            seeds (`Sequence[int]`): The sampling seeds.

        Returns:
            [`Result`]

        Raises:
            ValueError: If a scheduler or the pipeline refuses the setting.
        """
        given: dict[str, Any] = {}
        if setting.direction == "text_to_image":
            given["prompts"] = self.pairs.captions
        elif setting.direction == "image_to_text":
            given["pixel_values"] = self.pairs.pixel_values
        figures = []
        with changed_schedulers(self.pipeline, setting.scheduler, setting.text_scheduler):
            for seed in seeds:
                kwargs = given | {"description": f"{setting.label}, seed {seed}", "batch_size": self.batch_size}
                samples = sample(self.pipeline, len(self.pairs), seed, **kwargs, **setting.call)
                figures.append(self._measure(setting.direction, samples) | samples.cost._asdict())
        return Result(setting, figures)

    def _measure(self, direction: str, samples: Samples) -> dict[str, float]:
        figures = {}
        if samples.pixel_values is not None:
            features = extract_features(self.latents, samples.pixel_values)
            figures["fid_tokenizer_latents"] = frechet_distance(features, self.real_features)
            figures["diversity_tokenizer_latents"] = diversity(features, self.real_features)
        if direction == "image":
            return figures
        if self.judge is not None:
            told = self.pairs.scenes if samples.texts is None else read_captions(samples.texts)
            seen = self.pairs.scenes if samples.pixel_values is None else self.judge.read(samples.pixel_values)
            figures[self.quality[direction].key] = share_equal(told, seen)
        elif direction == "image_to_text":
            figures["image_to_text_chrf"] = caption_chrf(samples.texts, self.pairs.references)
            figures["image_to_text_exact"] = caption_exact(samples.texts, self.pairs.references)
        return figures


def _run_direction(
    bench: Bench, direction: str, call: Mapping[str, Any], seeds: Sequence[int]
) -> tuple[list[Result], list[tuple[Setting, str]]]:
    """The results of a direction, the base first, and what was left out."""
    base, *variations = make_settings(direction, call, bench.pipeline)
    results, left_out = [bench.run(base, seeds)], []
    for setting in tqdm(variations, desc=f"Settings of {direction.replace('_', ' ')}"):
        try:
            with changed_schedulers(bench.pipeline, setting.scheduler, setting.text_scheduler):
                pass
        except ValueError as error:  # a scheduler that knows less, or a combination that it does not allow
            left_out.append((setting, str(error)))
        else:
            results.append(bench.run(setting, seeds))
    return results, left_out


def answer(
    question: Question,
    results: Sequence[Result],
    measure: Measure,
    run: Callable[[Setting, Sequence[int]], Result],
    seeds: Sequence[int],
) -> Statement:
    """Answers a question about one direction.

    Of the settings that have the property, the best is compared with the one without it that takes as many forward
    passes (the fewest that are at least as many; if none takes so many, the most). Both are sampled anew: the best of
    many is partly luck, and on the seeds on which it was chosen the luck would count.

    Args:
        question ([`Question`]): The question.
        results (`Sequence[Result]`): All results of the direction.
        measure ([`Measure`]): The quality that decides.
        run (`Callable[[Setting, Sequence[int]], Result]`): Samples with a setting.
        seeds (`Sequence[int]`): Fresh sampling seeds.

    Returns:
        [`Statement`]: The answer is yes if the gain exceeds the spread.
    """
    direction = results[0].setting.direction
    about = [result for result in results if result.setting.varied in ("base", "steps", question.varied)]
    having = [r for r in about if question.has_property(r.setting) and r.setting.varied != "steps"]
    lacking = [r for r in about if not question.has_property(r.setting)]
    if not having or not lacking:
        return Statement(question.key, direction)

    def passes(result: Result) -> float:
        return result.mean("forward_passes")

    sign = -1 if measure.is_lower_better else 1
    best = max(having, key=lambda result: sign * result.mean(measure.key))
    enough = [result for result in lacking if passes(result) >= passes(best) - 0.5]
    rival = min(enough, key=passes) if enough else max(lacking, key=passes)
    best, rival = run(best.setting, seeds), run(rival.setting, seeds)
    gain, spread = compare(best.values(measure.key), rival.values(measure.key), measure.is_lower_better)
    return Statement(question.key, direction, gain > spread, best, rival, gain, spread)


def compare(values: Sequence[float], others: Sequence[float], is_lower_better: bool = False) -> tuple[float, float]:
    """By how much the mean of `values` is better than that of `others`, and the larger of their two ranges."""
    gain = sum(values) / len(values) - sum(others) / len(others)
    return -gain if is_lower_better else gain, max(max(own) - min(own) for own in (values, others))

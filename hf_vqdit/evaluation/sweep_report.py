# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a sweep leaves: `sweep.json` for programs, `sweep.md` for people, and the plot `sweep.png`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .grids import INK, RULE, SOFT_INK
from .report import format_table
from .sweep import DIRECTIONS, FURTHER_MEASURES, Measure, Result, Setting, Statement, Sweep

QUESTION_TITLES = {"guidance_beats_none": "Guidance beats none", "remasking_beats_none": "Remasking beats none"}
COST_TITLES = {"forward_passes": "passes a call", "forward_rows": "rows a sample", "seconds": "seconds a sample"}

# Okabe and Ito's colors, told apart by the color-blind; some are darkened so that words in them can be read on white.
# Markers differ too. By what is varied: color, marker.
STYLES = {
    "steps": (INK, "o"),
    "base": (INK, "o"),
    "guidance": ("#0072B2", "s"),
    "temperature": ("#D55E00", "^"),
    "mask schedule": ("#4B4BA8", "X"),
    "order": ("#00795A", "D"),
    "remasking": ("#A34C80", "v"),
    "joint order": ("#8A6D00", "P"),
}
# In pixels. DPI makes them hundredths of an inch, in which matplotlib counts.
DPI = 100
WIDTH, ROW_HEIGHT, TOP, BOTTOM = 1200, 18, 44, 62
CURVE_SPAN, CHANGES_SPAN = (64, 530), (780, 390)  # left edge and width of the axes of each column
SAME_PASSES = 1.06  # numbers of passes that differ by less than this factor share a label


def write_sweep(sweep: Sweep, output_dir: str | Path, notes: Mapping[str, Any]) -> None:
    """Writes `sweep.json`, `sweep.md` and `sweep.png`.

    Args:
        sweep ([`Sweep`]): What was measured.
        output_dir (`str` or `Path`): The folder; made if it is not there.
        notes (`Mapping[str, Any]`): On what and with what it was measured, for the end of the report.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "sweep.json").write_text(json.dumps(to_json(sweep, notes), indent=2) + "\n", encoding="utf-8")
    (output_dir / "sweep.md").write_text(format_sweep(sweep, notes), encoding="utf-8")
    draw_sweep(sweep).savefig(output_dir / "sweep.png", dpi=DPI)


def to_json(sweep: Sweep, notes: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep as plain values: of each setting what changes, and its figures for each seed; arguments as above."""
    return {
        "settings": [_result_to_json(result) for result in sweep.results],
        "statements": [
            {
                "question": statement.question,
                "direction": statement.direction,
                "quality": sweep.quality[statement.direction].key,
                "answer": statement.answer,
                "gain": statement.gain,
                "spread": statement.spread,
                "having": statement.having and _result_to_json(statement.having),
                "lacking": statement.lacking and _result_to_json(statement.lacking),
            }
            for statement in sweep.statements
        ],
        "left_out": [_setting_to_json(setting) | {"reason": reason} for setting, reason in sweep.left_out],
        "schedulers": sweep.schedulers,
        "samples_of_a_setting_and_seed": sweep.num_samples,
        "notes": dict(notes),
    }


def _setting_to_json(setting: Setting) -> dict[str, Any]:
    names = ("direction", "varied", "label", "call", "scheduler", "text_scheduler")
    return {name: getattr(setting, name) for name in names}


def _result_to_json(result: Result) -> dict[str, Any]:
    return _setting_to_json(result.setting) | {"figures_by_seed": [dict(figures) for figures in result.figures]}


# Words


def format_sweep(sweep: Sweep, notes: Mapping[str, Any]) -> str:
    """The report in Markdown; arguments as for [`write_sweep`]."""
    num_seeds = len(sweep.results[0].figures)
    lines = ["# Sampling settings", "", "![Quality against forward passes](sweep.png)", ""]
    lines += [
        f"Each setting differs from the base in one thing. {sweep.num_samples} samples from each of {num_seeds} seeds:"
        " the mean, and in brackets the least and the greatest. Passes are calls of the transformer for one call of"
        " the pipeline; rows are what went through it in their batches, for each sample: guidance doubles the rows,"
        " not the passes. Seconds are the least of the seeds.",
        "",
        f"The base: {_format_settings(sweep.results[0].setting.call)}.",
    ]
    lines += [f"- Its `{name}`: {_format_settings(config)}." for name, config in sweep.schedulers.items()]
    for direction in dict.fromkeys(result.setting.direction for result in sweep.results):
        results = [result for result in sweep.results if result.setting.direction == direction]
        lines += ["", f"## {_title(direction)}", "", *_format_direction(results, sweep.quality[direction])]
        for statement in sweep.statements:
            if statement.direction == direction:
                lines += ["", format_statement(statement, sweep.quality[direction])]
    lines += [
        "",
        "An answer is yes if the first side's mean is better by more than either side's range over its seeds. Of its"
        " settings the best was chosen; the other side has as many passes, as far as it can use them. Both were then"
        " sampled anew, from seeds on which nothing was chosen.",
    ]
    if sweep.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {_title(setting.direction)}, {setting.label}: {reason}" for setting, reason in sweep.left_out]
    lines += [
        "",
        "## Measured",
        "",
        "- Fréchet distance on tokenizer latents: between generated and held-out pictures, on the latents of this"
        " pipeline's own tokenizer, averaged over each quarter. It compares within one tokenizer and one number of"
        " samples only, and is no FID on Inception features.",
        "- Diversity: the mean distance of two pictures on the same latents, relative to that of held-out pictures.",
    ]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in notes.items()]
    return "\n".join(lines) + "\n"


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _format_direction(results: Sequence[Result], quality: Measure) -> list[str]:
    measured = results[0].figures[0]
    measures = [quality, *(own for own in FURTHER_MEASURES if own.key in measured and own != quality)]
    columns = ["setting", *(measure.title for measure in measures), *COST_TITLES.values()]
    rows = []
    for result in results:
        costs = {
            "forward_passes": f"{result.mean('forward_passes'):.1f}",
            "forward_rows": f"{result.mean('forward_rows'):.1f}",
            "seconds": f"{min(result.values('seconds')):.3g}",  # what else the machine did can only have added to it
        }
        figures = [_format_values(result, measure) for measure in measures]
        rows.append([result.setting.label, *figures, *costs.values()])
    return format_table(columns, rows)


def format_statement(statement: Statement, quality: Measure) -> str:
    """
    The answer to a question, with its numbers, in a sentence.

    Args:
        statement ([`Statement`]): The answer.
        quality ([`Measure`]): The measure that decided.

    Returns:
        `str`
    """
    question = f"**{QUESTION_TITLES[statement.question]}, {_title(statement.direction).lower()}: "
    if statement.answer is None:
        return f"{question}not compared.** One side has no setting that could be run."
    sides = [
        f"{result.setting.label} {_format_values(result, quality)} with {result.mean('forward_passes'):.1f} passes"
        for result in (statement.having, statement.lacking)
    ]
    better = "better" if statement.gain >= 0 else "worse"
    gain, spread = (quality.style.format(x).replace("%", " points") for x in (abs(statement.gain), statement.spread))
    return (
        f"{question}{'yes' if statement.answer else 'no'}.** {sides[0]}, against {sides[1]}: {better} by {gain};"
        f" spread over the seeds {spread} ({quality.title})."
    )


def _format_values(result: Result, measure: Measure) -> str:
    values = result.values(measure.key)
    mean, least, greatest = (measure.style.format(x) for x in (result.mean(measure.key), min(values), max(values)))
    return f"{mean} ({least} to {greatest})"


def _title(direction: str) -> str:
    return direction.replace("_", " ").capitalize()


# The plot


def draw_sweep(sweep: Sweep) -> Figure:
    """Draws quality against forward passes, and beside it what each change does to the base; a row a direction.

    Args:
        sweep ([`Sweep`]): What was measured.

    Returns:
        `matplotlib.figure.Figure`: 1200 pixels wide.
    """
    directions = {name: [r for r in sweep.results if r.setting.direction == name] for name in DIRECTIONS}
    directions = {name: results for name, results in directions.items() if results}
    heights = [ROW_HEIGHT * (len(_changes(results)) + 1) for results in directions.values()]  # of the axes
    height = sum(heights) + len(heights) * (TOP + BOTTOM)
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), facecolor="white")
    bottom = height
    for (direction, results), own_height in zip(directions.items(), heights, strict=True):
        bottom -= TOP + own_height
        curve, changes = (
            figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, own_height / height))
            for left, width in (CURVE_SPAN, CHANGES_SPAN)
        )
        _draw_curve(curve, results, sweep.quality[direction])
        _draw_changes(changes, results, sweep.quality[direction])
        bottom -= BOTTOM
    return figure


def _draw_curve(axes: Axes, results: Sequence[Result], quality: Measure) -> None:
    """Quality against passes: a line through the numbers of steps, and the other settings as marks."""
    direction, better = results[0].setting.direction, ", less is better" if quality.is_lower_better else ""
    _set_up(axes, f"{_title(direction)}: {quality.title}{better}", "forward passes")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # 16, not 2^4
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_formatter(quality))

    changes = _changes(results)
    for result in changes:
        color, marker = STYLES[result.setting.varied]
        place = result.mean("forward_passes"), result.mean(quality.key)
        axes.plot(*place, color=color, marker=marker, markersize=6, alpha=0.7, markeredgewidth=0)
    curve = [result for result in results if result.setting.varied in ("base", "steps")]
    curve.sort(key=lambda result: result.mean("forward_passes"))
    passes = [result.mean("forward_passes") for result in curve]
    axes.plot(passes, [result.mean(quality.key) for result in curve], color=INK, linewidth=1.6)
    for result, at in zip(curve, passes, strict=True):
        _draw_mark(axes, result, quality, at=at, is_upright=True)
    for start, at in enumerate(passes):
        same = [result for result, own in zip(curve, passes, strict=True) if at <= own < SAME_PASSES * at]
        if start > 0 and at < SAME_PASSES * passes[start - 1]:
            continue  # its name stands beside that of the point before
        names = [result.setting.label.removesuffix(" steps") for result in same]
        label = ", ".join(sorted(names, key=lambda name: name != "base")) + (" steps" if start == 0 else "")
        beside = [r for r in changes if at / SAME_PASSES < r.mean("forward_passes") < SAME_PASSES * at]
        tops = [max(result.values(quality.key)) for result in same] + [r.mean(quality.key) for r in beside]
        # The first one's name stands over its left, since the curve may rise steeply at its right.
        alignment, shift = ("right", 2) if start == 0 else ("center", 0)
        where = {"xytext": (shift, 6), "textcoords": "offset points", "ha": alignment}
        axes.annotate(label, (at, max(tops)), **where, fontsize=10, color=SOFT_INK)
    axes.set_xlim(passes[0] / 1.4, 1.2 * max(result.mean("forward_passes") for result in results))
    axes.margins(y=0.12)


def _draw_changes(axes: Axes, results: Sequence[Result], quality: Measure) -> None:
    """A line for each thing that was changed; the base's range is shaded."""
    base, changes = results[0], _changes(results)
    _set_up(axes, "One thing changed", f"mean, least and greatest of {len(base.figures)} seeds")
    axes.xaxis.set_major_formatter(_formatter(quality))
    values = base.values(quality.key)
    axes.axvspan(min(values), max(values), color=RULE, alpha=0.6, linewidth=0)
    axes.axvline(base.mean(quality.key), color=INK, linewidth=1.2)
    rows = [base, *changes]
    for row, result in enumerate(rows):
        _draw_mark(axes, result, quality, at=row, is_upright=False)
    axes.set_yticks(range(len(rows)), [result.setting.label for result in rows])
    for label, result in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(STYLES[result.setting.varied][0])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _set_up(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=10, color=SOFT_INK)
    axes.tick_params(labelsize=10, labelcolor=SOFT_INK, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _draw_mark(axes: Axes, result: Result, quality: Measure, at: float, is_upright: bool) -> None:
    """A mark at the mean, and a bar from the least to the greatest over the seeds."""
    color, marker = STYLES[result.setting.varied]
    values, mean = result.values(quality.key), result.mean(quality.key)
    reach = [[mean - min(values)], [max(values) - mean]]
    place = {"x": at, "y": mean, "yerr": reach} if is_upright else {"x": mean, "y": at, "xerr": reach}
    fill = "white" if result.setting.varied == "steps" else color
    axes.errorbar(**place, color=color, marker=marker, markersize=6, markerfacecolor=fill, linewidth=1.4, zorder=3)


def _changes(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.setting.varied not in ("base", "steps")]


def _formatter(quality: Measure) -> FuncFormatter:
    """Ticks with the digits that they need."""
    factor, unit = (100, "%") if quality.style.endswith("%}") else (1, "")
    return FuncFormatter(lambda value, _: f"{factor * value:.6g}{unit}")

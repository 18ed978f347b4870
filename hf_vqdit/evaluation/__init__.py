# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: figures of a trained pipeline, the judge for `shapes`, likelihood bounds, picture grids, the report."""

from .bounds import bound_bits
from .gaussian_bounds import gaussian_bound_bits_per_pair, pipeline_bound_bits
from .grids import GridItem, draw_section, show_hidden, stack_sections
from .judge import ShapesJudge, judge_accuracy, train_judge
from .metrics import tokenizer_figures
from .report import write_report
from .sampling import Answers, HeldOutPairs, Samples, Tasks, answer_tasks, make_tasks, read_held_out, sample

__all__ = [
    "Answers",
    "GridItem",
    "HeldOutPairs",
    "Samples",
    "ShapesJudge",
    "Tasks",
    "answer_tasks",
    "bound_bits",
    "draw_section",
    "gaussian_bound_bits_per_pair",
    "judge_accuracy",
    "make_tasks",
    "pipeline_bound_bits",
    "read_held_out",
    "sample",
    "show_hidden",
    "stack_sections",
    "tokenizer_figures",
    "train_judge",
    "write_report",
]

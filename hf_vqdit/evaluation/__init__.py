# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: figures of a trained pipeline for any data, the judge for `shapes`, likelihood bounds, grids, report."""

from .bounds import bound_bits_per_pair
from .clip import ClipScorer
from .comparison import compare_answers
from .features import TokenizerLatents, extract_features, load_feature_network, train_own_features
from .gaussian_bounds import gaussian_bound_bits_per_pair
from .grids import GridItem, draw_section, show_hidden, stack_sections
from .judge import ShapesJudge, judge_accuracy, train_judge
from .metrics import tokenizer_figures
from .picture_sets import diversity, frechet_distance, kernel_distance, neighborhood_figures
from .pipeline_bounds import measure_bounds, pipeline_bound_bits
from .report import write_report
from .sampling import Answers, HeldOutPairs, Samples, Tasks, answer_tasks, make_tasks, read_held_out, sample
from .training_pictures import TrainingPictures, read_training_pictures

__all__ = [
    "Answers",
    "ClipScorer",
    "GridItem",
    "HeldOutPairs",
    "Samples",
    "ShapesJudge",
    "Tasks",
    "TokenizerLatents",
    "TrainingPictures",
    "answer_tasks",
    "bound_bits_per_pair",
    "compare_answers",
    "diversity",
    "draw_section",
    "extract_features",
    "frechet_distance",
    "gaussian_bound_bits_per_pair",
    "judge_accuracy",
    "kernel_distance",
    "load_feature_network",
    "make_tasks",
    "measure_bounds",
    "neighborhood_figures",
    "pipeline_bound_bits",
    "read_held_out",
    "read_training_pictures",
    "sample",
    "show_hidden",
    "stack_sections",
    "tokenizer_figures",
    "train_judge",
    "train_own_features",
    "write_report",
]

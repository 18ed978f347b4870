# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Training: settings, the run, codebooks, times, losses. The loops themselves are in `training_scripts`."""

from .adversarial import AdversarialTrainer
from .arguments import TrainDiTArguments, TrainVQVAEArguments, parse_arguments
from .codebook import CodebookTrainer
from .distillation import DistillationConfig, distillation_objective, student_scheduler
from .gaussian import GaussianLossConfig, gaussian_objective
from .losses import tokenizer_losses
from .masked import MaskedLossConfig, masked_objective
from .rows import PairLoss
from .run import TrainingRun
from .times import TimeMixture, TimeTable, draw_times, row_generator, step_generator

__all__ = [
    "AdversarialTrainer",
    "CodebookTrainer",
    "DistillationConfig",
    "GaussianLossConfig",
    "MaskedLossConfig",
    "PairLoss",
    "TimeMixture",
    "TimeTable",
    "TrainDiTArguments",
    "TrainVQVAEArguments",
    "TrainingRun",
    "distillation_objective",
    "draw_times",
    "gaussian_objective",
    "masked_objective",
    "parse_arguments",
    "row_generator",
    "step_generator",
    "student_scheduler",
    "tokenizer_losses",
]

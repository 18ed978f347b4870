# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A sign of overfitting: held-out pairs get harder to predict while training pairs get easier."""

from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.01  # relative; times and masks are the same at each validation, so little of it is chance


class OverfittingSignal:
    """Follows the losses of held-out and of training pairs over the validations of a run.

    Both are to be measured alike: with the same weights, times and masks.
    """

    def __init__(self) -> None:
        self.best: dict[str, dict[str, float]] = {}  # by loss: the validation with the least on held-out pairs

    def update(self, step: int, held_out: Mapping[str, float], training: Mapping[str, float]) -> list[str]:
        """Takes in a validation.

        Args:
            step (`int`): Optimizer steps done.
            held_out (`Mapping[str, float]`): Losses of held-out pairs by name.
            training (`Mapping[str, float]`): The same losses of training pairs.

        Returns:
            `list[str]`: A warning for each loss that has risen by more than a hundredth since its best step on
                held-out pairs while it fell on training pairs.
        """
        warnings = []
        for name in held_out.keys() & training.keys():
            now = {"step": step, "held_out": held_out[name], "training": training[name]}
            best = self.best.setdefault(name, now)
            if now["held_out"] <= best["held_out"]:
                self.best[name] = now
            elif now["held_out"] > (1 + TOLERANCE) * best["held_out"] and now["training"] < best["training"]:
                warnings.append(
                    f"Overfitting: since step {best['step']} {name} of held-out pairs has risen from "
                    f"{best['held_out']:.4g} to {now['held_out']:.4g}, while that of training pairs fell from "
                    f"{best['training']:.4g} to {now['training']:.4g}. More pairs, `random_flip` where captions allow "
                    "it, `random_shift`, `dropout` or a smaller model help; otherwise stop near that step."
                )
        return sorted(warnings)

    def state_dict(self) -> dict[str, Any]:
        """The best validations, for a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from what [`state_dict`] returned."""
        self.best = dict(state_dict["best"])

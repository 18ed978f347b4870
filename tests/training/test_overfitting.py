# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The sign of overfitting: when it shows, and that a resumed run remembers."""

from hf_vqdit.training.overfitting import OverfittingSignal


def follow(signal: OverfittingSignal, *losses: tuple[float, float]) -> list[list[str]]:
    """Warnings of validations with these losses on held-out and on training pairs."""
    return [
        signal.update(step, {"nats": held_out}, {"nats": training})
        for step, (held_out, training) in enumerate(losses, start=1)
    ]


def test_it_shows_when_held_out_pairs_get_harder_while_training_pairs_get_easier():
    *before, warnings = follow(OverfittingSignal(), (3.0, 2.9), (2.0, 1.8), (2.01, 1.5), (2.2, 1.2))
    assert before == [[], [], []]  # a rise of less than a hundredth is none
    assert len(warnings) == 1
    assert "since step 2 nats" in warnings[0] and "2 to 2.2" in warnings[0] and "1.8 to 1.2" in warnings[0]


def test_losses_that_rise_together_are_another_trouble():
    assert follow(OverfittingSignal(), (2.0, 1.8), (2.5, 2.4)) == [[], []]


def test_each_loss_is_followed_by_itself():
    signal = OverfittingSignal()
    signal.update(1, {"image_nats": 3.0, "text_nats": 1.0, "bits": 9.0}, {"image_nats": 3.0, "text_nats": 1.0})
    warnings = signal.update(
        2, {"image_nats": 2.0, "text_nats": 1.5, "bits": 99.0}, {"image_nats": 2.0, "text_nats": 0.5}
    )
    assert len(warnings) == 1 and "text_nats" in warnings[0]


def test_a_resumed_run_remembers_the_best_validation():
    signal, resumed = OverfittingSignal(), OverfittingSignal()
    follow(signal, (2.0, 1.8))
    resumed.load_state_dict(signal.state_dict())
    assert resumed.update(2, {"nats": 3.0}, {"nats": 1.0}) == signal.update(2, {"nats": 3.0}, {"nats": 1.0}) != []

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What a training run costs, before it starts: parameters, FLOPs, memory."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from .arguments import TrainDiTArguments, TrainVQVAEArguments


def describe_cost(
    model: torch.nn.Module,
    compute_loss: Callable[[], torch.Tensor],
    arguments: TrainVQVAEArguments | TrainDiTArguments,
    global_batch_size: int,
) -> str:
    """Goes once forward and backward, and counts.

    Args:
        model (`ModelMixin`): The model.
        compute_loss (`Callable`): The loss of one micro-batch.
        arguments: The settings of the run.
        global_batch_size (`int`): Pairs an optimizer step.

    Returns:
        `str`: Lines with the number of parameters; the FLOPs of a step and of all; the memory of the weights and of
            what goes with them, in float32; and the memory of what a micro-batch keeps for the backward pass, in its
            own precision. The most that is allocated is somewhat above the sum of the two.
    """
    kept: dict[int, int] = {}  # storage -> bytes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = compute_loss()
        loss.backward()

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    flops = counter.get_total_flops() * global_batch_size // arguments.train_batch_size
    total, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    state = 4 * ((2 if arguments.use_ema else 1) * total + 3 * trained)  # a gradient, and two moments of AdamW
    return (
        f"parameters: {total:,}, of which the optimizer trains {trained:,}\n"
        f"FLOPs a step: {flops:.4g} ({global_batch_size} pairs), in all {flops * arguments.max_train_steps:.4g}\n"
        f"GB for weights, their averages, gradients and AdamW: {state / 1e9:.4g}\n"
        f"GB that {arguments.train_batch_size} pairs keep for the backward pass: {activations / 1e9:.4g}"
    )

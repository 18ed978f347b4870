# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Sums, copies and rows over the processes of a run; with one process they leave everything as it is."""

import torch
import torch.distributed as dist


def rank() -> int:
    """Index of this process; 0 is the first."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def sum_over_ranks(tensor: torch.Tensor) -> None:
    """Replaces a tensor by the sum of those of all processes, in place."""
    if _is_distributed():
        dist.all_reduce(tensor)


def broadcast(tensor: torch.Tensor) -> None:
    """Replaces a tensor by that of the first process, in place."""
    if _is_distributed():
        dist.broadcast(tensor, src=0)


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all processes, of equal shape, by rank."""
    if not _is_distributed():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def gather_lengths(rows: torch.Tensor) -> list[int]:
    """How many rows each process has, by rank."""
    if not _is_distributed():  # nor does the device wait
        return [len(rows)]
    return torch.cat(gather(torch.tensor([len(rows)], device=rows.device))).tolist()


def gather_rows(rows: torch.Tensor) -> list[torch.Tensor]:
    """The rows of all processes, by rank; their number may differ."""
    if not _is_distributed():
        return [rows]
    counts = gather_lengths(rows)
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    return [gathered[:count] for gathered, count in zip(gather(padded), counts, strict=True)]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()

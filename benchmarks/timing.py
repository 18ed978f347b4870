# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How the benchmarks measure: candidates in turn, round by round, and their ratios within each round.

Only ratios are reported. Machines differ, and on one machine other work comes and goes: so the candidates of a case
follow each other in every round, forwards and backwards by turns, a ratio is one of neighbours in time, and the median
over the rounds stands beside its quartiles. The clock counts the CPU seconds of this process, not those that other
processes take.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

OURS = "hf_vqdit"
NUM_ROUNDS, QUICK_NUM_ROUNDS = 9, 2
MIN_SECONDS = 0.05  # what takes less is called several times for one measurement


class Row(NamedTuple):
    """How much of something a peer takes, for each unit of it that hf_vqdit takes."""

    case: str
    peer: str
    quantity: str
    ratio: float  # above 1: hf_vqdit takes less
    quartiles: tuple[float, float] | None  # over the rounds; None where there was but one measurement


def alternate(candidates: Mapping[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[Any]]:
    """
    Measure candidates in turn.

    Args:
        candidates (`Mapping[str, Callable[[], Any]]`): Name -> what measures once, and returns what it measured.
        num_rounds (`int`): How often each is measured, after a first time that does not count.

    Returns:
        `dict[str, list[Any]]`: Name -> one value for each round.
    """
    values: dict[str, list[Any]] = {name: [] for name in candidates}
    for measure in candidates.values():
        measure()
    for index in range(num_rounds):
        for name in list(candidates)[:: -1 if index % 2 else 1]:
            values[name].append(candidates[name]())
    return values


def ratios(case: str, quantity: str, values: Mapping[str, Sequence[float]]) -> list[Row]:
    """
    A row for each peer.

    Args:
        case (`str`): What was done.
        quantity (`str`): What was measured of it, less being better.
        values (`Mapping[str, Sequence[float]]`): Name -> one value for each round; `OURS` is among the names.

    Returns:
        `list[Row]`: In the order of `values`.
    """
    found = []
    for peer, measured in values.items():
        if peer == OURS:
            continue
        of_rounds = [other / own for other, own in zip(measured, values[OURS], strict=True)]
        quartiles = None
        if len(of_rounds) > 1:
            low, _, high = statistics.quantiles(of_rounds, n=4, method="inclusive")
            quartiles = (low, high)
        found.append(Row(case, peer, quantity, statistics.median(of_rounds), quartiles))
    return found


def compare(case: str, functions: Mapping[str, Callable[[], object]], num_rounds: int) -> list[Row]:
    """
    Time and peak memory of functions that do the same.

    Args:
        case (`str`): What they do.
        functions (`Mapping[str, Callable[[], object]]`): Name -> function; `OURS` is among the names.
        num_rounds (`int`): Rounds of the time; memory does not vary.

    Returns:
        `list[Row]`: For each peer one of the time and one of the memory.
    """
    seconds = alternate({name: cpu_seconds(function) for name, function in functions.items()}, num_rounds)
    memory = {name: [peak_bytes(function)] for name, function in functions.items()}
    return ratios(case, "time", seconds) + ratios(case, "peak memory", memory)


def cpu_seconds(function: Callable[[], object]) -> Callable[[], float]:
    """What measures the CPU seconds of one call, over as many calls as take `MIN_SECONDS`."""
    num_calls = 1

    def measure() -> float:
        nonlocal num_calls
        start = time.process_time()
        for _ in range(num_calls):
            function()
        seconds = (time.process_time() - start) / num_calls
        if num_calls == 1:
            num_calls = max(1, round(MIN_SECONDS / max(seconds, 1e-6)))
        return seconds

    return measure


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes of tensors, besides those there were before, that exist at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate((change["args"]["Bytes"] for change in changes), initial=0))

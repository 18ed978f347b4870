# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Runs the benchmarks, prints their tables and, with `--output`, writes them to a Markdown file.

python -m benchmarks --output docs/benchmarks.md
python -m benchmarks nearest_codes sampling
python -m benchmarks --quick
"""

import argparse
import os
import platform
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.timing import Row

BENCHMARKS = ("nearest_codes", "transformer", "sampling", "data_stream")
INTRODUCTION = """# Benchmarks

The hot paths side by side with those of other libraries: `make benchmarks` writes this page.

All figures are ratios: what the peer takes for each unit that hf_vqdit takes, so above 1 hf_vqdit takes less. The two
are measured in turn within one run; a figure is the median over the rounds, with its quartiles in brackets. Time is
CPU seconds on one thread, unless something else is said, and memory the most bytes of tensors that exist at once.
Times by themselves would tell of one machine, and of what else it did.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, two rounds, nothing compiled: to see that it runs"
    )
    parser.add_argument("--output", type=Path, help="a Markdown file")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown names {sorted(unknown)}; choose from {', '.join(BENCHMARKS)}")

    torch.set_num_threads(1)
    page = [INTRODUCTION, machine()]
    for name in args.names or BENCHMARKS:
        benchmark = import_module(f"benchmarks.{name}")
        page.append(section(benchmark, benchmark.measure(args.quick)))
        print(page[-1], flush=True)
    if args.output is not None:
        args.output.write_text("\n".join(page), encoding="utf-8")


def section(benchmark: ModuleType, rows: list[Row]) -> str:
    """What a benchmark measures, as its docstring says it, and its table: a line for each case and peer."""
    title, _, text = benchmark.__doc__.partition("\n")
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for case, peer, quantity, ratio, quartiles in rows:
        spread = "" if quartiles is None else " ({:.2f} to {:.2f})".format(*quartiles)
        cells.setdefault((case, peer), {})[quantity] = f"{ratio:.2f}{spread}"
    lines = [("case", "peer", *quantities), ("---",) * (2 + len(quantities))]
    lines += [(*key, *(found.get(quantity, "") for quantity in quantities)) for key, found in cells.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {title.rstrip('.')}\n{text.rstrip()}\n\n{table}\n"


def machine() -> str:
    """The processor, and the versions of what is compared."""
    versions = []
    for package in ("torch", "diffusers", "datasets", "pillow", "vector-quantize-pytorch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # the optional one
            continue
    return (
        f"Measured on one of {os.cpu_count()} cores: {processor()}, {torch.backends.cpu.get_cpu_capability()}; "
        f"{platform.system()}, Python {platform.python_version()}, {', '.join(versions)}.\n"
    )


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

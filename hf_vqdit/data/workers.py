# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How the processes of a `DataLoader` behave."""

import signal


def ignore_interrupts(worker_id: int) -> None:
    """A `worker_init_fn`. A terminal sends Ctrl-C to all processes; the one that trains decides when it is time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How the processes of a `DataLoader` behave."""

import signal


def outlast_signals(worker_id: int) -> None:
    """A `worker_init_fn`. Ctrl-C, and the SIGTERM of a batch system, go to all processes at once, and the one that
    trains still needs its batches to end in order. A second SIGTERM, such as the loader's own, ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))

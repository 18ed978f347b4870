# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C, and the SIGTERM of a batch system: a run ends after the step at hand, with a checkpoint."""

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


class StopSignal:
    """Keeps the first SIGINT or SIGTERM, which would have ended the process, as a number; a second one ends it.

    Where signals cannot be listened to, outside the main thread, they do what they did before.
    """

    def __init__(self):
        self.number: int | None = None
        self._previous = {}

    def listen(self) -> None:
        """From now on keep the signal."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._keep) for number in (signal.SIGINT, signal.SIGTERM)}

    def release(self) -> None:
        """From now on signals do again what they did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.release()
        name = signal.Signals(number).name
        logger.warning("%s: a checkpoint is written after this step. Once more ends the run without.", name)

"""Ctrl-C and SIGTERM: the first one asks for a checkpoint and a clean end, the second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Final

from fractrain.util.errors import FractrainError

EXIT_INTERRUPTED: Final = 130


class RunInterrupted(FractrainError):
    """The user (or the machine's scheduler) asked the run to stop; the same command goes on with it."""

    exit_code = EXIT_INTERRUPTED


class GracefulStop:
    """Context manager that turns the first SIGINT or SIGTERM into ``requested`` and the second into an exception.

    Outside the main thread, where Python has no signal handlers, it does nothing.

    Attributes:
        requested: a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

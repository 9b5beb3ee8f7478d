"""Ctrl-C, SIGTERM and SIGHUP: while a run trains, the first one asks for a checkpoint and a clean end, the second one
stops at once; elsewhere they stop at once, with a word.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from fractrain.util.console import leave_terminal
from fractrain.util.errors import FractrainError

EXIT_INTERRUPTED: Final = 130
HANGUP: Final = getattr(signal, "SIGHUP", None)  # Windows has none
STOPS: Final = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)


class RunInterrupted(FractrainError):
    """The user (or the machine's scheduler) asked the run to stop; the same command goes on with it."""

    exit_code = EXIT_INTERRUPTED


class GracefulStop:
    """Context manager that turns the first of :data:`STOPS` into ``requested`` and the second into an exception.

    Outside the main thread, where Python has no signal handlers, it does nothing. A signal that is ignored (SIGHUP
    under ``nohup``) stays ignored.

    Attributes:
        requested: a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handling = contextlib.ExitStack()

    def __enter__(self) -> GracefulStop:
        self._handling.enter_context(_handled(STOPS, self._handle))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handling.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            leave_terminal()
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Inside the block SIGTERM and SIGHUP raise ``KeyboardInterrupt``, as Ctrl-C does."""
    return _handled(tuple(number for number in STOPS if number != signal.SIGINT), _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == HANGUP:
        leave_terminal()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...], handler: Any) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""Writing to people: a terminal that was closed, or a pipe that nobody reads, must not end hours of training."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import IO, Any

_STREAMS = (1, 2)


class Console:
    """A text stream whose errors do not matter: after the first one, what is written is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            _to_nowhere(self._stream.fileno())


def log_line(text: str) -> None:
    """Write a line to standard error, if anybody is there."""
    print(text, file=Console(sys.stderr), flush=True)


def leave_terminal() -> None:
    """Let go of a terminal that has been closed (SIGHUP): what is still written to it goes nowhere."""
    for descriptor in _STREAMS:
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                _to_nowhere(descriptor)


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)

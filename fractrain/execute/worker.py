"""One run in a process of its own: the job comes in as a line of JSON, progress goes out as lines of JSON.

Lines written: ``{"event": "progress", "step": 12, "total": 240, "loss": 1.9}`` and at the end
``{"event": "end", "status": "done", "message": ""}``. Whatever else prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import IO, Any, Final

from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.execute.jobs import Outcome, outcome_of
from fractrain.util.console import Console, log_line
from fractrain.util.errors import FractrainError, typed_line
from fractrain.util.progress import Progress

REPORT_S: Final = 0.5


class JsonProgress(Progress):
    """Writes progress as lines of JSON, at most one every ``REPORT_S`` seconds."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._total = 0
        self._written = 0.0

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Write the first line."""
        self._total = total
        self._write(done, None)

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        """Write a line if the last one is old enough."""
        if time.monotonic() - self._written >= REPORT_S:
            self._write(done, loss)

    def note(self, text: str) -> None:
        """Write to standard error."""
        log_line(text)

    def _write(self, step: int, loss: float | None) -> None:
        self._written = time.monotonic()
        emit(self._stream, {"event": "progress", "step": step, "total": self._total, "loss": loss})


def emit(stream: IO[str], event: dict[str, Any]) -> None:
    """Write one line of JSON."""
    stream.write(json.dumps(event) + "\n")
    stream.flush()


def main(registries: Registries | None = None) -> int:
    """Do the job on standard input; return the exit code."""
    _hear_stops()
    protocol: Any = Console(os.fdopen(os.dup(sys.stdout.fileno()), "w"))  # that nobody reads must not end a run
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a plugin that prints must not spoil the protocol
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    config = RunConfig.model_validate(job.pop("config"))
    code, outcome = _run(config, Site.from_json(job), JsonProgress(protocol), registries)
    emit(protocol, {"event": "end", "status": outcome.status, "message": outcome.message})
    return code


def _hear_stops() -> None:
    """Take SIGINT whatever the parent did: Ray's workers block it, background jobs of shells ignore it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(config: RunConfig, site: Site, progress: JsonProgress, registries: Registries | None) -> tuple[int, Outcome]:
    try:
        Trainer(config, site, progress, registries=registries).run()
    except FractrainError as error:
        return error.exit_code, outcome_of(config.run_id, error)
    except KeyboardInterrupt:
        return 130, Outcome(config.run_id, "interrupted", "stopped before it began")
    except Exception as error:
        traceback.print_exc()
        return 1, Outcome(config.run_id, "failed", typed_line(error))
    return 0, Outcome(config.run_id, "done")


def _stop_with_parent() -> None:
    """Wait for the end of standard input, which the parent keeps open as long as it lives; then stop as on Ctrl-C."""
    while os.read(0, 1):  # not sys.stdin: its lock, held by a waiting thread, spoils the interpreter's exit
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

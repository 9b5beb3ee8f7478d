"""A time limit of one start of a run: it ends with a checkpoint and is queued again, as Slurm's jobs are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from fractrain.execute.processes import Workers


@dataclass(frozen=True)
class TimeLimit:
    """How long one start may take.

    Attributes:
        seconds: after so many the worker is killed.
        signal_seconds: so long before, a checkpoint is asked for.
    """

    seconds: float
    signal_seconds: float

    @contextlib.contextmanager
    def over(self, workers: Workers) -> Iterator[threading.Event]:
        """Hold workers to it inside the block; the event is set when they were asked to stop."""
        out_of_time = threading.Event()

        def stop() -> None:
            out_of_time.set()
            workers.stop()

        timers = [
            threading.Timer(self.seconds - self.signal_seconds, stop),
            threading.Timer(self.seconds, workers.kill),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield out_of_time
        finally:
            for timer in timers:
                timer.cancel()

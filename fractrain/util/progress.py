"""Progress for people: a bar with time left on a terminal, a line every few seconds otherwise, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Any, Final, Literal, cast

from tqdm import tqdm

from fractrain.util.console import Console

LINE_INTERVAL_S: Final = 10.0
TRIED_STEPS: Final = 5  # steps after the first (which compiles, and fills caches) before a time left means something
_BAR_WITHOUT_ETA: Final = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
Kind = Literal["auto", "bar", "line", "silent"]


class Progress:
    """Told about the steps of one run, or of several runs added up; this one shows nothing."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin: ``done`` of ``total`` steps are behind us."""

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        """``done`` steps are behind us now; a new ``label`` replaces the old one."""

    def note(self, text: str) -> None:
        """Show a line of text without spoiling the bar."""

    def close(self) -> None:
        """End; may be called twice, and without a start."""


class BarProgress(Progress):
    """A bar with the time left, on stderr or another terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Show the bar; without a time left until that means something."""
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit="it", file=self._stream, dynamic_ncols=not in_notebook(),
            bar_format=_BAR_WITHOUT_ETA,
        )  # fmt: skip
        self._first: int | None = None

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._first = done if self._first is None else self._first
        if done - self._first >= TRIED_STEPS:  # tqdm forgets the slow first step by a moving average
            self._bar.bar_format = None
        if label is not None:
            self._bar.set_description_str(label, refresh=False)
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Write the line above the bar."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LineProgress(Progress):
    """A line every ``interval`` seconds, the first one at once: for logs."""

    def __init__(
        self,
        stream: IO[str] | None = None,
        interval: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._interval, self._clock = interval, clock
        self._label, self._total, self._done = "", 0, 0
        self._first: tuple[int, float] | None = None
        self._loss: float | None = None
        self._began = self._printed = 0.0
        self._open = False

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Write the first line."""
        self._label, self._total, self._done, self._first = label, total, done, None
        self._began = self._printed = self._clock()
        self._open = True
        self.note(f"{label}: {done}/{total} steps done, going on" if done else f"{label}: {total} steps")

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        """Write a line if the last one is old enough."""
        self._done, self._loss, self._label = done, loss, label or self._label
        now = self._clock()
        self._first = self._first or (done, now)
        if now - self._printed >= self._interval:
            self._printed = now
            self._line(now)

    def _line(self, now: float) -> None:
        first, since = self._first or (self._done, now)
        moved = self._done - first
        left = (now - since) / moved * (self._total - self._done) if moved >= TRIED_STEPS else None
        loss = "" if self._loss is None else f", loss {self._loss:.3f}"
        eta = "" if left is None else f", {duration(left)} left"
        percent = 100 * self._done / self._total if self._total else 100.0
        self.note(f"{self._label}: {self._done}/{self._total} steps ({percent:.0f} %){loss}{eta}")

    def note(self, text: str) -> None:
        """Write the line."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Write the last line."""
        if self._open:
            self._open = False
            took = duration(self._clock() - self._began)
            self.note(f"{self._label}: {self._done}/{self._total} steps after {took}")


class TableProgress:
    """Progress over several runs: their steps added up, so that the time left is the table's."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._ended: set[str] = set()

    def start(self, totals: dict[str, int], cached: int = 0) -> None:
        """Begin.

        Args:
            totals: steps of each run that is to be done, by run id.
            cached: number of runs that were done before.
        """
        self._totals, self._done, self._ended = dict(totals), dict.fromkeys(totals, 0), set()
        if cached:
            self._inner.note(f"{cached} runs are in the store already, {len(totals)} to do")
        if totals:
            self._inner.start(self._label(), sum(totals.values()))

    def update(self, run_id: str, done: int) -> None:
        """``done`` steps of one run are behind us."""
        self._done[run_id] = done
        self._inner.update(sum(self._done.values()), label=self._label())

    def finish(self, run_id: str, status: str, message: str = "") -> None:
        """One run has ended; anything but ``done`` is shown at once."""
        self._ended.add(run_id)
        self.update(run_id, self._totals.get(run_id, 0))
        if status != "done":
            self._inner.note(f"{run_id}: {status}: {message}")

    def close(self) -> None:
        """End."""
        self._inner.close()

    def _label(self) -> str:
        return f"runs {len(self._ended)}/{len(self._totals)}"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose output moves with carriage returns."""
    return "ipykernel" in sys.modules


def make_progress(kind: Kind = "auto", stream: IO[str] | None = None) -> Progress:
    """Return the progress display of that kind; ``auto`` is a bar on a terminal or in a notebook, lines elsewhere."""
    stream = cast(IO[str], Console(stream or sys.stderr))
    if kind == "auto":
        kind = "bar" if stream.isatty() or in_notebook() else "line"
    if kind == "silent":
        return Progress()
    return BarProgress(stream) if kind == "bar" else LineProgress(stream)


def duration(seconds: float) -> str:
    """Return seconds as ``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""What the engine notes about its supply of data: how fast it came, how long training waited, what was replaced."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any


class Throughput:
    """Speed of the training steps of one evaluation period, as far as this process did them.

    Args:
        stream: training batches; its attribute ``waited_s`` says how many seconds it has kept the training waiting.
            One without it holds its data in memory and never does.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._waited_before = stream, _waited(stream)
        self.step_seconds: list[float] = []
        self.answers = 0

    def line(self, unit: str) -> dict[str, float | None]:
        """Return the part of the metrics line that is about speed; None throughout when no step was done.

        ``wait_share`` is the share of the steps' time in which they waited for data, 0 to 1.

        Args:
            unit: what ``answers`` counts: ``images`` or ``words``.
        """
        total = sum(self.step_seconds)
        return {
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            f"{unit}_per_second": self.answers / total if total else None,
            "wait_share": min(1.0, (_waited(self._stream) - self._waited_before) / total) if total else None,
        }


class Replaced:
    """The images of a run that could not be decoded and were replaced.

    Args:
        streams: training and evaluation batches; the attribute ``bad_images`` of those that have it gives file and
            reason of each.

    Attributes:
        before: what earlier starts of the run met.
    """

    def __init__(self, streams: Iterable[Any]) -> None:
        self._streams = list(streams)
        self.before: dict[str, str] = {}

    @property
    def images(self) -> dict[str, str]:
        """File and reason of each, sorted by file, earlier starts included."""
        found = dict(self.before)
        for stream in self._streams:
            found.update(getattr(stream, "bad_images", {}))
        return dict(sorted(found.items()))


def _waited(stream: Any) -> float:
    return float(getattr(stream, "waited_s", 0.0))

"""Who is told about a run while it trains: live trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fractrain.engine.config import RunConfig
from fractrain.engine.store import RunRecord


class RunListener(Protocol):
    """Told at the beginning, after each evaluation period, and at the end; never changes the run."""

    def begun(self, config: RunConfig, environment: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """A run begins, or goes on after the periods whose metrics ``lines`` holds."""

    def period(self, line: Mapping[str, Any]) -> None:
        """An evaluation period has ended; ``line`` is its line in ``metrics.jsonl``."""

    def ended(self, record: RunRecord) -> None:
        """The run has ended, whatever its status."""

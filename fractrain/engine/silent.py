"""The writer of a run's folder that writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fractrain.engine.store import Status


class SilentWriter:
    """Stands for a :class:`fractrain.engine.store.RunWriter` on the processes of a run that do not write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def discard(self) -> None:
        """Do nothing."""

    def set_status(self, status: Status, message: str = "", **facts: Any) -> None:
        """Do nothing."""

    def start(self, environment: dict[str, Any]) -> None:
        """Do nothing."""

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Do nothing."""

    def finish(self, summary: dict[str, Any], ledger: dict[str, Any]) -> None:
        """Do nothing."""

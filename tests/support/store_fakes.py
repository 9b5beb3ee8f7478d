"""A run store filled by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fractrain.report.values import Measured


@dataclass
class FakeRecord:
    run_id: str
    status: str
    measured: Measured | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    verified: bool = True

    def ledger(self) -> Any:
        raise AssertionError("the fake has no ledger")


class FakeStore:
    """Records by run id, ``method-model-dataset-profile-s<seed>``."""

    def __init__(self) -> None:
        self.records: dict[str, FakeRecord] = {}

    def get(self, run_id: str) -> FakeRecord | None:
        return self.records.get(run_id)

    def add(self, run_id: str, accuracy: float = 95.0, status: str = "done", **values: Any) -> None:
        """Accuracy means best on test; last is 0.5 less."""
        measured = Measured(
            accuracy={"last": accuracy - 0.5, "best_val": accuracy - 0.25, "best_test": accuracy},
            **{"macs_best": 2e9, "macs_end": 3e9, "cp_percent": 6.25, "energy_kj": 0.02, "latency_min": 0.3, **values},
        )
        self.records[run_id] = FakeRecord(run_id, status, measured if status == "done" else None)

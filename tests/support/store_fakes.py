"""A run store filled by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fractrain.report.values import RunValues


@dataclass
class FakeRecord:
    run_id: str
    status: str
    measured: RunValues | None = None
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

    def add(self, run_id: str, accuracy: float = 95.0, status: str = "done", caveat: str = "", **values: Any) -> None:
        """Accuracy means best on test; last is 0.5 less."""
        usual = {"macs_best": 2e9, "macs_end": 3e9, "cp": 6.25, "energy": 0.02, "latency": 0.3}
        values = {key: value for key, value in {**usual, **values}.items() if value is not None}
        quality = {
            "accuracy_last": accuracy - 0.5,
            "accuracy_best_val": accuracy - 0.25,
            "accuracy_best_test": accuracy,
        }
        measured = RunValues({**quality, **values}, caveat)
        self.records[run_id] = FakeRecord(run_id, status, measured if status == "done" else None)

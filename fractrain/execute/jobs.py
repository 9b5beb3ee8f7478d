"""What goes into an executor and what comes out of it: where runs are executed, and how each one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from fractrain.engine.config import RunConfig
from fractrain.util.errors import FractrainError, NonFiniteError
from fractrain.util.progress import Progress
from fractrain.util.signals import RunInterrupted

CHECKPOINT_SECONDS: Final = 60.0
Kernels = Literal["auto", "reference", "fused"]
Graphs = Literal["auto", "off"]
OutcomeStatus = Literal["done", "failed", "diverged", "interrupted"]


@dataclass(frozen=True)
class Site:
    """Where and how runs are executed; nothing here is part of a run's id.

    Attributes:
        store: root of the run store.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        data_dir: folder of the data sets, None for the default.
        download: fetch missing data.
        checkpoint_seconds: at least this long between two checkpoints of a run.
        kernels: of the quantizers: ``auto``, ``reference`` or ``fused``: all round alike; last bits of sums may differ.
        graphs: on a GPU, record a training step and replay it where that is possible (``auto``), or never (``off``).
    """

    store: Path
    device: str = "auto"
    data_dir: Path | None = None
    download: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    kernels: Kernels = "auto"
    graphs: Graphs = "auto"

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return {
            "store": str(self.store),
            "device": self.device,
            "data_dir": data_dir,
            "download": self.download,
            "checkpoint_seconds": self.checkpoint_seconds,
            "kernels": self.kernels,
            "graphs": self.graphs,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Site:
        """Read what :meth:`as_json` returned."""
        data_dir = None if values["data_dir"] is None else Path(values["data_dir"])
        return cls(**{**values, "store": Path(values["store"]), "data_dir": data_dir})


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        run_id: the run.
        status: ``done``, ``failed``, ``diverged`` or ``interrupted``.
        message: one line, empty when done.
        cached: it was done before.
    """

    run_id: str
    status: OutcomeStatus
    message: str = ""
    cached: bool = False


class Executor(Protocol):
    """Runs a list of configs and says how each one ended."""

    def run(self, configs: Sequence[RunConfig], site: Site, progress: Progress | None = None) -> list[Outcome]:
        """Run what is not done yet; return one outcome per config, in their order.

        Raises:
            RunInterrupted: the user asked to stop; all runs have written checkpoints.
        """
        ...


def outcome_of(run_id: str, error: FractrainError) -> Outcome:
    """Return the outcome that an error stands for."""
    if isinstance(error, RunInterrupted):
        return Outcome(run_id, "interrupted", str(error))
    return Outcome(run_id, "diverged" if isinstance(error, NonFiniteError) else "failed", str(error))

"""What an executor is, and how each of its runs ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.util.errors import FractrainError, NonFiniteError
from fractrain.util.progress import Progress
from fractrain.util.signals import RunInterrupted

OutcomeStatus = Literal["done", "failed", "diverged", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
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

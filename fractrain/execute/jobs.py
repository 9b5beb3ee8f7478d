"""What an executor is, and how each of its runs ended."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
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


class Executor(abc.ABC):
    """Runs a list of configs and says how each one ended; a kind of executor says how those not done yet are run.

    Before it runs anything it leaves out what is done, and runs the sources of runs first.
    """

    def run(self, configs: Sequence[RunConfig], site: Site, progress: Progress | None = None) -> list[Outcome]:
        """Run what is not done yet; return one outcome per config, in their order.

        Raises:
            RunInterrupted: the user asked to stop; all runs have written checkpoints.
        """
        store = RunStore(site.store)
        outcomes = self._sources_first(configs, site, progress)
        todo: dict[str, RunConfig] = {}
        for config in configs:
            record = store.get(config.run_id)
            if record is not None and record.status == "done":
                outcomes[config.run_id] = Outcome(config.run_id, "done", cached=True)
            elif config.run_id not in outcomes:
                todo[config.run_id] = config
        if todo:
            ran = self.run_all(list(todo.values()), site, progress or Progress(), cached=len(outcomes))
            outcomes.update({outcome.run_id: outcome for outcome in ran})
        return [outcomes[config.run_id] for config in configs]

    @abc.abstractmethod
    def run_all(self, configs: list[RunConfig], site: Site, progress: Progress, cached: int) -> list[Outcome]:
        """Run all of these, none of which is done; return one outcome per config, in their order.

        Args:
            configs: at least one, no two the same.
            site: where and how.
            progress: told about the steps of all of them.
            cached: number of runs that were done before, for the progress display.
        """

    def _sources_first(self, configs: Sequence[RunConfig], site: Site, progress: Progress | None) -> dict[str, Outcome]:
        """Run what other runs start from, each once; return the outcome of runs whose source failed."""
        store = RunStore(site.store)
        waiting: dict[str, list[RunConfig]] = {}
        sources: dict[str, RunConfig] = {}
        for config in configs:
            record = store.get(config.run_id)
            if config.source is not None and (record is None or record.status != "done"):
                sources[config.source.run_id] = config.source
                waiting.setdefault(config.source.run_id, []).append(config)
        ended = self.run(list(sources.values()), site, progress) if sources else []
        return {
            config.run_id: Outcome(config.run_id, "failed", f"its source run {o.run_id}: {o.status}: {o.message}")
            for o in ended
            if o.status != "done"
            for config in waiting[o.run_id]
        }


def outcome_of(run_id: str, error: FractrainError) -> Outcome:
    """Return the outcome that an error stands for."""
    if isinstance(error, RunInterrupted):
        return Outcome(run_id, "interrupted", str(error))
    return Outcome(run_id, "diverged" if isinstance(error, NonFiniteError) else "failed", str(error))

"""The local executor: each run in a process of its own on this machine, several at a time.

A run that fails, diverges or takes its process down is reported at once, and the others go on. Ctrl-C once: every run
writes a checkpoint; twice: they stop at once. A worker also stops, with a checkpoint, when its parent has died.
"""

from __future__ import annotations

import functools
import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.execute.forks import ForkServer, can_fork
from fractrain.execute.jobs import Executor, Outcome, outcome_of
from fractrain.execute.processes import THREADS, WORKER, Workers
from fractrain.execute.resources import LocalResources, Machine
from fractrain.util.errors import FractrainError
from fractrain.util.progress import Progress, TableProgress
from fractrain.util.signals import GracefulStop, RunInterrupted

POLL_S: Final = 0.1

_Events = queue.SimpleQueue[Callable[[], None]]


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """One process per run, ``jobs`` at a time, cores and GPUs divided among them.

    Attributes:
        jobs: runs at the same time, fewer where ``resources`` leave no room for so many.
        gpus: GPU numbers, dealt out to the slots in turn; empty leaves the choice to each run.
        resources: of each run.
        isolate: False runs everything in this process, one after the other; None does so when there is one run to do
            and no resources are asked for.
        worker: command line of the worker process.
    """

    jobs: int = 1
    gpus: Sequence[str] = ()
    resources: LocalResources = field(default_factory=LocalResources)
    isolate: bool | None = None
    worker: Sequence[str] = WORKER

    def run_all(self, configs: list[RunConfig], site: Site, progress: Progress, cached: int) -> list[Outcome]:
        """See :meth:`fractrain.execute.jobs.Executor.run_all`.

        Raises:
            MachineError: a run asks for more than this machine has.
        """
        several = len(configs) > 1 or self.resources != LocalResources()
        if several if self.isolate is None else self.isolate:
            room = Machine.detect(len(self.gpus)).slots(self.resources) or len(configs)
            jobs = max(1, min(self.jobs, room, len(configs)))
            return self._run_processes(configs, site, TableProgress(progress), cached, jobs)
        return [run_here(config, site, progress) for config in configs]

    def _run_processes(
        self, configs: list[RunConfig], site: Site, progress: TableProgress, cached: int, jobs: int
    ) -> list[Outcome]:
        server = self._server(site, jobs)
        workers = Workers(self.worker, site, server)
        events: _Events = queue.SimpleQueue()  # of all threads, shown by this one
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            slots.put(slot)

        def one(config: RunConfig) -> Outcome:
            slot = slots.get()
            try:
                outcome = workers.run(
                    config,
                    self._variables(slot, jobs),
                    lambda done: events.put(functools.partial(progress.update, config.run_id, done)),
                    self.resources.retries,
                )
            finally:
                slots.put(slot)
            events.put(functools.partial(progress.finish, outcome.run_id, outcome.status, outcome.message))
            return outcome

        progress.start({config.run_id: config.recipe.iterations for config in configs}, cached)
        with GracefulStop() as stop, ThreadPoolExecutor(jobs) as threads:
            futures = [threads.submit(one, config) for config in configs]
            try:
                _wait(futures, workers, stop, events)
            except BaseException as error:
                workers.stop()
                workers.stop()  # leave no process behind
                if isinstance(error, KeyboardInterrupt):
                    raise RunInterrupted(
                        "stopped at once; the same command goes on from the last checkpoints"
                    ) from error
                raise
            finally:
                progress.close()
                if server is not None:
                    server.close()
        outcomes = [future.result() for future in futures]
        if stop.requested:
            ended = sum(outcome.status == "done" for outcome in outcomes)
            raise RunInterrupted(
                f"stopped with {ended} of {len(configs)} runs done; the same command goes on with them"
            )
        return outcomes

    def _server(self, site: Site, jobs: int) -> ForkServer | None:
        """Where several runs on the CPU begin faster: not with GPUs, whose drivers do not survive a fork."""
        from fractrain.util.device import resolve_device  # imports torch

        if tuple(self.worker) != WORKER or self.gpus or not can_fork() or resolve_device(site.device).type != "cpu":
            return None
        return ForkServer(self._variables(0, jobs))

    def _variables(self, slot: int, jobs: int) -> dict[str, str]:
        """Environment variables of the workers in a slot."""
        from fractrain.engine.environment import cores  # imports torch

        threads = self.resources.cores or max(1, cores() // jobs)
        variables = dict.fromkeys(THREADS, str(threads))
        variables.setdefault("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "passive"))
        own = self.resources.gpus
        if own is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[slot * own : (slot + 1) * own])
        elif self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return variables


def _wait(futures: Sequence[Future[Outcome]], workers: Workers, stop: GracefulStop, events: _Events) -> None:
    """Show events until all is done; a stop is handed to the workers once."""
    told = False
    while not all(future.done() for future in futures) or not events.empty():
        if stop.requested and not told:
            told = True
            workers.stop()
        while not events.empty():
            events.get()()
        time.sleep(POLL_S)


def run_here(config: RunConfig, site: Site, progress: Progress) -> Outcome:
    """Run one config in this process.

    Raises:
        RunInterrupted: the user asked to stop.
    """
    from fractrain.engine.trainer import Trainer  # imports torch

    try:
        Trainer(config, site, progress).run()
    except RunInterrupted:
        raise
    except FractrainError as error:
        return outcome_of(config.run_id, error)
    return Outcome(config.run_id, "done")

"""One run from its config to its record: lock, resume, loop, checkpoints, status, summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import nn

from fractrain.distributed.ranks import Ranks
from fractrain.engine import checkpoint, environment
from fractrain.engine.config import RunConfig
from fractrain.engine.init_weights import source_weights, start_from
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.reach import unreached
from fractrain.engine.registries import Registries
from fractrain.engine.site import Site
from fractrain.engine.store import RunRecord, RunStore, RunWriter, Status
from fractrain.engine.summary import best_line, summarize_run, tensor_bytes, trivial_result
from fractrain.experimental.cuda_graphs import recorder_for
from fractrain.util.device import determinism, resolve_device
from fractrain.util.digests import weights_sha256
from fractrain.util.errors import DiskError, NonFiniteError, RunError, StoreError, typed_line
from fractrain.util.files import without_folders
from fractrain.util.progress import Progress
from fractrain.util.signals import GracefulStop, RunInterrupted

FOREVER: Final = -1.0
CHECKPOINT_NAME: Final = checkpoint.NAME


class RunListener(Protocol):
    """Told at the beginning, after each evaluation period, and at the end; never changes the run."""

    def begun(self, config: RunConfig, environment: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """A run begins, or goes on after the periods whose metrics ``lines`` holds."""

    def period(self, line: Mapping[str, Any]) -> None:
        """An evaluation period has ended; ``line`` is its line in ``metrics.jsonl``."""

    def ended(self, record: RunRecord) -> None:
        """The run has ended, whatever its status."""


class Trainer:
    """Runs one config, or goes on with it where it was stopped.

    Args:
        site: where it is kept and trained, and how.
        progress: told about every step; silent by default.
        ranks: the processes the run is on, all of which make a trainer; None: this one alone, on the site's device.
        fresh: start from the beginning, whatever the store has of this run; its source run stays as it is.
        listeners: told about the run while it trains, on the first process.
    """

    def __init__(
        self, config: RunConfig, site: Site, progress: Progress | None = None, *, registries: Registries | None = None,
        ranks: Ranks | None = None, fresh: bool = False, listeners: Sequence[RunListener] = (),
    ) -> None:  # fmt: skip
        self.ranks = ranks or Ranks(resolve_device(site.device))
        self.device = self.ranks.device
        self.config, self.site, self.store = config, site, RunStore(site.store)
        self.progress = progress if progress is not None and self.ranks.is_main else Progress()
        self.registries, self.fresh = registries or Registries(), fresh
        self.listeners = tuple(listeners) if self.ranks.is_main else ()

    def run(self) -> RunRecord:
        """Train to the end and return the finished run; one that is done already is returned, unless ``fresh``.

        Raises:
            RunInterrupted: SIGINT or SIGTERM; a checkpoint was written.
            NonFiniteError: the run diverged.
            FractrainError: bad data, store or checkpoint.
        """
        if self.ranks.is_distributed:
            self.ranks.require_equal(environment.identity(self.config.run_id))
        record = self._record()
        if self.fresh or record is None or record.status != "done":
            if record is None or record.status != "damaged":
                self._train_source()
            with GracefulStop() as stop, self._open() as writer:
                if self.fresh:
                    self.ranks.on_first(writer.discard)
                record = self._record()
                if record is not None and record.status == "damaged":
                    raise StoreError(f"{record.path}: {record.message}")
                if record is None or record.status != "done":  # another process may have finished it while we waited
                    self._run_locked(writer, stop)
            record = self._record()
        if record is None:
            raise DiskError(f"{self.store.path(self.config.run_id)} has vanished: something else deletes in the store")
        return record

    def _record(self) -> RunRecord | None:
        """What the store of rank 0 has of the run."""
        return self.ranks.broadcast(self.ranks.on_first(lambda: self.store.get(self.config.run_id)))

    @contextlib.contextmanager
    def _open(self) -> Iterator[RunWriter]:
        """The run's folder; ranks but the first write nothing."""
        with contextlib.ExitStack() as stack:
            writer = self.ranks.on_first(lambda: stack.enter_context(self.store.open(self.config, self.site.wait_s)))
            yield writer or NullWriter(self.store.path(self.config.run_id))

    def _train_source(self) -> None:
        """Run the source run first, unless it is done or this run is past needing it."""
        source = self.config.source
        begun = self.ranks.broadcast((self.store.path(self.config.run_id) / CHECKPOINT_NAME).exists())
        if source is None or (begun and not self.fresh):
            return
        self.progress.note(f"run {self.config.run_id} starts from run {source.run_id}")
        Trainer(
            source, replace(self.site, wait_s=FOREVER), self.progress, registries=self.registries, ranks=self.ranks
        ).run()

    def _start(self, model: nn.Module) -> None:
        """Give a plain model the weights of the source run."""
        source = self.config.source
        if source is not None:
            new_head = self.config.setting == "adaptation"
            weights = self.ranks.broadcast(self.ranks.on_first(lambda: source_weights(self.store, source)) or {})
            start_from(model, weights, source.run_id, new_head)

    def _run_locked(self, writer: RunWriter, stop: GracefulStop) -> None:
        """Train, and write a status that says how it ended, whatever happens."""
        try:
            self._train(writer, stop)
        except NonFiniteError as error:
            _end(writer, "diverged", str(error), layer=error.layer, step=error.step)
            raise
        except RunInterrupted as error:
            _end(writer, "interrupted", str(error))
            raise
        except KeyboardInterrupt as error:  # the second Ctrl-C
            _end(writer, "interrupted", "stopped at once; the last checkpoint counts")
            raise RunInterrupted(
                f"run {self.config.run_id} stopped at once; the same command goes on with it"
            ) from error
        except torch.OutOfMemoryError as error:
            message = f"run {self.config.run_id} needs more memory than the GPU has: try --set recipe.batch_size=..."
            _end(writer, "failed", message)
            raise RunError(message) from error
        except Exception as error:
            _end(writer, "failed", without_folders(typed_line(error)))
            raise
        finally:
            self.progress.close()
            if self.listeners and (record := self.store.get(self.config.run_id)) is not None:
                for listener in self.listeners:
                    listener.ended(record)

    def _train(self, writer: RunWriter, stop: GracefulStop) -> None:
        gpus = [self.device] if self.device.type == "cuda" else []
        path = writer.path / CHECKPOINT_NAME
        with determinism(self.config.recipe.deterministic), torch.random.fork_rng(devices=gpus):
            how = {"kernels": self.site.kernels, "graphs": self.site.graphs if gpus else "off"}
            machine = {**environment.capture(self.device), **how}
            self.ranks.on_first(lambda: writer.start(machine))
            state = self.ranks.broadcast(self.ranks.on_first(lambda: checkpoint.load(path, self.config.run_id)))
            loop = TrainingLoop(
                self.config, self.site, self.registries, on_epoch=lambda line: self._on_period(writer, line),
                should_stop=lambda: stop.requested, start=self._start if state is None else None, ranks=self.ranks,
                recorder=recorder_for(self.device, self.site.graphs),
            )  # fmt: skip
            self.ranks.on_all_ranks(loop.check_last_batch)
            if self.ranks.is_distributed:
                self.ranks.require_equal({"data": loop.data_digest, "first weights": weights_sha256(loop.model)})
            if state is not None:
                loop.load_state_dict(state)
            self.ranks.on_first(lambda: writer.write_metrics(loop.lines))  # what follows the checkpoint comes again
            self._remarks = [*loop.method.remarks(), *unreached(self.config, loop.known)]
            for text in self._remarks:
                self.progress.note(f"run {self.config.run_id}: {text}")
            for listener in self.listeners:
                listener.begun(self.config, machine, loop.lines)
            self.progress.start(self.config.run_id, loop.clock.total, loop.step)
            self._loop(loop, writer, stop)
            self.ranks.on_first(lambda: self._finish(loop, writer))

    def _on_period(self, writer: RunWriter, line: dict[str, Any]) -> None:
        writer.append_metrics(line)
        for listener in self.listeners:
            listener.period(line)

    def _finish(self, loop: TrainingLoop, writer: RunWriter) -> None:
        """Make the run a result."""
        best = best_line(loop.lines, "test", loop.task.metric)  # up to it the papers count their MACs
        costs = self.registries.costs(loop.ledger, int(best["epoch"]))
        summary = summarize_run(self.config, loop.lines, loop.model, loop.ledger, costs, loop.task.metric)
        summary |= {"data_digest": loop.data_digest, **trivial_result(loop.data, loop.task.metric)}
        kept = tensor_bytes(loop.optimizer.state_dict()["state"])  # moments, scales, counters, as a checkpoint has them
        summary |= {"kept_bytes_per_sample": loop.kept_bytes, "optimizer_bytes": kept}
        if self._remarks:
            summary["remarks"] = self._remarks
        summary["meters"] = sorted(loop.energy.joules)
        if replaced := loop.replaced.images:
            summary["replaced_images"] = replaced
            self.progress.note(f"{len(replaced)} images could not be decoded and were replaced")
        writer.check_owner()
        checkpoint.keep_newest(writer.path / CHECKPOINT_NAME)  # before the status: a run that is done stays done
        writer.finish(summary, loop.ledger.state_dict(), loop.lines)

    def _loop(self, loop: TrainingLoop, writer: RunWriter, stop: GracefulStop) -> None:
        saved = time.monotonic()
        while not loop.finished:
            if any(self.ranks.any(stop.requested)):
                self._save(loop, writer)
                raise RunInterrupted(
                    f"run {self.config.run_id} stopped at step {loop.step} of {loop.clock.total}, checkpoint written; "
                    "the same command goes on with it"
                )
            loop.advance()
            if any(self.ranks.any(time.monotonic() - saved >= self.site.checkpoint_seconds)):
                self._save(loop, writer)
                saved = time.monotonic()
            self.progress.update(loop.step, loop.watch.last)
        self._save(loop, writer)

    def _save(self, loop: TrainingLoop, writer: RunWriter) -> None:
        loop.check_finite()  # a model that holds nan is not worth keeping
        state = loop.state_dict()
        path = writer.path / CHECKPOINT_NAME
        self.ranks.on_first(lambda: checkpoint.save(path, state, self.config.run_id, writer.check_owner))


def _end(writer: RunWriter, status: Status, message: str, **facts: Any) -> None:
    """Write how a run ended; where that fails, too, the first error is the one to tell."""
    with contextlib.suppress(StoreError):
        writer.set_status(status, message, **facts)


class NullWriter(RunWriter):
    """The writer of processes of a run that do not write: what the first process alone does, they never call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set_status(self, status: Status, message: str = "", **facts: Any) -> None:
        """Do nothing."""

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Do nothing."""

"""Trackers that follow a run while it trains: wandb (online or offline) and TensorBoard.

A tracker that fails after the run has begun is left out with one line; training goes on, and ``fractrain publish``
sends the run afterwards. Resuming goes on in the same wandb run: online, what is there already is not sent again;
offline, one folder holds the whole history.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fractrain.engine.config import RunConfig
from fractrain.engine.store import RunRecord
from fractrain.publish.public import group_name, public_config, public_facts, run_name, shown_config
from fractrain.publish.publish import resolve_mode, run_payload
from fractrain.publish.wandb import Mode, WandbTracker
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, FractrainError, needed

if TYPE_CHECKING:
    from fractrain.engine.trainer import RunListener

KINDS: Final = ("wandb", "tensorboard")


def make_listener(kind: str, folder: Path, project: str) -> RunListener:
    """Return the tracker of that name.

    Args:
        kind: ``wandb`` or ``tensorboard``.

    Raises:
        ConfigError: no such tracker, or a name it does not accept.
        MachineError: its library is missing, or nobody is logged in.
    """
    if kind == "wandb":
        return WandbLive(WandbTracker(project, None, resolve_mode("auto"), folder / "wandb" / project))
    if kind == "tensorboard":
        return TensorBoardLive(folder / "tensorboard")
    raise ConfigError(f"tracker {kind!r} is not known; there are {', '.join(KINDS)}")


class WandbLive:
    """Logs each period as it ends. The run's id is wandb's id, so that publishing later updates the same run."""

    def __init__(self, tracker: WandbTracker) -> None:
        self._tracker = tracker
        self._run: Any = None
        self._there = 0

    @property
    def mode(self) -> Mode:
        """``online`` or ``offline``."""
        return self._tracker.mode

    def begun(self, config: RunConfig, environment: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """See :class:`fractrain.engine.trainer.RunListener`."""
        with self._optional(config.run_id):
            if self.mode == "offline":
                for stale in self._tracker.pending(config.run_id):  # the new folder holds its periods, too
                    shutil.rmtree(stale)
            self._run = self._tracker.open(
                config.run_id,
                name=run_name(config),
                group=group_name(config),
                config={**shown_config(config), "environment": public_config(environment)},
            )
            self._there = self._run.starting_step if self.mode == "online" else 0
        for line in lines:
            self._log(line, {})

    def period(self, line: Mapping[str, Any]) -> None:
        """See :class:`fractrain.engine.trainer.RunListener`."""
        self._log(line, system_figures())

    def ended(self, record: RunRecord) -> None:
        """See :class:`fractrain.engine.trainer.RunListener`."""
        if self._run is None:
            return
        with self._optional(record.run_id):
            if record.status == "done":
                self._run.summary.update(dict(run_payload(record).summary))
            else:
                self._run.summary.update({"status": record.status, "message": record.message})
            self._run.finish(exit_code=int(record.status != "done"))
            self._run = None

    def _log(self, line: Mapping[str, Any], more: Mapping[str, float]) -> None:
        step = int(line["epoch"])
        if self._run is None or step < self._there:
            return
        with self._optional(self._run.id):
            self._run.log({**public_facts(line), **more}, step=step, commit=True)

    @contextlib.contextmanager
    def _optional(self, run_id: str) -> Iterator[None]:
        """One line instead of an end of training; nothing is tracked from then on."""
        try:
            with self._tracker.one_line(run_id):
                yield
        except FractrainError as error:
            log_line(f"no longer tracked, training goes on: {error}")
            self._run = None


class TensorBoardLive:
    """Writes scalars through torch's writer, into one folder per run.

    Args:
        folder: where TensorBoard looks for runs (``tensorboard --logdir``).

    Raises:
        MachineError: the package ``tensorboard`` is missing.
    """

    def __init__(self, folder: Path) -> None:
        with needed("--track tensorboard: pip install 'fractrain[tensorboard]'"):
            from torch.utils.tensorboard import SummaryWriter
        self._make, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def begun(self, config: RunConfig, environment: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """Begin the run's folder anew with the periods that are known; files of an earlier start would repeat them."""
        folder = self._folder / config.run_id
        if folder.exists():
            shutil.rmtree(folder)
        self._writer = self._make(str(folder))
        self._writer.add_text("config", f"```\n{config.to_json()}\n```")
        for line in lines:
            self._log(line, {})

    def period(self, line: Mapping[str, Any]) -> None:
        """See :class:`fractrain.engine.trainer.RunListener`."""
        self._log(line, system_figures())

    def ended(self, record: RunRecord) -> None:
        """See :class:`fractrain.engine.trainer.RunListener`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _log(self, line: Mapping[str, Any], more: Mapping[str, float]) -> None:
        for key, value in {**flat(line), **more}.items():
            self._writer.add_scalar(key, value, global_step=int(line["epoch"]))
        self._writer.flush()


def flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a line by path: ``{"method": {"stage": 1}}`` gives ``method/stage``."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def system_figures() -> dict[str, float]:
    """Peak memory of this process, and of the GPU where there is one, in GiB. Nothing that names the machine."""
    from fractrain.engine.summary import peak_memory  # imports torch

    names = {"peak_host_bytes": "system/peak_rss_gib", "peak_gpu_bytes": "system/peak_gpu_gib"}
    return {names[key]: size / 2**30 for key, size in peak_memory().items() if size is not None}

"""Sends one finished piece of work to wandb, online or into a folder; all knowledge of wandb's API is in this file.

wandb is imported only when a tracker is made. What wandb would find out about the machine by itself (host name, user,
program path, git remote, console output, installed packages, system load) is switched off: only the payload is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest.mock import patch

from fractrain.util.errors import ConfigError, MachineError, StoreError

Mode = Literal["online", "offline"]

INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 600.0
NAME_LENGTH = 128
TAG_LENGTH = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True)
class ArtifactSpec:
    """Files that belong together, and optionally one of them as rows for a ``wandb.Table``.

    Attributes:
        name: artifact name, unique in the project.
        type: ``ledger``, ``table`` or ``figure``.
        files: files to put in, under their own names, as :func:`artifact_name` gives them.
        columns, rows: the table, all cells as text; no columns means no table.
    """

    name: str
    type: str
    files: tuple[Path, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Payload:
    """Everything that is sent for one run or one table.

    Attributes:
        id: wandb id, equal to the run id.
        history: (step, values) in ascending order of step; a step is an epoch.
        summary: values shown for the whole run; they win over the last history row.
        images: drawings, shown as pictures of the run.
    """

    id: str
    name: str
    job_type: str
    group: str = ""
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[tuple[int, Mapping[str, Any]]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[ArtifactSpec, ...] = ()
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Sent:
    """What became of a payload: its URL or path, whether wandb had it already, how many history steps were there."""

    where: str
    resumed: bool
    steps_there: int


class WandbTracker:
    """Sends payloads to one wandb project, or writes them as offline runs into ``folder``.

    Args:
        entity: wandb user or team; None means the logged-in user's default.
        mode: ``online`` or ``offline``.
        folder: where wandb keeps its files (offline: the runs themselves, for a later ``wandb sync``).

    Raises:
        ConfigError: the project's name is not one wandb accepts.
        MachineError: wandb is not installed, or nobody is logged in (online).
        StoreError: the folder cannot be written.
    """

    def __init__(self, project: str, entity: str | None, mode: Mode, folder: Path) -> None:
        if not _NAME.fullmatch(project):
            raise ConfigError(f"wandb project {project!r}: use 1-128 of the characters A-Z a-z 0-9 _ . - (--project)")
        self.project, self.entity, self.mode, self.folder = project, entity, mode, folder.resolve()
        self._wandb = import_wandb()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error.strerror}; choose another folder with dir") from error
        if mode == "online":
            self._login()

    def send(self, payload: Payload, first_step: int = 0) -> Sent:
        """Send one payload; history steps below ``first_step`` are there already and are left out.

        Raises:
            ConfigError: wandb does not take a name or a value; nothing stays of an offline run.
            MachineError: the server cannot be reached, refuses, or does not answer in time.
            StoreError: the folder cannot be written (permissions, disk full).
        """
        with self.one_line(payload.id):
            if self.mode == "online":
                return self._send(payload, first_step)
            with self._replacing(self.pending(payload.id)):  # the new one replaces it: nothing may come twice
                return self._send(payload, first_step)

    def _send(self, payload: Payload, first_step: int) -> Sent:
        """Open a wandb run, fill it and close it; of an offline one that fails nothing stays."""
        tags = [shortened(tag, TAG_LENGTH) for tag in payload.tags if tag]
        run = self._wandb.init(
            project=self.project, entity=self.entity, id=payload.id, name=shortened(payload.name), resume="allow",
            job_type=payload.job_type, group=shortened(payload.group) or None, tags=tags or None,
            config=dict(payload.config), settings=self._settings(),
        )  # fmt: skip
        folder = Path(run.settings.sync_file).parent if self.mode == "offline" else None
        try:
            with run:  # leaves by finish(), with exit code 1 after an exception
                there = max(first_step, run.starting_step) if self.mode == "online" else first_step
                self._fill(run, payload, there)
                where = folder or run.url
                sent = Sent(where=str(where), resumed=bool(run.resumed), steps_there=there)
            if folder is not None:
                self._settle()
        except BaseException:
            if folder is not None:
                self._settle()
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return sent

    @contextlib.contextmanager
    def _replacing(self, stale: Sequence[Path]) -> Iterator[None]:
        """Put offline runs aside for the block; delete them at its end, or put them back where it fails."""
        aside = [folder.rename(folder.with_name(f".{folder.name}")) for folder in stale]
        try:
            yield
        except BaseException:
            for folder in aside:
                folder.rename(folder.with_name(folder.name[1:]))
            raise
        for folder in aside:
            shutil.rmtree(folder)

    def open(self, run_id: str, name: str, group: str, config: Mapping[str, Any]) -> Any:
        """Open a run that is logged while it trains; its steps are epochs, its axis iterations."""
        run = self._wandb.init(
            project=self.project, entity=self.entity, id=run_id, name=shortened(name), resume="allow",
            job_type="train", group=shortened(group), config=dict(config), settings=self._settings(),
        )  # fmt: skip
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run

    def pending(self, run_id: str) -> list[Path]:
        """Offline runs of this id that still wait to be synced (``wandb sync`` leaves a ``*.synced`` file as its mark).

        Sending the run again replaces them.
        """
        found = self.folder.glob(f"wandb/offline-run-*-{run_id}")
        return [f for f in found if (f / f"run-{run_id}.wandb").exists() and not any(f.glob("*.synced"))]

    def _fill(self, run: Any, payload: Payload, first_step: int) -> None:
        """Config, history, summary and artifacts of one open wandb run."""
        run.config.update(dict(payload.config), allow_val_change=True)
        if payload.history:
            axis = "iteration" if "iteration" in payload.history[0][1] else "epoch"
            run.define_metric(axis)
            run.define_metric("*", step_metric=axis)
        for step, values in payload.history:
            if step >= first_step:
                # commit: otherwise the last row is sent at the end and overwrites summary values of the same name
                run.log(dict(values), step=step, commit=True)
        run.summary.update(dict(payload.summary))
        for spec in payload.artifacts:
            artifact = self._wandb.Artifact(spec.name, type=spec.type)
            with patch.dict(os.environ, WANDB_DATA_DIR=str(self.folder)):  # else copies are staged in the home folder
                for file in spec.files:
                    artifact.add_file(str(file), name=f"{artifact_name(file.stem)}{file.suffix}")
                if spec.columns:
                    artifact.add(self._wandb.Table(columns=list(spec.columns), data=[*map(list, spec.rows)]), "rows")
            run.log_artifact(artifact)
        if payload.images:
            run.log({artifact_name(file.stem): self._wandb.Image(str(file)) for file in payload.images})

    def _settle(self) -> None:
        """Wait until the offline file is whole: finish() returns before wandb's service process has written it.

        Only the end of the service is waited for, which would end other runs of this process too; with such runs the
        file is completed a little later.
        """
        if getattr(self._wandb.setup(), "most_recent_active_run", self._wandb.run) is None:
            self._wandb.teardown()

    def _settings(self) -> Any:
        """Settings that keep wandb quiet and blind to the machine; fields the installed wandb lacks are left out."""
        wanted: dict[str, Any] = {
            "mode": self.mode, "root_dir": str(self.folder), "silent": True, "symlink": False, "reinit": "create_new",
            "init_timeout": INIT_TIMEOUT_S, "finish_timeout": FINISH_TIMEOUT_S, "finish_timeout_raises": True,
            "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "label_disable": True,
            "disable_job_creation": True, "x_disable_stats": True, "x_disable_meta": True,
            "x_disable_machine_info": True, "x_save_requirements": False, "x_executable": "python",
            "host": "unknown", "username": "unknown", "email": "",
            "program": "fractrain", "program_relpath": "fractrain",
        }  # fmt: skip
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{key: value for key, value in wanted.items() if key in known})

    def _login(self) -> None:
        """Check that credentials exist, without asking for them on the terminal and without a network."""
        wandb = self._wandb
        with self.one_line("login"):
            wandb.setup(settings=wandb.Settings(mode=self.mode, silent=True))
            quiet = {"prompt": False} if "prompt" in inspect.signature(wandb.login).parameters else {}
            if wandb.login(verify=False, **quiet):
                return
        raise MachineError("wandb: not logged in; run `wandb login`, set WANDB_API_KEY, or publish with --mode offline")

    @contextlib.contextmanager
    def one_line(self, what: str) -> Iterator[None]:
        """Turn wandb's errors into one line that says what to do."""
        try:
            yield
        except (self._wandb.UsageError, ValueError, TypeError) as error:  # a name or a value that wandb does not take
            raise ConfigError(f"wandb, {what}: {' '.join(str(error).split())[:300]}") from error
        except (self._wandb.Error, TimeoutError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MachineError(
                f"wandb, {what}: {reason[:200]}; check network and `wandb login`, or publish with --mode offline"
            ) from error
        except OSError as error:
            raise StoreError(f"wandb, {what}: {error.strerror or error} ({error.filename or self.folder})") from error


def shortened(text: str, length: int = NAME_LENGTH) -> str:
    """Return ``text``, which ends in a digest of the whole where it is longer than ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 13]}-{_digest(text)}"


def artifact_name(text: str) -> str:
    """Return ``text`` as a name for an artifact or a run.

    Other characters become ``_``; what was changed ends in a digest, so that two texts never share a name.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    return shortened(name if name == text else f"{name[: NAME_LENGTH - 13]}-{_digest(text)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def import_wandb() -> ModuleType:
    """Import wandb.

    Raises:
        MachineError: it is not installed or does not import.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise MachineError(f"publishing needs wandb: {reason}; install it with `pip install wandb`") from error

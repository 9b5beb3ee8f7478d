"""What one run gets, on this machine or on others, read from ``--executor-set KEY=VALUE``."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import pydantic
from pydantic import Field

from fractrain.util.errors import ConfigError, MachineError

R = TypeVar("R", bound=pydantic.BaseModel)
GB: Final = 2**30
CGROUPS: Final = Path("/sys/fs/cgroup")


class Resources(pydantic.BaseModel):
    """What one run gets on another machine, and what becomes of it when that machine is lost.

    Attributes:
        cores: CPU cores, and threads of the run.
        gpus: GPUs; a run of this suite uses one.
        memory_gb: main memory; None leaves it to the engine.
        retries: times that a run is started again when its process, job or node was lost. A run that failed of its own
            is not: it would fail again.
        on_interrupt: on Ctrl-C, jobs that were handed over are left to go on, or cancelled.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    cores: int = Field(default=1, ge=1, le=1024)
    gpus: int = Field(default=0, ge=0, le=64)
    memory_gb: float | None = Field(default=None, gt=0)
    retries: int = Field(default=3, ge=0, le=100)
    on_interrupt: Literal["leave", "cancel"] = "leave"


class LocalResources(pydantic.BaseModel):
    """What one run gets of this machine; runs for which there is no room wait.

    Attributes:
        cores: CPU cores, and threads of the run; None: those of the machine, divided by the runs at a time.
        gpus: GPUs of its own; None: they are dealt out in turn, and runs may share one.
        memory_gb: main memory set aside for it; it is counted, and nothing holds the run to it.
        retries: times that a run is started again when its process was killed; it goes on from its checkpoint.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    cores: int | None = Field(default=None, ge=1)
    gpus: int | None = Field(default=None, ge=0)
    memory_gb: float | None = Field(default=None, gt=0)
    retries: int = Field(default=0, ge=0, le=100)


@dataclass(frozen=True)
class Machine:
    """What this machine has for all runs together.

    Attributes:
        cores: CPU cores that this process may use.
        gpus: GPUs that may be dealt out.
        memory_gb: main memory, or the smallest limit of the control groups that this process is in.
    """

    cores: int
    gpus: int
    memory_gb: float

    @classmethod
    def detect(cls, gpus: int) -> Machine:
        """Return what this machine has, with so many GPUs."""
        from fractrain.engine.environment import cores  # imports torch

        return cls(cores(), gpus, min(_physical_gb(), _cgroup_limit_gb()))

    def slots(self, want: LocalResources) -> int | None:
        """Runs that fit at the same time; None: as many as you like.

        Raises:
            MachineError: not even one does.
        """
        fits = []
        for key, there in (("cores", self.cores), ("gpus", self.gpus), ("memory_gb", self.memory_gb)):
            if asked := getattr(want, key):
                if asked > there:
                    raise MachineError(
                        f"--executor-set {key}={asked:g}: more than this machine has for runs ({there:.4g}): ask for "
                        "less, or use --executor ray or slurm"
                    )
                fits.append(int(there // asked))
        return min(fits, default=None)


def parse_resources(kind: type[R], texts: Sequence[str]) -> R:
    """Read ``KEY=VALUE`` texts of the command line.

    Raises:
        ConfigError: an unknown key, or a value out of range.
    """
    values: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--executor-set {text}: write KEY=VALUE; keys are {', '.join(kind.model_fields)}")
        values[key] = value
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value, reason = values.get(name, ""), first["msg"].lower()
        raise ConfigError(
            f"--executor-set {name}={value}: {reason}; keys are {', '.join(kind.model_fields)}"
        ) from error


def _physical_gb() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    except (AttributeError, OSError, ValueError):  # this system does not say
        return math.inf


def _cgroup_limit_gb(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """The smallest memory limit of this process's control groups (version 2), infinite where there is none."""
    limits = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        folder = cgroups / own.read_text().rpartition("::/")[2].strip()
        for group in (folder, *folder.parents):
            if not group.is_relative_to(cgroups):
                break
            with contextlib.suppress(OSError, ValueError):  # "max"; the root has none unless it is a container's
                limits.append(int((group / "memory.max").read_text()) / GB)
    return min(limits)

"""Moments in the life of a run at which something goes wrong: in a fork, the run says where it is.

The run is the command ``fractrain run`` as it is; what is added in the fork only tells and counts.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from trial import HANG_S, Child, Ended

PHASES: Final = ("start", "step", "checkpoint", "evaluation", "finish")
FILES, SYNCS = "file", "torn"
_START, _STEP, _CHECKPOINT, _EVALUATION, _FINISH = range(5)
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When.

    Attributes:
        kind: one of :data:`PHASES`; ``file``: before a change to a file or folder of the store; ``torn``: where a file
            is brought to the disk, of which only a part has come there.
        nth: how many of that kind come first, from 1.
        share: how far into the phase; of a torn file, how much of it is there.
    """

    kind: str
    nth: int
    share: float


@dataclass
class Watched:
    """What the fork tells, in memory that both processes see: its phase, and per kind how many and how long."""

    values: Any = field(default_factory=lambda: memoryview(mmap.mmap(-1, 4096)).cast("d"))

    @property
    def phase(self) -> str:
        """Where it is."""
        return PHASES[int(self.values[0])]

    def enter(self, phase: int) -> None:
        """A phase begins."""
        self.values[0] = phase

    def number(self, kind: str) -> int:
        """How many phases or operations of a kind there were."""
        return int(self.values[self._place(kind)])

    def count(self, kind: str) -> int:
        """One more."""
        self.values[self._place(kind)] += 1
        return self.number(kind)

    def seconds(self, kind: str) -> float:
        """How long all phases of a kind took."""
        return float(self.values[self._place(kind) + 10])

    def took(self, kind: str, seconds: float) -> None:
        """A phase of a kind took so long."""
        self.values[self._place(kind) + 10] += seconds

    @staticmethod
    def _place(kind: str) -> int:
        return 1 + (*PHASES, FILES, SYNCS).index(kind)


@dataclass(frozen=True)
class Pace:
    """Of a run that nothing disturbs: how many of each kind of moment it has, and seconds of one."""

    number: dict[str, int]
    seconds: dict[str, float]

    @classmethod
    def of(cls, watched: Watched) -> Pace:
        """Read it."""
        number = {kind: watched.number(kind) for kind in (*PHASES, FILES, SYNCS)}
        return cls(number, {kind: watched.seconds(kind) / max(1, number[kind]) for kind in PHASES})

    def moment(self, rng: random.Random, kind: str) -> Moment:
        """Draw one."""
        return Moment(kind, rng.randint(1, max(1, self.number[kind])), rng.random())


def attempt(
    args: Sequence[str],
    checkpoint_seconds: float,
    moment: Moment | None = None,
    pace: Pace | None = None,
    act: Callable[[Child], None] = lambda child: os.kill(child.pid, signal.SIGKILL),
    waits: bool = False,
) -> tuple[Ended, Watched]:
    """Run the command in a fork, and do something to it at a moment.

    Args:
        args: of the command.
        checkpoint_seconds: of the run.
        moment: when; None: never.
        pace: how long the phases take.
        act: what is done then (a moment in files comes to its end by itself).
        waits: the run stands still meanwhile, at the beginning of the phase.
    """
    watched = Watched()
    told, tell = os.pipe()
    answer, answered = os.pipe()

    def before() -> None:
        os.close(told)
        os.close(answered)
        _watch(watched, args[args.index("--results") + 1], checkpoint_seconds, moment, tell, answer if waits else None)

    child = Child(args, before)
    os.close(tell)
    os.close(answer)
    end = time.monotonic() + HANG_S
    if moment is not None and moment.kind in PHASES and (moment.kind == "start" or _heard(told, HANG_S)):
        time.sleep(0 if waits else moment.share * (pace.seconds[moment.kind] if pace else 0))
        if not child.ended():
            act(child)
        os.close(answered)  # the run goes on
        answered = -1
    while not child.ended() and time.monotonic() < end:
        time.sleep(0.002)
    for descriptor in (told, answered):
        if descriptor >= 0:
            os.close(descriptor)
    return (child.result() if child.ended() else child.kill(hung=True)), watched


def _heard(descriptor: int, limit_s: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], limit_s)
    return bool(ready) and os.read(descriptor, 1) == b"!"


def _watch(
    watched: Watched, store: str, checkpoint_seconds: float, moment: Moment | None, tell: int, answer: int | None
) -> None:
    """In the fork: tell of every phase, count what is done to files, and be killed in the middle of one."""
    from fractrain.engine import checkpoint, loop, site
    from fractrain.engine import store as store_module

    site.Site = partial(site.Site, checkpoint_seconds=checkpoint_seconds)  # type: ignore[misc,assignment]
    began = time.monotonic()

    def here(kind: str) -> bool:
        return watched.count(kind) == (moment.nth if moment is not None and moment.kind == kind else -1)

    def phase(owner: Any, name: str, number: int) -> None:
        real = getattr(owner, name)

        def told(*args: Any, **options: Any) -> Any:
            before, started = int(watched.values[0]), time.monotonic()
            if before == _START:
                watched.count("start")
                watched.took("start", started - began)
            watched.enter(number)
            if here(PHASES[number]):
                os.write(tell, b"!")
                if answer is not None:
                    os.read(answer, 1)
            try:
                return real(*args, **options)
            finally:
                watched.took(PHASES[number], time.monotonic() - started)
                watched.enter(before or _STEP)

        setattr(owner, name, told)

    phase(loop.TrainingLoop, "advance", _STEP)
    phase(loop, "evaluate", _EVALUATION)
    phase(checkpoint, "save", _CHECKPOINT)
    phase(store_module.RunWriter, "finish", _FINISH)
    _watch_files(here, store, moment.share if moment is not None else 0.0)


def _watch_files(here: Callable[[str], bool], store: str, share: float) -> None:
    def audited(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            return
        path = args[0]
        writes = event != "open" or bool((args[2] or 0) & _WRITES)
        if isinstance(path, str | os.PathLike) and writes and os.fspath(path).startswith(store) and here(FILES):
            os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync

    def torn(descriptor: int) -> None:
        if here(SYNCS):
            about = os.fstat(descriptor)
            if stat.S_ISREG(about.st_mode):
                os.ftruncate(descriptor, int(share * about.st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    sys.addaudithook(audited)
    os.fsync = torn

"""Disk trial: disks that fill up, run out of inodes, become read-only or vanish while a run writes to them.

    sudo python benchmarks/faults/disks.py [--cases 60] [--seed 0]

A case is one run whose store is a small disk of its own in memory (tmpfs). At a random moment the run stands still and
something happens to the disk; then it goes on. It must come to its end, or end with exit code 1 or 2 and one line that
says what is wrong. Then the disk is as it should be, the same command is given again, and weights, ledger and metrics
must be those of a run that nothing disturbed. Mounting needs the rights of root; without them only stores that are
deleted are tried, and the record says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trial
from kills import Kills, difference
from moments import PHASES, attempt
from trial import FaultTrial, Found, run_args

METHODS: Final = ("fp32", "static8", "fractrain")
FREE_BYTES: Final = (0, 1, 3000, 100_000, 500_000)  # that a full disk has left


class Disks(Kills):
    """The trial."""

    def setup(self, folder: Path) -> None:
        """A few methods will do."""
        self.methods, self._folder = METHODS, folder

    def case(self, rng: random.Random, number: int, folder: Path) -> Found:
        """Spoil the disk of one run, mend it, and let the run end."""
        from fractrain.engine.store import RunStore

        method = METHODS[number % len(METHODS)]
        kind = rng.choice(list(KINDS) if mounts() else ["deleted"])
        moment = self.straight(method).pace.moment(rng, rng.choice(PHASES[1:]))
        with disk(folder) as place:
            store = place / "store"
            spoil, mend = KINDS[kind]
            args = run_args(method, store)
            if kind == "read-only":  # no disk becomes so while a file is open
                attempt(args, 0.0, moment, None, waits=True)
                spoil(place, rng)
                ended, _ = attempt(args, 0.0)
            else:
                ended, _ = attempt(args, 0.0, moment, None, lambda child: spoil(place, rng), waits=True)
            fault = ended.fault(CODES[kind])
            if not fault and ended.code and len(trial.error_lines(ended.err)) != 1:
                fault = f"{len(trial.error_lines(ended.err))} error lines: {ended.err[-300:]}"
            mend(place)
            again, _ = attempt(args, 60.0)
            fault = fault or again.fault((0,)) or difference(self.straight(method), again.out, RunStore(store))
        return {"kind": kind, "fault": f"{method}, {kind} in {moment.kind} {moment.nth}: {fault}" if fault else "",
                "outcome": "faulty" if fault else "came to its end" if ended.code == 0 else f"exit code {ended.code}, "
                "one line, and the same bits after it"}  # fmt: skip


@functools.cache
def mounts() -> bool:
    """Whether this process may mount."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small disk of its own, or a folder where nothing can be mounted."""
    place = folder / "disk"
    place.mkdir()
    mounted = mounts()
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=400", "none", str(place)], check=True)
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def _fill(place: Path, rng: random.Random) -> None:
    """Leave a few bytes."""
    about = os.statvfs(place)
    with (place / "ballast").open("wb") as file:
        file.write(bytes(max(0, about.f_bavail * about.f_frsize - rng.choice(FREE_BYTES))))


def _use_up_inodes(place: Path, rng: random.Random) -> None:
    (place / "ballast").mkdir()
    for number in range(max(0, os.statvfs(place).f_favail - rng.choice((0, 0, 1)))):
        (place / "ballast" / str(number)).touch()


def _clear(place: Path) -> None:
    ballast = place / "ballast"
    if ballast.is_dir():
        shutil.rmtree(ballast)
    ballast.unlink(missing_ok=True)


def _remount(option: str) -> Callable[..., None]:
    def remount(place: Path, rng: random.Random | None = None) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True, capture_output=True)

    return remount


def _delete(place: Path, rng: random.Random) -> None:
    shutil.rmtree(place / "store", ignore_errors=True)


def _unplug(place: Path, rng: random.Random) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


KINDS: Final[dict[str, tuple[Callable[[Path, random.Random], None], Callable[[Path], None]]]] = {
    "full": (_fill, _clear), "no inodes": (_use_up_inodes, _clear), "read-only": (_remount("ro"), _remount("rw")),
    "deleted": (_delete, _clear), "unplugged": (_unplug, _clear),
}  # fmt: skip
CODES: Final = {  # a disk that fails in mid-run is a run that failed; one that cannot be written to is bad input
    "full": (0, 1), "no inodes": (0, 1), "read-only": (2,), "deleted": (0, 1), "unplugged": (0, 1),
}  # fmt: skip
DISKS = Disks()
TRIAL = FaultTrial(
    name="disks", title="Disks in memory (tmpfs) that fail while a run writes: what happened to them, and how the run "
    "ended.", cases=60, unit="runs", case=DISKS.case, setup=DISKS.setup,
)  # fmt: skip

if __name__ == "__main__":
    trial.main(TRIAL, __doc__ or "")

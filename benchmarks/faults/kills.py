"""Kill trial: runs of every method are killed with SIGKILL at random moments and taken up again.

    python benchmarks/faults/kills.py [--cases 1000] [--seed 0]

A case is one run. It is killed several times: while it starts, in a step, in an evaluation, while a checkpoint is
written, while it is finished, before one of its changes to a file, with a file of which only a part has come to the
disk, and, some, as an interpreter of their own while it imports. After each kill its record must be readable. Then the
same command is given once more: it must end, and weights, ledger, metrics and accuracies must be those of a run of the
same configuration that nothing disturbed. ``--cases`` counts kills.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trial
from moments import FILES, PHASES, SYNCS, Moment, Pace, attempt
from trial import ROOT, FaultTrial, Found, run_args, warm

PROCESS: Final = "import"
KINDS: Final = {**dict.fromkeys(PHASES, 3), "checkpoint": 4, FILES: 4, SYNCS: 3, PROCESS: 0.5}
SAME: Final = ("weights_sha256", "ledger_sha256", "data_digest", "iterations", "cost", "train_loss",
               "test_accuracy_last", "test_accuracy_best", "val_accuracy_last")  # fmt: skip
PROCESS_S: Final = 3.0  # of an interpreter, before it trains


@dataclass(frozen=True)
class Straight:
    """A run that nothing disturbed: its summary, the digests of its epochs, and its pace."""

    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    pace: Pace


class Kills:
    """The trial."""

    def __init__(self) -> None:
        self.methods: tuple[str, ...] = ()
        self._folder = Path()
        self._straight: dict[str, Straight] = {}

    def setup(self, folder: Path) -> None:
        """Look up the methods."""
        from fractrain.methods.registry import names

        self.methods, self._folder = tuple(names()), folder

    def straight(self, method: str) -> Straight:
        """The undisturbed run of a method."""
        if method not in self._straight:
            warm((method,), self._folder / "warm")
            store = self._folder / "straight"
            ended, watched = attempt(run_args(method, store), 0.0)
            assert ended.code == 0, ended.err
            summary = json.loads(ended.out)
            self._straight[method] = Straight(summary, _lines(store, summary["run_id"]), Pace.of(watched))
        return self._straight[method]

    def case(self, rng: random.Random, number: int, folder: Path) -> Found:
        """Kill one run several times, then let it end."""
        from fractrain.engine.store import RunStore

        method = self.methods[number % len(self.methods)]
        straight, args = self.straight(method), run_args(method, folder)
        run_id, store = straight.summary["run_id"], RunStore(folder)
        killed: Counter[str] = Counter()
        for _ in range(rng.randint(3, 7)):
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            every = rng.choice((0.0, 0.0, 0.2, 60.0))
            where = _kill_import(args, rng) if kind == PROCESS else _kill(args, every, straight.pace, kind, rng)
            if where.startswith("fault: "):
                return {"fault": f"{method}, {kind}: {where}", "kind": dict(killed), "weight": sum(killed.values())}
            if where:
                killed[where] += 1
            record = store.get(run_id)
            if record is not None and record.status == "damaged":
                return {"fault": f"{method}, after {kind}: {record.message}", "kind": dict(killed),
                        "weight": sum(killed.values())}  # fmt: skip
        ended, _ = attempt(args, 60.0)
        fault = ended.fault((0,)) or difference(straight, ended.out, store)
        return {"fault": f"{method}: {fault}" if fault else "", "kind": dict(killed), "weight": sum(killed.values()),
                "outcome": "another result" if fault else f"{method}: same bits"}  # fmt: skip


def _kill(args: list[str], every: float, pace: Pace, kind: str, rng: random.Random) -> str:
    """Kill a run; return in which phase, or nothing where it came to its end before, or what is wrong."""
    moment = Moment("start", 1, rng.random()) if kind == "start" else pace.moment(rng, kind)
    ended, watched = attempt(args, every, moment, pace)
    if ended.code == -9 and not ended.hung:
        return {FILES: "before a change to a file", SYNCS: "with a torn file"}.get(kind, watched.phase)
    fault = ended.fault((0,))
    return f"fault: {fault}" if fault else ""


def _kill_import(args: list[str], rng: random.Random) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "fractrain", *args], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(rng.uniform(0, PROCESS_S))
    process.kill()
    return PROCESS if process.wait() == -9 else ""


def _lines(store: Path, run_id: str) -> list[dict[str, Any]]:
    """The metrics of each epoch but its times."""
    from fractrain.engine.store import RunStore
    from fractrain.testing.subject import TIMES

    record = RunStore(store).get(run_id)
    assert record is not None
    return [{key: value for key, value in line.items() if key not in TIMES} for line in record.metrics()]


def difference(straight: Straight, out: str, store: Any) -> str:
    """What a run that was killed ends with that the undisturbed one does not."""
    summary = json.loads(out)
    for key in SAME:
        if summary.get(key) != straight.summary.get(key):
            return f"{key} differs"
    record = store.get(summary["run_id"])
    if not record.verified:
        return f"the record is not verified: {record.message}"
    return "" if _lines(store.root, summary["run_id"]) == straight.lines else "metrics.jsonl differs"


KILLS = Kills()
TRIAL = FaultTrial(
    name="kills", title="Runs of every method, killed with SIGKILL at random moments and taken up again: where they "
    "were when they were killed, and how they ended.", cases=1000, unit="kills", case=KILLS.case, setup=KILLS.setup,
)  # fmt: skip

if __name__ == "__main__":
    trial.main(TRIAL, __doc__ or "")

"""What ``fractrain cost`` takes on a store of many runs, and how much of it a hardware model is asked.

    python benchmarks/speed/cost.py [--runs 100] [--epochs 41] [--out FILE]

Writes a store to a temporary folder: finished runs of ResNet-38 on CIFAR-10 with different seeds, half of ``sbm`` and
half of ``fractrain``. Their ledgers are the committed records of one epoch each, with that epoch repeated and its
counts drawn anew for every epoch and seed. Then runs the command, in a process of its own as people do, once for
the default models and once split by layer as JSON. Prints seconds (wall clock and of the processor), or writes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fractrain.cost.ledger import Ledger
from fractrain.engine.config import RunConfig
from fractrain.engine.store import RunRecord, RunStore
from fractrain.util.files import atomic_write

RECORDS = Path(__file__).parents[2] / "results" / "evidence" / "cifar10-one-epoch"
CALLS = {"default models": [], "by layer, JSON": ["--by", "layer", "--json"]}


def longer(record: RunRecord, seed: int, epochs: int) -> Ledger:
    """Return the record's ledger with so many epochs, no two of them alike."""
    state, rng = record.ledger().state_dict(), np.random.default_rng(seed)
    units = []
    for epoch in range(epochs):
        for phase, _, work, count in state["units"]:
            units.append([phase, epoch, work, int(count) if count < 2 else int(rng.integers(1, count + 1))])
    samples = [[phase, epoch, count] for epoch in range(epochs) for phase, _, count in state["samples"]]
    made = Ledger()
    made.load_state_dict({**state, "units": units, "samples": samples})
    return made


def write_store(root: Path, runs: int, epochs: int) -> int:
    """Write the store; return the bytes of its ledgers."""
    store = RunStore(root)
    records = list(RunStore(RECORDS).records())
    for number in range(runs):
        record, seed = records[number % len(records)], number // len(records)
        config = RunConfig(**{**record.config.model_dump(), "seed": seed})
        lines = [{**record.metrics()[0], "epoch": epoch} for epoch in range(epochs)]
        ledger = longer(record, seed, epochs)
        own = {"best_test_epoch": epochs - 1 - seed % 3, "epochs": epochs, "run_id": config.run_id}
        summary = {**(record.summary or {}), **own, "ledger_sha256": ledger.digest()}
        with store.open(config) as writer:
            writer.start(dict(record.environment))
            writer.finish(summary, ledger.state_dict(), lines)
    return sum(file.stat().st_size for file in root.glob("*/ledger.json"))


def timed(root: Path, options: list[str]) -> dict[str, float]:
    """Seconds of one call, in a fresh process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "fractrain", "cost", "all", "--results", str(root), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def main() -> None:
    """Write the store, time the calls, print or write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=41)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_store(Path(folder), args.runs, args.epochs)
        found = {
            "runs": args.runs,
            "epochs": args.epochs,
            "ledgers_mb": round(size / 1e6, 1),
            "calls": {name: timed(Path(folder), options) for name, options in CALLS.items()},
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        }
    text = json.dumps(found, indent=2) + "\n"
    if args.out:
        atomic_write(args.out, text.encode())
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

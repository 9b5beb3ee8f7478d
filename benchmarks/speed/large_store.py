"""Seconds that a store of 10,000 runs takes to be listed, put into a table and shown as a page, on this machine.

    python benchmarks/speed/large_store.py [--runs 10000] [--store DIR]

The runs are made up (tests/support/synthetic_runs.py), written to DIR (a temporary folder without it) and kept there
if DIR was given; a DIR that is there already is used as it is. Every command is a process of its own: `first` has to
make the index, or the configurations that tables ask for, which the others find. Both the clock and the processor time
are given, because other work on the machine stretches the first; `import torch` alone stands beside them. Writes JSON
to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHES = (".index.json", ".configs.json")


def timed(*command: str) -> dict[str, float]:
    """Run a command of Python; return its seconds by the clock and of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "processor_s": round(spent, 2)}


def fill(store: Path, runs: int) -> None:
    """Write made-up runs."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from synthetic_runs import large_store

    for _ in large_store(store, runs):
        pass


def measure(store: Path) -> dict[str, dict[str, float]]:
    """Time every command on a store."""
    for name in CACHES:
        (store / name).unlink(missing_ok=True)
    results = ["--results", str(store)]
    page = store.parent / f"{store.name}-report"
    return {
        "import torch": timed("-c", "import torch"),
        "list runs, first": timed("-m", "fractrain", "list", "runs", *results),
        "list runs": timed("-m", "fractrain", "list", "runs", *results),
        "table table2, first": timed("-m", "fractrain", "table", "table2", *results),
        "table table2": timed("-m", "fractrain", "table", "table2", *results),
        "report, first": timed("-m", "fractrain", "report", *results, "--out", str(page)),
        "report": timed("-m", "fractrain", "report", *results, "--out", str(page)),
        "page": {"megabytes": round((page / "index.html").stat().st_size / 1e6, 2)},
    }


def main() -> None:
    """Make the store where it is not there, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = args.store or Path(scratch) / "runs"
        if not store.is_dir():
            fill(store, args.runs)
        count = sum(entry.is_dir() for entry in store.iterdir())
        load = os.getloadavg()[0]
        found = {"benchmark": "large_store", "runs": count, "load_before": round(load, 1), "results": measure(store)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

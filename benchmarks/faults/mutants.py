"""Mutation testing: faults are put into the code, one at a time, and the tests of that code must find each.

    python benchmarks/faults/mutants.py --label now [--tests CHECKOUT] [--only TEXT] [--out FILE]

The faults are those of ``mutants.toml``: a file, a text that is in it once, what is put in its place, and the tests
that are run. ``--tests`` takes the tests of another checkout, so that two suites are compared on the same faults; each
label is a column of the record. A fault that is recorded under a label is not tried again.

The work is done in a copy of the repository, so processes that tests start meet the fault, too. Each fault is tried in
a fork of a process that has imported what is slow to import.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
FAULTS: Final = Path(__file__).with_name("mutants.toml")
RECORD: Final = ROOT / "results/bench/mutants.json"
SLOW_IMPORTS: Final = ("torch", "torch._dynamo", "numba", "sklearn.datasets", "scipy.stats", "pandas", "pydantic")
PARTS: Final = ("fractrain", "baselines", "benchmarks", "docs", "pyproject.toml", "README.md")
FOUND, MISSED = 1, 0  # pytest's exit codes; others are mistakes in the list


class FirstFailure:
    """Notes the first test that fails; a plugin of pytest."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest after a file has been read."""
        if report.failed and not self.name:
            self.name = report.nodeid


def copy_of(folder: Path, tests: Path) -> None:
    """Put the code of this checkout and the tests of another into an empty folder, compiled files included."""
    for part in PARTS:
        source = ROOT / part
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy2(source, folder / part)
    shutil.copytree(tests / "tests", folder / "tests")


def changed(folder: Path, fault: dict[str, Any]) -> None:
    """Put a fault into the copy.

    Raises:
        SystemExit: the text is not in the file exactly once.
    """
    path = folder / fault["file"]
    text = path.read_text()
    if text.count(fault["old"]) != 1:
        raise SystemExit(f"{fault['file']}: {text.count(fault['old'])} times {fault['old']!r}; mend {FAULTS.name}")
    path.write_text(text.replace(fault["old"], fault["new"]))


def tried(folder: Path, tests: list[str]) -> dict[str, Any]:
    """Run tests in a fork until one fails; the result, with the processor seconds it took."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path[0] = str(folder)
        os.environ["PYTHONPATH"] = str(folder)
        first = FirstFailure()
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[first])
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = round(sum(u.ru_utime + u.ru_stime for u in used), 1)
        os.write(writer, json.dumps({"code": int(code), "by": first.name, "seconds": seconds}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"code": FOUND, "by": "the process ended", "seconds": None}


def main() -> None:
    """Try the faults, and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="column of the record")
    parser.add_argument("--tests", type=Path, default=ROOT, help="checkout whose tests are run")
    parser.add_argument("--only", default="", help="faults whose file or tests hold this text")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    faults = tomllib.loads(FAULTS.read_text())["faults"]
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # read by torch when it is loaded
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of(folder, options.tests.resolve())
        for fault in faults:
            key = f"{fault['file']}: {fault['old']} -> {fault['new']}"
            known = record.setdefault(key, {"tests": fault["tests"]})
            if options.label in known or options.only not in " ".join((fault["file"], *fault["tests"])):
                continue
            changed(folder, fault)
            known[options.label] = tried(folder, fault["tests"])
            shutil.copy2(ROOT / fault["file"], folder / fault["file"])
            print(known[options.label], key, flush=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    done = [one[options.label] for one in record.values() if options.label in one]
    print(f"{options.label}: {sum(d['code'] == FOUND for d in done)} of {len(done)} faults found, {len(faults)} listed")


if __name__ == "__main__":
    main()

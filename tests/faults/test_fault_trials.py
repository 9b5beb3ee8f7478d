"""The fault trials of ``benchmarks/faults/``: a slice of each, and that what they look for would be found."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/faults"
HANG_GUARD_S = 600

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="trials fork")


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that all trials share; what it sets is taken back."""
    kept = dict(os.environ)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    yield importlib.import_module("trial")
    for name in ("trial", "moments", "kills", "mutations"):
        sys.modules.pop(name, None)
    os.environ.clear()
    os.environ.update(kept)


def slice_of(name: str, cases: int, folder: Path) -> tuple[dict, subprocess.CompletedProcess[str]]:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--cases", str(cases), "--seed", "1"]
    done = subprocess.run(
        [*command, "--out", str(folder / "out"), "--work", str(folder / "work")],
        capture_output=True, text=True, timeout=HANG_GUARD_S,
    )  # fmt: skip
    return json.loads((folder / "out" / f"{name}.json").read_text()), done


@pytest.mark.parametrize(("name", "cases"), [("kills", 2), ("mutations", 4), ("disks", 2)])
def test_a_slice_of_a_trial_finds_no_fault(name: str, cases: int, tmp_path: Path) -> None:
    sound(name, cases, tmp_path)


def test_a_trial_is_not_done_twice(tmp_path: Path) -> None:
    record = sound("inputs", 20, tmp_path)
    journal = tmp_path / "work" / "inputs-1.jsonl"
    before = journal.read_text()
    again, done = slice_of("inputs", 20, tmp_path)
    assert done.returncode == 0
    assert journal.read_text() == before
    assert {k: v for k, v in again.items() if k != "seconds_of_last_start"} == {
        k: v for k, v in record.items() if k != "seconds_of_last_start"
    }


def sound(name: str, cases: int, tmp_path: Path) -> dict:
    """Run a slice; its record, after checking that it says of all cases that they are without fault."""
    record, done = slice_of(name, cases, tmp_path)
    assert record["faults"] == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert record["count"] >= cases
    assert sum(record["by"]["kind"].values()) == record["count"]
    page = (tmp_path / "out/README.md").read_text()
    assert f"**{record['count']} {record['unit']}, 0 faults**" in page
    return record


@pytest.mark.parametrize(
    ("code", "out", "err", "fault"),
    [
        (0, "fine", "", ""),
        (2, "", "fractrain: error: wrong\n", ""),
        (2, "", "", "0 error lines"),
        (2, "", "fractrain: error: a\nfractrain: error: b\n", "2 error lines"),
        (1, "", "", "no word"),
        (1, "", "Traceback (most recent call last):\n  x\nKeyError: 3\n", "traceback"),
        (-11, "", "", "ends with -11"),
        (70, "", "", "ends with 70"),
    ],
)
def test_how_a_command_ends_is_judged(trial: ModuleType, code: int, out: str, err: str, fault: str) -> None:
    found = trial.Ended(code, out, err).fault()
    assert fault in found
    assert bool(found) == bool(fault)


def test_a_hang_is_a_fault(trial: ModuleType) -> None:
    assert trial.Ended(130, "", "", hung=True).fault().startswith("hangs")


def test_a_case_that_ends_its_process_is_a_fault_and_the_next_is_done(trial: ModuleType, tmp_path: Path) -> None:
    def case(rng: object, number: int, folder: Path) -> dict:
        if number == 1:
            os._exit(9)
        return {"kind": "x"}

    own = trial.FaultTrial("own", "", 3, "cases", case, lambda folder: None, together=3)
    found = list(trial._in_fork(own, 0, [0, 1, 2], tmp_path))
    assert [(one["case"], one["fault"]) for one in found] == [(0, ""), (1, "ends the process (9)")]


def test_another_result_is_a_fault(trial: ModuleType, tmp_path: Path) -> None:
    kills = importlib.import_module("kills")
    before = {"run_id": "a", **dict.fromkeys(kills.SAME, 1)}
    straight = kills.Straight(before, [], None)
    assert kills.difference(straight, json.dumps(before | {"ledger_sha256": 2}), None) == "ledger_sha256 differs"


def test_numbers_that_were_not_there_are_seen(trial: ModuleType) -> None:
    mutations = importlib.import_module("mutations")
    assert mutations.numbers("10.28 of a1.5 and 3.20.1") == {"10.28"}


def test_a_journal_whose_last_line_is_cut_off_goes_on(trial: ModuleType, tmp_path: Path) -> None:
    journal = tmp_path / "x.jsonl"
    journal.write_text('{"case": 0, "fault": ""}\n{"case": 1, "fault": "bad"}\n{"case": 2, "fa')
    assert sorted(trial._read_journal(journal, again=False)) == [0, 1]
    assert sorted(trial._read_journal(journal, again=True)) == [0]
    assert journal.read_text() == '{"case": 0, "fault": ""}\n'

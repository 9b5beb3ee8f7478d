"""SIGTERM and SIGHUP outside training, and a terminal that is closed while a run trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANG_GUARD_S = 600
RUN = ("run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "fractrain", *args]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "FRACTRAIN_RESULTS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_planning_ends_with_a_word(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        command("plan", "table2"), env=environment(tmp_path), cwd=tmp_path, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANG_GUARD_S)
    assert process.returncode == 130, first + errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("fractrain: interrupted")


def test_a_closed_terminal_stops_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*RUN), env=environment(tmp_path), cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    end = time.monotonic() + HANG_GUARD_S
    os.set_blocking(ours, False)
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):  # it trains
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # else the terminal is full and it waits
        assert time.monotonic() < end, "a hang"
        time.sleep(0.1)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=HANG_GUARD_S) == 130
    (folder,) = (tmp_path / "runs").glob("fp32-*")
    assert json.loads((folder / "status.json").read_bytes())["status"] == "interrupted"
    assert (folder / "checkpoint.pt").exists()

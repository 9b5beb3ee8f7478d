"""Processes that mean another number of them, do not come, do not answer, or lose their launcher."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_pairs import LOOPBACK

from fractrain.distributed import collectives
from fractrain.distributed.join import join
from fractrain.util.errors import ConfigError

ROOT = Path(__file__).parents[2]
HANG_GUARD_S = 600
JOIN = """
import sys, time
from fractrain.distributed.ranks import connect
from fractrain.util.errors import FractrainError
print("ready", flush=True)
sys.stdin.readline()
try:
    with connect("cpu") as ranks:
        if sys.argv[1:] == ["slow"] and ranks.rank == 1:
            time.sleep(60)
        ranks.all_gather(1)
        print("together")
except FractrainError as error:
    print(error)
    sys.stdout.flush()
    import os
    os._exit(error.exit_code)
"""


def start(places: list[tuple[int, int]], *args: str, **variables: str) -> list[subprocess.Popen]:
    """Start one process per (rank, world)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**LOOPBACK, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), **variables}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
        )
        for rank, world in places
    ]  # fmt: skip
    for process in processes:  # torch is imported: they begin together
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    found = []
    for process in processes:
        try:
            out, errors = process.communicate(timeout=HANG_GUARD_S)
        finally:
            process.kill()
        assert "Traceback" not in errors, errors
        found.append((process.returncode, out.strip()))
    return found


@pytest.mark.parametrize("places", [[(0, 2), (1, 3)], [(0, 3), (1, 3), (1, 2)]])
def test_ranks_that_disagree_about_their_number_say_so_at_once(places):
    said = ended(start(places, FRACTRAIN_RANK_TIMEOUT="60"))
    assert {code for code, _ in said} <= {1, 2}  # 1: whoever holds the store was gone first
    assert all(len(out.splitlines()) == 1 for _, out in said)
    assert any("disagree about their number" in out for _, out in said)


def test_two_processes_of_one_rank_are_refused():
    said = ended(start([(0, 3), (1, 3), (1, 3)]))
    assert [code for code, _ in said] == [2, 2, 2]
    assert {out for _, out in said} == {"two processes of this run are rank 1: give each a RANK of its own"}


def test_a_process_that_does_not_come_is_not_waited_for_for_ever():
    ((code, out),) = ended(start([(0, 2)], FRACTRAIN_RANK_TIMEOUT="2"))
    assert code == 1
    assert out.startswith("1 of 2 processes of this run came within 2 s")
    ((code, out),) = ended(start([(1, 2)], FRACTRAIN_RANK_TIMEOUT="2"))  # nobody holds the store
    assert code == 1
    assert len(out.splitlines()) == 1


def test_a_process_that_does_not_answer_is_given_up():
    first, slow = start([(0, 2), (1, 2)], "slow", FRACTRAIN_RANK_TIMEOUT="5")
    ((code, out),) = ended([first])
    slow.kill()
    slow.communicate()
    assert code == 1
    assert "has not answered for 5 s: it has stopped or is too slow" in out


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_the_timeout_is_a_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv("FRACTRAIN_RANK_TIMEOUT", text)
    with pytest.raises(ConfigError, match=r"FRACTRAIN_RANK_TIMEOUT=.*: expected seconds"):
        join("gloo", 0, 2)


def test_a_long_wait_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(collectives, "PATIENCE_S", 0.2)
    monkeypatch.setattr(collectives, "waits", collectives.Waits())
    collectives.waits.watch(3)
    with collectives.naming_lost_peers():
        time.sleep(1.0)
    time.sleep(0.3)
    assert capsys.readouterr().err == "rank 3 has waited 0 s for the other processes\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ranks_end_with_their_launcher(tmp_path):
    """``kill -9`` of torchrun: both ranks stop with a checkpoint, and the lock is free."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fractrain",
        "run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu",
        "--results", str(tmp_path),
    ]  # fmt: skip
    environment = {**LOOPBACK, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("wb") as said:
        launcher = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    ranks: list[int] = []
    try:
        until(lambda: list(tmp_path.glob("*/metrics.jsonl")))
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        ranks = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        launcher.kill()
        launcher.wait()
        (status,) = tmp_path.glob("*/status.json")
        until(lambda: json.loads(status.read_bytes())["status"] == "interrupted")
        until(lambda: not [pid for pid in ranks if alive(pid)])
    finally:
        launcher.kill()
        for pid in filter(alive, ranks):
            os.kill(pid, signal.SIGKILL)
    assert (status.parent / "checkpoint.pt").exists()
    assert b"torchrun has ended" in (tmp_path / "said").read_bytes()


def until(happened) -> None:
    end = time.monotonic() + HANG_GUARD_S
    while not happened():
        assert time.monotonic() < end, "a hang"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.execute import forks
from fractrain.execute import local as executor_module
from fractrain.execute.forks import ForkServer, ForkServerError, can_fork
from fractrain.execute.local import LocalExecutor, run_here
from fractrain.execute.processes import Workers
from fractrain.util.progress import Progress

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers are not forked on this system")

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "support" / "forked_worker.py"))


@pytest.fixture
def server():
    server = ForkServer({"FRACTRAIN_TEST_ALL": "all"}, COMMAND)
    yield server
    server.close()


def say(process, *orders):
    process.stdin.write("".join(f"{order}\n" for order in orders))
    process.stdin.flush()


def end(process):
    for stream in (process.stdin, process.stdout):
        stream.close()


def test_exit_codes_and_signals_are_those_of_the_right_worker(server):
    with tempfile.TemporaryFile("w+") as errors:
        workers = [server.start({}, errors) for _ in range(4)]
        assert len({worker.pid for worker in workers}) == 4
        assert [worker.poll() for worker in workers] == [None] * 4
        say(workers[2], "exit 3")
        say(workers[0], "exit 0")
        say(workers[1], f"abort {int(signal.SIGKILL)}")
        assert [workers[i].wait() for i in (0, 1, 2)] == [0, -9, 3]
        assert workers[3].poll() is None
        workers[3].stdin.close()  # what a worker takes for the death of its parent
        assert workers[3].wait() == 5
        assert workers[3].poll() == workers[3].returncode == 5
        workers[3].send_signal(signal.SIGKILL)  # to nobody
        for worker in workers:
            end(worker)


def test_each_worker_has_variables_streams_and_a_session_of_its_own(server):
    with tempfile.TemporaryFile("w+") as one, tempfile.TemporaryFile("w+") as two:
        a, b = server.start({"FRACTRAIN_TEST_OWN": "a"}, one), server.start({}, two)
        for worker in (a, b):
            say(worker, "tell FRACTRAIN_TEST_OWN", "tell FRACTRAIN_TEST_ALL", "complain of nothing", "exit 0")
            worker.wait()
        assert a.stdout.read().splitlines() == ["a True", "all True"]
        assert b.stdout.read().splitlines() == ["None True", "all True"]
        one.seek(0)
        assert one.read() == "of nothing\n"
        end(a)
        end(b)


def test_a_worker_can_be_interrupted(server):
    with tempfile.TemporaryFile("w+") as errors:
        worker = server.start({}, errors)
        say(worker, "tell FRACTRAIN_TEST_ALL", "sleep 60")
        worker.stdout.readline()
        worker.send_signal(signal.SIGINT)
        assert worker.wait() == -signal.SIGINT  # as Python ends on Ctrl-C
        end(worker)


def test_a_server_that_died_is_said_so_and_replaced_by_plain_processes(tmp_path):
    server = ForkServer({}, (sys.executable, "-c", "raise SystemExit(1)"))
    with tempfile.TemporaryFile("w+") as errors, pytest.raises(ForkServerError):
        server.start({}, errors)
    workers = Workers(("false",), Site(tmp_path), server)
    outcome = workers.run(_config(0), {}, lambda step: None)
    assert outcome.message == "worker ended with exit code 1"  # of `false`
    server.close()


def test_a_server_that_gives_no_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(forks, "START_S", 0.1)
    monkeypatch.setattr(forks, "END_S", 0.1)
    server = ForkServer({}, (sys.executable, "-c", "import time; time.sleep(600)"))
    with tempfile.TemporaryFile("w+") as errors, pytest.raises(ForkServerError, match="no answer"):
        server.start({}, errors)
    server.close()
    assert server._process.returncode == -signal.SIGKILL


def test_exit_codes_are_told_to_every_thread_and_where_signals_of_children_are_not_heard():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # both are passed on to the server
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        server = ForkServer({}, COMMAND)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, before)
    with tempfile.TemporaryFile("w+") as errors, ThreadPoolExecutor(4) as threads:
        worker = server.start({}, errors)
        codes = [threads.submit(worker.wait) for _ in range(4)]
        say(worker, "exit 3")
        assert [code.result(timeout=300) for code in codes] == [3] * 4
        end(worker)
    server.close()


def test_workers_stop_when_server_and_executor_are_gone():
    server = ForkServer({}, COMMAND)
    with tempfile.TemporaryFile("w+") as errors:
        worker = server.start({}, errors)
        say(worker, "tell FRACTRAIN_TEST_ALL")
        worker.stdout.readline()
        os.kill(server._process.pid, signal.SIGKILL)
        server.close()
        worker.stdin.close()
        assert worker.stdout.read() == ""  # it has ended
        assert worker.wait() < 0  # and nobody knows how
        worker.stdout.close()


def test_runs_in_forked_workers_have_the_bits_of_runs_in_this_process(tmp_path, monkeypatch):
    started, threads = [], set()

    class Counted(ForkServer):
        def start(self, *args):
            process = super().start(*args)
            started.append(process.pid)
            threads.update(task.read_text() for task in Path(f"/proc/{self._process.pid}/task").glob("*/comm"))
            return process

    monkeypatch.setattr(executor_module, "ForkServer", Counted)
    configs = [_config(seed) for seed in (0, 1)]
    outcomes = LocalExecutor(jobs=2).run(configs, Site(tmp_path / "forked", device="cpu"))
    assert [outcome.status for outcome in outcomes] == ["done", "done"], outcomes
    assert len(started) == 2
    assert len(threads) == 1, "the server forks beside a thread that a library has named"
    assert run_here(configs[0], Site(tmp_path / "here", device="cpu"), Progress()).status == "done"
    digests = [_weights(tmp_path / folder / configs[0].run_id) for folder in ("forked", "here")]
    assert digests[0] == digests[1]
    assert _weights(tmp_path / "forked" / configs[1].run_id) != digests[0]


def _config(seed: int) -> RunConfig:
    recipe = {"iterations": 1, "milestones": [], "eval_every": 1, "batch_size": 8}
    return RunConfig.create(method="sbm", model="resnet38", dataset="digits", profile="smoke", seed=seed, recipe=recipe)


def _weights(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["weights_sha256"]

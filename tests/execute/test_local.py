from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_fakes import fake_config

from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute import local as executor_module
from fractrain.execute.jobs import Outcome
from fractrain.execute.local import LocalExecutor
from fractrain.execute.processes import Workers
from fractrain.execute.resources import LocalResources, Machine, _cgroup_limit_gb, parse_resources
from fractrain.util.errors import MachineError, NonFiniteError, RunError
from fractrain.util.signals import RunInterrupted

WORKER = (sys.executable, "-W", "error", str(Path(__file__).parents[1] / "support" / "fake_worker.py"))


class Notes:
    def __init__(self):
        self.lines, self.steps = [], []

    def start(self, label, total, done=0):
        self.total = total

    def update(self, done, loss=None, label=None):
        self.steps.append(done)

    def note(self, text):
        self.lines.append(text)

    def close(self):
        pass


def test_runs_in_processes_and_one_that_fails_does_not_stop_the_others(tmp_path):
    configs = [
        fake_config(seed=0),
        fake_config({"bits": 13}),
        fake_config({"bad_step": 2}),
        fake_config(seed=0),
    ]
    notes = Notes()
    site = Site(tmp_path, device="cpu")
    outcomes = LocalExecutor(jobs=2, worker=WORKER).run(configs, site, notes)
    assert [o.status for o in outcomes] == ["done", "failed", "diverged", "done"]
    assert outcomes[0] == outcomes[3]  # the same run, trained once
    assert "exit code 7: last words" in outcomes[1].message
    assert "step 2" in outcomes[2].message
    assert any("exit code 7" in line for line in notes.lines)
    assert notes.total == 48
    assert notes.steps[-1] == 48
    record = RunStore(tmp_path).get(configs[0].run_id)
    assert record.environment["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    again = LocalExecutor(jobs=1, worker=("false",)).run([configs[0]], site)
    assert again == [Outcome(configs[0].run_id, "done", cached=True)]


def test_a_stop_makes_every_worker_write_a_checkpoint(tmp_path):
    config = fake_config({"bits": 14}, iterations=400)
    later = fake_config({"bits": 14}, iterations=401)

    def stop_when_it_trains():
        path = tmp_path / config.run_id / "metrics.jsonl"
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_it_trains).start()
    with pytest.raises(RunInterrupted, match="0 of 2 runs done") as caught:
        LocalExecutor(jobs=1, worker=WORKER).run([config, later], Site(tmp_path, device="cpu"))
    assert caught.value.exit_code == 130
    record = RunStore(tmp_path).get(config.run_id)
    assert record.status == "interrupted"
    assert "checkpoint written" in record.message
    assert (record.path / "checkpoint.pt").exists()
    assert RunStore(tmp_path).get(later.run_id) is None


def test_a_single_run_stays_in_this_process(tmp_path, monkeypatch):
    from fractrain.engine import trainer

    config, seen = fake_config(), []

    def fake_run(self):
        seen.append(self.site.device)
        if len(seen) == 2:
            raise RunError("broken")
        if len(seen) == 3:
            raise NonFiniteError("nan", "conv", 3)

    monkeypatch.setattr(trainer.Trainer, "run", fake_run)
    local = LocalExecutor(jobs=4, worker=("false",))
    found = [local.run([config], Site(tmp_path, device="cpu"))[0] for _ in range(3)]
    assert [(o.status, o.message) for o in found] == [("done", ""), ("failed", "broken"), ("diverged", "nan")]


def test_gpus_are_dealt_out():
    local = LocalExecutor(jobs=4, gpus=("0", "2"))
    assert [local._variables(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "2", "0", "2"]
    assert "CUDA_VISIBLE_DEVICES" not in LocalExecutor()._variables(0, 1)
    assert executor_module.WORKER[-1] == "fractrain.execute.worker"


def test_a_run_may_have_gpus_of_its_own_or_none():
    local = LocalExecutor(gpus=("0", "2", "3", "5"), resources=LocalResources(gpus=2))
    assert [local._variables(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["0,2", "3,5"]
    none = LocalExecutor(gpus=("0",), resources=LocalResources(gpus=0))
    assert none._variables(0, 1)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ({}, None),
        ({"cores": 3}, 2),
        ({"cores": 3, "memory_gb": 9.5}, 1),
        ({"gpus": 1}, 2),
        ({"gpus": 0, "cores": 8}, 1),
    ],
)
def test_so_many_runs_fit_as_the_scarcest_resource_allows(asked, room):
    assert Machine(cores=8, gpus=2, memory_gb=16).slots(LocalResources(**asked)) == room


@pytest.mark.parametrize("asked", ["cores=9", "gpus=3", "memory_gb=16.5"])
def test_a_run_that_asks_for_more_than_there_is_is_refused_before_anything_starts(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(Machine, "detect", lambda gpus: Machine(cores=8, gpus=gpus, memory_gb=16))
    local = LocalExecutor(gpus=("0", "1"), resources=parse_resources(LocalResources, [asked]), worker=WORKER)
    with pytest.raises(MachineError, match=f"{asked}: more than this machine has"):
        local.run([fake_config()], Site(tmp_path / "runs", device="cpu"))
    assert not (tmp_path / "runs").exists()


def test_runs_wait_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda gpus: Machine(cores=5, gpus=gpus, memory_gb=16))
    busy, peak, threads = [], [], set()

    def run(workers, config, variables, report, retries):
        busy.append(config)
        peak.append(len(busy))
        threads.add(variables["OMP_NUM_THREADS"])
        time.sleep(0.1)
        busy.remove(config)
        return Outcome(config.run_id, "done")

    monkeypatch.setattr(Workers, "run", run)
    configs = [fake_config(seed=seed) for seed in range(7)]
    local = LocalExecutor(jobs=4, resources=LocalResources(cores=2), worker=("false",))
    assert {outcome.status for outcome in local.run(configs, Site(tmp_path, device="cpu"))} == {"done"}
    assert (max(peak), threads) == (2, {"2"})


def test_memory_is_that_of_the_control_group(tmp_path):
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/job/step\n")
    assert _cgroup_limit_gb(tmp_path, tmp_path / "own") == math.inf
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{3 * 2**30}\n")
    assert _cgroup_limit_gb(tmp_path, tmp_path / "own") == 3.0


def test_a_lost_worker_is_started_again_as_often_as_asked(tmp_path):
    lost = (sys.executable, "-c", "import sys; sys.exit('gone')")
    local = LocalExecutor(resources=LocalResources(retries=2), worker=lost)
    config = fake_config()
    ended = local.run([config], Site(tmp_path / "runs", device="cpu"))
    assert (ended[0].status, ended[0].message) == ("failed", "worker ended with exit code 1: gone")
    assert (tmp_path / "logs" / f"{config.run_id}.log").read_text() == "gone\n" * 3


def test_logs_of_all_runs_are_in_one_place_and_only_of_those_that_said_something(tmp_path):
    configs = [fake_config({"bits": 13}), fake_config({"bits": 12})]
    LocalExecutor(jobs=2, worker=WORKER).run(configs, Site(tmp_path / "runs", device="cpu"))
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs[f"{configs[0].run_id}.log"].splitlines()[-1] == "last words"

    log = tmp_path / "logs" / f"{configs[0].run_id}.log"
    log.write_text("old words\n")
    silent = LocalExecutor(isolate=True, worker=(sys.executable, "-c", "import os; os._exit(3)"))
    ended = silent.run([configs[0]], Site(tmp_path / "runs", device="cpu"))
    assert ended[0].message == "worker ended with exit code 3"
    log.unlink()
    silent.run([configs[0]], Site(tmp_path / "runs", device="cpu"))
    assert not log.exists()


def start_worker(store, config, **options):
    worker = subprocess.Popen(
        WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options
    )
    worker.stdout.close()
    site = Site(store, device="cpu")
    worker.stdin.write(json.dumps({"config": config.model_dump(mode="json"), **site.as_json()}) + "\n")
    worker.stdin.flush()
    return worker


def test_a_worker_hears_a_stop_although_its_parent_blocks_or_ignores_the_signal(tmp_path):
    def deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray's workers do
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells do in background jobs

    config = fake_config({"bits": 14}, iterations=4000, eval_every=10)
    worker = start_worker(tmp_path, config, preexec_fn=deaf)
    while not (tmp_path / config.run_id / "metrics.jsonl").exists():
        time.sleep(0.05)
    worker.stdin.close()
    assert worker.wait(120) == 130
    assert RunStore(tmp_path).get(config.run_id).status == "interrupted"


def test_a_worker_whose_words_nobody_reads_goes_on(tmp_path):
    config = fake_config({"bits": 14}, iterations=40)  # two seconds: it reports every half
    worker = start_worker(tmp_path, config)
    worker.wait(300)
    worker.stdin.close()
    assert RunStore(tmp_path).get(config.run_id).status == "done"


def test_site_round_trip(tmp_path):
    for site in (Site(tmp_path), Site(tmp_path, "cuda:1", tmp_path / "d", True, 1.5)):
        assert Site.from_json(site.as_json()) == site

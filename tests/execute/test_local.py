from __future__ import annotations

import os
import signal
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
from fractrain.util.errors import NonFiniteError, RunError
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


def test_site_round_trip(tmp_path):
    for site in (Site(tmp_path), Site(tmp_path, "cuda:1", tmp_path / "d", True, 1.5)):
        assert Site.from_json(site.as_json()) == site

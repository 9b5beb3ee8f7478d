"""Runs on Ray and through submitit: the same digests as here, whatever happens to nodes and jobs in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_fakes import fake_config
from small_registries import RESNET8

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute.local import LocalExecutor
from fractrain.execute.remote import RemoteExecutor, RemoteRun, TimeLimit
from fractrain.execute.resources import Resources, parse_resources
from fractrain.util.errors import ConfigError, FractrainError
from fractrain.util.signals import RunInterrupted

HANG_S = 600
FAKE_WORKER = (sys.executable, "-W", "error", str(Path(__file__).parents[1] / "support" / "fake_worker.py"))


def config(method: str, iterations: int = 6, seed: int = 0) -> RunConfig:
    """Few evaluations, in few batches: at batches of 8 images they took ten times as long as the steps."""
    return RunConfig.create(
        method=method, model=RESNET8, dataset="digits", seed=seed,
        recipe={"iterations": iterations, "eval_every": iterations // 2, "batch_size": 32},
    )  # fmt: skip


def digests(store: Path, configs: list[RunConfig]) -> list[str]:
    found = [RunStore(store).get(c.run_id) for c in configs]
    assert all(record is not None and record.status == "done" for record in found)
    return [record.summary["weights_sha256"] + record.summary["ledger_sha256"] for record in found]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The runs of this module, made on this machine: configs and their digests."""
    store = tmp_path_factory.mktemp("here")
    configs = [config("sbm"), config("fractrain"), config("sbm", 40)]
    LocalExecutor(jobs=1, isolate=False).run(configs, Site(store, device="cpu"))
    return configs, digests(store, configs)


class Inline(RemoteExecutor[dict[str, str]]):
    """An engine that runs everything at once, in this process."""

    def __init__(self, resources: Resources, lost: bool = False) -> None:
        self.resources, self.lost, self.cancelled = resources, lost, 0

    def submit(self, runs, site):
        return [{"status": "done", "message": ""} if self.lost else run() for run in runs]

    def result(self, handle):
        if handle["status"] == "raise":
            raise RuntimeError("node gone\nat 3 o'clock")
        return None if handle["status"] == "never" else handle

    def cancel(self, handles):
        self.cancelled += len(handles)


def test_a_run_travels_as_a_pickle_and_ends_as_here(here, tmp_path):
    import pickle

    configs, expected = here
    site = Site(tmp_path, device="cpu")
    run = pickle.loads(pickle.dumps(RemoteRun(configs[0], site, cores=1, retries=0)))
    assert run() == {"status": "done", "message": ""}
    assert digests(tmp_path, configs[:1]) == expected[:1]


def test_what_is_done_elsewhere_only_has_failed(tmp_path):
    outcome = Inline(Resources(), lost=True).run([config("sbm")], Site(tmp_path, device="cpu"))[0]
    assert outcome.status == "failed"
    assert "share the run store" in outcome.message


def test_an_engine_that_raises_ends_that_run_alone(tmp_path):
    class Raising(Inline):
        def submit(self, runs, site):
            return [{"status": "raise"}, {"status": "failed", "message": "own words"}]

    ended = Raising(Resources()).run([config("sbm"), config("fp32")], Site(tmp_path, device="cpu"))
    assert [(o.status, o.message) for o in ended] == [
        ("failed", "RuntimeError: at 3 o'clock"),
        ("failed", "own words"),
    ]


@pytest.mark.parametrize("places", [1, 2, None])
def test_an_engine_without_a_queue_is_given_as_many_runs_as_there_are_places(tmp_path, places):
    class Counting(Inline):
        at_once = places

        def submit(self, runs, site):
            going.extend(handles := [{"status": "failed", "message": run.config.run_id, "polls": 2} for run in runs])
            most.append(sum(handle["polls"] > 0 for handle in going))
            return handles

        def result(self, handle):
            handle["polls"] -= 1
            return None if handle["polls"] else handle

    going, most = [], []
    configs = [config("sbm", seed=seed) for seed in range(5)]
    ended = Counting(Resources()).run(configs, Site(tmp_path, device="cpu"))
    assert [o.message for o in ended] == [c.run_id for c in configs], "each run once, in their order"
    assert max(most) == (places or 5)


def test_submitit_here_has_no_more_places_than_the_machine_has_room(monkeypatch):
    from fractrain.execute import on_slurm

    monkeypatch.setattr(on_slurm.Machine, "detect", lambda gpus: on_slurm.Machine(cores=4, gpus=0, memory_gb=8))

    def places(*texts):
        return on_slurm.SlurmExecutor(parse_resources(on_slurm.SlurmResources, texts)).at_once

    assert places() is None, "Slurm has a queue"
    here = "cluster=local"
    assert [places(here), places(here, "cores=2"), places(here, "parallel=3"), places(here, "memory_gb=8")] == [
        4,
        2,
        3,
        1,
    ]
    with pytest.raises(FractrainError, match="more than this machine has"):
        places(here, "cores=5")


@pytest.mark.parametrize(("on_interrupt", "cancelled"), [("leave", 0), ("cancel", 1)])
def test_ctrl_c_leaves_or_cancels_what_the_engine_has(tmp_path, on_interrupt, cancelled):
    class Never(Inline):
        def submit(self, runs, site):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            return [{"status": "never"} for _ in runs]

    engine = Never(Resources(on_interrupt=on_interrupt))
    with pytest.raises(RunInterrupted, match="0 runs ended, 1 " + ("cancelled" if cancelled else "go on")):
        engine.run([config("sbm")], Site(tmp_path, device="cpu"))
    assert engine.cancelled == cancelled


def test_a_killed_worker_is_started_again_and_ends_with_the_same_bits(here, tmp_path):
    configs, expected = here
    run = RemoteRun(configs[2], Site(tmp_path, device="cpu", checkpoint_seconds=0, wait_s=60), cores=1, retries=2)
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path, configs[2].run_id))
    killer.start()
    assert run()["status"] == "done"
    killer.join(HANG_S)
    assert digests(tmp_path, configs[2:]) == expected[2:]


def kill_a_worker(store: Path, run_id: str) -> None:
    """Kill -9 the child that writes the run as soon as it has a checkpoint."""
    deadline = time.monotonic() + HANG_S
    while not (store / run_id / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in children(os.getpid(), "fractrain.execute.worker"):
        os.kill(pid, signal.SIGKILL)


def children(parent: int, word: str) -> list[int]:
    """Child processes whose command line has a word."""
    command = ["ps", "-o", "pid=,args=", "--ppid", str(parent)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if word in line]


def test_what_a_process_says_is_kept_beside_the_store_from_all_its_starts(tmp_path):
    worker = (sys.executable, "-c", "import sys; sys.exit('no such GPU')")
    run = RemoteRun(config("sbm"), Site(tmp_path / "runs", device="cpu"), cores=1, retries=1, worker=worker)
    assert run() == {"status": "failed", "message": "worker ended with exit code 1: no such GPU"}
    assert (tmp_path / "logs" / f"{run.config.run_id}.log").read_text() == "no such GPU\n" * 2


def test_resources_are_read_and_refused_in_one_line():
    assert parse_resources(Resources, ["cores=2", "on_interrupt=cancel"]) == Resources(cores=2, on_interrupt="cancel")
    for text, words in (("cores", "write KEY=VALUE"), ("core=2", "core=2"), ("cores=0", "greater than or equal to 1")):
        with pytest.raises(ConfigError, match=words):
            parse_resources(Resources, [text])


class WhenItTrains(TimeLimit):
    """A limit that is over as soon as there is a new line of metrics: the same on machines of any speed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(60.0, 1.0)
        object.__setattr__(self, "folder", folder)

    @contextlib.contextmanager
    def over(self, workers):
        out_of_time, path = threading.Event(), self.folder / "metrics.jsonl"
        before = path.read_text().count("\n") if path.exists() else 0
        ended = threading.Event()

        def stop() -> None:
            while not ended.wait(0.02):
                if path.exists() and path.read_text().count("\n") > before:
                    out_of_time.set()
                    workers.stop()
                    return

        thread = threading.Thread(target=stop)
        thread.start()
        yield out_of_time
        ended.set()
        thread.join()


def slow_config(periods: int) -> RunConfig:
    return fake_config({"bits": 14}, iterations=10 * periods, eval_every=10, milestones=[8])  # half a second each


def test_a_run_out_of_time_is_queued_again_and_ends_with_the_same_bits(tmp_path):
    config = slow_config(3)
    whole = RemoteRun(config, Site(tmp_path / "whole" / "runs", device="cpu"), cores=1, retries=0, worker=FAKE_WORKER)
    assert whole()["status"] == "done"
    cut = Site(tmp_path / "cut" / "runs", device="cpu")
    limit = WhenItTrains(cut.store / config.run_id)
    run = RemoteRun(config, cut, cores=1, retries=0, limit=limit, worker=FAKE_WORKER)
    statuses = [run()["status"]]
    while statuses[-1] == "again":
        statuses.append(run()["status"])
    assert statuses[-1] == "done"
    assert len(statuses) >= 3
    assert digests(cut.store, [config]) == digests(whole.site.store, [config])


def test_a_time_limit_in_which_no_step_is_done_is_told_and_not_tried_for_ever(tmp_path):
    limit = TimeLimit(seconds=6.0, signal_seconds=5.99)
    run = RemoteRun(slow_config(9), Site(tmp_path / "runs", device="cpu"), 1, 3, limit, worker=FAKE_WORKER)
    assert run() == {
        "status": "failed",
        "message": "no step was done and kept within the time limit of 0.1 minutes: raise it",
    }


def test_a_worker_that_does_not_stop_in_time_is_killed():
    did = []
    began = time.monotonic()
    workers = SimpleNamespace(
        stop=lambda: did.append(("stop", time.monotonic() - began)),
        kill=lambda: did.append(("kill", time.monotonic() - began)),
    )
    with TimeLimit(0.3, 0.2).over(workers) as out_of_time:
        assert not out_of_time.wait(0.05)
        assert out_of_time.wait(10)
        while len(did) < 2:
            time.sleep(0.01)
    assert [what for what, _ in did] == ["stop", "kill"]
    assert did[1][1] - did[0][1] > 0.1
    with TimeLimit(0.1, 0.05).over(workers):
        pass
    time.sleep(0.2)
    assert len(did) == 2  # it ended in time


def test_ray_queues_a_run_again_whose_time_is_over(monkeypatch):
    from fractrain.execute import on_ray

    ended = iter(["again", "again", "done"])
    started: list[str] = []
    ray = SimpleNamespace(
        wait=lambda tasks, timeout: (tasks, []),
        get=lambda task: {"status": next(ended), "message": ""},
        remote=lambda **options: (
            lambda function: SimpleNamespace(
                options=lambda name: SimpleNamespace(remote=lambda run: started.append(name) or len(started))
            )
        ),
    )
    monkeypatch.setattr(on_ray, "_ray", lambda: ray)
    executor = on_ray.RayExecutor(parse_resources(on_ray.RayResources, ["minutes=2"]))
    assert executor.limit == TimeLimit(120.0, 90.0)
    run = RemoteRun(config("sbm"), Site(Path("nowhere")), cores=1, retries=0, limit=executor.limit)
    handle = on_ray.RayTask(run, executor._start(run))
    assert [executor.result(handle) for _ in range(3)] == [None, None, {"status": "done", "message": ""}]
    assert (handle.task, started) == (3, [run.config.run_id] * 3)
    with pytest.raises(ConfigError, match="signal_seconds must be less"):
        parse_resources(on_ray.RayResources, ["minutes=1"])


def test_ray_is_asked_whether_any_node_has_room_for_a_run():
    from fractrain.execute.on_ray import RayExecutor, RayResources

    node = {"CPU": 4.0, "memory": 3.0 * 2**30, "node:10.0.0.1": 1.0}
    for asked, fits in (({"cores": 4}, True), ({"cores": 5}, False), ({"gpus": 1}, False), ({"memory_gb": 4}, False)):
        assert RayExecutor(RayResources(**asked))._fits(node) is fits


def test_ray_cannot_leave_tasks_alone():
    from fractrain.execute.on_ray import RayResources

    assert RayResources().on_interrupt == "cancel"
    with pytest.raises(ConfigError, match="ray job submit"):
        parse_resources(RayResources, ["on_interrupt=leave"])


def test_short_jobs_are_refused_on_slurm():
    from fractrain.execute.on_slurm import SlurmResources

    with pytest.raises(ConfigError, match="at least 11"):
        parse_resources(SlurmResources, ["minutes=5"])
    assert parse_resources(SlurmResources, ["minutes=5", "cluster=local"]).minutes == 5


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    import sys

    from fractrain.execute.on_ray import RayExecutor
    from fractrain.execute.on_slurm import SlurmExecutor

    for name, executor in (("ray", RayExecutor()), ("submitit", SlurmExecutor())):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FractrainError, match="pip install"):
            executor.run([config("sbm")], Site(tmp_path, device="cpu"))


def test_submitit_runs_preempts_and_ends_with_the_same_digests(here, tmp_path):
    pytest.importorskip("submitit", reason="extra slurm is not installed")
    from fractrain.execute.on_slurm import SlurmExecutor, SlurmResources

    configs, expected = here
    executor = SlurmExecutor(SlurmResources(cluster="local", minutes=30, signal_seconds=60))
    jobs: list[object] = []

    class Watched(SlurmExecutor):
        def submit(self, runs, site):
            jobs.extend(handles := super().submit(runs, site))
            for handle in handles:
                if handle.run.config == configs[2]:
                    wanted = handle.job, site.store, configs[2].run_id
                    threading.Thread(target=preempt, args=wanted, daemon=True).start()
            return handles

    store = tmp_path / "runs"
    site = Site(store, device="cpu", checkpoint_seconds=0)
    ended = Watched(executor.resources).run(configs, site)
    assert [o.status for o in ended] == ["done"] * 3, [(o.message) for o in ended]
    assert digests(store, configs) == expected
    log = "".join(p.read_text() for p in (tmp_path / "jobs").rglob("*_log.*"))
    assert "preempted" in log  # it really was


def fake_submitit(jobs):
    """Executors through submitit on this machine whose workers train the fake method; ``jobs`` gets their jobs."""
    pytest.importorskip("submitit", reason="extra slurm is not installed")
    from fractrain.execute.on_slurm import SlurmExecutor

    class Fake(SlurmExecutor):
        def submit(self, runs, site):
            for run in runs:
                run.worker = FAKE_WORKER
            jobs.extend(handles := super().submit(runs, site))
            return handles

    return Fake


def test_submitit_here_starts_a_run_when_there_is_a_place_for_it(tmp_path):
    jobs: list[Any] = []
    going: list[int] = []

    class Counting(fake_submitit(jobs)):
        def submit(self, runs, site):
            handles = super().submit(runs, site)
            going.append(sum(not handle.job.done() for handle in jobs))
            return handles

    from fractrain.execute.on_slurm import SlurmResources

    configs = [fake_config(seed=seed) for seed in range(3)]
    site = Site(tmp_path / "runs", device="cpu")
    ended = Counting(SlurmResources(cluster="local", parallel=1)).run(configs, site)
    assert [o.status for o in ended] == ["done"] * 3, [o.message for o in ended]
    assert going == [1, 1, 1]


def preempt(job, store: Path, run_id: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not (store / run_id / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in children(
        int(job.job_id), "submitit"
    ):  # the job's task, as Slurm would; its own controller takes no signal
        os.kill(pid, signal.SIGUSR2)


def stop_when_it_trains(folder: Path) -> None:
    """Press Ctrl-C as soon as a run has a line of metrics."""
    deadline = time.monotonic() + HANG_S
    while not (folder / "metrics.jsonl").exists():
        if time.monotonic() > deadline:
            return  # the test has failed: another one would be stopped
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("on_interrupt", ["leave", "cancel"])
def test_ctrl_c_leaves_jobs_of_submitit_or_cancels_them_with_checkpoints(tmp_path, on_interrupt):
    jobs: list[Any] = []
    executor = fake_submitit(jobs)
    from fractrain.execute.on_slurm import SlurmResources

    config, store = slow_config(6 if on_interrupt == "leave" else 2000), tmp_path / "runs"
    threading.Thread(target=stop_when_it_trains, args=(store / config.run_id,)).start()
    with pytest.raises(RunInterrupted, match="go on without us" if on_interrupt == "leave" else "1 cancelled"):
        executor(SlurmResources(cluster="local", on_interrupt=on_interrupt)).run([config], Site(store, device="cpu"))
    wanted = "done" if on_interrupt == "leave" else "interrupted"
    deadline = time.monotonic() + HANG_S
    while RunStore(store).get(config.run_id).status == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert RunStore(store).get(config.run_id).status == wanted
    assert (store / config.run_id / "checkpoint.pt").exists()
    jobs[0].job._process.wait(HANG_S)


@pytest.fixture
def one_ray_node(monkeypatch):
    """Ray on this machine, as the executor starts it where there is no cluster."""
    ray = pytest.importorskip("ray", reason="extra ray is not installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's is 15: on a busy machine this test would starve
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    yield ray
    ray.shutdown()


def test_ctrl_c_cancels_tasks_of_ray_with_checkpoints(one_ray_node, tmp_path):
    from fractrain.execute.on_ray import RayExecutor, RayResources

    class Slow(RayExecutor):
        def submit(self, runs, site):
            for run in runs:
                run.worker = FAKE_WORKER
            return super().submit(runs, site)

    configs = [slow_config(2000), slow_config(2001)]
    threading.Thread(target=stop_when_it_trains, args=(tmp_path / configs[0].run_id,)).start()
    with pytest.raises(RunInterrupted, match="0 runs ended, 2 cancelled"):
        Slow(RayResources()).run(configs, Site(tmp_path, device="cpu"))
    record = RunStore(tmp_path).get(configs[0].run_id)
    assert record.status == "interrupted"  # at once: a driver that ends takes Ray's processes with it
    assert (record.path / "checkpoint.pt").exists()
    assert RunStore(tmp_path).get(configs[1].run_id) is None


def test_two_ray_nodes_one_killed_in_mid_run(here, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="extra ray is not installed")
    from ray.cluster_utils import Cluster

    from fractrain.execute.on_ray import RayExecutor, RayResources

    configs, expected = here
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's is 15: on a busy machine this test would starve
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=3)  # takes all runs; the other one what is left of them
    try:
        ray.init(address=cluster.address, log_to_driver=False)

        class Watched(RayExecutor):
            def submit(self, runs, site):
                handles = super().submit(runs, site)
                cluster.add_node(num_cpus=3)
                threading.Thread(target=lose, args=(cluster, lost, tmp_path / configs[2].run_id), daemon=True).start()
                return handles

        site = Site(tmp_path, device="cpu", checkpoint_seconds=0)
        ended = Watched(RayResources(address=cluster.address)).run(configs, site)
        assert [o.status for o in ended] == ["done"] * 3, [o.message for o in ended]
        assert digests(tmp_path, configs) == expected
        deadline = time.monotonic() + HANG_S
        while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # Ray may notice after the runs have ended
        assert sum(node["Alive"] for node in ray.nodes()) == 2  # of three: one was really lost
    finally:
        ray.shutdown()
        cluster.shutdown()


def lose(cluster, node, folder: Path) -> None:
    """Take a node away without a word as soon as the run in ``folder`` has a checkpoint."""
    deadline = time.monotonic() + HANG_S
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)


def test_two_hosts_with_one_store_share_the_work_and_one_takes_over_from_the_other(here, tmp_path):
    """Two processes stand for two hosts: both want all runs; one is killed with -9 in mid-run."""
    configs, expected = here
    site = Site(tmp_path, device="cpu", checkpoint_seconds=0, wait_s=-1)
    program = (
        "import json, sys; from pathlib import Path; from fractrain.engine.config import RunConfig\n"
        "from fractrain.engine.site import Site; from fractrain.execute.local import LocalExecutor\n"
        "job = json.loads(sys.stdin.read())\n"
        "configs = [RunConfig.model_validate(c) for c in job['configs']]\n"
        "ended = LocalExecutor(jobs=1, isolate=False).run(configs, Site.from_json(job['site']))\n"
        "print([o.status for o in ended])"
    )
    hosts = []
    for order in (configs, configs[::-1]):
        job = {"configs": [c.model_dump(mode="json") for c in order], "site": site.as_json()}
        host = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        host.stdin.write(json.dumps(job))
        host.stdin.close()
        hosts.append(host)
    long_run = tmp_path / configs[2].run_id  # the first of the second host
    deadline = time.monotonic() + HANG_S
    while not (long_run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    hosts[1].kill()
    assert hosts[1].wait(HANG_S) == -signal.SIGKILL
    assert "['done', 'done', 'done']" in hosts[0].stdout.read()
    hosts[0].wait(HANG_S)
    for host in hosts:
        host.stdout.close()
    assert digests(tmp_path, configs) == expected

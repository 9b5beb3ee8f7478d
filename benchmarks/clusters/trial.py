"""The same runs by every executor, with nodes, jobs and processes taken away in between: are their digests equal?

    python benchmarks/clusters/trial.py --out results/bench/clusters.json [--engines local,ray,submitit,slurm]
    python benchmarks/clusters/trial.py --out FILE --uncut --folder DIR --engines local,ray,submitit

The runs are those of table 2, profile smoke: ResNet-38 cut to a few steps, or all of them as they are (``--uncut``),
two at a time with one thread each. ``ray`` is a cluster of two nodes on this machine, one of which is removed;
``submitit`` its local executor, with a preemption; ``slurm`` a real Slurm of one node (Debian: slurm-wlm, munge; root),
whose configuration and state lie in a temporary folder: one of its jobs is preempted, another one killed. An opt-in
trial: minutes on two cores, uncut ten or more for each engine. With ``--folder`` it may be stopped (Ctrl-C): the same
command goes on with it. Its records are committed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.execute.jobs import Outcome
from fractrain.execute.local import LocalExecutor
from fractrain.execute.resources import LocalResources
from fractrain.report.grid import plan
from fractrain.report.spec import load_spec

ENGINES = ("local", "ray", "submitit", "slurm")
HANG_S = 900
AT_ONCE = 2
SLURM_CONF = """ClusterName=trial
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
PropagatePrioProcess=1
NodeName=localhost CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=trial Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def configs(rows: Sequence[str], iterations: int) -> list[RunConfig]:
    """Rows of table 2 for ResNet-38 and digits, in place of CIFAR-10, cut to so many steps."""
    spec = load_spec("table2")
    requests = [spec.request(spec.pairs[0], spec.row(key), "smoke") for key in rows]
    recipe = {"iterations": iterations, "eval_every": 2, "batch_size": 16}
    return [
        RunConfig.create(method=r.method, model=r.model, dataset=r.dataset, profile=r.profile, settings=r.settings,
                         recipe={**r.recipe, **recipe})
        for r in requests
    ]  # fmt: skip


def uncut_configs() -> list[RunConfig]:
    """All runs of table 2, profile smoke, as ``fractrain reproduce table2`` makes them."""
    runs = [run.config for run in plan(load_spec("table2"), "smoke") if isinstance(run.config, RunConfig)]
    return list({config.run_id: config for config in runs}.values())


def wait_for(ready: Callable[[], Any], what: str) -> Any:
    """Return what ``ready`` returns as soon as that is true.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def in_the_middle(store: Path, configs: Sequence[RunConfig], since: float) -> list[RunConfig]:
    """Runs that train and have written a checkpoint since then."""
    found = []
    for config in configs:
        checkpoint, record = store / config.run_id / "checkpoint.pt", RunStore(store).get(config.run_id)
        if record is not None and record.status == "running" and checkpoint.exists():
            found += [config] if checkpoint.stat().st_mtime > since else []
    return found


def children(parent: int, word: str) -> list[int]:
    """Descendants of a process whose command line has a word, the youngest last."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [(int(pid), int(ppid), words) for pid, ppid, words in (line.split(None, 2) for line in listed)]
    family, size = {parent}, 0
    while len(family) != size:
        size = len(family)
        family |= {pid for pid, ppid, _ in rows if ppid in family}
    return [pid for pid, _, words in rows if pid in family and pid != parent and word in words]


def processes(*words: str) -> list[int]:
    """Python processes of this machine whose command line has all words."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
    found = [line.split(None, 1) for line in listed]
    return [int(pid) for pid, line in found if all(w in line for w in words) and "python" in line.split()[0]]


class EngineTrial:
    """One engine: what it ran, what was done to it.

    Args:
        folder: of its store; what was done to it by an earlier command is noted there, too.
        runs: what it runs.
        checkpoint_seconds: between two checkpoints of a run.
    """

    def __init__(self, folder: Path, runs: Sequence[RunConfig], checkpoint_seconds: float) -> None:
        self.store, self.runs, self.began, self._notes = folder / "runs", list(runs), time.time(), folder / "trial.json"
        self.site = Site(self.store, device="cpu", checkpoint_seconds=checkpoint_seconds)
        before = json.loads(self._notes.read_text()) if self._notes.exists() else {"events": [], "seconds": 0}
        self.events: list[str] = before["events"]
        self.seconds: float = before["seconds"]
        self.left = [c for c in self.runs if (r := RunStore(self.store).get(c.run_id)) is None or r.status != "done"]

    def keep_notes(self) -> None:
        """Write down what was done and how long it took."""
        notes = {"events": self.events, "seconds": self.seconds + time.time() - self.began}
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        self._notes.write_text(json.dumps(notes))

    def disturb(self, what: str, config: RunConfig, act: Callable[[], None]) -> None:
        """Do something as soon as a run is in the middle, once."""

        def body() -> None:
            wait_for(lambda: in_the_middle(self.store, [config], self.began), config.run_id)
            act()
            self.events.append(f"{what} during {config.run_id}")

        if not any(event.startswith(what) for event in self.events):
            threading.Thread(target=body, daemon=True).start()

    def local(self) -> list[Outcome]:
        """In processes of this machine."""
        return LocalExecutor(jobs=AT_ONCE, resources=LocalResources(cores=1)).run(self.runs, self.site)

    def ray(self) -> list[Outcome]:
        """Two nodes, one of which is removed without a word while both train; a new one takes its place."""
        import ray
        from ray.cluster_utils import Cluster

        from fractrain.execute.on_ray import RayExecutor, RayResources, RayTask

        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's is 15: beside other programs runs would starve
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(AT_ONCE)]
        trial = self

        class Watched(RayExecutor):
            def result(self, handle: RayTask) -> dict[str, str] | None:  # not in a thread: Ray sets a signal's handler
                if not trial.events:
                    lost = in_the_middle(trial.store, trial.runs, trial.began)
                    if len(lost) >= min(AT_ONCE, len(trial.left)):
                        cluster.remove_node(nodes[0], allow_graceful=False)
                        cluster.add_node(num_cpus=1)
                        names = " and ".join(config.run_id for config in lost)
                        trial.events.append(f"one of two nodes removed during {names}")
                return super().result(handle)

        try:
            ray.init(address=cluster.address, log_to_driver=False)
            return Watched(RayResources(address=cluster.address)).run(self.runs, self.site)
        finally:
            ray.shutdown()
            cluster.shutdown()

    def submitit(self) -> list[Outcome]:
        """Submitit's local executor; one job is preempted as Slurm would do it."""
        from fractrain.execute.on_slurm import SlurmExecutor, SlurmResources

        def preempt() -> None:
            os.kill(children(os.getpid(), "submitit.core._submit")[0], signal.SIGUSR2)

        if self.left:
            self.disturb("job preempted", self.left[0], preempt)
        resources = SlurmResources(cluster="local", minutes=60, parallel=AT_ONCE, on_interrupt="cancel")
        return SlurmExecutor(resources).run(self.runs, self.site)

    def slurm(self) -> list[Outcome]:
        """A real Slurm; one job is preempted, the process of another one is killed."""
        from fractrain.execute.on_slurm import SlurmExecutor, SlurmResources

        def job(config: RunConfig) -> str:
            return (self.store.parent / "jobs" / "of-runs" / config.run_id).read_text().strip()

        def preempt() -> None:
            subprocess.run(["scancel", job(self.runs[0]), "--signal=USR2"])  # may complain of the requeue after it

        def kill() -> None:  # not by scancel: that is the user's wish, and nothing is started again
            for pid in processes("submitit.core._submit", str(self.store.parent)):
                os.kill(pid, signal.SIGKILL)

        self.disturb("job preempted", self.runs[0], preempt)
        self.disturb("job killed", self.runs[1], kill)
        with one_node_slurm(Path(tempfile.mkdtemp(prefix="slurm-"))):
            return SlurmExecutor(SlurmResources(minutes=11, memory_gb=1)).run(self.runs, self.site)


@contextlib.contextmanager
def one_node_slurm(folder: Path, cpus: int = 1) -> Iterator[None]:
    """A Slurm of this machine alone; its daemons end with the block."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, cpus=cpus))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    running = [*_munge(), *(subprocess.Popen([name, "-D", *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                            for name, more in (("slurmctld", ()), ("slurmd", ("-N", "localhost"))))]  # fmt: skip

    def idle() -> bool:
        return "idle" in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout

    try:
        wait_for(idle, "no idle node")
        yield
    finally:
        for process in reversed(running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def _munge() -> list[subprocess.Popen[bytes]]:
    """Start munged where none answers."""
    if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode == 0:
        return []
    Path("/run/munge").mkdir(exist_ok=True)
    subprocess.run(["chown", "munge", "/run/munge"], check=True)
    daemon = subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground"])
    wait_for(lambda: subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode == 0, "munge")
    return [daemon]


def digests(store: Path, runs: Sequence[RunConfig]) -> dict[str, dict[str, str]]:
    """Weights and ledger of every finished run."""
    found = {}
    for config in runs:
        record = RunStore(store).get(config.run_id)
        if record is not None and record.summary is not None:
            found[config.run_id] = {key: record.summary[f"{key}_sha256"] for key in ("weights", "ledger")}
    return found


def versions() -> dict[str, str]:
    """Of what was tried."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "ray", "submitit")}
    with contextlib.suppress(OSError):
        told = subprocess.run(["sinfo", "--version"], capture_output=True, text=True).stdout
        found["slurm"] = told.split()[-1] if told else ""
    return found


def tried(name: str, trial: EngineTrial) -> dict[str, Any]:
    """Run all by one engine; what is to be told of it."""
    try:
        outcomes = getattr(trial, name)()
    finally:
        trial.keep_notes()
    found = {
        "done": sum(outcome.status == "done" for outcome in outcomes), "events": trial.events,
        "failed": [f"{o.run_id}: {o.message}" for o in outcomes if o.status != "done"],
        "seconds": round(trial.seconds + time.time() - trial.began), "digests": digests(trial.store, trial.runs),
    }  # fmt: skip
    print(f"{name}: {found['done']} of {len(trial.runs)} done, {trial.events}", flush=True)
    return found


def main() -> int:
    """Run it; return 1 where digests differ, or nothing was taken away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rows", default="fp32,sbm,dfq,fractrain", help="two or more")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--uncut", action="store_true", help="all rows, models and data sets, with all their steps")
    parser.add_argument("--folder", type=Path, help="keeps the runs, so that the same command goes on with them")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = uncut_configs() if options.uncut else configs(options.rows.split(","), options.iterations)
    seconds, engines = 5.0 if options.uncut else 0.0, {}
    for name in options.engines.split(","):
        folder = options.folder / name if options.folder else Path(tempfile.mkdtemp(prefix=f"trial-{name}-"))
        engines[name] = tried(name, EngineTrial(folder.absolute(), runs, seconds))
    first = next(iter(engines.values()))["digests"]
    equal = {name: found["digests"] == first and len(first) == len(runs) for name, found in engines.items()}
    what = "table 2, profile smoke, uncut"
    if not options.uncut:
        what = f"table 2, profile smoke, ResNet-38 on digits, rows {options.rows}, cut to {options.iterations} steps"
    told = {name: {k: v for k, v in found.items() if k != "digests"} for name, found in engines.items()}
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    if (before.get("what"), before.get("digests")) == (what, first):  # engines that were tried before
        equal, told = {**before["equal"], **equal}, {**before["engines"], **told}
    record = {
        "what": what, "runs": len(runs), "equal": equal, "digests": first, "versions": versions(), "engines": told,
    }  # fmt: skip
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    disturbed = all(found["events"] for name, found in told.items() if name != "local")
    return 0 if all(equal.values()) and disturbed else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What the Slurm executor does with what ``squeue`` says; Slurm itself: benchmarks/clusters/trial.py."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.execute import on_slurm
from fractrain.execute.on_slurm import SlurmExecutor
from fractrain.execute.remote import RemoteRun
from fractrain.util.errors import MachineError

pytest.importorskip("submitit", reason="extra slurm is not installed")

CONFIG = RunConfig.create(method="sbm", model="resnet38", dataset="digits")
DONE = {"status": "done", "message": ""}


class Cluster:
    """A ``squeue`` that prints a file, and a submitit that gives job ids."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.submitted = folder, 0
        (folder / "bin").mkdir()
        script = folder / "bin" / "squeue"
        script.write_text(f"#!/bin/sh\ncat {folder}/queue\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setattr(on_slurm, "QUEUE_POLL_S", 0.0)
        monkeypatch.setattr(on_slurm, "GONE_S", 0.0)
        monkeypatch.setattr(SlurmExecutor, "_executor", lambda executor, site: self)
        self.site = Site(folder / "runs", device="cpu")
        self.says("")

    def says(self, text: str) -> None:
        (self.folder / "queue").write_text(text)

    def batch(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def submit(self, run: RemoteRun) -> SimpleNamespace:
        self.submitted += 1
        folder = self.folder / "jobs" / f"{self.submitted}_0"
        folder.mkdir(parents=True)
        file = folder / "result.pkl"
        return SimpleNamespace(
            job_id=f"{self.submitted}_0", paths=SimpleNamespace(result_pickle=file, stderr=folder / "log.err"),
            result=lambda: pickle.loads(file.read_bytes()),
        )  # fmt: skip


def finish(handle: on_slurm.SlurmRun) -> None:
    Path(handle.job.paths.result_pickle).write_bytes(pickle.dumps(DONE))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def handed_over(cluster: Cluster) -> tuple[SlurmExecutor, on_slurm.SlurmRun]:
    executor = SlurmExecutor()
    run = RemoteRun(CONFIG, cluster.site, cores=1, retries=0)
    return executor, executor.submit([run], cluster.site)[0]


def test_a_lost_job_is_submitted_again_until_it_was_lost_too_often(cluster: Cluster) -> None:
    executor, handle = handed_over(cluster)
    handle.retries = 1
    cluster.says("1_0 RUNNING\n2_0 FAILED\n")
    assert executor.result(handle) is None
    cluster.says("1_0 FAILED\n")
    assert executor.result(handle) is None
    assert (cluster.submitted, handle.job.job_id) == (2, "2_0")
    cluster.says("1_0 FAILED\n2_0 PENDING\n")
    assert executor.result(handle) is None
    cluster.says("")  # Slurm has forgotten it, too
    with pytest.raises(MachineError, match=r"job 2_0 ended without a result.*log\.err"):
        executor.result(handle)
    assert cluster.submitted == 2


def test_a_result_counts_whatever_the_queue_says(cluster: Cluster) -> None:
    executor, handle = handed_over(cluster)
    finish(handle)
    cluster.says("1_0 COMPLETING\n")
    assert executor.result(handle) == DONE


def test_a_queue_that_does_not_answer_ends_nothing(cluster: Cluster) -> None:
    executor, handle = handed_over(cluster)
    (cluster.folder / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert executor.result(handle) is None
    (cluster.folder / "bin" / "squeue").unlink()
    assert executor.result(handle) is None
    assert cluster.submitted == 1


def test_a_job_that_the_user_cancelled_is_not_submitted_again(cluster: Cluster) -> None:
    executor, handle = handed_over(cluster)
    cluster.says("1_0 CANCELLED\n")
    assert executor.result(handle) == {"status": "interrupted", "message": "job 1_0 was cancelled"}
    assert cluster.submitted == 1


def test_the_same_command_waits_for_the_jobs_of_the_first(cluster: Cluster) -> None:
    handed_over(cluster)
    cluster.says("1_0 PENDING\n")
    executor, handle = handed_over(cluster)
    assert (cluster.submitted, handle.job.job_id) == (1, "1_0")
    assert executor.result(handle) is None
    finish(handle)
    assert executor._state(handle) == "ended"
    cluster.says("")  # that one is over: a third command begins anew
    handed_over(cluster)
    assert cluster.submitted == 2

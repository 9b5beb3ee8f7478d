from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_fakes import fake_config
from kill_helper import ROOT

from fractrain.cost.ledger import Entry, Ledger
from fractrain.engine.store import LOCK_NAME, RunStore
from fractrain.util import files
from fractrain.util.errors import StoreError

RESULT = {"accuracy": 90.0, "best_test_epoch": 0}


@pytest.fixture
def config():
    return fake_config()


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def ledger_state():
    ledger = Ledger({"batch_size": 2})
    ledger.samples(4)
    ledger.count("a", 4, lambda: [Entry("a", "FW", 8, 8, 10)])
    return ledger.state_dict()


def test_root_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "x"))
    assert RunStore().root == tmp_path / "x"
    monkeypatch.delenv("FRACTRAIN_RESULTS")
    assert RunStore().root == Path("results/runs")


def test_life_of_a_run(store, config):
    assert store.get(config.run_id) is None
    assert list(store.records()) == []
    with store.open(config) as writer:
        writer.start({"python": "3"})
        assert store.get(config.run_id).status == "running"
        writer.append_metrics({"epoch": 0, "x": 1})
        writer.append_metrics({"epoch": 1, "x": 2})
        writer.append_metrics({"epoch": 1, "x": 3})
        writer.finish(RESULT, ledger_state())
    record = store.get(config.run_id)
    assert (record.status, record.summary, record.config) == ("done", RESULT, config)
    assert record.metrics() == [{"epoch": 0, "x": 1}, {"epoch": 1, "x": 3}]
    assert [row.macs for row in record.ledger().rows()] == [40]
    assert record.environment == {"python": "3", "earlier": []}
    assert [r.run_id for r in store.records()] == [config.run_id]


@pytest.mark.parametrize("status", ["failed", "diverged", "interrupted", "running"])
def test_a_summary_beside_another_status_is_not_a_result(store, config, status):
    with store.open(config) as writer:
        writer.finish(RESULT, ledger_state())
        writer.set_status(status, "why")
    record = store.get(config.run_id)
    assert (record.status, record.summary, record.message) == (status, None, "why")


def test_environments_of_earlier_starts_are_kept(store, config):
    with store.open(config) as writer:
        for environment in ({"v": 1}, {"v": 1}, {"v": 2}):
            writer.start(environment)
    assert store.get(config.run_id).environment == {"v": 2, "earlier": [{"v": 1}]}


def test_discard_keeps_only_the_config(store, config):
    with store.open(config) as writer:
        writer.append_metrics({"epoch": 0})
        writer.finish(RESULT, ledger_state())
        writer.discard()
    assert store.get(config.run_id).status == "running"
    assert store.get(config.run_id).metrics() == []


def test_discard_killed_half_way_leaves_no_checkpoint_without_metrics(store, config, monkeypatch):
    with store.open(config) as writer:
        writer.append_metrics({"epoch": 0})
        for name in ("checkpoint.pt", "checkpoint.prev.pt", "checkpoint.damaged.pt"):
            (writer.path / name).touch()
        real, gone = Path.unlink, []

        def unlink(path, **options):
            gone.append(path.name)
            if len(gone) == 4:
                raise KeyboardInterrupt
            real(path, **options)

        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            writer.discard()
    assert not list(store.path(config.run_id).glob("checkpoint*"))
    assert store.get(config.run_id).status == "running"


def test_torn_last_line_is_ignored_then_repaired(store, config):
    with store.open(config) as writer:
        writer.append_metrics({"epoch": 0})
    path = store.path(config.run_id) / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"epoch": 1, "x"')
    assert store.get(config.run_id).metrics() == [{"epoch": 0}]
    with store.open(config) as writer:
        writer.append_metrics({"epoch": 1})
    assert store.get(config.run_id).metrics() == [{"epoch": 0}, {"epoch": 1}]


def test_foreign_content_is_refused_and_left_alone(store, config):
    folder = store.path(config.run_id)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"thesis\.txt"), store.open(config):
        pass
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == ["thesis.txt"]
    assert list(store.records()) == []
    other = fake_config(seed=1)
    (folder / "config.json").write_text(other.to_json())
    with pytest.raises(StoreError, match=other.run_id), store.open(config):
        pass
    record = store.get(config.run_id)
    assert record.status == "damaged"
    assert other.run_id in record.message
    assert "move" in record.message


def test_a_store_inside_a_file(tmp_path, config):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="in the way"), RunStore(tmp_path / "runs").open(config):
        pass


def test_no_write_permission(tmp_path, config, monkeypatch):
    if os.geteuid() == 0:  # root may write everywhere: the refusal is played

        def refuse(self: Path, *arguments: object, **options: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    tmp_path.chmod(0o500)
    try:
        with (
            pytest.raises(StoreError, match=r"no permission.*FRACTRAIN_RESULTS"),
            RunStore(tmp_path / "r").open(config),
        ):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "Input/output")]
)
def test_a_write_that_fails_leaves_the_old_file(store, config, monkeypatch, number, words):
    with store.open(config) as writer:
        writer.finish(RESULT, ledger_state())
        before = {p.name: p.read_bytes() for p in writer.path.iterdir() if p.is_file()}

        def full(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.os, "fsync", full)
        for write in (
            lambda: writer.set_status("failed"),
            lambda: writer.finish({**RESULT, "accuracy": 2.0}, ledger_state()),
            lambda: files.atomic_write(writer.path / "new.json", b"x"),
        ):
            with pytest.raises(StoreError, match=words) as caught:
                write()
            assert "\n" not in str(caught.value)
        monkeypatch.undo()
        assert {p.name: p.read_bytes() for p in writer.path.iterdir() if p.is_file()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_appending_to_a_device_that_is_really_full(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="disk is full"):
        files.append_line(tmp_path / "metrics.jsonl", "{}")


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from engine_fakes import fake_config
from fractrain.engine.store import LOCK_NAME, RunStore
with RunStore({root!r}).open(fake_config()) as writer:
    writer.start({{}})
    writer.append_metrics({{"epoch": 0}})
    (writer.path / ".summary.json.1.tmp").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_writer(script, store):
    """Another process that writes into a run of ``store``, and has said that it is ready."""
    script = script.format(tests=str(Path(__file__).parents[1] / "support"), root=str(store.root))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


def test_second_writer_is_told_and_a_killed_writer_frees_the_lock(store, config):
    with other_writer(WRITER, store) as first:
        with pytest.raises(StoreError, match="written by another process"), store.open(config, wait_s=0.1):
            pass
        assert store.get(config.run_id).metrics() == [{"epoch": 0}]  # reading needs no lock
        first.send_signal(signal.SIGKILL)
        first.wait()
    with store.open(config) as writer:
        assert not list(writer.path.glob("*.tmp"))
        assert not list(writer.path.glob(".*.tmp"))
        writer.append_metrics({"epoch": 1})
    assert store.get(config.run_id).metrics() == [{"epoch": 0}, {"epoch": 1}]


RETURNING = """
import sys
sys.path.insert(0, {tests!r})
from engine_fakes import fake_config
from fractrain.engine import checkpoint
from fractrain.engine.store import LOCK_NAME, RunStore
from fractrain.util.errors import StoreError
config = fake_config()
with RunStore({root!r}).open(config) as writer:
    path = writer.path / "checkpoint.pt"
    writer.start({{}})
    checkpoint.save(path, {{"step": 1}}, config.run_id, writer.check_owner)
    print("ready", flush=True)
    sys.stdin.readline()
    for write in (
        lambda: writer.append_metrics({{"epoch": 9}}),
        lambda: writer.write_metrics([]),
        lambda: writer.set_status("failed"),
        lambda: writer.start({{}}),
        lambda: writer.write_ledger({{}}),
        lambda: writer.finish({{}}, {{}}),
        lambda: writer.discard(),
        lambda: checkpoint.save(path, {{"step": 9}}, config.run_id, writer.check_owner),
    ):
        try:
            write()
            print("written")
        except StoreError as error:
            print(error)
"""


@pytest.mark.parametrize("ended", [False, True])
def test_a_node_that_comes_back_leaves_the_run_to_who_took_it_over(store, config, ended):
    with other_writer(RETURNING, store) as first:
        (store.path(config.run_id) / LOCK_NAME).unlink()  # as a server takes the lock back from a node it cannot reach
        with store.open(config) as writer:
            writer.append_metrics({"epoch": 0})
            writer.finish(RESULT, ledger_state())
            if not ended:
                before, told = contents(writer.path), first.communicate("\n")[0].splitlines()
                assert contents(writer.path) == before
        if ended:
            before, told = contents(store.path(config.run_id)), first.communicate("\n")[0].splitlines()
            assert contents(store.path(config.run_id)) == before
    assert len(told) == 8
    assert all("was taken over by another process" in line for line in told), told
    record = store.get(config.run_id)
    assert (record.status, record.verified, record.metrics()) == ("done", True, [{"epoch": 0}])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_system_whose_locks_would_outlive_a_dead_node_is_refused(store, config, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(StoreError, match=r"its file system has no locks: mount it .* FRACTRAIN_RESULTS"),
        store.open(config),
    ):
        pass
    assert os.listdir(store.path(config.run_id)) == []


def test_config_json_is_readable(store, config):
    with store.open(config):
        pass
    values = json.loads((store.path(config.run_id) / "config.json").read_text())
    assert values["recipe"]["iterations"] == 16

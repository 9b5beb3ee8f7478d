"""Publishing to wandb online, and bad input.

What a server would keep is tested with a stand-in for wandb. That a missing login or network ends in one line is tested
with the real one, and a port where nobody listens.
"""

from __future__ import annotations

import socket
import sys
import types
from pathlib import Path
from typing import Any

import filelock
import pytest
from publish_helpers import HOST, make_run, offline, one_line, own_wandb, store

from fractrain.engine.store import RunStore
from fractrain.publish import wandb as tracker
from fractrain.publish.public import public_config, public_facts
from fractrain.publish.publish import Published, publish, resolve_mode
from fractrain.util.errors import ConfigError, MachineError, StoreError

__all__ = ["own_wandb", "store"]  # fixtures


class StandIn(types.ModuleType):
    """Enough of wandb to keep, per run id, what a server keeps."""

    class Error(Exception):
        pass

    class UsageError(Error):
        pass

    class Settings:
        model_fields = {"mode": None, "silent": None}

        def __init__(self, **values: Any) -> None:
            assert set(values) <= set(self.model_fields)  # the real one refuses fields it does not know

    class Artifact:
        def __init__(self, name: str, type: str) -> None:
            self.name, self.type = name, type

        def add_file(self, path: str, name: str) -> None:
            assert Path(path).is_file()

    def __init__(self) -> None:
        super().__init__("wandb")
        self.server: dict[str, dict[str, Any]] = {}
        self.logged_in = True

    def setup(self, settings: Any) -> None:
        pass

    def login(self, verify: bool = True, prompt: bool = True) -> bool:
        assert not prompt, "must not ask on the terminal"
        return self.logged_in

    def init(self, *, id: str, resume: str, **more: Any) -> StandInRun:
        assert resume == "allow"
        resumed = id in self.server
        return StandInRun(self.server.setdefault(id, {"id": id, "history": [], "artifacts": []}), resumed)


class StandInRun:
    """An open run; what it is told goes to ``kept``."""

    def __init__(self, kept: dict[str, Any], resumed: bool) -> None:
        self.kept, self.resumed = kept, resumed
        self.starting_step = 1 + max((row["step"] for row in kept["history"]), default=-1)
        self.url = f"https://wandb.invalid/{kept['id']}"
        self.config = types.SimpleNamespace(update=lambda values, allow_val_change: kept.update(config=values))
        self.summary = kept.setdefault("summary", {})

    def __enter__(self) -> StandInRun:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        self.kept["history"].append({**values, "step": step})

    def log_artifact(self, artifact: StandIn.Artifact) -> None:
        self.kept["artifacts"].append(artifact.name)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def online(store: RunStore, tmp_path: Path, **more: Any) -> list[Published]:
    return publish(store, "bench", mode="online", dir=tmp_path / "out", progress=lambda line: None, **more)


def test_online_never_sends_a_step_twice(store: RunStore, tmp_path: Path, stand_in: StandIn) -> None:
    run_id = make_run(store)
    assert [r.action for r in online(store, tmp_path)] == ["created"]
    assert [r.action for r in online(store, tmp_path)] == ["skipped"]
    (store.path(run_id) / "published.json").unlink()  # as on another machine: only the server knows
    assert [r.action for r in online(store, tmp_path)] == ["updated"]
    assert [r.action for r in online(store, tmp_path, force=True)] == ["updated"]
    kept = stand_in.server[run_id]
    assert [row["step"] for row in kept["history"]] == [0, 1, 2]
    assert kept["summary"]["test_accuracy"] == 0.75
    assert kept["config"]["method"] == "static8"


def test_online_goes_on_where_an_upload_broke_off(store: RunStore, tmp_path: Path, stand_in: StandIn) -> None:
    run_id = make_run(store)
    stand_in.server[run_id] = {"id": run_id, "history": [{"step": 0}], "artifacts": []}
    online(store, tmp_path)
    assert [row["step"] for row in stand_in.server[run_id]["history"]] == [0, 1, 2]


def test_broken_upload_is_not_remembered(
    store: RunStore, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run(store)

    def refuse(self: StandInRun, artifact: object) -> None:
        raise StandIn.Error("storage is full\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(StandInRun, "log_artifact", refuse)
        with pytest.raises(MachineError, match=f"wandb, {run_id}: storage is full; check"):
            online(store, tmp_path)
    assert not (store.path(run_id) / "published.json").exists()
    assert [r.action for r in online(store, tmp_path)] == ["updated"]
    assert len(stand_in.server[run_id]["history"]) == 3


def test_not_logged_in_is_one_line(store: RunStore, tmp_path: Path, stand_in: StandIn) -> None:
    make_run(store)
    stand_in.logged_in = False
    with pytest.raises(MachineError, match="not logged in; run `wandb login`"):
        online(store, tmp_path)


def test_real_wandb_without_login(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # what is asked for by name wins
    make_run(store)
    one_line(MachineError, "not logged in", lambda: online(store, tmp_path))


def test_real_wandb_without_network(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:  # a port where nobody listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(tracker, "INIT_TIMEOUT_S", 1.0)
        run_id = make_run(store)
        one_line(MachineError, f"wandb, {run_id}: .*--mode offline", lambda: online(store, tmp_path))
    assert not (store.path(run_id) / "published.json").exists()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_wandb_missing(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(store)
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    one_line(MachineError, "publishing needs wandb.*pip install wandb", lambda: offline(store, tmp_path))


def test_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert [resolve_mode(m) for m in ("auto", "online", "offline")] == ["online", "online", "offline"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [resolve_mode(m) for m in ("auto", "online", "offline")] == ["offline", "online", "offline"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    one_line(ConfigError, "WANDB_MODE is 'disabled'", lambda: resolve_mode("auto"))


def test_bad_project_folder_table_and_memory(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    one_line(ConfigError, "project 'a/b'", lambda: publish(store, "a/b", mode="offline", dir=tmp_path))
    (tmp_path / "file").touch()
    one_line(StoreError, "cannot write", lambda: publish(store, "a", mode="offline", dir=tmp_path / "file"))
    table = tmp_path / "t.csv"
    one_line(StoreError, "table .*t.csv is not there", lambda: offline(store, tmp_path, tables=[table]))
    table.write_text("a,b\n1\n")
    run, failed = offline(store, tmp_path, tables=[table])
    assert (run.action, failed.action) == ("created", "failed")
    assert "t.csv: rows of different length" in failed.message
    (store.path(run_id) / "published.json").write_text('{"targets": ')
    (failed,) = offline(store, tmp_path)
    assert "published.json cannot be read; delete it" in failed.message


def test_two_at_once(store: RunStore, tmp_path: Path) -> None:
    make_run(store)
    (tmp_path / "out" / "bench").mkdir(parents=True)
    with filelock.FileLock(tmp_path / "out" / "bench" / ".publish.lock"):
        one_line(StoreError, "another publish is at work", lambda: offline(store, tmp_path))


def test_public_leaves_out_what_names_the_machine() -> None:
    value = {"a": 1, "rel": "data/x", "abs": "/data/x", "win": "C:\\data", "tilde": "~/x", "path": Path("x"),
             "home": f"see {Path.home()}/x", "list": ["ok", "/no"], "deep": {"abs": "/x", "b": None}}  # fmt: skip
    assert public_config(value) == {"a": 1, "rel": "data/x", "list": ["ok"], "deep": {"b": None}}
    facts = {"method": "sbm", "seconds": 1.5, "note": f"on {HOST}", "deep": {"host": HOST, "b": None},
             "list": [1, HOST], "replaced_images": {"/data/a.png": "cut"}}  # fmt: skip
    expected = {"method": "sbm", "seconds": 1.5, "deep": {"b": None}, "list": [1], "replaced_images": 1}
    assert public_facts(facts) == expected

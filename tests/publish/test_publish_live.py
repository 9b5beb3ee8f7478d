"""Live tracking: what is in wandb's and TensorBoard's files, of runs that were interrupted or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from publish_helpers import HOST, make_run, own_wandb, store
from test_publish_offline import records

from fractrain.engine.store import RunStore
from fractrain.publish.live import TensorBoardLive, WandbLive, flat, make_listener
from fractrain.publish.public import group_name, run_name
from fractrain.util.errors import ConfigError, MachineError

__all__ = ["own_wandb", "store"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


def read(folder: Path) -> dict[str, Any]:
    """Config, history and summary of an offline run; wandb 0.31 has no reader in Python, only its messages."""
    (file,) = folder.glob("run-*.wandb")
    found: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "name": "", "group": "", "exit": None}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["name"], found["group"] = record.run.display_name, record.run.run_group
            found["config"].update({i.key: json.loads(i.value_json) for i in record.run.config.update})
        elif kind == "config":
            found["config"].update({i.key: json.loads(i.value_json) for i in record.config.update})
        elif kind == "history":
            items = record.history.item
            found["history"].append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "summary":
            items = record.summary.update
            found["summary"].update({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLive:
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = make_listener("wandb", tmp_path / "out", "p")
    assert isinstance(made, WandbLive)
    return made


def settle() -> None:
    import wandb

    wandb.teardown()  # the service writes the file's end


def test_a_run_is_followed_resumed_and_kept_once(store: RunStore, tmp_path: Path, monkeypatch: Any) -> None:
    run_id = make_run(store, epochs=4)
    record = store.get(run_id)
    lines = record.metrics()
    first = live(tmp_path, monkeypatch)
    first.begun(record.config, {"torch": "2.15", "hostname": HOST}, [])
    for line in lines[:2]:
        first.period(line)
    first._run.finish(exit_code=1)  # killed here
    settle()
    again = live(tmp_path, monkeypatch)
    again.begun(record.config, {"torch": "2.15"}, lines[:2])
    for line in lines[2:]:
        again.period(line)
    again.ended(record)
    settle()
    (folder,) = (tmp_path / "out/wandb/p/wandb").glob("offline-run-*")  # the first one is gone: no period twice
    found = read(folder)
    assert [row["epoch"] for row in found["history"]] == [0, 1, 2, 3]
    assert [row["loss"] for row in found["history"]] == [line["loss"] for line in lines]
    assert found["history"][3]["system/peak_rss_gib"] > 0
    assert found["summary"]["test_accuracy"] == 0.75
    assert found["config"]["environment"] == {"torch": "2.15"}
    assert found["config"]["method"] == "static8"
    assert found["name"] == f"{found['group']} s0"
    assert found["exit"] == 0
    assert HOST.encode() not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("host", ["fractrain", "static8", "digits"])
def test_a_host_that_is_called_like_a_word_of_the_config_changes_nothing(
    store: RunStore, tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    record = store.get(make_run(store))
    tracker = live(tmp_path, monkeypatch)
    environment = {"fractrain": "0.1.0", "packages": {"fractrain": "0.1.0", "digits": "1"}}
    tracker.begun(record.config, environment, record.metrics())
    tracker.ended(record)
    settle()
    found = read(next((tmp_path / "out/wandb/p/wandb").glob("offline-run-*")))
    sent = {key: value for key, value in found["config"].items() if key != "_wandb"}
    stored = json.loads(record.config.to_json())
    assert stored.pop("dataset_id") == ""  # of data sets that lie in a folder; others need none
    assert sent == {**stored, "environment": environment}
    assert (found["name"], found["exit"]) == ("static8 resnet38 digits smoke s0", 0)


def test_a_run_that_fails_is_marked(store: RunStore, tmp_path: Path, monkeypatch: Any) -> None:
    record = store.get(make_run(store, status="diverged"))
    tracker = live(tmp_path, monkeypatch)
    tracker.begun(record.config, {}, record.metrics())
    tracker.ended(record)
    settle()
    (folder,) = (tmp_path / "out/wandb/p/wandb").glob("offline-run-*")
    found = read(folder)
    assert (found["summary"]["status"], found["exit"]) == ("diverged", 1)


def test_a_tracker_that_fails_lets_training_go_on(
    store: RunStore, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    record = store.get(make_run(store))
    tracker = live(tmp_path, monkeypatch)
    tracker.begun(record.config, {}, [])

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "wandb")

    run = tracker._run
    monkeypatch.setattr(run, "log", broken)
    for line in record.metrics():
        tracker.period(line)
    tracker.ended(record)
    run.finish()
    assert capsys.readouterr().err.count("training goes on") == 1


def test_names_carry_what_differs() -> None:
    from fractrain.engine.config import RunConfig

    made = {"method": "sbm", "model": "resnet38", "dataset": "digits"}
    plain = RunConfig.create(**made)
    six = RunConfig.create(**made, settings={"bits": 6}, seed=3)
    assert run_name(plain) == "sbm resnet38 digits smoke s0"
    assert run_name(six) == "sbm resnet38 digits smoke bits=6 s3"
    assert group_name(six) == "sbm resnet38 digits smoke bits=6"
    longer = RunConfig.create(**made, recipe={"iterations": 50, "lr": 0.125})
    assert group_name(longer) == "sbm resnet38 digits smoke recipe.lr=0.125 recipe.iterations=50"
    assert group_name(plain.model_copy(update={"method": "gone", "settings": {"bits": 8}})).startswith(
        "gone resnet38 digits smoke bits=8 "
    )


def test_numbers_of_a_line_have_paths() -> None:
    line = {"epoch": 1, "method": {"stage": 2.0, "word": "x"}, "done": True, "none": None}
    assert flat(line) == {"epoch": 1.0, "method/stage": 2.0}


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are wandb, tensorboard"):
        make_listener("mlflow", tmp_path, "p")


def test_tensorboard_holds_every_period_once(store: RunStore, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = store.get(make_run(store, epochs=4))
    lines = record.metrics()
    for known, new in (([], lines[:2]), (lines[:2], lines[2:])):
        board = make_listener("tensorboard", tmp_path, "p")
        board.begun(record.config, {}, known)
        for line in new:
            board.period(line)
        board.ended(record)
    found = EventAccumulator(str(tmp_path / "tensorboard" / record.run_id)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (line["epoch"], pytest.approx(line["loss"])) for line in lines
    ]


def test_without_tensorboard_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match="pip install"):
        TensorBoardLive(tmp_path)


def test_run_track_follows_a_real_run(tmp_path: Path, monkeypatch: Any) -> None:
    from click.testing import CliRunner

    from fractrain.cli import main

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--results", str(tmp_path / "r")]
    words += ["--set", "recipe.iterations=4", "--set", "recipe.eval_every=2", "--set", "recipe.batch_size=8"]
    result = CliRunner().invoke(main, [*words, "--wandb", "--track-dir", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    settle()
    (folder,) = (tmp_path / "wandb/fractrain/wandb").glob("offline-run-*")
    found = read(folder)
    assert [row["iteration"] for row in found["history"]] == [2, 4]
    assert found["summary"]["weights_sha256"] == json.loads(result.stdout)["weights_sha256"]

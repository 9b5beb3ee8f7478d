"""Publishing to wandb offline: what the file really holds, and how often a run is in it.

The offline file is read with a reader of its own (its framing is LevelDB's log: 32 KiB blocks of checked chunks) and
wandb's published protobuf message, so nothing here believes what the tracker says it did.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from publish_helpers import HOST, folders, make_run, offline, own_wandb, rewrite_summary, store

from fractrain.engine.store import RunStore
from fractrain.publish import wandb as wandb_tracker
from fractrain.publish.publish import publish
from fractrain.util.errors import ConfigError, StoreError

__all__ = ["own_wandb", "store"]  # fixtures

# wandb leaves its temporary folders to the garbage collector; nothing of ours is open
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


def records(path: Path) -> Iterator[Any]:
    """Read a wandb transaction log: 7 bytes of header, then chunks (crc32, length, kind, data) within 32 KiB blocks."""
    from wandb.proto import wandb_internal_pb2

    raw = path.read_bytes()
    assert raw[:4] == b":W&B"
    position, whole = 7, b""
    while position < len(raw):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(raw[position + 4 : position + 6], "little"), raw[position + 6]
        chunk = raw[position + 7 : position + 7 + length]
        assert int.from_bytes(raw[position : position + 4], "little") == zlib.crc32(bytes([kind]) + chunk)
        whole = chunk if kind in (1, 2) else whole + chunk  # 1 full, 2 first, 3 middle, 4 last
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


class Offline:
    """What one offline run holds, summed up as wandb would on the server."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("run-*.wandb")
        self.raw = file.read_bytes()
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[str, Any] = {}
        self.metrics: list[Any] = []
        self.exit_code: int | None = None
        self.kinds: set[str] = set()
        for record in records(file):
            kind = record.WhichOneof("record_type")
            self.kinds.add(kind)
            if kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "history":
                self.history.append({".".join([*i.nested_key]) or i.key: json.loads(i.value_json)
                                     for i in record.history.item})  # fmt: skip
            elif kind == "summary":
                self.summary |= {".".join([*i.nested_key]) or i.key: json.loads(i.value_json)
                                 for i in record.summary.update}  # fmt: skip
            elif kind == "artifact":
                self.artifacts[record.artifact.name] = record.artifact
            elif kind == "metric":
                self.metrics.append(record.metric)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
        assert kind == "exit", "the file is not whole"

    def files(self, artifact: str) -> dict[str, bytes]:
        """Contents of an artifact's files, from where `wandb sync` would take them."""
        return {e.path: Path(e.local_path).read_bytes() for e in self.artifacts[artifact].manifest.contents}


# -- what an offline run holds -----------------------------------------------------------------------------------------


def test_offline_file_holds_the_run(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    (result,) = offline(store, tmp_path, entity="lab")
    assert (result.run_id, result.action) == (run_id, "created")
    sent = Offline(Path(result.where))
    assert (sent.run.run_id, sent.run.project, sent.run.entity, sent.run.resume) == (run_id, "bench", "lab", True)
    assert list(sent.run.tags) == ["static8", "resnet38", "digits", "smoke"]
    assert sent.exit_code == 0
    stored = json.loads((store.path(run_id) / "config.json").read_text())
    assert stored.pop("dataset_id") == ""
    assert {k: v for k, v in sent.config.items() if k != "_wandb"} == stored
    keys = ("_step", "epoch", "iteration", "loss", "test_accuracy")
    assert [tuple(row[k] for k in keys) for row in sent.history] == [
        (0, 0, 4, 2.0, 0.0), (1, 1, 8, 1.0, 0.25), (2, 2, 12, 2 / 3, 0.5),
    ]  # fmt: skip
    assert any(m.glob_name == "*" and m.step_metric == "iteration" for m in sent.metrics)


def test_offline_summary_wins_over_the_last_epoch_and_has_costs(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    sent = Offline(Path(offline(store, tmp_path)[0].where))
    assert sent.summary["test_accuracy"] == 0.75  # the history's last row says 0.5
    assert sent.summary["test_accuracy_last"] == 0.5
    assert sent.summary["weights_sha256"] == "ab" * 32
    assert sent.summary["raw_macs@best"] == 2 * 10 * 3000  # epochs 0 and 1
    assert sent.summary["raw_macs@end"] == 3 * 10 * 3000
    assert sent.summary["cp_percent@end"] == pytest.approx(6.25)  # 8/32 * 8/32
    record = store.get(run_id)
    assert record is not None
    assert sent.summary["ledger_sha256"] == record.ledger().digest()


def test_offline_ledger_artifact_is_the_file_itself(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    sent = Offline(Path(offline(store, tmp_path)[0].where))
    assert sent.artifacts[f"ledger-{run_id}"].type == "ledger"
    assert sent.files(f"ledger-{run_id}") == {"ledger.json": (store.path(run_id) / "ledger.json").read_bytes()}
    copy = Path(sent.artifacts[f"ledger-{run_id}"].manifest.contents[0].local_path)
    assert copy.is_relative_to(tmp_path / "out")  # not in the home folder


def test_nothing_of_the_machine_is_sent(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    sent = Offline(Path(offline(store, tmp_path)[0].where))
    assert (sent.run.host, sent.run.HasField("git")) == ("unknown", False)
    assert "environment" not in sent.kinds  # wandb's record of host, user, paths and hardware
    assert (sent.summary["device"], {"folder", "note"} & set(sent.summary)) == ("cpu", set())
    assert all("log" not in row for row in sent.history)
    raw = sent.raw
    for entry in sent.artifacts[f"ledger-{run_id}"].manifest.contents:
        raw = raw.replace(entry.local_path.encode(), b"")  # where `wandb sync` finds the copy: used, not sent
    for word in (HOST, str(tmp_path), str(Path.home()), str(Path.cwd()), sys.executable):
        assert word.encode() not in raw, word
    for name in ("requirements.txt", "wandb-metadata.json", "output.log"):
        assert not list(folders(tmp_path)[0].rglob(name)), name


def test_tables_become_artifacts_with_rows(store: RunStore, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "table2.md").write_text("| a | b |\n")
    (tables / "table2.csv").write_text('method,accuracy\nsbm,"91.2 ± 0.1"\nfractrain,91.5\n', encoding="utf-8")
    (tables / "overview.html").write_text("<p>")
    (tables / "figure-pfq.svg").write_text("<svg/>")
    results = offline(store, tmp_path, tables=[tables])
    assert [(r.run_id, r.action) for r in results] == [
        ("figure-figure-pfq", "created"), ("table-overview", "created"), ("table-table2", "created"),
    ]  # fmt: skip
    sent = Offline(Path(results[2].where))
    assert sent.artifacts["table2"].type == "table"
    files = sent.files("table2")
    assert files["table2.md"] == b"| a | b |\n"
    table = json.loads(files["rows.table.json"])
    assert table["columns"] == ["method", "accuracy"]
    assert table["data"] == [["sbm", "91.2 ± 0.1"], ["fractrain", "91.5"]]
    assert Offline(Path(results[0].where)).artifacts["figure-pfq"].type == "figure"
    assert {r.action for r in offline(store, tmp_path, tables=[tables])} == {"skipped"}
    (tables / "table2.md").write_text("| a | c |\n")
    assert [r.action for r in offline(store, tmp_path, tables=[tables])] == ["skipped", "skipped", "updated"]


def test_a_figure_is_a_picture_of_its_run(store: RunStore, tmp_path: Path) -> None:
    from PIL import Image

    (figures := tmp_path / "figures").mkdir()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(figures / "figure-pfq.png")
    (figures / "figure-pfq.csv").write_text("x,y\n1,2\n")
    (figures / "figure-pfq.svg").write_text("<svg/>")
    result = offline(store, tmp_path, tables=[figures])[0]
    folder = Path(result.where)
    row = Offline(folder).history[0]
    assert [row[f"figure-pfq.{key}"] for key in ("_type", "width", "height")] == ["image-file", 3, 2]
    with Image.open(folder / "files" / row["figure-pfq.path"]) as sent:
        assert sent.getpixel((0, 0)) == (10, 20, 30)
    assert json.loads(Offline(folder).files("figure-pfq")["rows.table.json"])["data"] == [["1", "2"]]


# -- how often ---------------------------------------------------------------------------------------------------------


def test_second_time_is_skipped_and_force_replaces(store: RunStore, tmp_path: Path) -> None:
    make_run(store, seed=0)
    make_run(store, seed=1)
    first = offline(store, tmp_path)
    before = folders(tmp_path)
    assert len(before) == 2
    again = offline(store, tmp_path)
    assert [r.action for r in again] == ["skipped", "skipped"]
    assert [r.where for r in again] == [r.where for r in first]
    assert folders(tmp_path) == before
    forced = offline(store, tmp_path, force=True, run_ids=[first[0].run_id])
    assert [r.action for r in forced] == ["updated"]
    assert len(folders(tmp_path)) == 2  # replaced, not added


def test_changed_run_is_updated_and_waits_only_once(store: RunStore, tmp_path: Path) -> None:
    run_id = make_run(store)
    offline(store, tmp_path)
    rewrite_summary(store, run_id, test_accuracy=0.8)
    (result,) = offline(store, tmp_path)
    assert result.action == "updated"
    (folder,) = folders(tmp_path)
    sent = Offline(folder)
    assert sent.summary["test_accuracy"] == 0.8
    assert [row["_step"] for row in sent.history] == [0, 1, 2]


@pytest.mark.parametrize("cleaned", [False, True])
def test_after_a_sync_no_step_is_written_again(store: RunStore, tmp_path: Path, cleaned: bool) -> None:
    run_id = make_run(store)
    (folder,) = [Path(r.where) for r in offline(store, tmp_path)]
    synced = folder.with_name(folder.name.replace("offline-run-2", "offline-run-1"))  # as if from another century
    folder.rename(synced)
    (synced / f"run-{run_id}.wandb.synced").touch()  # what `wandb sync` leaves
    if cleaned:
        shutil.rmtree(synced)
    for accuracy in (0.8, 0.9):  # the second replaces the first, which was not synced
        rewrite_summary(store, run_id, test_accuracy=accuracy)
        (result,) = offline(store, tmp_path)
        sent = Offline(Path(result.where))
        assert (result.action, sent.history, sent.summary["test_accuracy"]) == ("updated", [], accuracy)
    assert synced.exists() is not cleaned
    assert len(folders(tmp_path)) == (1 if cleaned else 2)


def test_projects_do_not_know_of_each_other(store: RunStore, tmp_path: Path) -> None:
    make_run(store)
    offline(store, tmp_path)
    (other,) = publish(store, "other", mode="offline", dir=tmp_path / "out", progress=lambda line: None)
    assert other.action == "created"
    assert len(folders(tmp_path)) == 1
    assert [r.action for r in offline(store, tmp_path)] == ["skipped"]


def test_only_done_runs(store: RunStore, tmp_path: Path) -> None:
    failed, done = make_run(store, seed=0, status="failed"), make_run(store, seed=1)
    make_run(store, seed=2, status="diverged")
    lines: list[str] = []
    results = publish(store, "bench", mode="offline", dir=tmp_path / "out", progress=lines.append)
    assert [r.run_id for r in results] == [done]
    assert len(folders(tmp_path)) == 1
    assert f"{failed}: not published, its status is failed" in lines
    with pytest.raises(StoreError, match="is failed; only runs that are done"):
        offline(store, tmp_path, run_ids=[failed])
    with pytest.raises(ConfigError, match=f"no run '{done}x' .*did you mean '{done}'"):
        offline(store, tmp_path, run_ids=[f"{done}x"])
    with pytest.raises(ConfigError, match="beginning of 3 runs"):
        offline(store, tmp_path, run_ids=["static8"])
    assert [r.run_id for r in offline(store, tmp_path, run_ids=[done[:-4]])] == [done]


@pytest.mark.parametrize("host", ["static8", "resnet38", "digits", "smoke", "fractrain", "bench"])
def test_a_host_that_is_called_like_a_word_of_the_config_changes_nothing(
    store: RunStore, tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    run_id = make_run(store)
    sent = Offline(Path(offline(store, tmp_path)[0].where))
    stored = json.loads((store.path(run_id) / "config.json").read_text())
    assert stored.pop("dataset_id") == ""
    assert {k: v for k, v in sent.config.items() if k != "_wandb"} == stored
    assert list(sent.run.tags) == ["static8", "resnet38", "digits", "smoke"]


def test_a_damaged_record_fails_alone(store: RunStore, tmp_path: Path) -> None:
    damaged, sound = make_run(store, seed=0), make_run(store, seed=1)
    path = store.path(damaged) / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    by_id = {r.run_id: r for r in offline(store, tmp_path)}
    assert (by_id[damaged].action, by_id[sound].action) == ("failed", "created")
    assert "metrics.jsonl differs" in by_id[damaged].message
    assert len(folders(tmp_path)) == 1


def test_names_that_wandb_does_not_take_are_changed_or_fail_alone(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "my table: 2%?.md").write_text("| a |\n")
    (tables / f"{'long' * 50}.md").write_text("| a |\n")
    made = {r.run_id: r for r in offline(store, tmp_path, tables=[tables])}
    assert {r.action for r in made.values()} == {"created"}
    assert any(re.fullmatch(r"table-my_table_2_-[0-9a-f]{12}", name) for name in made)
    assert all(len(name) <= 128 for name in made)
    before = folders(tmp_path)
    real = wandb_tracker.WandbTracker._fill

    def fill(self: Any, run: Any, payload: Any, first_step: int) -> None:
        real(self, run, payload, first_step)
        if payload.id == bad:
            self._wandb.Artifact("a/b", type="ledger")

    monkeypatch.setattr(wandb_tracker.WandbTracker, "_fill", fill)
    bad, good = make_run(store, seed=0), make_run(store, seed=1)
    by_id = {r.run_id: r for r in offline(store, tmp_path)}
    assert (by_id[bad].action, by_id[good].action) == ("failed", "created")
    assert "Artifact name" in by_id[bad].message
    assert [f for f in folders(tmp_path) if f not in before] == [Path(by_id[good].where)]
    assert offline(store, tmp_path, run_ids=[bad])[0].action == "failed", "it is not remembered as sent"


def test_names_that_are_too_long_are_shortened_and_stay_apart(store: RunStore, tmp_path: Path) -> None:
    for last in "ab":
        make_run(store, dataset=150 * "d" + last)
    sent = [Offline(Path(result.where)).run for result in offline(store, tmp_path)]
    for names, most in (
        ([run.tags[2] for run in sent], 64), ([run.display_name for run in sent], 128),
        ([run.run_group for run in sent], 128),
    ):  # fmt: skip
        assert len(set(names)) == 2
        assert all(len(name) == most for name in names)


def test_tables_whose_names_differ_in_odd_characters_alone_are_all_kept(store: RunStore, tmp_path: Path) -> None:
    (tables := tmp_path / "tables").mkdir()
    for name in ("my table", "my_table", "my?table"):
        (tables / f"{name}.md").write_text(f"| {name} |\n")
    results = offline(store, tmp_path, tables=[tables])
    assert [r.action for r in results] == ["created"] * 3
    sent = [Offline(folder) for folder in folders(tmp_path)]
    kept = sorted(content.decode() for run in sent for name in run.artifacts for content in run.files(name).values())
    assert kept == ["| my table |\n", "| my?table |\n", "| my_table |\n"]


def test_a_picture_with_a_long_or_odd_name_is_sent(store: RunStore, tmp_path: Path) -> None:
    from PIL import Image

    (figures := tmp_path / "figures").mkdir()
    for name in (250 * "x", "a: b?"):
        Image.new("RGB", (3, 2)).save(figures / f"{name}.png")
    results = offline(store, tmp_path, tables=[figures])
    assert [r.action for r in results] == ["created", "created"], [r.message for r in results]
    for folder in folders(tmp_path):
        (path,) = (value for key, value in Offline(folder).history[0].items() if key.endswith(".path"))
        assert (folder / "files" / path).is_file()


def test_the_place_of_a_data_set_stays_on_this_machine(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for folder in ("/home/someone/photos", "/data/photos"):
        make_run(store, dataset=f"folder:{folder}")
    for result in offline(store, tmp_path):
        sent = Offline(Path(result.where))
        assert sent.config["dataset"] == sent.run.tags[2] == "folder:photos"
        assert sent.run.display_name.startswith("static8 resnet38 folder:photos smoke ")
        assert b"/photos" not in sent.raw


def test_a_folder_is_told_by_what_is_in_it(store: RunStore, tmp_path: Path) -> None:
    make_run(store, dataset="folder:/data/someone/photos", dataset_id="folder:photos-0a1b2c3d")
    (result,) = offline(store, tmp_path)
    sent = Offline(Path(result.where))
    assert sent.config["dataset"] == sent.run.tags[2] == "folder:photos-0a1b2c3d"
    assert sent.run.run_id.startswith("static8-resnet38-folder_photos_0a1b2c3d-s0-")
    assert b"someone" not in sent.raw


def test_a_replacement_that_fails_leaves_the_old_one(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(store)
    offline(store, tmp_path)
    (before,) = folders(tmp_path)

    def fill(self: Any, run: Any, payload: Any, first_step: int) -> None:
        raise ValueError("no")

    monkeypatch.setattr(wandb_tracker.WandbTracker, "_fill", fill)
    (failed,) = offline(store, tmp_path, force=True)
    assert (failed.action, folders(tmp_path)) == ("failed", [before])

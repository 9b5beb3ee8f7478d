"""What is shown of a run is what was written: manifests, damaged files, and what mends them without losing work."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from engine_fakes import FakeRegistries, fake_config

from fractrain.engine import record_files
from fractrain.engine.record import read_record
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.util.errors import StoreError
from fractrain.util.signals import RunInterrupted

SUMMARY, LEDGER, METRICS, STATUS = "summary.json", "ledger.json", "metrics.jsonl", "status.json"


class StopAt:
    """A progress that asks to stop at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def start(self, label: str, total: int, done: int = 0) -> None: ...

    def update(self, done: int, loss: float | None = None, label: str | None = None) -> None:
        if done == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def trainer(root: Path, known: FakeRegistries | None = None, **options) -> Trainer:
    return Trainer(fake_config(), Site(root, "cpu"), registries=known or FakeRegistries(), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, bytes]:
    """The files of a finished run."""
    record = trainer(tmp_path_factory.mktemp("finished")).run()
    assert record.verified
    return {p.name: p.read_bytes() for p in record.path.iterdir() if p.name != ".lock"}


def copy(files: dict[str, bytes], root: Path, *without: str) -> Path:
    folder = root / fake_config().run_id
    folder.mkdir(parents=True)
    for name, content in files.items():
        if name not in without:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return copy(finished, tmp_path)


def change_a_digit(path: Path, after: str) -> None:
    """Replace the first digit behind ``after`` by another one."""
    text = path.read_text()
    place = text.index(after) + len(after)
    place += re.search(r"\d", text[place:]).start()
    path.write_text(text[:place] + str((int(text[place]) + 3) % 10) + text[place + 1 :])


def test_a_finished_run_has_a_manifest_of_every_file(finished):
    value = json.loads(finished["manifest.json"])
    names = {"checkpoint.pt", "environment.json", LEDGER, METRICS, STATUS, SUMMARY}
    assert set(value["files"]) == names
    assert names | {"manifest.json", "config.json"} == set(finished)
    assert all(value["files"][name]["bytes"] == len(finished[name]) for name in names)


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    written = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: written.append(Path(target).name) or real(self, target))
    trainer(tmp_path).run()
    assert written[-4:] == [LEDGER, SUMMARY, STATUS, "manifest.json"]


@pytest.mark.parametrize(
    ("name", "after"),
    [(SUMMARY, '"test_accuracy_best": '), (LEDGER, '"samples":[["eval",0,'), (METRICS, '"test_loss": '),
     (STATUS, '"time": "'), ("config.json", '"lr": ')],
)  # fmt: skip
def test_one_changed_digit_is_damage_and_the_file_is_named(folder, name, after):
    change_a_digit(folder / name, after)
    record = read_record(folder)
    assert (record.status, record.summary) == ("damaged", None)
    assert "record damaged" in record.message
    assert name in record.message
    with pytest.raises(StoreError, match=name):
        record.undamaged()


@pytest.mark.parametrize("name", [SUMMARY, LEDGER, METRICS, STATUS, "config.json"])
def test_a_missing_file_is_damage(finished, tmp_path, name):
    record = read_record(copy(finished, tmp_path, name))
    assert record.status == "damaged"
    assert f"{name} is missing" in record.message


def test_another_layout_of_the_same_config_is_no_damage(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert read_record(folder).verified


def test_pruned_checkpoints_are_no_damage_and_changed_ones_are_found(finished, tmp_path):
    assert read_record(copy(finished, tmp_path / "a", "checkpoint.pt")).verified
    folder = copy(finished, tmp_path / "b")
    (folder / "checkpoint.pt").write_bytes(finished["checkpoint.pt"][:-1] + b"x")
    assert [fault.name for fault in record_files.check_manifest(folder)] == ["checkpoint.pt"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"a": 1'])
def test_a_damaged_environment_is_warned_about_and_shown_without(folder, content, caplog):
    (folder / "environment.json").write_bytes(content)
    record = read_record(folder)
    assert record.summary["best_test_epoch"] >= 0
    assert record.environment == {}
    assert "environment.json" in caplog.text


@pytest.mark.parametrize("name", [SUMMARY, LEDGER, METRICS, STATUS, "manifest.json", "config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b'{"a": 1}', b"[" * 5000, b"\xff\xfe\x00", b"1" * 5000, b'{"status": {}}']
)
def test_whatever_a_file_holds_there_is_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    record = read_record(folder)
    assert record.status == "damaged"
    assert len(record.message.splitlines()) == 1
    assert len(record.message) < 600


def advised(record) -> str:
    """The one file that the message says to delete."""
    names = re.findall(r"delete (\S+) and give the run's command again", record.message)
    assert len(names) == 1, record.message
    return names[0]


@pytest.mark.parametrize("name", [SUMMARY, LEDGER, METRICS, STATUS, "manifest.json", "config.json"])
@pytest.mark.parametrize("how", ["changed", "deleted", "deleted, and no manifest"])
def test_the_advice_mends_the_record_without_training(finished, tmp_path, name, how):
    folder = copy(finished, tmp_path)
    if how == "changed":
        (folder / name).write_bytes(b"{}")
    else:
        (folder / name).unlink()
        if "manifest" in how:
            (folder / "manifest.json").unlink(missing_ok=True)
    for _ in range(3):
        record = read_record(folder)
        if record.status != "damaged":
            break
        (folder / advised(record)).unlink(missing_ok=True)
        if advised(record) == "config.json":
            break
    known = FakeRegistries()
    record = trainer(tmp_path, known=known).run()
    assert record.verified
    assert not [call for made in known.made for call in made.calls if call.startswith("step_start")]
    for kept in (SUMMARY, LEDGER, METRICS):
        values = [json.loads(line) for line in (folder / kept).read_text().splitlines()] if kept == METRICS else None
        if kept == SUMMARY:
            mended, before = json.loads((folder / kept).read_bytes()), json.loads(finished[kept])
            assert {k: v for k, v in mended.items() if "bytes" not in k} == {
                k: v for k, v in before.items() if "bytes" not in k
            }
        elif values is not None:
            assert values == [json.loads(line) for line in finished[kept].decode().splitlines()]
        else:
            assert (folder / kept).read_bytes() == finished[kept]


def test_a_run_killed_between_its_status_and_its_manifest_is_finished_by_the_same_command(finished, tmp_path):
    folder = copy(finished, tmp_path, "manifest.json")
    assert read_record(folder).status == "running"
    known = FakeRegistries()
    assert trainer(tmp_path, known=known).run().verified
    assert not any(call.startswith("step_start") for call in known.made[0].calls)


def test_without_checkpoint_a_lost_manifest_is_damage(finished, tmp_path):
    record = read_record(copy(finished, tmp_path, "manifest.json", "checkpoint.pt"))
    assert record.status == "damaged"
    assert "manifest.json is missing" in record.message
    with pytest.raises(StoreError, match="manifest"):
        trainer(tmp_path).run()


def as_before(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files as an earlier release left them: no manifest, a status that does not know of it."""
    status = {k: v for k, v in json.loads(files[STATUS]).items() if k != "sealed"}
    return {**{k: v for k, v in files.items() if k != "manifest.json"}, STATUS: json.dumps(status).encode()}


def test_a_record_of_before_is_shown_as_unverified(finished, tmp_path):
    record = read_record(copy(as_before(finished), tmp_path)).undamaged()
    assert not record.verified


def test_of_a_record_of_before_the_ledger_and_the_epochs_are_checked(finished, tmp_path):
    folder = copy(as_before(finished), tmp_path / "ledger")
    change_a_digit(folder / LEDGER, '"samples":[["eval",0,')
    assert "ledger.json differs" in read_record(folder).message
    folder = copy(as_before(finished), tmp_path / "metrics")
    lines = finished[METRICS].splitlines(keepends=True)
    (folder / METRICS).write_bytes(b"".join(lines[:-1]))
    assert "metrics.jsonl" in read_record(folder).message


@pytest.mark.parametrize("name", ["environment.json", STATUS])
@pytest.mark.parametrize("content", [b"", b"{", b'{"status": 3}', b"[" * 5000])
def test_an_interrupted_run_goes_on_where_a_file_that_can_be_done_without_is_damaged(
    finished, tmp_path, name, content, caplog
):
    with pytest.raises(RunInterrupted):
        trainer(tmp_path, progress=StopAt(5)).run()
    folder = tmp_path / fake_config().run_id
    assert read_record(folder).status == "interrupted"
    (folder / name).write_bytes(content)
    assert read_record(folder).status in ("running", "interrupted")
    known = FakeRegistries()
    record = trainer(tmp_path, known=known).run()
    assert "step_start 4" not in known.made[0].calls
    assert record.summary["weights_sha256"] == json.loads(finished[SUMMARY])["weights_sha256"]
    json.loads((folder / name).read_bytes())


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b'{"epoch": 0, "test_accuracy": 99.0}\n', None])
def test_metrics_are_written_anew_from_the_checkpoint(finished, tmp_path, content):
    with pytest.raises(RunInterrupted):
        trainer(tmp_path, progress=StopAt(9)).run()
    path = tmp_path / fake_config().run_id / METRICS
    assert path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    lines = trainer(tmp_path).run().metrics()
    expected = [json.loads(line) for line in finished[METRICS].decode().splitlines()]
    assert [(line["epoch"], line["test_loss"]) for line in lines] == [(e["epoch"], e["test_loss"]) for e in expected]


def test_a_folder_without_config_is_named(finished, tmp_path):
    copy(finished, tmp_path, "config.json")
    (record,) = RunStore(tmp_path).records()
    assert record.status == "damaged"
    assert "config.json is missing" in record.message


def test_random_changes_never_show_another_number(finished, tmp_path):
    """Bytes, digits and lengths of every file: the numbers stay those of before, or the record is damaged."""
    chance = random.Random(17)
    folder = copy(finished, tmp_path)
    summary = json.loads(finished[SUMMARY])
    names = sorted(set(finished) - {"checkpoint.pt"})
    for _ in range(120):
        name = chance.choice(names)
        content = bytearray(finished[name])
        place = chance.randrange(len(content))
        match chance.randrange(3):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                del content[place:]
            case _:
                content[place : place + 1] = str(chance.randrange(10)).encode()
        (folder / name).write_bytes(bytes(content))
        record = read_record(folder)
        assert record.status in ("done", "damaged")
        if record.status == "done":
            assert record.summary == summary
        (folder / name).write_bytes(finished[name])


def test_schemas_keep_what_they_do_not_know(tmp_path):
    (tmp_path / SUMMARY).write_text('{"best_test_epoch": 0, "new": {"a": [1]}}')
    assert record_files.read_summary(tmp_path) == {"best_test_epoch": 0, "new": {"a": [1]}}

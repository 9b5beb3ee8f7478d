"""Places that results go to: tried before the work begins, and said in one line where they vanish while it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fractrain.engine import checkpoint
from fractrain.engine.store import RunWriter
from fractrain.util.files import without_folders

RUN = ("run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu",
       "--set", "recipe.iterations=2", "--set", "recipe.eval_every=2", "--set", "recipe.lr=0.1")  # fmt: skip


@pytest.mark.parametrize("verb", [("reproduce", "TABLE", "--device", "cpu"), ("report",), ("bench", "--device", "cpu"),
                                  ("bench", "--peaks")])  # fmt: skip
def test_out_is_tried_before_anything_else(
    cli: Any, one_line_error: Any, tiny_table: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("in the way")
    args = [tiny_table if word == "TABLE" else word for word in verb]
    result = cli(*args, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "a file is in the way of a folder" in one_line_error(result)
    assert not (tmp_path / "runs").exists(), "nothing was run"


def test_a_folder_that_was_tried_holds_nothing_more(tmp_path: Path) -> None:
    from fractrain.util.files import try_folder

    try_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_store_deleted_in_mid_run_ends_with_1_and_names_the_first_error(
    cli: Any, one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save

    def save(path: Path, *args: Any) -> None:
        shutil.rmtree(tmp_path / "runs")
        real(path, *args)

    monkeypatch.setattr(checkpoint, "save", save)
    result = cli(*RUN)
    assert result.exit_code == 1
    line = one_line_error(result)
    assert "cannot write" in line
    assert "checkpoint.pt: its folder has vanished" in line
    monkeypatch.undo()


def test_a_store_deleted_at_the_end_ends_with_1(
    cli: Any, one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunWriter.finish

    def finish(writer: RunWriter, *args: Any) -> None:
        real(writer, *args)
        shutil.rmtree(tmp_path / "runs")

    monkeypatch.setattr(RunWriter, "finish", finish)
    result = cli(*RUN)
    assert result.exit_code == 1
    assert "has vanished" in one_line_error(result)


def test_the_status_of_a_failed_run_holds_no_absolute_path(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, run_id: str) -> None:
        raise RuntimeError(f"cannot read '{path}' or {Path.home()}/my data/x.bin, see https://example.org/a/b")

    monkeypatch.setattr(checkpoint, "load", load)
    assert cli(*RUN).exit_code != 0
    (status,) = (tmp_path / "runs").glob("*/status.json")
    message = json.loads(status.read_text())["message"]
    assert str(tmp_path) not in message
    assert message.endswith("checkpoint.pt' or my data/x.bin, see https://example.org/a/b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot write /data/x/runs/a/b.json: full", "cannot write b.json: full"),
        (r"C:\Users\me\runs\a.json is damaged", "a.json is damaged"),
        ("relative/path/a.json and 3/4 stay", "relative/path/a.json and 3/4 stay"),
        ("[Errno 2] No such file: '/a/b c/d'", "[Errno 2] No such file: 'b c/d'"),
    ],
)
def test_folders_are_taken_out_of_messages(text: str, expected: str) -> None:
    assert without_folders(text) == expected

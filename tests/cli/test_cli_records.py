"""Damaged records on the command line: every verb names the file, and what is sound goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fractrain.engine.store import RunStore

TWO_ROWS = """
[[rows]]
key = "static8"
label = "Static"
method = "static8"
precision = "8 bits"
"""


@pytest.fixture
def done(cli: Any, tiny_table: Path, tmp_path: Path) -> dict[str, Path]:
    """Folders of two finished runs of a table, by method."""
    tiny_table.write_text(tiny_table.read_text(encoding="utf-8") + TWO_ROWS, encoding="utf-8")
    result = cli("reproduce", tiny_table, "--device", "cpu", "--out", tmp_path / "out", "--jobs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    return {record.config.method: record.path for record in RunStore(tmp_path / "runs").records()}


def raise_accuracy(path: Path) -> None:
    """Change one digit of the best test accuracy."""
    text = path.read_text()
    path.write_text(re.sub(r'("test_accuracy_best": )(\d)', lambda m: m[1] + str((int(m[2]) + 1) % 10), text))


def test_a_changed_digit_is_shown_by_every_verb(
    cli: Any, one_line_error: Any, done: dict[str, Path], tiny_table: Path, tmp_path: Path
) -> None:
    sound = cli("table", tiny_table).stdout
    assert "record damaged" not in sound
    assert cli("verify-runs").stdout.strip().endswith("2 verified")
    raise_accuracy(done["fp32"] / "summary.json")

    table = cli("table", tiny_table)
    assert table.exit_code == 0
    lines = [line for line in table.stdout.splitlines() if "FP32" in line and line.startswith("|")]
    assert any("record damaged" in line for line in lines)
    static = [line for line in sound.splitlines() if "Static" in line and line.startswith("|")]
    assert static[0].split() in [line.split() for line in table.stdout.splitlines()], "the other row is as it was"
    assert f"{done['fp32'].name}: record damaged: summary.json differs from its SHA-256" in table.stdout

    check = cli("verify-runs", "--json")
    assert check.exit_code == 1
    states = {one["run_id"]: (one["state"], one["message"]) for one in json.loads(check.stdout)}
    assert states[done["static8"].name][0] == "verified"
    assert states[done["fp32"].name][0] == "damaged"
    assert "summary.json" in states[done["fp32"].name][1]

    run = ("run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu")
    short = ("--set", "recipe.iterations=4", "--set", "recipe.eval_every=4", "--set", "recipe.lr=0.1")
    for args in (("diff", "fp32", "static8"), (*run, *short)):
        result = cli(*args)
        assert result.exit_code == 2, (args, result.stdout[-300:])
        line = one_line_error(result)
        assert "record damaged: summary.json" in line
        assert "delete manifest.json and give the run's command again" in line

    again = cli("reproduce", tiny_table, "--device", "cpu", "--out", tmp_path / "out", "--json")
    assert again.exit_code == 1
    assert [outcome["status"] for outcome in json.loads(again.stdout)["outcomes"]] == ["failed"]

    (done["fp32"] / "manifest.json").unlink()  # the advice
    mended = cli(*run, *short, "--json")
    assert mended.exit_code == 0, mended.stderr
    assert cli("table", tiny_table).stdout == sound


def test_verify_runs_checks_checkpoints_and_takes_beginnings(cli: Any, done: dict[str, Path]) -> None:
    path = done["static8"] / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = cli("verify-runs")
    assert result.exit_code == 1
    assert "checkpoint.pt differs" in result.stdout
    assert cli("verify-runs", "fp32").exit_code == 0
    assert cli("verify-runs", "no-such-run").exit_code == 2
    result = cli("verify-runs", "--results", done["fp32"].parent / "none")
    assert (result.exit_code, result.stdout[:6]) == (0, "0 runs")

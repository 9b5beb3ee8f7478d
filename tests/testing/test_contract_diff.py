"""``fractrain diff``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fractrain.commands.inspect import differences
from fractrain.engine.record_files import write_manifest

RUN = ("run", "--model", "resnet38", "--dataset", "digits", "--device", "cpu", "--json")
SHORT = ("--set", "recipe.iterations=2", "--set", "recipe.eval_every=2")


def test_differences_of_nested_values():
    one = {"a": {"x": 1, "y": [1, 2]}, "same": {"z": 0}, "gone": None, "flag": True}
    other = {"a": {"x": 3, "y": [1, 3]}, "same": {"z": 0}, "new": 5, "flag": False}
    assert differences(one, other) == [
        {"key": "a.x", "a": 1, "b": 3, "change": 2},
        {"key": "a.y", "a": [1, 2], "b": [1, 3]},
        {"key": "flag", "a": True, "b": False},
        {"key": "gone", "a": None, "b": None, "only": "a"},
        {"key": "new", "a": None, "b": 5, "only": "b"},
    ]
    assert differences(one, one) == []


@pytest.fixture
def runs(cli) -> dict[str, str]:
    def made(*args: str) -> str:
        result = cli(*RUN, *SHORT, *args)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["run_id"]

    return {
        "float": made("--method", "fp32"),
        "eight": made("--method", "static8"),
        "six": made("--method", "static8", "--set", "bits=6"),
    }


def test_diff_of_real_runs(cli, runs, tmp_path: Path):
    result = cli("diff", runs["eight"], runs["six"], "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["a"], found["b"]) == (runs["eight"], runs["six"])
    assert found["config"] == [{"key": "settings.bits", "a": 8, "b": 6, "change": -2}]
    assert found["data"] == []
    assert found["environment"] == []
    assert found["same_weights"] is False
    keys = {entry["key"] for entry in found["result"]}
    assert {"weights_sha256", "ledger_sha256"} <= keys
    assert "run_id" not in keys

    # A prefix is enough where it is unique: only one run begins with fp32.
    text = cli("diff", "fp32", runs["six"])
    assert text.exit_code == 0, text.stderr
    assert f"a = {runs['float']}" in text.stdout
    assert "settings.bits  - -> 6" in text.stdout
    assert "data: the same" in text.stdout
    assert "the trained weights differ" in text.stdout
    assert "the trained weights are bit-identical" in cli("diff", "fp32", "fp32").stdout

    environment = tmp_path / "runs" / runs["six"] / "environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"python": "2.7"}))
    write_manifest(environment.parent)
    status = tmp_path / "runs" / runs["eight"] / "status.json"
    status.write_text(json.dumps({"status": "failed", "message": "stopped"}))
    (status.parent / "manifest.json").unlink()
    changed = json.loads(cli("diff", runs["eight"], runs["six"], "--json").stdout)
    assert [entry["key"] for entry in changed["environment"]] == ["python"]
    assert changed["same_weights"] is None
    assert {"key": "status", "a": "failed", "b": "done"} in changed["result"]

    for args, message in (
        (("static8", "fp32"), "beginning of 2 runs"),
        (("nothing", "fp32"), "no run 'nothing'"),
        (("", "fp32"), "no run ''"),
        ((runs["six"].replace("static8", "statik8"), "fp32"), "did you mean"),
    ):
        bad = cli("diff", *args)
        assert bad.exit_code == 2
        assert message in bad.stderr
        assert bad.stdout == ""


def test_diff_without_a_store(cli):
    bad = cli("diff", "a", "b")
    assert bad.exit_code == 2
    assert "it holds 0" in bad.stderr

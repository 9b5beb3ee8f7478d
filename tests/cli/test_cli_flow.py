"""Whole commands, really run: exit codes, stdout and stderr, caching, interruption, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from fractrain.cli import main

RUN = ("run", "--method", "fp32", "--model", "resnet38", "--dataset", "digits", "--device", "cpu")
SHORT = ("--set", "recipe.iterations=2", "--set", "recipe.eval_every=2")
PROGRAM = (sys.executable, "-m", "fractrain.cli")


def test_run_json_is_one_document_and_a_second_call_is_cached(cli: Any, tmp_path: Path) -> None:
    first = cli(*RUN, *SHORT, "--json")
    assert first.exit_code == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["status"] == "done"
    assert len(summary["weights_sha256"]) == len(summary["ledger_sha256"]) == 64
    assert summary["iterations"] == 2
    assert (tmp_path / "runs" / summary["run_id"]).is_dir()
    assert "2/2 steps" in first.stderr
    second = cli(*RUN, *SHORT, "--json")
    assert json.loads(second.stdout) == summary
    assert "steps" not in second.stderr


def test_force_runs_a_finished_run_again(cli: Any, tmp_path: Path) -> None:
    first = json.loads(cli(*RUN, *SHORT, "--json").stdout)
    again = cli(*RUN, *SHORT, "--json", "--force")
    assert again.exit_code == 0, again.stderr
    assert "2/2 steps" in again.stderr
    assert json.loads(again.stdout)["weights_sha256"] == first["weights_sha256"]


def test_run_text_names_the_folder_and_the_protocol(cli: Any) -> None:
    result = cli(*RUN, *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "paper protocol" in result.stdout
    assert "folder: " in result.stdout


def test_reproduce_plans_runs_prints_and_caches(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    dry = cli("reproduce", tiny_table, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "1 runs: 1 to run" in dry.stdout
    assert not (tmp_path / "runs").exists()

    first = cli("reproduce", tiny_table, "--device", "cpu")
    assert first.exit_code == 0, first.stderr
    assert first.stdout.startswith("# Tiny [profile smoke")
    assert "1 runs: 1 to run" in first.stderr
    files = sorted(path.name for path in (tmp_path / "results" / "tables").iterdir())
    assert files == [f"tiny-smoke.{ending}" for ending in ("csv", "html", "json", "md", "tex")]
    table = (tmp_path / "results" / "tables" / "tiny-smoke.md").read_text(encoding="utf-8")
    assert first.stdout.startswith(table)
    last = first.stdout.removeprefix(table).split()
    assert [word for word in last if word.endswith(":")][:3] == ["Shown:", "shown:", "Next:"]

    second = cli("reproduce", tiny_table, "--json")
    document = json.loads(second.stdout)
    assert document["outcomes"] == []
    assert "1 runs: 1 cached" in second.stderr
    assert cli("table", tiny_table, "--format", "md").stdout == table
    assert [sentence.split(":")[0] for sentence in document["closing"]] == ["Shown", "Not shown", "Next"]
    assert json.loads(cli("table", tiny_table, "--format", "json").stdout) == document["table"]
    assert json.loads(cli("plan", tiny_table, "--json").stdout)["counts"] == {"cached": 1}


def test_several_tables_are_run_as_one(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    twin = tiny_table.with_name("twin.toml")
    twin.write_text(tiny_table.read_text(encoding="utf-8").replace('name = "tiny"', 'name = "twin"'), encoding="utf-8")
    plan = cli("reproduce", tiny_table, twin, tiny_table, "--dry-run", "--json")
    assert json.loads(plan.stdout)["counts"] == {"to run": 1}  # what they share is one run

    result = cli("reproduce", tiny_table, twin, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    documents = json.loads(result.stdout)["tables"]
    assert [document["table"]["name"] for document in documents] == ["tiny", "twin"]
    assert [[outcome["status"] for outcome in document["outcomes"]] for document in documents] == [["done"], ["done"]]
    written = {path.stem for path in (tmp_path / "results" / "tables").iterdir()}
    assert written == {"tiny-smoke", "twin-smoke"}


def test_all_names_every_table_and_figure(cli: Any) -> None:
    """The pairs of each table are in the plan of all."""
    every = {run["run_id"] for run in json.loads(cli("reproduce", "all", "--dry-run", "--json").stdout)["runs"]}
    for name in ("overview", "table2", "table4", "figure-pfq"):
        own = {run["run_id"] for run in json.loads(cli("plan", name, "--no-times", "--json").stdout)["runs"]}
        assert own <= every


def test_reproduce_exits_1_and_still_prints_when_a_run_fails(cli: Any, diverging_table: Path) -> None:
    result = cli("reproduce", diverging_table, "--device", "cpu", "--json")
    assert result.exit_code == 1, result.stderr
    outcome = json.loads(result.stdout)["outcomes"][0]
    assert outcome["status"] == "diverged"
    assert outcome["message"] in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_and_data_status_are_one_json_document_each(cli: Any) -> None:
    doctor = cli("doctor", "--json")
    assert json.loads(doctor.stdout)["ok"] is True
    assert doctor.exit_code == 0
    states = {one["name"]: one["ok"] for one in json.loads(cli("data", "status", "--json").stdout)}
    assert states["digits"] is True
    assert states["cifar10"] is False
    assert json.loads(cli("data", "verify", "digits", "--json").stdout)[0]["ok"] is True


def test_what_libraries_print_goes_to_stderr(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fractrain.data import registry

    real = registry.status

    def noisy(*args: Any) -> Any:
        print("a library talks")
        return real(*args)

    monkeypatch.setattr(registry, "status", noisy)
    result = cli("data", "status", "digits", "--json")
    assert json.loads(result.stdout)
    assert "a library talks" in result.stderr


def test_publish_with_nothing_to_publish(cli: Any) -> None:
    pytest.importorskip("wandb")
    result = cli("publish", "--mode", "offline")
    assert result.exit_code == 0, result.stderr
    assert "nothing to publish" in result.stdout


def test_keyboard_interrupt_is_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.commands, "stop", click.Command("stop", callback=stop))
    result = cli("stop")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_writes_a_checkpoint_and_exits_130(tmp_path: Path) -> None:
    args = (*PROGRAM, *RUN, "--set", "recipe.iterations=100000", "--set", "recipe.eval_every=100000")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while "100000 steps" not in (line := process.stderr.readline()):
            assert line, "ended before it began to train"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert "goes on with it" in rest
    assert "Traceback" not in rest
    assert list((tmp_path / "runs").glob("*/checkpoint.pt"))


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's pipe")
def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*PROGRAM, "list", "models"], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1

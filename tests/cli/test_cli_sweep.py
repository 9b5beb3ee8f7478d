"""``fractrain sweep``, with runs that are there and one that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fractrain.commands.sweep import best_points

WHAT = ("--model", "resnet20", "--dataset", "digits", "--device", "cpu", "--set", "recipe.iterations=1")
ONE = ("--set", "recipe.eval_every=1", "--set", "recipe.batch_size=8")
GRID = ("sweep", "--method", "sbm", *WHAT, *ONE, "--grid", "bits=6,4")


def test_a_grid_is_run_once_with_the_ids_of_run(cli: Any, tmp_path: Path) -> None:
    dry = json.loads(cli(*GRID, "--dry-run", "--json").stdout)
    assert not (tmp_path / "runs").exists()
    made = json.loads(cli("run", "--method", "sbm", *WHAT, *ONE, "--set", "bits=6", "--json").stdout)
    assert [point["set"] for point in dry["points"]] == [{"bits": 6}, {"bits": 4}]
    assert dry["points"][0]["run_ids"] == [made["run_id"]]

    first = cli(*GRID, "--json")
    assert first.exit_code == 0, first.stderr
    assert "2 points, 2 runs" in first.stderr
    document = json.loads(first.stdout)
    assert [outcome["run_id"] for outcome in document["outcomes"]] == document["points"][1]["run_ids"]  # one was
    found = document["points"][0]["quantities"]
    assert found["accuracy_val"]["mean"] == pytest.approx(made["val_accuracy_best"])
    assert found["cost_end"]["mean"] == pytest.approx(made["cost"]["cost_percent@end"])
    values = [point["quantities"]["accuracy_val"]["mean"] for point in document["points"]]
    assert [point["best"] for point in document["points"]] == [value == max(values) for value in values]

    again = cli(*GRID, "--optimize", "cost_end")
    assert again.exit_code == 0, again.stderr
    assert "steps" not in again.stderr  # nothing is trained
    lines = again.stdout.splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["sbm", "6", lines[2].split()[2]], ["*", "sbm", "4"]]
    assert "best by cost_end (least); means over 1 seed" in lines[-1]


def test_a_search_takes_runs_that_are_there(cli: Any) -> None:
    pytest.importorskip("optuna", reason="extra sweep is not installed")
    search = (*GRID[:-2], "--grid", "bits=4", "--trials", "2", "--json")
    done = cli(*search)
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["points"]) == len(document["outcomes"]) == 1  # proposed twice, run once
    assert json.loads(cli(*search).stdout)["outcomes"] == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--grid", "bit=4"), "did you mean 'bits'"),
        (("--grid", "bits=400"), "bits"),
        (("--grid", "dfq:target_cp=4"), "add --method"),
        (("--range", "bits=4..6"), "--trials N"),
        (("--optimize", "acc"), "--optimize acc"),
        (("--trials", "3", "--dry-run"), "depends on its results"),
        (("--executor-set", "core=2"), "keys are cores, gpus, memory_gb, retries"),
        (("--executor-set", "cores=1000"), "more than this machine has for runs"),
    ],
)
def test_wrong_sweeps_end_before_anything_is_run(
    cli: Any, tmp_path: Path, one_line_error: Any, more: tuple[str, ...], words: str
) -> None:
    done = cli("sweep", "--method", "sbm", *WHAT, *more)
    assert done.exit_code == 2
    assert words in one_line_error(done)
    assert not (tmp_path / "runs").exists()


def test_the_best_points_are_those_that_none_beats() -> None:
    values = [[90.0, 5.0], [80.0, 2.0], [79.0, 3.0], None, [90.0, 5.0]]
    assert best_points(values, [1, -1]) == [0, 1, 4]
    assert best_points([[1.0], [3.0], [2.0]], [-1]) == [0]
    assert best_points([None], [1]) == []

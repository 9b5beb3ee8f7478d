"""``fractrain plan``: the times it tells come from real steps, fit their own arithmetic, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_plan_tells_iterations_time_and_disk_and_stores_nothing(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = cli("plan", tiny_table, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)["runs"][0]
    found = run["estimate"]
    assert found["iterations"] == 4
    assert found["evaluations"] == 1
    assert found["seconds"] == pytest.approx(4 * found["step_s"] + found["evaluation_s"])
    assert found["step_s"] > 0
    # ResNet-38 on 10 classes: weights twice (checkpoint and final), momentum and BatchNorm's statistics once more.
    assert 3 * 4 * 564_122 <= found["disk_bytes"] <= 3.1 * 4 * 564_122
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_for_people_ends_with_the_sum(cli: Any, tiny_table: Path) -> None:
    result = cli("plan", tiny_table, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    last = result.stdout.rstrip().splitlines()[-1]
    assert last.startswith("  in all: 1 runs, 4 iterations, 0.0 CPU-hours, ")
    assert "in all" not in cli("plan", tiny_table, "--no-times").stdout


def test_a_trial_with_fewer_samples_is_scaled_up_and_said(cli: Any, tiny_table: Path) -> None:
    text = tiny_table.read_text(encoding="utf-8").replace("eval_every = 4", "eval_every = 4, batch_size = 1000")
    tiny_table.write_text(text, encoding="utf-8")
    result = cli("plan", tiny_table, "--device", "cpu")
    assert "tried with 512 of 1000 samples a step and scaled up" in result.stdout, result.stdout

"""The committed sweep of wandb: its command as wandb's own agent makes it, run once, offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from publish_helpers import own_wandb
from test_publish_live import read

from fractrain.engine.config import RunConfig

__all__ = ["own_wandb"]  # a fixture

HANG_S = 600
SWEEP = Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml"
SHORT = ("recipe.iterations=1", "recipe.eval_every=1", "recipe.batch_size=8")


def agents_command(values: dict[str, object]) -> list[str]:
    """What wandb's agent starts for these values."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    found = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    found |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    parts = create_sweep_command(sweep["command"])
    return [word for part in parts for word in (found[part[2:-1]] if part.startswith("${") else [part])]


def test_what_the_sweep_varies_are_settings_of_the_method_it_runs() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    command = agents_command({"target_cp": 2.0, "recipe.lr": 0.05})
    assert command[:3] == ["/usr/bin/env", "fractrain", "run"]
    assert command[-2:] == ["target_cp=2.0", "recipe.lr=0.05"]
    assert set(sweep["parameters"]) == {"target_cp", "recipe.lr"}
    method = command[command.index("--method") + 1]
    for cp in sweep["parameters"]["target_cp"]["values"]:
        config = RunConfig.create(method=method, model="resnet38", dataset="digits", settings={"target_cp": cp})
        assert config.settings["target_cp"] == cp


def test_an_agents_command_trains_and_is_sent_again_where_the_run_is_there(tmp_path: Path) -> None:
    values = {"target_cp": 2.0, "recipe.lr": 0.05}
    command = [word if word != "resnet38" else "resnet20" for word in agents_command(values)[2:]]
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **{key: {"value": v} for key, v in values.items()}}))
    results = []
    for run_id in ("point0", "point1"):  # the same point twice
        environment = {
            **os.environ, "WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep7", "WANDB_RUN_ID": run_id,
            "WANDB_SWEEP_PARAM_PATH": str(parameters), "WANDB_PROJECT": "fractrain",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "fractrain", *command, *SHORT, "--device", "cpu", "--json"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
        assert ("1/1 steps" in done.stderr) == (run_id == "point0")
    assert results[0] == results[1]
    ours = RunConfig.create(
        method="dfq", model="resnet20", dataset="digits", settings={"target_cp": 2.0},
        recipe={"lr": 0.05, "iterations": 1, "eval_every": 1, "batch_size": 8},
    )  # fmt: skip
    assert results[0]["run_id"] == ours.run_id
    folders = sorted((tmp_path / "results/wandb/fractrain/wandb").glob("offline-run-*"))
    assert [re.sub(".*-", "", folder.name) for folder in folders] == ["point0", "point1"]  # wandb's ids, in a sweep
    for folder in folders:
        sent = read(folder)
        assert sent["config"]["target_cp"] == 2.0
        assert [row["val_accuracy"] for row in sent["history"]] == [pytest.approx(results[0]["val_accuracy_best"])]
        assert sent["summary"]["weights_sha256"] == results[0]["weights_sha256"]
        assert sent["exit"] == 0

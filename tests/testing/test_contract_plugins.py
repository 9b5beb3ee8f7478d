"""Methods that are not of this package: in an installed package, and in a file given by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fractrain.commands.new import METHOD, class_name

STEPS = ("--set", "recipe.iterations=2", "--set", "recipe.eval_every=2")
TABLE = """
name = "mine"
version = 1
title = "Mine"
caption = "Two steps each."
source = "a test"
published_table = "none"

[profiles.smoke]
seeds = 1
datasets = { cifar10 = "digits" }
recipe = { iterations = 2, eval_every = 2 }

[[pairs]]
model = "resnet38"
dataset = "cifar10"
model_label = "ResNet-38"
dataset_label = "CIFAR-10"

[[rows]]
key = "packaged"
label = "From a package"
method = "packaged"
precision = "8"

[[rows]]
key = "loose"
label = "From a file"
method = "loose"
precision = "8"
"""


def source(name: str) -> str:
    return METHOD.format(name=name, kind=class_name(name))


def install(site: Path, package: str, points: dict[str, str], text: str) -> None:
    """What pip leaves behind: the package, and its dist-info with the entry points."""
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text(text, encoding="utf-8")
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[fractrain.methods]\n{lines}", encoding="utf-8")
    (info / "RECORD").write_text("", encoding="utf-8")


@pytest.fixture
def program(tmp_path: Path):
    """Run the command line in a process that sees the packages in tmp_path/site."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FRACTRAIN_")}
        path = [str(tmp_path / "site"), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
        environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fractrain.cli", *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    return run


def test_good_ones_are_found_run_and_tabled_and_bad_ones_disturb_none(program, tmp_path: Path):
    site = tmp_path / "site"
    install(site, "other_package", {"packaged": "other_package:Packaged"}, source("packaged"))
    points = {"sbm": "bad_package:Sbm", "crash": "bad_package.crash:Crash", "gone": "bad_package:Gone"}
    install(site, "bad_package", points, "class Sbm:\n    pass\n")
    (site / "bad_package" / "crash.py").write_text("x = 1\nimport nothing_here\n", encoding="utf-8")
    (tmp_path / "base.py").write_text("class Base:\n    name = 'base'\n", encoding="utf-8")
    (tmp_path / "loose.py").write_text(source("loose"), encoding="utf-8")
    plugins = ("--plugin", "loose.py", "--plugin", "base.py")

    listed = program("list", "methods", *plugins, "--json")
    assert listed.returncode == 0, listed.stderr
    found = {m["name"]: m for m in json.loads(listed.stdout)}
    for name in ("packaged", "loose"):
        assert [s["name"] for s in found[name]["settings"]] == ["bits", "grad_bits"]
    assert not any("problem" in found[name] for name in ("packaged", "loose", "sbm", "fractrain"))
    assert "crash.py:2" in found["crash"]["problem"]
    assert "ModuleNotFoundError" in found["crash"]["problem"]
    assert "bad_package:Gone" in found["gone"]["problem"]
    assert "base.py" in found["base"]["problem"]
    assert "Base at line 1 (not a Method)" in found["base"]["problem"]
    (clash,) = [line for line in listed.stderr.splitlines() if "'sbm'" in line]
    assert "bad_package:Sbm" in clash
    assert "sbm.py" in clash

    run = ("run", "--method", "packaged", "--model", "resnet38", "--dataset", "digits")
    done = program(*run, *STEPS, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"

    (tmp_path / "mine.toml").write_text(TABLE, encoding="utf-8")
    table = program("reproduce", "mine.toml", *plugins, "--device", "cpu", "--json")
    assert table.returncode == 0, table.stderr
    outcomes = json.loads(table.stdout)["outcomes"]
    assert [(o["run_id"].split("-")[0], o["status"]) for o in outcomes] == [("loose", "done")]
    assert json.loads(done.stdout)["run_id"] in table.stdout  # the same run, not trained twice
    assert "From a package" in table.stdout
    assert "From a file" in table.stdout

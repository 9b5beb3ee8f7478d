"""make and reproduce.sh: the same targets, set-up that is done once, one clear line for what cannot work.

A stand-in for Python makes the environment, so that nothing is installed; the real set-up is the first thing that
continuous integration runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix" or shutil.which("bash") is None, reason="needs bash")

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Answers what reproduce.sh asks of an interpreter, notes every other call, and as `-m venv` copies itself.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  --version) echo "Python 3.12.0" ;;
  -c*version_info*) exit {version_code} ;;
  -c*ensurepip*) exit {venv_code} ;;
  "-m venv --clear .venv")
    echo "venv" >>calls
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    for tool in fractrain ruff mypy; do cp "$0" ".venv/bin/$tool"; done ;;
  *) echo "$(basename "$0") $*" >>calls; exit {pip_code} ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the files that set-up needs, in a folder with a space in its name."""
    folder = tmp_path / "a project"
    (folder / "benchmarks" / "tables").mkdir(parents=True)
    for name in ("reproduce.sh", "Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "benchmarks" / "tables" / "table2.toml").write_text("", encoding="utf-8")
    fake_python(folder)
    return folder


def fake_python(folder: Path, version_code: int = 0, venv_code: int = 0, pip_code: int = 0) -> None:
    path = folder / "fakepython"
    path.write_text(FAKE_PYTHON.format(version_code=version_code, venv_code=venv_code, pip_code=pip_code))
    path.chmod(0o755)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(folder / "fakepython")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    found = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def test_setup_installs_the_lock_with_hashes_then_the_project_and_only_once(project: Path) -> None:
    done = run(project, "./reproduce.sh", "setup")
    assert done.returncode == 0, done.stderr
    venv, lock, itself = calls(project)
    assert venv == "venv"
    assert "pip install" in lock
    assert "--require-hashes -r requirements.lock" in lock
    assert "--no-deps --no-build-isolation -e ." in itself
    assert done.stderr.startswith("==> Preparing .venv/")
    again = run(project, "./reproduce.sh", "setup")
    assert again.returncode == 0
    assert calls(project) == []


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_setup_is_redone_when_what_it_depends_on_changes(project: Path, name: str) -> None:
    run(project, "./reproduce.sh", "setup")
    calls(project)
    (project / name).touch()
    run(project, "./reproduce.sh", "setup")
    assert calls(project) == [], "the content counts, not the date"
    with (project / name).open("a") as file:
        file.write("# changed\n")
    run(project, "./reproduce.sh", "setup")
    redone = calls(project)
    assert len(redone) == 2, "pip installs the difference, the environment stays"
    assert all("pip install" in call for call in redone)


def test_setup_starts_anew_in_a_folder_that_was_moved(project: Path) -> None:
    run(project, "./reproduce.sh", "setup")
    calls(project)
    moved = project.rename(project.with_name("moved"))
    assert run(moved, "./reproduce.sh", "setup").returncode == 0
    assert calls(moved)[0] == "venv"


def test_setup_that_failed_is_not_taken_for_done(project: Path) -> None:
    fake_python(project, pip_code=1)
    done = run(project, "./reproduce.sh", "setup")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fractrain: error: installing requirements.lock failed")
    fake_python(project)
    calls(project)
    assert run(project, "./reproduce.sh", "setup").returncode == 0
    assert len(calls(project)) == 3


@pytest.mark.parametrize(
    ("codes", "part"), [({"version_code": 1}, "Python 3.11 or newer"), ({"venv_code": 1}, "apt install python3-venv")]
)
def test_unsuitable_python_is_one_line(project: Path, codes: dict[str, int], part: str) -> None:
    fake_python(project, **codes)
    done = run(project, "./reproduce.sh", "setup")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert part in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("command", [("./reproduce.sh", "table3"), ("make", "reproduce-table3")], ids=" ".join)
def test_a_table_that_is_not_there_is_one_line_and_sets_nothing_up(project: Path, command: tuple[str, ...]) -> None:
    if command[0] == "make" and shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = run(project, *command)
    assert done.returncode == 2
    assert "fractrain: error: table3 is not in this release (there: table2)" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        ("reproduce-table2", [], "fractrain reproduce table2"),
        (
            "reproduce-table2",
            ["PROFILE=paper", "DATA_DIR=/a b", "SEEDS=3", "JOBS=2", "DEVICE=cpu"],
            "fractrain reproduce table2 --profile paper --data-dir /a b --seeds 3 --jobs 2 --device cpu",
        ),
        ("reproduce-all", ["JOBS=2"], "fractrain reproduce all --jobs 2"),
        ("test", ["ARGS=-k quant"], "python -m pytest -k quant"),
        ("lint", [], "mypy "),
    ],
)
def test_make_targets_pass_their_variables_on(project: Path, target: str, arguments: list[str], expected: str) -> None:
    done = run(project, "make", target, *arguments)
    assert done.returncode == 0, done.stderr
    assert calls(project)[-1] == expected


def test_the_exit_code_of_the_command_comes_through(project: Path) -> None:
    run(project, "./reproduce.sh", "setup")
    failing = project / ".venv" / "bin" / "fractrain"
    failing.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert run(project, "./reproduce.sh", "table2").returncode == 1
    assert run(project, "./reproduce.sh", "all").returncode == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_and_reproduce_alone_show_help() -> None:
    for command in (["make"], ["./reproduce.sh"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0
        for word in ("setup", "test", "lint", "table"):
            assert word in done.stdout


def test_continuous_integration_runs_the_three_targets_in_order() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    places = [text.index(f"\n{command}\n") for command in ("make setup", "make lint", "make test")]
    assert places == sorted(places)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert os.access(ROOT / "reproduce.sh", os.X_OK)


def test_the_interpreter_of_this_environment_is_accepted(tmp_path: Path) -> None:
    """The version check of reproduce.sh, asked of a real Python."""
    text = (ROOT / "reproduce.sh").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("version_ok()"))
    done = subprocess.run(["bash", "-c", f'{line}\nversion_ok "$1"', "bash", sys.executable], cwd=tmp_path)
    assert done.returncode == 0

"""What the command line tests share: a runner whose run store and data folder are empty, and a tiny table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fractrain.cli import main

Cli = Callable[..., Result]

TINY_TABLE = """
name = "tiny"
version = 1
title = "Tiny"
caption = "Two rows, four steps each."
source = "a test"
published_table = "none"

[profiles.smoke]
seeds = 1
datasets = {{ cifar10 = "digits" }}
recipe = {{ iterations = 4, eval_every = 4, lr = {lr} }}

[[pairs]]
model = "resnet38"
dataset = "cifar10"
model_label = "ResNet-38"
dataset_label = "CIFAR-10"

[[rows]]
key = "fp32"
label = "FP32"
method = "fp32"
precision = "FP32"
"""


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests counts, and nothing of theirs is written to."""
    for name in ("FRACTRAIN_DATA", "FRACTRAIN_DEBUG", "FRACTRAIN_PLUGINS", "FRACTRAIN_DATA_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli() -> Cli:
    """Run the command line in this process; stdout and stderr are kept apart."""

    def run(*args: str) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return run


@pytest.fixture
def tiny_table(tmp_path: Path) -> Path:
    """A table of one run of four steps."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TABLE.format(lr=0.1), encoding="utf-8")
    return path


@pytest.fixture
def diverging_table(tmp_path: Path) -> Path:
    """A table of one run whose learning rate makes the loss infinite."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TABLE.format(lr=1e30), encoding="utf-8")
    return path


@pytest.fixture
def one_line_error() -> Callable[[Result], str]:
    """Return the error line of a failed command, after checking that it is the only one and that stdout is empty."""

    def check(result: Result) -> str:
        lines = [line for line in result.stderr.splitlines() if line.startswith("fractrain: error: ")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        return lines[0]

    return check

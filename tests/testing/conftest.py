"""The command line in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fractrain.cli import main

Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run the command line in this process, in an empty folder with an empty run store."""
    for name in ("FRACTRAIN_DATA", "FRACTRAIN_DEBUG", "FRACTRAIN_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return run

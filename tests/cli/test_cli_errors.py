"""Bad input: one line that says what, where and how to mend it, on stderr, with the documented exit code."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from fractrain.cli import main
from fractrain.util.errors import ConfigError, RunError

RUN = ("run", "--method", "sbm", "--model", "resnet38", "--dataset", "digits")


def replaced(**options: str) -> list[str]:
    """The arguments of a good run with some of them replaced."""
    args = list(RUN)
    for name, value in options.items():
        args[args.index(f"--{name}") + 1] = value
    return args


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["rnu"], ["'rnu'", "did you mean 'run'"]),
        (["xyzzy"], ["'xyzzy'", "reproduce"]),
        (["data", "fetsh", "cifar10"], ["'fetsh'", "did you mean 'fetch'"]),
        (["list", "modles"], ["'modles'", "did you mean 'models'"]),
        (["run", "--method", "sbm", "--model", "resnet38"], ["--dataset", "fractrain run --help"]),
        ([*RUN, "--modle", "x"], ["--modle", "--model"]),
        ([*RUN, "--seed", "one"], ["--seed", "'one'"]),
        ([*RUN, "--seed", "-1"], ["--seed", "-1"]),
        ([*RUN, "--profile", "papr"], ["'papr'", "did you mean 'paper'"]),
        ([*RUN, "--plugin", "nowhere.py"], ["nowhere.py"]),
        (replaced(method="sbn"), ["'sbn'", "did you mean 'sbm'", "fractrain list methods"]),
        (replaced(model="resnet83"), ["'resnet83'", "did you mean 'resnet38'"]),
        (replaced(dataset="digit"), ["'digit'", "did you mean 'digits'"]),
        ([*RUN, "--set", "bit=8"], ["--set", "'bit'", "did you mean 'bits'"]),
        ([*RUN, "--set", "bits=eight"], ["--set", "bits", "'eight'"]),
        ([*RUN, "--set", "bits"], ["KEY=VALUE"]),
        ([*RUN, "--set", "recipe.iteration=4"], ["'iteration'", "did you mean 'iterations'"]),
        ([*RUN, "--set", "recipe.lr=fast"], ["lr", "'fast'"]),
        ([*RUN, "--profile", "paper"], ["'paper'", "digits", "smoke"]),
        ([*RUN, "--device", "gpu7"], ["gpu7", "cpu"]),
        (replaced(dataset="cifar10"), ["cifar10", "fractrain data fetch cifar10"]),
        (["plan", "table22"], ["'table22'", "did you mean 'table2'"]),
        (["reproduce", "table22"], ["'table22'", "did you mean 'table2'"]),
        (["table", "table2", "--format", "mdd"], ["'mdd'", "did you mean 'md'"]),
        (["reproduce", "table2", "--jobs", "0"], ["--jobs"]),
        (["reproduce", "table2", "--profile", "paper"], ["cifar10", "fractrain data fetch cifar10"]),
        (["data", "status", "cifr10"], ["'cifr10'", "did you mean 'cifar10'"]),
        (["data", "verify", "cifar10"], ["cifar10", "fetch"]),
        (["plan", "table2", "--seeds", "20261128"], ["number of seeds", "0 to N-1", "fractrain run --seed"]),
        ([*RUN, "--set", "recipe.iterations=" + "[" * 1000], ["recipe", "iterations"]),
        (["publish", "no-such-run", "--mode", "offline"], ["no-such-run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 8 else None,
)
def test_bad_input_is_one_line_and_exit_2(cli: Any, one_line_error: Any, args: list[str], parts: list[str]) -> None:
    result = cli(*args)
    assert result.exit_code == 2, result.output
    line = one_line_error(result)
    for part in parts:
        assert part in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_data_leaves_no_run(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    result = cli("run", "--method", "sbm", "--model", "resnet38", "--dataset", "cifar10", "--data-dir", tmp_path / "no")
    assert result.exit_code == 2
    assert "fractrain data fetch cifar10" in one_line_error(result)
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_the_papers_settings_for_a_model_are_asked_for_by_name(cli: Any, tmp_path: Path) -> None:
    """Defaults are CIFAR's; what is set goes before the preset."""
    from fractrain.engine.config import RunConfig
    from fractrain.methods.presets import paper_settings

    args = ("run", "--method", "fractrain", "--model", "resnet18", "--dataset", "imagenet", "--data-dir", tmp_path)
    paper = paper_settings("fractrain", "resnet18", "imagenet")
    for more, settings in (
        ((), {}), (("--preset", "paper"), paper),
        (("--preset", "paper", "--set", "target_cp=2"), {**paper, "target_cp": 2.0}),
    ):  # fmt: skip
        config = RunConfig.create(method="fractrain", model="resnet18", dataset="imagenet", settings=settings)
        assert f"run {config.run_id}" in cli(*args, *more).stderr


@pytest.mark.parametrize("args", [[*RUN], ["reproduce", "table2"]], ids=["run", "reproduce"])
def test_no_gpu(cli: Any, one_line_error: Any, args: list[str], tmp_path: Path) -> None:
    result = cli(*args, "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda" in one_line_error(result)
    assert not (tmp_path / "runs").exists(), "nothing may be written before the device is known"


def test_corrupt_data(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"truncated")
    result = cli("data", "verify", "cifar10", "--data-dir", tmp_path / "data")
    assert result.exit_code == 2
    assert "cifar10" in one_line_error(result)
    status = cli("data", "status", "cifar10", "--data-dir", tmp_path / "data")
    assert status.exit_code == 1  # a set that was named is not ready
    assert "not ready" in status.stdout


def test_results_folder_is_a_file(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("", encoding="utf-8")
    result = cli(*RUN)
    assert result.exit_code == 2
    assert "runs" in one_line_error(result)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    result = cli(*RUN, "--results", locked / "runs")
    assert result.exit_code == 2
    assert str(locked) in one_line_error(result)


def test_no_write_permission_simulated(
    cli: Any, one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, also where the tests run as root."""

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = cli(*RUN)
    assert result.exit_code == 2
    line = one_line_error(result)
    assert str(tmp_path / "runs") in line
    assert "FRACTRAIN_RESULTS" in line


def test_disk_full_while_writing(
    cli: Any, one_line_error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = cli(*RUN)
    assert result.exit_code == 1
    assert "the disk is full: free some space" in one_line_error(result)
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.name != ".lock"]
    assert written == [], "nothing may be left half-written"


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (ConfigError("a wrong\nname"), 2, "a wrong name"),
        (RunError("it failed"), 1, "it failed"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied; choose a folder"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "free some space"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_of_any_verb(
    cli: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, part: str, debug: bool
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    result = cli("fail", *(["--debug"] if debug else []))
    assert result.exit_code == code
    assert part in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("fractrain: error: ")
    assert ("Traceback" in result.stderr) == debug


def test_debug_from_the_environment(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACTRAIN_DEBUG", "1")
    assert "Traceback" in cli("plan", "table22").stderr


def test_an_unexpected_error_keeps_its_traceback(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    assert isinstance(cli("fail").exception, ZeroDivisionError)


def test_reproduce_does_not_run_under_torchrun(cli: Any, one_line_error: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    result = cli("reproduce", "table2")
    assert result.exit_code == 2
    assert "torchrun" in one_line_error(result)


def test_a_plugin_that_ends_the_process_is_said_so(cli: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "ends.py"
    text = "from fractrain.methods.base import Method\nraise SystemExit(3)\nclass Ends(Method):\n    name = 'ends'\n"
    plugin.write_text(text)
    for args in (("list", "methods"), ("run", "--method", "ends", "--model", "resnet38", "--dataset", "digits")):
        result = cli(*args, "--plugin", plugin)
        assert result.exit_code in (0, 2), args
        assert "SystemExit" in result.stdout + result.stderr

"""The doctor's findings, each against a machine on which it is true."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fractrain.data import registry
from fractrain.kernels.cpu import uniform as kernels
from fractrain.report import doctor
from fractrain.util.errors import DataError


def importer(**modules: Any) -> doctor.Importer:
    """An ``import_module`` that knows the given modules; an exception among them is raised."""

    def load(name: str) -> ModuleType:
        found = modules[name]
        if isinstance(found, Exception):
            raise found
        module: ModuleType = found
        return module

    return load


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "does not work"), ((3, 11), "works"), ((3, 13), "works"), ((3, 99), "limited")]
)
def test_python(version: tuple[int, int], state: str) -> None:
    check = doctor.python_check(version)
    assert check.state == state
    assert bool(check.mend) == (state != "works")


def test_torchvision_that_does_not_fit_torch_is_explained() -> None:
    torch = SimpleNamespace(__version__="2.15.0+cpu")
    broken = RuntimeError("operator torchvision::nms does not exist")
    check = doctor.torch_check(importer(torch=torch, torchvision=broken))
    assert (check.state, check.essential) == ("does not work", True)
    assert "operator torchvision::nms does not exist" in check.detail
    assert "2.15.0+cpu" in check.detail
    assert "pair" in check.mend


def test_torch_that_does_not_load() -> None:
    check = doctor.torch_check(importer(torch=OSError("libcudart.so: cannot open\nshared object file")))
    assert check.state == "does not work"
    assert "\n" not in check.detail


def test_torch_pair_of_this_environment() -> None:
    import importlib

    assert doctor.torch_check(importlib.import_module).state == "works"


def test_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pydantic" else real(name))
    check = next(iter(doctor.package_checks()))
    assert check.state == "does not work"
    assert "pip install pydantic" in check.mend


def test_packages_are_those_of_the_metadata() -> None:
    check = next(iter(doctor.package_checks()))
    assert check.state == "works"
    for name in ("torch", "click", "pydantic", "numba"):
        assert name in check.detail


def test_kernels_that_differ_are_a_limit_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "probed", lambda: None)
    check = doctor.kernel_check()
    assert check.state == "limited"
    assert "slower" in check.mend


def test_data_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("unreadable")

    monkeypatch.setattr(registry, "status", fail)
    assert {check.state for check in doctor.data_checks(None)} == {"does not work"}


def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = next(iter(doctor.folder_checks(tmp_path / "runs")))
    assert (check.state, check.essential) == ("does not work", True)
    assert "FRACTRAIN_RESULTS" in check.mend


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    states = [check.state for check in doctor.folder_checks(tmp_path / "a" / "b")]
    assert states[0] == "works"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "state"), [(1_000_000_000, "limited"), (9_000_000_000, "works")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert list(doctor.folder_checks(tmp_path))[1].state == state


def test_exit_code_1_when_something_essential_is_broken(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = doctor.Check("torch", "does not work", "gone", "make clean setup", essential=True)
    monkeypatch.setattr(doctor, "torch_check", lambda _: broken)
    result = cli("doctor")
    assert result.exit_code == 1
    assert "NO  torch" in result.stdout
    assert "make clean setup" in result.stdout

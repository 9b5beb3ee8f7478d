"""The rows of today's formats and of the libraries beside them: bytes kept, batches, and why a peer is absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import nn

from fractrain.bench import catalog, measure, other_libraries
from fractrain.bench.subject import MethodStep, PlainStep, Setup
from fractrain.layers.kept import kept_bytes, kept_per_element

GOALS = {
    "fp8_tensorwise": 1.3, "mxfp8": 1.5, "mxint8": 1.2, "mxfp4": 2.2, "nvfp4": 2.2, "int8_rowwise": 1.1,
    "jetfire": 1.1, "sbm_small": 0.85, "static8_small": 0.85,
}  # fmt: skip


def none() -> None:
    """No progress."""


def test_the_goals_are_those_that_were_set() -> None:
    assert {p.name: p.goal for p in catalog.FORMATS if p.goal is not None} == GOALS
    assert {*catalog.EXTRA_NAMES, "dfq_typical"} == set(catalog.TODAY)
    assert not set(catalog.EXTRA_NAMES) & set(catalog.NAMES)


@pytest.mark.parametrize(("method", "settings", "most"), [("mx", {}, 1.3), ("nvfp4", {}, 0.7), ("sbm", {}, 1.3)])
def test_codes_are_kept_compact(setup: Setup, method: str, settings: dict[str, str], most: float) -> None:
    step = MethodStep(setup, method, settings)
    kept = kept_per_element(step, step.model)
    assert kept is not None
    assert 0.4 < kept <= most


def test_nothing_is_quantized_in_fp32_and_bytes_are_the_hooks(setup: Setup) -> None:
    step = PlainStep(setup)
    assert kept_per_element(step, step.model) is None
    linear = nn.Linear(3, 5)
    x = torch.randn(7, 3, requires_grad=True)
    assert kept_bytes(lambda: linear(x).exp().sum().backward(), linear) == 7 * 3 * 4 + 7 * 5 * 4  # x, and exp's output


def test_a_row_measures_a_method_at_its_batch_and_threads(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def against(own: Setup, step: MethodStep, _tick: object) -> object:
        seen.append((len(step.y), torch.get_num_threads()))
        return step

    monkeypatch.setattr(measure, "_against_fp32", against)
    torch.set_num_threads(2)
    measure.MEASURES["static8_small"](replace(setup, batch=20, threads=2), none)
    measure.MEASURES["static8_small"](replace(setup, batch=4, threads=2), none)
    measure.MEASURES["jetfire"](replace(setup, batch=20, threads=2), none)
    assert seen == [(16, 1), (4, 1), (20, 2)]
    assert torch.get_num_threads() == 2


def test_a_format_and_its_kept_bytes_are_in_the_document(bench: Callable[..., Result], tmp_path: Path) -> None:
    result = bench("--path", "nvfp4", "--path", "fp8_linear", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    nvfp4, linear = json.loads((tmp_path / "cpu-custom.json").read_text(encoding="utf-8"))["paths"]
    assert nvfp4["ratio"] > 0
    assert nvfp4["kept"]["ratio"] == nvfp4["kept"]["path"] / nvfp4["kept"]["baseline"]
    assert nvfp4["kept"]["per_element"] <= 0.7
    assert linear["kept"]["per_element"] is None


def test_a_peer_that_is_not_installed_says_so(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(other_libraries, "version", absent)
    for name in ("peer_brevitas", "peer_torchao_linear"):
        found = other_libraries.measure_library(name, setup, none, 0)
        assert not found.ratios
        assert found.missing.startswith("not run: ")
        assert "is not installed (pip install 'fractrain[peers]')" in found.missing


def test_torch_ao_runs_and_leaves_the_first_convolution(setup: Setup) -> None:
    model = other_libraries.converted(setup.plain(), lambda _conv: nn.Identity())
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 1
    found = other_libraries.measure_library("peer_torch_ao", setup, none, 0)
    assert len(found.ratios) == setup.repeats
    assert found.note.startswith("torch ")


def test_torchao_and_ours_do_the_same_work(setup: Setup) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed (extra: dev)")
    found = other_libraries.measure_library("peer_torchao_linear", setup, none, 0)
    assert found.ratios
    assert not found.missing
    steps = [other_libraries.LinearStep(setup, change) for change in (other_libraries._ours, other_libraries._torchao)]
    for step in steps:
        for p in step.model.parameters():
            nn.init.constant_(p, 0.01)
        step()
    ours, theirs = (step.x.grad for step in steps)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def test_microxcaling_is_taken_from_where_the_user_says(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "peer_microxcaling_mxint8"
    monkeypatch.delenv(catalog.MICROXCALING, raising=False)
    assert f"set {catalog.MICROXCALING}" in other_libraries.measure_library(name, setup, none, 0).missing
    monkeypatch.setenv(catalog.MICROXCALING, str(tmp_path))
    assert "there is no package mx in it" in other_libraries.measure_library(name, setup, none, 0).missing
    (tmp_path / "mx").mkdir()
    assert "No module named" in other_libraries.measure_library(name, setup, none, 0).missing

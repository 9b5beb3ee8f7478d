"""``--kernels``: the same run by another path, and the plain path with one line where the compiled one fails."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import fractrain.kernels.cpu
from fractrain.bench.subject import MethodStep, Setup
from fractrain.cli import main
from fractrain.engine.config import RunConfig
from fractrain.engine.site import Kernels, Site
from fractrain.execute.jobs import Outcome
from fractrain.execute.local import LocalExecutor
from fractrain.kernels.cpu import uniform as kernels
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.methods import select
from fractrain.methods.select import row_products
from fractrain.numerics.grid import Grid
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.util.errors import RunError


def after_two_steps(setup: Setup, method: str, choice: Kernels) -> tuple[dict[str, torch.Tensor], str]:
    step = MethodStep(replace(setup, kernels=choice), method)
    step()
    step()
    return step.model.state_dict(), step.ledger.digest()


@pytest.mark.parametrize("method", ["sbm", "dfq"])
def test_the_same_training_by_both_paths(setup: Setup, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # their sums are of another order
    monkeypatch.setattr(CompactBatchNorm2d, "_kernels", lambda *_: None)
    monkeypatch.setattr(select, "row_products", lambda g, o, _: row_products(g, o, "reference"))
    one, one_ledger = after_two_steps(setup, method, "reference")
    two, two_ledger = after_two_steps(setup, method, "fused")
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert one_ledger == two_ledger


@pytest.mark.parametrize("choice", ["auto", "reference", "fused"])
def test_run_hands_it_to_the_training_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    seen: list[tuple[str, str]] = []

    class Loop:
        def __init__(self, config: Any, site: Site, *_: Any, **given: Any) -> None:
            seen.append((config.run_id, site.kernels))
            raise RunError("seen enough")

    monkeypatch.setattr("fractrain.engine.trainer.TrainingLoop", Loop)
    args = ("run", "--method", "sbm", "--model", "resnet38", "--dataset", "digits", "--device", "cpu")
    result = CliRunner().invoke(main, [*args, "--results", str(tmp_path), "--kernels", choice])
    assert "seen enough" in result.stderr
    assert [kernels for _, kernels in seen] == [choice]
    plain = RunConfig.create(method="sbm", model="resnet38", dataset="digits")
    assert seen[0][0] == plain.run_id, "kernels round to the same bits: they are not part of the id"


def test_reproduce_hands_it_to_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(self: LocalExecutor, configs: Any, site: Site, progress: Any = None) -> list[Outcome]:
        seen.append(site.kernels)
        raise RunError("seen enough")

    monkeypatch.setattr(LocalExecutor, "run", run)
    args = ("reproduce", "table2", "--device", "cpu", "--results", str(tmp_path), "--kernels", "reference")
    result = CliRunner().invoke(main, list(args))
    assert "seen enough" in result.stderr
    assert seen == ["reference"]


def test_the_loop_gives_it_to_the_layers(setup: Setup) -> None:
    from fractrain.bench.overhead import _loop

    assert _loop(replace(setup, kernels="reference")).method.state.kernels == "reference"


def test_a_site_carries_the_choice_to_its_workers(tmp_path: Path) -> None:
    site = Site(tmp_path, kernels="reference")
    assert Site.from_json(json.loads(json.dumps(site.as_json()))).kernels == "reference"
    assert Site(tmp_path).kernels == "auto"


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Kernels are loaded and probed once per process: forget that before and after."""
    caches = [c for c in vars(kernels).values() if hasattr(c, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def quantize_twice() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    grid = Grid(torch.tensor(0.1), torch.tensor(-1.0), torch.tensor(0.0), torch.tensor(255.0))
    key = NoiseKey(1, 2)
    return quantize(x, grid, key)[0], quantize(x, grid, key)[0]


def test_without_a_compiler_the_plain_path_and_one_line(
    forgetful: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = quantize_twice()
    for cache in (c for c in vars(kernels).values() if hasattr(c, "cache_clear")):
        cache.cache_clear()
    monkeypatch.setitem(sys.modules, "fractrain.kernels.cpu.quantize", None)
    monkeypatch.delattr(fractrain.kernels.cpu, "quantize", raising=False)
    with caplog.at_level(logging.INFO):
        first, second = quantize_twice()
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert len(caplog.records) == 1
    assert "using the plain path" in caplog.text


def test_kernels_that_differ_by_a_bit_are_not_used(
    forgetful: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = kernels.load_fused()
    assert module is not None

    def off_by_one(*args: Any) -> None:
        right(*args)
        args[5].flat[0] += 1e-3

    right = module.nearest_codes[0]
    monkeypatch.setattr(module, "nearest_codes", (off_by_one, off_by_one))
    with caplog.at_level(logging.INFO):
        assert kernels.probed() is None
        assert kernels.probed() is None
        quantize_twice()
    assert len(caplog.records) == 1
    assert "differ from the plain path" in caplog.text

"""The GPU's kernels: in Triton's interpreter they give the plain path's bits, and they compile for real GPUs.

Both need environments of their own (Triton reads its mode when it is imported), hence a process each. What runs in them
is in triton_checks.py and triton_builds.py.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_process import needs_triton, run

from fractrain.kernels.cuda import launch as device
from fractrain.kernels.cuda.launch import Launcher, launcher_for, probed
from fractrain.numerics.formats import Affine
from fractrain.numerics.quantize import quantize

CHECKS = {  # and the least number of comparisons each makes
    "block_dispatch": 10, "block_probe": 4, "blocks": 153,
    "dispatch": 22, "flag": 19, "limits": 20, "many_parts": 7, "measured": 100, "noise": 15, "probe": 5, "rescale": 15,
    "shapes": 108,
    "special_values": 6, "what_is_covered": 8, "width_per_sample": 64, "widths": 90,
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run("triton_checks.py", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_the_interpreted_kernels_give_the_plain_paths_bits(name: str, results: Any) -> None:
    assert results[name]["failed"] == []
    assert results[name]["made"] >= CHECKS[name]


@needs_triton
def test_every_check_is_listed_here(results: Any) -> None:
    assert set(results) == set(CHECKS)


@needs_triton
def test_the_kernels_compile_for_gpus_and_round_every_operation(tmp_path: Path) -> None:
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    builds = run("triton_builds.py", tmp_path, "90", TRITON_INTERPRET="0")
    assert len(builds) == 10
    for b in builds:
        ops = b["float_ops"]
        assert b["bytes"] > 0
        assert not [op for op in ops if "fma" in op or "approx" in op or ".full" in op or "f64" in op], b
        assert not [
            op for op in ops if op.startswith(("add", "sub", "mul", "div")) and (".rn" not in op or "ftz" in op)
        ], b
        assert ("div.rn.f32" in ops) == (b["kernel"] in ("finish", "quantize")), b


def test_cpu_tensors_never_come_here() -> None:
    x = torch.randn(3, 4)
    assert launcher_for(x) is None
    quantize(x, Affine().grid(Affine().limits(x), 8, x))
    assert "fractrain.kernels.cuda.triton_quantize" not in sys.modules


def test_kernels_that_differ_are_refused_with_one_line(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    launcher = Launcher(sys)
    monkeypatch.setattr(device, "load", lambda: launcher)
    monkeypatch.setattr(device, "agrees", lambda launcher, device: False)
    with caplog.at_level(logging.WARNING):
        assert probed.__wrapped__(torch.device("cpu")) is None
    assert [r.getMessage() for r in caplog.records] == [
        "GPU quantizers differ from the plain path on cpu; using the plain path"
    ]
    monkeypatch.setattr(device, "agrees", lambda launcher, device: True)
    assert probed.__wrapped__(torch.device("cpu")) is launcher


def test_kernels_that_do_not_run_are_refused_with_one_line(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fails(launcher: Any, device: Any) -> bool:
        raise RuntimeError("no C compiler\nand much more")

    monkeypatch.setattr(device, "load", lambda: Launcher(sys))
    monkeypatch.setattr(device, "agrees", fails)
    with caplog.at_level(logging.WARNING):
        assert probed.__wrapped__(torch.device("cpu")) is None
    (line,) = [r.getMessage() for r in caplog.records]
    assert line == "GPU quantizers do not run on cpu (RuntimeError: no C compiler); using the plain path"


def test_a_missing_triton_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "fractrain.kernels.cuda.triton_quantize", None)
    with caplog.at_level(logging.WARNING):
        assert device.load.__wrapped__() is None
    assert len(caplog.records) == 1
    assert "GPU quantizers are not available" in caplog.text
    monkeypatch.setattr(device, "load", lambda: None)
    assert probed.__wrapped__(torch.device("cpu")) is None

"""Int8 convolutions of GPUs: exact sums in Triton's interpreter, builds for a real GPU, and layers that take them.

Layers run on the CPU with stand-ins of the kernels; the kernels themselves in processes of their own
(triton_conv_checks.py, triton_conv_builds.py).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn
from torch.nn import functional as F
from triton_process import needs_triton, run

from fractrain.experimental import int8_conv
from fractrain.experimental.int8_conv import _parts, possible
from fractrain.kernels.cpu import cpu_features as capability
from fractrain.kernels.cpu.int8 import MAX_TERMS
from fractrain.kernels.geometry import Geometry
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, PerTile, Symmetric
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision, fractrain_precision

CHECKS = {  # and the least number of comparisons each makes
    "backward": 30, "extremes": 36, "forward": 28, "layer": 11, "longest_sums": 6, "parts": 4, "trial": 11,
}  # fmt: skip
CPU = torch.device("cpu")


# -- the kernels -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """About 25 s: the interpreter takes a tenth of a millisecond for each operation of a tile."""
    return run("triton_conv_checks.py", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_interpreted_kernels_equal_float64(name: str, results: Any) -> None:
    assert results[name]["failed"] == []
    assert results[name]["made"] >= CHECKS[name]


@needs_triton
def test_every_check_is_listed_here(results: Any) -> None:
    assert set(results) == set(CHECKS)


@needs_triton
def test_they_compile_to_int8_products_of_tensor_cores(tmp_path: Any) -> None:
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    builds = run("triton_conv_builds.py", tmp_path, "90", TRITON_INTERPRET="0")
    names = [b["kernel"] for b in builds]
    assert {name: names.count(name) for name in names} == {"pack": 4, "convolve": 4, "correlate": 6, "finish": 2}
    for b in builds:
        assert all("s32.s8.s8" in op for op in b["products"]), b
        assert bool(b["products"]) == (b["kernel"] in ("convolve", "correlate")), b
        assert b["atomics"] == []
        assert b["stack"] in (0, None), b


@given(terms=st.integers(1, 10**9), tiles=st.integers(1, 2000), block=st.sampled_from([32, 64]))
def test_the_parts_of_gc_hold_all_terms_and_fit_into_int32(terms: int, tiles: int, block: int) -> None:
    parts, chunk = _parts(terms, tiles, block)
    assert (parts - 1) * chunk < terms <= parts * chunk
    assert chunk * 128 * 128 < 2**31


# -- what is launched ------------------------------------------------------------------------------------------------


class Values:
    """Stands for the launcher: products of values in float64."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def convolve(self, x: Quantized, w: Quantized, bias: Any, g: Geometry, back: bool = False) -> torch.Tensor:
        self.made.append("EB" if back else "FW")
        if back:
            a = torch.zeros(x.codes.shape[0], *g.image, dtype=torch.float64, device=x.codes.device)
            return self._backward(self._of(x), a, self._of(w), g)[0]
        more = None if bias is None else bias.detach().double()
        y = F.conv2d(self._of(x), self._of(w), more, g.stride, g.padding).float()
        return y.contiguous(memory_format=torch.channels_last)

    def correlate(self, e: Quantized, a: Quantized, g: Geometry) -> torch.Tensor:
        self.made.append("GC")
        w = torch.zeros(g.filters, g.image[0], *g.kernel, dtype=torch.float64, device=e.codes.device)
        return self._backward(self._of(e), self._of(a), w, g)[1]

    @staticmethod
    def _of(q: Quantized) -> torch.Tensor:
        g = q.grid if isinstance(q.grid, Grid) else q.grid()
        return (q.codes.double() + g.qmin.double()) * g.scale.double() + g.offset.double()

    @staticmethod
    def _backward(e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry) -> list[torch.Tensor]:
        args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, (True, True, False))
        return [t.float().contiguous(memory_format=torch.channels_last)
                for t in torch.ops.aten.convolution_backward(e, a, w, *args)[:2]]  # fmt: skip


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Convolutions on the CPU take them, by stand-ins; the products made, those of the trial left out."""
    values = Values()
    exact = int8_conv._exact

    def trial(*args: Any) -> bool:
        before = len(values.made)
        try:
            return exact(*args)
        finally:
            del values.made[before:]

    monkeypatch.setattr(int8_conv, "DEVICES", {"cpu"})
    monkeypatch.setattr(int8_conv, "LEAST_MACS", 1000)
    monkeypatch.setattr(int8_conv, "load", lambda: values)
    monkeypatch.setattr(int8_conv, "_exact", trial)
    caches = (int8_conv._tried, capability.report)
    for cache in caches:
        cache.cache_clear()
    yield values.made
    for cache in caches:
        cache.cache_clear()


def trained(kernels: Any, precision: Precision, groups: int = 1, **options: Any) -> list[torch.Tensor]:
    """Output and gradients of one step of a convolution of 4 to 6 channels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, options.pop("kernel_size", 3), groups=groups, **{"padding": 1, **options})
    layer = QuantConv2d(conv, precision, QuantState(3, kernels=kernels), "conv")
    x = tensor((3, 4, 7, 6), 7, shift=0.3).requires_grad_()
    y = layer(x)
    y.backward(tensor(tuple(y.shape), 8, scale=1e-3))
    assert layer.bias is not None
    return [y.detach(), *(t.grad for t in (x, layer.weight, layer.bias))]  # type: ignore[list-item]


EIGHT, ONE = Operand(8, Affine()), Operand(8, Symmetric())
PRECISIONS = {
    "per filter": (fractrain_precision(8, 8, 8), ["FW", "GC"]),
    "per tensor": (Precision.of(EIGHT, ONE, Operand(8, Affine(rounding="stochastic"))), ["FW", "EB", "GC"]),
    "4 bits": (Precision.of(Operand(4, Affine()), Operand(4, Symmetric()), Operand(6, Affine())), ["FW", "EB", "GC"]),
    "errors of 16 bits": (Precision.of(EIGHT, ONE, Operand(16, Affine())), ["FW"]),
    "activations of 12 bits": (Precision.of(Operand(12, Affine()), ONE, EIGHT), ["EB"]),
    "weights of 12 bits": (Precision.of(EIGHT, Operand(12, Symmetric()), EIGHT), ["GC"]),
    "widths per sample": (Precision.of(EIGHT, ONE, Operand(torch.tensor([8, 4, 2]), Affine())), ["FW"]),
    "tiles": (Precision.of(Operand(8, Affine(PerTile(4, 2))), ONE, EIGHT), ["EB"]),
    "errors in floating point": (Precision(fw_a=EIGHT, fw_w=ONE, gc_a=EIGHT), ["FW"]),
}
SHAPES: list[dict[str, Any]] = [{}, {"stride": 2}, {"kernel_size": (3, 2), "padding": (0, 2)}, {"kernel_size": 1}]


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("options", SHAPES[:2], ids=str)
def test_a_layer_gives_the_reference_but_for_the_order_of_sums(
    name: str, options: dict[str, Any], used: list[str]
) -> None:
    precision, products = PRECISIONS[name]
    plain = trained("reference", precision, **options)
    assert used == []
    fast = trained("auto", precision, **options)
    assert used == products
    for got, want in zip(fast, plain, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize("options", SHAPES[2:], ids=str)
def test_any_kernel_and_padding(options: dict[str, Any], used: list[str]) -> None:
    plain, fast = (trained(kind, PRECISIONS["per tensor"][0], **options) for kind in ("reference", "auto"))
    assert used == ["FW", "EB", "GC"]
    for got, want in zip(fast, plain, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2, "padding": 2}], ids=str)
def test_groups_and_dilation_stay_in_float32(options: dict[str, Any], used: list[str]) -> None:
    trained("auto", PRECISIONS["per tensor"][0], **options)
    assert used == []


def test_only_what_is_wanted_is_multiplied(used: list[str]) -> None:
    layer = QuantConv2d(nn.Conv2d(4, 6, 3), PRECISIONS["per tensor"][0], QuantState(3), "conv")
    layer(tensor((3, 4, 7, 6), 0)).sum().backward()
    assert used == ["FW", "GC"]
    used.clear()
    layer.weight.requires_grad_(False)
    layer(tensor((3, 4, 7, 6), 0).requires_grad_()).sum().backward()
    assert used == ["FW", "EB"]
    used.clear()
    layer.eval()
    layer(tensor((3, 4, 7, 6), 0))
    assert used == []


def test_small_ones_and_sums_beyond_int32_are_not_possible(used: list[str]) -> None:
    small = Geometry((1, 3, 3), 1, (3, 3), (1, 1), (1, 1))
    assert small.macs < 1000
    assert not possible(small, "forward", CPU)
    deep = Geometry((MAX_TERMS + 1, 1, 1), 1, (1, 1), (1, 1), (0, 0))
    assert [possible(deep, p, CPU) for p in ("forward", "input", "weight")] == [False, True, True]
    wide = Geometry((1, 1, 1), MAX_TERMS + 1, (1, 1), (1, 1), (0, 0))
    assert [possible(wide, p, CPU) for p in ("forward", "input", "weight")] == [True, False, True]


def test_a_layer_on_the_cpu_does_not_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError("int8_conv on the CPU")

    monkeypatch.setattr(int8_conv, "load", refused)
    monkeypatch.setattr(int8_conv, "LEAST_MACS", 1)
    trained("auto", PRECISIONS["per tensor"][0])
    assert "fractrain.experimental.triton_conv" not in sys.modules


@pytest.mark.parametrize("trouble", ["wrong", "refused"])
def test_products_that_are_not_exact_are_not_used(
    trouble: str, used: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Values):
        def convolve(self, *args: Any, **options: Any) -> torch.Tensor:
            if trouble == "refused":
                raise OSError("no compiler\nand much more")  # what Triton raises has no base class in common
            return super().convolve(*args, **options) + 1 / 64

        def correlate(self, *args: Any) -> torch.Tensor:
            if trouble == "refused":
                raise OSError("no compiler\nand much more")
            return super().correlate(*args) * (1 + 1e-5)

    monkeypatch.setattr(int8_conv, "load", Broken)
    precision = PRECISIONS["per tensor"][0]
    fast, plain = (trained(kind, precision) for kind in ("auto", "reference"))
    assert used == []
    for got, want in zip(fast, plain, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()
    assert ("OSError: no compiler" in caplog.text) == (trouble == "refused")


def test_a_missing_triton_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "fractrain.experimental.triton_conv", None)
    monkeypatch.setattr(int8_conv, "load", int8_conv.load.__wrapped__)
    monkeypatch.setattr(int8_conv, "DEVICES", {"cpu"})
    int8_conv._tried.cache_clear()
    g = Geometry((4, 32, 32), 32, (3, 3), (1, 1), (1, 1))
    assert not possible(g, "forward", CPU)
    assert not possible(g, "forward", CPU)
    assert len(caplog.records) == 1
    assert "int8 convolutions are not available" in caplog.text
    int8_conv._tried.cache_clear()

"""EB and GC (and FW by own kernels) on integer codes, against float64 of the decoded codes and sums of integers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn
from torch.nn import functional as F

from fractrain.kernels.cpu import cpu_features as capability
from fractrain.kernels.cpu import int8 as integer
from fractrain.kernels.cpu import int8_backward as integer_backward
from fractrain.kernels.cpu import int8_forward as integer_forward
from fractrain.kernels.cpu.int8 import convolve
from fractrain.kernels.cpu.int8_backward import Plan, possible, products
from fractrain.kernels.geometry import Geometry
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, Format, PerAxis, Symmetric
from fractrain.numerics.precision import Operand, Precision, fractrain_precision
from fractrain.numerics.quantize import quantize

BIG = Geometry((16, 32, 32), 16, (3, 3), (1, 1), (1, 1))
needs_vnni = pytest.mark.skipif(not capability.byte_products(), reason="no AVX512 VNNI on this machine")


@pytest.fixture
def forget():
    """Undo what a test makes the probes find."""
    caches = (
        integer.runs_on_int8,
        integer._own,
        integer_backward.possible,
        capability.byte_products,
        capability.report,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def coded(t: torch.Tensor, fmt: Format, bits: int) -> tuple[torch.Tensor, Quantized, torch.Tensor]:
    """Float32 values, codes, and what the codes stand for in float64."""
    grid = fmt.grid(fmt.limits(t), bits, t)
    values, codes = quantize(t, grid, code_bits=bits)
    assert codes is not None
    return values, codes, (codes.codes.double() + grid.qmin.double()) * grid.scale.double() + grid.offset.double()


def gradients(e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, (True, True, False))
    da, dw, _ = torch.ops.aten.convolution_backward(e, a, w, *args)
    return da, dw


def channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last)


@needs_vnni
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_float64_about_as_well_as_the_float32_products_do(data) -> None:
    draw = lambda lo, hi: data.draw(st.integers(lo, hi))  # noqa: E731
    kernel = data.draw(st.sampled_from([(3, 3), (3, 3), (3, 2), (3, 4), (1, 1), (2, 3), (5, 1)]))
    stride = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    padding = (draw(0, kernel[0]), draw(0, kernel[1]))
    image = (16 * draw(1, 3), draw(max(1, kernel[0] - padding[0]), 20), draw(max(1, kernel[1] - padding[1]), 20))
    g = Geometry(image, 16 * draw(1, 3), kernel, stride, padding)
    plan = integer_backward._plan(g)  # what would be tried whatever the size
    assume(plan)
    a_format, w_format, e_format = data.draw(st.sampled_from([
        (Affine(), Affine(PerAxis(0)), Affine()), (Affine(), Affine(), Symmetric()),
        (Symmetric(), Symmetric(PerAxis(0)), Affine()),
    ]))  # fmt: skip
    low = data.draw(st.sampled_from([0.0, -10.0, 0.5]))  # zero at the end, inside, outside of the range
    n = draw(1, 3)
    x, e = tensor((n, *image), 1).clamp(min=low), tensor((n, g.filters, *g.output), 2) ** 3
    e = e.clamp(min=data.draw(st.sampled_from([-1e9, 0.25])))
    w = tensor((g.filters, image[0], *kernel), 3) * torch.linspace(0.2, 1.5, g.filters).view(-1, 1, 1, 1) + 0.1
    (a, ac, ad) = coded(channels_last(x), a_format, draw(2, 8))
    (w, wc, wd) = coded(w, w_format, draw(2, 8))
    (e, ec, ed) = coded(channels_last(e), e_format, draw(2, 8))
    got, exact, plain = products(ec, ac, wc, plan), gradients(ed, ad, wd, g), gradients(e, a, w, g)
    sizes = gradients(ed.abs(), ad.abs(), wd.abs(), g)
    for x, wanted, y, z, size in zip(got, (plan.eb, plan.gc), exact, plain, sizes, strict=True):
        assert (x is not None) == wanted
        if x is not None:
            assert x.shape == y.shape
            error, noise = (float((v - y).abs().max()) for v in (x, z))
            assert error <= max(1.5e-7 * float(size.max()), 2 * noise)


@needs_vnni
@pytest.mark.parametrize("kernel", [(3, 3), (1, 2)])
@pytest.mark.parametrize("size", [4, 7, 18])
def test_sums_of_the_most_extreme_codes_are_exact(kernel: tuple[int, int], size: int) -> None:
    """GC over so many samples that int32 would overflow without being emptied in between."""
    n = 70000 // (size * size)
    g = Geometry((16, size, size), 16, kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2))
    e = channels_last(torch.full((n, 16, *g.output), 255, dtype=torch.uint8))
    a = channels_last(torch.full((n, *g.image), 255, dtype=torch.uint8))
    grids = [integer_backward._plain(t, n, o) for t, o in ((e, 0.0), (a, 0.0))]
    _, dw = products(grids[0], grids[1], None, Plan(g, False, True))
    ones = torch.ones(1, 1, *g.output, dtype=torch.float64), torch.ones(1, 1, size, size, dtype=torch.float64)
    inside = gradients(*ones, torch.zeros(1, 1, *kernel).double(), Geometry((1, size, size), 1, *kernel_of(g)))[1]
    assert dw is not None
    assert torch.equal(dw, (inside * (n * 255 * 255)).float().expand_as(dw))


def kernel_of(g: Geometry) -> tuple[Any, Any, Any]:
    return g.kernel, g.stride, g.padding


@needs_vnni
@pytest.mark.parametrize("code", [0, 255])
def test_eb_of_the_most_extreme_codes_is_exact(code: int) -> None:
    g = Geometry((16, 9, 9), 16, (3, 3), (1, 1), (1, 1))
    e = integer_backward._plain(channels_last(torch.full((2, 16, 9, 9), 255, dtype=torch.uint8)), 2, 0.0)
    w = integer_backward._plain(torch.full((16, 16, 3, 3), code, dtype=torch.uint8), 16, -128.0)
    da, _ = products(e, None, w, Plan(g, True, False))
    assert da is not None
    assert da[:, :, 4, 4].unique().tolist() == [9.0 * 16 * 255 * (code - 128)]
    assert da[:, :, 0, 8].unique().tolist() == [4.0 * 16 * 255 * (code - 128)]


@needs_vnni
def test_own_forward_kernels_equal_sums_of_integers() -> None:
    for g in (BIG, Geometry((8, 9, 5), 16, (5, 2), (2, 1), (2, 0)), Geometry((24, 4, 13), 32, (1, 1), (1, 2), (0, 0))):
        assert integer_forward.possible(g)
        assert integer._exact(g, integer._own_sums)
    assert not integer_forward.possible(Geometry((12, 8, 8), 16, (3, 3), (1, 1), (1, 1)))
    assert not integer_forward.possible(Geometry((16, 3, 3), 16, (3, 3), (1, 1), (1, 1)))


@needs_vnni
def test_bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch() -> None:
    x, e, w = tensor((6, 16, 32, 32), 0), tensor((6, 16, 32, 32), 1), tensor((16, 16, 3, 3), 2)
    limits = (torch.tensor(-3.0), torch.tensor(3.0))

    def run(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        e_codes, a_codes = (
            quantize(t, Affine().grid(limits, 8, t), code_bits=8)[1] for t in (channels_last(v[rows]) for v in (e, x))
        )
        assert e_codes is not None
        da, dw = products(e_codes, a_codes, coded(w, Affine(PerAxis(0)), 8)[1], Plan(BIG, True, True))
        assert da is not None
        assert dw is not None
        return da, dw

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        da, dw = run(slice(0, 6))
        torch.set_num_threads(2)
        assert all(torch.equal(p, q) for p, q in zip(run(slice(0, 6)), (da, dw), strict=True))
        halves = [run(slice(0, 3)), run(slice(3, 6))]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat([h[0] for h in halves]), da)
    assert torch.allclose(halves[0][1] + halves[1][1], dw, rtol=0, atol=2e-7 * float(dw.abs().max()))


def layer_gradients(kernels: Any, precision: Precision, bias: bool = True) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(0)
    layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1, bias=bias), precision, QuantState(1, kernels=kernels), "c")
    x = channels_last(tensor((4, 16, 32, 32), 0)).requires_grad_()
    layer(x).backward(tensor((4, 16, 32, 32), 1))
    return {"x": x.grad, "w": layer.weight.grad, "b": None if layer.bias is None else layer.bias.grad}


A, W, E = Operand(8, Affine(), running=0.9), Operand(8, Affine(PerAxis(0))), Operand(8, Affine(rounding="stochastic"))


@pytest.mark.parametrize("precision", [
    fractrain_precision(8, 8, 8), fractrain_precision(4, 3, 6), fractrain_precision(6, 4, 12),
    Precision(A, W, E, W, A, E.at(6)),  # two errors
    Precision(A, W, Operand(), W, A, E), Precision(A, W, E, W, A, Operand()), Precision(A, W, E, W, Operand(), E),
    Precision(A, W, E, W, A.at(5), E), Precision(A, W, Operand(9), W.at(4), A, Operand(8, Affine(PerAxis(0)))),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_the_plain_path_s_gradients_up_to_the_order_of_sums(precision: Precision, bias: bool) -> None:
    plain, fast = (layer_gradients(k, precision, bias) for k in ("reference", "fused"))
    for name, want in plain.items():
        got = fast[name]
        assert (got is None) == (want is None)
        if want is not None and got is not None:
            assert torch.allclose(got, want, rtol=0, atol=5e-6 * float(want.abs().max())), name


@needs_vnni
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_filters_of_one_sign_whose_grid_does_not_reach_zero(bits: int, sign: float) -> None:
    e, a = (coded(channels_last(tensor((2, 16, 32, 32), seed)), Affine(), 8) for seed in (1, 0))
    values, w, exact = coded(sign * (1 + tensor((16, 16, 3, 3), 2).sigmoid()), Affine(PerAxis(0)), bits)
    y = convolve(a[1], w, None, BIG, values)
    da, dw = products(e[1], a[1], w, Plan(BIG, True, True))
    got = (y, da, dw)
    right = (F.conv2d(a[2], exact, None, 1, 1), *gradients(e[2], a[2], exact, BIG))
    for found, want in zip(got, right, strict=True):
        assert found is not None
        assert torch.allclose(found.double(), want, rtol=0, atol=2e-6 * float(want.abs().max()))


@needs_vnni
def test_observers_see_the_same_values_on_integer_codes() -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for kernels in ("reference", "fused"):
        layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1), fractrain_precision(8, 8, 8), QuantState(1), "c")
        layer.load_state_dict({"weight": tensor((16, 16, 3, 3), 5), "bias": torch.zeros(16)}, strict=False)
        layer.state.kernels = kernels  # type: ignore[assignment]
        layer.observer = lambda _l, name, _o, _x, v, k=kernels: seen.setdefault(k + name, []).append(v.clone())
        x = channels_last(tensor((2, 16, 32, 32), 0)).requires_grad_()
        layer(x).backward(tensor((2, 16, 32, 32), 1))
    for name in ("fw_a", "fw_w", "E"):
        assert len(seen["reference" + name]) == len(seen["fused" + name]) == 1
        assert torch.equal(seen["reference" + name][0], seen["fused" + name][0])


def test_which_geometries_qualify() -> None:
    plan = integer_backward._plan
    assert (plan(BIG).eb, plan(BIG).gc) == (True, True)
    assert plan(Geometry((16, 32, 32), 16, (3, 3), (2, 2), (1, 1))) == Plan(
        Geometry((16, 32, 32), 16, (3, 3), (2, 2), (1, 1)), False, True
    )
    for bad in (Geometry((3, 32, 32), 16, (3, 3), (1, 1), (1, 1)), Geometry((16, 32, 32), 10, (3, 3), (1, 1), (1, 1)),
                Geometry((16, 300, 300), 16, (5, 5), (1, 1), (2, 2)),
                Geometry((512, 8, 8), 512, (3, 3), (1, 1), (1, 1))):  # fmt: skip
        assert not plan(bad)
    assert not possible(Geometry((16, 8, 8), 16, (3, 3), (1, 1), (1, 1)))  # too small to pay


@pytest.mark.parametrize("fault", ["processor", "wrong", "signature"])
def test_without_exact_kernels_the_float32_products_and_one_line(
    fault: str, forget: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "processor":
        vnni = pytest.importorskip("fractrain.kernels.cpu.vnni")
        monkeypatch.setattr(vnni, "has_vnni", lambda: False)
    elif not capability.byte_products():
        pytest.skip("no AVX512 VNNI on this machine")
    else:

        def broken(e: Quantized, a: Any, w: Any, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
            if fault == "signature":
                raise TypeError("Intrinsic has incorrect argument type!\nptr @llvm.x86.avx512.vpdpbusd.512")
            g = plan.geometry
            return torch.zeros(2, *g.image), torch.zeros(g.filters, g.image[0], *g.kernel)

        monkeypatch.setattr(integer_backward, "products", broken)
    layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1), fractrain_precision(8, 8, 8), QuantState(1), "c")
    other = copy.deepcopy(layer)
    other.state = QuantState(1, kernels="reference")
    with caplog.at_level(logging.WARNING):
        for size in (32, 34):
            grads = []
            for one in (layer, other):
                x = channels_last(tensor((2, 16, size, size), 0)).requires_grad_()
                one.zero_grad()
                one(x).backward(tensor((2, 16, size, size), 1))
                assert x.grad is not None
                grads.append((x.grad, one.weight.grad))
            assert all(torch.equal(p, q) for p, q in zip(*grads, strict=True))
    lines = [r for r in caplog.records if r.name == capability.__name__]
    assert len(lines) == 1
    assert "\n" not in lines[0].getMessage()


@needs_vnni
def test_which_operands_qualify() -> None:
    layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1), fractrain_precision(8, 8, 8), QuantState(1), "c")
    x = channels_last(tensor((2, 16, 32, 32), 0))
    for precision, eb, gc in (
        (fractrain_precision(8, 8, 8), True, True),
        (Precision(A, W, Operand(8, Affine(PerAxis(0))), W, A, E), False, True),
        (Precision(A, W, E, Operand(8, Affine(PerAxis(1))), A, E), False, True),
        (Precision(A, W, E, W, A, E.at(9)), True, False),
        (Precision(A, W, E, W, A.at(torch.tensor([3, 4])), E), True, True),
        (Precision(A, W, E, W, A.at(torch.tensor([3, 9])), E), True, False),
        (Precision(A, W, E.at(torch.tensor([9, 12])), W, A, E.at(torch.tensor([8, 12]))), False, True),
    ):
        layer.precision = precision
        assert layer.integer_backward(x) == Plan(BIG, eb, gc)

"""Products on integer codes where every sample has a width of its own, against float64 and the plain path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn

from fractrain.kernels.cpu import cpu_features as capability
from fractrain.kernels.cpu import int8 as integer
from fractrain.kernels.cpu import int8_backward as integer_backward
from fractrain.kernels.cpu import int8_forward as integer_forward
from fractrain.kernels.cpu.int8 import convolve, samples_by_grid
from fractrain.kernels.geometry import Geometry
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Measured, Quantized, backend_for
from fractrain.numerics.formats import Affine, PerAxis
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey

BIG = Geometry((16, 32, 32), 16, (3, 3), (1, 1), (1, 1))
pytestmark = pytest.mark.skipif(not capability.byte_products(), reason="no AVX512 VNNI on this machine")


def channels_last(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def measured(x: torch.Tensor, bits: list[int], code_bits: int = 8, only_codes: bool = True) -> Measured:
    noise = NoiseKey(1, 2)
    form = Affine().uniform
    assert form is not None
    got = backend_for(x.device, "fused").quantize_measured(
        channels_last(x), form, torch.tensor(bits), noise, code_bits, None, only_codes
    )
    assert got is not None
    return got


def decoded(q: Quantized) -> torch.Tensor:
    """What the codes stand for, in float64."""
    assert q.rows is not None
    scale, offset = (torch.from_numpy(p.astype(np.float64)).view(-1, 1, 1, 1) for p in (q.rows.scale, q.rows.offset))
    return q.codes.double() * scale + offset


def gradients(e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    args = (None, g.stride, g.padding, (1, 1), False, (0, 0), 1, (True, True, False))
    da, dw, _ = torch.ops.aten.convolution_backward(e, a, w, *args)
    return da, dw


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_all_three_products_equal_float64(data) -> None:
    draw = lambda lo, hi: data.draw(st.integers(lo, hi))  # noqa: E731
    stride = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]))
    g = Geometry((16 * draw(1, 2), draw(4, 12), draw(4, 12)), 16 * draw(1, 2), (3, 3), stride, (draw(0, 2), draw(0, 2)))
    plan = integer_backward._plan(g)
    assume(integer_forward.possible(g))
    n = draw(1, 6)
    widths = st.lists(st.sampled_from([0, 2, 4, 6, 8]), min_size=n, max_size=n)
    low = data.draw(st.sampled_from([0.0, -10.0]))
    a = measured(tensor((n, *g.image), 1).clamp(min=low), data.draw(widths)).codes
    e = measured(tensor((n, g.filters, *g.output), 2) ** 3, data.draw(widths)).codes
    weight = tensor((g.filters, g.image[0], *g.kernel), 3)
    w = quantize(weight, Affine(PerAxis(0)).grid(Affine(PerAxis(0)).limits(weight), 4, weight), code_bits=4)[1]
    assert a is not None
    assert e is not None
    assert w is not None
    ad, ed, wd, bias = decoded(a), decoded(e), w.values().double(), tensor((g.filters,), 4)
    y = convolve(a, w, bias, g)
    da, dw = integer_backward.products(e, a, w, plan)
    want = (torch.nn.functional.conv2d(ad, wd, bias.double(), g.stride, g.padding), *gradients(ed, ad, wd, g))
    for got, right, there in zip((y, da, dw), want, (True, plan.eb, plan.gc), strict=True):
        assert (got is not None) == there
        if got is not None:
            assert got.shape == right.shape
            assert float((got - right).abs().max()) <= 2e-6 * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize(
    "widths", [[6, 4, 4, 12, 0, 8], [12, 16, 9, 12, 12, 10], [4, 4, 4, 4, 4, 4], [0, 0, 5, 0, 0, 0]]
)
def test_codes_and_values_are_those_of_the_plain_quantizer(widths: list[int]) -> None:
    x, bits = channels_last(tensor((6, 16, 8, 8), 0)), torch.tensor(widths)
    fmt = Affine()
    values, codes = quantize(x, fmt.grid(fmt.limits(x), bits, x), NoiseKey(1, 2), 16, "reference")
    assert codes is not None
    got = measured(x, widths)
    narrow = bits <= 8
    if got.codes is None:
        assert not narrow.any()
    else:
        assert got.codes.rows is not None
        assert got.codes.codes.dtype == torch.uint8
        whole = (
            got.codes.codes[narrow].int()
            == (codes.codes.int() + (32768 if codes.codes.dtype == torch.int16 else 0))[narrow]
        )
        assert bool(whole.all())
        rows = got.codes.rows.coded
        assert (rows is None) == bool(narrow.all())
        assert rows is None or rows.tolist() == narrow.nonzero().view(-1).tolist()
    assert (got.values is None) == bool(narrow.all())
    if got.values is not None:
        assert torch.equal(got.values, values)


def test_samples_are_put_together_by_the_grids_of_all_operands() -> None:
    x = tensor((6, 16, 8, 8), 0)
    a, e = measured(x, [4, 6, 4, 6, 4, 6]).codes, measured(x, [6, 6, 6, 8, 12, 8]).codes
    assert a is not None
    assert e is not None
    assert [g.tolist() for g in samples_by_grid(a)] == [[0, 2, 4], [1, 3, 5]]
    assert [g.tolist() for g in samples_by_grid(e, a)] == [[0, 2], [1], [3, 5]]  # the fourth of E has no codes
    fmt = Affine()
    one = quantize(channels_last(x), fmt.grid(fmt.limits(x), 8, x), code_bits=8)[1]
    assert one is not None
    assert [g.tolist() for g in samples_by_grid(one)] == [[0, 1, 2, 3, 4, 5]]
    assert [g.tolist() for g in samples_by_grid(one, a)] == [[0, 2, 4], [1, 3, 5]]


def run(kernels: Any, a: list[int], e: list[int], rounding: str, bias: bool = True) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(0)
    operands = (
        Operand(torch.tensor(a)),
        Operand(4, Affine(PerAxis(0))),
        Operand(torch.tensor(e), Affine(rounding=rounding)),
    )
    layer = QuantConv2d(
        nn.Conv2d(16, 16, 3, padding=1, bias=bias), Precision.of(*operands), QuantState(1, kernels=kernels), "c"
    )
    x = channels_last(tensor((6, 16, 32, 32), 0)).requires_grad_()
    y = layer(x)
    y.backward(channels_last(tensor((6, 16, 32, 32), 1)))
    bias_gradient = None if layer.bias is None else layer.bias.grad
    return {"y": y.detach(), "x": x.grad, "w": layer.weight.grad, "b": bias_gradient}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("a", "e"), [
    ([4, 6, 4, 6, 4, 6], [6, 8, 6, 8, 6, 8]), ([3, 6, 4, 6, 4, 6], [6, 12, 6, 12, 8, 8]),
    ([6] * 6, [12] * 6), ([0, 8, 8, 8, 8, 0], [0, 8, 8, 8, 16, 0]), ([9, 4, 4, 4, 4, 4], [6, 8, 6, 8, 6, 8]),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_the_plain_path_s_result_up_to_the_order_of_sums(
    a: list[int], e: list[int], rounding: str, bias: bool
) -> None:
    plain, fast = (run(k, a, e, rounding, bias) for k in ("reference", "fused"))
    for name, want in plain.items():
        got = fast[name]
        assert (got is None) == (want is None)
        if want is not None and got is not None:
            assert torch.allclose(got, want, rtol=0, atol=5e-6 * float(want.abs().max())), name


def test_only_samples_without_codes_take_the_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = QuantConv2d.backward_products

    def counted(self: QuantConv2d, e: torch.Tensor, *args: Any) -> Any:
        calls.append(e.shape[0])
        return plain(self, e, *args)

    monkeypatch.setattr(QuantConv2d, "backward_products", counted)
    monkeypatch.setattr(QuantConv2d, "product", lambda *args: pytest.fail("FW in float32"))
    for e, left in (([6, 8, 6, 8, 6, 8], []), ([6, 12, 6, 12, 8, 16], [3]), ([12] * 6, [6])):
        calls.clear()
        run("fused", [4, 6, 4, 6, 4, 6], e, "stochastic", bias=False)
        assert calls == left


def test_bits_do_not_depend_on_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run("fused", [4, 6, 4, 6, 4, 6], [6, 8, 6, 8, 4, 8], "stochastic", bias=False))
    finally:
        torch.set_num_threads(before)
    for name in ("y", "x", "w"):
        one, two = found[0][name], found[1][name]
        assert one is not None
        assert two is not None
        assert torch.equal(one, two), name


def test_geometries_without_own_kernels_take_the_float32_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "_own", lambda g: False)
    x = measured(tensor((2, 16, 32, 32), 0), [4, 6]).codes
    w = quantize(tensor((16, 16, 3, 3), 1), Affine().grid((torch.tensor(-3.0), torch.tensor(3.0)), 8, torch.zeros(1)),
                 code_bits=8)[1]  # fmt: skip
    assert x is not None
    assert w is not None
    assert convolve(x, w, None, BIG) is None

"""FW on integer codes against sums of integers, against float64, and beside the float32 convolution."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn
from torch.nn import functional as F

from fractrain.kernels.cpu import batch_norm as fused_norm
from fractrain.kernels.cpu import int8 as integer
from fractrain.kernels.cpu import int8_affine_loops as fused_integer
from fractrain.kernels.cpu import int8_backward_loops as fused_backward
from fractrain.kernels.cpu import int8_forward as integer_forward
from fractrain.kernels.cpu import int8_forward_loops as fused_forward
from fractrain.kernels.cpu import quantize as fused  # fmt: skip
from fractrain.kernels.cpu import quantize_tiles as fused_tiles
from fractrain.kernels.cpu.int8 import convolve, fit_int8, runs_on_int8
from fractrain.kernels.geometry import Geometry
from fractrain.layers.compact import compact_layers
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.relu import CompactReLU
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine, Format, PerAxis, PerTensor, PerTile, Symmetric
from fractrain.numerics.precision import Operand, fractrain_precision
from fractrain.numerics.quantize import quantize

P = fractrain_precision(8, 8, 8)


def available() -> bool:
    return runs_on_int8(Geometry((16, 32, 32), 16, (3, 3), (1, 1), (1, 1)))


needs_int8 = pytest.mark.skipif(not available(), reason="no exact int8 convolution on this machine")


@pytest.fixture
def forget():
    """Undo what a test makes the probe find."""
    caches = (integer.runs_on_int8, integer._own, integer._report)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def operands(
    fmt: tuple[Format, Format], bits: tuple[int, int], shape: tuple[int, ...], wshape: tuple[int, ...], low: float
):
    x = tensor(shape, 1).clamp(min=low)
    w = tensor(wshape, 2) * torch.linspace(0.2, 1.5, wshape[0]).view(-1, 1, 1, 1) + 0.1
    out = []
    for t, f, b in ((x, fmt[0], bits[0]), (w, fmt[1], bits[1])):
        values, codes = quantize(t, f.grid(f.limits(t), b, t), code_bits=b)
        assert codes is not None
        grid = f.grid(f.limits(t), b, t)
        exact = (codes.codes.double() + grid.qmin.double()) * grid.scale.double() + grid.offset.double()
        out.append((values, codes, exact))
    return out


@needs_int8
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_float64_about_as_well_as_the_float32_convolution_does(data) -> None:
    draw = lambda lo, hi: data.draw(st.integers(lo, hi))  # noqa: E731
    kernel = (draw(1, 4), draw(1, 4))
    stride, padding = (draw(1, 3), draw(1, 3)), (draw(0, kernel[0] - 1), draw(0, kernel[1] - 1))
    g = Geometry((draw(2, 40), draw(kernel[0], 9), draw(kernel[1], 9)), draw(1, 35), kernel, stride, padding)
    assume(integer._exact(g, integer._sums))  # as runs_on_int8 does; what the probe lets through must be right
    a_format, w_format = data.draw(st.sampled_from(
        [(Affine(), Affine(PerAxis(0))), (Affine(), Affine()), (Symmetric(), Symmetric(PerAxis(0)))]
    ))  # fmt: skip
    bits = (draw(2, 8), draw(2, 8))
    low = data.draw(st.sampled_from([0.0, -10.0, 0.5]))  # behind a ReLU; zero inside the range; zero outside
    shape, wshape = (draw(1, 3), *g.image), (g.filters, g.image[0], *kernel)
    (a, ac, ad), (w, wc, wd) = operands((a_format, w_format), bits, shape, wshape, low)
    bias = tensor((g.filters,), 3) if draw(0, 1) else None
    got = convolve(ac, wc, bias, g)
    assert got is not None
    exact = F.conv2d(ad, wd, None if bias is None else bias.double(), stride, padding)
    plain = F.conv2d(a, w, bias, stride, padding)
    assert got.shape == exact.shape == (shape[0], g.filters, *g.output)
    size = F.conv2d(ad.abs(), wd.abs(), None if bias is None else bias.double().abs(), stride, padding).max()
    error, noise = (float((y - exact).abs().max()) for y in (got, plain))
    assert error <= max(1.5e-7 * float(size), 2 * noise)


@needs_int8
@pytest.mark.parametrize("channels", [16, 64, 512])
def test_sums_of_the_most_extreme_codes_are_exact(channels: int) -> None:
    g = Geometry((channels, 4, 4), 8, (3, 3), (1, 1), (1, 1))
    u = torch.full((2, channels, 4, 4), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    for v in (-128, 127):
        w = torch.full((8, channels, 3, 3), v, dtype=torch.int8)
        got = integer._sums(u, 0, 1.0, w, torch.ones(8), g)
        assert got[0, :, 1, 1].tolist() == [float(9 * channels * 255 * v)] * 8
        assert got[0, :, 0, 0].tolist() == [float(4 * channels * 255 * v)] * 8  # corner: four places


@needs_int8
def test_one_channel_goes_the_float32_way() -> None:
    """oneDNN's sums are wrong for some of these geometries, such as (1, 9, 4) with strides (1, 3)."""
    assert not runs_on_int8(Geometry((1, 64, 64), 32, (3, 3), (1, 1), (1, 1)))
    assert runs_on_int8(Geometry((2, 64, 64), 32, (3, 3), (1, 1), (1, 1)))


@needs_int8
def test_a_layer_takes_the_path_and_only_sums_are_rounded_otherwise() -> None:
    def run(kernels: Any) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1), P, QuantState(1, kernels=kernels), "c")
        x = tensor((4, 16, 32, 32), 0).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = layer(x)
        y.backward(tensor(tuple(y.shape), 1))
        layer.eval()
        return y.detach(), layer(x).detach(), x.grad, layer.weight.grad, layer.bias.grad, layer.running_low

    plain, fast, again = run("reference"), run("fused"), run("auto")
    for a, b in zip(fast, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(plain[0], fast[0])
    for i in (0, 2, 3):  # output, gradients of input and weight
        assert torch.allclose(plain[i], fast[i], rtol=0, atol=2e-6 * float(plain[i].abs().max()))
    for i in (1, 4, 5):  # evaluation, the bias and the range stay as they are
        assert torch.equal(plain[i], fast[i])


@needs_int8
def test_bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch() -> None:
    g = Geometry((16, 32, 32), 20, (3, 3), (1, 1), (1, 1))
    fmt, w = Affine(), tensor((20, 16, 3, 3), 1)
    x, limits = tensor((6, 16, 32, 32), 0), (torch.tensor(-3.0), torch.tensor(3.0))
    wc = quantize(w, fmt.grid(fmt.limits(w), 8, w), code_bits=8)[1]

    def run(x: torch.Tensor) -> torch.Tensor:
        codes = quantize(x, fmt.grid(limits, 8, x), code_bits=8)[1]
        assert codes is not None
        assert wc is not None
        y = convolve(codes, wc, None, g)
        assert y is not None
        return y

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = run(x)
        torch.set_num_threads(2)
        assert torch.equal(run(x), whole)
        assert torch.equal(run(x[2:3].contiguous(memory_format=torch.channels_last)), whole[2:3])
    finally:
        torch.set_num_threads(before)


@needs_int8
def test_training_resumes_to_the_same_bits_and_nan_in_evaluation_passes_through() -> None:
    def steps(layer: QuantConv2d, first: int, last: int) -> None:
        for i in range(first, last):
            layer.state.step = i
            layer.zero_grad()
            layer(tensor((2, 16, 32, 32), i)).square().mean().backward()
            with torch.no_grad():
                layer.weight -= 0.1 * layer.weight.grad

    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    whole = QuantConv2d(copy.deepcopy(conv), P, QuantState(1), "c")
    first, second = (QuantConv2d(copy.deepcopy(conv), P, QuantState(1), "c") for _ in range(2))
    steps(whole, 0, 4)
    steps(first, 0, 2)
    second.load_state_dict(first.state_dict())
    steps(second, 2, 4)
    assert torch.equal(whole.weight, second.weight)
    x = tensor((2, 16, 32, 32), 9)
    x[0, 0, 5, 5] = float("nan")
    assert second.eval()(x).isnan().any()


def test_which_operands_and_sizes_qualify() -> None:
    a, w = Operand(8), Operand(8, Affine(PerAxis(0)))
    assert fit_int8(a, w)
    assert fit_int8(Operand(2, Symmetric()), Operand(3, Symmetric()))
    for bad in (Operand(), Operand(9), Operand(8, Affine(PerAxis(1))), Operand(8, Affine(PerTile(4, 4))),
                Operand(torch.tensor([3, 9])), Operand(torch.tensor([3, 4]), Symmetric())):  # fmt: skip
        assert not fit_int8(bad, w)
        assert not fit_int8(a, bad)
    assert not fit_int8(Operand(8, Affine(PerAxis(0))), w)
    assert not runs_on_int8(Geometry((16, 8, 8), 16, (3, 3), (1, 1), (1, 1)))  # too small
    assert not runs_on_int8(Geometry((70000, 8, 8), 16, (1, 1), (1, 1), (0, 0)))  # int32 could overflow
    assert fit_int8(a, Operand(8, Affine(PerTensor())))


@pytest.mark.parametrize("fault", ["absent", "signature", "wrong"])
def test_without_an_exact_operator_the_float32_product_and_one_line(
    fault: str, forget: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> torch.Tensor:
        if fault == "absent":
            raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")
        if fault == "signature":
            raise RuntimeError("onednn::qconv_pointwise() expected at most 12 arguments\nDeclaration: ...")
        u, g = args[0], args[5]
        return torch.zeros(u.shape[0], g.filters, *g.output).contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(integer, "_sums", broken)
    monkeypatch.setattr(integer_forward, "possible", lambda g: False)
    layer = QuantConv2d(nn.Conv2d(16, 16, 3, padding=1), P, QuantState(1, kernels="fused"), "c")
    other = copy.deepcopy(layer)
    other.state = QuantState(1, kernels="reference")
    with caplog.at_level(logging.WARNING):
        for size in (32, 34):
            x = tensor((2, 16, size, size), 0)
            assert torch.equal(layer(x), other(x))
    lines = [r for r in caplog.records if r.name == integer.__name__]
    assert len(lines) == 1
    assert "\n" not in lines[0].getMessage()


def test_serial_and_parallel_builds_do_not_share_a_place_in_the_cache() -> None:
    pairs = [(m, n) for m in (fused, fused_norm, fused_tiles, fused_integer, fused_backward, fused_forward)
             for n, v in vars(m).items() if isinstance(v, tuple) and len(v) == 2]  # fmt: skip
    assert len(pairs) == 25
    names = set()
    for module, name in pairs:
        serial, parallel = getattr(module, name)
        assert not serial.targetoptions.get("parallel")
        assert parallel.targetoptions["parallel"] is True
        for build in (serial, parallel):
            assert build.py_func.__qualname__ == build.py_func.__code__.co_name
            names.add(build._cache._cache_file._index_name)
    assert len(names) == 2 * len(pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_relu_passes_every_kind_of_gradient(dtype: torch.dtype, layout: torch.memory_format) -> None:
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3.5]
    x = tensor((2, 3, 7, 7), 0).to(dtype)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan")])
    g = torch.tensor(special, dtype=dtype).view(1, 1, 7, 1).expand_as(x).contiguous(memory_format=layout)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    CompactReLU()(x).backward(g)
    want = np.where(x.detach().double().numpy() <= 0, 0.0, g.double().numpy())  # nan passes, as in torch
    assert x.grad is not None
    assert x.grad.dtype == dtype
    np.testing.assert_array_equal(x.grad.double().numpy(), want)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7, 7), (4, 9), (2, 16, 64, 64)])
def test_the_relu_gives_torch_s_bits(inplace: bool, shape: tuple[int, ...]) -> None:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45])
    x, g = tensor(shape, 0).contiguous(), tensor(shape, 1).contiguous()
    x.flatten()[:7], g.flatten()[:7] = special, special.flip(0)
    if len(shape) == 4:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    before = mine * 1.0
    y, want = CompactReLU(inplace)(before), nn.ReLU()(theirs * 1.0)
    assert (y.data_ptr() == before.data_ptr()) == inplace
    assert torch.equal(y.detach().view(torch.int32), want.detach().view(torch.int32))
    y.backward(g)
    want.backward(g)
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.equal(mine.grad.view(torch.int32), theirs.grad.view(torch.int32))


def test_autograd_sees_that_the_relu_has_overwritten_its_input() -> None:
    x = tensor((2, 3, 4, 4), 0).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = x * 1.0
    z = y * y  # keeps y
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (CompactReLU(inplace=True)(y) + z).sum().backward()


def test_replaced_relus_overwrite_where_the_model_s_own_did() -> None:
    model = compact_layers(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU()), QuantState())
    assert [m.inplace for m in model] == [True, False]

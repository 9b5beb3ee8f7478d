"""The three products of the quantized layers against float64 loops over the quantized operands."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from definitions import conv2d
from quant_helpers import Array, expected, tensor, watch
from torch import nn

from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.numerics.formats import Affine, PerAxis, PerTensor, PerTile, Symmetric
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision
from fractrain.numerics.stochastic_rounding import noise_key
from fractrain.util.errors import ConfigError, NonFiniteError

NEAREST = Operand(4, Affine())
MIXED = Precision(
    fw_a=Operand(5, Affine()),
    fw_w=Operand(4, Symmetric(PerAxis(0))),
    eb_e=Operand(6, Affine(rounding="stochastic")),
    eb_w=Operand(3, Affine()),
    gc_a=Operand(8, Symmetric(rounding="stochastic")),
    gc_e=Operand(12, Symmetric(PerAxis(0), "stochastic")),
)
CONVS: list[tuple[int, int, dict[str, Any]]] = [
    (3, 4, {"kernel_size": 3}),
    (3, 4, {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}),
    (4, 6, {"kernel_size": 3, "padding": 1, "groups": 2}),
    (4, 4, {"kernel_size": 3, "padding": 1, "groups": 4, "stride": 2}),
    (4, 8, {"kernel_size": (3, 1), "groups": 4, "dilation": (2, 1), "padding": (2, 0)}),
    (3, 5, {"kernel_size": 1}),
    (3, 5, {"kernel_size": 1, "stride": 2, "bias": False}),
    (2, 3, {"kernel_size": (3, 5), "padding": "same"}),
    (2, 3, {"kernel_size": (2, 3), "padding": "valid", "stride": (2, 1)}),
    (1, 1, {"kernel_size": 5, "padding": 2}),
    (2, 2, {"kernel_size": 7}),  # one output position
]


def conv_gradients(x: Array, w: Array, e: Array, layer: QuantConv2d) -> tuple[Array, Array]:
    """EB and GC by their definition: every product of a tap, added where it belongs."""
    (sh, sw), (ph, pw), (dh, dw_) = layer.stride, layer.zero_padding, layer.dilation  # type: ignore[misc]
    height, width = x.shape[2:]
    out, per, kh, kw = w.shape
    each = out // layer.groups
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    da, dw = np.zeros_like(padded), np.zeros_like(w)
    for o, i, a, b in itertools.product(range(out), range(per), range(kh), range(kw)):
        channel = (o // each) * per + i
        for r, s in itertools.product(range(e.shape[2]), range(e.shape[3])):
            y0, x0 = r * sh + a * dh, s * sw + b * dw_
            da[:, channel, y0, x0] += e[:, o, r, s] * w[o, i, a, b]
            dw[o, i, a, b] += float((e[:, o, r, s] * padded[:, channel, y0, x0]).sum())
    return da[:, :, ph : ph + height, pw : pw + width], dw


def f64(x: torch.Tensor) -> Array:
    return x.detach().double().contiguous().numpy()


def operands(seen: dict[str, torch.Tensor], p: Precision, x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> Any:
    """The six operands the products must have used, from what was observed (floating point: the originals)."""
    source = {"fw_a": x, "gc_a": x, "fw_w": w, "eb_w": w, "eb_e": g, "gc_e": g}
    name = {"fw_a": "fw_a", "gc_a": "gc_a", "fw_w": "fw_w", "eb_w": "eb_w"}
    one = p.eb_e.same_as(p.gc_e)
    name |= {"eb_e": "E" if one else "E.eb", "gc_e": "E" if one else "E.gc"}
    out = {}
    for operand, op in p.operands().items():
        if op.is_float:
            out[operand] = f64(source[operand])
            continue
        key = name[operand]
        if operand in ("gc_a", "eb_w") and key not in seen:  # equal operands are quantized once
            key = {"gc_a": "fw_a", "eb_w": "fw_w"}[operand]
        out[operand] = f64(seen[key])
    return out


def close(got: torch.Tensor | None, want: Array) -> None:
    assert got is not None
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(f64(got), want, rtol=0, atol=3e-6 * scale)


PRECISIONS = {
    "fractrain": fractrain_precision(4, 4, 6),
    "mixed": MIXED,
    "banner": Precision(fw_a=NEAREST, fw_w=NEAREST, eb_e=NEAREST, eb_w=NEAREST, gc_a=NEAREST, gc_e=FLOAT),
    "float A in FW": Precision(
        fw_w=NEAREST, eb_e=NEAREST, eb_w=NEAREST, gc_a=NEAREST, gc_e=NEAREST),
    "float A in GC": Precision(fw_a=NEAREST, fw_w=NEAREST, eb_e=NEAREST, eb_w=NEAREST, gc_e=NEAREST),
    "float W": Precision(fw_a=NEAREST, eb_e=NEAREST, gc_a=NEAREST, gc_e=NEAREST),
    "float W in EB": Precision(fw_a=NEAREST, fw_w=NEAREST, eb_e=NEAREST, gc_a=NEAREST, gc_e=NEAREST),
    "only E in EB": Precision(eb_e=Operand(2)),
    "only A in GC": Precision(gc_a=Operand(2)),
    "float": Precision(),
}  # fmt: skip


def run_conv(spec: Any, p: Precision, channels_last: bool, seed: int = 0) -> None:
    torch.manual_seed(seed)
    cin, cout, options = spec
    layer = QuantConv2d(nn.Conv2d(cin, cout, **options), p, QuantState(5), "net.conv")
    seen = watch(layer)
    x = torch.randn(2, cin, 7, 7)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    g = torch.randn(y.shape)
    y.backward(g)
    o = operands(seen, p, x, layer.weight, g)
    want = conv2d(o["fw_a"], o["fw_w"], layer.stride, layer.zero_padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    if layer.bias is not None:
        want = want + f64(layer.bias)[None, :, None, None]
    close(y, want)
    close(x.grad, conv_gradients(o["fw_a"], o["eb_w"], o["eb_e"], layer)[0])
    close(layer.weight.grad, conv_gradients(o["gc_a"], o["eb_w"], o["gc_e"], layer)[1])
    if layer.bias is not None:
        close(layer.bias.grad, o["gc_e"].sum((0, 2, 3)))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("spec", CONVS, ids=str)
def test_convolutions_of_all_kinds(spec, channels_last: bool) -> None:
    run_conv(spec, MIXED, channels_last)


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_mix_of_operands(name: str) -> None:
    for spec in (CONVS[1], CONVS[3]):
        run_conv(spec, PRECISIONS[name], True)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5), (1, 5), (2, 3, 2, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(name: str, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    p = PRECISIONS[name]
    layer = QuantLinear(nn.Linear(5, 3, bias=bias), p, QuantState(5), "net.fc")
    seen = watch(layer)
    x = tensor(shape, 0).requires_grad_()
    y = layer(x)
    g = tensor(tuple(y.shape), 1)
    y.backward(g)
    o = operands(seen, p, x, layer.weight, g)
    y2, dx = y.reshape(-1, 3), None if x.grad is None else x.grad.reshape(-1, 5)  # one row per vector
    o = {name: v if name in ("fw_w", "eb_w") else v.reshape(-1, v.shape[-1]) for name, v in o.items()}
    close(y2, o["fw_a"] @ o["fw_w"].T + (0 if layer.bias is None else f64(layer.bias)))
    close(dx, o["eb_e"] @ o["eb_w"])
    close(layer.weight.grad, o["gc_e"].T @ o["gc_a"])
    if bias:
        close(layer.bias.grad, o["gc_e"].sum(0))


def test_operands_are_quantized_as_declared() -> None:
    """What the observer saw is what the float64 loops make of the original, with the documented noise names."""
    torch.manual_seed(0)
    state = QuantState(5)
    state.step = 3
    layer = QuantConv2d(nn.Conv2d(3, 4, 3), MIXED, state, "a.b")
    seen = watch(layer)
    x = tensor((2, 3, 6, 6), 0).requires_grad_()
    y = layer(x)
    g = tensor(tuple(y.shape), 1)
    y.backward(g)
    for key, op, source, name in (
        ("fw_a", MIXED.fw_a, x, None),
        ("fw_w", MIXED.fw_w, layer.weight, None), ("eb_w", MIXED.eb_w, layer.weight, None),
        ("gc_a", MIXED.gc_a, x, "a.b.A"), ("E.eb", MIXED.eb_e, g, "a.b.E.eb"), ("E.gc", MIXED.gc_e, g, "a.b.E.gc"),
    ):  # fmt: skip
        noise = None if name is None else noise_key(state.seed, 3, name)
        want, _, step, clear = expected(source.detach(), op.format, op.bits, noise)
        difference = np.abs(f64(seen[key]) - want)
        assert (difference <= 1e-5 * np.abs(want).max() + np.where(clear > 0, 0.0, step)).all(), key


@pytest.mark.parametrize("operand", ["fw_a", "fw_w", "eb_e", "eb_w", "gc_a", "gc_e"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_every_declared_width_changes_its_own_product_and_no_other(operand: str, kind: str) -> None:
    base = Precision(*[Operand(8, Affine()) for _ in range(6)])

    def products(p: Precision) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        layer: QuantLayer = QuantConv2d(nn.Conv2d(3, 4, 3), p) if kind == "conv" else QuantLinear(nn.Linear(6, 4), p)
        x = (tensor((2, 3, 6, 6), 0) if kind == "conv" else tensor((5, 6), 0)).requires_grad_()
        y = layer(x)
        y.backward(tensor(tuple(y.shape), 1))
        return y.detach(), x.grad, layer.weight.grad

    before = products(base)
    after = products(replace(base, **{operand: Operand(2, Affine())}))
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [operand.startswith("fw"), operand.startswith("eb"), operand.startswith("gc")]


def test_float_precision_is_the_plain_layer() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
    x = tensor((2, 3, 5, 5), 0)
    assert torch.equal(QuantConv2d(conv, Precision())(x), conv(x))
    fc = nn.Linear(4, 5)
    assert torch.equal(QuantLinear(fc, Precision())(x[:, :, 0, :4]), fc(x[:, :, 0, :4]))


@pytest.mark.parametrize("want", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("name", ["fractrain", "mixed"])
def test_only_gradients_asked_for_are_computed_and_they_are_the_same(want, kind: str, name: str) -> None:
    def products(flags: tuple[bool, bool, bool]) -> list[torch.Tensor | None]:
        torch.manual_seed(0)
        p = PRECISIONS[name]
        layer: QuantLayer = QuantConv2d(nn.Conv2d(3, 4, 3), p) if kind == "conv" else QuantLinear(nn.Linear(6, 4), p)
        x = tensor((2, 3, 6, 6), 0) if kind == "conv" else tensor((5, 6), 0)
        assert layer.bias is not None
        for t, flag in zip((x, layer.weight, layer.bias), flags, strict=True):
            t.requires_grad_(flag)
        y = layer(x)
        assert y.requires_grad == any(flags)
        if any(flags):
            y.backward(tensor(tuple(y.shape), 1))
        return [x.grad, layer.weight.grad, layer.bias.grad]

    full, part = products((True, True, True)), products(want)
    for flag, a, b in zip(want, full, part, strict=True):
        assert (b is not None) == flag
        if flag:
            assert torch.equal(a, b)


def test_reference_and_fused_kernels_train_to_the_same_bits() -> None:
    def weights(kernels: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        state = QuantState(1, kernels=kernels)
        net = nn.Sequential(
            QuantConv2d(nn.Conv2d(3, 6, 3, padding=1), MIXED, state, "0"), nn.ReLU(),
            QuantConv2d(nn.Conv2d(6, 6, 3, groups=6), fractrain_precision(3, 4, 6), state, "1"), nn.Flatten(),
            QuantLinear(nn.Linear(216, 4), MIXED, state, "2"),
        )  # fmt: skip
        opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for step in range(4):
            state.step = step
            opt.zero_grad()
            net(tensor((3, 3, 8, 8), step)).square().mean().backward()
            opt.step()
        return [p.detach() for p in net.parameters()] + [b for n, b in net.named_buffers()]

    for a, b in zip(weights("reference"), weights("fused"), strict=True):
        assert torch.equal(a, b)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("p", [fractrain_precision(8, 8, 8), MIXED], ids=["fractrain", "mixed"])
def test_inf_and_nan_name_the_layer_the_operand_and_the_step(bad: float, kernels: Any, p: Precision) -> None:
    for where, what in (("x", "input"), ("w", "weight"), ("g", "output gradient")):
        state = QuantState(kernels=kernels)
        state.step = 41
        torch.manual_seed(0)
        layer = QuantConv2d(nn.Conv2d(2, 3, 3), p, state, "layer3.0.conv2")
        x, g = tensor((2, 2, 5, 5), 0), tensor((2, 3, 3, 3), 1)
        with torch.no_grad():
            {"x": x, "w": layer.weight, "g": g}[where][-1, -1, -1, -1] = bad
        with pytest.raises(NonFiniteError, match=f"layer3.0.conv2: inf or nan in its {what} at step 41") as error:
            layer(x.requires_grad_()).backward(g)
        assert (error.value.layer, error.value.step, error.value.exit_code) == ("layer3.0.conv2", 41, 1)


def test_bad_input_is_refused_in_one_line() -> None:
    p = fractrain_precision(8, 8, 8)
    conv, fc = QuantConv2d(nn.Conv2d(3, 4, 3), p, site="c1"), QuantLinear(nn.Linear(4, 5), p, site="fc")
    for layer, x, what in (
        (conv, torch.zeros(0, 3, 8, 8), "c1: empty batch"),
        (fc, torch.zeros(0, 4), "fc: empty batch"),
        (fc, torch.zeros(3, 0, 4), "fc: empty batch"),
        (conv, torch.zeros(3, 8, 8), "c1: .*no sample axis"),
        (fc, torch.zeros(4), "fc: .*no sample axis"),
    ):
        with pytest.raises(ConfigError, match=what) as error:
            layer(x)
        assert "\n" not in str(error.value)
    assert not list(conv.state.ledger.rows())
    with pytest.raises(ConfigError, match="c2: padding 'circular'"):
        QuantConv2d(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), p, site="c2")
    with pytest.raises(ConfigError, match="c3: padding 'zeros', 'same'"):
        QuantConv2d(nn.Conv2d(3, 4, 2, padding="same"), p, site="c3")


def test_second_derivatives_are_refused() -> None:
    layer = QuantLinear(nn.Linear(4, 5), fractrain_precision(8, 8, 8))
    x = tensor((3, 4), 0).requires_grad_()
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.square().sum().backward()


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerTile(2, 2)], ids=str)
def test_last_smaller_batch_and_single_samples(granularity) -> None:
    p = Precision.of(*[Operand(8, Affine(granularity), running=0.9 if i == 0 else None) for i in range(3)])
    layer = QuantConv2d(nn.Conv2d(3, 4, 3, padding=1), p)
    for n in (4, 3, 1):
        x = tensor((n, 3, 5, 5), n).requires_grad_()
        y = layer(x)
        y.sum().backward()
        plain = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        assert float((y - plain).detach().abs().max()) < 0.05 * float(plain.detach().abs().max())
    layer.eval()
    assert layer(tensor((1, 3, 5, 5), 0)).shape == (1, 4, 5, 5)


# -- candidates of a gated block -------------------------------------------------------------------------------------


def test_candidates_share_a_product_unless_the_block_changed_it_in_place() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(6, 5), fractrain_precision(4, 4, 6))
    x = tensor((3, 6), 0)
    alone = layer(x).detach().clone()
    for change in (False, True):
        memo: dict[Any, Any] = {}
        for k in range(3):
            layer.state.scope = CandidateScope(k, x, "4/4", memo)
            y = layer(x)
            assert torch.equal(y.detach(), alone)
            if change:
                y.add_(1.0)
        layer.state.scope = None


def test_candidates_round_their_errors_independently() -> None:
    layer = QuantLinear(nn.Linear(6, 5), fractrain_precision(4, 4, 2))
    x, g = tensor((3, 6), 0), tensor((3, 5), 1)
    grads = []
    for k in range(2):
        a = x.clone().requires_grad_()
        layer.state.scope = CandidateScope(k, a, k, {})
        y = layer(a)
        layer.state.scope = None
        y.backward(g)
        grads.append(a.grad)
    assert not torch.equal(grads[0], grads[1])

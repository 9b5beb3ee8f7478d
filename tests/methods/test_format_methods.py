"""Methods in number formats of today: operands as their sources have them, delayed scaling, what is kept, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.conv_linear import QuantConv2d, QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.numerics.elements import E4M3, E5M2
from fractrain.numerics.formats import Place
from fractrain.util.errors import ConfigError, NonFiniteError

NAMES = ("fp8", "mx", "nvfp4", "quartet2", "luq", "jetfire", "switchback", "int8_rowwise")


def linear(name: str, width: int = 48, **settings: Any) -> tuple[Any, QuantLayer]:
    """A method and the middle one of three linear layers, which it quantizes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(3)))
    method = registry.create(name, settings)
    model = method.prepare(model, MethodContext(batch_size=8)).train()
    return method, next(m for m in quant_layers(model) if not m.precision.is_float)


def described(name: str, **settings: Any) -> dict[str, str]:
    """``format rows x columns rounding`` of each operand."""
    _, layer = linear(name, **settings)
    out = {}
    for key, op in layer.precision.operands().items():
        g = op.format.granularity
        block = f"{g.rows}x{g.cols}" if hasattr(g, "rows") else type(g).__name__
        out[key] = "float32" if op.is_float else f"{op.format.name} {block} {op.format.rounding}"
    return out


OPERANDS = [
    ("fp8", {}, [f"{e}/float32 PerTensor nearest" for e in ("e4m3", "e4m3", "e5m2", "e4m3", "e4m3", "e5m2")]),
    ("fp8", {"recipe": "rowwise"}, [f"e4m3/float32 {b} nearest" for b in ("1x0", "1x0", "1x0", "0x1", "0x1", "0x1")]),
    ("fp8", {"recipe": "rowwise_with_gw_hp"}, ["e4m3/float32 1x0 nearest"] * 3 + ["e4m3/float32 PerTensor nearest"]
     + ["float32"] * 2),
    ("mx", {}, [f"e4m3/e8m0 {b} nearest" for b in ("1x32", "1x32", "1x32", "32x1", "32x1", "32x1")]),
    ("mx", {"format": "mxfp4", "rounding": "stochastic", "rotation": True},
     [f"e2m1/e8m0 {b} nearest" for b in ("1x32", "1x32")]
     + [f"e2m1/e8m0 (rotated by 32) {b} stochastic" for b in ("1x32", "32x1", "32x1", "32x1")]),
    ("nvfp4", {}, ["e2m1/e4m3 1x16 nearest", "e2m1/e4m3 16x16 nearest", "e2m1/e4m3 1x16 stochastic",
     "e2m1/e4m3 16x16 nearest", "e2m1/e4m3 (rotated by 16) 16x1 nearest", "e2m1/e4m3 (rotated by 16) 16x1 stochastic"]),
    ("jetfire", {}, ["int8/float32 32x32 nearest"] * 6),
    ("switchback", {}, ["int8/float32 1x0 nearest", "int8/float32 PerTensor nearest", "int8/float32 1x0 nearest",
     "int8/float32 PerTensor nearest", "float32", "float32"]),
    ("int8_rowwise", {}, [f"int8/float32 {b} nearest" for b in ("1x0", "1x0", "1x0", "0x1", "0x1", "0x1")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "operands"), OPERANDS, ids=[f"{n}{len(s)}" for n, s, _ in OPERANDS])
def test_operands_are_those_of_the_source(name, settings, operands):
    assert list(described(name, **settings).values()) == operands


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_quantized_operands(name):
    """A convolution's y, dx and dW, from operands that the formats quantize one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(c, 16, 3, padding=1, bias=False) for c in (3, 16, 16)))
    method = registry.create(name, {})
    layer = list(method.prepare(model, MethodContext(batch_size=2)).train().children())[1]
    assert isinstance(layer, QuantConv2d)
    seen: dict[str, torch.Tensor] = {}
    layer.observer = lambda _l, n, _o, _x, values: seen.__setitem__(n, values)
    x = torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    e = torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    y.backward(e)
    p, w = layer.precision, layer.weight.detach()

    def noise(tensor: str, op: Any) -> Any:
        return None if op.format.rounding == "nearest" else layer.state.noise(f"{layer.site}.{tensor}")

    def q(op: Any, value: torch.Tensor, role: str, tensor: str) -> torch.Tensor:
        if op.is_float:
            return value
        return op.format.quantize(value.detach(), op.bits, noise(tensor, op), None, Place(role)).values

    one = p.eb_e.same_as(p.gc_e)
    fw_a, fw_w = q(p.fw_a, x, "A", "A"), q(p.fw_w, w, "W", "W")
    eb_e, eb_w = q(p.eb_e, e, "E", "E" if one else "E.eb"), q(p.eb_w, w, "W", "W")
    gc_a, gc_e = q(p.gc_a, x, "A", "A"), q(p.gc_e, e, "E", "E" if one else "E.gc")
    torch.testing.assert_close(y, F.conv2d(fw_a, fw_w, None, padding=1), rtol=1e-5, atol=1e-5)
    dx = torch.nn.grad.conv2d_input(x.shape, eb_w, eb_e, padding=1)
    dw = torch.nn.grad.conv2d_weight(gc_a, w.shape, gc_e, padding=1)
    torch.testing.assert_close(x.grad, dx, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, dw, rtol=1e-5, atol=1e-3)
    assert "fw_a" in seen


# -- delayed scaling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1.0, 100.0, 0.01, 0.0, 5.0], [0.0, 5.0, 0.0, 0.0, 0.0, 2.0]])
def test_delayed_scales_come_from_earlier_amaxes_and_are_one_at_first(sizes):
    method, layer = linear("fp8", recipe="delayed", history=2)
    seen: dict[str, torch.Tensor] = {}
    layer.observer = lambda _l, n, _o, _x, values: seen.__setitem__(n, values)
    history: dict[str, list[float]] = {"fw_a": [], "E": []}
    for step, size in enumerate(sizes):
        method.on_step_start(step)
        x = (torch.randn(8, 48) * size).requires_grad_()
        e = torch.randn(8, 48) * size * 1e-3
        layer(x).backward(e)
        for name, value, element in (("fw_a", x.detach(), E4M3), ("E", e, E5M2)):
            amax = max(history[name][-2:], default=0.0)
            to = torch.tensor(element.max / amax if amax else 1.0)
            expected = element.round(value * to) * to.reciprocal()
            assert torch.equal(seen[name], expected), (step, name)
            history[name].append(float(value.abs().max()))


def test_evaluation_leaves_the_history_as_it_is():
    _, layer = linear("fp8", recipe="delayed", history=3)
    layer(torch.randn(4, 48)).sum().backward()
    before = {n: b.clone() for n, b in layer.named_buffers() if n.startswith("amax")}
    assert set(before) == {"amax_history_fw_a", "amax_history_fw_w", "amax_history_E"}
    layer.eval()
    with torch.no_grad():
        layer(100 * torch.randn(4, 48))
    assert all(torch.equal(b, getattr(layer, n)) for n, b in before.items())


def test_a_checkpoint_holds_the_history():
    _, layer = linear("fp8", recipe="delayed", history=3)
    layer(torch.randn(4, 48)).sum().backward()
    state = copy.deepcopy(layer.state_dict())
    _, fresh = linear("fp8", recipe="delayed", history=3)
    fresh.load_state_dict(state)
    x = torch.randn(4, 48)
    assert torch.equal(fresh(x), layer(x))
    assert float(fresh.amax_history_fw_a[0]) > 0


def test_delayed_scaling_needs_one_scale_per_tensor():
    from fractrain.numerics.formats import Affine, PerBlock
    from fractrain.numerics.precision import Operand
    from fractrain.numerics.scaled import Scaled

    with pytest.raises(ConfigError, match="one scale per tensor"):
        Operand.of(Scaled(PerBlock(1, 32)), history=4)
    with pytest.raises(ConfigError, match="one scale per tensor"):
        Operand(8, Affine(), history=4)


# -- memory ----------------------------------------------------------------------------------------------------------

MOST = {"fp8": 1.3, "mx": 1.3, "jetfire": 1.3, "int8_rowwise": 1.3, "nvfp4": 0.7, "quartet2": 0.7, "luq": 1.3}


@pytest.mark.parametrize("name", MOST)
def test_few_bytes_are_kept_for_each_activation(name):
    """Of what autograd keeps of a quantized convolution: all but its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(c, 16, 3, padding=1, bias=False) for c in (3, 16, 16)))
    layer = list(registry.create(name, {}).prepare(model, MethodContext()).train().children())[1]
    x = torch.randn(8, 16, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.shape != layer.weight.shape:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert 0 < sum(kept.values()) / x.numel() <= MOST[name]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_inf_and_nan_are_refused_in_one_line_that_names_the_layer(name, bad):
    _, layer = linear(name)
    x = torch.randn(4, 48)
    x[1, 3] = bad
    with pytest.raises(NonFiniteError, match=r"^1: inf or nan in its input at step 0$"):
        layer(x)
    y = layer(torch.randn(4, 48, requires_grad=True))
    e = torch.zeros_like(y)
    e[0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"^1: inf or nan in its output gradient at step 0$"):
        y.backward(e)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_subnormals_train_to_finite_weights(name):
    for size in (0.0, 1e-40, 1e-30, 1e30):
        _, layer = linear(name)
        x = (torch.randn(5, 48) * size).requires_grad_()
        layer(x).backward(torch.randn(5, 48) * 1e-6)
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all(), size
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 5, 33])
def test_sizes_that_are_no_multiple_of_a_block(name, width):
    method, layer = linear(name, width=width)
    x = torch.randn(7, width, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert sum(r.macs for r in method.context.ledger.rows() if r.layer == "1") == 3 * 7 * width * width


@pytest.mark.parametrize("name", NAMES)
def test_depthwise_convolutions_are_served(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 4, 1))
    model = registry.create(name, {}).prepare(model, MethodContext(batch_size=2)).train()
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_wrong_setting_is_one_line():
    with pytest.raises(ConfigError, match="recipe"):
        registry.create("fp8", {"recipe": "colwise"})


@pytest.mark.parametrize("name", NAMES)
def test_a_small_network_learns(name):
    """Loss of a tiny ResNet on one batch falls by a tenth in a few steps."""
    torch.manual_seed(0)
    method = registry.create(name, {})
    model = method.prepare(ResNetCifar(1, classes=4), MethodContext(batch_size=16)).train()
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(8):
        method.on_step_start(step)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses

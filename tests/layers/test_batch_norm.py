"""Compiled batch normalisation: function and gradients against float64, its notes, and when it is PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fractrain.kernels.cpu.uniform import probed
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.base import QuantLayer
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.convert import convert
from fractrain.layers.norm_relu import ConvNormReLU, norm_relu
from fractrain.layers.relu import CompactReLU
from fractrain.layers.state import QuantState
from fractrain.models.registry import build
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import Operand, Precision
from fractrain.util.errors import NonFiniteError

pytestmark = pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")

SHAPES = [(2, 1, 1, 1), (3, 3, 5, 7), (16, 16, 32, 32), (5, 24, 9, 9), (4, 64, 8, 8), (2, 513, 3, 3), (7, 600, 1, 1)]
EIGHT = Precision(*[Operand(8, Affine())] * 6)
REL = 3e-6  # of the largest value: some roundings of float32


def images(*shape: int, seed: int = 0, away: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=gen) * spread + away
    return x.contiguous(memory_format=torch.channels_last)


def layer_like(channels: int, **options: object) -> tuple[CompactBatchNorm2d, nn.BatchNorm2d]:
    """The layer and PyTorch's with the same parameters."""
    theirs = nn.BatchNorm2d(channels, **options)  # type: ignore[arg-type]
    gen = torch.Generator().manual_seed(channels)
    for p in theirs.parameters():
        p.data.copy_(torch.randn(channels, generator=gen))
    ours = CompactBatchNorm2d.of(copy.deepcopy(theirs), QuantState())
    return ours, theirs


def in_float64(
    x: torch.Tensor, g: torch.Tensor, layer: nn.BatchNorm2d, relu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, gradients of input, weight and bias, mean and unbiased variance, by the textbook's formulas."""
    x, g = x.double(), g.double()
    n, view = x.numel() // x.shape[1], (1, -1, 1, 1)
    one, none = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    weight = (one if layer.weight is None else layer.weight.detach()).double().view(view)
    bias = (none if layer.bias is None else layer.bias.detach()).double().view(view)
    mean = x.sum((0, 2, 3), keepdim=True) / n
    variance = (x - mean).square().sum((0, 2, 3), keepdim=True) / n
    normal = (x - mean) / (variance + layer.eps).sqrt()
    y = normal * weight + bias
    if relu:
        g = torch.where(y > 0, g, 0.0)
        y = y.clamp(min=0)
    dw, db = (g * normal).sum((0, 2, 3)), g.sum((0, 2, 3))
    dx = weight / (variance + layer.eps).sqrt() * (g - db.view(view) / n - normal * dw.view(view) / n)
    return y, dx, dw, db, mean.flatten(), variance.flatten() * n / (n - 1)


def near(got: torch.Tensor, want: torch.Tensor, size: float | None = None, rel: float = REL) -> None:
    size = float(want.abs().max()) if size is None else size
    assert float((got.double() - want).abs().max()) <= rel * max(size, 1e-30)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_float64(shape: tuple[int, ...], relu: bool) -> None:
    ours, _ = layer_like(shape[1])
    x, g = images(*shape, away=0.7), images(*shape, seed=1)
    if relu:  # where the sign of the output hangs on a rounding, either is right
        y = in_float64(x, g, ours, False)[0]
        g = torch.where(y.abs() < 1e-5, torch.zeros(()), g).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    got = ours.rectified(x) if relu else ours(x)
    assert type(got.grad_fn).__name__ == "_CompactBatchNormBackward"
    got.backward(g)
    y, dx, dw, db, *_ = in_float64(x.detach(), g, ours, relu)
    # what a channel's gain multiplies may be hardly anything where there are few values: measured by their sizes
    gain = float(
        (ours.weight.detach() / (x.detach().double().var((0, 2, 3), correction=0) + ours.eps).sqrt()).abs().max()
    )
    near(got.detach(), y, max(float(y.abs().max()), gain))
    near(x.grad, dx, gain * float(g.abs().max()))  # type: ignore[arg-type]
    terms = float(g.double().abs().sum((0, 2, 3)).max())
    near(ours.weight.grad, dw, terms)  # type: ignore[arg-type]
    near(ours.bias.grad, db, terms)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"eps": 0.1}, {"momentum": 0.0}], ids=str
)
def test_running_statistics_and_options_are_pytorch_s(options: dict[str, object]) -> None:
    ours, theirs = layer_like(16, **options)
    for step in range(3):
        x = images(4, 16, 8, 8, seed=step, away=2.0, spread=3.0)
        near(ours(x).detach(), theirs(x).detach().double())
    for name, value in theirs.state_dict().items():
        got = ours.state_dict()[name]
        assert got.dtype == value.dtype
        near(got, value.double())
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_mean_far_from_zero_costs_no_more_than_it_costs_pytorch() -> None:
    ours, theirs = layer_like(16)
    x, g = images(16, 16, 16, 16, away=300.0), images(16, 16, 16, 16, seed=1)
    want = in_float64(x, g, theirs, False)
    errors = []
    for layer in (ours, theirs):
        a = x.clone().requires_grad_()
        y = layer(a)
        y.backward(g)
        assert a.grad is not None
        errors.append([float((v.double() - w).abs().max()) for v, w in zip((y.detach(), a.grad), want, strict=False)])
    for mine, other, value in zip(*errors, want, strict=False):
        assert mine <= max(2 * other, REL * float(value.abs().max()))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    results = []
    for n in (1, 2):
        torch.set_num_threads(n)
        ours, _ = layer_like(32)
        x = images(8, 32, 32, 32).requires_grad_()
        y = ours.rectified(x)
        y.backward(images(8, 32, 32, 32, seed=1))
        results.append([y.detach(), x.grad, ours.weight.grad, ours.bias.grad, ours.running_mean, ours.running_var])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_everything_else_is_pytorch_s_own() -> None:
    ours, theirs = layer_like(16)
    x = images(4, 16, 8, 8)
    cases = [x.double(), x.contiguous()]
    for given in cases:
        a, b = copy.deepcopy(ours).to(given.dtype), copy.deepcopy(theirs).to(given.dtype)
        assert torch.equal(a(given), b(given))
    reference = CompactBatchNorm2d.of(copy.deepcopy(theirs), QuantState(kernels="reference"))
    assert torch.equal(reference(x), copy.deepcopy(theirs)(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    for layer in (ours.train(), theirs.train()):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(images(1, 16, 1, 1))
        with pytest.raises(RuntimeError):
            layer(images(2, 8, 4, 4))


def test_what_is_noted_are_the_extremes_and_nan_is_not_hidden() -> None:
    ours, _ = layer_like(16)
    x = images(8, 16, 16, 16).requires_grad_()
    seen: list[torch.Tensor] = []
    middle = x * 1.0
    middle.register_hook(seen.append)  # type: ignore[no-untyped-call]
    y = ours.rectified(middle)
    assert known_range.of(y) == (y.min().item(), y.max().item())
    y.backward(images(8, 16, 16, 16, seed=1))
    assert known_range.of(seen[0]) == (seen[0].min().item(), seen[0].max().item())
    with torch.no_grad():
        y.mul_(2)
    assert known_range.of(y) is None
    for bad in (float("nan"), float("inf")):
        x = images(8, 16, 16, 16)
        x[3, 5, 2, 2] = bad
        y = ours.rectified(x)
        assert known_range.of(y) is None
        assert y[:, 5].isnan().all()
        assert y[:, :5].isfinite().all()
        g = images(8, 16, 16, 16, seed=1)
        g[1, 2, 3, 4] = bad
        x = images(8, 16, 16, 16).requires_grad_()
        layer_like(16)[0](x).backward(g)
        assert not x.grad[:, 2].isfinite().any()  # type: ignore[index]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = ConvNormReLU(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.bn2(self.conv2(self.stem(x)))
        return out


@pytest.mark.parametrize("where", ["norm", "relu", "everywhere"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_norm_and_relu_are_one_pass_unless_a_hook_looks(kind: str, where: str) -> None:
    norm, _ = layer_like(4)
    relu = CompactReLU(kind != "full_backward")  # torch allows no such hook before an operation in place
    x, g = images(4, 4, 8, 8).requires_grad_(), images(4, 4, 8, 8, seed=1)
    fused = norm_relu(norm, relu, x)
    assert type(fused.grad_fn).__name__ == "_CompactBatchNormBackward"
    seen: list[str] = []
    place = {"norm": norm, "relu": relu, "everywhere": torch.nn.modules.module}[where]
    name = f"register_module_{kind}_hook" if where == "everywhere" else f"register_{kind}_hook"

    def look(m: nn.Module, *_: object) -> None:
        seen.append(type(m).__name__)

    handle = getattr(place, name)(look)
    try:
        apart = norm_relu(norm, relu, x)
        apart.backward(g)
    finally:
        handle.remove()
    looked = {"norm": ["CompactBatchNorm2d"], "relu": ["CompactReLU"]}
    assert sorted(seen) == looked.get(where, ["CompactBatchNorm2d", "CompactReLU"])
    assert torch.equal(fused, apart)
    (dx,) = torch.autograd.grad(fused, x, g)
    assert torch.equal(dx, x.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet38", "mobilenet_v2", "resnet18"])
def test_who_calls_the_layers_one_by_one_sees_what_each_returns(name: str) -> None:
    """A BatchNorm of the package's models is one, before conversion and after, and has values below zero."""
    size = 32
    net = build(name, 10, (3, size, size))
    x = images(4, 3, size, size)
    whole = {}
    for converted in (False, True):
        net = convert(net, EIGHT, keep_last=False) if converted else net
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        whole[converted] = len(norms)
        for norm in norms:
            assert norm(images(4, norm.num_features, 4, 4)).min() < 0
        assert net(x).isfinite().all()
    assert whole[True] == whole[False]


def test_quantizers_told_the_range_find_what_they_would_have_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    told = []

    def counted(x: torch.Tensor) -> tuple[float, float] | None:
        told.append(known(x))
        return told[-1]

    known = known_range.of
    for function in (counted, lambda x: None):
        monkeypatch.setattr(known_range, "of", function)
        torch.manual_seed(0)
        state = QuantState(1)
        net = convert(Net(), Precision(*[Operand(8, Affine(rounding="stochastic"))] * 6), state, keep_last=False)
        net(images(4, 3, 16, 16)).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert sum(r is not None for r in told) == 3  # conv2's input and both errors
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_nan_behind_a_norm_is_refused_with_the_layer_s_name() -> None:
    net = convert(Net(), EIGHT, keep_last=False)
    net.stem[1].weight.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"conv2: inf or nan in its input"):
        net(images(4, 3, 16, 16))
    assert isinstance(net.conv2, QuantLayer)


def test_it_keeps_its_input_and_nothing_else_of_that_size() -> None:
    ours, _ = layer_like(16)
    x = images(8, 16, 16, 16).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1], lambda t: t):
        ours.rectified(x)
    assert kept == [x.nbytes]

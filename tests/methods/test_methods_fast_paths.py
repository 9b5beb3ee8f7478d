"""Every fast path equals its reference twin: every method that can be found, in float64, in float32 and in integers.

* float64: whole trainings against the slow twin of :mod:`methods_twin`, to 1e-11. The compiled kernels do not apply to
  float64, so this is about what is shared, kept, skipped and summed in another order.
* float32, products too small for integer codes: whole trainings against the plain kernels, bit for bit, with PyTorch's
  own BatchNorm in both; the compiled BatchNorm layer by layer against float64, on what the training gave it.
* float32, large products: layer by layer with the inputs and errors that the training gave them (a whole network is
  chaotic: one last bit turns a rounding). Quantized tensors bit for bit; products on integer codes round otherwise than
  a float32 sum, and must be as near to it as two orders of that same sum may be to each other.
* integers: products of integer operands against int64 loops, exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import methods_twin
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods_twin import on_grid, products_of, restored_in_the_dtype_of_the_grid, use_twin
from torch import nn

from fractrain.bench.subject import force_choices
from fractrain.kernels.cpu.int8 import MIN_MACS, runs_on_int8
from fractrain.kernels.cpu.int8_backward import possible
from fractrain.kernels.cpu.uniform import probed
from fractrain.kernels.geometry import Geometry
from fractrain.layers import conv_linear as layers_module
from fractrain.layers.base import QuantLayer
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.convert import quant_layers
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.methods import registry, select
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.methods.select import row_products
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.models.transformer import TransformerLM
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, PerAxis
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.rotation import Rotated
from fractrain.numerics.scaled import Scaled

CLASSES, WORDS = 4, 24
REL = 1e-11  # of the largest value of a tensor: what the project asks for in float64
SAMPLE = Geometry((16, 32, 32), 16, (3, 3), (1, 1), (1, 1))
INT8, VNNI = (
    runs_on_int8(SAMPLE),
    bool(possible(SAMPLE)),
)  # whether this machine has exact products on codes, FW's and others


# -- the subjects ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method with settings on a model, and the candidates that gates are made to choose (None: all of them)."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = "resnet"
    live: tuple[int, ...] | None = None

    def __str__(self) -> str:
        words = [f"{k}={v}" for k, v in self.settings.items()]
        live = [] if self.live is None else ["live" + "".join(map(str, self.live))]
        return "-".join([self.name, *words, *live, self.model])


def plain_model(model: str, large: bool = False) -> nn.Module:
    """A ResNet of 8 layers, or a language model of two layers, with random normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        width = 64 if large else 16
        net = ResNetCifar(1, CLASSES) if model == "resnet" else TransformerLM(WORDS, 2, width, 2 * width, 2, 0.0)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0.0, 0.3)
    return net


def on_uniform_grids(name: str, net: nn.Module) -> bool:
    """Fast paths are for uniform grids; floats and blocks have twins of their own (test_format_methods.py)."""
    context = MethodContext(seed=3, steps_per_epoch=1, total_steps=8, batch_size=2)
    model = registry.create(name, {}).prepare(net, context)
    operands = [layer.precision.operands().values() for layer in quant_layers(model)]
    return not any(isinstance(op.format, Scaled | Rotated) for ops in operands for op in ops if not op.is_float)


def _defaults() -> Iterator[Case]:
    for model in ("resnet", "transformer"):
        for name in registry.names():
            method, net = registry.get(name), plain_model(model)
            if method.unsuitable(net) is None and on_uniform_grids(name, net):
                yield Case(name, {}, model)
                # Under these settings all that a method does happens within a few steps.
                if method.contract_settings and model == "resnet" and not issubclass(method, DFQ):
                    yield Case(name, method.contract_settings)


VARIANTS = [
    *(Case("dfq", {}, "resnet", live) for live in ((1, 3), (2,))),
    *(Case("dfq", {"forward": "selected"}, model) for model in ("resnet", "transformer")),
    Case("dfq", {"forward": "authors"}),
    Case("fractrain", {"forward": "selected"}),
    Case("sbm", {"variant": "banner"}),
    Case("sbm", {"variant": "banner"}, "transformer"),
    Case("slu", {"bits": 8, "grad_bits": 8}),
    Case("slu", {"bits": 8, "grad_bits": 8, "closed": "computed"}),
    Case("static", {"bits": 6, "weight_bits": 12, "grad_bits": 16}),
    Case("static", {"bits": 8, "weight_bits": 8, "grad_bits": 32}),
    Case("static", {"bits": 32, "weight_bits": 8, "grad_bits": 8}),
    Case("dorefa", {"bits": 4, "weight_bits": 4, "grad_bits": 32}),
    Case("wageubn", {"error": "shift"}),
]
CASES = [*_defaults(), *VARIANTS]


@dataclass
class Subject:
    """A prepared model and the batches of two steps."""

    method: Method
    model: nn.Module
    ledger: Any
    inputs: list[torch.Tensor]
    targets: list[torch.Tensor]

    def loss(self, step: int, ready: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Loss of a training step; the method's hooks before it are called, and then ``ready``."""
        self.method.on_step_start(step)
        ready()
        self.ledger.samples(len(self.inputs[step]))
        x, y = self.inputs[step], self.targets[step]
        loss = F.cross_entropy(self.model(x), y) if x.is_floating_point() else self.model(x, y).mean()
        extra = self.method.extra_loss()
        return loss if extra is None else loss + extra


def subject(case: Case, kernels: Any, dtype: torch.dtype = torch.float32, large: bool = False) -> Subject:
    """A method on a model: products of a sample stay below what integer codes pay for, or (``large``) do not."""
    gen, gated = torch.Generator().manual_seed(5), issubclass(registry.get(case.name), DFQ)
    samples = 5 if gated or not large else 2  # one for each candidate
    method = registry.create(case.name, case.settings)
    context = MethodContext(seed=3, steps_per_epoch=1, total_steps=8, batch_size=samples)
    model = method.prepare(plain_model(case.model, large), context).to(dtype).train()
    method.state.kernels = kernels
    if gated:
        force_choices(model, case.live or tuple(range(len(method.settings.bits))))
    if case.model == "resnet":
        size = 32 if large else 8
        inputs = [torch.randn(samples, 3, size, size, generator=gen).to(dtype) for _ in range(2)]
        targets = [torch.randint(0, CLASSES, (samples,), generator=gen) for _ in range(2)]
    else:
        words = torch.randint(WORDS, (2, samples, (64 if large else 7) + 1), generator=gen)
        inputs, targets = [w[:, :-1] for w in words], [w[:, 1:] for w in words]
        _off_the_grid(model, inputs[0].shape[1], dtype)
    method.on_epoch_start(0)
    return Subject(method, model, context.ledger, inputs, targets)


def _off_the_grid(model: nn.Module, length: int, dtype: torch.dtype) -> None:
    """Shift what attention puts out by numbers of no grid.

    It is a sum of few products of codes: rounded again, many of its values lie half-way between two points, where the
    last bit of a sum decides, in the twin as well.
    """
    for name, m in model.named_modules():
        if name.endswith("attention.out"):
            gen = torch.Generator().manual_seed(2)
            shift = 0.01 * torch.randn(length, m.in_features, generator=gen).to(dtype)
            m.register_forward_pre_hook(lambda _layer, given, shift=shift: (given[0] + shift,))


# -- whole trainings -------------------------------------------------------------------------------------------------


def train(s: Subject) -> dict[str, torch.Tensor]:
    """Two steps and an evaluation: everything that comes of them, by name."""
    out: dict[str, torch.Tensor] = {}
    for step, x in enumerate(s.inputs):
        loss = s.loss(step) if not x.is_floating_point() else _with_gradient(s, step)
        s.model.zero_grad()
        torch.autograd.backward(loss)
        out |= {f"{step}.loss": loss.detach(), f"{step}.input": torch.zeros(()) if x.grad is None else x.grad}
        out |= {f"{step}.{n}": p.grad.clone() for n, p in s.model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in s.model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.05)
        s.method.on_step_end(step, loss.detach(), None)
        s.method.on_epoch_end(step, float(loss.detach()))
        s.method.on_epoch_start(step + 1)
    s.model.eval()
    s.ledger.begin("eval", 0)
    with torch.no_grad():
        out["evaluation"] = s.model(s.inputs[0].detach())
    # That counter counts passes, of which the twin makes more; nothing here reads it.
    end = {n: v.detach() for n, v in s.model.state_dict().items() if not n.endswith("num_batches_tracked")}
    return out | {f"end.{n}": v for n, v in end.items()}


def _with_gradient(s: Subject, step: int) -> torch.Tensor:
    s.inputs[step].requires_grad_()
    return s.loss(step)


def size_of(values: Mapping[str, torch.Tensor], name: str) -> float:
    """What an error is measured against: the largest value; of a bias, also of its layer's weight.

    A bias may have a gradient of exactly zero (of attention's keys), of which only roundings are left.
    """
    names = {name, f"{name.removesuffix('.bias')}.weight"} if name.endswith(".bias") else {name}
    return max(float(values[n].abs().max()) for n in names if n in values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_float64_a_training_equals_the_one_done_plainly(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quantized, "values", restored_in_the_dtype_of_the_grid)
    s = subject(case, "auto", torch.float64)
    ours = train(s)
    calls = Counter[str]()
    plain = vars(methods_twin)["quantize_reference"]

    def counted(*args: Any) -> Any:
        calls["plain"] += 1
        return plain(*args)

    monkeypatch.setattr(methods_twin, "quantize_reference", counted)
    use_twin(monkeypatch)
    other = subject(case, "reference", torch.float64)
    theirs = train(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        error, size = float((ours[name] - value).abs().max()), size_of(theirs, name)
        assert error <= REL * size, f"{name}: {error:.1e} of {size:.1e}"
    assert s.ledger.digest() == other.ledger.digest()
    assert s.method.metrics() == pytest.approx(other.method.metrics(), rel=REL)
    quantizes = any(r.bits1 < 32 or r.bits2 < 32 for r in s.ledger.rows() if r.bits1)
    assert bool(calls) == quantizes, "the twin was not used"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_float32_a_training_of_small_products_is_the_reference_bit_for_bit(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # their sums are of another order
    monkeypatch.setattr(CompactBatchNorm2d, "_kernels", lambda *_: None)
    monkeypatch.setattr(select, "row_products", lambda g, o, _: row_products(g, o, "reference"))
    s, other = subject(case, "auto"), subject(case, "reference")
    largest = []
    for layer in quant_layers(s.model):
        layer.register_forward_hook(lambda m, _, y: largest.append(m.sample_macs(y)))
    ours, theirs = train(s), train(other)
    assert 0 < max(largest) < MIN_MACS
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert s.ledger.digest() == other.ledger.digest()


@dataclass
class NormUse:
    """One use of a BatchNorm (and the ReLU in it) in a training step."""

    layer: CompactBatchNorm2d
    relu: bool
    weight: torch.Tensor
    bias: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    g: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    dx: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")
@pytest.mark.parametrize("case", [c for c in CASES if c.model == "resnet"], ids=str)
def test_in_float32_every_batch_norm_of_a_training_is_that_of_float64(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses: list[NormUse] = []
    plain = {False: CompactBatchNorm2d.forward, True: CompactBatchNorm2d.rectified}

    def watched(layer: CompactBatchNorm2d, x: torch.Tensor, relu: bool) -> torch.Tensor:
        if not layer.training:
            return plain[relu](layer, x)
        x = x.view_as(x)  # a name of its own, whose gradient is this use's
        y = plain[relu](layer, x)
        use = NormUse(layer, relu, *(t.detach().clone() for t in (layer.weight, layer.bias, x, y)))
        uses.append(use)
        if y.requires_grad:
            y.register_hook(lambda g: setattr(use, "g", g.clone()))  # type: ignore[no-untyped-call]
            if x.requires_grad:
                x.register_hook(lambda g: setattr(use, "dx", g.clone()))  # type: ignore[no-untyped-call]
        return y

    s = subject(case, "auto")
    norms = [m for m in s.model.modules() if isinstance(m, CompactBatchNorm2d)]
    monkeypatch.setattr(CompactBatchNorm2d, "forward", lambda layer, x: watched(layer, x, False))
    monkeypatch.setattr(CompactBatchNorm2d, "rectified", lambda layer, x: watched(layer, x, True))
    train(s)
    quantizes = any(not layer.precision.is_float for layer in quant_layers(s.model))
    own = case.name == "wageubn" or case.settings.get("variant") == "banner"  # normalisation layers of the method
    assert bool(norms) == (quantizes and not own)
    assert {id(u.layer) for u in uses} == {id(m) for m in norms}
    assert not norms or {use.relu for use in uses} == {False, True}
    for use in uses:
        x = use.x.double().requires_grad_()
        y = F.batch_norm(x, None, None, use.weight.double(), use.bias.double(), True, eps=use.layer.eps)
        y = y.relu() if use.relu else y
        gain = (use.weight / (use.x.var((0, 2, 3), correction=0) + use.layer.eps).sqrt()).abs().max().item()
        assert (use.y - y).abs().max().item() <= 1e-5 * max(y.abs().max().item(), gain)
        if use.g.numel() and use.dx.numel():
            safe = torch.where(y.abs() < 1e-4, 0.0, use.g.double()) if use.relu else use.g.double()
            (want,) = torch.autograd.grad(y, x, safe)
            if torch.equal(safe.float(), use.g) or not use.relu:
                assert (use.dx - want).abs().max().item() <= 1e-5 * gain * use.g.abs().max().item()


# -- layer by layer --------------------------------------------------------------------------------------------------


@dataclass
class Use:
    """One use of a layer in a training step: what it was given, and what the fast paths made of it.

    Attributes:
        inputs: one tensor, or two of a product of activations.
        output, error: of the use; the error is None where there was no backward pass.
        grads: of the inputs.
    """

    layer: QuantLayer
    precision: Precision
    scope: CandidateScope | None
    inputs: list[torch.Tensor]
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    error: torch.Tensor | None = None
    grads: dict[int, torch.Tensor] = field(default_factory=dict)


class Recorder:
    """Follows every quantized layer of a model through one step, without changing what runs."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uses: list[Use] = []
        self.weights: dict[QuantLayer, torch.Tensor] = {}
        self.taken: Counter[str] = Counter()
        self._open: dict[nn.Module, Use] = {}
        self.layers = list(quant_layers(model))
        for layer in self.layers:
            layer.register_forward_pre_hook(self._before)
            layer.register_forward_hook(self._after)
        self._watch(monkeypatch)

    def _watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        convolve, products = vars(layers_module)["convolve"], vars(layers_module)["products"]

        def forward(*args: Any) -> Any:
            y = convolve(*args)
            self.taken["FW"] += y is not None
            return y

        def backward(*args: Any) -> Any:
            da, dw = products(*args)
            self.taken.update(EB=int(da is not None), GC=int(dw is not None))
            return da, dw

        monkeypatch.setattr(layers_module, "convolve", forward)
        monkeypatch.setattr(layers_module, "products", backward)

    def _before(self, layer: Any, given: tuple[torch.Tensor, ...]) -> Any:
        if not layer.training or layer.effective(layer.precision).is_float:
            return None
        use = Use(layer, layer.effective(layer.precision), layer.state.scope, [t.detach().clone() for t in given])
        self._open[layer] = use
        self.uses.append(use)
        # Another name for each input, whose gradient is this use's own.
        return tuple(self._alias(use, i, t) for i, t in enumerate(given))

    def _alias(self, use: Use, i: int, x: torch.Tensor) -> torch.Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        alias = x.view_as(x)
        alias.register_hook(lambda g: use.grads.__setitem__(i, g.clone()))  # type: ignore[no-untyped-call]
        return alias

    def _after(self, layer: Any, _: Any, y: torch.Tensor) -> None:
        use = self._open.pop(layer, None)
        if use is not None:
            use.output = y.detach().clone()
            if y.requires_grad:
                y.register_hook(lambda g: setattr(use, "error", g.clone()))  # type: ignore[no-untyped-call]

    def step(self, s: Subject) -> None:
        """Make the first training step."""
        s.model.zero_grad()
        torch.autograd.backward(s.loss(0, self._observe))

    def _observe(self) -> None:
        """Ask for the gradients of weights as they are before a method's own hooks."""
        for layer in self.layers:
            layer.backward_observer = self._note

    def _note(self, layer: QuantLayer, seen: Any) -> None:
        if seen.dw is not None and layer.learns:
            self.weights[layer] = self.weights[layer] + seen.dw if layer in self.weights else seen.dw


def plain_operands(use: Use) -> list[torch.Tensor]:
    """Operands of the three products by the plain path: FW's two, GC's and EB's, and the errors of EB and of GC."""
    layer, p, state = use.layer, use.precision, use.layer.state
    state.scope = None if use.scope is None else CandidateScope(use.scope.index, torch.empty(0), None, {})
    try:
        a, *b = (_dense(_rows(t) if layer.paired else t) for t in use.inputs)
        out = [on_grid(a, op, layer._noise(op, "A", a)) for op in (p.fw_a, p.gc_a)]
        for op in (p.fw_w, p.eb_w):
            w = b[0] if b else layer.weight.detach()
            w = w if b or op.is_float else op.format.forward_transform(w)
            out.append(on_grid(w, op, layer._noise(op, "B" if b else "W", w)))
        if use.error is not None:
            e, one = _dense(_rows(use.error) if layer.paired else use.error), p.eb_e.same_as(p.gc_e)
            for op, name in ((p.eb_e, "E.eb"), (p.gc_e, "E.gc")):
                out.append(on_grid(e, op, layer._noise(op, "E" if one else name, e)))
    finally:
        state.scope = None
    return [out[0], out[2], out[1], *out[3:]]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def sums(use: Use, operands: list[torch.Tensor], turned: bool = False, plain: bool = False) -> list[torch.Tensor]:
    """FW and, where there is an error, EB and GC of operands in their dtype.

    Args:
        turned: add up in the opposite order: channels, filters and samples are reversed, and the results put back.
        plain: images in plain instead of channels-last memory, for which torch has other algorithms.
    """
    layer, shape = use.layer, use.inputs[0].shape

    def turn(t: torch.Tensor) -> torch.Tensor:
        axes = (-2, -1) if layer.paired else (0, 1) if t.dim() in (2, 4) else (0, -1)
        t = t.flip(axes) if turned else t
        return t.contiguous() if plain else _dense(t)

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if layer.paired:
            layer._operand = shape  # type: ignore[assignment]
            return _rows(layer.product(a, b, None))
        return layer.product(a, b, None)

    fw_a, fw_b, gc_a, eb_b, *errors = (turn(t) for t in operands)
    out = [product(fw_a, fw_b)]
    if errors:
        da, db = products_of(product, gc_a, eb_b, *errors)
        out += [da, db]
    return [t.detach().flip((-2, -1) if layer.paired else (0, 1) if t.dim() in (2, 4) else (0, -1)) if turned else t
            for t in out]  # fmt: skip


ORDERS: tuple[dict[str, bool], ...] = ({}, {"plain": True}, {"turned": True}, {"turned": True, "plain": True})


@dataclass
class Bound:
    """What a result must be near to: the reference, and how far its own sum in other orders is from the exact one."""

    reference: torch.Tensor
    noise: float

    @classmethod
    def of(cls, float32: list[torch.Tensor], exact: torch.Tensor) -> Bound:
        return cls(float32[0], max(float((r - exact).abs().max()) for r in float32))

    def __add__(self, other: Bound) -> Bound:
        """Bound of a sum of which each part may be in any order."""
        return Bound(self.reference + other.reference, self.noise + other.noise)

    def check(self, got: torch.Tensor, what: str) -> None:
        """``got`` is about as near to the reference as two orders of the reference's own sum may be to each other.

        If no order is farther than ``noise`` from the exact sum, no two are farther from each other than twice that. A
        sum on codes may differ a little more: values restored in float32 are rounded alike wherever they occur, so that
        these errors add up in every order of the reference.
        """
        assert got.shape == self.reference.shape, what
        error = float((got.double() - self.reference.double()).abs().max())
        largest, noise = float(self.reference.abs().max()), self.noise
        assert error <= 3 * noise, f"{what}: differs by {error:.2e} of {largest:.2e}, noise {noise:.2e}"


def compare(record: Recorder) -> None:
    """All uses of all layers in one step against the plain products of the same inputs and errors."""
    weights: dict[QuantLayer, Bound] = {}
    for use in record.uses:
        layer, operands = use.layer, plain_operands(use)
        each, exact = [sums(use, operands, **o) for o in ORDERS], sums(use, [t.double() for t in operands])
        y, *gradients = (Bound.of([e[i] for e in each], exact[i]) for i in range(len(exact)))
        output = use.output.reshape(y.reference.shape)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            shift = bias.detach().view(-1, *([1] * (output.dim() - 2) if output.dim() == 4 else []))
            y = Bound.of([e[0] + shift for e in each], exact[0] + shift)
        y.check(output, f"{layer.site} FW")
        if use.error is None:
            continue
        for i, g in use.grads.items():
            gradients[i].check(g.reshape(gradients[i].reference.shape), f"{layer.site} dA {i}")
        if layer.learns:
            back, master = use.precision.fw_w.format.backward_transform, layer.weight.detach()
            bound = Bound.of([back(master, e[2]) for e in each], back(master.double(), exact[2]))
            weights[layer] = _sum(weights.get(layer), bound)
    assert weights.keys() == record.weights.keys()
    for layer, bound in weights.items():
        bound.check(record.weights[layer], f"{layer.site} dW")


def _sum(known: Bound | None, more: Bound) -> Bound:
    return more if known is None else known + more


def on_codes(use: Use) -> set[str]:
    """Products of a use that should run on integer codes here."""
    layer, x = use.layer, use.inputs[0]
    before, layer.precision = layer.precision, use.precision
    try:
        forward, plan = layer.integer_geometry(x), layer.integer_backward(x)
    finally:
        layer.precision = before
    names = {"FW"} if forward is not None else set()
    if plan is not None and use.error is not None and not use.precision.gc_a.is_float:  # else no codes are kept
        eb, gc = plan.eb and 0 in use.grads, plan.gc and layer.learns
        names |= {n for n, wanted in (("EB", eb), ("GC", gc)) if wanted}
    return names


def observed_again(s: Subject, record: Recorder) -> int:
    """Make the step once more with all operands in view: each must be the plain path's, bit for bit."""
    seen = Counter[str]()

    def look(layer: QuantLayer, name: str, op: Operand, x: torch.Tensor, values: torch.Tensor) -> None:
        tensor = "A" if name.endswith("_a") else ("B" if layer.paired else "W") if name.endswith("_w") else name
        assert torch.equal(values, on_grid(x, op, layer._noise(op, tensor, x))), f"{layer.site} {name}"
        seen[name] += 1

    before = {n: p.grad.clone() for n, p in s.model.named_parameters() if p.grad is not None}
    for layer in record.layers:
        layer.observer = look
    record.step(s)
    for name, p in s.model.named_parameters():
        assert (p.grad is not None) == (name in before), name
        assert p.grad is None or torch.equal(p.grad, before[name]), f"{name}: an observer changed it"
    return seen.total()


LARGE = [c for c in CASES if (c in VARIANTS and c.model == "resnet") or c == Case(c.name, model=c.model)]
ON_CODES = {"sbm", "static", "static8", "pfq", "cpt", "dfq", "fractrain"}  # 8-bit operands on one grid


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_in_float32_every_layer_is_within_the_noise_of_the_reference(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = subject(case, "fused", large=True)
    record = Recorder(s.model, monkeypatch)
    record.step(s)
    compare(record)
    expected = set().union(*map(on_codes, record.uses))
    assert {name for name, times in record.taken.items() if times} == expected
    if case.name in ON_CODES and case.model == "resnet" and not case.settings:
        assert not INT8 or "FW" in expected
        assert not VNNI or {"EB", "GC"} <= expected
    assert bool(observed_again(s, record)) == bool(record.uses)


# -- integers --------------------------------------------------------------------------------------------------------

GEOMETRIES = [  # channels, size, filters, kernel, stride
    (16, 32, 16, 3, 1), (32, 16, 32, 3, 1), (64, 8, 64, 3, 1), (16, 32, 32, 3, 2), (64, 16, 64, 1, 1), (8, 20, 9, 5, 1),
]  # fmt: skip


def whole(shape: tuple[int, ...], low: int, bits: int, seed: int, extreme: bool = False) -> torch.Tensor:
    """Integers from ``low`` on, both ends in every row of the first axis: a grid of that width has step 1."""
    high = low + 2**bits - 1
    x = torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
    if extreme:
        x[:] = high
    x.view(shape[0], -1)[:, 0], x.view(shape[0], -1)[:, -1] = low, high
    return x.contiguous(memory_format=torch.channels_last)


def loops(x: Any, w: Any, e: Any, stride: int, padding: int) -> tuple[Any, Any, Any]:
    """FW, EB and GC of a convolution in int64, by loops over the kernel."""
    x, w, e = (t.long().contiguous().numpy() for t in (x, w, e))
    side, n = e.shape[2], x.shape[2] + 2 * padding
    p = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y, dp, dw = np.zeros_like(e), np.zeros_like(p), np.zeros_like(w)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            places = np.s_[:, :, i : i + stride * side : stride, j : j + stride * side : stride]
            y += np.einsum("nchw,fc->nfhw", p[places], w[:, :, i, j], optimize=True)
            dp[places] += np.einsum("nfhw,fc->nchw", e, w[:, :, i, j], optimize=True)
            dw[:, :, i, j] = np.einsum("nfhw,nchw->fc", e, p[places], optimize=True)
    inside = np.s_[:, :, padding : n - padding, padding : n - padding]
    return y, dp[inside], dw


@pytest.mark.parametrize("bits", [(8, 8, 8), (3, 4, 6), (8, 2, 5)], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_integer_products_equal_int64_loops(
    geometry: tuple[int, ...], bits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, size, filters, kernel, stride = geometry
    a, w, e = (Operand(b, f) for b, f in zip(
        bits, (Affine(), Affine(PerAxis(0)), Affine(rounding="stochastic")), strict=True))  # fmt: skip
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2)
    layer: Any = QuantConv2d(conv, Precision.of(a, w, e), QuantState(1), "c")
    record = Recorder(layer, monkeypatch)
    for extreme in (False, True):
        x = whole((3, channels, size, size), -(2 ** bits[0]) // 3, bits[0], 1, extreme).requires_grad_()
        layer.weight.data = whole(tuple(layer.weight.shape), -(2 ** (bits[1] - 1)), bits[1], 2, extreme)
        layer.bias.data = torch.arange(filters).float()
        y = layer(x)
        g = whole(tuple(y.shape), -(2 ** (bits[2] - 2)), bits[2], 3, extreme)
        layer.zero_grad()
        y.backward(g)
        operands = x.detach(), layer.weight.detach(), g
        right = loops(*operands, stride, kernel // 2)
        reach = loops(
            operands[0].abs(), operands[1].abs(), g.abs(), stride, kernel // 2
        )  # no sum in any order is beyond
        bias = layer.bias.detach().long().numpy().reshape(-1, 1, 1)
        ours, names = (y, x.grad, layer.weight.grad), ("FW", "EB", "GC")
        for got, integers, most, name in zip(ours, (right[0] + bias, *right[1:]), reach, names, strict=True):
            if record.taken[name] or most.max() + filters < 2**24:  # sums of float32 are exact up to there
                assert np.array_equal(got.detach().numpy(), integers.astype(np.float32)), (name, extreme)
    expected = set().union(*map(on_codes, record.uses))
    assert {name for name, times in record.taken.items() if times} == expected
    assert not INT8 or "FW" in expected
    assert not VNNI or channels % 16 or kernel > 3 or "GC" in expected
    assert not VNNI or channels % 16 or (kernel, stride) != (3, 1) or "EB" in expected

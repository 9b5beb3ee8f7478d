"""Models and loops in other number types than float32, and programs that trace or compile a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layer_models import Residual, Waves, batches, chain, seeded
from method_groups import FLOAT_METHODS
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fractrain
from fractrain.layers.conv_linear import QuantConv2d, QuantLayer, QuantLinear
from fractrain.layers.state import QuantState
from fractrain.methods import registry
from fractrain.numerics.precision import fractrain_precision
from fractrain.util.errors import ConfigError

OPTIONS = {"cpt": {"total_steps": 8}, "slu": {"bits": 8, "grad_bits": 8}}
EVERY = pytest.mark.parametrize("method", registry.names())
TWO = pytest.mark.parametrize("build", [Residual, Waves])


def attach(method: str, model: nn.Module) -> fractrain.Session:
    session = fractrain.attach(method, model, **OPTIONS.get(method, {}))
    session.optimizer(lr=0.05)
    return session


def step(
    session: fractrain.Session, dtype: torch.dtype = torch.float32, run: Callable[..., torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Output and gradients of one step, in float32."""
    x, y = next(batches(1))
    out = (session.model if run is None else run)(x.to(dtype))
    session.loss(nn.functional.cross_entropy(out.float(), y)).backward()
    session.step()
    grads = [None if p.grad is None else p.grad.float() for p in session.model.parameters()]
    return out.detach().float(), grads


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("build", "late"), [(Residual, False), (Residual, True), (Waves, True)])
def test_models_in_other_types_train_and_evaluate(method: str, dtype: torch.dtype, build, late: bool) -> None:
    """Converted before or after the change of type; near the float32 model's output."""
    reference = attach(method, seeded(build))
    want, _ = step(reference)
    session = attach(method, seeded(build) if late else seeded(build).to(dtype))
    if late:
        session.model.to(dtype)
    got, grads = step(session, dtype)
    assert got.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in grads)
    assert any(g is not None and g.any() for g in grads)
    assert all(p.dtype == dtype for n, p in session.model.named_parameters() if "gate" not in n)
    gated = method in ("dfq", "fractrain", "slu")  # a gate near its threshold may choose otherwise
    if not gated:
        assert (got - want).abs().max() <= (0.25 if dtype != torch.float64 else 0.05) * want.abs().max()
    session.model.eval()
    y = session.model(next(batches(1))[0].to(dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


@TWO
@EVERY
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_computes_quantized_layers_in_float32(method: str, inside: bool, build) -> None:
    session = attach(method, seeded(build))
    (x, y), seen = next(batches(1)), set()
    for layer in session.model.modules():
        if isinstance(layer, QuantLayer) and not layer.precision.is_float:
            layer.observer = lambda layer, name, op, before, values: seen.add(values.dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = session.loss(nn.functional.cross_entropy(session.model(x), y))
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    session.step()
    assert seen <= {torch.float32}
    assert seen or method in FLOAT_METHODS
    grads = [p.grad for p in session.model.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in grads)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_in_float64_the_gradients_are_those_of_finite_differences(kind: str) -> None:
    """Sixteen bits, and steps much wider than those of the grid: the staircase is a slope there."""
    p, state = fractrain_precision(16, 16, 16), QuantState(kernels="reference")
    gen = torch.Generator().manual_seed(0)
    if kind == "conv":
        layer: nn.Module = QuantConv2d(nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64), p, state)
        x = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=gen)
    else:
        layer = QuantLinear(nn.Linear(5, 4, dtype=torch.float64), p, state)
        x = torch.randn(3, 5, dtype=torch.float64, generator=gen)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1, generator=gen)
    layer.eval()  # with a fixed range
    for buffer, value in (("running_low", -8.0), ("running_high", 8.0), ("running_steps", 1)):
        getattr(layer, buffer).fill_(value)
    assert torch.autograd.gradcheck(
        lambda x, b: layer(x), (x.requires_grad_(), layer.bias), eps=0.05, atol=1e-2, nondet_tol=1e-3
    )
    layer.train()
    y = layer(x)
    assert y.dtype == torch.float64
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize(
    ("build", "method"),
    [*((Residual, method) for method in ("sbm", "dfq", "dynasty", "slu", "wageubn")), (Waves, "fp8"), (Waves, "dfq")],
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_give_the_bits_of_eager_mode(build, method: str, backend: str) -> None:
    want = step(attach(method, seeded(build)))
    session = attach(method, seeded(build))
    torch._dynamo.reset()
    got = step(session, run=torch.compile(session.model, backend=backend))
    assert torch.equal(got[0], want[0])
    for a, b in zip(got[1], want[1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]
    assert session.ledger.digest()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.parametrize("build", [chain, Residual])
@pytest.mark.parametrize("how", ["fx", "make_fx", "jit", "export", "strict export"])
def test_traces_are_refused_in_one_line(build, how: str) -> None:
    session = attach("sbm", seeded(build))
    x = next(batches(1))[0]
    trace = {
        "fx": lambda: fx.symbolic_trace(session.model),
        "make_fx": lambda: make_fx(session.model)(x),
        "jit": lambda: torch.jit.trace(session.model, (x,)),
        "export": lambda: torch.export.export(session.model, (x,)),
        "strict export": lambda: torch.export.export(session.model, (x,), strict=True),
    }[how]
    with pytest.raises(Exception, match=r"cannot be traced|outside of compiled graphs") as error:
        trace()
    if how != "strict export":  # torch wraps it
        assert isinstance(error.value, ConfigError)
        assert "\n" not in str(error.value)

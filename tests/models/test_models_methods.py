"""Every method on every vision model: it trains, evaluates and counts; cp is between what its widths allow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from method_groups import FLOAT_METHODS
from torch import nn

from fractrain.cost import metrics
from fractrain.cost.ledger import Ledger
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.depthwise import is_depthwise
from fractrain.methods.presets import paper_settings
from fractrain.models import registry as models
from fractrain.models.macs import block_macs, forward_macs

SHAPES = {"mobilenet_v2": (3, 16, 16), "resnet18": (3, 32, 32)}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((n, {}) for n in registry.names() if n != "dynasty"),
    ("dynasty", {"refresh": 1, "observe": 1}),
    ("sbm", {"variant": "banner"}),
    ("dfq", {"forward": "authors"}),
    ("slu", {"closed": "computed"}),
    ("slu", {"bits": 8, "grad_bits": 8}),
]
FIXED = {**dict.fromkeys(FLOAT_METHODS, 100.0), "static": 6.25, "static8": 6.25, "dorefa": 6.25, "wageubn": 6.25}
STATIC_IMAGENET = 100 * (8 * 8 + 2 * 8 * 16) / 3072  # FW-8 / BW-16


def steps(
    name: str, settings: dict[str, object], model_name: str, count: int
) -> tuple[Method, torch.nn.Module, Ledger, list[float]]:
    shape = SHAPES[model_name]
    method = registry.create(name, settings)
    plain: torch.nn.Module = models.build(model_name, 10, shape)
    blocks = plain.gateable_blocks()  # type: ignore[operator]
    weights = block_macs(plain, shape, blocks)
    context = MethodContext(steps_per_epoch=count, total_steps=4, batch_size=4, blocks=blocks, block_weights=weights)
    context.ledger.meta.update(blocks=blocks, block_weights=weights, forward_macs=forward_macs(plain, shape))
    model = method.prepare(plain, context).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    g = torch.Generator().manual_seed(0)
    losses = []
    method.on_epoch_start(0)
    for step in range(count):
        method.on_step_start(step)
        x, y = torch.randn(4, *shape, generator=g), torch.randint(0, 10, (4,), generator=g)
        context.ledger.samples(4)
        loss = F.cross_entropy(model(x), y)
        extra = method.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        method.on_step_end(step, loss.detach(), None if extra is None else extra.detach())
        losses.append(float(loss.detach()))
    method.on_epoch_end(0, sum(losses) / count)
    return method, model, context.ledger, losses


def cp_as_told(model: nn.Module, ledger: Ledger) -> float:
    """The cp that the gates are told, from the ledger: what was done, but for depthwise convolutions.

    As in the authors' MobileNetV2, these cost a constant (8-bit operands, 16-bit errors), which the 100 % holds, too.
    """
    depthwise = {layer.site for layer in quant_layers(model) if is_depthwise(layer)}
    if not depthwise:
        return metrics.cp(ledger)
    rows = [r for r in ledger.rows() if r.layer.startswith(tuple(f"{b}." for b in ledger.meta["blocks"]))]
    gated = [r for r in rows if r.layer not in depthwise and not r.layer.endswith(".gate")]
    held = sum(r.macs for r in rows if r.layer in depthwise and r.product == "FW") * (8 * 8 + 2 * 8 * 16) / 1024
    cost = sum(r.macs * r.bits1 * r.bits2 / 1024 for r in gated)
    return 100 * (cost + held) / (sum(r.macs for r in gated) + held)


@pytest.mark.parametrize("model_name", SHAPES)
@pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=["-".join(map(str, [n, *s.values()])) for n, s in VARIANTS]
)
def test_a_method_trains_and_evaluates_a_model(name: str, settings: dict[str, object], model_name: str) -> None:
    presets = paper_settings(name, model_name, "digits32" if model_name == "resnet18" else "cifar10")
    count = 2 if name == "dynasty" else 1  # its maps come after the first step
    method, model, ledger, losses = steps(name, {**presets, **settings}, model_name, count)
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = [p for p in model.parameters() if p.grad is not None and float(p.grad.abs().max()) > 0]
    assert len(moved) > 0.5 * len(list(model.parameters()))
    cp = metrics.cp(ledger)
    expected = STATIC_IMAGENET if (name, model_name) == ("static", "resnet18") else FIXED.get(name)
    if expected is None:
        assert 0 < cp <= 100
    else:
        assert cp == pytest.approx(expected, rel=1e-12)
    if "gate_cp" in method.metrics():
        assert cp_as_told(model, ledger) == pytest.approx(method.metrics()["gate_cp"], rel=1e-5)
    forward = sum(r.macs for r in ledger.rows() if r.product == "FW" and "gate" not in r.layer.split("."))
    assert forward == count * 4 * ledger.meta["forward_macs"]
    model.eval()
    ledger.begin("eval", 0)
    with torch.no_grad():
        assert torch.isfinite(
            model(torch.randn(3, *SHAPES[model_name], generator=torch.Generator().manual_seed(1)))
        ).all()
    assert metrics.effective_macs(ledger, phase="eval") > 0


def test_slu_gates_what_has_a_shortcut() -> None:
    _, model, *_ = steps("slu", {}, "mobilenet_v2", 1)
    gated = [n for n, m in model.named_modules() if type(m).__name__ == "SkipBlock"]
    # the first block always runs, and so do the three of stride 2
    assert gated == [f"blocks.{i}" for i in range(1, 17) if i not in (3, 6, 13)]

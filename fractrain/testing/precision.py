"""Checks of precision: what a method declares for every operand is what is observed, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fractrain.cost import metrics
from fractrain.cost.ledger import FLOAT_BITS, Ledger, LedgerRow, Product
from fractrain.engine.loop import TrainingLoop
from fractrain.layers.convert import quant_layers
from fractrain.methods.card import declared_precisions
from fractrain.testing.probe import Probe
from fractrain.testing.report import ContractViolation, NotApplicable
from fractrain.testing.settings import accepted, current, shifted, variation, width_settings
from fractrain.testing.subject import Subject

PAIRS: dict[Product, tuple[str, str]] = {"FW": ("fw_a", "fw_w"), "EB": ("eb_e", "eb_w"), "GC": ("gc_a", "gc_e")}


def precision_train(subject: Subject) -> str:
    """Training: every operand has no more values than its width allows, on its grid, rounded as declared."""
    loop = subject.loop(subject.config(subject.eager_settings, steps=4, period=1))
    probe = Probe()
    _all_layers_seen(subject, loop.model)
    with probe.watching(loop.model):
        for _ in range(3 if subject.quick else 5):  # an evaluation comes after every step: the schedule moves on
            loop.advance()
    _judge(probe, loop, "train")
    _ledger_agrees(probe, loop)
    return f"{probe.observed['train']} tensors quantized, {probe.products['train']} operands multiplied as declared"


def precision_eval(subject: Subject) -> str:
    """Evaluation: the same, with the ranges that evaluation uses."""
    loop = subject.loop(subject.config(subject.eager_settings, steps=4))
    for _ in range(3):
        loop.advance()
    probe = Probe()
    loop.model.eval()
    x, _ = loop.stream.batch(*loop.clock.data(0))
    with probe.watching(loop.model), torch.no_grad():
        loop.model(x)
    _judge(probe, loop, "eval")
    return f"{probe.observed['eval']} tensors quantized, {probe.products['eval']} operands multiplied as declared"


def _judge(probe: Probe, loop: TrainingLoop, phase: str) -> None:
    if probe.problems:
        more = f" (and {len(probe.problems) - 1} more)" if len(probe.problems) > 1 else ""
        raise ContractViolation(f"{probe.problems[0]}{more}")
    layers = quant_layers(loop.model)
    if layers and all(layer.precision.is_float for layer in layers) and not probe.products[phase]:
        raise NotApplicable("all layers are declared in floating point: they are the plain ones")
    if not probe.products[phase]:
        raise ContractViolation("no quantized layer did any product: swap layers with fractrain.layers.convert.convert")
    known = [p for get in declared_precisions(loop.model).values() for p in get()]
    if not probe.observed[phase] and not all(p.is_float for p in known):
        raise ContractViolation("low precision is declared, but no tensor was quantized")


def _all_layers_seen(subject: Subject, model: nn.Module) -> None:
    """No convolution or linear layer of the plain model is left outside the ledger."""
    plain = subject.registries.model(subject.model, subject.dataset, 0)
    wanted = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules())
    kept = len(declared_precisions(model))
    if kept < wanted:
        raise ContractViolation(
            f"{wanted - kept} of {wanted} convolutions and linear layers are not quantized layers, so the ledger does "
            "not see them: convert() wraps those that stay in floating point as well"
        )


def _ledger_agrees(probe: Probe, loop: TrainingLoop) -> None:
    """The ledger counts only widths that were declared while the layers ran."""
    rows = [row for row in loop.ledger.rows() if row.phase == "train"]
    for row in rows:
        strange = _strange(probe, row)
        if strange:
            raise ContractViolation(f"the ledger counts {row.layer} {row.product} at {strange}")


def _strange(probe: Probe, row: LedgerRow) -> str:
    if not row.bits1 and not row.bits2:  # a product that was skipped, not one at a width
        return ""
    for name, bits in zip(PAIRS[row.product], (row.bits1, row.bits2), strict=True):
        known = probe.widths.get((row.layer, name))
        # 0 stands for work that was skipped, which a layer does not declare.
        if known is not None and bits not in {0, *(min(w, FLOAT_BITS) for w in known)}:
            return f"{bits} bits for {name}, declared are {sorted(known)}"
    return ""


# -- costs -------------------------------------------------------------------------------------------------------------


TINY_LR = 1e-4  # two steps at few bits must not diverge: it is the cost that is looked at


def cost(subject: Subject) -> str:
    """Costs are finite and positive, and more bits cost more."""
    ledger = _ledger(subject, subject.eager_settings)
    figures = {
        "cp": metrics.cp(ledger),
        "effective MACs": metrics.effective_macs(ledger),
        "effective MACs in evaluation": metrics.effective_macs(ledger, phase="eval"),
        "BitOPs": float(metrics.bitops(ledger)),
    }
    bad = [f"{name} = {value}" for name, value in figures.items() if not (math.isfinite(value) and value > 0)]
    if bad:
        raise ContractViolation(f"not a cost: {', '.join(bad)}")
    if figures["effective MACs"] > metrics.raw_macs(ledger):
        raise ContractViolation("effective MACs exceed the MACs of the same products in floating point")
    free = {**subject.kind.contract_inert, **subject.kind.contract_costless}
    widths = [n for n in width_settings(subject.kind, subject.eager_settings) if n not in free]
    told = [t for t in (_grows(subject, name) for name in widths) if t]
    return f"cp {figures['cp']:.3f} %; " + ("; ".join(told) or "no setting is a width")


def _grows(subject: Subject, name: str) -> str:
    """The cost at fewer bits is below that at more.

    Returns:
        What was found; empty where no two widths are valid.
    """
    given = variation(subject.kind, name)
    base = {**subject.eager_settings, **(given.given if given else {})}
    value = current(subject.kind, base, name)
    valid = [v for by in (-4, -2, -1, 0, 1, 2, 4) if accepted(subject.kind, {**base, name: (v := shifted(value, by))})]
    if len(valid) < 2:
        return ""
    few, many = valid[0], valid[-1]
    low, high = (metrics.bitops(_ledger(subject, {**base, name: v})) for v in (few, many))
    if low >= high:
        raise ContractViolation(f"{name} = {few} costs {low:.4g} BitOPs, {name} = {many} costs {high:.4g}")
    return f"{name} grows"


def _ledger(subject: Subject, settings: Mapping[str, Any]) -> Ledger:
    return subject.trained(subject.config(settings, steps=2, period=2, lr=TINY_LR)).ledger

"""Check of cost: finite, positive, not above floating point, and growing with the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fractrain.cost import metrics
from fractrain.cost.ledger import Ledger
from fractrain.testing import other_settings
from fractrain.testing.report import ContractViolation
from fractrain.testing.subject import Subject

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
    widths = [n for n in other_settings.width_settings(subject.kind, subject.eager_settings) if n not in free]
    told = [t for t in (_grows(subject, name) for name in widths) if t]
    return f"cp {figures['cp']:.3f} %; " + ("; ".join(told) or "no setting is a width")


def _grows(subject: Subject, name: str) -> str:
    """The cost at fewer bits is below that at more.

    Returns:
        What was found; empty where no two widths are valid.
    """
    given = other_settings.variation(subject.kind, name)
    base = {**subject.eager_settings, **(given.given if given else {})}
    value = other_settings.current(subject.kind, base, name)
    valid = [
        v
        for by in (-4, -2, -1, 0, 1, 2, 4)
        if other_settings.accepted(subject.kind, {**base, name: (v := other_settings.shifted(value, by))})
    ]
    if len(valid) < 2:
        return ""
    few, many = valid[0], valid[-1]
    low, high = (metrics.bitops(_ledger(subject, {**base, name: v})) for v in (few, many))
    if low >= high:
        raise ContractViolation(f"{name} = {few} costs {low:.4g} BitOPs, {name} = {many} costs {high:.4g}")
    return f"{name} grows"


def _ledger(subject: Subject, settings: Mapping[str, Any]) -> Ledger:
    return subject.trained(subject.config(settings, steps=2, period=2, lr=TINY_LR)).ledger

"""Checks of precision: what a method declares for every operand is what is observed, in training and evaluation."""

from __future__ import annotations

import torch
from torch import nn

from fractrain.cost.ledger import FLOAT_BITS, LedgerRow, Product
from fractrain.engine.loop import TrainingLoop
from fractrain.layers.convert import quant_layers
from fractrain.methods.card import declared_precisions
from fractrain.testing.probe import Probe
from fractrain.testing.report import ContractViolation, NotApplicable
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

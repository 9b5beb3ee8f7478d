"""Check of stochastic rounding: over many steps, the mean of an operand declared stochastic is the operand itself.

Two measures, over elements ``x`` with the mean ``m`` of their roundings: the alignment ``<x, m - x> / <x, x>``, and the
same of the largest 1 % of the elements alone, where values saturate if scales leave no room.
"""

from __future__ import annotations

import math

import torch

from fractrain.methods.card import declared_precisions
from fractrain.numerics.formats import Bits, Format
from fractrain.numerics.precision import Operand
from fractrain.numerics.stochastic_rounding import noise_key
from fractrain.testing.report import ContractViolation
from fractrain.testing.subject import Subject
from fractrain.util.seeds import derive_seed

SIDE = 256  # of the matrix of normal numbers that is rounded
ALLOWED = {"all": 2e-4, "the largest 1 %": 2e-3}  # beside four standard errors


def unbiased(subject: Subject) -> str:
    """Stochastic rounding: the mean of many roundings of an operand is the operand, saturation included."""
    loop = subject.loop(subject.config(subject.eager_settings, steps=2))
    operands: dict[tuple[Format, int], tuple[str, Operand]] = {}
    for layer, declared in declared_precisions(loop.model).items():
        for precision in declared():
            for name, op in precision.operands().items():
                if not op.is_float and op.format.rounding == "stochastic":
                    operands.setdefault((op.format, op.widest), (f"{layer.site} {name}", op))
    told = [
        f"{op.format.name}: {_judged(where, op.format, op.widest, 64 if subject.quick else 256)}"
        for where, op in operands.values()
    ]
    return "; ".join(told) or "no operand is declared stochastic"


def _judged(where: str, fmt: Format, bits: Bits, steps: int) -> str:
    """Round a matrix in many steps; what was found, for the report."""
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(derive_seed(0, "unbiased")))
    largest = x.abs() >= x.abs().flatten().kthvalue(int(0.99 * x.numel())).values
    found = {part: _alignment(x, mask, fmt, bits, steps) for part, mask in
             (("all", torch.ones_like(largest)), ("the largest 1 %", largest))}  # fmt: skip
    for part, (mean, error) in found.items():
        bound = ALLOWED[part] + 4 * error
        if abs(mean) > bound:
            of = "" if part == "all" else f" for {part} of the elements"
            raise ContractViolation(
                f"{where}: declared stochastic, but the mean of {steps} roundings in {fmt.name} is {100 * mean:+.2f} % "
                f"off{of} (bound {100 * bound:.2f} %)"
            )
    mean, error = found["all"]
    return f"{100 * mean:+.3f} % +- {100 * error:.3f} %"


def _alignment(x: torch.Tensor, mask: torch.Tensor, fmt: Format, bits: Bits, steps: int) -> tuple[float, float]:
    """Mean over steps of ``<x, q - x> / <x, x>`` within the mask, and its standard error."""
    part = x[mask].double()
    each = []
    for step in range(steps):
        values = fmt.quantize(x, bits, noise_key(1, step, "unbiased")).values
        each.append(float((part * (values[mask].double() - part)).sum() / part.square().sum()))
    t = torch.tensor(each, dtype=torch.float64)
    return float(t.mean()), float(t.std()) / math.sqrt(steps)

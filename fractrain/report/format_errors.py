"""Tables of what number formats do to a tensor: measured on normal random numbers, without any training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, Literal

import pydantic

from fractrain.report.stats import Estimate, estimate
from fractrain.report.values import Cell, Column, Row
from fractrain.report.verdict import Verdict, VerdictRule, equivalence
from fractrain.util.schema import Strict
from fractrain.util.seeds import derive_seed

Quantity = Literal["error", "misalignment"]
UNITS: Final[dict[Quantity, tuple[str, float]]] = {"error": ("x 1e-3", 1e3), "misalignment": ("%", 100.0)}

COLUMNS: Final = (
    Column("label", "Format", "Format", ("errors",)),
    Column("quantity", "Quantity", "Quantity", ("errors",)),
    Column("bits", "Bits per element, scales included", "Bits", ("errors",)),
    Column("published", "Published", "pub.", ("errors",), "published"),
    Column("measured", "Measured", "Measured", ("errors",), "measured"),
    Column("tolerance", "Tolerance", "Tol.", ("errors",)),
    Column("verdict", "Verdict", "Verdict", ("errors",)),
)
RULES: Final = (
    "Error: squared error over squared norm, x 1e-3. Measured: mean over seeds with its 95 % Student t interval.",
    "Verdict: reproduced if the whole interval lies within published +- tolerance, differs if it lies outside.",
)


class ErrorRow(Strict):
    """One row: a number format by name, what of it is measured, and the published figure.

    Attributes:
        published: in the unit of the quantity (error: x 1e-3, misalignment: %); None where there is none.
        tolerance: half the width of the zone around it, in the same unit.
        seeds: matrices; 0: the table's number.
    """

    key: str
    label: str
    format: str
    quantity: Quantity = "error"
    published: float | None = None
    tolerance: float = pydantic.Field(default=0.0, ge=0)
    seeds: int = pydantic.Field(default=0, ge=0)


class FormatErrors(Strict):
    """A table of errors: its rows, and the matrices they are measured on.

    Attributes:
        seeds: matrices of normal numbers, each with a seed of its own.
    """

    rows: tuple[ErrorRow, ...] = pydantic.Field(min_length=1, strict=False)
    seeds: int = pydantic.Field(default=16, ge=2)
    shape: tuple[int, int] = pydantic.Field(default=(512, 1024), strict=False)


def error_rows(errors: FormatErrors, source: str) -> Iterator[Row]:
    """Measure and judge all rows, in about ten seconds."""
    for row in errors.rows:
        found = estimate(measure_errors(row.format, row.quantity, row.seeds or errors.seeds, errors.shape))
        unit, _ = UNITS[row.quantity]
        verdict = _verdict(row, found)
        published = (
            Cell("–")
            if row.published is None
            else Cell(f"{row.published:g}", "published", row.published, source=source)
        )
        yield Row("method", "Normal numbers", {
            "label": Cell(row.label), "quantity": Cell(f"{row.quantity}, {unit}"),
            "bits": Cell(f"{_bits(row.format, errors.shape):g}"), "published": published, "measured": _measured(found),
            "tolerance": Cell(f"± {row.tolerance:g}" if row.published is not None else "–"),
            "verdict": Cell(str(verdict)),
        })  # fmt: skip


@lru_cache(maxsize=64)
def measure_errors(name: str, quantity: Quantity, seeds: int, shape: tuple[int, int]) -> tuple[float, ...]:
    """One figure per matrix, in the unit of the quantity.

    Raises:
        ConfigError: there is no such number format.
    """
    import torch

    from fractrain.numerics.registry import number_format
    from fractrain.numerics.stochastic_rounding import noise_key

    fmt, (_, factor) = number_format(name), UNITS[quantity]
    assert fmt.bits is not None
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(derive_seed(seed, "errors of formats"))
        x = torch.randn(shape, generator=generator)
        key = None if fmt.rounding == "nearest" else noise_key(seed, 0, name)
        q, wide = fmt.quantize(x, fmt.bits, key).values.double(), x.double()
        off = (q - wide).square().sum() if quantity == "error" else (wide * (wide - q)).sum()
        found.append(factor * float(off / wide.square().sum()))
    return tuple(found)


def _bits(name: str, shape: tuple[int, int]) -> float:
    import torch

    from fractrain.numerics.registry import number_format

    fmt = number_format(name)
    assert fmt.bits is not None
    return round(fmt.bits + fmt.scale_bits(torch.Size(shape), True), 3)


def _measured(found: Estimate) -> Cell:
    assert found.half_width is not None
    low, high = found.mean - found.half_width, found.mean + found.half_width
    text = f"{found.mean:.4g} ± {found.half_width:.1g}"
    return Cell(text, "measured", found.mean, low, high, found.n)


def _verdict(row: ErrorRow, found: Estimate) -> Verdict:
    if row.published is None:
        return Verdict("inconclusive", "no published value")
    return equivalence(found, row.published, VerdictRule(min_seeds=2, tolerance=row.tolerance), less_is_better=True)

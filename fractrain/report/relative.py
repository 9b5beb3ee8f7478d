"""Relative columns: a row set against another one of its pair, beside what its source claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fractrain.cost.published import PublishedRow
from fractrain.engine.recipes import Profile
from fractrain.report.columns import QUANTITIES, Quantity
from fractrain.report.improve import numbers
from fractrain.report.rows import MethodRow, published_value
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, RowSpec, TableSpec
from fractrain.report.spec_relative import Claim
from fractrain.report.stats import Estimate, paired_difference, paired_ratio
from fractrain.report.values import Cell, Measured, Row
from fractrain.report.verdict import Verdict, judge
from fractrain.util.errors import DataError


def with_relative(
    spec: TableSpec,
    pair: Pair,
    row: RowSpec,
    built: Mapping[str, MethodRow],
    index: PublishedIndex,
    profile: Profile,
) -> Row:
    """Return a method row with its relative columns filled, where the row is set against another one.

    Args:
        spec: the table.
        pair: the model and data set.
        row: the method.
        built: the pair's method rows by row key.
        index: the published numbers.
        profile: whose runs were measured.
    """
    cells: dict[str, Cell] = {}
    for relative in spec.relative if row.against in built else ():
        quantity = next(q for q in QUANTITIES if q.key == relative.quantity)
        claim = relative.claim
        claimed = published_value(pair, row, claim.metric, index) if claim else None
        if claim and claimed is not None:
            cells[f"{quantity.key}_claim"] = saving_claim_cell(claimed) if claim.saving else claim_cell(claimed)
            if claim.saving:
                verdict = _claim_verdict(spec, pair, row, built, profile, quantity, claim, claimed)
                cells[f"{quantity.key}_claim_verdict"] = Cell(verdict)
        found = compare(built[row.key].measured, built[row.against].measured, quantity)
        if found is not None:
            cells[f"{quantity.key}_relative"] = _cell(found, quantity, spec.row(row.against).label, spec.hardware)
    return replace(built[row.key].row, cells={**built[row.key].row.cells, **cells})


def compare(own: Mapping[int, Measured], other: Mapping[int, Measured], quantity: Quantity) -> Estimate | None:
    """Accuracy, perplexity: own minus other; costs: other by own. Paired over common seeds, None without a measurement.

    Args:
        own: complete runs of the row by seed.
        other: complete runs of the row it is set against.
        quantity: what is compared.
    """
    mine, theirs = numbers(own, quantity), numbers(other, quantity)
    return paired_difference(mine, theirs) if quantity.is_quality else paired_ratio(theirs, mine)


def claim_cell(row: PublishedRow) -> Cell:
    """A claim in the words of its source, for example ``up to 5.1x``; without a number, with what it is about."""
    value = float(row.value) if isinstance(row.value, int | float) else None
    text = str(row.value)
    if not any(character.isdigit() for character in text):
        text = f"{row.metric}: {text}"
    return Cell(text, "published", value, source=f"{row.paper}: {row.source}; {row.confidence}")


def saving_claim_cell(row: PublishedRow) -> Cell:
    """A claimed saving as the ratio that it means: ``1.27 (21 % less; published claim, second hand)``.

    Raises:
        DataError: the claim is no number of percent from 0 to below 100.
    """
    saving = _saving(row)
    ratio = 1 / (1 - saving / 100)
    source = f"1/(1 - {saving:g}/100), from {row.paper}: {row.source}; {row.confidence}"
    text = f"{ratio:.2f} ({saving:g} % less; published claim, {row.confidence})"
    return Cell(text, "derived", ratio, source=source)


def _saving(row: PublishedRow) -> float:
    if isinstance(row.value, str) or not 0 <= row.value < 100:
        raise DataError(
            f"published rows: {row.table}, {row.dataset}, {row.method}: {row.metric} is {row.value!r}; "
            "it must be a number of percent from 0 to below 100"
        )
    return float(row.value)


def _claim_verdict(
    spec: TableSpec, pair: Pair, row: RowSpec, built: Mapping[str, MethodRow], profile: Profile, quantity: Quantity,
    claim: Claim, claimed: PublishedRow,
) -> str:  # fmt: skip
    """What the measured saving says of the claimed one, by the rule of the table; both in percent."""
    own, other = built[row.key], built[row.against]
    if not own.measured:
        return own.row.text("verdict")
    share = compare(other.measured, own.measured, quantity)  # the row's cost by the other's, so that a saving is linear
    if share is None:
        return str(Verdict("inconclusive", f"nothing of {spec.row(row.against).label} to compare with"))
    half = None if share.half_width is None else 100 * share.half_width
    saving = replace(share, mean=100 * (1 - share.mean), sd=None, half_width=half)
    real = spec.dataset(pair, profile) == pair.dataset
    return str(judge(saving, _saving(claimed), profile, real, replace(spec.verdict.rule(), tolerance=claim.tolerance)))


def _cell(found: Estimate, quantity: Quantity, other: str, hardware: str) -> Cell:
    spread = "" if found.half_width is None else f" ± {found.half_width:.2f}"
    text = f"{found.mean:+.2f}" if quantity.is_quality else f"{found.mean:.2f}"
    model = f", modelled: {hardware}" if quantity.modelled else ""
    source = f"from measured runs, against {other}, paired over seeds{model}"
    return Cell(text + spread, "derived", found.mean, found.low, found.high, found.n, source)

"""Relative columns: a row set against another one of its pair, beside what its source claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fractrain.cost.published import PublishedRow
from fractrain.engine.length import Profile
from fractrain.report.improve import CIRCULAR, circular, paired_gain, values_by_seed
from fractrain.report.quantities import BY_KEY, Quantity
from fractrain.report.rows import MethodRow, estimate_cell, published_value
from fractrain.report.sources import PublishedIndex
from fractrain.report.spec import Pair, PublishedClaim, RowSpec, TableSpec
from fractrain.report.stats import Estimate, paired_difference, paired_ratio
from fractrain.report.values import Cell, Row, RunValues
from fractrain.report.verdict import Verdict, VerdictRule, judge
from fractrain.util.errors import DataError


def with_relative(
    spec: TableSpec, pair: Pair, row: RowSpec, built: Mapping[str, MethodRow], index: PublishedIndex, profile: Profile
) -> Row:
    """Return a method row with its relative columns filled, where the row is set against another one."""
    cells: dict[str, Cell] = {}
    for relative in spec.relative if row.against in built else ():
        quantity = BY_KEY[relative.quantity]
        own, other = built[row.key], built[row.against]
        said = _claimed(relative.claim, pair, row, own, other, quantity, index) if relative.claim else None
        if relative.claim and said is not None:
            cells[f"{quantity.key}_claim"], value = said
            if relative.claim.judged:
                rule = spec.verdict.model_copy(update={"tolerance": relative.claim.tolerance})
                real = spec.dataset(pair, profile) == pair.dataset
                word = _verdict(own, other, quantity, value, spec, row, rule, profile, real)
                cells[f"{quantity.key}_claim_verdict"] = Cell(word)
        found = paired_estimate(own.measured, other.measured, quantity)
        if found is not None:
            cells[f"{quantity.key}_relative"] = _cell(found, quantity, spec.row(row.against).label, spec.hardware)
    return replace(built[row.key].row, cells={**built[row.key].row.cells, **cells})


def _claimed(
    claim: PublishedClaim, pair: Pair, row: RowSpec, own: MethodRow, other: MethodRow, quantity: Quantity,
    index: PublishedIndex,
) -> tuple[Cell, float | None] | None:  # fmt: skip
    """The claim of a row's source, or what follows from the published numbers of both rows; None without either.

    Beside the cell stands the number that is judged: a difference, or a saving in percent.
    """
    if claim.metric:
        found = published_value(pair, row, claim.metric, index)
        if found is None:
            return None
        return (saving_claim_cell(found), _saving(found)) if claim.saving else (claim_cell(found), None)
    mine, theirs = own.published.get(quantity.published), other.published.get(quantity.published)
    if mine is None or theirs is None:
        return None
    source = "from the published rows of both"
    if quantity.is_quality:
        return Cell(f"{mine - theirs:+.2f}", "derived", mine - theirs, source=source), mine - theirs
    ratio, saving = theirs / mine, 100 * (1 - mine / theirs)
    return Cell(f"{ratio:.2f} ({saving:.1f} % less)", "derived", ratio, source=source), saving


def judged_claims(spec: TableSpec, row: Row) -> list[str]:
    """One sentence for each verdict on a claim that the compact layout has no column for."""
    notes = []
    for relative in spec.relative:
        verdict = row.text(f"{relative.quantity}_claim_verdict")
        if verdict and verdict != "not run" and not (relative.claim and relative.claim.short):
            notes.append(f"{row.group}, {row.text('method')}, {relative.label}: {verdict}.")
    return notes


def paired_estimate(
    own: Mapping[int, RunValues], other: Mapping[int, RunValues], quantity: Quantity
) -> Estimate | None:
    """Accuracy, perplexity: own minus other; costs: other by own. Paired over common seeds, None without any."""
    mine, theirs = values_by_seed(own, quantity), values_by_seed(other, quantity)
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


def _verdict(
    own: MethodRow, other: MethodRow, quantity: Quantity, said: float | None, spec: TableSpec, row: RowSpec,
    rule: VerdictRule, profile: Profile, real: bool,
) -> str:  # fmt: skip
    """What the measured difference or saving (percent) says of the claimed one."""
    if not own.measured:
        return own.row.text("verdict")
    found = paired_gain(own, other, quantity)
    if found is None:
        return str(Verdict("inconclusive", f"nothing of {spec.row(row.against).label} to compare with"))
    if profile == "paper" and circular(quantity, spec.hardware):
        return str(CIRCULAR)
    return str(judge(found, said, profile, real, rule))


def _cell(found: Estimate, quantity: Quantity, other: str, hardware: str) -> Cell:
    model = f", modelled: {hardware}" if quantity.modelled else ""
    source = f"from measured runs, against {other}, paired over seeds{model}"
    return estimate_cell(found, found.text("+" if quantity.is_quality else ""), source)

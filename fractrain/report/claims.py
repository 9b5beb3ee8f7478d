"""Claims: what the abstracts say, one by one, each with today's verdict from committed records and published rows.

A claim is judged by runs of the length it needs alone. Where there are only shorter ones it is `not run`, and what the
trend of the shorter ones says stands beside it.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pydantic
from tabulate import tabulate

from fractrain.report.claim_values import LENGTHS, ClaimPlace, mechanism, paired_values, published_text
from fractrain.report.improve import CIRCULAR
from fractrain.report.sources import Remembering, Sources, Store, cached_sources, default_sources
from fractrain.report.spec import RunRequest, benchmark_folders, load_spec, read_closed
from fractrain.report.stats import Estimate, estimate
from fractrain.report.trend import fit_trend, judge_trend_zone
from fractrain.report.verdict import Verdict, VerdictRule, Word, judge_interval
from fractrain.util.schema import Strict

Quantity = Literal[
    "accuracy_gap", "saving_macs", "saving_latency", "saving_energy", "ratio_bitops", "ratio_energy",
    "share_below_final", "adaptive_share", "analysis_share", "storage_share", "late_drop", "none",
]  # fmt: skip
UNITS: Final = {"accuracy_gap": "points", "saving_macs": "%", "saving_latency": "%", "saving_energy": "%"}
MODELLED: Final = ("saving_latency", "saving_energy", "ratio_energy")
SEEDS: Final = 10  # seeds looked for
TREND_TOLERANCE: Final = 1.0
ADVISED: Final = 5  # seeds with which an exact copy is found in four cases of five, see fractrain.report.verdict


class ClaimSpec(Strict):
    """One claim.

    Attributes:
        text: what is claimed, in our words, with the source's numbers.
        quantity: what is measured of it; ``none``: nothing, ``note`` says why.
        unit: of the quantity, where it does not go without saying.
        table, pairs, row: the runs: a row of a table on these pairs (``model/dataset``).
        related: pairs that are not the claim's own, whose trend is told beside it.
        against: rows that it is set against; the one with the best mean accuracy counts.
        expected: the claim as an interval, with what it leaves open.
        most: the claim is of the most over the pairs ("up to").
        length: the length of training it needs, ``paper`` or ``any``.
        published_table: of this claim, where it is not the file's.
    """

    id: str
    text: str
    quantity: Quantity
    unit: str = ""
    table: str = ""
    pairs: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    related: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    row: str = ""
    against: tuple[str, ...] = pydantic.Field(default=(), strict=False)
    expected: tuple[float, float] = pydantic.Field(default=(float("-inf"), float("inf")), strict=False)
    most: bool = False
    length: Literal["paper", "any"] = "paper"
    published_table: str = ""
    note: str = ""

    @pydantic.model_validator(mode="after")
    def _complete(self) -> ClaimSpec:
        if self.expected[0] >= self.expected[1]:
            raise ValueError(f"{self.id}: expected is no interval: {list(self.expected)}")
        if self.quantity != "none" and not (self.table and self.pairs and self.row):
            raise ValueError(f"{self.id}: give table, pairs and row, or quantity = 'none' with a note")
        if self.quantity == "none" and not self.note:
            raise ValueError(f"{self.id}: say in `note` why there is no quantity")
        return self


class ClaimFile(Strict):
    """All claims of one source."""

    source: str
    published_table: str
    claims: tuple[ClaimSpec, ...] = pydantic.Field(min_length=1, strict=False)


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict.

    Attributes:
        id, text, source, note: as in its specification.
        expected: the interval, with unit.
        published: what the published rows themselves give; empty where they give nothing.
        verdict, reason: the word, by runs of that length, and why.
        trend: what shorter runs say; empty where there are none.
        next: the command that would decide it.
    """

    id: str
    text: str
    source: str
    expected: str
    length: str
    published: str
    verdict: Word
    reason: str
    trend: str
    evidence: str
    next: str
    note: str


def claim_files() -> list[Path]:
    """The files of claims: FracTrain's first, whose headline is the project's."""
    found = [file for folder in benchmark_folders("claims") for file in folder.glob("*.toml")]
    return sorted(found, key=lambda file: (file.stem != "fractrain", file.stem))


def judge_claims(
    store: Store | None, sources: Sources | None = None,
    may_have: Callable[[RunRequest], bool] = lambda _: True,
) -> list[JudgedClaim]:  # fmt: skip
    """Every claim with today's verdict.

    Args:
        store: committed records or a run store; None: nothing was run.
        sources: configurations, costs and published rows; default: the engine's and the package's own.
        may_have: see :class:`fractrain.report.claim_values.ClaimPlace`; to look for a run takes a millisecond or two.
    """
    sources, store = cached_sources(sources or default_sources()), None if store is None else Remembering(store)
    table = functools.lru_cache(maxsize=None)(load_spec)
    judged = []
    for file in claim_files():
        content = read_closed(file, ClaimFile)
        for spec in content.claims:
            printed = spec.published_table or content.published_table
            place = None
            if spec.table:
                place = ClaimPlace(table(spec.table), spec.row, spec.against, store, sources, printed, may_have)
            judged.append(_judge(spec, content.source, place))
    return judged


def _judge(spec: ClaimSpec, source: str, place: ClaimPlace | None) -> JudgedClaim:
    verdict, trend, evidence, said = Verdict("not run", spec.note), "", "", ""
    if place is not None:
        said = published_text(place, spec.quantity, spec.pairs)
        if spec.length == "any":
            verdict, evidence = _by_construction(spec, place)
        else:
            verdict, evidence = _at_length(spec, place)
            trend, more = _trend(spec, place)
            evidence = "; ".join(filter(None, (evidence, more)))
    return JudgedClaim(
        id=spec.id, text=spec.text, source=source, expected=_zone(spec), length=spec.length, published=said,
        verdict=verdict.word, reason=verdict.reason, trend=trend, evidence=evidence, next=_next(spec), note=spec.note,
    )  # fmt: skip


# -- by runs of the length the claim needs -----------------------------------------------------------------------------


def _at_length(spec: ClaimSpec, place: ClaimPlace) -> tuple[Verdict, str]:
    """The verdict of runs of the paper's length; the least favourable of several pairs counts."""
    rule = place.table.verdict
    found: dict[str, Estimate] = {}
    for pair in spec.pairs:
        values = paired_values(place, spec.quantity, pair, "paper", SEEDS)
        if values:
            found[pair] = estimate(list(values.values()))
    circular = spec.quantity in MODELLED and place.circular
    if not found:
        why = f"; {CIRCULAR.reason}, so it could not decide" if circular else ""
        return Verdict("not run", f"no run of the paper's length{why}"), ""
    numbers = "; ".join(f"{pair}: {_number(e, spec)}, n={e.n}" for pair, e in found.items())
    if circular:
        return CIRCULAR, numbers
    if spec.most:
        return judge_zone(max(found.values(), key=lambda e: e.mean), spec.expected, rule), numbers
    missing = [pair for pair in spec.pairs if pair not in found]
    verdicts = [judge_zone(e, spec.expected, rule) for e in found.values()]
    worst = min(verdicts, key=lambda v: ("differs", "inconclusive", "reproduced").index(v.word))
    if missing and worst.word == "reproduced":
        return Verdict("inconclusive", f"{', '.join(missing)} not run"), numbers
    return worst, numbers


def judge_zone(measured: Estimate, expected: tuple[float, float], rule: VerdictRule) -> Verdict:
    """Judge an interval by a zone, as :func:`fractrain.report.verdict.judge` does by a published value."""
    if measured.n < rule.min_seeds or measured.half_width is None:
        return Verdict("inconclusive", f"n={measured.n}, {rule.min_seeds} needed")
    return judge_interval(measured, *expected)


def _by_construction(spec: ClaimSpec, place: ClaimPlace) -> tuple[Verdict, str]:
    """A claim on how a method works: counted over all runs there are, which show it but are no reproduction."""
    found = [v for pair in spec.pairs for v in mechanism(place, spec.quantity, pair, SEEDS)]
    values = [v for v in found if v is not None]
    if not values:
        return Verdict("not run", f"not measured in any of {len(found)} runs" if found else ""), ""
    holds = sum(spec.expected[0] <= v <= spec.expected[1] for v in values)
    low, high = (f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in (min(values), max(values)))
    text = f"holds in {holds} of {len(values)} runs: {low if low == high else f'{low} to {high}'} {spec.unit}".rstrip()
    return Verdict("inconclusive", f"reduced length; {text}"), text


# -- by shorter ones ---------------------------------------------------------------------------------------------------


def _trend(spec: ClaimSpec, place: ClaimPlace) -> tuple[str, str]:
    """What shorter runs say of a claim, its own pairs first, then related ones; and the numbers."""
    words, numbers = [], []
    for pair in (*spec.pairs, *spec.related):
        by_length = {
            length: values for length in LENGTHS
            if (values := paired_values(place, spec.quantity, pair, length, SEEDS))
        }  # fmt: skip
        if not by_length:
            continue
        line = fit_trend({1 / LENGTHS[length]: list(values.values()) for length, values in by_length.items()})
        own = pair if pair in spec.pairs else f"{pair} (not the claim's network)"
        if not (spec.quantity in MODELLED and place.circular):
            words.append(f"{own}: {judge_trend_zone(line, *_widened(spec.expected))}")
        for length, values in by_length.items():
            e = estimate(list(values.values()))
            numbers.append(f"{own} at {length}: {_number(e, spec)}, n={e.n}")
    return "; ".join(words), "; ".join(numbers)


def _widened(zone: tuple[float, float]) -> tuple[float, float]:
    """A zone at least as wide as what a prediction can be set against."""
    more = max(0.0, TREND_TOLERANCE - (zone[1] - zone[0]) / 2)
    return zone[0] - more, zone[1] + more


# -- words -------------------------------------------------------------------------------------------------------------


def _number(e: Estimate, spec: ClaimSpec) -> str:
    return e.text("+" if spec.quantity == "accuracy_gap" else "")


def _zone(spec: ClaimSpec) -> str:
    if spec.quantity == "none":
        return ""
    low, high = spec.expected
    ends = (
        f"{low:g} to {high:g}" if abs(low) != float("inf") != high
        else f"at least {low:g}" if high == float("inf") else f"at most {high:g}"
    )  # fmt: skip
    return f"{ends} {spec.unit or UNITS.get(spec.quantity, '')}".strip()


def _next(spec: ClaimSpec) -> str:
    if spec.quantity == "none":
        return ""
    if spec.length == "any":
        return f"fractrain reproduce {spec.table} --length 1/64 --data-dir DIR"
    return f"fractrain reproduce {spec.table} --profile paper --seeds {ADVISED} --data-dir DIR"


# -- in words ----------------------------------------------------------------------------------------------------------


def verdict_text(claim: JudgedClaim) -> str:
    """The verdict, its reason, and what shorter runs say."""
    word = f"{claim.verdict} ({claim.reason})" if claim.reason else claim.verdict
    return f"{word}; {claim.trend}" if claim.trend else word


def listing(claims: Sequence[JudgedClaim]) -> str:
    """One paragraph for each claim."""
    parts = []
    for claim in claims:
        needs = "any length" if claim.length == "any" else "the paper's length"
        facts = {
            "verdict": verdict_text(claim), "expected": f"{claim.expected} (needs {needs})" if claim.expected else "",
            "published": claim.published, "evidence": claim.evidence,
            "note": claim.note if claim.note != claim.reason else "", "next": claim.next, "source": claim.source,
        }  # fmt: skip
        lines = [f"{claim.id}: {claim.text}"]
        for name, text in facts.items():
            if text:
                lines += textwrap.wrap(text, 110, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(claims: Sequence[JudgedClaim]) -> str:
    """A table: claim, what the published rows themselves give, verdict."""
    rows = [[c.text, c.published or "–", verdict_text(c)] for c in claims]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(rows, ["Claim", "The published rows give", "Today's verdict"], tablefmt="github",
                    disable_numparse=True)  # fmt: skip

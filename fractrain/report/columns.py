"""Columns of the comparison tables, their published metrics, and the sentences that define them."""

from __future__ import annotations

from dataclasses import replace

from fractrain.cost.hardware import create
from fractrain.report.quantities import ACC, BY_KEY, COST, IN_TABLES, Quantity
from fractrain.report.spec import PublishedClaim, Relative, TableSpec
from fractrain.report.stats import CONFIDENCE
from fractrain.report.values import Column, Part
from fractrain.report.verdict import rule_text

BOTH: tuple[Part, ...] = ("accuracy", "cost")


def _catalogue(hardware: str) -> tuple[tuple[Column, Quantity | None], ...]:
    """Every column that a table can have, in order, with the quantity that it shows."""
    families = list(dict.fromkeys(q.family for q in IN_TABLES))
    own = [(column, q) for q in IN_TABLES for column in q.columns(hardware)]
    own.sort(key=lambda pair: (families.index(pair[1].family), pair[0].origin != "published"))
    labels = (
        Column("model", "Model", "", BOTH), Column("data", "Data", "", BOTH), Column("data_short", "", "Data", BOTH),
        Column("method", "Method", "", BOTH), Column("precision", "Precision", "", BOTH),
        Column("label", "", "Method", BOTH),
    )  # fmt: skip
    seeds = Column("seeds", "Seeds [done/planned]", "Seeds", ACC)
    last = Column("verdict", "Verdict", "Verdict", ACC), Column("runs", "Run ids", "", ACC)
    return (
        *((column, None) for column in labels), *(pair for pair in own if pair[1].is_quality), (seeds, None),
        *(pair for pair in own if not pair[1].is_quality), *((column, None) for column in last),
    )  # fmt: skip


def columns(spec: TableSpec) -> tuple[Column, ...]:
    """The columns, in order; the compact layout shows those with a short heading, in one or two parts."""
    shown: list[Column] = []
    for column, quantity in _catalogue(spec.hardware):
        if column.key == "verdict":
            shown += [c for relative in spec.relative for c in relative_columns(spec, relative)]
        if quantity is None or column.key in spec.columns:
            shown.append(column)
        elif not spec.columns and (quantity.usual == "yes" or (quantity.usual and column.origin != "published")):
            shown.append(replace(column, short=column.short if quantity.usual == "yes" else ""))
    if spec.parts == 1:
        shown = [replace(column, parts=("all",)) for column in shown]
    return tuple(shown)


def relative_columns(spec: TableSpec, relative: Relative) -> list[Column]:
    """The columns of one relative quantity: the claim as published, if there is one, ours, derived, and the verdict."""
    quantity = BY_KEY[relative.quantity]
    named = quantity.columns(spec.hardware)[-1]
    parts = ACC if quantity.is_quality else COST
    unit = "x" if not quantity.is_quality else "perplexity" if quantity.is_perplexity else "points"
    how = "difference in" if quantity.is_quality else "ratio of"
    better = "↓" if quantity.is_perplexity else "↑"  # a ratio is a factor saved
    ours = f"{relative.label} [{unit}] {better}, derived: {how} {_what(named)}"
    found = [Column(f"{quantity.key}_relative", ours, relative.short, parts, "derived")]
    if relative.claim:
        origin = "claimed by the source" if relative.claim.metric else "by the published rows"
        head = f"{relative.claim.label} [{unit}] {better}, {origin}"
        found.insert(0, Column(f"{quantity.key}_claim", head, relative.claim.short, parts, "published"))
    if relative.claim and relative.claim.judged:
        short = "claim's verdict" if relative.short and relative.claim.short else ""
        found.append(Column(f"{quantity.key}_claim_verdict", f"{relative.label}: verdict on the claim", short, parts))
    return found


def _claim_rule(claim: PublishedClaim, quality: bool) -> str:
    """How a claim is shown and judged."""
    if quality:
        return (
            f"{claim.label}: the difference of the published rows, which are one run each; its verdict judges our "
            f"difference, paired over seeds, by the rule below, with a tolerance of {claim.tolerance:g}."
        )
    return (
        f"{claim.label}, as claimed: a saving of s % stands as the ratio 1/(1 - s/100). Its verdict sets s beside the "
        "measured saving, 100 x (1 - the row's cost / the other row's), in percentage points: by the rule below, but "
        f"with a tolerance of {claim.tolerance:g} points. It is no part of the row's own verdict."
    )


def _what(column: Column) -> str:
    """Name of a measured column for use inside another heading: without unit, direction and ``measured``."""
    name, _, rest = column.head.partition(" [")
    detail = rest.partition(", ")[2].removeprefix("measured").removeprefix(", ")
    return f"{name} ({detail})" if detail else name


def rules(spec: TableSpec) -> tuple[str, ...]:
    """What the columns mean: printed under every table."""
    texts = [
        "Accuracy: last = after the last step; best* = best on the test set over all evaluations, the paper protocol "
        "(chosen on test data, so optimistic; comparable with the published column).",
        f"Measured values are means over seeds, ± the half width of the {CONFIDENCE:.0%} Student t interval; one seed "
        "has no interval. Rows with missing, failed or diverged seeds are never averaged.",
        "Paper's MACs = cp/100 x training images x 3 x forward MACs of the model (effective, 32-bit equivalent), up to "
        "the epoch of best test accuracy (@best, as published) or over the whole run (@end): as if the cost of the "
        "gated blocks were that of the whole model. Published rows of ResNet-38 and -74 take 84.9 and 170.0 M for the "
        "forward MACs; the column with these (CSV, JSON, HTML) is the one to hold against them.",
    ]
    if any(c.key.startswith("perplexity") for c in columns(spec)):
        texts.append(
            "Perplexity = exponential of the mean negative log-likelihood (nats) per word token of the test part, "
            "every token after the first scored once; lower is better. Verdicts on language models are about "
            "perplexity: the same rule, in units of perplexity for percentage points."
        )
    if spec.hardware:
        model = create(spec.hardware)
        texts.append(
            f"Energy and latency of our runs are modelled by {spec.hardware}: {model.summary().rstrip('.')}. It is not "
            f"{model.is_not}."
        )
    if any(c.key.startswith(("effective", "cost")) for c in columns(spec)):
        texts.append(
            "MACs of the whole model = the sum over everything counted, stem, classifier and gates included, of MACs x "
            "bits of operand 1/32 x bits of operand 2/32 (floating point counts as 32 bits); in percent: of the same "
            "training in full precision without gates."
        )
    if any(c.key in ("bitops_end", "bitops_best", "bitops_end_relative") for c in columns(spec)):
        texts.append(
            "BitOPs@end = sum of MACs x bits of operand 1 x bits of operand 2 over everything counted in the whole run "
            "(stem, classifier and gates included; floating point counts as 32 bits)."
        )
    if spec.relative:
        pairs = [f"{row.label} {row.precision} against {spec.row(row.against).label} {spec.row(row.against).precision}"
                 for row in spec.rows if row.against]  # fmt: skip
        texts.append(
            f"Relative columns: {'; '.join(pairs)}. Accuracy: difference in points; costs: the other row's cost "
            "divided by the row's own, so above 1 is a saving. Both are paired over common seeds. No step was timed: a "
            "speed-up is a ratio of counted operations or of modelled latency, as its heading says."
        )
    for relative in spec.relative:
        if relative.claim and relative.claim.judged:
            texts.append(_claim_rule(relative.claim, relative.quantity.startswith(("accuracy", "perplexity"))))
    if spec.improvement:
        names = ", ".join(spec.row(key).label for key in spec.improvement.baselines)
        texts.append(
            f"Improvement rows: {spec.row(spec.improvement.subject).label} against the static baselines ({names}). "
            "Accuracy: difference in points to the best of them, which is named, paired over seeds; costs: saving in "
            "%, as min~max over them (over which, say the notes; one number where they agree), with the span of the "
            "intervals of their paired savings. Verdicts compare each with the "
            "published rows, baseline by baseline, by the rule below; the tolerance of a saving is "
            f"{spec.improvement.tolerance:g} points."
        )
    return (*texts, "Verdict: " + rule_text(spec.verdict))

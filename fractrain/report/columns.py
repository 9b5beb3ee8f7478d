"""Columns of the comparison tables, their published metrics, and the sentences that define them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fractrain.cost.hardware import create
from fractrain.report.spec import TableSpec
from fractrain.report.spec_relative import Claim, Relative
from fractrain.report.stats import CONFIDENCE
from fractrain.report.values import Column, Measured, Part, QuantityKey, fitted_text, fixed_text, macs_text
from fractrain.report.verdict import rule_text


@dataclass(frozen=True)
class Quantity:
    """One measured column: how its number is read from a run and written, and the published column beside it.

    Attributes:
        key: key of the measured column.
        read: the number of one run, or None.
        text: how a mean is written.
        published: key of the published column it is comparable with; empty if there is none.
        metric: name of that column's metric in the published rows.
        scale: what a published number is multiplied by to be in the unit of the column.
        saving: metric of the printed improvement.
        modelled: the number comes from the hardware model.
    """

    key: QuantityKey
    read: Callable[[Measured], float | None]
    text: Callable[[float], str]
    published: str = ""
    metric: str = ""
    scale: float = 1.0
    saving: str = ""
    modelled: bool = False

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the model is: differences, not ratios, are compared."""
        return self.key.startswith(("accuracy", "perplexity"))

    @property
    def best(self) -> Callable[[Iterable[float]], float]:
        """``max`` or ``min``: which of several values is the best."""
        return max if self.key.startswith("accuracy") else min


QUANTITIES = (
    Quantity("accuracy_last", lambda m: m.accuracy.get("last"), fixed_text),
    Quantity("accuracy_best_val", lambda m: m.accuracy.get("best_val"), fixed_text),
    Quantity(
        "accuracy_best_test",
        lambda m: m.accuracy.get("best_test"),
        fixed_text,
        "accuracy_published",
        "acc_top1_%",
        saving="acc_diff",
    ),
    Quantity("perplexity_last", lambda m: m.perplexity.get("last"), fixed_text),
    Quantity("perplexity_best_val", lambda m: m.perplexity.get("best_val"), fixed_text),
    Quantity(
        "perplexity_best_test", lambda m: m.perplexity.get("best_test"), fixed_text, "perplexity_published",
        "perplexity",
    ),
    Quantity("macs_best", lambda m: m.macs_best, macs_text, "macs_published", "effective_MACs", saving="MACs_saving"),
    Quantity("macs_end", lambda m: m.macs_end, macs_text),
    Quantity("bitops_end", lambda m: m.bitops_end, macs_text, "bitops_published", "GBitOPs", 1e9),
    Quantity("cp", lambda m: m.cp_percent, fitted_text),
    Quantity(
        "energy", lambda m: m.energy_kj, fitted_text, "energy_published", "energy_kJ", saving="energy_saving",
        modelled=True,
    ),
    Quantity("energy_end", lambda m: m.energy_end_kj, fitted_text, modelled=True),
    Quantity(
        "latency", lambda m: m.latency_min, fitted_text, "latency_published", "latency_min", saving="latency_saving",
        modelled=True,
    ),
    Quantity("latency_end", lambda m: m.latency_end_min, fitted_text, modelled=True),
)  # fmt: skip
PUBLISHED_TEXT: dict[str, Callable[[float], str]] = {
    "accuracy_published": fixed_text,
    "perplexity_published": fixed_text,
    "macs_published": macs_text,
    "bitops_published": macs_text,
    "energy_published": fixed_text,
    "latency_published": fixed_text,
}
BOTH: tuple[Part, ...] = ("accuracy", "cost")
ACC: tuple[Part, ...] = ("accuracy",)
COST: tuple[Part, ...] = ("cost",)


PERPLEXITY = ("perplexity_published", "perplexity_last", "perplexity_best_val", "perplexity_best_test")
EXTRA = frozenset({*PERPLEXITY, "bitops_published", "bitops_end", "energy_end", "latency_end"})
"""Columns that a table has only if it asks for them."""
ASKED = {"cp": "cp %↓", "accuracy_best_val": "best val %↑"}
"""Compact headings of columns that the compact layout shows only if the table asks for them."""


def _catalogue(hardware: str) -> tuple[Column, ...]:
    """Every column that a table can have, in order."""
    model = f"modelled by {hardware}" if hardware else "modelled"
    return (
        Column("model", "Model", "", BOTH),
        Column("data", "Data", "", BOTH),
        Column("data_short", "", "Data", BOTH),
        Column("method", "Method", "", BOTH),
        Column("precision", "Precision", "", BOTH),
        Column("label", "", "Method", BOTH),
        Column("accuracy_published", "Accuracy [%] ↑, published", "Acc pub. %↑", ACC, "published"),
        Column("accuracy_last", "Accuracy [%] ↑, measured, last epoch", "last %↑", ACC, "measured"),
        Column("accuracy_best_val", "Accuracy [%] ↑, measured, at best validation", "", ACC, "measured"),
        Column(
            "accuracy_best_test", "Accuracy [%] ↑, measured, best on test (paper protocol)", "best* %↑", ACC, "measured"
        ),
        Column("perplexity_published", "Perplexity [per word] ↓, published", "ppl↓ pub.", ACC, "published"),
        Column("perplexity_last", "Perplexity [per word] ↓, measured, last epoch", "last ppl↓", ACC, "measured"),
        Column(
            "perplexity_best_val", "Perplexity [per word] ↓, measured, at best validation", "ppl↓ at val", ACC,
            "measured",
        ),
        Column(
            "perplexity_best_test", "Perplexity [per word] ↓, measured, best on test (paper protocol)", "best* ppl↓",
            ACC, "measured",
        ),
        Column("seeds", "Seeds [done/planned]", "Seeds", ACC),
        Column("macs_published", "MACs@best [effective MACs] ↓, published", "MACs↓ pub.", COST, "published"),
        Column("macs_best", "MACs@best [effective MACs] ↓, measured", "MACs↓@best", COST, "measured"),
        Column("macs_end", "MACs@end [effective MACs] ↓, measured", "MACs↓@end", COST, "measured"),
        Column("bitops_published", "BitOPs [bit operations] ↓, published", "BitOPs↓ pub.", COST, "published"),
        Column("bitops_end", "BitOPs@end [bit operations] ↓, measured", "BitOPs↓@end", COST, "measured"),
        Column("cp", "cp, mean to best [% of FP32] ↓, measured", "", COST, "measured"),
        Column("energy_published", "Energy [kJ] ↓, published", "kJ↓ pub.", COST, "published"),
        Column("energy", f"Energy@best [kJ] ↓, {model}", "kJ↓ model", COST, "derived"),
        Column("energy_end", f"Energy@end [kJ] ↓, {model}", "kJ↓@end model", COST, "derived"),
        Column("latency_published", "Latency [min] ↓, published", "min↓ pub.", COST, "published"),
        Column("latency", f"Latency@best [min] ↓, {model}", "min↓ model", COST, "derived"),
        Column("latency_end", f"Latency@end [min] ↓, {model}", "min↓@end model", COST, "derived"),
        Column("verdict", "Verdict", "Verdict", ACC),
        Column("runs", "Run ids", "", ACC),
    )  # fmt: skip


def columns(spec: TableSpec) -> tuple[Column, ...]:
    """The columns, in order; the compact layout shows those with a short heading, in one or two parts."""
    shown: list[Column] = []
    for column in _catalogue(spec.hardware):
        if column.key == "verdict":
            shown += [c for relative in spec.relative for c in relative_columns(spec, relative)]
        if column.origin and column.key in spec.columns:
            shown.append(replace(column, short=column.short or ASKED.get(column.key, "")))
        elif not column.origin or not (spec.columns or column.key in EXTRA):
            shown.append(column)
    if spec.parts == 1:
        shown = [replace(column, parts=("all",)) for column in shown]
    return tuple(shown)


def relative_columns(spec: TableSpec, relative: Relative) -> list[Column]:
    """The columns of one relative quantity: the claim as published, if there is one, ours, derived, and the verdict."""
    quantity = next(q for q in QUANTITIES if q.key == relative.quantity)
    named = next(c for c in _catalogue(spec.hardware) if c.key == quantity.key)
    parts = ACC if quantity.is_quality else COST
    unit = "x" if not quantity.is_quality else "perplexity" if quantity.key in PERPLEXITY else "points"
    how = "difference in" if quantity.is_quality else "ratio of"
    better = "↓" if quantity.key in PERPLEXITY else "↑"  # a ratio is a factor saved
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


def _claim_rule(claim: Claim, quality: bool) -> str:
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
        "MACs = cp/100 x training images x 3 x forward MACs of the model (effective, 32-bit equivalent), summed up to "
        "the epoch of best test accuracy (@best, as published) or over the whole run (@end).",
    ]
    if any(c.key in PERPLEXITY for c in columns(spec)):
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
    if any(c.key in ("bitops_end", "bitops_end_relative") for c in columns(spec)):
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
            "Accuracy: difference in points to the best of them, paired over seeds; costs: saving in %, as min~max "
            "over them, with the span of the intervals of their paired savings. Verdicts compare each with the "
            "published rows, baseline by baseline, by the rule below; the tolerance of a saving is "
            f"{spec.improvement.tolerance:g} points."
        )
    return (*texts, "Verdict: " + rule_text(spec.verdict.rule()))

"""Columns of the comparison tables, their published metrics, and the sentences that define them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fractrain.cost.hardware import HARDWARE
from fractrain.report.spec import TableSpec
from fractrain.report.stats import CONFIDENCE
from fractrain.report.values import Column, Measured, Part, fitted_text, fixed_text, macs_text
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
        saving: metric of the printed improvement.
    """

    key: str
    read: Callable[[Measured], float | None]
    text: Callable[[float], str]
    published: str = ""
    metric: str = ""
    saving: str = ""

    @property
    def is_accuracy(self) -> bool:
        """Whether more is better and differences, not ratios, are compared."""
        return self.key.startswith("accuracy")


QUANTITIES = (
    Quantity("accuracy_last", lambda m: m.accuracy.get("last"), fixed_text),
    Quantity("accuracy_best_val", lambda m: m.accuracy.get("best_val"), fixed_text),
    Quantity(
        "accuracy_best_test",
        lambda m: m.accuracy.get("best_test"),
        fixed_text,
        "accuracy_published",
        "acc_top1_%",
        "acc_diff",
    ),
    Quantity("macs_best", lambda m: m.macs_best, macs_text, "macs_published", "effective_MACs", "MACs_saving"),
    Quantity("macs_end", lambda m: m.macs_end, macs_text),
    Quantity("cp", lambda m: m.cp_percent, fitted_text),
    Quantity("energy", lambda m: m.energy_kj, fitted_text, "energy_published", "energy_kJ", "energy_saving"),
    Quantity("latency", lambda m: m.latency_min, fitted_text, "latency_published", "latency_min", "latency_saving"),
)
PUBLISHED_TEXT: dict[str, Callable[[float], str]] = {
    "accuracy_published": fixed_text,
    "macs_published": macs_text,
    "energy_published": fixed_text,
    "latency_published": fixed_text,
}


def columns(spec: TableSpec) -> tuple[Column, ...]:
    """The columns, in order; the compact layout shows those with a short heading, in one or two parts."""
    both: tuple[Part, ...] = ("accuracy", "cost")
    model = f"modelled by {spec.hardware}" if spec.hardware else "modelled"
    return (
        Column("model", "Model", "", both),
        Column("data", "Data", "", both),
        Column("data_short", "", "Data", both),
        Column("method", "Method", "", both),
        Column("precision", "Precision", "", both),
        Column("label", "", "Method", both),
        Column("accuracy_published", "Accuracy [%] ↑, published", "Acc pub. %↑", ("accuracy",), "published"),
        Column("accuracy_last", "Accuracy [%] ↑, measured, last epoch", "last %↑", ("accuracy",), "measured"),
        Column("accuracy_best_val", "Accuracy [%] ↑, measured, at best validation", "", ("accuracy",), "measured"),
        Column(
            "accuracy_best_test",
            "Accuracy [%] ↑, measured, best on test (paper protocol)",
            "best* %↑",
            ("accuracy",),
            "measured",
        ),
        Column("seeds", "Seeds [done/planned]", "Seeds", ("accuracy",)),
        Column("macs_published", "MACs@best [effective MACs] ↓, published", "MACs↓ pub.", ("cost",), "published"),
        Column("macs_best", "MACs@best [effective MACs] ↓, measured", "MACs↓@best", ("cost",), "measured"),
        Column("macs_end", "MACs@end [effective MACs] ↓, measured", "MACs↓@end", ("cost",), "measured"),
        Column("cp", "cp, mean to best [% of FP32] ↓, measured", "", ("cost",), "measured"),
        Column("energy_published", "Energy [kJ] ↓, published", "kJ↓ pub.", ("cost",), "published"),
        Column("energy", f"Energy@best [kJ] ↓, {model}", "kJ↓ model", ("cost",), "derived"),
        Column("latency_published", "Latency [min] ↓, published", "min↓ pub.", ("cost",), "published"),
        Column("latency", f"Latency@best [min] ↓, {model}", "min↓ model", ("cost",), "derived"),
        Column("verdict", "Verdict", "Verdict", ("accuracy",)),
        Column("runs", "Run ids", "", ("accuracy",)),
    )


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
    if spec.hardware:
        description = HARDWARE.get(spec.hardware).description
        texts.append(f"Energy and latency of our runs are modelled by {spec.hardware}: {description}.")
    if spec.improvement:
        names = ", ".join(spec.row(key).label for key in spec.improvement.baselines)
        texts.append(
            f"Improvement rows: {spec.row(spec.improvement.subject).label} against the static baselines ({names}). "
            "Accuracy: difference in points to the best of them; costs: saving in %, as min~max over them."
        )
    return (*texts, "Verdict: " + rule_text(spec.verdict.rule()))

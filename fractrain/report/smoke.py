"""What tables of smoke runs show: that everything runs and learns, what it costs and how long it takes.

Smoke runs are minutes on other data. So their tables have no published numbers, no claims, no gains and no modelled
energy or latency: nothing that could be read as evidence about a paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fractrain.report.quantities import BY_KEY
from fractrain.report.spec import TableSpec
from fractrain.report.stats import CONFIDENCE, estimate
from fractrain.report.values import Cell, Column, RunValues

COLUMNS: Final = ("accuracy_last", "perplexity_last", "train_accuracy", "effective_end", "cp_end", "seconds")
MACHINE: Final = ("kept_backward", "optimizer_state", "step_seconds")  # where a table asks for them
POINT: Final = ("accuracy_best_test", "macs_best")  # what a figure draws
MODELLED: Final = ("energy", "latency")
LEARNS: Final = Column("verdict", "Learns [better than a predictor without learning]", "learns", ("all",))


def smoke_spec(spec: TableSpec, modelled: bool = False) -> TableSpec:
    """The specification without all that smoke runs say nothing about, and with the notes of its profile ``smoke``.

    What a hardware model says is left out unless it is asked for (``modelled``).
    """
    relative = tuple(r.model_copy(update={"claim": None}) for r in spec.relative if not BY_KEY[r.quantity].modelled)
    words = any(key.startswith("perplexity") for key in spec.columns)
    shown = tuple(key for key in COLUMNS if words or not key.startswith("perplexity"))
    shown += tuple(key for key in MACHINE if key in spec.columns)
    alone = {"published": None, "published_elsewhere": ()}
    return spec.model_copy(
        update={
            "hardware": spec.hardware if modelled else "", "improvement": None, "relative": relative, "parts": 1,
            "columns": shown + (MODELLED if modelled else ()) + (POINT if spec.figure else ()),
            "rows": tuple(row.model_copy(update=alone) for row in spec.rows),
            "notes": spec.profiles["smoke"].notes if "smoke" in spec.profiles else (),
        }
    )  # fmt: skip


def smoke_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns with the verdict's place taken by whether a row has learned."""
    return tuple(LEARNS if column.key == "verdict" else column for column in columns)


def learns(measured: Mapping[int, RunValues]) -> Cell:
    """Whether the last test results are on average better than those of a predictor that learned frequencies alone."""
    runs = [m.values for m in measured.values()]
    for kind, sign in (("perplexity", -1), ("accuracy", 1)):
        if runs and all(f"{kind}_last" in values and f"{kind}_trivial" in values for values in runs):
            last, bar = estimate([v[f"{kind}_last"] for v in runs]).mean, runs[0][f"{kind}_trivial"]
            return Cell("yes" if sign * last > sign * bar else "NO")
    return Cell("–")


def smoke_rules(spec: TableSpec) -> tuple[str, ...]:
    """What the columns mean."""
    texts = [
        "These runs show that everything works, on data of its own and in minutes. They say nothing about the paper: "
        "no published number stands here, and nothing is judged.",
        "last: test result after the last step; train: accuracy over the training batches of the last evaluation "
        "period. learns: the former is better than that of a predictor that knows only how frequent classes or words "
        "are.",
        f"Values are means over seeds, ± the half width of the {CONFIDENCE:.0%} Student t interval; one seed has no "
        "interval. Rows with missing, failed or diverged seeds are never averaged.",
        "whole@end: 32-bit-equivalent MACs of the whole training and the whole model; cp@end: those of the gated "
        "blocks, in percent of full precision. s: wall clock of a run on the machine that ran it; precision is "
        "simulated there, so that it is no evidence of speed.",
    ]
    if "kept_backward" in spec.columns:
        texts.append(
            "kept MiB: what the first step keeps for backward, per sample; state MiB: the optimizer's state; s/step: "
            "median, no evidence of speed either."
        )
    if spec.relative and any(row.against for row in spec.rows):
        texts.append(
            "Relative columns set a row against another one on the same data: accuracy as a difference in points, "
            "costs as the other row's by its own, paired over common seeds."
        )
    return tuple(texts)

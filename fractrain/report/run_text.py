"""What came out of a run, in a few lines for people: how good, at which cost, and whether it met its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fractrain.engine.index import complete_summary
from fractrain.engine.store import RunRecord
from fractrain.report.page_tables import number_text
from fractrain.report.quantities import BY_KEY

MISSED: Final = 0.1  # a target is missed when cp is off by more than this part of it
_LINES: Final = (
    ("accuracy_last", "last test accuracy: {} %"), ("accuracy_best_test", "best test accuracy (paper protocol): {} %"),
    ("accuracy_best_val", "test accuracy at best validation: {} %"),
    ("accuracy_trivial", "without learning (always one class): {} %"),
    ("perplexity_last", "last test perplexity per word: {}"),
    ("perplexity_best_test", "best test perplexity (paper protocol): {}"),
    ("perplexity_best_val", "test perplexity at best validation: {}"),
    ("perplexity_trivial", "without learning (word frequencies): {}"),
    ("cost_end", "cost, whole model: {} % of full precision"), ("effective_end", "  effective MACs: {}"),
    ("bitops_end", "  BitOPs: {}"), ("cp_end", "cp, of the gated blocks: {} %"),
    ("macs_best", "  MACs as the paper counts them, to the best test result: {}"), ("iterations", "iterations: {}"),
    ("seconds", "seconds: {} (precision is simulated: no evidence of speed)"),
)  # fmt: skip


def result_lines(record: RunRecord) -> list[str]:
    """Lines on a finished run; empty for another one."""
    summary = complete_summary(record)
    if summary is None:
        return []
    lines = []
    for key, text in _LINES:
        value = BY_KEY[key].read(summary)
        if value is not None:
            written = f"{value:,.1f}" if key == "seconds" else number_text(key, value)
            lines.append("  " + text.format(written))
    remarks = summary.get("remarks") or []
    return [*lines, *(f"  {text}" for text in (*target_lines(record.metrics()), *remarks))]


def target_lines(metrics: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say whether the gates met the target cp in force at the end, for methods that tell both in their metrics."""
    told = (metrics[-1].get("method") or {}) if metrics else {}
    target, found = told.get("target_cp"), told.get("gate_cp")
    if target and found is not None:
        off = found / target - 1
        words = "met" if abs(off) <= MISSED else f"MISSED by {off:+.0%}"
        yield f"target cp {target:g} %: {words} ({found:.4g} % in the last evaluation period)"

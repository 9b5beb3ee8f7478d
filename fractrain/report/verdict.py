"""The verdict of a table row: what a measurement says about the published number, and when it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fractrain.report.stats import Estimate

Word = Literal["reproduced", "differs", "inconclusive", "not run"]


@dataclass(frozen=True)
class VerdictRule:
    """Numbers of the rule, stated in the table's specification.

    Attributes:
        min_seeds: measured seeds needed for a judgement.
        tolerance: percentage points by which the interval is widened on both sides.
        max_half_width: percentage points; a wider interval judges nothing.
    """

    min_seeds: int = 3
    tolerance: float = 0.2
    max_half_width: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """One of the four words, and the reason in a few words."""

    word: Word
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


def judge(
    measured: Estimate,
    published: float | None,
    profile: str,
    real_data: bool,
    rule: VerdictRule,
    less_is_better: bool = False,
) -> Verdict:
    """Judge a complete row.

    The verdict is about accuracy alone, in the paper's own protocol (best on the test set). Only a complete row of
    profile `paper` on the paper's own data set is judged: `reproduced` if the published value lies inside the
    95 % Student t interval of the measured mean widened by the tolerance on both sides, otherwise `differs` (with
    measured minus published). Everything else is `inconclusive`: a reduced profile or stand-in data, no published
    value, missing, failed or diverged seeds, fewer seeds than the rule asks for, or an interval so wide that it would
    contain almost any value. `not run`: nothing was run.

    Args:
        measured: accuracy in percent over all seeds.
        published: accuracy in percent, or None where the source gives none.
        profile: profile of the runs.
        real_data: whether the runs used the data set the published value belongs to.
        rule: the numbers of the rule.
        less_is_better: the numbers are perplexities; the rule is the same, in their unit, and a difference says which
            way is better.
    """
    if profile != "paper":
        return Verdict("inconclusive", "reduced profile")
    if not real_data:
        return Verdict("inconclusive", "not the paper's data")
    if published is None:
        return Verdict("inconclusive", "no published value")
    if measured.n < rule.min_seeds or measured.half_width is None:
        return Verdict("inconclusive", f"n={measured.n}, {rule.min_seeds} needed")
    if measured.half_width > rule.max_half_width:
        return Verdict("inconclusive", f"interval ±{measured.half_width:.2f} too wide")
    difference = measured.mean - published
    if abs(difference) <= measured.half_width + rule.tolerance:
        return Verdict("reproduced")
    direction = ", " + ("better" if difference < 0 else "worse") if less_is_better else ""
    return Verdict("differs", f"{difference:+.2f}{direction}")


def incomplete(status: str, profile: str) -> Verdict:
    """Verdict of a row that was begun but not finished with every seed; ``status`` says what is missing."""
    return Verdict("inconclusive", status if profile == "paper" else f"reduced profile; {status}")


def rule_text(rule: VerdictRule) -> str:
    """The rule of :func:`judge` with its numbers: the sentence printed under every table."""
    text = " ".join((judge.__doc__ or "").split("Args:")[0].split()).removeprefix("Judge a complete row. ")
    return (
        f"{text} Here: at least {rule.min_seeds} seeds, tolerance {rule.tolerance:g} percentage points, "
        f"interval at most ±{rule.max_half_width:g} points. Improvement rows are not judged."
    )

"""The verdict of a table row: what a measurement says about the published number, and when it says nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import pydantic

from fractrain.report.stats import Estimate, t_quantile
from fractrain.util.schema import Strict

POWER: Final = 0.8  # a number of seeds "would decide" if it does so in four cases of five
MOST: Final = 100  # seeds; what needs more than that is not worth naming
SEEDS: Final = (3, 5, 10)
_STEPS: Final = 2_000  # equally likely values of the measured standard deviation


@dataclass(frozen=True)
class Chances:
    """Probabilities (0..1) of the two words that decide; the rest is ``inconclusive``.

    The means of n seeds are taken as normal around the truth, their standard deviation as scaled chi: then the chances
    are one integral, over the standard deviation that happens to be measured.
    """

    reproduced: float
    differs: float


def chances(miss: float, sd: float, n: int, tolerance: float) -> Chances:
    """Chance of each word, where seeds scatter with ``sd`` around the published value plus ``miss``.

    Args:
        miss: true difference to the published value.
        sd: true standard deviation over seeds, positive.
        n: number of seeds, at least 2.
        tolerance: half the width of the zone of equivalence.
    """
    import numpy as np
    from scipy.special import chdtri, ndtr

    if sd <= 0:
        return Chances(float(abs(miss) <= tolerance), float(abs(miss) > tolerance))
    error = sd / math.sqrt(n)
    share = (np.arange(_STEPS) + 0.5) / _STEPS
    half = t_quantile(n - 1) * error * np.sqrt(chdtri(n - 1, share) / (n - 1))
    room = np.maximum(tolerance - half, 0)  # the mean must lie within +- room
    inside = ndtr((room - miss) / error) - ndtr((-room - miss) / error)
    above = ndtr((miss - tolerance - half) / error)
    below = ndtr((-miss - tolerance - half) / error)
    return Chances(float(inside.mean()), float((above + below).mean()))


def seeds_to_decide(miss: float, sd: float, tolerance: float, at_least: int) -> int | None:
    """Fewest seeds that decide with probability :data:`POWER`, were the measured ``miss`` and ``sd`` the truth.

    Returns:
        The number, or None where it is more than :data:`MOST`.
    """
    for n in range(max(2, at_least), MOST + 1):
        found = chances(miss, sd, n, tolerance)
        if max(found.reproduced, found.differs) >= POWER:
            return n
    return None


def power_text(tolerance: float) -> str:
    """One sentence on what the rule can do with so many seeds."""
    sd, miss = 0.25, 0.7  # percent: the first is typical of accuracies on CIFAR-10
    exact = ", ".join(f"{chances(0, sd, n, tolerance).reproduced:.0%} with {n}" for n in SEEDS)
    false = max(chances(miss, sd, n, tolerance).reproduced for n in SEEDS)
    bound = max(chances(tolerance, sd, n, tolerance).reproduced for n in SEEDS)
    return (
        f"Power, where seeds scatter with a standard deviation of {sd:g}: an exact copy is called reproduced in "
        f"{exact} seeds; one that is {miss:g} off in {false:.1%}, one exactly on the edge in {bound:.1%} at most."
    )


# -- the verdict -------------------------------------------------------------------------------------------------------


Word = Literal["reproduced", "differs", "inconclusive", "not run"]


class VerdictRule(Strict):
    """Numbers of the rule, stated in the table's specification.

    Attributes:
        min_seeds: measured seeds needed for a judgement.
        tolerance: half the width of the zone of equivalence around the published value, in percentage points. It stands
            for what the published value leaves open: it comes from one run, without seeds.
    """

    min_seeds: int = pydantic.Field(default=3, ge=2)
    tolerance: float = pydantic.Field(default=0.5, ge=0)


@dataclass(frozen=True)
class Verdict:
    """One of the four words, and the reason in a few words."""

    word: Word
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.reason})" if self.reason else self.word


def judge(
    measured: Estimate, published: float | None, profile: str, real_data: bool, rule: VerdictRule,
    less_is_better: bool = False,
) -> Verdict:  # fmt: skip
    """Judge a complete row.

    The row's verdict is about accuracy, in the paper's own protocol (best on the test set); paired differences and
    savings have verdicts of their own, by the same rule. Only a complete row of profile `paper` on the paper's own data
    set is judged, by equivalence: `reproduced` if the whole 95 % Student t interval of the measured mean lies within
    the published value +- the tolerance, `differs` (with measured minus published) if it lies wholly outside, otherwise
    `inconclusive`, with the number of seeds that would decide in four cases of five if mean and spread stayed as they
    are. A reduced profile or stand-in data, no published value, missing, failed or diverged seeds, and fewer seeds than
    the rule asks for are `inconclusive`, too. `not run`: nothing was run.

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
    return equivalence(measured, published, rule, less_is_better)


def equivalence(measured: Estimate, published: float, rule: VerdictRule, less_is_better: bool = False) -> Verdict:
    """Compare an interval with a zone around a published value; see :func:`judge` for the rule and the arguments.

    Raises:
        ValueError: there is no interval.
    """
    if measured.half_width is None or measured.sd is None:
        raise ValueError("one value has no interval")
    difference = measured.mean - published
    if abs(difference) + measured.half_width <= rule.tolerance:
        return Verdict("reproduced")
    if abs(difference) - measured.half_width > rule.tolerance:
        direction = ", " + ("better" if difference < 0 else "worse") if less_is_better else ""
        return Verdict("differs", f"{difference:+.2f}{direction}")
    power = chances(0, measured.sd, measured.n, rule.tolerance).reproduced
    needed = seeds_to_decide(difference, measured.sd, rule.tolerance, measured.n + 1)
    seeds = f"{needed} seeds" if needed else f"more than {MOST} seeds"
    return Verdict(
        "inconclusive", f"{difference:+.2f} ± {measured.half_width:.2f}, power {power:.0%}; {seeds} would decide"
    )


def judge_interval(measured: Estimate, low: float, high: float) -> Verdict:
    """Judge an interval by a zone from ``low`` to ``high``, either of which may be infinite; as :func:`equivalence`.

    Raises:
        ValueError: there is no interval.
    """
    if measured.half_width is None or measured.sd is None:
        raise ValueError("one value has no interval")
    text = f"{measured.mean:.2f} ± {measured.half_width:.2f}"
    least, most = measured.mean - measured.half_width, measured.mean + measured.half_width
    if low <= least and most <= high:
        return Verdict("reproduced", text)
    if most < low or least > high:
        return Verdict("differs", text)
    far = 1e3 * max(1.0, abs(measured.mean), measured.sd)  # stands for infinity
    ends = [max(low, measured.mean - far), min(high, measured.mean + far)]
    needed = seeds_to_decide(measured.mean - sum(ends) / 2, measured.sd, (ends[1] - ends[0]) / 2, measured.n + 1)
    return Verdict("inconclusive", f"{text}; {f'{needed}' if needed else f'more than {MOST}'} seeds would decide")


def incomplete(status: str, profile: str) -> Verdict:
    """Verdict of a row that was begun but not finished with every seed; ``status`` says what is missing."""
    return Verdict("inconclusive", status if profile == "paper" else f"reduced profile; {status}")


def rule_text(rule: VerdictRule) -> str:
    """The rule of :func:`judge` with its numbers: the sentence printed under every table."""
    text = " ".join((judge.__doc__ or "").split("Args:")[0].split()).removeprefix("Judge a complete row. ")
    return (
        f"{text} Here: at least {rule.min_seeds} seeds, tolerance {rule.tolerance:g} percentage points. "
        f"{power_text(rule.tolerance)}"
    )

"""Two configurations compared over their seeds: difference or ratio, interval, and the test that was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tabulate import tabulate

from fractrain.engine.index import RunEntry
from fractrain.report.page_tables import number_text
from fractrain.report.quantities import QUANTITIES, Quantity
from fractrain.report.stats import CONFIDENCE, t_quantile
from fractrain.util.errors import ConfigError

COMPARED: Final = (
    "accuracy_last", "accuracy_best_test", "accuracy_best_val", "perplexity_last", "perplexity_best_test", "cost_end",
    "effective_end", "cp_end", "bitops_end", "macs_best", "train_loss",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedQuantity:
    """One quantity of both sides.

    Attributes:
        a, b: means over the seeds that count.
        change: ``b - a``.
        low, high: its 95 % interval; None where there are too few seeds.
        p: two-sided p-value of "no difference"; None likewise, or where nothing varies.
        ratio: ``b / a``; None for qualities, whose ratio says nothing, and where ``a`` is zero.
    """

    quantity: str
    unit: str
    a: float
    b: float
    change: float
    low: float | None
    high: float | None
    p: float | None
    ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """Two configurations: their runs that count, the test, and a line for each quantity that both have."""

    a: Sequence[str]
    b: Sequence[str]
    seeds_a: Sequence[int]
    seeds_b: Sequence[int]
    test: str
    lines: Sequence[ComparedQuantity]


def compare(entries: Sequence[RunEntry], a: str, b: str, paired: bool) -> Comparison:
    """Compare the configurations of two runs over their finished seeds.

    Args:
        a, b: ids of one run of each.
        paired: only seeds that both have count, in pairs.

    Raises:
        ConfigError: both are one configuration, one has no finished run, or there is no common seed.
    """
    group = {e.run_id: e.group for e in entries}
    if group[a] == group[b]:
        raise ConfigError(f"{a} and {b} are seeds of one configuration: `fractrain diff` compares single runs")
    left, right = (_finished(entries, group[x], x) for x in (a, b))
    if paired:
        common = sorted(left.keys() & right.keys())
        if not common:
            raise ConfigError(f"no seed is common to the configurations of {a} and {b}: leave out --paired")
        left, right = ({seed: side[seed] for seed in common} for side in (left, right))
    lines = [line for q in QUANTITIES if q.key in COMPARED and (line := _line(q, left, right, paired)) is not None]
    return Comparison(
        a=[e.run_id for e in left.values()], b=[e.run_id for e in right.values()], seeds_a=list(left),
        seeds_b=list(right), test=_test(len(left), len(right), paired), lines=lines,
    )  # fmt: skip


def _finished(entries: Sequence[RunEntry], group: str, run: str) -> dict[int, RunEntry]:
    """The finished runs of a configuration by seed, ascending."""
    found = {e.seed: e for e in entries if e.group == group and e.summary is not None}
    if not found:
        raise ConfigError(f"no run of the configuration of {run} has finished: nothing to compare")
    return dict(sorted(found.items()))


def _test(a: int, b: int, paired: bool) -> str:
    if min(a, b) < 2:
        return "no test: one seed has no spread; run more seeds"
    if paired:
        return f"paired t test over {a} common seeds, {CONFIDENCE:.0%} interval of the mean difference"
    return f"Welch's t test of {a} against {b} independent seeds, {CONFIDENCE:.0%} interval"


def _line(q: Quantity, a: Mapping[int, RunEntry], b: Mapping[int, RunEntry], paired: bool) -> ComparedQuantity | None:
    """One quantity; None where a run of either side lacks it."""
    x, y = ([q.read(e.summary or {}) for e in side.values()] for side in (a, b))
    left, right = [v for v in x if v is not None], [v for v in y if v is not None]
    if len(left) < len(x) or len(right) < len(y):
        return None
    mean_a, mean_b = math.fsum(left) / len(left), math.fsum(right) / len(right)
    half, p = _interval(left, right, paired)
    change = mean_b - mean_a
    low, high = (None, None) if half is None else (change - half, change + half)
    ratio = mean_b / mean_a if mean_a and not q.is_quality else None
    return ComparedQuantity(q.key, q.unit, mean_a, mean_b, change, low, high, p, ratio)


def _interval(a: Sequence[float], b: Sequence[float], paired: bool) -> tuple[float | None, float | None]:
    """Half width of the interval of the mean difference, and the p-value; None for what cannot be told."""
    if min(len(a), len(b)) < 2:
        return None, None
    if paired:
        error, freedom = _error([y - x for x, y in zip(a, b, strict=True)]), float(len(a) - 1)
    else:
        one, other = _error(a) ** 2, _error(b) ** 2
        error = math.sqrt(one + other)
        below = one**2 / (len(a) - 1) + other**2 / (len(b) - 1)
        freedom = (one + other) ** 2 / below if below else math.inf
    if not error:  # nothing varies: the difference is what it is
        return 0.0, None
    from scipy.special import stdtr

    change = math.fsum(b) / len(b) - math.fsum(a) / len(a)
    return t_quantile(freedom) * error, float(2 * stdtr(freedom, -abs(change) / error))


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def comparison_text(found: Comparison) -> str:
    """The comparison for people."""
    body = []
    for line in found.lines:
        half = None if line.high is None else line.high - line.change
        spread = "" if half is None else f" ± {number_text(line.quantity, half)}"
        sign = "+" if line.change >= 0 else "-"
        change = f"{sign}{number_text(line.quantity, abs(line.change))}{spread}"
        body.append([
            line.quantity, line.unit, number_text(line.quantity, line.a), number_text(line.quantity, line.b), change,
            "-" if line.ratio is None else f"{line.ratio:.3f}", "-" if line.p is None else f"{line.p:.3g}",
        ])  # fmt: skip
    heads = ["quantity", "unit", "a", "b", "b - a", "b / a", "p"]
    table = tabulate(body, heads, tablefmt="simple", disable_numparse=True)
    sides = [f"{name} = {', '.join(runs)} (seeds {', '.join(map(str, seeds))})"
             for name, runs, seeds in (("a", found.a, found.seeds_a), ("b", found.b, found.seeds_b))]  # fmt: skip
    several = "p is not corrected for the number of quantities."
    return "\n".join([*sides, "", table, "", f"{found.test}. {several}"])

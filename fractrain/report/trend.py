"""The trend of a paired gap with the length of training, and what it says of the gap at the paper's length.

Model: gap = level + slope * log2(length), length as a share of the paper's; every seed at every length is one point,
and points scatter normally around the line. Fitted by least squares (``scipy.stats.linregress``). The prediction
interval at the paper's length is that of one further pair of runs, since a published gap is one pair of runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fractrain.report.stats import CONFIDENCE, t_quantile

LEAST_POINTS: Final = 4
BENT: Final = 0.05  # p of the test for lack of fit below which a line is not believed
TrendWord = Literal["supports", "contradicts", "says nothing"]


@dataclass(frozen=True)
class Trend:
    """A fitted line.

    Attributes:
        slope, slope_half: points per doubling of the length, and half the width of its 95 % interval.
        predicted, half: gap of one further pair at the paper's length, and half the width of its prediction interval.
        points, lengths: how many points at how many lengths.
        bent: p of the F test for lack of fit against the means at each length; None with two lengths.
    """

    slope: float
    slope_half: float
    predicted: float
    half: float
    points: int
    lengths: int
    bent: float | None

    @property
    def low(self) -> float:
        """Lower end of the prediction interval."""
        return self.predicted - self.half

    @property
    def high(self) -> float:
        """Upper end of the prediction interval."""
        return self.predicted + self.half


@dataclass(frozen=True)
class TrendVerdict:
    """What a trend says of a published gap, and why."""

    word: TrendWord
    reason: str = ""

    def __str__(self) -> str:
        return f"trend {self.word} ({self.reason})" if self.reason else f"trend {self.word}"


def fit_trend(gaps: Mapping[float, Sequence[float]]) -> Trend | None:
    """Fit the line.

    Args:
        gaps: paired differences in points, by length as a share (0..1] of the paper's.

    Returns:
        The line, or None with fewer than two lengths or :data:`LEAST_POINTS` points.
    """
    pairs = [(math.log2(share), gap) for share, values in sorted(gaps.items()) for gap in values]
    lengths = len({x for x, _ in pairs})
    if lengths < 2 or len(pairs) < LEAST_POINTS:
        return None
    from scipy.stats import linregress  # takes half a second, which most stores can spare

    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    line = linregress(xs, ys)
    freedom = len(pairs) - 2
    squares = math.fsum((y - line.intercept - line.slope * x) ** 2 for x, y in pairs)
    quantile = t_quantile(freedom, CONFIDENCE)
    # log2(1) = 0: the level is the line's value at the paper's length, its standard error that of the mean there
    error = math.sqrt(line.intercept_stderr**2 + squares / freedom)
    return Trend(
        slope=float(line.slope), slope_half=float(quantile * line.stderr), predicted=float(line.intercept),
        half=float(quantile * error), points=len(pairs), lengths=lengths,
        bent=_lack_of_fit(gaps, squares) if lengths > 2 else None,
    )  # fmt: skip


def _lack_of_fit(gaps: Mapping[float, Sequence[float]], squares: float) -> float | None:
    """P of the F test of the line against one mean per length (Draper and Smith, section 2.1); None without repeats."""
    from scipy.special import fdtrc

    within = math.fsum((y - math.fsum(values) / len(values)) ** 2 for values in gaps.values() for y in values)
    groups, points = len(gaps), sum(len(values) for values in gaps.values())
    if points == groups or within == 0:
        return None
    ratio = (max(0.0, squares - within) / (groups - 2)) / (within / (points - groups))
    return float(fdtrc(groups - 2, points - groups, ratio))


def judge_trend(trend: Trend | None, published: float | None, tolerance: float) -> TrendVerdict | None:
    """Set a prediction beside a published gap, by equivalence.

    ``supports``: the whole prediction interval lies within the published gap +- the tolerance; ``contradicts``: it lies
    wholly outside; otherwise the trend ``says nothing``, nor does it where the gaps are no line. Never a reproduction.

    Args:
        trend: the line; None: there is none, and it says nothing.
        published: published gap in points; None: nothing to be judged, but a wide interval is still called one.
        tolerance: half the width of the zone, in points.
    """
    if published is not None:
        return judge_trend_zone(trend, published - tolerance, published + tolerance)
    return None if trend is None or trend.half <= tolerance else _too_wide(tolerance)


def judge_trend_zone(trend: Trend | None, low: float, high: float) -> TrendVerdict:
    """:func:`judge_trend` with a zone from ``low`` to ``high``, either of which may be infinite."""
    if trend is None:
        return TrendVerdict("says nothing", f"two lengths and {LEAST_POINTS} pairs needed")
    if trend.bent is not None and trend.bent < BENT:
        return TrendVerdict("says nothing", f"no line in log length, p = {trend.bent:.2g}")
    if trend.low > high or trend.high < low:
        return TrendVerdict("contradicts")
    if low <= trend.low and trend.high <= high:
        return TrendVerdict("supports")
    half = (high - low) / 2
    if trend.half > half:
        return _too_wide(half)
    edge = f"±{half:.3g}" if math.isfinite(half) else f"{low if math.isfinite(low) else high:g}"
    return TrendVerdict("says nothing", f"interval crosses the edge of {edge}")


def _too_wide(half: float) -> TrendVerdict:
    return TrendVerdict("says nothing", f"interval wider than ±{half:.3g}")


def trend_rule(tolerance: float) -> str:
    """The method in sentences: printed under what it is used for."""
    return (
        "Trend: least squares (scipy.stats.linregress) of the paired gap on log2 of the length, every seed at every "
        "length one point; in brackets the 95 % prediction interval of one further pair of runs at the paper's length. "
        f"It supports the published gap if the interval lies wholly within ±{tolerance:g} points of it, contradicts it "
        "if wholly outside, and otherwise says nothing; it says nothing either where three or more lengths are no line "
        f"(F test for lack of fit, p < {BENT:g}). That gaps go on along the line is an assumption that no short run "
        "can test: a trend is a prediction, not a reproduction."
    )

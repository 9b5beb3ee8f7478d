"""Trends of made-up gaps whose truth is known: coverage of the intervals, and how often verdicts are false."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fractrain.report.trend import fit_trend, judge_trend, trend_rule

THREE = {1 / 64: 3, 1 / 32: 3, 1 / 16: 3}
WIDE = {1 / 64: 5, 1 / 16: 5, 1 / 4: 5, 1 / 2: 5}
TRIALS = 1_000


def made_up(random, design, level, slope, sd):
    return {share: list(level + slope * math.log2(share) + random.normal(0, sd, n)) for share, n in design.items()}


def sampling_error(share):
    return 4 * (share * (1 - share) / TRIALS) ** 0.5


def test_the_line_by_hand():
    found = fit_trend({1 / 4: [-3.0, -1.0], 1 / 2: [-2.0, 0.0]})
    # x = -2, -2, -1, -1: slope 1, level 0; residuals -1, 1, -1, 1; s^2 = 4/2; Sxx = 1; mean x = -1.5
    assert (found.slope, found.predicted) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert found.slope_half == pytest.approx(4.302653 * math.sqrt(2 / 1), rel=1e-6)
    assert found.half == pytest.approx(4.302653 * math.sqrt(2 * (1 + 1 / 4 + 1.5**2 / 1)), rel=1e-6)
    assert (found.points, found.lengths, found.bent) == (4, 2, None)


def test_prediction_is_that_of_another_library():
    """scipy.stats.linregress is checked by the normal equations of numpy."""
    gaps = made_up(np.random.default_rng(3), THREE, -0.2, 0.4, 0.5)
    x = np.array([math.log2(s) for s, v in sorted(gaps.items()) for _ in v])
    y = np.array([g for _, v in sorted(gaps.items()) for g in v])
    design = np.stack([np.ones_like(x), x], axis=1)
    (level, slope), squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    s2 = squares[0] / (len(x) - 2)
    half = stats.t.ppf(0.975, len(x) - 2) * math.sqrt(s2 * (1 + np.linalg.inv(design.T @ design)[0, 0]))
    found = fit_trend(gaps)
    assert (found.predicted, found.slope, found.half) == pytest.approx((level, slope, half), rel=1e-9)


@pytest.mark.parametrize("design", [THREE, WIDE], ids=["three", "wide"])
def test_intervals_cover_the_truth_as_often_as_they_say(design):
    random = np.random.default_rng(1)
    pair, slope = 0, 0
    for _ in range(TRIALS):
        found = fit_trend(made_up(random, design, level=-0.12, slope=0.5, sd=0.4))
        pair += found.low <= random.normal(-0.12, 0.4) <= found.high  # one further pair at the paper's length
        slope += abs(found.slope - 0.5) <= found.slope_half
    assert pair / TRIALS == pytest.approx(0.95, abs=sampling_error(0.95))
    assert slope / TRIALS == pytest.approx(0.95, abs=sampling_error(0.95))


@pytest.mark.parametrize("design", [THREE, WIDE], ids=["three", "wide"])
@pytest.mark.parametrize("sd", [0.05, 0.2, 0.6])
@pytest.mark.parametrize(
    ("truth", "false"), [(0.0, "contradicts"), (1.0, "supports"), (-1.0, "supports"), (1.7, "supports")]
)
def test_false_verdicts_are_rare(design, sd, truth, false):
    """Published gap 0, zone +-1: a trend to 0 is contradicted, or one to 1 or beyond supported, in 5 % at most."""
    random = np.random.default_rng(2)
    words = Counter()
    for _ in range(TRIALS // 2):
        words[judge_trend(fit_trend(made_up(random, design, truth, 0.5, sd)), 0.0, 1.0).word] += 1
    assert words[false] / (TRIALS // 2) <= 0.05, words


def test_with_little_noise_and_many_runs_the_truth_is_found():
    random = np.random.default_rng(4)
    words = {truth: Counter() for truth in (0.0, 3.0)}
    for truth, count in words.items():
        for _ in range(200):
            count[judge_trend(fit_trend(made_up(random, WIDE, truth, 0.5, 0.2)), 0.0, 1.0).word] += 1
    assert words[0.0]["supports"] > 165  # one in twenty is taken for bent
    assert words[3.0]["contradicts"] > 165  # one in twenty is taken for bent


def test_what_is_no_line_says_nothing():
    """A gap that closes at once and then stays is bent; followed along a line it would come out far off."""
    random = np.random.default_rng(5)
    words = Counter()
    for _ in range(300):
        bent = {share: list(level + random.normal(0, 0.1, 5)) for share, level in
                ((1 / 64, -4.0), (1 / 16, 0.0), (1 / 4, 0.0))}  # fmt: skip
        words[judge_trend(fit_trend(bent), 0.0, 1.0).reason[:27]] += 1
    assert words["no line in log length, p = "] > 290
    straight = Counter(fit_trend(made_up(random, THREE, 0, 1, 0.3)).bent < 0.05 for _ in range(TRIALS))
    assert straight[True] / TRIALS == pytest.approx(0.05, abs=sampling_error(0.05))


def test_words():
    exact = {1 / 64: [-6.0, -6.0], 1 / 32: [-5.0, -5.0]}  # level 0, no noise
    assert str(judge_trend(fit_trend(exact), 0.5, 1.0)) == "trend supports"
    assert str(judge_trend(fit_trend(exact), 1.5, 1.0)) == "trend contradicts"
    noisy = {1 / 64: [-8.0, -4.0], 1 / 32: [-5.0, -5.0]}
    assert str(judge_trend(fit_trend(noisy), 0.0, 1.0)) == "trend says nothing (interval wider than ±1)"
    some = {1 / 4: [-2.0, -2.1], 1 / 2: [-1.0, -0.9]}
    assert str(judge_trend(fit_trend(some), 1.0, 1.0)) == "trend says nothing (interval crosses the edge of ±1)"
    assert str(judge_trend(None, 0.0, 1.0)) == "trend says nothing (two lengths and 4 pairs needed)"
    assert judge_trend(fit_trend(exact), None, 1.0) is None
    assert str(judge_trend(fit_trend(noisy), None, 1.0)) == "trend says nothing (interval wider than ±1)"


@pytest.mark.parametrize("gaps", [{}, {1 / 64: [1.0, 2.0, 3.0, 4.0]}, {1 / 64: [1.0, 2.0], 1 / 32: [1.0]}])
def test_too_little_is_no_trend(gaps):
    assert fit_trend(gaps) is None


def test_the_rule_is_stated():
    text = trend_rule(1.0)
    assert "scipy.stats.linregress" in text
    assert "±1 points" in text
    assert "not a reproduction" in text

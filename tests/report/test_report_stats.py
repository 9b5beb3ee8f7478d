"""Mean, interval and paired difference against scipy, a textbook table and hand calculation."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats as scipy_stats

from fractrain.report.stats import estimate, paired_difference, t_quantile

# Two-sided 95 % column of the t table in any statistics textbook, by degrees of freedom.
TEXTBOOK = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "value"), TEXTBOOK.items())
def test_t_quantile_matches_the_textbook_table(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=5e-4)


def test_one_value_has_no_interval():
    e = estimate([91.25])
    assert (e.mean, e.n, e.sd, e.half_width, e.low, e.high) == (91.25, 1, None, None, None, None)


def test_three_values_by_hand():
    e = estimate([92.0, 92.5, 93.1])
    sd = math.sqrt(((92.0 - 92.5333333) ** 2 + (92.5 - 92.5333333) ** 2 + (93.1 - 92.5333333) ** 2) / 2)
    assert e.mean == pytest.approx(92.5333333)
    assert e.sd == pytest.approx(sd, rel=1e-6)
    assert e.half_width == pytest.approx(4.3027 * sd / math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 11])
def test_interval_matches_scipy(n):
    random_numbers = random.Random(n)
    values = [random_numbers.gauss(90, 0.3) for _ in range(n)]
    e = estimate(values)
    low, high = scipy_stats.t.interval(0.95, n - 1, loc=e.mean, scale=scipy_stats.sem(values))
    assert (e.low, e.high) == pytest.approx((low, high), rel=1e-10)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    random_numbers = random.Random(0)
    trials = 2000
    hits = 0
    for _ in range(trials):
        e = estimate([random_numbers.gauss(0, 1) for _ in range(3)])
        hits += abs(e.mean) <= e.half_width
    deviation = 4 * math.sqrt(0.95 * 0.05 / trials)  # four standard deviations of the binomial share
    assert hits / trials == pytest.approx(0.95, abs=deviation)


def test_equal_values_have_an_interval_of_width_zero():
    assert estimate([7.0, 7.0, 7.0]).half_width == 0.0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_and_nonfinite_values_are_refused(values):
    with pytest.raises(ValueError, match="average"):
        estimate(values)


def test_paired_difference_uses_common_seeds_only():
    e = paired_difference({0: 93.0, 1: 94.0, 5: 10.0}, {0: 92.0, 1: 92.5, 2: 99.0})
    assert (e.mean, e.n) == (1.25, 2)
    assert e.half_width == pytest.approx(12.706 * 0.25, rel=1e-4)


def test_paired_difference_is_narrower_than_unpaired_when_seeds_move_together():
    a = {s: 90.0 + s for s in range(4)}
    b = {s: 89.0 + s for s in range(4)}
    assert paired_difference(a, b).half_width == pytest.approx(0.0)
    assert estimate(list(a.values())).half_width > 1


def test_paired_difference_without_common_seed():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None

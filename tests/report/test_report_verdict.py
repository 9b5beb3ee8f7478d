"""Each rule of the verdict."""

from __future__ import annotations

import pytest

from fractrain.report.stats import Estimate, estimate
from fractrain.report.verdict import VerdictRule, incomplete, judge, rule_text

RULE = VerdictRule(min_seeds=3, tolerance=0.5)
THREE = estimate([92.4, 92.5, 92.6])  # half width 4.303 * 0.1 / sqrt(3) = 0.248


def verdict(measured=THREE, published=92.5, profile="paper", real_data=True):
    return str(judge(measured, published, profile, real_data, RULE))


@pytest.mark.parametrize("profile", ["smoke", "short"])
@pytest.mark.parametrize("published", [92.5, 10.0, None])
@pytest.mark.parametrize("real_data", [True, False])
def test_reduced_profiles_never_judge(profile, published, real_data):
    assert verdict(profile=profile, published=published, real_data=real_data) == "inconclusive (reduced profile)"


def test_stand_in_data_never_judge():
    assert verdict(real_data=False) == "inconclusive (not the paper's data)"


def test_nothing_published():
    assert verdict(published=None) == "inconclusive (no published value)"


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds(n):
    assert verdict(estimate([92.5] * n)) == f"inconclusive (n={n}, 3 needed)"


@pytest.mark.parametrize("published", [92.5, 92.5 + 0.25, 92.5 - 0.25])
def test_an_interval_inside_the_zone_reproduces(published):
    assert verdict(published=published) == "reproduced"


@pytest.mark.parametrize(("published", "difference"), [(93.26, "-0.76"), (91.74, "+0.76"), (10.0, "+82.50")])
def test_an_interval_outside_the_zone_differs(published, difference):
    assert verdict(published=published) == f"differs ({difference})"


@pytest.mark.parametrize("published", [92.5 + 0.26, 92.5 - 0.74])
def test_an_interval_across_the_edge_decides_nothing(published):
    assert verdict(published=published).startswith(f"inconclusive ({92.5 - published:+.2f} ± 0.25, power 96%; ")


def test_examples_that_failing_to_reject_got_wrong():
    """Facts, A2: all seeds below is no reproduction; a tight miss within the zone is one."""
    assert verdict(estimate([91.9, 92.5, 92.6]), 93.4).startswith("inconclusive (-1.07 ± 0.94")
    assert verdict(estimate([92.20, 92.20, 92.21]), 92.50) == "reproduced"


def test_the_number_of_seeds_that_would_decide_is_named():
    near = Estimate(mean=92.6, sd=0.25, half_width=4.303 * 0.25 / 3**0.5, n=3)
    assert verdict(near, 92.5) == "inconclusive (+0.10 ± 0.62, power 32%; 6 seeds would decide)"
    assert verdict(near, 92.1).endswith("more than 100 seeds would decide)")  # on the edge: nothing decides


def test_tolerance_is_what_the_rule_says():
    exact = VerdictRule(min_seeds=3, tolerance=0.0)
    same = Estimate(92.5, 0.0, 0.0, 3)
    assert judge(same, 92.5, "paper", True, exact).word == "reproduced"
    assert judge(same, 92.51, "paper", True, exact).word == "differs"


def test_incomplete_rows():
    assert str(incomplete("2/3 seeds, 1 diverged", "paper")) == "inconclusive (2/3 seeds, 1 diverged)"
    assert str(incomplete("2/3 seeds", "smoke")) == "inconclusive (reduced profile; 2/3 seeds)"


def test_printed_rule_is_the_docstring_with_its_numbers():
    text = rule_text(VerdictRule(min_seeds=4, tolerance=0.35))
    assert "at least 4 seeds" in text
    assert "0.35 percentage points" in text
    assert "called reproduced in" in text
    assert "Only a complete row of profile `paper`" in text
    assert "Args" not in text

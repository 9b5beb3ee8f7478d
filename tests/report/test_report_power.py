"""The power of the verdict against simulated seeds, in which the rule itself is applied thousands of times."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fractrain.report.stats import estimate
from fractrain.report.verdict import VerdictRule, chances, equivalence, power_text, seeds_to_decide

TRIALS = 4_000
RULE = VerdictRule()


def simulated(miss: float, sd: float, n: int, published: float = 92.5) -> dict[str, float]:
    """Shares of the words over many experiments of ``n`` seeds around ``published + miss``."""
    drawn = np.random.default_rng(7).normal(published + miss, sd, (TRIALS, n))
    words = Counter(_word(list(row), published) for row in drawn)
    return {word: words[word] / TRIALS for word in ("reproduced", "differs", "inconclusive")}


def _word(values: list[float], published: float) -> str:
    measured = estimate(values)
    if abs(measured.mean - published) + measured.half_width <= RULE.tolerance:
        assert equivalence(measured, published, RULE).word == "reproduced"
        return "reproduced"
    return "differs" if abs(measured.mean - published) - measured.half_width > RULE.tolerance else "inconclusive"


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("sd", [0.1, 0.25, 0.35])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_true_miss_is_called_reproduced_in_five_percent_at_most(n, sd, sign):
    assert simulated(sign * 0.7, sd, n)["reproduced"] <= 0.05
    edge = simulated(sign * RULE.tolerance, sd, n)["reproduced"]  # the worst case: 2.5 % by construction
    assert edge <= 0.025 + 4 * (0.025 * 0.975 / TRIALS) ** 0.5


@pytest.mark.parametrize("n", [3, 5, 10])
def test_an_exact_copy_is_called_different_in_five_percent_at_most(n):
    assert simulated(0.0, 0.25, n)["differs"] <= 0.05
    assert simulated(0.4, 0.25, n)["differs"] <= 0.05  # inside the zone


@pytest.mark.parametrize(
    ("miss", "sd", "n"), [(0, 0.25, 3), (0, 0.25, 5), (0.3, 0.2, 8), (0.9, 0.25, 4), (-0.9, 0.25, 4)]
)
def test_chances_are_those_of_the_simulation(miss, sd, n):
    made, found = simulated(miss, sd, n), chances(miss, sd, n, RULE.tolerance)
    for word in ("reproduced", "differs"):
        share = getattr(found, word)
        assert made[word] == pytest.approx(share, abs=4 * (share * (1 - share) / TRIALS) ** 0.5 + 2e-3), word


@pytest.mark.parametrize("miss", [0.0, 0.1, 0.9])
def test_the_number_of_seeds_that_would_decide_does(miss):
    n = seeds_to_decide(miss, 0.25, RULE.tolerance, 3)
    assert 3 <= n <= 10
    share = simulated(miss, 0.25, n)
    assert max(share["reproduced"], share["differs"]) > 0.78
    if n > 3:
        fewer = simulated(miss, 0.25, n - 1)
        assert max(fewer["reproduced"], fewer["differs"]) < 0.82


def test_nothing_decides_on_the_edge_and_no_spread_decides_at_once():
    assert seeds_to_decide(0.5, 0.25, 0.5, 3) is None
    assert seeds_to_decide(0.3, 0.0, 0.5, 3) == 3


def test_the_power_is_printed():
    text = power_text(0.5)
    assert "32% with 3, 83% with 5, 100% with 10 seeds" in text
    assert "0.7 off in 0.2%" in text

"""The check of stochastic rounding, and the curves of gradient concentration, on formats whose bias is known."""

from __future__ import annotations

import re

import pytest

from fractrain.methods import registry
from fractrain.testing import check_method
from fractrain.testing.concentration import COUNTS, concentration


def reason(method: str, **settings: object) -> tuple[str, str]:
    (result,) = check_method(method, checks=["unbiased"], quick=True, settings=settings).checks
    return result.status, result.reason


@pytest.mark.parametrize(("method", "settings"), [
    ("nvfp4", {}), ("luq", {}), ("quartet2", {}), ("static8", {}),
    ("mx", {"format": "mxfp4", "rounding": "stochastic", "rotation": True}),
])  # fmt: skip
def test_unbiased_formats_pass(method, settings):
    status, told = reason(method, **settings)
    assert status == "pass", told
    assert "%" in told


def test_nvfp4_without_its_headroom_is_a_third_of_a_percent_short():
    status, told = reason("nvfp4", headroom=False)
    assert status == "fail"
    assert re.search(r"-0.3[345] % off", told), told


def test_without_a_stochastic_operand_there_is_nothing_to_judge():
    assert reason("fp8") == ("pass", "no operand is declared stochastic")


def test_unbiased_gradients_concentrate_with_slope_minus_one_and_biased_ones_meet_a_floor():
    curves = concentration(registry.get("nvfp4"), {})
    assert [c.gradient for c in curves] == ["dA", "dW"]
    for curve in curves:
        assert curve.counts == COUNTS
        assert curve.slope == pytest.approx(-1, abs=0.03)
        assert curve.floor < 0.1 * curve.errors[-1]
    for curve in concentration(registry.get("nvfp4"), {"headroom": False}):
        assert curve.slope > -0.9
        assert curve.floor > 0.4 * curve.errors[-1]


def test_the_full_report_shows_the_curves():
    report = check_method("luq", checks=["unbiased"], quick=True, full=True)
    assert "dW: slope -1.0" in report.text()
    assert len(report.as_dict()["concentration"]) == 2
    assert "concentration" not in check_method("luq", checks=["unbiased"], quick=True).as_dict()
    assert "no operand of EB or GC is stochastic" in check_method("fp8", checks=["cost"], quick=True, full=True).text()

"""The methods of this package meet the contract that they ask of others."""

from __future__ import annotations

import pytest

from fractrain.testing import CHECKS, check_method


@pytest.mark.parametrize("name", ["fp32", "static8", "sbm", "pfq", "dfq", "fractrain"])
def test_the_contract_holds(name):
    report = check_method(name, quick=True)
    assert report.ok, report.text()
    skipped = {c.name for c in report.checks if c.status != "pass"}
    assert skipped <= ({"settings_act"} if name == "fp32" else set()), report.text()
    assert len(report.checks) == len(CHECKS)


def test_the_other_variant_of_sbm():
    report = check_method(
        "sbm",
        settings={"variant": "banner"},
        checks=["resume", "precision_train", "precision_eval", "cost"],
        quick=True,
    )
    assert report.ok, report.text()

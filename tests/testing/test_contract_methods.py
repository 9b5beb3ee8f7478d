"""The methods of this package meet the contract that they ask of others."""

from __future__ import annotations

import pytest

from fractrain.methods.registry import MethodRegistry
from fractrain.testing import CHECKS, check_method

NAMES = [
    "fp32", "static8", "sbm", "pfq", "dfq", "fractrain", "static", "dorefa", "wageubn", "cpt", "slu", "dynasty",
]  # fmt: skip


SLOW = {"dynasty": ["settings_act"]}  # minutes; `fractrain check-method dynasty` runs it


def test_every_method_is_held_to_it():
    assert set(NAMES) == set(MethodRegistry.discover([]).names())


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name):
    checks = [check for check in CHECKS if check not in SLOW.get(name, [])]
    report = check_method(name, quick=True, checks=checks)
    assert report.ok, report.text()
    skipped = {c.name for c in report.checks if c.status != "pass"}
    assert skipped <= ({"settings_act"} if name == "fp32" else set()), report.text()
    assert len(report.checks) == len(checks)


def test_the_other_variant_of_sbm():
    report = check_method(
        "sbm",
        settings={"variant": "banner"},
        checks=["resume", "precision_train", "precision_eval", "cost"],
        quick=True,
    )
    assert report.ok, report.text()

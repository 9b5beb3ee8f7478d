"""The methods of this package meet the contract that they ask of others."""

from __future__ import annotations

import pytest
from method_groups import FLOAT_METHODS
from small_registries import RESNET8

from fractrain.methods.registry import MethodRegistry
from fractrain.testing import CHECKS, check_method

NAMES = [
    "fp32", "static8", "sbm", "pfq", "dfq", "fractrain", "static", "dorefa", "wageubn", "cpt", "slu", "dynasty",
    "fp8", "mx", "nvfp4", "quartet2", "luq", "jetfire", "switchback", "int8_rowwise",
    "adam8bit", "bf16_sr",
]  # fmt: skip

FORMATS = NAMES[12:20]  # methods that differ in their operands alone
# `fractrain check-method NAME` runs what is left out here: minutes for dynasty, the same training once more for others.
SLOW = {
    "dynasty": ["settings_act"],
    **{name: ["no_global_state", "learns", "deterministic"] for name in FORMATS},
}


def test_every_method_is_held_to_it():
    assert set(NAMES) == set(MethodRegistry.discover([]).names())


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name):
    checks = [check for check in CHECKS if check not in SLOW.get(name, [])]
    report = check_method(name, model=RESNET8, quick=True, checks=checks)
    assert report.ok, report.text()
    skipped = {c.name for c in report.checks if c.status != "pass"}
    without_settings = {"fp32", "bf16_sr", "jetfire", "switchback", "int8_rowwise"}
    allowed = {"settings_act"} if name in without_settings else set()
    if name in (*FLOAT_METHODS, "slu"):  # quantize nothing (slu by default): no operand is to be seen
        allowed |= {"precision_train", "precision_eval"}
    assert skipped <= allowed, report.text()
    assert len(report.checks) == len(checks)


def test_the_other_variant_of_sbm():
    report = check_method(
        "sbm",
        model=RESNET8,
        settings={"variant": "banner"},
        checks=["resume", "precision_train", "precision_eval", "cost"],
        quick=True,
    )
    assert report.ok, report.text()

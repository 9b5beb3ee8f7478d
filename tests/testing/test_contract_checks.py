"""Every check of the contract catches at least one method that is wrong in just that way."""

from __future__ import annotations

import re

import contract_broken as broken
import pytest
import torch
from small_registries import RESNET8
from torch.nn import functional as F

from fractrain.testing import CHECKS, check_method, describe, training

# check, method, part of the reason
CAUGHT = [
    ("learns", broken.Stuck, "loss does not fall|does not learn"),
    ("deterministic", broken.Dice, "two runs with one seed: weights"),
    ("deterministic", broken.SharedState, "runs beside it"),
    ("resume", broken.Forgets, "ends differently from an uninterrupted one"),
    ("resume", broken.Unrestored, "ends differently from an uninterrupted one"),
    ("resume", broken.Pickled, "cannot be saved and loaded with weights_only"),
    ("state_dict", broken.Pickled, "cannot be saved and loaded with weights_only"),
    ("state_dict", broken.Unrestored, "does not restore the precision of stem"),
    ("optimizer", broken.HalfOptimized, "does not have 1 parameters, the first is head.bias"),
    ("optimizer", broken.KeepsToItself, "makes another update of equal gradients"),
    ("optimizer", broken.RollsDice, "the optimizer draws from torch's generator"),
    ("optimizer", broken.OwnRate, r"at 0 \d+ parameters move"),
    ("settings_validated", broken.Unbounded, "bits=-1 is accepted"),
    ("settings_validated", broken.LateError, "bits=-1 raises ValueError instead of ConfigError"),
    ("settings_act", broken.Dead, "nothing changes with momentum"),
    ("settings_act", broken.BareExcuse, "no reason for momentum"),
    ("precision_train", broken.TooManyPoints, "declared wide 6 b, .*observed .* (different values|points)"),
    ("precision_train", broken.FloatErrors, "(eb|gc)_e .*declared affine 6 b.* multiplied .* different values"),
    ("precision_train", broken.NotStochastic, "declared stochastic rounding, observed nearest"),
    ("precision_train", broken.OtherLayers, "the ledger does not see"),
    ("unbiased", broken.Saturates, r"eb_e: declared stochastic, but the mean of 64 roundings in .* is -0\.3\d % off"),
    ("precision_eval", broken.FloatEvaluation, r"fw_w \(eval\): declared affine 6 b.* multiplied"),
    ("cost", broken.Backwards, r"bits = 2 costs .* bits = 8 costs"),
    ("cost", broken.NoLedger, "holds no work"),
    ("models", broken.OneModel, "IndexError: block 18"),
    ("no_global_state", broken.Seeds, "changes torch's generator"),
    ("no_global_state", broken.Environment, "environment variable FRACTRAIN_TEST_LEFTOVER"),
    ("no_global_state", broken.Patches, "relu patched"),
]


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACTRAIN_TEST_LEFTOVER", "before")
    monkeypatch.setattr(F, "relu", F.relu)
    monkeypatch.setattr(training, "QUICK_STEPS", 60)


@pytest.mark.parametrize(("check", "method", "reason"), CAUGHT, ids=[f"{c}-{m.name}" for c, m, _ in CAUGHT])
def test_caught(check, method, reason):
    model = "resnet38" if check == "models" else RESNET8
    report = check_method(method, checks=[check], quick=True, model=model)
    (result,) = report.checks
    assert result.status == "fail", report.text()
    assert not report.ok
    assert re.search(reason, result.reason), result.reason
    assert "\n" not in result.reason


def test_every_check_has_a_method_that_it_catches():
    assert {check for check, _, _ in CAUGHT} == set(CHECKS)


def test_the_sound_one_passes_everything_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    checks = [c for c in CHECKS if c != "learns"]  # the methods of the package do so in another test
    report = check_method(broken.Sound, checks=checks, quick=True, model=RESNET8)
    assert report.ok, report.text()
    assert report.counts == {"total": len(checks), "pass": len(checks), "fail": 0, "skip": 0, "expected failure": 0}
    assert torch.equal(torch.get_rng_state(), before)


def test_an_excuse_with_a_reason_is_taken():
    report = check_method(broken.ExcusedDead, checks=["settings_act"], model=RESNET8)
    assert report.ok
    assert "1 declared inert" in report.checks[0].reason


def test_a_model_may_be_refused_with_a_reason():
    report = check_method(broken.PoliteOneModel, checks=["models"])
    assert report.ok
    assert "works on resnet38" in report.checks[0].reason
    assert "resnet74: polite needs 18 blocks" in report.checks[0].reason


def test_every_check_is_described():
    assert all(describe(check).endswith(".") for check in CHECKS)

"""What makes a report a good one: expected failures, skips, counts, and who is to blame for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import contract_broken as broken
import pytest
from small_registries import RESNET8

from fractrain.testing import CHECKS, check_method, load_method, run_check
from fractrain.testing.report import CheckResult, ContractReport
from fractrain.util.errors import ConfigError, PluginError


def report(*statuses):
    return ContractReport(
        "m", "resnet38", "digits", tuple(CheckResult(f"c{i}", s, "why", 0.1) for i, s in enumerate(statuses))
    )


@pytest.mark.parametrize(
    ("statuses", "ok"),
    [
        (["pass"], True),
        (["pass", "skip", "expected failure"], True),
        (["pass", "fail"], False),
        (["skip", "skip"], False),
        (["expected failure"], False),
        ([], False),
    ],
)
def test_ok(statuses, ok):
    one = report(*statuses)
    assert one.ok is ok
    assert one.counts["total"] == len(statuses) == sum(n for name, n in one.counts.items() if name != "total")
    assert json.loads(json.dumps(one.as_dict()))["ok"] is ok
    assert one.text().endswith("ok" if ok else one.text().splitlines()[-1].partition(": ")[2])
    assert ("NOT OK" in one.text()) is not ok


def test_all_skipped_says_so():
    class Bare(broken.Sound):
        """Without settings."""

        name = "bare_of_settings"
        Settings = broken.MethodSettings

    one = check_method(Bare, checks=["settings_act"])
    assert [c.status for c in one.checks] == ["skip"]
    assert not one.ok
    assert "nothing passed, which is a failure" in one.text()


def test_an_expected_failure_needs_a_reason_and_must_fail():
    failing = check_method(
        broken.Dead, checks=["settings_act", "settings_validated"], expected_failures={"settings_act": "soon"},
        model=RESNET8,
    )  # fmt: skip
    assert failing.ok
    assert [c.status for c in failing.checks] == ["expected failure", "pass"]
    assert "soon (nothing changes with momentum" in failing.checks[0].reason

    passing = check_method(
        broken.Sound, checks=["settings_validated"], expected_failures={"settings_validated": "once was"}
    )
    assert not passing.ok
    assert passing.checks[0].status == "fail"
    assert "passes, but was expected to fail (once was)" in passing.checks[0].reason

    with pytest.raises(ConfigError, match="give the reason"):
        check_method(broken.Sound, expected_failures={"learns": " "})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("smb", {}, "did you mean 'sbm'"),
        ("sbm", {"checks": ["learn"]}, "did you mean 'learns'"),
        ("sbm", {"checks": []}, "no check to run"),
        ("sbm", {"expected_failures": {"learnt": "x"}}, "did you mean 'learns'"),
        ("sbm", {"model": "resnet83"}, "resnet38"),
        ("sbm", {"dataset": "cifar10"}, "embedded"),
        ("sbm", {"settings": {"bitz": 8}}, "did you mean 'bits'"),
        (int, {}, "int is not a method"),
    ],
)
def test_bad_input_is_one_line(method, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_method(method, **options)
    assert "\n" not in str(caught.value)


def test_a_file_is_loaded_whatever_else_has_its_name(tmp_path: Path):
    path = tmp_path / "sbm.py"
    path.write_text("from fractrain import Method\n\n\nclass Mine(Method):\n    name = 'sbm'\n", encoding="utf-8")
    assert load_method(path).__name__ == "Mine"
    assert load_method(str(path)).__name__ == "Mine"
    assert load_method("sbm").__name__ == "SBM"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name\n", r"wrong\.py:1\): ModuleNotFoundError"),
        ("\n\nclass Mine:\n    name = 'wrong'\n", r"Mine at line 3 \(not a Method\)"),
        ("x = 1\ny = (\n", r"wrong\.py:2\): SyntaxError"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "wrong.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PluginError, match=message):
        check_method(path)


def test_run_check_is_a_pytest_test():
    later = {"settings_act": "later", "learns": "other"}
    run_check(broken.Sound, "settings_validated")
    with pytest.raises(pytest.fail.Exception, match="settings_act: nothing changes with momentum"):
        run_check(broken.Dead, "settings_act", model=RESNET8)
    with pytest.raises(pytest.skip.Exception, match="no settings"):
        run_check("fp32", "settings_act")
    with pytest.raises(pytest.xfail.Exception, match="later"):
        run_check(broken.Dead, "settings_act", expected_failures=later, model=RESNET8)


def test_progress_is_told_and_order_kept():
    seen: list[str] = []
    names = ["settings_validated", "cost"]
    check_method(broken.Sound, checks=names, model=RESNET8, progress=lambda result: seen.append(result.name))
    assert seen == names
    assert CHECKS[0] == "no_global_state"

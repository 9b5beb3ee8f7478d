"""The contract that every method must meet, to be called by plugin authors and by ``fractrain check-method``.

::

    from fractrain.testing import CHECKS, check_method, run_check

    report = check_method("my_method.py")            # a registry name, a class, or a file
    assert report.ok, report.text()

    @pytest.mark.parametrize("check", CHECKS)        # or one test per check
    def test_contract(check):
        run_check("my_method.py", check, quick=True)

All of it runs on embedded data and on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fractrain.methods.base import Method
from fractrain.methods.registry import MethodRegistry
from fractrain.testing import models, optimizer, precision, settings, training, unbiased
from fractrain.testing.concentration import concentration
from fractrain.testing.report import CheckResult, ContractReport, ContractViolation, NotApplicable, run_one
from fractrain.testing.subject import Subject
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.registry import Origin

Check = Callable[[Subject], str]

_CHECKS: dict[str, Check] = {
    "no_global_state": training.no_global_state,  # first: what a run leaves behind is there already at the second
    "settings_validated": settings.settings_validated,
    "learns": training.learns,
    "deterministic": training.deterministic,
    "resume": training.resume,
    "state_dict": training.state_dict,
    "optimizer": optimizer.optimizer,
    "precision_train": precision.precision_train,
    "precision_eval": precision.precision_eval,
    "unbiased": unbiased.unbiased,
    "settings_act": settings.settings_act,
    "cost": precision.cost,
    "models": models.models,
}

CHECKS: tuple[str, ...] = tuple(_CHECKS)


def describe(check: str) -> str:
    """What a check asks for, in one line.

    Raises:
        ConfigError: there is no such check.
    """
    _known(check)
    return (_CHECKS[check].__doc__ or "").strip().splitlines()[0]


def load_method(method: str | Path | type[Method]) -> type[Method]:
    """Return a method's class, given itself, its registry name, or a plugin file (whatever else has the file's name).

    Raises:
        ConfigError: unknown name.
        PluginError: the file cannot be imported or holds no method.
    """
    if isinstance(method, type):
        if not issubclass(method, Method) or not method.name:
            raise ConfigError(f"{method.__name__} is not a method: subclass fractrain.Method and give it a name")
        return method
    if isinstance(method, Path) or str(method).endswith(".py"):
        path = Path(method).resolve()
        registry = MethodRegistry()
        registry.add(path.stem, Origin("file", str(path)))
        return registry.get(path.stem)
    return MethodRegistry.discover().get(str(method))


def check_method(
    method: str | Path | type[Method], *, model: str = "resnet38", dataset: str = "digits",
    settings: Mapping[str, Any] | None = None, expected_failures: Mapping[str, str] | None = None, quick: bool = False,
    full: bool = False, checks: Sequence[str] = CHECKS, progress: Callable[[CheckResult], None] | None = None,
) -> ContractReport:  # fmt: skip
    """Check a method against the contract.

    Args:
        method: registry name, plugin file, or class.
        model: registry name of what to train.
        dataset: registry name of an embedded data set.
        settings: settings of the method that differ from its defaults.
        expected_failures: checks that are known to fail, each with the reason. One that passes is a failure.
        quick: fewer steps.
        full: add the gradient concentration curves to the report.
        progress: called with every result as it comes.

    Returns:
        The report. Whatever a method raises is in it.

    Raises:
        ConfigError: unknown method, model, data set, setting or check, or an expected failure without a reason.
        PluginError: the method cannot be loaded.
    """
    expected = dict(expected_failures or {})
    for name in (*checks, *expected):
        _known(name)
    if not checks:
        raise ConfigError(f"no check to run; there are {', '.join(CHECKS)}")
    for name, reason in expected.items():
        if not reason.strip():
            raise ConfigError(f"expected failure of {name!r}: give the reason, it is part of the report")
    subject = Subject(load_method(method), model, dataset, dict(settings or {}), quick)
    if not subject.registries.dataset_info(dataset).embedded:
        raise ConfigError(f"the contract runs on embedded data, {dataset!r} is not: take digits or digits100")
    mismatch = subject.registries.mismatch(model, dataset)
    if mismatch:
        raise ConfigError(f"{model} cannot be trained on {dataset}: {mismatch}")
    if settings:
        subject.config(subject.settings)  # what the caller got wrong is not the method's fault
    results = []
    for name in checks:
        results.append(_run(name, subject, expected.get(name)))
        if progress is not None:
            progress(results[-1])
    curves = concentration(subject.kind, subject.eager_settings) if full else None
    return ContractReport(subject.kind.name, model, dataset, tuple(results), curves)


def run_check(method: str | Path | type[Method], check: str, **options: Any) -> None:
    """Run one check as one pytest test: it fails, is skipped or is an expected failure there.

    Args:
        method: as for :func:`check_method`.
        check: one of :data:`CHECKS`.
    """
    import pytest

    options["expected_failures"] = {k: v for k, v in (options.get("expected_failures") or {}).items() if k == check}
    result = check_method(method, checks=[check], **options).checks[0]
    if result.status == "fail":
        pytest.fail(f"{check}: {result.reason}", pytrace=False)
    if result.status == "skip":
        pytest.skip(result.reason)
    if result.status == "expected failure":
        pytest.xfail(result.reason)


def _known(check: str) -> None:
    if check not in _CHECKS:
        raise ConfigError(f"unknown check {check!r}{did_you_mean(check, CHECKS)}; there are {', '.join(CHECKS)}")


def _run(name: str, subject: Subject, expected: str | None) -> CheckResult:
    with torch.random.fork_rng(devices=[]):
        return run_one(name, lambda: _CHECKS[name](subject), expected)


__all__ = [
    "CHECKS", "CheckResult", "ContractReport", "ContractViolation", "NotApplicable", "check_method", "describe",
    "load_method", "run_check",
]  # fmt: skip

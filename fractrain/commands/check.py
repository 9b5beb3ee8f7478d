"""``fractrain check-method`` and ``check-hardware``: the contract tests on a plugin of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import click

from fractrain.commands.common import json_option, options, plugin_option, show, stdout_to_stderr
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.testing.report import CheckResult, Report

FAILED = 1


def _reasons(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read ``CHECK=REASON`` arguments."""
    found: dict[str, str] = {}
    for pair in pairs:
        check, equals, reason = pair.partition("=")
        if not equals or not check.strip() or not reason.strip():
            raise ConfigError(f"--expect-fail {pair!r}: expected CHECK=REASON, for example resume='keeps a clock'")
        found[check.strip()] = reason.strip()
    return found


def _settings(sets: tuple[str, ...]) -> dict[str, object]:
    """Read ``KEY=VALUE`` arguments."""
    from fractrain.engine.config import collect_sets

    settings, recipe = collect_sets(sets)
    if recipe:
        raise ConfigError("check-method has a recipe of its own: --set takes settings of the method only")
    return settings


@contextlib.contextmanager
def _counted(total: int) -> Iterator[Callable[[CheckResult], None]]:
    """Show how many checks are done; the results themselves are told once, at the end."""
    from fractrain.util.progress import make_progress

    progress, done = make_progress(), count(1)
    progress.start("checks", total)
    try:
        yield lambda result: progress.update(next(done), label=f"checks, last {result.name}: {result.status}")
    finally:
        progress.close()


@click.command("check-method", short_help="Check a method against the contract.")
@options(
    click.argument("method", metavar="NAME|FILE.py"),
    click.option("--model", default="resnet38", show_default=True, metavar="NAME", help="What to train."),
    click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="An embedded data set."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting of the method; may be repeated."),
    click.option("--check", "checks", multiple=True, metavar="CHECK", help="Only this check; may be repeated."),
    click.option(
        "--expect-fail", "expected", multiple=True, metavar="CHECK=REASON",
        help="A check that is known to fail; it is an error if it passes. May be repeated.",
    ),
    click.option("--quick", is_flag=True, help="Fewer steps."),
    click.option("--full", is_flag=True, help="Add how the mean of stochastic gradients nears the gradient."),
    plugin_option,
    json_option,
)  # fmt: skip
def check_command(
    method: str, model: str, dataset: str, sets: tuple[str, ...], checks: tuple[str, ...], expected: tuple[str, ...],
    quick: bool, full: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check a method against the contract that all methods here meet; exit with 1 when it does not.

    NAME is a registry name, FILE.py a plugin file. Everything runs on embedded data and takes about a minute.
    """
    from fractrain.testing import CHECKS, check_method

    reasons, settings = _reasons(expected), _settings(sets)
    wanted = checks or CHECKS
    with stdout_to_stderr(), _counted(len(wanted)) as told:
        report = check_method(
            method, model=model, dataset=dataset, settings=settings, expected_failures=reasons, quick=quick,
            full=full, checks=wanted, progress=told,
        )  # fmt: skip
    return _show(report, as_json)


@click.command("check-hardware", short_help="Check a hardware model against the contract.")
@options(
    click.argument("hardware", metavar="NAME|FILE.py"),
    click.option("--check", "checks", multiple=True, metavar="CHECK", help="Only this check; may be repeated."),
    plugin_option,
    json_option,
)
def check_hardware_command(hardware: str, checks: tuple[str, ...], as_json: bool) -> int:
    """Check a hardware model against the contract that all models here meet; exit with 1 when it does not.

    NAME is a registry name, with a preset or settings after colons (bitfusion:16x16), FILE.py a plugin file.
    """
    from fractrain.testing.hardware import CHECKS, check_hardware

    with stdout_to_stderr(), _counted(len(checks or CHECKS)) as told:
        report = check_hardware(hardware, checks, told)
    return _show(report, as_json)


def _show(report: Report, as_json: bool) -> int:
    show(as_json, report.as_dict(), report.text())
    return 0 if report.ok else FAILED

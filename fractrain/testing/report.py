"""What a contract found out about a plugin: one result per check, and whether that is good enough."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fractrain.testing.concentration import ConcentrationCurve
from fractrain.util.errors import FractrainError, message_line, typed_line

Status = Literal["pass", "fail", "skip", "expected failure"]


class ContractViolation(AssertionError):
    """A plugin does not do what the contract asks; the message is one line for its author."""


class NotApplicable(Exception):
    """A check has nothing to look at in this plugin; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        status: ``pass``, ``fail``, ``skip`` or ``expected failure``.
        reason: what was found, why it was skipped, or why it may fail; one line.
        seconds: wall clock.
    """

    name: str
    status: Status
    reason: str
    seconds: float


def run_one(name: str, check: Callable[[], str], expected: str | None = None) -> CheckResult:
    """Run one check; whatever a plugin raises becomes a result.

    Args:
        name: the check.
        check: returns what it found.
        expected: why it is known to fail; None: it is not. One that passes then is a failure.
    """
    started = time.perf_counter()

    def result(status: Status, reason: str) -> CheckResult:
        return CheckResult(name, status, reason, time.perf_counter() - started)

    try:
        found = check()
    except NotApplicable as error:
        return result("skip", str(error))
    except Exception as error:  # a plugin may raise anything: all of it belongs into the report
        told = _told(error)
        return result("expected failure", f"{expected} ({told})") if expected else result("fail", told)
    if expected:
        return result("fail", f"passes, but was expected to fail ({expected}): take it off the expected failures")
    return result("pass", found)


def _told(error: Exception) -> str:
    """One line: the message, for unforeseen errors with their type and the line they come from."""
    if isinstance(error, ContractViolation):
        return message_line(error)
    frames = [] if isinstance(error, FractrainError) else traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{typed_line(error)}{where}"


class Report:
    """Results of all checks of one plugin."""

    checks: tuple[CheckResult, ...]

    def subject_text(self) -> dict[str, str]:
        """What was tested, and on what."""
        raise NotImplementedError

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks in all (``total``) and by status."""
        statuses: tuple[Status, ...] = ("pass", "fail", "skip", "expected failure")
        return {"total": len(self.checks)} | {s: sum(c.status == s for c in self.checks) for s in statuses}

    @property
    def ok(self) -> bool:
        """Nothing failed unexpectedly, and something passed: a report of skipped checks only is a failure."""
        return self.counts["fail"] == 0 and self.counts["pass"] > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.subject_text(), "ok": self.ok, "counts": self.counts,
            "checks": [
                {"name": c.name, "status": c.status, "reason": c.reason, "seconds": round(c.seconds, 3)}
                for c in self.checks
            ],
        }  # fmt: skip

    def details(self) -> list[str]:
        """Further lines of :meth:`text`."""
        return []

    def text(self) -> str:
        """The report for people, a verdict in the last line."""
        width = max((len(c.name) for c in self.checks), default=0)
        kind = max((len(c.status) for c in self.checks), default=0)
        tested, *on = self.subject_text().values()
        lines = [f"contract of {tested}" + (f" on {' / '.join(on)}" if on else "")]
        lines += [f"  {c.status:<{kind}}  {c.name:<{width}}  {c.seconds:6.1f} s  {c.reason}" for c in self.checks]
        lines += self.details()
        n = self.counts
        told = f"{n['total']} checks: {n['pass']} passed, {n['fail']} failed, {n['skip']} skipped, " + (
            f"{n['expected failure']} expected failures"
        )
        nothing = "" if n["pass"] else " (nothing passed, which is a failure)"
        return "\n".join([*lines, f"{told}: {'ok' if self.ok else 'NOT OK'}{'' if n['fail'] else nothing}"])


@dataclass(frozen=True)
class ContractReport(Report):
    """Results of all checks of one method.

    Attributes:
        method, model, dataset: what was tested on what.
        concentration: of the gradients under stochastic rounding, where asked for; None: it was not.
    """

    method: str
    model: str
    dataset: str
    checks: tuple[CheckResult, ...]
    concentration: tuple[ConcentrationCurve, ...] | None = None

    def subject_text(self) -> dict[str, str]:
        """The method, and what it was trained on."""
        return {"method": self.method, "model": self.model, "dataset": self.dataset}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        curves = {} if self.concentration is None else {"concentration": [vars(c) for c in self.concentration]}
        return {**super().as_dict(), **curves}

    def details(self) -> list[str]:
        """The gradient concentration."""
        if self.concentration is None:
            return []
        curves = [f"  {c.text()}" for c in self.concentration] or ["  no operand of EB or GC is stochastic"]
        return ["gradient concentration (unbiased: slope -1, no floor):", *curves]

"""What the contract found out about a method: one result per check, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fractrain.testing.concentration import Curve

Status = Literal["pass", "fail", "skip", "expected failure"]


class ContractViolation(AssertionError):
    """A method does not do what the contract asks; the message is one line for its author."""


class NotApplicable(Exception):
    """A check has nothing to look at in this method; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        name: the check.
        status: ``pass``, ``fail``, ``skip`` or ``expected failure``.
        reason: what was found, why it was skipped, or why it may fail; one line.
        seconds: wall clock.
    """

    name: str
    status: Status
    reason: str
    seconds: float


@dataclass(frozen=True)
class ContractReport:
    """Results of all checks of one method.

    Attributes:
        method, model, dataset: what was tested on what.
        checks: in the order in which they ran.
        concentration: of the gradients under stochastic rounding, where asked for; None: it was not.
    """

    method: str
    model: str
    dataset: str
    checks: tuple[CheckResult, ...]
    concentration: tuple[Curve, ...] | None = None

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
            "method": self.method, "model": self.model, "dataset": self.dataset, "ok": self.ok, "counts": self.counts,
            "checks": [
                {"name": c.name, "status": c.status, "reason": c.reason, "seconds": round(c.seconds, 3)}
                for c in self.checks
            ],
            **({} if self.concentration is None else {"concentration": [vars(c) for c in self.concentration]}),
        }  # fmt: skip

    def text(self) -> str:
        """The report for people, a verdict in the last line."""
        width = max((len(c.name) for c in self.checks), default=0)
        kind = max((len(c.status) for c in self.checks), default=0)
        lines = [f"contract of {self.method} on {self.model} / {self.dataset}"]
        lines += [f"  {c.status:<{kind}}  {c.name:<{width}}  {c.seconds:6.1f} s  {c.reason}" for c in self.checks]
        if self.concentration is not None:
            lines.append("gradient concentration (unbiased: slope -1, no floor):")
            lines += [f"  {c.text()}" for c in self.concentration] or ["  no operand of EB or GC is stochastic"]
        n = self.counts
        told = f"{n['total']} checks: {n['pass']} passed, {n['fail']} failed, {n['skip']} skipped, " + (
            f"{n['expected failure']} expected failures"
        )
        nothing = "" if n["pass"] else " (nothing passed, which is a failure)"
        return "\n".join([*lines, f"{told}: {'ok' if self.ok else 'NOT OK'}{'' if n['fail'] else nothing}"])

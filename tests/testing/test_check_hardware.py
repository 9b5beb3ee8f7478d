"""The contract of hardware models: all shipped ones meet it, and models with one fault each are caught."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fractrain.cost.hardware import Cost, HardwareModel, Parts, WorkRow
from fractrain.cost.hardware.registry import get, names
from fractrain.testing.hardware import CHECKS, check_hardware
from fractrain.util.errors import ConfigError, PluginError

SHIPPED = [f"{name}{preset}" for name in names() for preset in ("", *(f":{p}" for p in get(name).presets))]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_meet_the_contract(name: str) -> None:
    report = check_hardware(name)
    assert report.ok, report.text()
    assert report.counts["total"] == len(CHECKS)


class Good(HardwareModel):
    """A good one; the faulty ones below differ from it in one thing."""

    name, source, counted, is_not = "good", "this test", "MACs times widths", "a machine"

    def row(self, row: WorkRow) -> Cost:
        n = row.macs * (row.bits1 + row.bits2)
        return Cost(Parts(compute=n), Parts(dram=n), n)


class Narrow(Good):
    """Dearer when narrow."""

    def row(self, row: WorkRow) -> Cost:
        return Cost(Parts(compute=row.macs / row.bits2), Parts(dram=row.macs))


class Batch(Good):
    """Cheaper in large batches."""

    def row(self, row: WorkRow) -> Cost:
        n = row.macs / (row.batch**2)
        return Cost(Parts(compute=n), Parts(dram=n))


class Start(Good):
    """A start for each row, not in proportion to its work."""

    def row(self, row: WorkRow) -> Cost:
        return Cost(Parts(compute=row.macs + 5.0), Parts(dram=row.macs))


class Memory(Good):
    """Remembers what it was asked before."""

    asked = 0

    def row(self, row: WorkRow) -> Cost:
        self.asked += 1
        return Cost(Parts(compute=row.macs * (1 + 1e-3 * self.asked)), Parts(dram=row.macs))


class Nan(Good):
    """Not a number where widths are odd."""

    def row(self, row: WorkRow) -> Cost:
        return Cost(Parts(compute=row.macs if row.bits1 != 3 else math.nan), Parts(dram=row.macs))


class Free(Good):
    """Depthwise layers cost nothing."""

    def row(self, row: WorkRow) -> Cost:
        n = row.macs if row.geometry is None or row.geometry.groups < 5 else 0.0
        return Cost(Parts(compute=n), Parts(dram=n))


class Picky(Good):
    """Does not know attention."""

    def row(self, row: WorkRow) -> Cost:
        if row.geometry is not None and row.geometry.kind == "matmul":
            raise KeyError("matmul")
        return super().row(row)


class Blind(Good):
    """Needs shapes, and does not say so."""

    def row(self, row: WorkRow) -> Cost:
        return super().row(row) if row.shape.macs else Cost()


class Mute(Good):
    """Does not say what it is not."""

    is_not = ""


class Float(Good):
    """Takes no floating point."""

    def row(self, row: WorkRow) -> Cost:
        if row.bits1 > 16:
            raise ConfigError("no width above 16 bits")
        return super().row(row)


def test_a_good_one_passes() -> None:
    report = check_hardware(Good)
    assert report.ok, report.text()
    assert report.counts["fail"] == report.counts["expected failure"] == 0


@pytest.mark.parametrize(
    ("kind", "check", "told"),
    [
        (Narrow, "widths", "time falls from"), (Batch, "work", "more samples in a batch: time falls"),
        (Start, "additive", "do not cost 0.25 times as much"), (Memory, "repeatable", "something else the second time"),
        (Nan, "finite_positive", "is nan"), (Free, "finite_positive", "depthwise FW at 2 x 2 bits: time is 0"),
        (Picky, "finite_positive", "attention FW at 2 x 2 bits: KeyError: 'matmul'"),
        (Picky, "models", "KeyError"), (Blind, "unknown_layer", "elsewhere"), (Mute, "card", "the card lacks is not"),
        (Float, "mapped", "no width above 16 bits"),
    ],
)  # fmt: skip
def test_each_fault_is_found_and_told_in_one_line(kind: type[HardwareModel], check: str, told: str) -> None:
    (result,) = check_hardware(kind, [check]).checks
    assert result.status == "fail"
    assert told in result.reason
    assert "\n" not in result.reason


def test_an_expected_failure_must_fail() -> None:
    class Known(Narrow):
        """Says that it falls."""

        expected_failures = {"widths": "a test"}

    class Wrong(Good):
        """Says that it falls, and does not."""

        expected_failures = {"widths": "a test"}

    assert check_hardware(Known).ok
    assert not check_hardware(Wrong).ok


def test_the_command(cli: Any, tmp_path: Path) -> None:
    result = cli("check-hardware", "bit-product", "--check", "widths", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["hardware"] == "bit-product"
    bad = tmp_path / "bad.py"
    bad.write_text("from fractrain.cost.hardware import *\n\n\nclass Bad(HardwareModel):\n    name = 'bad'\n")
    result = cli("check-hardware", bad, "--check", "card", "--check", "unknown_layer")
    assert result.exit_code == 1
    assert "2 checks: 0 passed, 2 failed" in result.stdout
    for args, told in [(("bit-product", "--check", "width"), "did you mean 'widths'"), (("x.py",), "no such file")]:
        result = cli("check-hardware", *args)
        assert result.exit_code == 2
        assert told in result.stderr
    with pytest.raises(PluginError, match="no such file"):
        check_hardware(tmp_path / "missing.py")

"""Operands and precisions as values."""

from __future__ import annotations

import pytest
import torch

from fractrain.numerics.formats import Affine, PerAxis, PerTensor, Symmetric
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision


def test_equal_operands_are_quantized_once() -> None:
    bits = torch.tensor([2, 4])
    assert Operand(8).same_as(Operand(8))
    assert not Operand(8).same_as(Operand(7))
    assert not Operand(8).same_as(Operand(8, Symmetric()))
    assert not Operand(8).same_as(Operand(8, Affine(rounding="stochastic")))
    assert Operand(bits).same_as(Operand(bits))
    assert not Operand(bits).same_as(Operand(bits.clone()))
    assert not Operand(bits).same_as(Operand(4))
    assert FLOAT.same_as(Operand(32, Symmetric()))
    assert not FLOAT.same_as(Operand(8))


def test_widths_change_without_touching_formats() -> None:
    p = fractrain_precision(4, 5, 6)
    q = p.with_bits(a=3, e=8)
    assert {n: o.bits for n, o in q.operands().items()} == {
        "fw_a": 3, "gc_a": 3, "fw_w": 5, "eb_w": 5, "eb_e": 8, "gc_e": 8
    }  # fmt: skip
    assert {n: o.format for n, o in q.operands().items()} == {n: o.format for n, o in p.operands().items()}
    assert q.fw_a.running == 0.9
    assert q.fw_a.same_as(q.gc_a)
    assert p.with_bits().fw_a.bits == 4


def test_the_authors_quantizer() -> None:
    p = fractrain_precision(4, 5, 6)
    assert (p.fw_a.format, p.fw_w.format) == (Affine(), Affine(PerAxis(0)))
    assert p.eb_e.format == p.gc_e.format == Affine(PerTensor(), "stochastic")


def test_is_float_and_widest() -> None:
    assert Precision().is_float
    assert not Precision(gc_e=Operand(8)).is_float
    assert Operand(torch.tensor([2, 16, 0])).widest == 16
    assert (Operand(8).widest, FLOAT.widest) == (8, 32)
    assert not Operand(torch.tensor([8])).is_float


@pytest.mark.parametrize(
    ("operand", "text"),
    [
        (FLOAT, "float32"),
        (Operand(8), "affine 8 b, PerTensor, nearest"),
        (Operand(4, Symmetric(PerAxis(0), "stochastic")), "symmetric 4 b, PerAxis, stochastic"),
        (Operand(torch.tensor([4])), "affine mapped, PerTensor, nearest"),
    ],
)
def test_description(operand: Operand, text: str) -> None:
    assert operand.describe() == text

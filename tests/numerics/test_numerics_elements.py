"""Minifloats and integers as elements: against the definition in float64, stored vectors, and ml_dtypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from definitions import round_to_values
from format_helpers import ALL, ELEMENTS, VECTORS, hard_inputs, number, values_of

from fractrain.numerics.elements import E4M3, E5M2, INT8, integer, power_of_two


@pytest.mark.parametrize("element", ALL, ids=lambda e: e.name)
def test_values_are_those_of_the_definition(element):
    table = element.table().double()
    count = len(values_of(element))
    assert table[:count].tolist() == values_of(element)
    finite = table[table.isfinite()]
    assert finite.max() == element.max == values_of(element)[-1]
    assert torch.equal(table[: len(table) // 2], -table[len(table) // 2 :]) or not table.isfinite().all()


@pytest.mark.parametrize("element", ALL, ids=lambda e: e.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nearest_is_the_slow_loop(element, dtype):
    x = hard_inputs(element, random=1500)
    values = values_of(element)
    expected = torch.tensor([round_to_values(v, values) for v in x.tolist()], dtype=dtype)
    rounded = element.round(x.to(dtype))
    assert torch.equal(rounded, expected)
    assert torch.equal(torch.signbit(rounded), torch.signbit(x))


@pytest.mark.parametrize("element", ALL, ids=lambda e: e.name)
def test_stochastic_is_the_slow_loop(element):
    x = hard_inputs(element, random=1500)
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    values = values_of(element)
    exact = x.double()
    expected = [round_to_values(v, values, w) for v, w in zip(exact.tolist(), u.double().tolist(), strict=True)]
    assert torch.equal(element.round(exact, u.double()), torch.tensor(expected, dtype=torch.float64))
    # float32 gives the same but where the fraction itself is rounded
    assert (element.round(x, u).double() != torch.tensor(expected, dtype=torch.float64)).double().mean() < 1e-3


def test_float64_is_rounded_once():
    tie_and_a_little = torch.tensor([1 + 2.0**-4 + 2.0**-40], dtype=torch.float64)
    assert E4M3.round(tie_and_a_little).item() == 1.125
    assert E4M3.round(tie_and_a_little.float()).item() == 1.0  # float32 cannot hold the little


@pytest.mark.parametrize("element", ALL, ids=lambda e: e.name)
def test_codes_and_back(element):
    table = element.table()
    finite = table[table.isfinite()]
    codes = torch.arange(len(table), dtype=torch.uint8)[table.isfinite()]
    assert torch.equal(element.encode(finite), codes)
    assert torch.equal(element.decode(codes), finite)


@pytest.mark.parametrize("name", ELEMENTS)
def test_stored_vectors(name):
    rows = VECTORS[name]["rows"]
    element = ELEMENTS[name]
    x = torch.tensor([number(row[0]) for row in rows], dtype=torch.float32)
    for column, overflow in ((1, "saturate"), (2, "special")):
        e = replace(element, overflow=overflow)
        codes = e.encode(e.round(x)).tolist()
        for row, code in zip(rows, codes, strict=True):
            if row[column] is None or (number(row[0]) != number(row[0]) and not e.table().isnan().any()):
                continue  # a format without nan has no code for it
            wanted, got = e.table()[row[column]].item(), e.table()[code].item()
            assert code == row[column] or (np.isnan(wanted) and np.isnan(got)), row


def test_there_are_as_many_vectors_as_reported():
    assert sum(len(VECTORS[name]["rows"]) for name in ELEMENTS) == 2619


@pytest.mark.parametrize("name", ELEMENTS)
def test_equal_to_ml_dtypes(name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed (extra: dev)")
    kind = {
        "e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m1": ml_dtypes.float4_e2m1fn,
        "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn,
    }[name]  # fmt: skip
    element = ELEMENTS[name]
    x = hard_inputs(element, random=200_000)
    inside = x[x.abs() <= element.max]  # beyond, ml_dtypes gives nan for E4M3: the test below
    theirs = inside.numpy().astype(kind)
    assert torch.equal(element.round(inside), torch.from_numpy(theirs.astype(np.float32)))
    # every bit pattern
    patterns = np.arange(2**element.bits, dtype=np.uint8)
    decoded = torch.from_numpy(patterns.view(kind).astype(np.float32))
    assert torch.equal(decoded.nan_to_num(1e9), element.table().nan_to_num(1e9))
    assert torch.equal(
        element.encode(inside.new_tensor(theirs.astype(np.float32))), torch.from_numpy(theirs.view(np.uint8))
    )


@pytest.mark.parametrize("element", [E4M3, E5M2], ids=lambda e: e.name)
def test_overflow_is_a_setting(element):
    x = torch.tensor([element.max * 2, -element.max * 2, float("inf"), float("-inf"), element.max])
    assert element.round(x).tolist() == [element.max, -element.max, element.max, -element.max, element.max]
    special = replace(element, overflow="special").round(x)
    if element is E5M2:
        assert special.tolist() == [float("inf"), float("-inf"), float("inf"), float("-inf"), element.max]
    else:
        assert special[:4].isnan().all()
        assert special[4] == element.max


def test_integers_are_what_int8_and_mxint8_are():
    assert INT8.round(torch.tensor([-200.0, -0.5, 0.5, 1.5, 126.6, 127.5])).tolist() == [-127, 0, 0, 2, 127, 127]
    assert integer(8, 6).max == 1.984375
    assert integer(8, 6).max_exponent == 0


def test_powers_of_two_are_exact_down_to_the_last_subnormal():
    e = torch.arange(-149, 128)
    assert torch.equal(power_of_two(e).double(), torch.pow(torch.tensor(2.0, dtype=torch.float64), e))

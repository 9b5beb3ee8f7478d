"""Closed forms against hand-computed values and published numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_forms import bitops, published_macs, published_row

from fractrain.cost.formulas import AUTHORS_FORWARD_MACS, static_cp
from fractrain.util.errors import ConfigError

WIDTH = st.integers(1, 32)


@pytest.mark.parametrize(
    ("fw", "bw", "percent"),
    [
        (8, 8, 6.25),
        (8, 12, 8.333),
        (8, 16, 10.417),
        (6, 8, 4.297),
        (6, 12, 5.859),
        (6, 6, 3.516),
        (4, 12, 3.646),
        (4, 6, 2.083),
        (3, 6, 1.465),
        (2, 6, 0.911),
        (32, 32, 100.0),
    ],
)
def test_static_cp_of_the_published_precisions(fw: int, bw: int, percent: float) -> None:
    assert static_cp(fw, bw) == pytest.approx(percent, abs=5e-4)


@pytest.mark.parametrize(
    ("weight", "cps"),
    [
        (4, {(3, 6): 1.758, (4, 6): 2.083, (4, 8): 2.604, (6, 8): 3.385, (6, 12): 4.688}),
        (6, {(3, 6): 2.344, (4, 8): 3.385, (6, 12): 5.859, (8, 16): 8.854}),
    ],
)
def test_cp_of_the_gate_candidates(weight: int, cps: dict[tuple[int, int], float]) -> None:
    for (a, g), percent in cps.items():
        assert static_cp(a, g, weight) == pytest.approx(percent, abs=5e-4)


def test_static_cp_is_exact_where_it_is_a_dyadic_fraction() -> None:
    assert static_cp(8, 8) == 6.25
    assert static_cp(16, 16) == 25.0
    assert static_cp(32, 32) == 100.0


@given(a=WIDTH, g=WIDTH, w=WIDTH)
def test_static_cp_is_the_mean_of_three_products(a: int, g: int, w: int) -> None:
    three = [a / 32 * w / 32, g / 32 * w / 32, a / 32 * g / 32]
    assert static_cp(a, g, w) == pytest.approx(100 * sum(three) / 3, rel=1e-12)
    assert static_cp(a, g, w) == static_cp(w, g, a)  # W and A enter alike


@given(a=st.integers(1, 31), g=st.integers(1, 31), w=st.integers(1, 31))
def test_static_cp_rises_strictly_with_each_width(a: int, g: int, w: int) -> None:
    base = static_cp(a, g, w)
    assert static_cp(a + 1, g, w) > base
    assert static_cp(a, g + 1, w) > base
    assert static_cp(a, g, w + 1) > base


@pytest.mark.parametrize(
    ("model", "iterations", "macs"),
    [("resnet38", 50_700, 4.96e13), ("resnet74", 37_440, 7.33e13), ("resnet74", 34_320, 6.72e13)],
)
def test_published_macs_of_the_dfq_rows(model: str, iterations: int, macs: float) -> None:
    computed = published_macs(3.0, iterations, 128, AUTHORS_FORWARD_MACS[model])
    assert round(computed / 1e13, 2) == pytest.approx(macs / 1e13, abs=1e-9)


def test_published_macs_of_resnet38_cifar100_dfq_are_not_what_the_formula_gives() -> None:
    """The cell prints 3.23e13; its best iteration gives 3.36e13 (known contradiction)."""
    cell = published_row(table="table2", model="resnet38", dataset="cifar100", method="dfq", metric="effective_MACs")
    assert cell.value == 3.23e13
    assert round(published_macs(3.0, 34_320, 128, AUTHORS_FORWARD_MACS["resnet38"]) / 1e13, 2) == 3.36


@pytest.mark.parametrize(
    ("model", "forward_macs", "fw", "bw", "precision"),
    [
        ("ResNet-18", 1_814_073_344, 8, 8, "FW/BW 8/8"),
        ("ResNet-34", 3_663_761_408, 8, 8, "FW/BW 8/8"),
        ("ResNet-18", 1_814_073_344, 6, 6, "FW/BW 6/6"),
        ("ResNet-34", 3_663_761_408, 6, 6, "FW/BW 6/6"),
    ],
)
def test_gbitops_of_the_static_imagenet_rows_of_cpt(
    model: str, forward_macs: int, fw: int, bw: int, precision: str
) -> None:
    cell = published_row(
        table="ImageNet", model=model, dataset="ImageNet", method="SBM", metric="GBitOPs", precision=precision
    )
    assert bitops(forward_macs, 64_000 * 128, fw, bw) / 1e9 == pytest.approx(cell.value, rel=0.005)


def test_bitops_against_cp() -> None:
    macs, images = 83_280_512, 64_000 * 128
    assert bitops(macs, images, 6, 8) / 1024 == pytest.approx(published_macs(static_cp(6, 8), 64_000, 128, macs))


@pytest.mark.parametrize("bits", [0, 33, -8])
def test_impossible_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="1 to 32 bits"):
        static_cp(bits, 8)
    with pytest.raises(ConfigError, match="bw_bits"):
        static_cp(8, bits)
    with pytest.raises(ConfigError, match="weight_bits"):
        static_cp(8, 8, bits)

"""The map generator: brute force, numbers worked out by hand, hysteresis, folding and averages."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fractrain.methods.bit_maps import (
    allocate,
    average,
    fold_rows,
    noise_variance,
    round_widths,
    rounding_points,
    tile_mean_squares,
)
from fractrain.numerics.tiles import PerTile

WIDTHS = (2, 4, 8)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def loss(relative, cost, bits):
    return sum(r * c * noise_variance(b) for r, c, b in zip(relative, cost, bits, strict=True))


def spent(cost, bits):
    return sum(c * b for c, b in zip(cost, bits, strict=True))


def test_rounding_points_by_hand():
    # 2 -> 4 bits: (1/9 - 1/225) / 2 = 4/75 per bit; ln 4 * 4^-b = 4/75 at b = log4(ln 4 * 75/4) = 2.3500
    # 4 -> 8 bits: (1/225 - 1/65025) / 4 = 0.00110727 per bit, b = 5.1450
    assert rounding_points(WIDTHS) == pytest.approx([2.3500, 5.1450], abs=1e-4)
    # 0 -> 2 bits: (1 - 1/9) / 2 = 4/9 per bit, b = log4(ln 4 * 9/4) = 0.8206
    assert rounding_points((0, 2)) == pytest.approx([0.8206], abs=1e-4)


def test_four_tiles_by_hand():
    # equal cost, 1/2 log2 of the sensitivity: 0, 1, 2, 5. At level 2.2: 2.2 (-> 2), 3.2 (-> 4), 4.2 (-> 4), 7.2 (-> 8);
    # mean 4.5. Down to level 1.36 the second stays at 4 and the last at 8. Just below 1.35: 2, 2, 4, 8, mean 4.
    relative, cost = f64(1, 4, 16, 1024), f64(1, 1, 1, 1)
    assert allocate(relative, cost, 4.5, WIDTHS).tolist() == [2, 4, 4, 8]
    assert allocate(relative, cost, 4.49, WIDTHS).tolist() == [2, 2, 4, 8]
    assert allocate(relative, cost, 4.0, WIDTHS).tolist() == [2, 2, 4, 8]
    assert allocate(relative, cost, 8.0, WIDTHS).tolist() == [8, 8, 8, 8]
    assert allocate(relative, cost, 1.0, WIDTHS).tolist() == [2, 2, 2, 2]  # the budget allows not even this


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.sampled_from([1.0, 2.0, 5.0])), min_size=1, max_size=5),
    st.floats(2, 8),
    st.sampled_from([(2, 4, 8), (0, 2, 4, 8), (2, 3, 4), (5,)]),
)
def test_no_map_that_costs_no_more_is_better(tiles, budget, widths):
    relative, cost = zip(*tiles, strict=True)
    got = allocate(f64(*relative), f64(*cost), budget, widths).tolist()
    best = min(
        loss(relative, cost, bits)
        for bits in itertools.product(widths, repeat=len(tiles))
        if spent(cost, bits) <= spent(cost, got)
    )
    assert loss(relative, cost, got) <= best * (1 + 1e-9)
    assert spent(cost, got) <= budget * sum(cost) * (1 + 1e-9) or set(got) == {widths[0]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40, unique=True), st.floats(2, 8))
def test_the_budget_is_used_up_but_for_one_tile(relative, budget):
    """With equal costs and all sensitivities different, one more tile at its next width would not fit."""
    got = allocate(f64(*relative), torch.ones(len(relative), dtype=torch.float64), budget, WIDTHS)
    left = budget * len(relative) - float(got.sum())
    order = sorted({0.5 * math.log2(r) for r in relative})
    if min((b - a for a, b in itertools.pairwise(order)), default=1) > 1e-6 and float(got.sum()) < 8 * len(relative):
        assert left < 8  # at one level, a tile may pass from 2 to 4 where another passes from 4 to 8


def test_unknown_tiles_stay_widest_and_dead_ones_narrowest():
    got = allocate(f64(math.inf, 0.0, 1.0, 1.0), f64(1, 1, 1, 1), 4.0, WIDTHS)
    assert got[0] == 8
    assert got[1] == 2
    assert allocate(f64(math.inf, 0.0), f64(1, 1), 4.0, WIDTHS).tolist() == [8, 2]


def test_hysteresis_by_hand():
    edge = rounding_points(WIDTHS)[0]
    old = torch.tensor([2, 4, 2, 4, 8, 2])
    ideal = f64(edge + 0.2, edge - 0.2, edge + 0.3, edge - 0.3, edge - 2, 7.0)
    assert round_widths(ideal, WIDTHS).tolist() == [4, 2, 4, 2, 2, 8]
    assert round_widths(ideal, WIDTHS, old, 0.25).tolist() == [2, 4, 4, 2, 2, 8]
    assert round_widths(ideal, WIDTHS, old, 0.0).tolist() == [4, 2, 4, 2, 2, 8]


def test_hysteresis_keeps_a_map_against_noise_and_the_budget_holds():
    gen = torch.Generator().manual_seed(0)
    base = torch.randn(400, generator=gen, dtype=torch.float64) * 2
    cost = torch.rand(400, generator=gen, dtype=torch.float64) + 0.5
    changes = {}
    for margin in (0.0, 0.4):
        old, total = None, 0
        for _ in range(10):
            relative = torch.exp2(base + 0.3 * torch.randn(400, generator=gen, dtype=torch.float64))
            new = allocate(relative, cost, 4.0, WIDTHS, old, margin)
            assert float((new * cost).sum()) <= 4.0 * float(cost.sum()) * (1 + 1e-9)
            total += 0 if old is None else int((new != old).sum())
            old = new
        changes[margin] = total
    assert changes[0.4] < changes[0.0] / 4


def test_widths_follow_a_real_change_in_spite_of_hysteresis():
    relative = f64(1, 1, 4096, 4096)
    first = allocate(relative, f64(1, 1, 1, 1), 5.0, WIDTHS)
    second = allocate(relative.flip(0), f64(1, 1, 1, 1), 5.0, WIDTHS, first, 0.5)
    assert first.tolist() == [2, 2, 8, 8]
    assert second.tolist() == [8, 8, 2, 2]


def test_mean_squares_of_ragged_tiles_equal_a_loop():
    x = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    got = tile_mean_squares(x.contiguous(memory_format=torch.channels_last), PerTile(4, 3))
    rows = [[float(x[n, c, h, w]) for c in range(5)] for n in range(2) for h in range(3) for w in range(3)]
    for i, j in itertools.product(range(5), range(2)):
        group = [v for row in rows[4 * i : 4 * i + 4] for v in row[3 * j : 3 * j + 3]]
        assert float(got[i, j]) == pytest.approx(sum(v * v for v in group) / len(group), rel=1e-6)


def test_folding_averages_the_same_place_of_all_samples():
    values = f64(1, 2, 3, 10, 20, 30, 100).view(-1, 1)
    assert fold_rows(values, 3).reshape(-1).tolist() == [37.0, 11.0, 16.5]
    partial = fold_rows(values[:2], 3).reshape(-1)
    assert partial[:2].tolist() == [1.0, 2.0]
    assert partial[2].isnan()


def test_the_average_keeps_what_a_small_batch_does_not_show():
    nan = math.nan
    assert average(None, f64(1, nan), 0.5).tolist()[0] == 1.0
    assert average(f64(1, 3), f64(2, nan), 0.75).tolist() == [1.25, 3.0]
    assert average(f64(nan), f64(5), 0.75).tolist() == [5.0]

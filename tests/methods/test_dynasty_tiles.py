"""One grid and one width per tile: fused and plain path against float64 loops, ragged edges, repeated maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from definitions import quantize_group

from fractrain.kernels.cpu.uniform_tiles import probed_tiles
from fractrain.numerics.formats import Affine, Symmetric
from fractrain.numerics.quantize import quantize, tile_limits
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform
from fractrain.numerics.tiles import PerTile, expand_tiles, fit_map, tile_counts, tile_period, tile_sizes
from fractrain.util.errors import ConfigError

KEY = NoiseKey(0x1234567, 0x89ABCDEF, 77)
SHAPES = [(7, 5), (1, 1), (33, 17), (3, 4, 5), (2, 5, 3, 3), (3, 17, 4, 5), (4, 16, 4, 4), (1, 3, 1, 1)]
TILES = [PerTile(4, 3), PerTile(16, 16), PerTile(1, 1), PerTile(5, 100)]


def tensor(shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def widths(shape, tile, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return torch.tensor([0, 2, 4, 8])[torch.randint(0, 4, tile_counts(torch.Size(shape), tile), generator=gen)]


def rows_of(x):
    """Matrix rows as lists of index tuples, by plain loops."""
    if len(x) == 4:
        n, c, h, w = x
        return [[(i, k, r, s) for k in range(c)] for i in range(n) for r in range(h) for s in range(w)]
    return [[(*lead, k) for k in range(x[-1])] for lead in np.ndindex(*x[:-1])]


def run(x, fmt, bits, noise, kernels):
    grid = fmt.compact_grid(fmt.limits(x, kernels), bits, x)
    widest = max(int(torch.as_tensor(bits).max()), 2)
    values, codes = quantize(x, grid, noise, widest, kernels)
    assert torch.equal(quantize(x, grid, noise, 0, kernels)[0], values)
    assert torch.equal(codes.values(), values)
    return values, codes


def test_the_fused_tile_kernels_work_here():
    assert probed_tiles() is not None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("cls", [Affine, Symmetric])
def test_fused_and_plain_path_give_the_same_bits(shape, noise, cls):
    for tile in TILES:
        x, bits = tensor(shape, 1), widths(shape, tile)
        for b in (bits, 5, torch.where(bits == 0, 12, bits)):
            plain, plain_codes = run(x, cls(tile), b, noise, "reference")
            fast, fast_codes = run(x, cls(tile), b, noise, "fused")
            assert torch.equal(plain, fast)
            assert torch.equal(plain_codes.codes, fast_codes.codes)
            assert fast.stride() == x.stride()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
def test_tiles_equal_a_float64_loop(shape, noise):
    tile = PerTile(4, 3)
    x, bits = tensor(shape, 2), widths(shape, tile)
    values, _ = run(x, Affine(tile), bits, noise, "fused")
    u = None if noise is None else uniform(noise, element_numbers(x.shape, x.device)).double().numpy()
    rows, wrong, checked = rows_of(shape), 0, 0
    for (i, j), width in np.ndenumerate(bits.numpy()):
        members = [m for row in rows[4 * i : 4 * i + 4] for m in row[3 * j : 3 * j + 3]]
        group = np.array([float(x[m]) for m in members])
        lo, hi = group.min(), group.max()
        chosen = None if u is None else np.array([u[m] for m in members])
        want, _ = quantize_group(group, int(width), symmetric=False, lo=lo, hi=hi, noise=chosen)
        got = np.array([float(values[m]) for m in members])
        step = max((hi - lo) / (2.0 ** int(width) - 1), 1e-8) if width else 1.0
        off = np.abs(got - want) > 1e-5 * max(1.0, abs(lo), abs(hi))
        assert (np.abs(got - want)[off] < 1.001 * step).all()  # float32 may fall on the other side of a rounding edge
        wrong, checked = wrong + int(off.sum()), checked + len(group)
    assert wrong <= checked // 200
    assert checked == x.numel()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_limits_per_tile_equal_a_loop(shape):
    tile, x = PerTile(4, 3), tensor(shape, 3)
    rows = rows_of(shape)
    for kernels in ("fused", "reference"):
        lo, hi = tile_limits(x, tile, kernels)
        for i, j in np.ndindex(*tile_counts(torch.Size(shape), tile)):
            group = [float(x[m]) for row in rows[4 * i : 4 * i + 4] for m in row[3 * j : 3 * j + 3]]
            assert (float(lo[i, j]), float(hi[i, j])) == (min(group), max(group))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inf_and_nan_show_in_the_limits(bad):
    x = tensor((2, 5, 3, 3), 0)
    x[1, 4, 2, 0] = bad
    for kernels in ("fused", "reference"):
        lo, hi = tile_limits(x, PerTile(4, 3), kernels)
        assert not (torch.isfinite(lo).all() and torch.isfinite(hi).all())


def test_a_repeated_map_covers_the_same_positions_of_every_sample():
    tile = PerTile(4, 2, repeat=True)
    shape = torch.Size((6, 3, 3, 2))  # 6 positions per sample, tiles of 4: the cut comes back after 12 positions
    assert tile_period(shape, tile) == 3
    plain = torch.arange(6).view(3, 2)
    full = expand_tiles(plain, shape, tile)
    assert torch.equal(full[0:2], full[2:4])
    assert torch.equal(full[0:2], full[4:6])
    assert full.permute(0, 2, 3, 1).reshape(-1, 3)[:12, 0].tolist() == [0] * 4 + [2] * 4 + [4] * 4
    partial = torch.Size((5, 3, 3, 2))  # the last batch: 30 positions, 8 rows of tiles
    assert torch.equal(expand_tiles(plain, partial, tile), full[:5])
    assert fit_map(plain, torch.Size((1, 3, 3, 2)), tile).tolist() == plain[:2].tolist()


def test_maps_that_must_not_repeat_are_refused():
    with pytest.raises(ConfigError, match="tiles of 4x2"):
        fit_map(torch.zeros(3, 2), torch.Size((6, 3, 3, 2)), PerTile(4, 2))
    with pytest.raises(ConfigError, match="tiles of 4x2"):
        fit_map(torch.zeros(3, 1), torch.Size((6, 3, 3, 2)), PerTile(4, 2, repeat=True))


@pytest.mark.parametrize(
    ("shape", "rows", "period"),
    [((64, 16, 8, 8), 16, 4), ((64, 64, 2, 2), 16, 1), ((8, 4, 7, 7), 16, 49), ((9, 10), 16, 1), ((9, 24, 10), 16, 3)],
)
def test_period_of_tiles(shape, rows, period):
    assert tile_period(torch.Size(shape), PerTile(rows, 16)) == period


def test_sizes_of_ragged_tiles():
    assert tile_sizes(torch.Size((7, 5)), PerTile(4, 3)).tolist() == [[12, 8], [9, 6]]

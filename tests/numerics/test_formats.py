"""Every format, granularity, width and rounding against the float64 loops, and the properties of a quantizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from definitions import quantize_group
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import SHAPES, expected, groups_of, integer_codes, run, tensor

from fractrain.numerics.formats import Affine, Format, PerAxis, PerTensor, PerTile, Symmetric, expand_tiles, tile_counts
from fractrain.numerics.precision import Operand
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey
from fractrain.util.errors import ConfigError

FORMATS = [Affine, Symmetric]
GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(1), PerTile(2, 3), PerTile(16, 16), PerTile(1, 1)]
KEY = NoiseKey(0xDEADBEEF, 0x12345678, 5)


def check(x: torch.Tensor, fmt: Format, bits: int | torch.Tensor, noise: NoiseKey | None) -> int:
    """Compare with the reference; returns how many elements lay too near a rounding boundary for exactness."""
    values, codes, grid = run(x, fmt, bits, noise)
    want, want_codes, step, clear = expected(x, fmt, bits, noise)
    got_codes = integer_codes(codes, grid).numpy()
    sure = clear > 0
    np.testing.assert_array_equal(got_codes[sure], want_codes[sure])
    assert np.abs(got_codes - want_codes).max() <= 1
    width = bits if isinstance(bits, int) else int(bits.max())
    slack = 2.0**-21 * (np.abs(want) + 2.0**width * step)  # float32 rounding of code * scale + offset
    difference = np.abs(values.double().numpy() - want)
    assert (difference <= slack + np.where(sure, 0.0, step)).all()
    return int((~sure).sum())


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 3, 2)], ids=str)
def test_every_width_equals_the_float64_loops(cls: type[Format], granularity, noise, shape) -> None:
    unsure = total = 0
    for bits in range(2, 17):
        x = tensor(shape, bits, scale=0.3, shift=0.1)
        unsure += check(x, cls(granularity), bits, noise) if bits <= 12 else 0
        total += x.numel() if bits <= 12 else 0
        if bits > 12:
            check(x, cls(granularity), bits, noise)
    # Up to 12 bits nearly all elements are compared exactly. The two limits of a group lie on an integer, where the
    # floor of stochastic rounding jumps.
    limits = 0 if noise is None else 2 * len(groups_of(shape, granularity)) * 11
    assert unsure <= 0.05 * total + limits


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes_equal_the_float64_loops(cls: type[Format], noise, shape) -> None:
    for granularity in (PerTensor(), PerAxis(0), PerAxis(1), PerTile(2, 2)):
        check(tensor(shape, 3), cls(granularity), 5, noise)


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1)], ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
def test_one_width_per_sample(cls: type[Format], granularity, noise) -> None:
    bits = torch.tensor([2, 8, 0, 3, 6])
    for shape in ((5, 7), (5, 3, 4, 2), (5, 2, 3)):
        x = tensor(shape, 1)
        check(x, cls(granularity), bits, noise)
        assert (run(x, cls(granularity), bits, noise)[0][2] == 0).all()
        check(x, cls(granularity), torch.tensor([16, 9, 12, 0, 2]), noise)


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 3, 3), (2, 3, 4)], ids=str)
def test_one_width_per_tile_with_ragged_edges(cls: type[Format], noise, shape) -> None:
    tile = PerTile(4, 3)
    counts = tile_counts(torch.Size(shape), tile)
    bits = torch.randint(2, 9, counts, generator=torch.Generator().manual_seed(0))
    bits[0, 0] = 0
    x = tensor(shape, 2)
    check(x, cls(tile), bits, noise)
    members = groups_of(shape, tile)[0][1]
    assert (run(x, cls(tile), bits, noise)[0].contiguous().view(-1)[torch.from_numpy(members)] == 0).all()


@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 3, 3), (2, 3, 4)], ids=str)
def test_tiles_are_where_the_matrix_view_says(shape) -> None:
    tile = PerTile(4, 2)
    counts = tile_counts(torch.Size(shape), tile)
    ids = torch.arange(counts[0] * counts[1]).view(counts)
    spread = expand_tiles(ids, torch.Size(shape), tile).contiguous().view(-1).numpy()
    groups = groups_of(shape, tile)
    assert len(groups) == counts[0] * counts[1]
    for (i, j), members in groups:
        assert (spread[members] == i * counts[1] + j).all()


def test_banners_mean_statistic_is_the_mean_of_the_samples_extremes() -> None:
    x = tensor((6, 3, 4, 4), 0)
    lo, hi = Affine(statistic="mean").limits(x)
    rows = x.double().reshape(6, -1) if x.is_contiguous() else x.double().contiguous().view(6, -1)
    assert float(lo) == pytest.approx(np.mean([float(r.min()) for r in rows]), rel=1e-6)
    assert float(hi) == pytest.approx(np.mean([float(r.max()) for r in rows]), rel=1e-6)


# -- properties ------------------------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=24)
FMT = st.sampled_from(FORMATS)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=VALUES, cls=FMT, bits=st.integers(2, 16), stochastic=st.booleans())
def test_values_lie_on_the_grid_and_in_the_range(data, cls, bits, stochastic) -> None:
    x = torch.tensor(data).view(1, -1)
    values, codes, grid = run(x, cls(), bits, KEY if stochastic else None)
    q = integer_codes(codes, grid)
    assert (q == q.round()).all()
    assert (q >= grid.qmin).all()
    assert (q <= grid.qmax).all()
    assert torch.equal(values, q.float() * grid.scale + grid.offset)
    assert torch.equal(codes.values(), values)
    bound = max(abs(min(data)), abs(max(data)))
    slack = 2.0**-20 * max(bound, 1e-30)  # top code * scale + offset is the largest value up to float32 rounding
    low, high = (-bound, bound) if cls is Symmetric else (min(data), max(data))
    assert float(values.min()) >= low - slack - 1e-8
    assert float(values.max()) <= high + slack + 1e-8 * 2**bits


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=VALUES, cls=FMT, bits=st.integers(2, 12))
def test_nearest_is_idempotent_on_its_grid_and_errs_by_half_a_step(data, cls, bits) -> None:
    x = torch.tensor(data).view(1, -1)
    once, codes, grid = run(x, cls(), bits)
    twice, again = quantize(once, grid, code_bits=bits)
    assert again is not None
    noise_floor = float(once.abs().max()) * 2.0**-22 / float(grid.scale)
    if noise_floor < 0.2:  # else neighbouring grid points are closer than float32 can tell apart
        assert torch.equal(again.codes, codes.codes)
        assert torch.equal(twice, once)
    error = (once.double() - x.double()).abs().max()
    assert float(error) <= float(grid.scale) * 0.5 + 2.0**-20 * max(1e-30, float(x.abs().max()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=VALUES, cls=FMT, bits=st.integers(2, 16))
def test_nearest_is_monotone(data, cls, bits) -> None:
    x = torch.tensor(sorted(data)).view(1, -1)
    values, codes, grid = run(x, cls(), bits)
    assert (integer_codes(codes, grid).diff() >= 0).all()
    assert (values.diff() >= 0).all()


def test_stochastic_rounding_is_monotone_in_each_elements_own_value() -> None:
    fmt, grid_of = Affine(), tensor((4, 50), 0)
    grid = fmt.grid(fmt.limits(grid_of), 4, grid_of)
    last = None
    for shift in np.linspace(-2, 2, 41):
        values = quantize(torch.full((4, 50), float(shift)), grid, KEY)[0]
        assert last is None or (values >= last).all()
        last = values


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_stochastic_rounding_is_unbiased(cls: type[Format], bits: int, kernels) -> None:
    n = 100_000
    fmt = cls()
    limits = (torch.tensor(-1.0), torch.tensor(1.0))
    for i, value in enumerate((-0.87, -0.31, 0.003, 0.21, 0.77)):
        x = torch.full((1, n), value)
        grid = fmt.grid(limits, bits, x)
        values, _ = quantize(x, grid, NoiseKey(17 * i + 3, 99 + i), 0, kernels)
        step = float(grid.scale)
        v = (value - float(grid.offset)) / step
        p = v - math.floor(v)  # of rounding up: one Bernoulli draw per element
        sigma = step * math.sqrt(p * (1 - p) / n)
        assert abs(float(values.double().mean()) - value) <= 5 * sigma + step * 2.0**-20
        assert len(values.unique()) == 2


def test_stochastic_rounding_leaves_grid_points_alone() -> None:
    fmt = Symmetric(rounding="stochastic")
    x = torch.arange(-7.0, 8.0).view(1, -1).repeat(50, 1)
    assert torch.equal(quantize(x, fmt.grid(fmt.limits(x), 4, x), KEY)[0], x)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("noise", [None, KEY])
def test_symmetric_keeps_zero_and_is_odd(bits: int, noise) -> None:
    x = tensor((8, 9), 4)
    x[::2, ::2] = 0
    values, codes, grid = run(x, Symmetric(), bits, noise)
    assert (values[x == 0] == 0).all()
    if noise is None:
        assert torch.equal(run(-x, Symmetric(), bits)[0], -values)
    assert integer_codes(codes, grid).min() >= -(2 ** (bits - 1) - 1)


def test_affine_ends_are_kept() -> None:
    x = tensor((5, 9), 4)
    values = run(x, Affine(), 3)[0]
    assert float(values.min()) == float(x.min())
    assert float(values.max()) == pytest.approx(float(x.max()), rel=1e-6)
    assert len(values.unique()) <= 8


def test_ties_go_to_the_even_code() -> None:
    x = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.0]])
    assert run(x, Affine(), 2)[0].tolist() == [[0.0, 0.0, 2.0, 2.0, 3.0]]
    assert quantize_group(x.double().numpy(), 2, symmetric=False, lo=0.0, hi=3.0)[0].tolist() == [[0, 0, 2, 2, 3]]


# -- degenerate ranges and refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("noise", [None, KEY])
@pytest.mark.parametrize("value", [0.0, 3.25, -3.25, 1e-30, 1e30])
def test_constant_tensors_keep_their_value(cls: type[Format], granularity, noise, value: float) -> None:
    x = torch.full((3, 4), value)
    values = run(x, cls(granularity), 8, noise)[0]
    assert values.isfinite().all()
    exact = 1e-8 if abs(value) < 1e-6 else abs(value) * 1e-6  # below the least step it becomes 0 or one step
    assert float((values - x).abs().max()) <= exact


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)], ids=str)
def test_one_element(cls: type[Format], shape) -> None:
    for bits in (2, 8, 16):
        assert float(run(torch.full(shape, -2.5), cls(), bits)[0]) == pytest.approx(-2.5, rel=1e-6)


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_limits_show_inf_and_nan_wherever_they_are(cls: type[Format], granularity, bad, kernels) -> None:
    for place in range(12):
        x = tensor((3, 4), 0)
        x.view(-1)[place] = bad
        lo, hi = cls(granularity).limits(x, kernels)
        assert not (torch.isfinite(lo).all() and torch.isfinite(hi).all())


def test_negative_nan_shows_too() -> None:
    x = torch.zeros(2, 3)
    x.view(torch.int32)[1, 2] = -1  # a NaN with the sign bit
    for kernels in ("reference", "fused"):
        lo, hi = Affine().limits(x, kernels)  # type: ignore[arg-type]
        assert not (torch.isfinite(lo) and torch.isfinite(hi))


@pytest.mark.parametrize("bits", [1, 0, -3, 17, 31, torch.tensor([1, 8]), torch.tensor([17]), torch.tensor([-1, 4])])
def test_widths_outside_2_to_16_are_refused(bits) -> None:
    with pytest.raises(ConfigError, match=r"2\.\.16"):
        Operand(bits)


def test_maps_that_do_not_fit_are_refused() -> None:
    x = tensor((4, 6), 0)
    fmt = Affine(PerTile(2, 2))
    with pytest.raises(ConfigError, match="tiles of 2x2"):
        fmt.grid(fmt.limits(x), torch.full((2, 2), 4), x)
    with pytest.raises(ConfigError, match="one per sample"):
        Affine().grid(Affine().limits(x), torch.tensor([4, 4, 4]), x)
    with pytest.raises(ConfigError, match="one per sample"):  # would broadcast one sample to three
        Affine().grid(Affine().limits(x[:1]), torch.tensor([4, 4, 4]), x[:1])
    with pytest.raises(ConfigError, match="at least 1x1"):
        PerTile(0, 4)

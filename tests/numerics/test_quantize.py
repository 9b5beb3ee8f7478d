"""The fused CPU path gives the plain path's bits: values, codes, limits and restored values."""

from __future__ import annotations

import pytest
import torch
from quant_helpers import SHAPES, integer_codes, run, tensor

from fractrain.kernels.cpu.tensors import PARALLEL_FROM
from fractrain.kernels.cpu.uniform import load_fused, probed
from fractrain.numerics.formats import Affine, PerAxis, PerTensor, PerTile, Symmetric, tile_counts
from fractrain.numerics.grid import Grid
from fractrain.numerics.quantize import quantize, quantize_reference, row_limits
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform

KEY = NoiseKey(0x89ABCDEF, 0xFEDCBA98, 1_000_003)
GRIDS = [cls(g) for cls in (Affine, Symmetric) for g in (PerTensor(), PerAxis(0), PerAxis(1))]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same(x: torch.Tensor, fmt, bits, noise) -> None:
    plain, plain_codes, grid = run(x, fmt, bits, noise, "reference")
    fast, fast_codes, fast_grid = run(x, fmt, bits, noise, "fused")
    for name in ("scale", "offset", "qmin", "qmax"):
        assert torch.equal(getattr(grid, name), getattr(fast_grid, name))
    assert torch.equal(plain, fast)
    assert torch.equal(plain_codes.codes, fast_codes.codes)
    assert plain_codes.codes.dtype == fast_codes.codes.dtype
    assert torch.equal(plain_codes.values(), fast_codes.values())
    assert torch.equal(fast_codes.values(), fast)
    assert torch.equal(quantize(x, grid, noise, 0, "fused")[0], plain)  # without codes
    assert fast.stride() == x.stride()


def test_the_fused_path_works_here() -> None:
    assert load_fused() is not None
    assert probed() is not None


@pytest.mark.parametrize("fmt", GRIDS, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 17, 3), (2, 17, 5, 3)], ids=str)
def test_all_shapes(fmt, noise, shape) -> None:
    for bits in (2, 3, 8, 9, 16):
        same(tensor(shape, bits, scale=2.0), fmt, bits, noise)


@pytest.mark.parametrize("fmt", [Affine(), Symmetric()], ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
def test_one_width_per_sample(fmt, noise) -> None:
    for shape in ((4, 9), (4, 3, 5, 2)):
        same(tensor(shape, 0), fmt, torch.tensor([0, 2, 5, 8]), noise)
        same(tensor(shape, 1), fmt, torch.tensor([16, 0, 7, 11]), noise)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_a_fraction_is_rounded_up_from_the_first_value_above_the_noise(kernels) -> None:
    u = uniform(KEY, element_numbers(torch.Size((4, 3, 5, 7)), torch.device("cpu")))
    grid = Grid(*(torch.tensor(value) for value in (1.0, 0.0, 0.0, 255.0)))
    assert torch.equal(quantize(u, grid, KEY, 8, kernels)[0], torch.zeros_like(u))
    assert torch.equal(quantize(u + 2.0**-24, grid, KEY, 8, kernels)[0], torch.ones_like(u))


@pytest.mark.parametrize("fmt", GRIDS, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
def test_large_tensors_on_one_and_two_threads(fmt, noise, threads: int) -> None:
    x = tensor((3, 7, 65, 51), 0)
    assert x.numel() > PARALLEL_FROM
    same(x, fmt, 8, noise)
    y = tensor((1, PARALLEL_FROM + 3), 1)  # one row: nothing to share out
    same(y, fmt, 11, noise)


TILES = [PerTile(2, 3), PerTile(16, 16), PerTile(1, 1), PerTile(5, 1), PerTile(1, 64)]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("cls", [Affine, Symmetric])
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
def test_tiles(tile: PerTile, cls, noise, threads: int) -> None:
    fmt = cls(tile)
    shapes = [(7, 5), (1, 1), (4, 3, 5), (3, 4, 5, 6), (2, 1, 3, 3), (1, 3, 1, 1)]
    for shape in shapes if tile.rows < 16 else [*shapes, (3, 7, 65, 51)]:
        x = tensor(shape, 0)
        counts = tile_counts(x.shape, tile)
        limits = fmt.limits(x, "fused")
        for a, b in zip(limits, fmt.limits(x, "reference"), strict=True):
            assert a.shape == counts
            assert torch.equal(a, b)
        widths = torch.randint(2, 9, counts, generator=torch.Generator().manual_seed(1))
        for bits in (8, 11, torch.where(widths == 2, 0, widths)):
            code_bits = bits if isinstance(bits, int) else 8
            plain, q = quantize_reference(x, fmt.grid(limits, bits, x), noise, code_bits)
            for kernels in ("fused", "reference"):
                fast, codes = quantize(x, fmt.compact_grid(limits, bits, x), noise, code_bits, kernels)
                assert torch.equal(fast, plain)
                assert torch.equal(codes.codes, q.codes)
                assert torch.equal(codes.values(), plain)
            assert torch.equal(quantize(x, fmt.compact_grid(limits, bits, x), noise, 0, "fused")[0], plain)


def test_the_grid_of_tiles_stays_small() -> None:
    fmt, x = Affine(PerTile(16, 16)), tensor((64, 64), 0)
    q = quantize(x, fmt.compact_grid(fmt.limits(x), 8, x), code_bits=8)[1]
    assert q is not None
    assert x.numel() < q.nbytes() < 1.05 * x.numel()


def test_layouts_without_a_dense_view_take_the_plain_path_and_agree() -> None:
    x = tensor((4, 6), 0)
    wide = tensor((4, 12), 1)
    wide[:, ::2] = x
    for view in (wide[:, ::2], x.t().contiguous().t()):
        for noise in (None, KEY):
            assert torch.equal(run(view, Affine(), 5, noise, "fused")[0], run(x, Affine(), 5, noise, "reference")[0])
    picture = tensor((2, 3, 4, 5), 2)
    for noise in (None, KEY):
        a = run(picture.contiguous(), Affine(), 5, noise, "fused")[0]  # NCHW memory
        assert torch.equal(a, run(picture, Affine(), 5, noise, "fused")[0])


@pytest.mark.parametrize("shape", [*SHAPES, (5,), (64, 33)], ids=str)
def test_limits_per_row_equal_a_plain_loop(shape) -> None:
    x = tensor(shape, 0)
    for kernels in ("fused", "reference"):
        lo, hi = row_limits(x, kernels)  # type: ignore[arg-type]
        assert lo.tolist() == [float(row.min()) for row in x]
        assert hi.tolist() == [float(row.max()) for row in x]


def test_limits_of_special_values() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-45], [-1e-45, -3e38, 3e38], [-1.0, -2.0, -3.0]])
    for kernels in ("fused", "reference"):
        lo, hi = row_limits(x, kernels)  # type: ignore[arg-type]
        assert torch.equal(lo, x.amin(1))
        assert torch.equal(hi, x.amax(1))


def test_values_outside_the_limits_are_clamped_alike_and_nan_stays_nan() -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), -9.0, 9.0, 0.4]])
    grid = Grid(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(7.0))
    for kernels in ("fused", "reference"):
        values = quantize(x, grid, kernels=kernels)[0][0]  # type: ignore[arg-type]
        assert values[0].isnan()
        assert values[1:].tolist() == [7.0, 0.0, 0.0, 7.0, 0.0]


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("cls", [Affine, Symmetric])
def test_codes_fit_their_storage(bits: int, cls) -> None:
    x = torch.linspace(-1, 1, 2 ** min(bits, 12) + 3).view(1, -1)
    values, q, grid = run(x, cls(), bits, kernels="fused")
    codes = integer_codes(q, grid)
    assert q.codes.dtype == (torch.uint8 if bits <= 8 else torch.int16)
    assert float(codes.min()) == float(grid.qmin)
    assert float(codes.max()) == float(grid.qmax)
    assert torch.equal(codes.float() * grid.scale + grid.offset, values)
    assert q.nbytes() == x.numel() * (1 if bits <= 8 else 2) + _grid_bytes(grid)


def _grid_bytes(grid: Grid) -> int:
    parts = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
             for t in (grid.scale, grid.offset, grid.qmin, grid.qmax)}  # fmt: skip
    return sum(parts.values())


def test_a_narrow_tensor_may_be_stored_wide() -> None:
    x = tensor((3, 5), 0)
    values, q, grid = run(x, Symmetric(), 4, code_bits=12)
    assert q.codes.dtype == torch.int16
    assert torch.equal(q.values(), values)
    assert integer_codes(q, grid).abs().max() <= 7


def test_more_elements_than_noise_numbers_are_refused() -> None:
    x = tensor((2, 3), 0)
    for kernels in ("fused", "reference"):
        with pytest.raises(ValueError, match=r"2\*\*32"):
            run(x, Affine(), 8, NoiseKey(1, 2, 2**32 - 3), kernels)  # type: ignore[arg-type]

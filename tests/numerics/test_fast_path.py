"""The short cut for the common case gives the bits of the general path, or steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quant_helpers import SHAPES, tensor

from fractrain.numerics.backend import Kernels, Measured, backend_for
from fractrain.numerics.formats import Affine, Format, PerAxis, PerTensor, PerTile, Symmetric
from fractrain.numerics.grid import Grid
from fractrain.numerics.quantize import quantize_reference
from fractrain.numerics.stochastic_rounding import NoiseKey

KEY = NoiseKey(0x89ABCDEF, 0xFEDCBA98, 12345)
FORMATS = [cls(g) for cls in (Affine, Symmetric) for g in (PerTensor(), PerAxis(0))]


def measured(
    x: torch.Tensor, fmt: Format, bits: Any, noise: NoiseKey | None, code_bits: int, kernels: Kernels,
    known: tuple[float, float] | None = None,
) -> Measured | None:  # fmt: skip
    """What the short cut gives, if there is one."""
    form = fmt.uniform
    backend = backend_for(x.device, kernels)
    return None if form is None else backend.quantize_measured(x, form, bits, noise, code_bits, known, False)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [*SHAPES, (5,), (3, 2, 65, 51), (2, 40_001)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_as_the_general_path(fmt, noise, shape, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for bits in (2, 5, 8, 9, 16):
            x = tensor(shape, bits)
            got = measured(x, fmt, bits, noise, bits, "fused")
            assert got is not None
            assert got.codes is not None
            grid = fmt.grid(fmt.limits(x, "reference"), bits, x)
            want, codes = quantize_reference(x, grid, noise, bits)
            assert codes is not None
            assert torch.equal(got.values, want)
            assert torch.equal(got.codes.codes, codes.codes)
            assert torch.equal(got.codes.values(), want)
            assert (*got.limits, got.bad) == (float(x.min()), float(x.max()), False)
            lazily = got.codes.grid() if callable(got.codes.grid) else got.codes.grid
            assert isinstance(lazily, Grid)
            for name in ("scale", "offset", "qmin", "qmax"):
                assert torch.equal(getattr(lazily, name).expand(shape), getattr(grid, name).expand(shape))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 65, 51), (4, 1, 3, 3), (5, 7, 1, 1)], ids=str)
def test_nearest_reads_images_in_either_layout(fmt, shape) -> None:
    x = tensor(shape, 0).contiguous()
    got = measured(x, fmt, 8, None, 8, "fused")
    assert got is not None
    assert got.values is not None
    assert got.codes is not None
    want, codes = quantize_reference(x, fmt.grid(fmt.limits(x, "reference"), 8, x), None, 8)
    assert codes is not None
    assert got.values.stride() == got.codes.codes.stride() == x.stride()
    assert torch.equal(got.values, want)
    assert torch.equal(got.codes.codes, codes.codes)
    assert torch.equal(got.codes.values(), want)


@pytest.mark.parametrize("cls", [Affine, Symmetric])
def test_a_known_range_is_used(cls) -> None:
    x = tensor((4, 9), 0)
    got = measured(x, cls(), 4, None, 4, "fused", (-0.5, 0.25))
    grid = cls().grid((torch.tensor(-0.5), torch.tensor(0.25)), 4, x)
    assert got is not None
    assert torch.equal(got.values, quantize_reference(x, grid, None, 0)[0])


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_inf_and_nan_are_told_wherever_they_are(fmt, bad: float) -> None:
    for place in range(12):
        x = tensor((3, 4), 0)
        x.view(-1)[place] = bad
        got = measured(x, fmt, 8, None, 0, "fused")
        assert got is not None
        assert got.bad


class OwnGrid(Affine):
    """A method's own format."""


def test_it_steps_aside_where_it_does_not_apply() -> None:
    x = tensor((4, 6), 0)
    for y, fmt, bits, known in (
        (x, OwnGrid(), 8, None),
        (x, Affine(PerTile(2, 2)), 8, None),
        (x, Affine(PerAxis(1)), 8, None),
        (x, Affine(PerAxis(0)), 8, (-1.0, 1.0)),
        (x, Affine(statistic="mean"), 8, None),
        (x, Affine(), torch.full((3,), 8), None),
        (x, Affine(PerAxis(0)), torch.full((4,), 8), None),
        (x, Symmetric(), torch.full((4,), 8), None),
        (x[:, ::2], Affine(), 8, None),
    ):
        assert measured(y, fmt, bits, None, 0, "auto", known) is None
    image = tensor((2, 3, 4, 5), 0).contiguous()  # elements are numbered in the other order
    assert measured(image, Affine(), 8, KEY, 0, "auto") is None
    assert measured(x, Affine(), 8, None, 0, "reference") is None


@pytest.mark.parametrize("noise", [None, KEY], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("widths", [(3, 6, 4, 3), (2, 0, 12, 16)])
@pytest.mark.parametrize("known", [None, (-0.5, 0.25)])
def test_one_width_per_sample_gives_the_bits_of_the_general_path(noise, widths, known) -> None:
    x, bits = tensor((4, 3, 5, 7), 1), torch.tensor(widths)
    got = measured(x, Affine(), bits, noise, max(widths), "fused", known)
    assert got is not None
    assert got.codes is not None
    limits = Affine().limits(x, "reference") if known is None else (torch.tensor(known[0]), torch.tensor(known[1]))
    want, codes = quantize_reference(x, Affine().grid(limits, bits, x), noise, max(widths))
    assert codes is not None
    assert torch.equal(got.values, want)
    assert torch.equal(got.codes.codes, codes.codes)
    assert torch.equal(got.codes.values(), want)
    assert callable(got.codes.grid)
    assert torch.equal(got.codes.grid().scale, Affine().grid(limits, bits, x).scale)
    x[2, 1] = float("nan")
    bad = measured(x, Affine(), bits, noise, 8, "fused")
    assert bad is not None
    assert bad.bad

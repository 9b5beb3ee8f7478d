"""Scaled formats against a slow loop over blocks in float64, on random and extreme tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from definitions import e8m0_exponent, round_to_values
from format_helpers import VECTORS, number, values_of

from fractrain.numerics.blocks import PerBlock, Place, cut, from_matrices, joined, matrices
from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT8, integer
from fractrain.numerics.formats import PerTensor
from fractrain.numerics.precision import Operand
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Multiplier, Step, TwoLevel
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform
from fractrain.util.errors import ConfigError

MX = E8M0()
ELEMENTS = {"e4m3fn": E4M3, "e5m2": E5M2, "e2m1": E2M1, "e2m3": E2M3, "e3m2": E3M2}
FORMATS = [
    Scaled(element=E4M3), Scaled(element=E5M2), Scaled(PerBlock(1, 0), scale=Multiplier(power_of_two=True)),
    Scaled(PerBlock(0, 1), scale=Multiplier(power_of_two=True)),
    *(Scaled(PerBlock(1, 32), element=e, scale=E8M0(mode=m))
      for e, m in product([E4M3, E5M2, E2M1, E2M3, E3M2], ["floor", "rceil", "ceil", "even"])),
    Scaled(PerBlock(32, 1), element=E4M3, scale=E8M0(margin=0.75)),
    Scaled(PerBlock(1, 32), element=integer(8, 6), scale=MX),
    Scaled(PerBlock(1, 16), element=E2M1, scale=TwoLevel()), Scaled(PerBlock(16, 16), element=E2M1, scale=TwoLevel()),
    Scaled(PerBlock(32, 32), element=INT8, scale=Step()), Scaled(PerBlock(1, 0), element=INT8, scale=Step(margin=0.9)),
    Scaled(PerBlock(1, 16), element=integer(4), scale=TwoLevel(margin=17 / 16, bound=256.0)),
]  # fmt: skip


def names(fmt: Scaled) -> str:
    mode = getattr(fmt.scale, "mode", "")
    return f"{fmt.name}{mode}-{fmt.block.rows}x{fmt.block.cols}"


def tensor(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Columns and rows of very different size; a zero row."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=gen) * torch.exp2(
        torch.randint(-20, 20, (shape[0], *[1] * (len(shape) - 1)), generator=gen)
    )
    x[shape[0] // 2] = 0.0
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def slow_factors(fmt: Scaled, amax: float, whole: float) -> tuple[float, float]:
    """(what a block is multiplied by, what its rounded values are), as float32 gives them."""
    f32 = lambda v: torch.tensor(v, dtype=torch.float32).item()  # noqa: E731
    scale, largest, values = fmt.scale, fmt.element.max, values_of(fmt.element)
    if isinstance(scale, E8M0):
        k = e8m0_exponent(amax, values, scale.mode, fmt.element.mantissa_bits)
        return f32(math.ldexp(1.0, -k) / scale.margin), f32(math.ldexp(1.0, k) * scale.margin)
    if isinstance(scale, Multiplier):
        to = f32(largest / (max(amax, 1e-12) * scale.margin))
        to = 2.0 ** math.floor(math.log2(to)) if scale.power_of_two else to
        return to, f32(1 / to)
    if isinstance(scale, Step):
        back = f32(f32(amax * f32(scale.margin)) / largest)
        return f32(1 / max(back, f32(1e-12))), back
    assert isinstance(scale, TwoLevel)
    top = f32(f32(whole * scale.margin) / (scale.bound * largest))
    block = round_to_values(f32(f32(f32(amax * scale.margin) / largest) / top) if top else 0.0, values_of(E4M3))
    back = f32(block * top)
    return (min(f32(1 / back), torch.finfo(torch.float32).max) if back else 0.0), back


def slow(fmt: Scaled, x: torch.Tensor, place: Place, u: torch.Tensor | None = None) -> torch.Tensor:
    m = matrices(x, place, fmt.block)
    out = torch.zeros_like(m)
    whole, values = m.abs().max().item(), values_of(fmt.element)
    groups, rows, cols = m.shape
    high, wide = fmt.block.rows or rows, fmt.block.cols or cols
    for g, r, c in product(range(groups), range(0, rows, high), range(0, cols, wide)):
        part = (g, slice(r, r + high), slice(c, c + wide))
        to, back = slow_factors(fmt, m[part].abs().max().item(), whole)
        block = (m[part] * torch.tensor(to, dtype=torch.float32)).tolist()
        noise = None if u is None else u[part].tolist()
        q = [[round_to_values(v, values, None if noise is None else noise[i][j]) for j, v in enumerate(row)]
             for i, row in enumerate(block)]  # fmt: skip
        out[part] = torch.tensor(q, dtype=torch.float32) * torch.tensor(back, dtype=torch.float32)
    return from_matrices(out, x.shape, place, fmt.block)


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("fmt", FORMATS, ids=names)
@pytest.mark.parametrize(("shape", "role", "rows"), [
    ((5, 40), "A", 0), ((33, 7), "W", 0), ((2, 20, 3, 2), "A", 0), ((20, 5, 3, 3), "W", 0), ((2, 12, 9), "A", 6),
])  # fmt: skip
def test_values_and_codes_are_those_of_the_slow_loop(fmt, shape, role, rows, kernels):
    x, place = tensor(shape, 3), Place(role, rows, keep=True, kernels=kernels)
    done = fmt.quantize(x, fmt.bits, None, None, place)
    expected = slow(fmt, x, place)
    assert torch.equal(done.values, expected)
    assert torch.equal(torch.signbit(done.values), torch.signbit(expected))
    assert torch.equal(done.codes.values(), expected)
    assert done.limits[1] == x.abs().max()


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("fmt", FORMATS, ids=names)
def test_stochastic_rounding_is_that_of_the_slow_loop(fmt, kernels):
    x, place, key = tensor((4, 36), 5), Place(kernels=kernels), NoiseKey(5, 6, 7)
    done = replace(fmt, rounding="stochastic").quantize(x, fmt.bits, key, None, place)
    u = uniform(key, element_numbers(torch.Size((1, 4, 36)), x.device))
    assert torch.equal(done.values, slow(fmt, x, place, u))


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("fmt", FORMATS, ids=names)
def test_zeros_subnormals_and_extremes(fmt, kernels):
    x = torch.zeros(4, 64)
    assert torch.equal(fmt.quantize(x, fmt.bits, place=Place(kernels=kernels)).values, x)
    for tiny in (1e-45, 1e-40, 2e-38):
        x[1] = tiny
        done = fmt.quantize(x, fmt.bits, place=Place(keep=True, kernels=kernels))
        assert torch.equal(done.values, slow(fmt, x, Place()))
        assert done.values.isfinite().all()
        assert (done.values - x).abs().max() <= x[1, 0]
        assert torch.equal(done.codes.values(), done.values)
    x[2] = torch.linspace(-2.5, 2.5, 64) * 1e38  # above, some round to 2^128, which float32 does not have
    done = fmt.quantize(x, fmt.bits, place=Place(kernels=kernels))
    assert torch.equal(done.values, slow(fmt, x, Place()))
    assert done.values.isfinite().all()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("fmt", FORMATS, ids=names)
def test_inf_and_nan_show_in_the_limits(fmt, bad, kernels):
    x = torch.ones(3, 33)
    x[1, 32] = bad
    assert not fmt.quantize(x, fmt.bits, place=Place(kernels=kernels)).limits[1].isfinite()


def test_stored_mx_blocks():
    """Scale byte and codes from another library's run."""
    assert len(VECTORS["mx"]) == 54
    for case in VECTORS["mx"]:
        x = torch.tensor([[number(v) for v in case["x"]]], dtype=torch.float32)
        fmt = Scaled(PerBlock(1, 32), element=ELEMENTS[case["element"]], scale=E8M0(mode=case["rule"]))
        kept = fmt.quantize(x, fmt.bits, place=Place(keep=True)).codes.codes
        codes = kept[:-1]
        if fmt.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 1).reshape(-1)
        assert (kept[-1].item(), codes.tolist()) == (case["scale byte"], case["codes"])


@pytest.mark.parametrize(("fmt", "most"), [
    (Scaled(), 1.001), (Scaled(PerBlock(1, 32), scale=MX), 1.032),
    (Scaled(PerBlock(1, 16), element=E2M1, scale=TwoLevel()), 0.564),
    (Scaled(PerBlock(1, 32), element=E2M1, scale=MX), 0.532),
    (Scaled(PerBlock(1, 0), element=INT8, scale=Step()), 1.07),
    (Scaled(PerBlock(32, 32), element=INT8, scale=Step()), 1.005),
])  # fmt: skip
def test_few_bytes_are_kept(fmt, most):
    x = torch.randn(64, 64)
    kept = fmt.quantize(x, fmt.bits, place=Place(keep=True)).codes
    assert kept.nbytes() / x.numel() <= most


@pytest.mark.parametrize("shape", [(7, 5), (33, 65), (1, 1), (2, 3, 5), (2, 5, 3, 4), (6, 4, 3, 3)])
@pytest.mark.parametrize("block", [PerBlock(1, 32), PerBlock(2, 3), PerBlock(0, 1), PerBlock(1, 0), PerBlock(0, 0)])
@pytest.mark.parametrize("role", ["A", "W"])
def test_cutting_and_joining_are_inverse(shape, block, role):
    x = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    m = matrices(x, Place(role), block)
    assert torch.equal(from_matrices(joined(cut(m, block), m.shape), x.shape, Place(role), block), x)


def test_blocks_of_a_weight_lie_along_the_reduction_of_each_product():
    w = torch.zeros(64, 32, 3, 3)
    w[0, 0, 1, 1] = 2.0**20
    w[1, 0, 1, 1] = w[0, 1, 1, 1] = w[0, 0, 0, 0] = w[32, 0, 1, 1] = 1.0  # neighbours along out, in, place; next block
    fw = Scaled(PerBlock(1, 32), scale=MX).quantize(w, 8, place=Place("W")).values
    eb = Scaled(PerBlock(32, 1), scale=MX).quantize(w, 8, place=Place("W")).values
    # beside the large one, in the block of its scale, they vanish
    assert (fw[0, 1, 1, 1], fw[1, 0, 1, 1], fw[0, 0, 0, 0], fw[32, 0, 1, 1]) == (0, 1, 1, 1)
    assert (eb[0, 1, 1, 1], eb[1, 0, 1, 1], eb[0, 0, 0, 0], eb[32, 0, 1, 1]) == (1, 0, 1, 1)


def test_a_float_format_has_one_width():
    with pytest.raises(ConfigError, match="e4m3/float32 has 8 bits per element, got 6 bits"):
        Operand(6, Scaled())
    with pytest.raises(ConfigError, match="got a map of widths"):
        Operand(torch.tensor([8, 8]), Scaled())
    assert Operand.of(Scaled(element=E2M1)).bits == 4
    assert Operand.of(Scaled()).describe() == "e4m3/float32 8 b, PerTensor, nearest"
    assert Scaled().granularity == PerTensor()


def test_the_compiled_casts_are_taken_on_this_machine():
    from fractrain.kernels.cpu.scaled_blocks import load_blocks, probed_blocks

    assert probed_blocks() is load_blocks()


@pytest.mark.parametrize("block", [PerBlock(1, 32), PerBlock(32, 1), PerBlock(16, 16), PerBlock(5, 1)])
def test_weights_in_channels_last_memory_take_the_compiled_casts(block: PerBlock):
    from fractrain.numerics.backend import backend_for

    w = torch.randn(16, 24, 3, 3, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    form, place = Scaled(block, element=E4M3, scale=E8M0()), Place("W", keep=True)
    served = backend_for(w.device, "fused").quantize_blocks(form, matrices(w, place, block), None, None, place)
    assert (served is None) == (block.rows == 5)  # 16 rows do not end with a block of five
    plain, fast = (form.quantize(w, 8, None, None, replace(place, kernels=k)) for k in ("reference", "fused"))
    assert torch.equal(plain.values, fast.values)
    assert torch.equal(plain.codes.codes, fast.codes.codes)
    assert torch.equal(plain.codes.values(), fast.codes.values())


@pytest.mark.parametrize("block", [PerBlock(1, 32), PerBlock(32, 1), PerBlock(0, 1), PerBlock(1, 0), PerBlock(0, 0)])
def test_tensors_that_are_views_of_others_are_cast_alike(block: PerBlock):
    """Transposed, sliced and expanded ones: what a model's own products are given."""
    whole = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    form = Scaled(block, element=E4M3, scale=Multiplier() if 0 in (block.rows, block.cols) else E8M0())
    for x in (whole.t(), whole[:, ::2], whole[::2, 1:65], whole[:1].expand(32, 96), whole.view(64, 2, 48)[:, 1]):
        assert not x.is_contiguous()
        plain, fast = (form.quantize(x, 8, None, None, Place(keep=True, kernels=k)) for k in ("reference", "fused"))
        assert torch.equal(plain.values, fast.values)
        assert torch.equal(plain.codes.codes, fast.codes.codes)
        assert torch.equal(plain.codes.values(), fast.codes.values())

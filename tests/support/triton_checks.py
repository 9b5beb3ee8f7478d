"""Run by test_quant_triton.py in a process of its own: the GPU's kernels in Triton's interpreter, on CPU tensors.

Prints one JSON object: for each check how many comparisons it made and which of them failed.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
from quant_helpers import Check, tensor

from fractrain.kernels.cuda import backend as gpu_backend
from fractrain.kernels.cuda import launch as device
from fractrain.kernels.cuda import scaled_blocks
from fractrain.kernels.cuda.launch import Launcher, agrees, covered
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.state import QuantState
from fractrain.numerics import backend, formats
from fractrain.numerics.backend import Quantized, Uniform
from fractrain.numerics.blocks import PerBlock, Place
from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, integer
from fractrain.numerics.formats import Affine, PerAxis, PerTile, Symmetric
from fractrain.numerics.grid import Grid
from fractrain.numerics.nvfp4 import Eden, FourOverSix
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.quantize import quantize, quantize_reference, row_limits
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Multiplier, Step, TwoLevel
from fractrain.numerics.stochastic_rounding import MASK32, NoiseKey

KEY = NoiseKey(0x89ABCDEF, 0xFEDCBA98, 1_000_003)
KEPT = NoiseKey(torch.tensor(KEY.k0), torch.tensor(KEY.k1), KEY.base)  # in memory, where a recorded step finds them
REAL = (device.BLOCK, device.SHORT, device.STEPS)
BLOCK, SHORT, STEPS = 64, 32, 2  # what the checks run with: in the interpreter a program costs milliseconds
SHAPES = [(1, 1), (7, 5), (1, BLOCK + 1), (3, SHORT), (4, 3, 5), (2, 3, 5, 4), (1, 3, 1, 1), (2, 5, 3, 3), (2, BLOCK)]
NAN, INF = float("nan"), float("inf")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape, dtype, memory order and every bit (except which nan it is)."""
    if a.shape != b.shape or a.dtype != b.dtype or a.stride() != b.stride():
        return False
    if a.dtype != torch.float32:
        return torch.equal(a, b)
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def grids(x: torch.Tensor, bits: object) -> list[tuple[formats.Format, Grid]]:
    all_formats = [cls(g) for cls in (Affine, Symmetric) for g in (formats.PerTensor(), PerAxis(0))]
    return [(fmt, fmt.grid(fmt.limits(x, "reference"), bits, x)) for fmt in all_formats]


def compare(check: Check, gpu: Launcher, x: torch.Tensor, grid: Grid, noise: NoiseKey | None, bits: int, *what) -> None:
    plain, plain_codes = quantize_reference(x, grid, noise, bits)
    values, codes = gpu.quantize(x, grid, noise, bits)
    check(same(values, plain), "values", *what)
    check(same(codes, plain_codes.codes), "codes", *what)
    check(same(gpu.dequantize(codes, grid), plain), "restored", *what)


def check_shapes(check: Check, gpu: Launcher) -> None:
    for number, shape in enumerate(SHAPES):
        bits = (2, 8, 9, 16)[number % 4]
        x = tensor(shape, bits, scale=2.0)
        for place, (fmt, grid) in enumerate(grids(x, bits)):
            noise = KEY if (place + number // 4) % 2 else None
            compare(check, gpu, x, grid, noise, bits, shape, bits, fmt, noise)


def check_widths(check: Check, gpu: Launcher) -> None:
    x = tensor((2, 61), 0)
    for bits in range(2, 17):
        for fmt, grid in grids(x, bits)[bits % 2 :: 2]:
            compare(check, gpu, x, grid, None, bits, bits, fmt)
    grid = grids(x, 4)[0][1]
    compare(check, gpu, x, grid, None, 16, "stored wide")
    values, codes = gpu.quantize(x, grid, None, 0)
    check(codes is None and same(values, quantize_reference(x, grid, None, 0)[0]), "codes not asked for")


def check_width_per_sample(check: Check, gpu: Launcher) -> None:
    for shape in ((4, 9), (4, 3, 5, 2)):
        for widths in ([0, 2, 5, 8], [16, 0, 7, 11]):
            x = tensor(shape, 0)
            for fmt, grid in grids(x, torch.tensor(widths)):
                check(covered(x, grid), "covered", fmt)
                compare(check, gpu, x, grid, KEY, max(widths), shape, widths, fmt)


def check_noise(check: Check, gpu: Launcher) -> None:
    """Keys with their top bits set and clear; numbers of samples that another process holds; the last number of all."""
    x = tensor((2, 3, 7, 11), 0)
    grid = Affine().grid(Affine().limits(x, "reference"), 3, x)
    plain = []
    for k0, k1, base in (
        (0, 0, 0),
        (1, MASK32, 16),
        (1 << 31, 5, 231),
        (7, 1 << 31, (1 << 31) - 100),
        (MASK32, 1, MASK32 - 462),
    ):
        compare(check, gpu, x, grid, NoiseKey(k0, k1, base), 3, k0, k1, base)
        plain.append(quantize_reference(x, grid, NoiseKey(k0, k1, base), 3)[0])
    check(all(not torch.equal(a, b) for a, b in pairwise(plain)), "keys differ")
    whole, _ = gpu.quantize(x, grid, NoiseKey(3, 4), 0)
    second, _ = gpu.quantize(x[1:], grid, NoiseKey(3, 4, x.numel() // 2), 0)
    check(torch.equal(whole[1:], second), "the second sample alone")
    for noise in (NoiseKey(1, 2, MASK32 - 461), NoiseKey(1, 2, 1 << 32)):
        try:
            gpu.quantize(x, grid, noise, 0)
            check(False, "too many numbers")
        except ValueError as error:
            check("2**32" in str(error), error)


def check_special_values(check: Check, gpu: Launcher) -> None:
    grid = Grid(*(torch.tensor(v) for v in (1.0, 0.0, -3.0, 7.0)))
    x = torch.tensor([[NAN, INF, -INF, -9.0, 9.0, 0.5, 1.5, 2.5, -0.5, -1.5, 6.5, 3e38, -3e38, 1e-45, -1e-45, -0.0]])
    want = [7, -3, -3, 7, 0, 2, 2, 0, -2, 6, 7, -3, 0, 0, 0]
    got = gpu.quantize(x, grid, None, 0)[0][0]
    check(bool(got[0].isnan()) and got[1:].tolist() == want, got)
    for noise in (None, KEY, KEPT):
        for g in (grid, Grid(*(torch.tensor(v) for v in (0.3, -1.7, 0.0, 255.0)))):
            check(same(gpu.quantize(x, g, noise, 0)[0], quantize_reference(x, g, noise, 0)[0]), noise, g)
    ties = (torch.arange(-40, 40) / 2).view(8, 10)
    wide = Grid(*(torch.tensor(v) for v in (1.0, 0.0, -100.0, 100.0)))
    check(
        gpu.quantize(ties, wide, None, 0)[0].flatten().tolist() == [round(v) for v in ties.flatten().tolist()], "ties"
    )


def check_limits(check: Check, gpu: Launcher) -> None:
    for shape in [*SHAPES, (2, STEPS * BLOCK + 1), (9,)]:
        for shift in (-30.0, 30.0):
            x = tensor(shape, 1, shift=shift)
            rows = x.reshape(shape[0], -1)
            low, high = gpu.limits(x)
            check(torch.equal(low, rows.amin(1)) and torch.equal(high, rows.amax(1)), shape, shift)
    x = torch.tensor([[0.0, 1e-45, 2.0], [-1e-45, -3e38, 3e38], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    low, high = gpu.limits(x)
    check(torch.equal(low, x.amin(1)) and torch.equal(high, x.amax(1)), "extreme numbers")


def check_many_parts(check: Check, gpu: Launcher) -> None:
    """More parts than the second stage reads at once, with the extremes in the last of them; blocks as on a GPU."""
    x = tensor((1, BLOCK * STEPS * (SHORT + 1) + 3), 2)
    for place in (-1, 0, BLOCK * STEPS, BLOCK * STEPS * SHORT):
        marked = x.clone()
        marked[0, place], marked[0, place - 2] = 50.0, -60.0
        low, high = gpu.limits(marked)
        check((low.item(), high.item()) == (-60.0, 50.0), place, low, high)
    block, short, steps = REAL
    with (
        patch.object(device, "BLOCK", block),
        patch.object(device, "SHORT", short),
        patch.object(device, "STEPS", steps),
    ):
        for shape in ((2, block + 1), (3, short + 1), (1, block * steps + 1)):
            x = tensor(shape, 3)
            fmt, grid = grids(x, 8)[0]
            got = gpu.quantize_measured(x, form(fmt), 8, KEY, 8)
            check(same(got.values, quantize_reference(x, grid, KEY, 8)[0]), shape)


def form(fmt: formats.Format) -> Uniform:
    return Uniform(isinstance(fmt, Symmetric), isinstance(fmt.granularity, PerAxis))


def check_flag(check: Check, gpu: Launcher) -> None:
    for shape, fmt in (
        ((1, 1), Affine()),
        ((2, STEPS * BLOCK + 5), Symmetric(PerAxis(0))),
        ((2, 3, 4, 5), Symmetric()),
    ):
        x = tensor(shape, 0)
        check(not gpu.quantize_measured(x, form(fmt), 8, None, 0).bad, shape, fmt, "finite")
        check(not gpu.quantize_measured(x / x.abs().max() * 1e38, form(fmt), 8, None, 0).bad, shape, fmt, "large")
        for value in (NAN, -NAN, INF, -INF):
            bad = tensor(shape, 0)
            bad[(-1,) * bad.dim()] = value
            result = gpu.quantize_measured(bad, form(fmt), 8, None, 0)
            check(bool(result.bad) and result.bad.shape == (), shape, fmt, value)
            finite = torch.isfinite(torch.stack(result.limits)).all()
            check(not finite, shape, fmt, value, "shows in the range")
    x = tensor((4, 6), 0)
    x[2, 3] = NAN
    check(gpu._range(x, 4, 1.0, False, False)[1].tolist() == [False, False, True, False], "per row")


def check_measured(check: Check, gpu: Launcher) -> None:
    """Range, grid and values in three launches: the limits, the grid and the values of the general path."""
    for number, shape in enumerate([*SHAPES[2:6], (2, STEPS * BLOCK + 7)]):
        shift, bits, noise = ((5.0, 8, KEY), (-5.0, 12, None))[number % 2]
        x = tensor(shape, bits, shift=shift)
        for fmt, grid in grids(x, bits):
            plain, plain_codes = quantize_reference(x, grid, noise, bits)
            got = gpu.quantize_measured(x, form(fmt), bits, noise, bits)
            what = (shape, bits, fmt)
            check(same(got.values, plain) and same(got.codes.codes, plain_codes.codes), *what)
            check(same(got.codes.values(), plain), *what, "restored by the plain path")
            for name in ("scale", "offset", "qmin", "qmax"):
                a, b = getattr(got.codes.grid, name), getattr(grid, name)
                check(torch.equal(a.broadcast_to(grid.scale.shape), b.broadcast_to(grid.scale.shape)), *what, name)
            limits = fmt.limits(x, "reference")
            check(all(torch.equal(a, b) for a, b in zip(got.limits, limits, strict=True)), *what, "limits")
    constant = torch.full((3, 5), 2.5)
    for fmt, grid in grids(constant, 8):
        got = gpu.quantize_measured(constant, form(fmt), 8, None, 8)
        check(same(got.values, quantize_reference(constant, grid, None, 8)[0]), "constant", fmt)


def check_what_is_covered(check: Check, gpu: Launcher) -> None:
    x = tensor((4, 6), 0)
    scalar, column = torch.tensor(1.0), torch.ones(4, 1)
    usual = Grid(scalar, scalar, scalar, scalar)
    check(covered(x, usual) and covered(x, Grid(column, scalar, column, scalar)), "rows and scalars")
    check(not covered(x, Grid(torch.ones(6), scalar, scalar, scalar)), "one per column")
    check(not covered(x, Grid(torch.ones(1, 6), scalar, scalar, scalar)), "one per column")
    check(not covered(x, Grid(scalar.double(), scalar, scalar, scalar)), "float64 grid")
    check(not covered(x.double(), usual) and not covered(x.half(), usual), "dtypes")
    check(not covered(x[:, ::2], usual) and not covered(x.t(), usual), "strides")
    check(not covered(torch.randn(2, 3, 4, 5), usual) and covered(tensor((2, 3, 4, 5), 0), usual), "memory order")
    check(not covered(x[:0], usual) and not covered(scalar, usual), "empty or without axes")


def check_dispatch(check: Check, gpu: Launcher) -> None:
    """The general functions and a layer, told that the kernels apply to CPU tensors."""
    seen = []

    def launcher_for(x, grid=None):
        seen.append(x.dtype)
        return gpu if covered(x, grid) else None

    x = tensor((3, 4, 5, 6), 0)
    limits = row_limits(x, "reference")
    backend.backend_for.cache_clear()
    with (
        patch.dict(backend.MODULES, cpu=backend.MODULES["cuda"]),
        patch.object(gpu_backend, "launcher_for", launcher_for),
    ):
        check(all(torch.equal(a, b) for a, b in zip(row_limits(x), limits, strict=True)), "limits")
        for fmt, grid in grids(x, 8):
            values, codes = quantize(x, grid, KEY, 8)
            plain, plain_codes = quantize_reference(x, grid, KEY, 8)
            check(same(values, plain) and same(codes.codes, plain_codes.codes), fmt)
            check(isinstance(codes, Quantized) and codes.rows is None and same(codes.values(), plain), fmt)
        there = backend.backend_for(x.device, "auto")
        check(Affine(PerTile(2, 2)).uniform is None, "tiles")
        check(Affine(statistic="mean").uniform is None, "mean")
        widths = torch.tensor([8, 4, 2])
        check(there.quantize_measured(x, Affine().uniform, widths, None, 0, None, False) is None, "widths")
        check(backend.backend_for(x.device, "reference") is backend.PLAIN, "reference")
        check(set(seen) == {torch.float32, torch.uint8}, seen)
        for w in (Symmetric(PerAxis(0)), Affine()):
            layer_check(check, x, w)


def layer_check(check: Check, x: torch.Tensor, weight_format: formats.Format) -> None:
    results = []
    for kind in ("reference", "auto"):
        error = Operand(6, Affine(rounding="stochastic"))
        precision = Precision.of(Operand(4, Affine(), running=0.9), Operand(5, weight_format), error)
        torch.manual_seed(0)
        state = QuantState(3, kernels=kind)
        layer = QuantConv2d(torch.nn.Conv2d(4, 3, 3), precision, state, "conv")
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        (y * y).sum().backward()
        results.append([y.detach(), inputs.grad, layer.weight.grad, layer.running_low, layer.running_high])
        check(state.bad_site() is None, kind)
    check(all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "layer", weight_format)
    with torch.no_grad():
        layer(torch.full_like(x, INF))
    check(state.bad_site() == ("conv", "input"), state.bad_site())


def check_rescale(check: Check, gpu: Launcher) -> None:
    gen = torch.Generator().manual_seed(1)
    for shape in ((1, 1), (3, SHORT), (2, SHORT + 1), (5, BLOCK + 7), (17, 8)):
        terms = device._some_terms(*shape, gen, torch.device("cpu"))
        for top in (1 << 10, 1 << 30):
            sums = torch.randint(-top, top, shape, dtype=torch.int32, generator=gen)
            check(same(gpu.rescale(sums, terms), device.rescale_reference(sums, terms)), shape, top)
        one = [*terms[:2], terms[2][:1].expand(shape[1]), *terms[3:]]
        check(same(gpu.rescale(sums, one), device.rescale_reference(sums, one)), shape, "one scale")


def check_blocks(check: Check, gpu: Launcher) -> None:
    """Elements, scales, blocks and edges; 4-bit codes of an odd number of elements; zeros and tiny and huge blocks."""
    blocks = scaled_blocks.load()
    shapes = ((3, 50), (2, 5, 21), (1, 7), (2, 35, 3, 2))
    elements = (E4M3, E5M2, E2M1, E2M3, E3M2, INT8, INT4, integer(8, 6))
    rules = (E8M0(), E8M0(mode="even", margin=1.1), TwoLevel(), Multiplier(), Step())
    cuts = (PerBlock(1, 32), PerBlock(16, 1), PerBlock(16, 16), PerBlock(1, 0), PerBlock(0, 1), PerBlock(0, 0))
    for number, element in enumerate(elements):
        for place, block in enumerate(cuts):
            fmt = Scaled(block, element=element, scale=rules[(number + place) % len(rules)])
            for noise in (None, KEY, KEPT):
                x = tensor(shapes[(number + place) % len(shapes)], number, scale=3.0)
                check(scaled_blocks.same_bits(blocks, fmt, x, noise), fmt, x.shape, noise)
    extreme = tensor((4, 64), 1) * torch.logspace(-40, 38, 64)
    extreme[1], extreme[2, :32], extreme[3, 5] = 0.0, 1e-42, -0.0
    ties = torch.arange(-64, 64).view(2, 64) / 8
    for fmt in (Scaled(PerBlock(1, 32), element=E2M1, scale=E8M0()), Scaled(element=E4M3), FourOverSix()):
        for x in (extreme, ties):
            check(scaled_blocks.same_bits(blocks, fmt, x), fmt, "extreme numbers and ties")
    for value in (NAN, INF, -INF):
        x = tensor((2, 64), 2).abs()
        x[1, 40] = value
        fmt = Scaled(PerBlock(1, 32), element=E4M3, scale=E8M0())
        m, place = x[None], Place(kernels="reference")
        scales, _ = fmt.scales_of(scaled_blocks.cut(m, fmt.block), None, place)
        check(same(blocks.quantize(fmt, m, scales, None, False)[0][0], fmt.quantize(x, 8, place=place).values), value)


def check_block_dispatch(check: Check, gpu: Launcher) -> None:
    """Formats, told that the kernels apply to CPU tensors; what they do not serve takes the plain path."""
    launcher, seen = scaled_blocks.load(), []

    def launcher_for(form, x, served):
        serves = type(form).__name__ in served and form.element.overflow == "saturate"
        seen.append((type(form).__name__, served, serves))
        return launcher if serves else None

    x = tensor((3, 32, 5, 6), 0)
    special = replace(E4M3, overflow="special")
    formats_ = (Scaled(PerBlock(1, 32), element=E4M3, scale=E8M0()), FourOverSix(), Eden(), Scaled(element=special))
    plain = [fmt.quantize(x, fmt.bits, KEY, None, Place(keep=True, kernels="reference")) for fmt in formats_]
    backend.backend_for.cache_clear()
    with (
        patch.dict(backend.MODULES, cpu=backend.MODULES["cuda"]),
        patch.object(scaled_blocks, "launcher_for", launcher_for),
    ):
        for fmt, want in zip(formats_, plain, strict=True):
            got = fmt.quantize(x, fmt.bits, KEY, None, Place(keep=True))
            check(same(got.values, want.values) and same(got.codes.codes, want.codes.codes), fmt)
            check(same(got.codes.values(), want.values) and torch.equal(got.limits[1], want.limits[1]), fmt, "kept")
        known = (torch.tensor(-2.0), torch.tensor(2.0))
        fmt = Scaled()
        got, want = (fmt.quantize(x, 8, None, known, Place(kernels=k)) for k in ("auto", "reference"))
        check(same(got.values, want.values), "a range of before")
    backend.backend_for.cache_clear()
    check([name for name, _, serves in seen if serves].count("Eden") == 1, "restored alone", seen)


def check_block_probe(check: Check, gpu: Launcher) -> None:
    blocks = scaled_blocks.load()
    check(scaled_blocks.agrees(blocks, torch.device("cpu")), "these kernels")

    def broken(name: str, index: int) -> bool:
        class Launch:
            def __getitem__(self, grid):
                def call(*args, **options):
                    args = [a + 1 if i == index else a for i, a in enumerate(args)]
                    return blocks.module.__dict__[name][grid](*args, **options)

                return call

        parts = {"round_blocks": blocks.module.round_blocks, "restore_blocks": blocks.module.restore_blocks}
        module = SimpleNamespace(**{**parts, name: Launch()})
        return scaled_blocks.agrees(scaled_blocks.BlockLauncher(module), torch.device("cpu"))

    check(not broken("round_blocks", 16), "another number of the first element")
    check(not broken("round_blocks", 14), "another unit")
    check(not broken("restore_blocks", 8), "blocks of another width")


def check_probe(check: Check, gpu: Launcher) -> None:
    check(agrees(gpu, torch.device("cpu")), "these kernels")

    def broken(name: str, change) -> bool:
        """Whether the probe accepts kernels of which one is given other arguments."""
        parts = {n: getattr(gpu.module, n) for n in ("extremes", "finish", "quantize", "dequantize", "rescale")}

        class Launch:
            def __getitem__(self, grid):
                return lambda *args, **options: gpu.module.__dict__[name][grid](*change(list(args)), **options)

        return agrees(Launcher(SimpleNamespace(**{**parts, name: Launch()})), torch.device("cpu"))

    def more(index: int):
        return lambda args: [a + 1 if i == index else a for i, a in enumerate(args)]

    check(not broken("quantize", more(16)), "another first number")
    check(not broken("dequantize", more(10)), "another shift")
    check(not broken("finish", more(6)), "another highest code")
    check(not broken("rescale", lambda args: [*args[:4], args[4] + 1, *args[5:]]), "another scale")


def main() -> None:
    gpu = device.load()
    device.BLOCK, device.SHORT, device.STEPS = BLOCK, SHORT, STEPS
    results = {}
    for name, run in sorted(globals().items()):
        if name.startswith("check_"):
            check = Check()
            run(check, gpu)
            results[name.removeprefix("check_")] = {"made": check.made, "failed": check.failed[:5]}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

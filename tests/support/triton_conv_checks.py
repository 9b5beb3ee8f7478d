"""Run by test_quant_int8_conv.py in a process of its own: int8 convolutions in Triton's interpreter, on CPU tensors.

Prints one JSON object: for each check how many comparisons it made and which of them failed.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
from quant_helpers import Check, tensor
from torch.nn import functional as F

from fractrain.experimental import int8_conv
from fractrain.experimental.int8_conv import ConvLauncher
from fractrain.kernels.cpu.int8 import MAX_TERMS
from fractrain.kernels.geometry import Geometry
from fractrain.layers.conv_linear import QuantConv2d
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, Format, PerAxis, Symmetric
from fractrain.numerics.grid import Grid
from fractrain.numerics.precision import Operand, Precision, fractrain_precision
from fractrain.numerics.quantize import quantize

TILE = (64, 16, 32)  # so that small shapes need several tiles
CPU = torch.device("cpu")
GEOMETRIES = [
    (2, Geometry((5, 7, 6), 9, (3, 3), (1, 1), (1, 1))),
    (1, Geometry((32, 4, 3), 17, (2, 2), (1, 1), (1, 1))),  # whole blocks of channels; one filter beyond a tile
    (3, Geometry((7, 6, 5), 16, (1, 1), (1, 1), (0, 0))),  # a whole tile of filters: its sums in a tile of their own
    (2, Geometry((3, 7, 8), 5, (3, 3), (2, 2), (1, 1))),
    (2, Geometry((4, 6, 6), 6, (1, 1), (2, 2), (0, 0))),  # pixels that nothing reads
    (1, Geometry((2, 5, 4), 2, (5, 5), (1, 1), (2, 2))),
    (2, Geometry((6, 5, 6), 4, (3, 2), (2, 1), (0, 2))),
    (1, Geometry((24, 3, 4), 3, (1, 2), (1, 1), (0, 1))),  # more channels than a tile, but no whole tiles
    (1, Geometry((1, 4, 3), 1, (1, 1), (1, 1), (2, 2))),  # outputs that lie outside
    (2, Geometry((3, 3, 3), 4, (3, 3), (1, 1), (0, 0))),  # one output
]


def coded(shape: tuple[int, ...], seed: int, fmt: Format, bits: int, shift: float) -> tuple[torch.Tensor, Quantized]:
    """Values in float64 by codes and grid, and the codes; ``shift`` moves zero about and out of the range."""
    x = tensor(shape, seed, shift=shift)
    _, codes = quantize(x, fmt.grid(fmt.limits(x, "reference"), bits, x), None, bits, "reference")
    return values(codes), codes


def values(q: Quantized) -> torch.Tensor:
    g = q.grid
    return (q.codes.double() + g.qmin.double()) * g.scale.double() + g.offset.double()


def on(codes: torch.Tensor, offset: float, scale: float = 1.0) -> Quantized:
    return Quantized(codes, Grid(*(torch.tensor(v) for v in (scale, offset, 0.0, 255.0))))


def backward(e: torch.Tensor, a: torch.Tensor, w: torch.Tensor, g: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a float64 convolution, by autograd."""
    a, w = a.clone().requires_grad_(), w.clone().requires_grad_()
    return torch.autograd.grad(F.conv2d(a, w, None, g.stride, g.padding), (a, w), e)


def near(got: torch.Tensor, want: torch.Tensor, size: torch.Tensor, ulps: float = 16) -> bool:
    """Whether a float32 result is that of float64 but for its roundings, given the sums of absolute values."""
    return got.shape == want.shape and bool(((got.double() - want).abs() <= ulps * 2.0**-24 * size).all())


def check_forward(check: Check) -> None:
    weights = (Affine(PerAxis(0)), Symmetric(PerAxis(0)), Affine(), Symmetric())
    for number, (count, g) in enumerate(GEOMETRIES):
        shifts = ((0.0, 3.0), (-40.0,), (3.0,))[number % 3]
        for place, shift in enumerate(shifts):
            bits = (8, 2, 5)[(number + place) % 3]
            a, a_codes = coded((count, *g.image), 0, (Affine(), Symmetric())[number % 2], bits, shift)
            shape = (g.filters, g.image[0], *g.kernel)
            w, w_codes = coded(shape, 1, weights[(number + place) % 4], 10 - bits, 0.3)
            bias = tensor((g.filters,), 2) if place else None
            more = torch.zeros(g.filters) if bias is None else bias
            if number == 0:  # weights in the memory order of a model that is not in channels-last memory
                w_codes.codes = w_codes.codes.contiguous()
            got = int8_conv.forward(a_codes, w_codes, bias, g)
            want = F.conv2d(a, w, more.double(), g.stride, g.padding)
            size = F.conv2d(a.abs(), w.abs(), more.abs().double(), g.stride, g.padding)
            check(got.is_contiguous(memory_format=torch.channels_last) and got.dtype == torch.float32, g)
            check(near(got, want, size), g, shift, bits)


def check_backward(check: Check) -> None:
    for number, (count, g) in enumerate(GEOMETRIES):
        shift, bits = (0.0, 3.0)[number % 2], (8, 8, 3)[number % 3]
        e, e_codes = coded((count, g.filters, *g.output), 3, (Affine(), Symmetric())[number // 2 % 2], bits, shift)
        a, a_codes = coded((count, *g.image), 4, Affine(), 8, 2 * shift)
        w, w_codes = coded((g.filters, g.image[0], *g.kernel), 5, (Affine(), Symmetric())[number % 2], bits, 0.3)
        right, size = backward(e, a, w, g), backward(e.abs(), a.abs(), w.abs(), g)
        da, dw = int8_conv.input_gradient(e_codes, w_codes, g), int8_conv.weight_gradient(e_codes, a_codes, g)
        check(da.is_contiguous(memory_format=torch.channels_last), g)
        check(near(da, right[0], size[0]), "EB", g, shift, bits)
        check(near(dw, right[1], size[1], 1.01), "GC: one rounding", g, shift, bits)


def check_extremes(check: Check) -> None:
    """Codes of the ends in all four ways, with zero at the ends and inside; grids on which results are integers."""
    g = Geometry((3, 4, 3), 3, (3, 3), (1, 1), (1, 1))
    sizes = ((2, *g.image), (g.filters, g.image[0], *g.kernel), (2, g.filters, *g.output))
    for first, second, zero in product((0, 255), (0, 255), (0.0, -77.0, -255.0)):
        a, w, e = (torch.full(s, c, dtype=torch.uint8) for s, c in zip(sizes, (first, second, second), strict=True))
        e[0], w[::2] = first, 0
        qa, qw, qe = on(a, zero), on(w, -128.0), on(e, zero)
        da, dw = backward(values(qe), values(qa), values(qw), g)
        want = F.conv2d(values(qa), values(qw), None, g.stride, g.padding)
        check(torch.equal(int8_conv.forward(qa, qw, None, g), want.float()), "FW", first, second, zero)
        check(torch.equal(int8_conv.input_gradient(qe, qw, g), da.float()), "EB", first, second, zero)
        check(torch.equal(int8_conv.weight_gradient(qe, qa, g), dw.float()), "GC", first, second, zero)


def check_longest_sums(check: Check) -> None:
    """As many terms as int32 holds in FW and EB; in GC more, which is cut."""
    with patch.object(int8_conv, "TILE", (16, 16, 4096)), patch.object(int8_conv, "PROGRAMS", 1):
        terms = MAX_TERMS // 9
        g = Geometry((terms, 3, 3), 2, (3, 3), (1, 1), (0, 0))
        w = torch.zeros((2, terms, 3, 3), dtype=torch.uint8)
        w[1] = 255
        for code, zero in ((255, 0.0), (0, -254.6)):
            x = on(torch.full((1, terms, 3, 3), code, dtype=torch.uint8), zero)
            got = int8_conv.forward(x, on(w, -128.0), None, g)
            want = F.conv2d(values(x), values(on(w, -128.0)))
            check(near(got, want, want.abs(), 4), "FW", code, zero)
        e = on(torch.zeros((1, terms, 1, 1), dtype=torch.uint8), -255.0)
        back = Geometry((1, 3, 3), terms, (3, 3), (1, 1), (0, 0))
        check(bool((int8_conv.input_gradient(e, on(torch.zeros((terms, 1, 3, 3), dtype=torch.uint8), -128.0), back)
                    == 255 * 128 * terms).all()), "EB")  # fmt: skip
        side = 363
        g = Geometry((1, side, side), 1, (1, 1), (1, 1), (0, 0))
        check(side * side > int8_conv.MOST_AT_ONCE, "more terms than int32 holds")
        for first, second in ((0, 0), (255, 0)):
            e, a = (on(torch.full((1, 1, side, side), c, dtype=torch.uint8), -128.0) for c in (first, second))
            want = float(torch.tensor((first - 128.0) * (second - 128.0) * side * side))
            check(int8_conv.weight_gradient(e, a, g).item() == want, "GC", first, second)


def check_parts(check: Check) -> None:
    """GC does not depend on how it is cut, to the last bit."""
    count, g = 2, GEOMETRIES[0][1]
    e = coded((9 * count, g.filters, *g.output), 6, Affine(), 8, 0.2)
    a = coded((9 * count, *g.image), 7, Affine(), 8, 1.0)
    nothing = torch.zeros(g.filters, 5, 3, 3, dtype=torch.float64)
    results = []
    for programs in (1, 2, 7, 512):
        with patch.object(int8_conv, "PROGRAMS", programs):
            results.append(int8_conv.weight_gradient(e[1], a[1], g))
    right, size = (backward(x, y, nothing, g)[1] for x, y in ((e[0], a[0]), (e[0].abs(), a[0].abs())))
    check(near(results[0], right, size, 1.01), "one part")
    for result in results[1:]:
        check(torch.equal(result, results[0]), "parts")


def check_trial(check: Check) -> None:
    g = Geometry((2, 3, 3), 3, (2, 2), (2, 1), (1, 1))
    real = int8_conv.load()

    def accepts(name: str, argument: str, what: str) -> bool:
        """Whether the trial of a product accepts kernels of which one is given another argument."""

        class Launch:
            def __getitem__(self, grid: Any) -> Any:
                return lambda **args: getattr(real.module, name)[grid](**{**args, argument: change(args[argument])})

        def change(value: Any) -> Any:
            return value + 1 if isinstance(value, torch.Tensor) else value - 1

        parts = {n: getattr(real.module, n) for n in ("pack", "convolve", "correlate", "finish")}
        wrong = ConvLauncher(SimpleNamespace(**{**parts, name: Launch()}))
        with patch.object(int8_conv, "load", lambda: wrong):
            return int8_conv._exact(g, what, CPU)

    for what in ("forward", "input", "weight"):
        check(int8_conv._exact(g, what, CPU), what)
    for what, name, argument in (
        ("forward", "convolve", "add_ptr"), ("forward", "convolve", "values_ptr"), ("forward", "convolve", "height"),
        ("input", "convolve", "x_offset_ptr"), ("input", "convolve", "slope_ptr"), ("input", "pack", "terms"),
        ("weight", "correlate", "columns"), ("weight", "finish", "a_offset_ptr"),
    ):  # fmt: skip
        check(not accepts(name, argument, what), "accepted", what, name, argument)


def check_layer(check: Check) -> None:
    """A layer on the kernels gives what it gives on values, but for the order of sums."""
    per_tensor = Precision.of(Operand(8, Affine()), Operand(6, Affine()), Operand(8, Affine(rounding="stochastic")))
    for precision, stride in ((per_tensor, 2), (fractrain_precision(8, 8, 8), 1)):
        results = []
        for kind in ("reference", "auto"):
            torch.manual_seed(0)
            layer = QuantConv2d(torch.nn.Conv2d(4, 6, 3, stride, 1), precision, QuantState(3, kernels=kind), "conv")
            x = tensor((2, 4, 6, 5), 8, shift=0.3).requires_grad_()
            with patch.object(int8_conv, "DEVICES", {"cpu"}), patch.object(int8_conv, "LEAST_MACS", 1):
                y = layer(x)
                y.backward(tensor(tuple(y.shape), 9, scale=1e-3))
            results.append([y.detach(), x.grad, layer.weight.grad, layer.bias.grad])
        for plain, fast in zip(*results, strict=True):
            check(torch.allclose(fast, plain, rtol=0, atol=3e-6 * float(plain.abs().max())), stride)
        check(not torch.equal(results[0][2], results[1][2]), "GC ran on codes")
    check(int8_conv._tried.cache_info().currsize == 5, int8_conv._tried.cache_info())


def main() -> None:
    int8_conv.TILE, int8_conv.TRIAL = TILE, 2
    results = {}
    for name, run in sorted(globals().items()):
        if name.startswith("check_"):
            check = Check()
            run(check)
            results[name.removeprefix("check_")] = {"made": check.made, "failed": check.failed[:5]}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

"""Shared by the tests of fractrain.numerics and fractrain.layers: random tensors, groups of a granularity, references
in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from definitions import quantize_group

from fractrain.numerics.backend import Kernels, Quantized
from fractrain.numerics.formats import Format, PerAxis, PerTensor, PerTile, Symmetric
from fractrain.numerics.grid import Grid
from fractrain.numerics.quantize import quantize
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform

Array = npt.NDArray[np.float64]
SHAPES = [(7, 5), (1, 1), (1, 9), (4, 3, 5), (3, 4, 5, 6), (2, 1, 3, 3), (1, 3, 1, 1), (5, 3, 1, 2)]


def tensor(shape: tuple[int, ...], seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """A normal random tensor; 4-D ones in channels-last memory."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def groups_of(shape: tuple[int, ...], granularity: Any) -> list[tuple[tuple[int, ...], npt.NDArray[np.intp]]]:
    """Flat (row-major) element indices that share a range, with the group's coordinates; by plain loops."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    if isinstance(granularity, PerTensor):
        return [((), index.reshape(-1))]
    if isinstance(granularity, PerAxis):
        return [((i,), np.take(index, i, axis=granularity.axis).reshape(-1)) for i in range(shape[granularity.axis])]
    assert isinstance(granularity, PerTile)
    if len(shape) == 4:  # rows of the matrix view: every position of the channel vector
        matrix = np.array([[index[n, c, h, w] for c in range(shape[1])]
                           for n in range(shape[0]) for h in range(shape[2]) for w in range(shape[3])])  # fmt: skip
    else:
        matrix = index.reshape(-1, shape[-1])
    r, c = granularity.rows, granularity.cols
    return [
        ((i // r, j // c), matrix[i : i + r, j : j + c].reshape(-1))
        for i in range(0, matrix.shape[0], r)
        for j in range(0, matrix.shape[1], c)
    ]


def expected(
    x: torch.Tensor, fmt: Format, bits: int | torch.Tensor, noise: NoiseKey | None
) -> tuple[Array, Array, Array, Array]:
    """(values, codes, step, distance of v to the nearest rounding boundary), group by group in float64."""
    shape = tuple(x.shape)
    flat = x.double().contiguous().view(-1).numpy()
    u = None if noise is None else uniform(noise, element_numbers(x.shape, x.device)).double().reshape(-1).numpy()
    out = [np.zeros(flat.shape) for _ in range(4)]
    for where, members in groups_of(shape, fmt.granularity):
        lo, hi = float(flat[members].min()), float(flat[members].max())
        for b, part in _by_width(bits, fmt, shape, where, members):
            got = quantize_group(
                flat[part], b, symmetric=isinstance(fmt, Symmetric), lo=lo, hi=hi, noise=None if u is None else u[part]
            )
            symmetric = isinstance(fmt, Symmetric)
            top = 1 if not b else 2 ** (b - 1) - 1 if symmetric else 2**b - 1
            step = max((max(abs(lo), abs(hi)) if symmetric else hi - lo) / top, 1e-8)
            v = (flat[part] - (0.0 if symmetric else lo)) / step
            away = np.abs(v - np.floor(v) - (0.5 if u is None else u[part]))
            if u is not None:  # floor jumps at integers
                away = np.minimum(away, np.abs(v - np.rint(v)))
            error = 2.0**-22 * np.abs(v)  # four float32 roundings: range, step, difference, quotient
            for o, value in zip(out, (*got, np.full(len(part), step), away - error), strict=True):
                o[part] = value
    return out[0].reshape(shape), out[1].reshape(shape), out[2].reshape(shape), out[3].reshape(shape)


def _by_width(
    bits: int | torch.Tensor, fmt: Format, shape: tuple[int, ...], where: tuple[int, ...], members: Any
) -> Iterator[tuple[int, Any]]:
    if isinstance(bits, int):
        yield bits, members
    elif isinstance(fmt.granularity, PerTile):
        yield int(bits[where]), members
    else:  # one width per sample: the first index
        sample = members // int(np.prod(shape[1:]))
        for s in np.unique(sample):
            yield int(bits[s]), members[sample == s]


def run(
    x: torch.Tensor, fmt: Format, bits: int | torch.Tensor, noise: NoiseKey | None = None, kernels: Kernels = "auto",
    code_bits: int | None = None,
) -> tuple[torch.Tensor, Quantized, Grid]:  # fmt: skip
    """Quantize with measured limits and return (values, codes, grid)."""
    grid = fmt.grid(fmt.limits(x, kernels), bits, x)
    widest = int(bits.max()) if isinstance(bits, torch.Tensor) else bits
    values, codes = quantize(x, grid, noise, code_bits or max(widest, 2), kernels)
    assert codes is not None
    return values, codes, grid


def integer_codes(q: Quantized, grid: Grid) -> torch.Tensor:
    """Stored codes back on the grid's own scale (qmin..qmax)."""
    shift = 0.0 if q.codes.dtype == torch.uint8 else 32768.0
    return q.codes.double() + grid.qmin.double() + shift


def plain_uniform(k0: int, k1: int, number: int) -> float:
    """The noise of one element on Python integers, written from the description in the module's docstring."""
    mask = (1 << 32) - 1
    h = number * 0x1E3779B1 & mask ^ k0
    h ^= h >> 16
    h = h * 0x21F0AAAD & mask
    h ^= h >> 15
    h ^= k1
    h = h * 0x735A2D97 & mask
    h ^= h >> 15
    return (h >> 8) / 2**24


def watch(layer: Any) -> dict[str, torch.Tensor]:
    """Collect the quantized operands of a layer by operand name."""
    seen: dict[str, torch.Tensor] = {}

    def observer(_layer: Any, name: str, _op: Any, _x: torch.Tensor, values: torch.Tensor) -> None:
        seen[name] = values.detach().clone()

    layer.observer = observer
    return seen


def slow_sum(pairs: Iterator[tuple[int, int]] | list[tuple[int, int]], unit: int = 1) -> dict[tuple[int, int], int]:
    """Count pairs."""
    out: dict[tuple[int, int], int] = {}
    for pair in pairs:
        out[pair] = out.get(pair, 0) + unit
    return out


Factory = Callable[..., Any]


class Check:
    """Counts comparisons and keeps the names of those that failed."""

    def __init__(self) -> None:
        self.made = 0
        self.failed: list[str] = []

    def __call__(self, ok: bool, *what: object) -> None:
        self.made += 1
        if not ok:
            self.failed.append(" ".join(map(str, what)))

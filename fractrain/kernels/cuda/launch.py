"""Quantize on a GPU with the Triton kernels: launchers, the probe of a device, and when the kernels apply.

Nothing here waits for the device, except the probe, once per process and device: results, ranges and whether they were
finite stay there. A tensor that the kernels do not cover takes the plain path, which gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any, TypeVar

import torch

from fractrain.numerics.backend import SHIFT16, Kernels, Measured, Quantized, Uniform
from fractrain.numerics.formats import Affine, PerAxis, Symmetric
from fractrain.numerics.grid import MIN_SCALE, Grid
from fractrain.numerics.quantize import quantize_reference, row_limits
from fractrain.numerics.stochastic_rounding import MASK32, NoiseKey

BLOCK = 1024  # elements per program and step; rows shorter than that take SHORT at a time
SHORT = 256
STEPS = 8  # blocks that a program of the first stage of a range reads
EXACT: Any = {"enable_fp_fusion": False}  # no fused multiply-add: it would round once where the plain path rounds twice

log = logging.getLogger(__name__)
Some = TypeVar("Some")


@dataclass(frozen=True)
class Launcher:
    """Launches the kernels of one module; tensors must be :func:`covered` and on one device."""

    module: ModuleType

    def limits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Smallest and largest value per index of the first axis, float32 ``[x.shape[0]]``; they show inf and nan."""
        out, _ = self._range(x, x.shape[0], 1.0, grid=False, symmetric=False)
        return out[0], out[1]

    def quantize(
        self, x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values and codes (or None) of ``x`` on a grid with one parameter per tensor or index of the first axis."""
        params = (grid.scale, grid.offset, grid.qmin, grid.qmax)
        rows = max(p.numel() for p in params)
        columns, parts, block = _cut(x, rows, 1)
        values, codes, shift = torch.empty_like(x), None, 0.0
        if code_bits:
            codes = torch.empty_like(x, dtype=torch.int16 if code_bits > 8 else torch.uint8)
            shift = SHIFT16 if code_bits > 8 else 0.0
        key = (0, 0, 0) if noise is None else words(noise, x.numel())
        keys = kept_keys(noise)
        with current(x):
            self.module.quantize[(rows * parts,)](
                x, values, values if codes is None else codes, *params, *(keys or (x, x)),
                *(int(p.numel() > 1) for p in params), columns, parts, shift, *key,
                STOCHASTIC=noise is not None, CODES=codes is not None, KEYS=keys is not None, BLOCK=block, **EXACT,
            )  # fmt: skip
        return values, codes

    def dequantize(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Values, float32, of codes on such a grid."""
        params = (grid.scale, grid.offset, grid.qmin)
        rows = max(p.numel() for p in params)
        columns, parts, block = _cut(codes, rows, 1)
        values = torch.empty_like(codes, dtype=torch.float32)
        shift = 0.0 if codes.dtype == torch.uint8 else SHIFT16
        steps = (int(p.numel() > 1) for p in params)
        with current(codes):
            args = (codes, values, *params, *steps, columns, parts, shift)
            self.module.dequantize[(rows * parts,)](*args, BLOCK=block, **EXACT)
        return values

    def rescale(self, sums: torch.Tensor, terms: Sequence[torch.Tensor]) -> torch.Tensor:
        """:func:`rescale_reference` in one pass; all contiguous."""
        out = torch.empty(sums.shape, device=sums.device)
        columns, parts, block = _cut(sums, sums.shape[0], 1)
        with current(sums):
            self.module.rescale[(sums.shape[0] * parts,)](
                sums, out, *(t.contiguous() for t in terms), columns, parts, BLOCK=block, **EXACT
            )
        return out

    def quantize_measured(
        self, x: torch.Tensor, form: Uniform, bits: int, noise: NoiseKey | None, code_bits: int
    ) -> Measured:
        """Measure, derive the grid, quantize: three launches."""
        per_row = form.per_row
        top = float(2 ** (bits - 1) - 1 if form.symmetric else 2**bits - 1)
        out, bad = self._range(x, x.shape[0] if per_row else 1, top, grid=True, symmetric=form.symmetric)
        low, high, *params = out.view(6, -1, *([1] * (x.dim() - 1))) if per_row else out.view(6)
        grid = Grid(*params)
        values, codes = self.quantize(x, grid, noise, code_bits)
        kept = None if codes is None else Quantized(codes, grid)
        return Measured(values, kept, (low, high), bad.any() if per_row else bad.view(()))

    def _range(
        self, x: torch.Tensor, rows: int, top: float, grid: bool, symmetric: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both stages: (``[2, rows]``, or with ``grid`` ``[6, rows]``; not finite, bool ``[rows]``)."""
        columns, parts, block = _cut(x, rows, STEPS)
        low, high = torch.empty(2, rows * parts, dtype=torch.int32, device=x.device)
        out = torch.empty(6 if grid else 2, rows, dtype=torch.float32, device=x.device)
        bad = torch.empty(rows, dtype=torch.uint8, device=x.device)
        with current(x):
            self.module.extremes[(rows * parts,)](x, low, high, columns, parts, STEPS=STEPS, BLOCK=block)
            args = (low, high, out, bad, rows, parts, top, MIN_SCALE)
            self.module.finish[(rows,)](*args, GRID=grid, SYMMETRIC=symmetric, BLOCK=SHORT, **EXACT)
        return out, bad.view(torch.bool)


def rescale(sums: torch.Tensor, terms: Sequence[torch.Tensor], kernels: Kernels = "auto") -> torch.Tensor:
    """What :func:`rescale_reference` returns, by a kernel where there is one."""
    launcher = probed(sums.device) if sums.device.type == "cuda" and kernels != "reference" else None
    return rescale_reference(sums, terms) if launcher is None else launcher.rescale(sums, terms)


def rescale_reference(sums: torch.Tensor, terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Integer sums of a product to its values.

    Args:
        sums: int32 ``[R, C]``.
        terms: what is added to the sums of each row and column (int32 ``[R]``, ``[C]``), scale of each column, and what
            is added then: the product of the fourth ``[R]`` and the fifth ``[C]``, and the sixth ``[C]``; float32.

    Returns:
        float32 ``[R, C]``.
    """
    add_rows, add_columns, scale, of_rows, by_columns, of_columns = terms
    whole = sums + add_rows[:, None] + add_columns
    return whole.float() * scale + of_rows[:, None] * by_columns + of_columns


def covered(x: torch.Tensor, grid: Grid | None = None) -> bool:
    """Whether the kernels can read a tensor (float32 or codes, dense) and take these parameters (not per tile)."""
    if x.dtype not in (torch.float32, torch.uint8, torch.int16) or x.numel() == 0 or x.dim() == 0:
        return False
    dense = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.is_contiguous()
    if grid is None or not dense:
        return dense
    n = x.shape[0]
    params = (grid.scale, grid.offset, grid.qmin, grid.qmax)
    if any(p.numel() != 1 and (p.numel() != n or p.dim() != x.dim() or p.shape[0] != n) for p in params):
        return False
    return all(p.device == x.device and p.dtype == torch.float32 and p.is_contiguous() for p in params)


def launcher_for(x: torch.Tensor, grid: Grid | None = None) -> Launcher | None:
    """The launcher to use for a tensor, or None where the plain path must do."""
    return probed(x.device) if x.device.type == "cuda" and covered(x, grid) else None


@cache
def load() -> Launcher | None:
    """Import the kernels, or return None (with one log line) where Triton is absent."""
    try:
        from fractrain.kernels.cuda import triton_quantize as triton_kernels
    except ImportError as problem:
        log.warning("GPU quantizers are not available (%s); using the plain path", problem)
        return None
    return Launcher(triton_kernels)


@cache
def probed(device: torch.device) -> Launcher | None:
    """The launcher if it gives exactly the plain path's bits on this very device, else None with one log line."""
    return passing(load(), agrees, device, "GPU quantizers")


def passing(launcher: Some | None, same: Callable[[Some, torch.device], bool], device: torch.device, what: str
            ) -> Some | None:  # fmt: skip
    """A launcher if ``same`` says that it gives the plain path's bits on a device, else None with one log line."""
    if launcher is None:
        return None
    try:
        equal = same(launcher, device)
    except Exception as problem:  # no compiler, no driver, an old device: Triton has no base class for what it raises
        log.warning("%s do not run on %s (%s: %s); using the plain path",
                    what, device, type(problem).__name__, str(problem).partition("\n")[0])  # fmt: skip
        return None
    if not equal:
        log.warning("%s differ from the plain path on %s; using the plain path", what, device)
    return launcher if equal else None


def agrees(launcher: Launcher, device: torch.device) -> bool:
    """Compare the kernels with the plain path, on random inputs on this device; waits for the results."""
    gen = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 5, 4), (2, STEPS * BLOCK // 2 + 9)):  # the second: several parts in every launch
        x = torch.randn(shape, generator=gen).to(device)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        if not _equal(launcher.limits(x), row_limits(x, "reference")):
            return False
        formats = ((Affine(), Uniform(False, False)), (Symmetric(PerAxis(0)), Uniform(True, True)))
        for (fmt, form), bits in product(formats, (5, 8, 12)):
            limits = fmt.limits(x, "reference")
            grid = fmt.grid(limits, bits, x)
            keys = NoiseKey(123, 0xFEDCBA98, 7)
            kept = torch.tensor([keys.k0, keys.k1], device=device)
            for noise in (None, keys, NoiseKey(kept[0], kept[1], keys.base)):
                plain, plain_codes = quantize_reference(x, grid, noise, bits)
                fast = launcher.quantize_measured(x, form, bits, noise, bits)
                assert plain_codes is not None
                assert fast.codes is not None
                back = launcher.dequantize(fast.codes.codes, grid)
                got: Any = (*fast.limits, fast.values, fast.codes.codes, back)
                if fast.bad or not _equal(got, (*limits, plain, plain_codes.codes, plain)):
                    return False
        if x.dim() == 2:
            terms = _some_terms(x.shape[0], x.shape[1], gen, device)
            sums = (x * 1e6).int()
            if not torch.equal(launcher.rescale(sums, terms), rescale_reference(sums, terms)):
                return False
    return True


def _some_terms(rows: int, columns: int, gen: torch.Generator, device: torch.device) -> list[torch.Tensor]:
    """Terms for :func:`rescale_reference`, drawn on the CPU."""
    whole = [torch.randint(-(1 << 20), 1 << 20, (n,), dtype=torch.int32, generator=gen) for n in (rows, columns)]
    parts = [torch.randn(n, generator=gen) for n in (columns, rows, columns, columns)]
    return [t.to(device) for t in (*whole, *parts)]


def _equal(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _cut(x: torch.Tensor, rows: int, steps: int) -> tuple[int, int, int]:
    """Columns per row, parts (programs) per row, and elements per block."""
    columns = x.numel() // rows
    block = BLOCK if columns >= BLOCK else SHORT
    return columns, -(-columns // (block * steps)), block


def words(noise: NoiseKey, count: int) -> tuple[int, ...]:
    """The three words of a key as signed 32-bit integers; zero for those that are kept in tensors."""
    if noise.base + count > MASK32:
        raise ValueError(f"stochastic rounding numbers at most 2**32 elements, got {noise.base + count}")
    given = (0 if isinstance(w, torch.Tensor) else w for w in (noise.k0, noise.k1, noise.base))
    return tuple(w - (1 << 32) if w >> 31 else w for w in given)


def kept_keys(noise: NoiseKey | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The first two words of a key where they are kept in tensors."""
    if noise is None or not (isinstance(noise.k0, torch.Tensor) and isinstance(noise.k1, torch.Tensor)):
        return None
    return noise.k0, noise.k1


def current(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device the current one: Triton launches there."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()

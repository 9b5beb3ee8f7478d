"""Quantize a tensor onto a grid: plain torch (any device, any granularity) or fused, the same bits.

Fused are the CPU's kernels here (numba) and the GPU's in :mod:`fractrain.kernels.cuda.launch` (Triton).

``auto`` takes the fused path where it applies after a probe that checks, once per process, that it gives exactly the
plain path's result on this machine; otherwise the plain path, with one log line saying why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch

from fractrain.kernels.cpu import memory as blocks
from fractrain.numerics.grid import Grid, RowGrid
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform
from fractrain.numerics.tiles import PerTile, matrix_size, tile_blocks, tile_counts

if TYPE_CHECKING:
    from fractrain.kernels.cuda.launch import Launcher

Kernels = Literal["auto", "reference", "fused"]
SHIFT16 = 32768.0  # 9..16-bit codes are stored in int16, moved down by 2^15
PARALLEL_FROM = 1 << 16  # elements; below, starting threads costs more than it saves

log = logging.getLogger(__name__)
_THREADS = threading.local()  # how many were last set: numba's number is one per thread, and slow to set


@dataclass
class Kept:
    """A quantized tensor as it is kept for backward.

    Attributes:
        codes: what autograd keeps.
    """

    codes: torch.Tensor

    def values(self) -> torch.Tensor:
        """The values, float32; 4-D ones in channels-last memory."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Bytes kept."""
        raise NotImplementedError

    def emptied(self) -> Self:
        """The same without its codes, which autograd keeps; ``replace(kept, codes=...)`` puts them back."""
        return replace(self, codes=self.codes.new_empty(0))


@dataclass
class Quantized(Kept):
    """A quantized tensor: integer codes and their grid; ``value = (code + shift + qmin) * scale + offset``.

    Attributes:
        codes: uint8 up to 8 bits, int16 above (code - qmin - 2^15), of the shape and layout of the tensor.
        grid: parameters, broadcastable to the tensor, or what computes them (where they take more room than the codes).
        kernels: which path restores the values.
        rows: the grid per row where it is at hand in that form.
    """

    grid: Grid | Callable[[], Grid]
    kernels: Kernels = "auto"
    rows: RowGrid | None = None

    def values(self) -> torch.Tensor:
        """Return the values in the type of the grid, in the layout of the codes."""
        shift = 0.0 if self.codes.dtype == torch.uint8 else SHIFT16
        rows, g = self.rows, None
        if rows is None:
            g = self.grid if isinstance(self.grid, Grid) else self.grid()
            if g.tile is not None:
                return _restore_tiles(self.codes, g, g.tile, self.kernels, shift)
            gpu = _gpu(self.codes, self.kernels, g)
            if gpu is not None:
                return gpu.dequantize(self.codes, g)
            rows = _rows(self.codes, g, self.kernels)
        if rows is not None:
            out = blocks.empty_like(self.codes, dtype=torch.float32)
            fused = rows.module.dequantize[rows.parallel]
            fused(flat(self.codes), rows.scale, rows.offset, rows.qmin, flat(out), np.float32(shift))
            return out
        assert g is not None
        return (self.codes.to(g.scale.dtype) + (g.qmin + shift)) * g.scale + g.offset

    def take(self, rows: np.ndarray) -> Quantized:
        """Some samples of a tensor that compiled kernels have quantized."""
        assert self.rows is not None
        codes = self.codes[torch.from_numpy(rows)]
        form = torch.channels_last if codes.dim() == 4 else torch.contiguous_format
        return Quantized(codes.contiguous(memory_format=form), self.grid, self.kernels, self.rows.take(rows))

    def nbytes(self) -> int:
        """Bytes kept for backward: the codes, and the parameters of the grid where they are kept."""
        g = self.grid
        kept = (self.codes, *((g.scale, g.offset, g.qmin, g.qmax) if isinstance(g, Grid) else ()))
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


def quantize(
    x: torch.Tensor, grid: Grid, noise: NoiseKey | None = None, code_bits: int = 0, kernels: Kernels = "auto"
) -> tuple[torch.Tensor, Quantized | None]:
    """Move ``x`` to the grid.

    Args:
        x: float tensor.
        grid: parameters broadcastable to ``x``, or per tile.
        noise: key for stochastic rounding; None rounds to nearest, ties to even.
        code_bits: widest width in use when the codes are wanted as well (uint8 up to 8, int16 up to 16), 0 for values
            only.
        kernels: ``auto``, ``reference`` or ``fused``.

    Returns:
        (values in the dtype of ``x``, codes or None).
    """
    if grid.tile is not None:
        return _quantize_tiles(x.detach(), grid, grid.tile, noise, code_bits, kernels)
    gpu = _gpu(x, kernels, grid)
    if gpu is not None:
        values, codes = gpu.quantize(x.detach(), grid, noise, code_bits)
        return values, None if codes is None else Quantized(codes, grid, kernels)
    rows = _rows(x, grid, kernels)
    if rows is not None:
        x = x.detach()
        rounded, codes = quantize_rows(x, flat(x), rows, noise, code_bits)
        assert rounded is not None
        return rounded, None if codes is None else Quantized(codes, grid, kernels, rows)
    return quantize_reference(x, grid, noise, code_bits)


def quantize_reference(
    x: torch.Tensor, grid: Grid, noise: NoiseKey | None, code_bits: int
) -> tuple[torch.Tensor, Quantized | None]:
    """The plain torch path of :func:`quantize`."""
    v = (x - grid.offset) / grid.scale
    if noise is None:
        q = v.round()
    else:
        f = v.floor()
        q = f + (uniform(noise, element_numbers(x.shape, x.device)) < v - f).to(v.dtype)
    q = torch.minimum(torch.maximum(q, grid.qmin), grid.qmax)
    values = q * grid.scale + grid.offset
    if not code_bits:
        return values, None
    wide = code_bits > 8
    codes = (q - (grid.qmin + (SHIFT16 if wide else 0.0))).to(torch.int16 if wide else torch.uint8)
    return values, Quantized(codes, grid, "reference")


def row_limits(x: torch.Tensor, kernels: Kernels = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value per index of the first axis, float tensors ``[x.shape[0]]``; inf and nan show in them.

    Args:
        x: float tensor, not empty.
        kernels: ``auto``, ``reference`` or ``fused``.
    """
    gpu = _gpu(x, kernels)
    if gpu is not None:
        return gpu.limits(x.detach())
    module = None
    if kernels != "reference" and x.device.type == "cpu" and x.dtype == torch.float32 and _dense(x):
        module = load_fused()
    if module is None:
        rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        lo, hi = rows.reshape(x.shape[0], -1).aminmax(dim=1)
        return lo, hi
    n = x.shape[0]
    low, high = torch.empty(n), torch.empty(n)
    out = (low.numpy().view(np.int32), high.numpy().view(np.int32))
    module.extremes[_parallel(x)](flat(x.detach()).view(np.int32), *out)
    return low, high


def _gpu(x: torch.Tensor, kernels: Kernels, grid: Grid | None = None) -> Launcher | None:
    """What launches the GPU's kernels where they apply, else None; without a GPU nothing of it is imported."""
    if x.device.type != "cuda":
        return None
    from fractrain.kernels.cuda.launch import launcher_for

    return launcher_for(x, kernels, grid)


def tile_limits(x: torch.Tensor, tile: PerTile, kernels: Kernels = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value per tile, ``[row tiles, column tiles]`` each; inf and nan show in them."""
    fused = _tiles_for(x, kernels)
    if fused is None:
        return tile_blocks(x, tile, float("inf")).amin((1, 3)), tile_blocks(x, tile, float("-inf")).amax((1, 3))
    module, parallel = fused
    low, high = torch.empty(2, *tile_counts(x.shape, tile))
    out = (low.numpy().view(np.int32), high.numpy().view(np.int32))
    module.extremes[parallel](_matrix(x.detach()).view(np.int32), tile.rows, tile.cols, *out)
    return low, high


def _tiles_for(x: torch.Tensor, kernels: Kernels) -> tuple[ModuleType, bool] | None:
    """As :func:`fused_for`, for the kernels with one grid per tile."""
    if kernels == "reference" or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.uint8, torch.int16):
        return None
    module = load_fused_tiles() if kernels == "fused" else probed_tiles()
    if module is None or not _dense(x) or x.numel() == 0:
        return None
    return module, _parallel(x)


def _matrix(x: torch.Tensor) -> np.ndarray:
    """The matrix view of a dense tensor as a numpy view."""
    return flat(x).reshape(matrix_size(x.shape))


def _tile_params(grid: Grid, counts: tuple[int, int], names: tuple[str, ...]) -> list[np.ndarray]:
    """Parameters as contiguous float32 ``[row tiles, column tiles]``."""
    return [np.ascontiguousarray(np.broadcast_to(getattr(grid, n).numpy(), counts), np.float32) for n in names]


def _quantize_tiles(
    x: torch.Tensor, grid: Grid, tile: PerTile, noise: NoiseKey | None, code_bits: int, kernels: Kernels
) -> tuple[torch.Tensor, Quantized | None]:
    fused = _tiles_for(x, kernels)
    if fused is None:
        values, codes = quantize_reference(x, grid.full(x.shape), noise, code_bits)
        return values, None if codes is None else Quantized(codes.codes, grid, kernels)  # do not keep the full grid
    m, parallel = fused
    values = blocks.empty_like(x)
    params = _tile_params(grid, tile_counts(x.shape, tile), ("scale", "offset", "qmin", "qmax"))
    args = (_matrix(x), tile.rows, tile.cols, *params, _matrix(values))
    key = () if noise is None else (np.uint32(noise.k0), np.uint32(noise.k1), np.uint32(_first(noise, x)))
    if not code_bits:
        (m.nearest_values if noise is None else m.stochastic_values)[parallel](*args, *key)
        return values, None
    wide = code_bits > 8
    kept = blocks.empty_like(x, dtype=torch.int16 if wide else torch.uint8)
    more = (_matrix(kept), np.float32(SHIFT16 if wide else 0.0))
    (m.nearest_codes if noise is None else m.stochastic_codes)[parallel](*args, *more, *key)
    return values, Quantized(kept, grid, kernels)


def _restore_tiles(codes: torch.Tensor, grid: Grid, tile: PerTile, kernels: Kernels, shift: float) -> torch.Tensor:
    fused = _tiles_for(codes, kernels) if grid.scale.dtype == torch.float32 else None
    if fused is None:
        g = grid.full(codes.shape)
        return (codes.to(g.scale.dtype) + (g.qmin + shift)) * g.scale + g.offset
    out = blocks.empty_like(codes, dtype=torch.float32)
    params = _tile_params(grid, tile_counts(codes.shape, tile), ("scale", "offset", "qmin"))
    fused[0].dequantize[fused[1]](_matrix(codes), tile.rows, tile.cols, *params, _matrix(out), np.float32(shift))
    return out


def _parallel(x: torch.Tensor) -> bool:
    """Whether to use several threads, with numba's number of threads set to torch's."""
    threads = torch.get_num_threads()
    if threads == 1 or x.numel() < PARALLEL_FROM:
        return False
    if getattr(_THREADS, "set", None) != threads:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        _THREADS.set = threads
    return True


def flat(x: torch.Tensor) -> np.ndarray:
    """Return a ``[rows, columns]`` numpy view in memory order (channels last for 4-D)."""
    if x.dim() == 4:
        x = x.permute(0, 2, 3, 1)
    return x.reshape(x.shape[0] if x.dim() else 1, -1).numpy()


def _dense(x: torch.Tensor) -> bool:
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() > 0 and x.is_contiguous()


def _per_row(p: torch.Tensor, n: int) -> np.ndarray:
    return np.full(n, p.item(), np.float32) if p.numel() == 1 else p.reshape(-1).numpy()


def fused_for(x: torch.Tensor, kernels: Kernels) -> tuple[ModuleType, bool] | None:
    """The compiled kernels and whether to run them on several threads, or None where the plain path must do."""
    if kernels == "reference" or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.uint8, torch.int16):
        return None
    module = load_fused() if kernels == "fused" else probed()
    if module is None or not _dense(x) or x.numel() == 0:
        return None
    return module, _parallel(x)


def _rows(x: torch.Tensor, grid: Grid, kernels: Kernels) -> RowGrid | None:
    """Parameters per row where the fused path applies, else None."""
    fused = fused_for(x, kernels) if grid.scale.dtype == torch.float32 else None
    if fused is None:
        return None
    n = x.shape[0]
    params = (grid.scale, grid.offset, grid.qmin, grid.qmax)
    if any(p.numel() != 1 and (p.numel() != n or p.dim() != x.dim() or p.shape[0] != n) for p in params):
        return None
    return RowGrid(*fused, *(_per_row(p, n) for p in params))


def quantize_rows(
    x: torch.Tensor, data: np.ndarray, rows: RowGrid, noise: NoiseKey | None, code_bits: int, only_codes: bool = False
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Values (None if only codes are wanted) and codes (or None) by the compiled kernels; ``data`` is ``flat(x)``."""
    values = None if only_codes else blocks.empty_like(x)
    args = (data, rows.scale, rows.offset, rows.qmin, rows.qmax, *(() if values is None else (flat(values),)))
    m = rows.module
    key = () if noise is None else (np.uint32(noise.k0), np.uint32(noise.k1), np.uint32(_first(noise, x)))
    if not code_bits:
        (m.nearest_values if noise is None else m.stochastic_values)[rows.parallel](*args, *key)
        return values, None
    wide = code_bits > 8
    codes = blocks.empty_like(x, dtype=torch.int16 if wide else torch.uint8)
    more = (flat(codes), np.float32(SHIFT16 if wide else 0.0))
    if only_codes:
        (m.nearest_only if noise is None else m.stochastic_only)[rows.parallel](*args, *more, *key)
    else:
        (m.nearest_codes if noise is None else m.stochastic_codes)[rows.parallel](*args, *more, *key)
    return values, codes


def _first(noise: NoiseKey, x: torch.Tensor) -> int:
    if noise.base + x.numel() > 0xFFFFFFFF:
        raise ValueError(f"stochastic rounding numbers at most 2**32 elements, got {noise.base + x.numel()}")
    return noise.base


@lru_cache(maxsize=1)
def load_fused() -> ModuleType | None:
    """Import the fused kernels, or return None where numba is absent or cannot work."""
    try:
        from fractrain.kernels.cpu import quantize as fused
    except (ImportError, RuntimeError) as problem:  # RuntimeError: numba found no folder for its cache
        log.warning("fused quantizers are not available (%s); using the plain path", problem)
        return None
    return fused


@lru_cache(maxsize=1)
def probed() -> ModuleType | None:
    """Return the fused kernels if they give exactly the plain path's bits on this machine, else None."""
    module = load_fused()
    if module is None:
        return None
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 6, 7, generator=gen).contiguous(memory_format=torch.channels_last)
    lo, hi = x.aminmax()
    for bits in (3, 8, 12):
        top = torch.tensor(float(2**bits - 1))
        grid = Grid((hi - lo) / top, lo, torch.zeros(()), top)
        for noise in (None, NoiseKey(123, 456, 7)):
            plain, plain_codes = quantize_reference(x, grid, noise, bits)
            fast, fast_codes = quantize(x, grid, noise, bits, kernels="fused")
            assert plain_codes is not None
            assert fast_codes is not None
            same = torch.equal(plain, fast) and torch.equal(plain_codes.codes, fast_codes.codes)
            if fast_codes.rows is not None:
                _, only = quantize_rows(x, flat(x), fast_codes.rows, noise, bits, only_codes=True)
                same = same and only is not None and torch.equal(only, plain_codes.codes)
            if not (same and torch.equal(plain_codes.values(), fast_codes.values())):
                log.warning("fused quantizers differ from the plain path on this machine; using the plain path")
                return None
    return module


@lru_cache(maxsize=1)
def load_fused_tiles() -> ModuleType | None:
    """As :func:`load_fused`, for the kernels with one grid per tile."""
    if load_fused() is None:
        return None
    from fractrain.kernels.cpu import quantize_tiles as fused_tiles

    return fused_tiles


@lru_cache(maxsize=1)
def probed_tiles() -> ModuleType | None:
    """As :func:`probed`, for the kernels with one grid per tile."""
    module = load_fused_tiles()
    if module is None or probed() is None:
        return None
    x = torch.randn(3, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    tile = PerTile(7, 2)
    limits, plain_limits = tile_limits(x, tile, "fused"), tile_limits(x, tile, "reference")
    lo, hi = plain_limits
    same = all(torch.equal(a, b) for a, b in zip(limits, plain_limits, strict=True))
    top = 2.0 ** torch.arange(2, 2 + lo.numel()).remainder(7).view(lo.shape) - 1.0
    grid = Grid(((hi - lo) / top.clamp(min=1.0)).clamp(min=1e-8), lo, torch.zeros(()), top, tile)
    for noise in (None, NoiseKey(123, 456, 7)):
        plain, plain_codes = quantize(x, grid, noise, 8, "reference")
        fast, fast_codes = quantize(x, grid, noise, 8, "fused")
        assert plain_codes is not None
        assert fast_codes is not None
        same = same and torch.equal(plain, fast) and torch.equal(plain_codes.codes, fast_codes.codes)
        same = same and torch.equal(plain_codes.values(), fast_codes.values())
    if not same:
        log.warning("fused tile quantizers differ from the plain path on this machine; using the plain path")
        return None
    return module

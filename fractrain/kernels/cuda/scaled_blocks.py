"""Casts to elements with scales on a GPU: launchers of the Triton kernels, and the probe of a device.

Scales are computed by the plain path, from one value per block; the kernels do what is done to every element. Nothing
here waits for the device, except the probe, once per process and device.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

from fractrain.kernels.cuda.launch import EXACT, current, kept_keys, passing, words
from fractrain.numerics.backend import ScaledFormat
from fractrain.numerics.blocks import PerBlock, Place, cut, matrices
from fractrain.numerics.elements import E2M1, E4M3, INT8
from fractrain.numerics.nvfp4 import FourOverSix
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Scales, Step, TwoLevel
from fractrain.numerics.stochastic_rounding import NoiseKey

BLOCK = 1024  # bytes of codes, or elements, per program
ROUNDED = ("Scaled", "FourOverSix")  # whose elements are rounded once their scales are known
RESTORED = (*ROUNDED, "Eden")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockLauncher:
    """Launches the kernels of one module; tensors are contiguous and on one device."""

    module: ModuleType

    def quantize(
        self, form: ScaledFormat, m: torch.Tensor, scales: Scales, noise: NoiseKey | None, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values of matrices ``[G, R, C]``, and where wanted codes and packed scales in one buffer, uint8."""
        e, pairs = form.element, form.element.code_bits == 4
        values, codes, count = torch.empty_like(m), None, m.numel()
        held = -(-count // 2) if pairs else count
        if keep:
            codes = torch.empty(held + scales.packed.numel(), dtype=torch.uint8, device=m.device)
            codes[held:] = scales.packed.reshape(-1)
        keys = kept_keys(noise)
        key = (0, 0, 0) if noise is None else words(noise, count)
        with current(m):
            self.module.round_blocks[(-(-held // BLOCK),)](
                m, scales.to.contiguous(), scales.back.contiguous(), values, values if codes is None else codes,
                *(keys or (m, m)), count, *_walk(m.shape, form.block), e.max, 1 / e.step, *key,
                MANTISSA=e.mantissa_bits, LOWEST=(e.min_exponent + 127) << 23, SIGN=e.code_bits - 1,
                NAN=int(e.encode(torch.tensor(float("nan")))), STOCHASTIC=noise is not None, KEYS=keys is not None,
                CODES=keep, PAIRS=pairs, BLOCK=BLOCK, **EXACT,
            )  # fmt: skip
        return values, codes

    def restore(self, form: ScaledFormat, codes: torch.Tensor, back: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Values ``[G, R, C]`` of codes, given the factor of each block."""
        values = torch.empty(shape, device=codes.device)
        count, table = values.numel(), form.element.table(codes.device)
        with current(codes):
            self.module.restore_blocks[(-(-count // BLOCK),)](
                codes, table, back.contiguous(), values, count, *_walk(shape, form.block),
                PAIRS=form.element.code_bits == 4, BLOCK=BLOCK, **EXACT,
            )  # fmt: skip
        return values


def _walk(shape: torch.Size, block: PerBlock) -> tuple[int, ...]:
    """Rows, columns, rows and columns of a block, and how many blocks there are along each."""
    _, rows, columns = shape
    high, width = block.rows or rows, block.cols or columns
    return rows, columns, high, width, -(-rows // high), -(-columns // width)


def launcher_for(form: ScaledFormat, x: torch.Tensor, served: tuple[str, ...]) -> BlockLauncher | None:
    """The launcher to use for a format and a tensor, or None where the plain path must do."""
    fits = x.device.type == "cuda" and x.dtype in (torch.float32, torch.uint8) and x.numel()
    if not fits or type(form).__name__ not in served or form.element.overflow != "saturate":
        return None
    return probed(x.device)


@cache
def load() -> BlockLauncher | None:
    """Import the kernels, or return None (with one log line) where Triton is absent."""
    try:
        from fractrain.kernels.cuda import triton_blocks
    except ImportError as problem:
        log.warning("GPU casts to blocks are not available (%s); using the plain path", problem)
        return None
    return BlockLauncher(triton_blocks)


@cache
def probed(device: torch.device) -> BlockLauncher | None:
    """The launcher if it gives exactly the plain path's bits on this very device, else None with one log line."""
    return passing(load(), agrees, device, "GPU casts to blocks")


def agrees(launcher: BlockLauncher, device: torch.device) -> bool:
    """Compare the kernels with the plain path, on random inputs on this device; waits for the results."""
    x = (torch.randn(37, 50, generator=torch.Generator().manual_seed(0)) * 3.0).to(device)
    formats: tuple[Scaled, ...] = (
        Scaled(PerBlock(1, 32), "stochastic", element=E4M3, scale=E8M0()),
        Scaled(PerBlock(32, 1), element=E2M1, scale=E8M0(mode="rceil")),
        Scaled(PerBlock(16, 16), "stochastic", element=E2M1, scale=TwoLevel()), FourOverSix(),
        Scaled(PerBlock(1, 0), element=INT8, scale=Step()), Scaled(PerBlock(0, 1), element=E4M3), Scaled(),
    )  # fmt: skip
    return all(same_bits(launcher, fmt, x) for fmt in formats)


def same_bits(launcher: BlockLauncher, fmt: Scaled, x: torch.Tensor, noise: NoiseKey | None = None) -> bool:
    """Whether values, codes and restored values of a tensor are the plain path's, except which nan one is."""
    if noise is None and fmt.rounding == "stochastic":
        noise = NoiseKey(123, 0xFEDCBA98, 7)
    place = Place(keep=True, kernels="reference")
    plain: Any = fmt.quantize(x, fmt.bits, noise, None, place)
    m = matrices(x, place, fmt.block).contiguous()
    scales, _ = fmt.scales_of(cut(m, fmt.block), None, place)
    values, codes = launcher.quantize(fmt, m, scales, noise, True)
    assert codes is not None
    held = codes.numel() - scales.packed.numel()
    restored = launcher.restore(fmt, codes[:held], scales.back, m.shape)
    want = matrices(plain.values, place, fmt.block)
    return torch.equal(codes, plain.codes.codes) and all(
        bool(((a.view(torch.int32) == want.view(torch.int32)) | (a.isnan() & want.isnan())).all())
        for a in (values, restored)
    )

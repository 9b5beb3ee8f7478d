"""Blocks that share a scale: an operand as the matrices of its product, and how these are cut.

An activation or error is one matrix ``[samples x positions, channels]``; products of two activations have one per
sample and head. A convolution's weight is one matrix ``[out, in]`` per position of the kernel. Where a block takes all
of an axis, the positions of the kernel belong to it, as they belong to the reduction: then the weight is one matrix
``[out, in x positions]`` or ``[out x positions, in]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from fractrain.util.errors import ConfigError

Role = Literal["A", "W", "E"]


@dataclass(frozen=True)
class PerBlock:
    """One scale per ``rows x cols`` block of an operand's matrices; 0 takes all of an axis.

    Along the reduction of each product: activations and weights of FW, and errors of EB, have blocks of columns
    (``PerBlock(1, 32)``); weights of EB, and both operands of GC, blocks of rows (``PerBlock(32, 1)``).
    ``PerBlock(1, 0)`` is a scale per row, ``PerBlock(0, 1)`` one per column. Edges are padded with zeros, which the
    scale does not see.
    """

    rows: int = 1
    cols: int = 32

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0:
            raise ConfigError(f"blocks must have 0 (all) or more rows and columns, got {self.rows}x{self.cols}")

    def flipped(self) -> PerBlock:
        """Of the transposed matrix."""
        return PerBlock(self.cols, self.rows)


@dataclass(frozen=True)
class Place:
    """Which operand a tensor is, as far as its format may ask.

    Attributes:
        role: ``A``, ``W`` or ``E``.
        rows: rows of each matrix, where the tensor stacks several in its second last axis (heads); 0: one matrix.
        reduce: from an amax of this process's samples to that of the whole batch; None: there is one process.
        keep: whether codes are wanted, to keep for backward.
        kernels: as in :func:`fractrain.numerics.quantize.quantize`.
    """

    role: Role = "A"
    rows: int = 0
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
    keep: bool = False
    kernels: Literal["auto", "reference", "fused"] = "auto"


ACTIVATION = Place()


def matrices(x: torch.Tensor, place: Place, block: PerBlock) -> torch.Tensor:
    """The operand as ``[matrices, rows, columns]``; a view where memory allows it."""
    if x.dim() == 4 and place.role == "W":
        out, channels, height, width = x.shape
        last = x.permute(0, 2, 3, 1)
        if block.cols == 0:
            return last.reshape(1, out, -1)
        if block.rows == 0:
            return last.reshape(1, -1, channels)
        return x.permute(2, 3, 0, 1).reshape(height * width, out, channels)
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).reshape(1, -1, x.shape[1])
    columns = x.shape[-1] if x.dim() else 1
    several = place.rows and (block.rows or block.cols)  # a scale per tensor is one for all of them
    return x.reshape(-1, place.rows, columns) if several else x.reshape(1, -1, columns)


def from_matrices(m: torch.Tensor, shape: torch.Size, place: Place, block: PerBlock) -> torch.Tensor:
    """Inverse of :func:`matrices` for a tensor of this shape; 4-D ones in channels-last memory."""
    if len(shape) == 4:
        n, channels, height, width = shape
        if place.role == "W" and block.cols and block.rows:
            return m.reshape(height, width, n, channels).permute(2, 3, 0, 1).contiguous(
                memory_format=torch.channels_last
            )  # fmt: skip
        return m.reshape(n, height, width, channels).permute(0, 3, 1, 2)
    return m.reshape(shape)


def cut(m: torch.Tensor, block: PerBlock) -> torch.Tensor:
    """Matrices ``[G, R, C]`` as blocks ``[G, block rows, rows, block columns, columns]``, edges padded with zeros."""
    groups, rows, columns = m.shape
    high, wide = block.rows or rows, block.cols or columns
    pad = (0, -columns % wide, 0, -rows % high)
    if any(pad):
        m = torch.nn.functional.pad(m, pad)
    return m.reshape(groups, m.shape[1] // high, high, m.shape[2] // wide, wide)


def joined(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Inverse of :func:`cut` for matrices of this shape; the padding is dropped."""
    groups, high, rows, wide, columns = blocks.shape
    return blocks.reshape(groups, high * rows, wide * columns)[:, : shape[1], : shape[2]]

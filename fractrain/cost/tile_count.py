"""Exact count of the MACs of a product by the widths of their operands, where widths vary from tile to tile.

A convolution multiplies, for every sample, output position ``(oh, ow)``, output channel ``o``, input channel ``c`` of
o's group and kernel position ``(kh, kw)``, one activation, one weight or one error with another; all three products
have this set of MACs. Counting it pair by pair is not needed, because both operands of a product meet along its
reduction only: for each index of the reduction, the number of MACs at widths ``(i, j)`` is the number of elements of
width ``i`` in the first operand times that of width ``j`` in the second.

* FW reduces over ``(c, kh, kw)``: activations by channel and kernel position, weights by output channel;
* EB reduces over ``o``;
* GC reduces over ``(sample, oh, ow)``: activations under the kernel there, errors by output channel, group by group.

Padding: a MAC with a padded position counts like one with the nearest real position of the same sample and channel, as
if the map of widths were padded by replication. Every MAC that a constant width counts is therefore counted, and a map
of equal widths gives the same counts as the constant.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

Pairs = dict[tuple[int, int], int]
Two = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Which activations a convolution reads for each output position; a linear layer reads one vector for each."""

    kernel: Two = (1, 1)
    stride: Two = (1, 1)
    padding: Two = (0, 0)
    dilation: Two = (1, 1)
    groups: int = 1

    def reads(self, axis: int, size: int, outputs: int) -> torch.Tensor:
        """Count reads ``[kernel positions, outputs, inputs]`` along one axis (0 or 1), padding by replication."""
        k = torch.arange(self.kernel[axis]).view(-1, 1) * self.dilation[axis] - self.padding[axis]
        at = (k + torch.arange(outputs) * self.stride[axis]).clamp(0, size - 1)
        return torch.nn.functional.one_hot(at, size).to(torch.float64)


def pair_counts(product: str, first: torch.Tensor, second: torch.Tensor, window: Window) -> Pairs:
    """Count the MACs of one product by the widths of their operands.

    Args:
        product: ``FW`` (activation, weight), ``EB`` (error, weight) or ``GC`` (activation, error).
        first, second: width of each element of the two operands; integer, activations ``[N, C, H, W]``, weights
            ``[O, C / groups, kh, kw]``, errors ``[N, O, OH, OW]``. For EB and FW the other tensor of the layer is not
            needed except for FW's output size, which follows from the window.
        window: of the layer.

    Returns:
        MACs by (width of first, width of second); no pair with zero.
    """
    count = {"FW": _forward, "EB": _error, "GC": _gradient}[product]
    left = {w: (first == w).to(torch.float64) for w in torch.unique(first).tolist()}
    right = {w: (second == w).to(torch.float64) for w in torch.unique(second).tolist()}
    sums_left, sums_right = count(left, right, window)
    pairs = {(i, j): (a * b).sum() for i, a in sums_left.items() for j, b in sums_right.items()}
    totals = torch.stack(list(pairs.values())).tolist()  # exact: integers far below 2^53
    return {pair: int(n) for pair, n in zip(pairs, totals, strict=True) if n}


Masks = dict[int, torch.Tensor]


def _forward(a: Masks, w: Masks, window: Window) -> tuple[Masks, Masks]:
    """Activations and weights by (channel, kernel position), groups in turn."""
    shape = next(iter(a.values())).shape
    rows, cols = (
        window.reads(i, shape[2 + i], output_size(shape[2 + i], window, i)).sum(1).to(next(iter(a.values())).device)
        for i in (0, 1)
    )
    read = {k: torch.einsum("kh,lw,chw->ckl", rows, cols, m.sum(0)) for k, m in a.items()}
    g = window.groups
    return read, {k: m.view(g, -1, *m.shape[1:]).sum(1).reshape(-1, *m.shape[2:]) for k, m in w.items()}


def _error(e: Masks, w: Masks, window: Window) -> tuple[Masks, Masks]:
    """Errors and weights by output channel."""
    return {k: m.sum((0, 2, 3)) for k, m in e.items()}, {k: m.sum((1, 2, 3)) for k, m in w.items()}


def _gradient(a: Masks, e: Masks, window: Window) -> tuple[Masks, Masks]:
    """Activations under the kernel and errors by (sample, group, output position)."""
    shape, out = next(iter(a.values())).shape, next(iter(e.values())).shape
    device = next(iter(a.values())).device
    rows, cols = (window.reads(i, shape[2 + i], out[2 + i]).sum(0).to(device) for i in (0, 1))

    def grouped(m: torch.Tensor) -> torch.Tensor:
        return m.view(m.shape[0], window.groups, -1, *m.shape[2:]).sum(2)

    return {k: rows @ grouped(m) @ cols.t() for k, m in a.items()}, {k: grouped(m) for k, m in e.items()}


def output_size(size: int, window: Window, axis: int) -> int:
    """Output positions along one axis."""
    span = window.dilation[axis] * (window.kernel[axis] - 1) + 1
    return (size + 2 * window.padding[axis] - span) // window.stride[axis] + 1


def add(one: Pairs, other: Pairs, times: int = 1) -> Pairs:
    """Return ``one * times + other``."""
    total = Counter({pair: n * times for pair, n in one.items()})
    total.update(other)
    return {pair: n for pair, n in total.items() if n}

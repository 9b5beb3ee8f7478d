"""What a quantized layer tells the ledger: MACs of its three products by the widths of their operands.

Constant widths cost one integer addition per layer and step. Widths per sample are counted on the device as a histogram
of (width 1, width 2) over the samples. Widths per tile are counted as a histogram over element pairs: in each bin of
the reduction (input channel for FW, output channel for EB; for GC the vector of a linear layer, the sample of a
convolution) the share of each width in one operand times its share in the other. That is exact for linear layers; for
convolutions it takes all positions of a channel or sample as equally often used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fractrain.cost.ledger import Entry, Product
from fractrain.quant.formats import PerTile, expand_tiles
from fractrain.quant.precision import FLOAT_BITS, Operand, Precision

if TYPE_CHECKING:
    from fractrain.quant.layers import QuantLayer

WIDTHS = FLOAT_BITS + 1
OPERANDS: dict[Product, str] = {"FW": "AW", "EB": "EW", "GC": "AE"}


def products_of(p: Precision, eb: bool, gc: bool) -> list[tuple[Product, Operand, Operand]]:
    """The products that run, with their operands in ledger order."""
    out: list[tuple[Product, Operand, Operand]] = [("FW", p.fw_a, p.fw_w)]
    if eb:
        out.append(("EB", p.eb_e, p.eb_w))
    if gc:
        out.append(("GC", p.gc_a, p.gc_e))
    return out


def entries_for(site: str, p: Precision, macs: int, eb: bool, gc: bool) -> list[Entry]:
    """Ledger entries per sample at constant widths."""

    def width(o: Operand) -> int:
        return min(o.widest, FLOAT_BITS)

    return [Entry(site, product, width(a), width(b), macs) for product, a, b in products_of(p, eb, gc)]


def count_layer(layer: QuantLayer, x: torch.Tensor, macs: int, eb: bool, gc: bool) -> None:
    """Count one forward pass of a layer (and the backward products that will follow) on ``x`` ``[N, ...]``."""
    p, ledger = layer.precision, layer.state.ledger
    if not any(isinstance(o.bits, torch.Tensor) for o in p.operands().values()):
        key = (p, macs, eb, gc)
        if layer.work_key[0] != key:
            widths = ",".join(str(o.bits) for o in p.operands().values())
            layer.work_key = (key, f"{layer.site}|{widths}|{macs}|{'E' if eb else ''}{'G' if gc else ''}")
        ledger.count(layer.work_key[1], x.shape[0], lambda: entries_for(layer.site, p, macs, eb, gc))
        return
    for product, first, second in products_of(p, eb, gc):
        _count_product(layer, product, first, second, x.shape[0], macs)


def _count_product(layer: QuantLayer, product: Product, a: Operand, b: Operand, samples: int, macs: int) -> None:
    """Count one product with at least one operand of varying width; units are MACs."""
    shares = _share(layer, product, 0, a), _share(layer, product, 1, b)
    bins = max(s.shape[0] for s in shares)
    first, second = (s.expand(bins, WIDTHS) for s in shares)
    pairs = (first.t() @ second) * (macs * samples / bins)
    units = round_to_sum(pairs.reshape(-1), macs * samples)
    works = tuple(f"{layer.site}|{product}|{i}x{j}" for i in range(WIDTHS) for j in range(WIDTHS))

    def define(k: int) -> Sequence[Entry]:
        return [Entry(layer.site, product, k // WIDTHS, k % WIDTHS, 1)]

    layer.state.ledger.count_selected(works, units, define)


def _share(layer: QuantLayer, product: Product, place: int, op: Operand) -> torch.Tensor:
    """Share of each width per bin of the reduction, float64 ``[bins or 1, 33]``."""
    if not isinstance(op.bits, torch.Tensor):
        row = torch.zeros(1, WIDTHS, dtype=torch.float64, device=layer.weight.device)
        row[0, min(op.bits, FLOAT_BITS)] = 1.0
        return row
    bits = op.bits.to(layer.weight.device).long()
    one_hot = torch.nn.functional.one_hot(bits, WIDTHS).to(torch.float64)
    if not isinstance(op.format.granularity, PerTile):
        # one width per sample: the samples are the bins of GC; in FW and EB every bin sees all samples
        return one_hot.repeat_interleave(_vectors(layer), 0) if product == "GC" else one_hot.mean(0, keepdim=True)
    operand = OPERANDS[product][place]
    full = expand_tiles(bits, layer.shapes[operand], op.format.granularity)
    if product == "GC":
        return _histogram(full if full.dim() == 4 else full.reshape(-1, full.shape[-1]), 0)
    if operand == "W" and product == "EB":
        return _histogram(full, 0)  # output channels
    if operand == "W":  # input channels: those of each group of filters in turn
        per_group = full.reshape(layer.groups, -1, *full.shape[1:])
        return torch.cat([_histogram(g, 1) for g in per_group])
    return _histogram(full, 1 if full.dim() == 4 else -1)


def _vectors(layer: QuantLayer) -> int:
    """Vectors per sample that a linear layer multiplies; a convolution's samples are taken whole."""
    shape = layer.shapes["A"]
    return 1 if len(shape) == 4 else shape[1:-1].numel()


def _histogram(bits: torch.Tensor, axis: int) -> torch.Tensor:
    rows = bits.movedim(axis, 0).reshape(bits.shape[axis], -1)
    out = torch.zeros(rows.shape[0], WIDTHS, dtype=torch.float64, device=bits.device)
    return out.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64)) / rows.shape[1]


def round_to_sum(x: torch.Tensor, total: int) -> torch.Tensor:
    """Round non-negative float64 values to int64 with a given sum (largest remainders go up), on the device."""
    down = x.floor()
    missing = total - down.sum()
    order = torch.argsort(x - down, descending=True, stable=True)
    up = (torch.arange(x.numel(), device=x.device) < missing).to(x.dtype)
    return (down + torch.zeros_like(x).scatter_(0, order, up)).to(torch.int64)

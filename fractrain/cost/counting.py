"""What a quantized layer tells the ledger: MACs of its three products by the widths of their operands.

Constant widths cost one integer addition per layer and step. Widths per sample are counted on the device as a histogram
of (width 1, width 2) over the samples. Widths per tile are counted exactly, as the sum over block pairs along the
reduction (:mod:`fractrain.cost.tile_count` says how, and how padding counts); the result is kept for as long as the
maps stay the same, so a map that is refreshed now and then costs next to nothing in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from fractrain.cost.ledger import Entry, Ledger, Product
from fractrain.cost.tile_count import Pairs, Window, add, pair_counts
from fractrain.numerics.precision import FLOAT_BITS, Operand, Precision
from fractrain.numerics.tiles import PerTile, expand_tiles, matrix_size

WIDTHS = FLOAT_BITS + 1
OPERANDS: dict[Product, str] = {"FW": "AW", "EB": "EW", "GC": "AE"}


class Books(Protocol):
    """What has the ledger."""

    ledger: Ledger


class Counted(Protocol):
    """What is read of a quantized layer.

    Attributes:
        site: its name.
        precision: formats and widths of its operands.
        state: has the ledger.
        shapes: of A, W and E in the last forward pass.
        work_key, tile_work: ledger work items at the present precision.
        paired: whether the operand in the weight's place has a sample axis, too.
    """

    site: str
    precision: Precision
    shapes: dict[str, torch.Size]
    work_key: tuple[Any, str]
    tile_work: dict[str, list[Any]]

    @property
    def state(self) -> Books: ...  # noqa: D102
    @property
    def paired(self) -> bool: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def effective(self, precision: Precision) -> Precision: ...  # noqa: D102


def products_of(p: Precision, eb: bool, gc: bool, fw: bool = True) -> list[tuple[Product, Operand, Operand]]:
    """The products that run, with their operands in ledger order."""
    out: list[tuple[Product, Operand, Operand]] = [("FW", p.fw_a, p.fw_w)] if fw else []
    if eb:
        out.append(("EB", p.eb_e, p.eb_w))
    if gc:
        out.append(("GC", p.gc_a, p.gc_e))
    return out


def entries_for(
    site: str, p: Precision, macs: int, eb: bool, gc: bool, shapes: Mapping[str, torch.Size] | None = None,
    fw: bool = True,
) -> list[Entry]:  # fmt: skip
    """Ledger entries per sample at constant widths.

    Args:
        macs: of each product.
        eb, gc, fw: whether these products run.
        shapes: of A, W and E, where formats with scales are counted.
    """

    def width(o: Operand) -> int:
        return min(o.widest, FLOAT_BITS)

    return [
        Entry(site, product, width(a), width(b), macs, *_formats(product, a, b, shapes))
        for product, a, b in products_of(p, eb, gc, fw)
    ]


def _formats(
    product: Product, a: Operand, b: Operand, shapes: Mapping[str, torch.Size] | None
) -> tuple[str, str, float, float]:
    """Names and scale bits per element of both operands."""
    names, scales = [], []
    for role, op in zip(OPERANDS[product], (a, b), strict=True):
        own = not op.is_float and op.format.bits is not None
        names.append(op.format.name if own else "")
        scales.append(op.format.scale_bits(shapes[role], role == "W") if own and shapes else 0.0)
    return names[0], names[1], scales[0], scales[1]


def count_layer(layer: Counted, x: torch.Tensor, macs: int, eb: bool, gc: bool, fw: bool = True) -> None:
    """Count one forward pass of a layer (and the backward products that will follow) on ``x`` ``[N, ...]``.

    With ``fw`` False only the backward products: the forward pass has been counted before.
    """
    key = (layer.precision, macs, eb, gc, fw)
    if layer.work_key[0] != key:
        p = layer.effective(layer.precision)
        if not p.is_constant:
            _count_varying(layer, p, x.shape[0], macs, (eb, gc, fw))
            return
        widths = ",".join(
            str(o.bits) if o.is_float or o.format.bits is None else o.format.name for o in p.operands().values()
        )
        which = f"{'' if fw else '-'}{'E' if eb else ''}{'G' if gc else ''}"
        layer.work_key = (key, f"{layer.site}|{widths}|{macs}|{which}")
    layer.state.ledger.count(
        layer.work_key[1], x.shape[0],
        lambda: entries_for(layer.site, layer.effective(key[0]), macs, eb, gc, layer.shapes, fw),
    )  # fmt: skip


def _count_varying(layer: Counted, p: Precision, samples: int, macs: int, runs: tuple[bool, bool, bool]) -> None:
    """Count one pass at widths per sample or tile; ``runs``: whether EB, GC and FW do."""
    for product, first, second in products_of(p, *runs):
        if any(isinstance(o.bits, torch.Tensor) and isinstance(o.format.granularity, PerTile) for o in (first, second)):
            _count_tiles(layer, product, first, second, samples)
        else:
            _count_samples(layer, product, first, second, samples, macs)


def _count_samples(layer: Counted, product: Product, a: Operand, b: Operand, samples: int, macs: int) -> None:
    """Count one product with widths per sample; units are MACs."""
    shares = _share(layer, product, a), _share(layer, product, b)
    bins = max(s.shape[0] for s in shares)
    first, second = (s.expand(bins, WIDTHS) for s in shares)
    pairs = (first.t() @ second) * (macs * samples / bins)
    units = round_to_sum(pairs.reshape(-1), macs * samples)
    works = tuple(f"{layer.site}|{product}|{i}x{j}" for i in range(WIDTHS) for j in range(WIDTHS))

    def define(k: int) -> Sequence[Entry]:
        return [Entry(layer.site, product, k // WIDTHS, k % WIDTHS, 1, *_formats(product, a, b, layer.shapes))]

    layer.state.ledger.count_selected(works, units, define)


def _share(layer: Counted, product: Product, op: Operand) -> torch.Tensor:
    """Share of each width per bin, float64 ``[bins or 1, 33]``.

    Samples are the bins where a sample of one operand meets the same sample of the other: in GC, and in all products of
    two activations; else all are one bin.
    """
    if not isinstance(op.bits, torch.Tensor):
        row = torch.zeros(1, WIDTHS, dtype=torch.float64, device=layer.device)
        row[0, min(op.bits, FLOAT_BITS)] = 1.0
        return row
    bits = op.bits.to(layer.device).long()
    one_hot = torch.nn.functional.one_hot(bits, WIDTHS).to(torch.float64)
    return one_hot if product == "GC" or layer.paired else one_hot.mean(0, keepdim=True)


def _count_tiles(layer: Counted, product: Product, a: Operand, b: Operand, samples: int) -> None:
    """Count one product with widths per tile; units are MACs. Reads the device when the maps or shapes have changed."""
    shapes = tuple(layer.shapes[n] for n in OPERANDS[product])
    maps = tuple((o.bits, o.bits._version, o.format) if isinstance(o.bits, torch.Tensor) else (o.bits,) for o in (a, b))
    kept = layer.tile_work.setdefault(product, [])
    work = next((w for s, m, w in kept if s == shapes and _same_maps(m, maps)), None)
    if work is None:
        pairs = _tile_pairs(layer, product, a, b, samples)
        more = _formats(product, a, b, layer.shapes)
        work = [(f"{layer.site}|{product}|{i}x{j}", Entry(layer.site, product, i, j, 1, *more), n)
                for (i, j), n in sorted(pairs.items())]  # fmt: skip
        kept[:] = [(s, m, w) for s, m, w in kept if _same_maps(m, maps)][-7:]  # other shapes at the same maps
        kept.append((shapes, maps, work))
    for name, entry, n in work:
        layer.state.ledger.count(name, n, partial(_once, entry))


def _once(entry: Entry) -> Sequence[Entry]:
    return [entry]


def _same_maps(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(x[0] is y[0] and x[1:] == y[1:] for x, y in zip(one, other, strict=True))


def _tile_pairs(layer: Counted, product: Product, a: Operand, b: Operand, samples: int) -> Pairs:
    """MACs by pair of widths. Where maps repeat from sample to sample, a whole period is counted once."""
    names = OPERANDS[product]
    window = _window(layer)
    period = samples
    if all(n == "W" or _repeats(o) for n, o in zip(names, (a, b), strict=True)):
        period = min(samples, math.lcm(*(_period(o, layer.shapes[n]) for n, o in zip(names, (a, b), strict=True))))

    def count(first: int, last: int) -> Pairs:
        widths = [_widths(o, layer.shapes[n], n, (first, last)) for n, o in zip(names, (a, b), strict=True)]
        return pair_counts(product, widths[0].to(layer.device), widths[1].to(layer.device), window)

    times, rest = divmod(samples, period)
    return add(count(0, period), count(0, rest) if rest else {}, times)


def _window(layer: Counted) -> Window:
    if len(layer.shapes["W"]) == 2:
        return Window()
    return Window(*(getattr(layer, n) for n in ("kernel_size", "stride", "zero_padding", "dilation", "groups")))


def _repeats(op: Operand) -> bool:
    """Whether the widths of a batch repeat after some samples."""
    tile = op.format.granularity
    return not isinstance(op.bits, torch.Tensor) or (isinstance(tile, PerTile) and tile.repeat)


def _period(op: Operand, shape: torch.Size) -> int:
    """Samples after which the widths repeat."""
    tile = op.format.granularity
    if not isinstance(op.bits, torch.Tensor) or not isinstance(tile, PerTile) or not tile.repeat:
        return 1
    per_sample = matrix_size(shape)[0] // shape[0]
    return math.lcm(op.bits.shape[0] * tile.rows, per_sample) // per_sample


def _widths(op: Operand, shape: torch.Size, name: str, samples: tuple[int, int]) -> torch.Tensor:
    """Width of each element in the 4-D form that :func:`pair_counts` takes; of activations and errors, some samples."""
    if not isinstance(op.bits, torch.Tensor):
        full = torch.tensor(min(op.bits, FLOAT_BITS)).expand(shape)
    elif isinstance(op.format.granularity, PerTile):
        kept = shape if name == "W" or not op.format.granularity.repeat else torch.Size((samples[1], *shape[1:]))
        full = expand_tiles(op.bits, kept, op.format.granularity)
    else:
        full = op.bits.view(-1, *([1] * (len(shape) - 1))).expand(shape)
    full = full if name == "W" else full[slice(*samples)]
    return full if full.dim() == 4 else full.reshape(-1, full.shape[-1], 1, 1)


def round_to_sum(x: torch.Tensor, total: int) -> torch.Tensor:
    """Round non-negative float64 values to int64 with a given sum (largest remainders go up), on the device."""
    down = x.floor()
    missing = total - down.sum()
    order = torch.argsort(x - down, descending=True, stable=True)
    up = (torch.arange(x.numel(), device=x.device) < missing).to(x.dtype)
    return (down + torch.zeros_like(x).scatter_(0, order, up)).to(torch.int64)

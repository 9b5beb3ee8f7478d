"""One pass over a ledger: integer sums by epoch and gateable block, from which all cost figures follow.

An entry with a width of 0 stands for a product that was skipped (a block left out for a sample): it costs nothing and
is no executed MAC, but stays in the denominator of cp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware.base import FLOAT_BITS
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:  # reading a ledger needs no torch
    from fractrain.cost.ledger import Entry, Ledger, Phase

GATE = "gate"
"""Layers with this component in their dotted name belong to a gate."""


@dataclass
class EpochSums:
    """Integer sums over the ledger rows of one phase and epoch.

    Attributes:
        raw: executed MACs.
        bitops: sum of ``macs * bits1 * bits2``.
        quantized: the same of products of two operands that are not in floating point.
        forward: forward MACs outside gates, skipped ones included.
        gate_forward: forward MACs of gates.
        work: MACs of all three products outside gates, skipped ones included: what full precision would execute.
        blocks: block name to ``[macs, skipped ones included; macs * bits1 * bits2]``, without gates and without the
            layers of ``meta["outside_cp"]``. Without blocks in the ledger, all layers belong to one block whose name is
            empty.
    """

    raw: int = 0
    bitops: int = 0
    quantized: int = 0
    forward: int = 0
    gate_forward: int = 0
    work: int = 0
    blocks: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: EpochSums, times: int) -> None:
        """Add another's sums, so many times."""
        self.raw += times * other.raw
        self.bitops += times * other.bitops
        self.quantized += times * other.quantized
        self.forward += times * other.forward
        self.gate_forward += times * other.gate_forward
        self.work += times * other.work
        for block, numbers in other.blocks.items():
            total = self.blocks.setdefault(block, [0, 0])
            for place, number in enumerate(numbers):
                total[place] += times * number


def collect(ledger: Ledger, phase: Phase = "train", until_epoch: int | None = None) -> dict[int, EpochSums]:
    """Return the sums by epoch, ascending, of all epochs with work up to and including ``until_epoch``."""
    blocks = frozenset(ledger.meta.get("blocks") or ())
    outside = frozenset(ledger.meta.get("outside_cp") or ())
    of_work: dict[str, EpochSums] = {}
    sums: dict[int, EpochSums] = {}
    for epoch, work, units in ledger.units(phase):
        if until_epoch is not None and epoch > until_epoch:
            continue
        if work not in of_work:
            of_work[work] = _of_entries(ledger.entries(work), blocks, outside)
        sums.setdefault(epoch, EpochSums()).add(of_work[work], units)
    return dict(sorted(sums.items()))


def _of_entries(entries: Iterable[Entry], blocks: frozenset[str], outside: frozenset[str]) -> EpochSums:
    """The sums of one unit of a work item."""
    s = EpochSums()
    for entry in entries:
        block = None if entry.layer in outside else block_of(entry.layer, blocks)
        is_gate = GATE in entry.layer.split(".")
        width = entry.bits1 * entry.bits2
        s.bitops += entry.macs * width
        s.quantized += entry.macs * width if max(entry.bits1, entry.bits2) < FLOAT_BITS else 0
        s.raw += entry.macs if width else 0
        s.work += 0 if is_gate else entry.macs
        if entry.product == "FW" and is_gate:
            s.gate_forward += entry.macs
        elif entry.product == "FW":
            s.forward += entry.macs
        if block is not None:
            total = s.blocks.setdefault(block, [0, 0])
            total[0] += entry.macs
            total[1] += entry.macs * width
    return s


def block_of(layer: str, blocks: frozenset[str]) -> str | None:
    """Return the block in whose cp the layer counts: its longest dotted prefix, or None if there is none.

    A layer below a component ``gate`` inside the block counts in none. Without blocks, every layer belongs to ``""``.
    """
    if not blocks:
        return ""
    parts = layer.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in blocks:
            return None if GATE in parts[end:] else name
    return None


def weights_by_block(ledger: Ledger) -> dict[str, float]:
    """Return the weight of each block by name: ``meta["block_weights"]``, else 1 for each.

    Raises:
        ConfigError: the weights do not fit the blocks, one is negative, or all are zero.
    """
    blocks: list[str] = list(ledger.meta.get("blocks") or [""])
    given: Sequence[float] | Mapping[str, float] = ledger.meta.get("block_weights") or [1.0] * len(blocks)
    if isinstance(given, Mapping):
        if set(given) != set(blocks):
            wrong = ", ".join(sorted(set(given) ^ set(blocks)))
            raise ConfigError(f"block weights do not fit the blocks of the ledger: {wrong} missing or unknown")
        weights = dict(given)
    elif len(given) != len(blocks):
        raise ConfigError(f"{len(given)} block weights for {len(blocks)} blocks: give one for each")
    else:
        weights = dict(zip(blocks, given, strict=True))
    if not (sum(weights.values()) > 0 and all(w >= 0 for w in weights.values())):
        raise ConfigError("block weights must not be negative, and not all zero")
    return weights


def cp_of(sums: Iterable[EpochSums], weights: Mapping[str, float]) -> float:
    """Return cp in percent of some epochs taken together: the weighted mean over blocks of cost over MACs.

    Raises:
        ConfigError: a block did no work.
    """
    totals = {block: [0, 0] for block in weights}
    for s in sums:
        for block, (macs, cost) in s.blocks.items():
            totals[block][0] += macs
            totals[block][1] += cost
    weighted = 0.0
    for block, weight in weights.items():
        macs, cost = totals[block]
        if not macs:
            raise ConfigError(f"block {block!r} of the ledger did no work: is it the name of a module that has layers?")
        weighted += weight * (cost / (macs * FLOAT_MAC_BITS))
    return 100.0 * weighted / sum(weights.values())

"""Cost figures read from a ledger: MACs (raw, effective, as the paper counts them), BitOPs, cp, gate overhead.

Two families. *Exact*: every MAC that was counted, weighted by its operand widths (:func:`raw_macs`,
:func:`effective_macs`, :func:`bitops`). *As published*: the computing percentage cp of the gateable blocks only
(:func:`cp`), and the MACs that follow from it, which leave out the stem, the classifier and the gates. All of a run
together: :func:`summarize`. Energy and latency are modelled afterwards (:mod:`fractrain.cost.price`).

Epochs are counted from 0 and ``until_epoch`` is inclusive; ``None`` means all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware.base import FLOAT_BITS
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:  # reading a ledger needs no torch
    from fractrain.cost.ledger import Entry, Ledger, Phase


# -- exact -----------------------------------------------------------------------------------------------------------


def raw_macs(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> int:
    """Executed MACs of any width; everything counted, gates included."""
    return sum(s.raw for s in collect(ledger, phase, until_epoch).values())


def bitops(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> int:
    """Bit operations: the sum of ``macs * bits1 * bits2`` over everything counted (CPT's definition, exact integer)."""
    return sum(s.bitops for s in collect(ledger, phase, until_epoch).values())


def effective_macs(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> float:
    """32-bit-equivalent MACs: the sum of ``macs * bits1/32 * bits2/32`` over everything counted, gates included."""
    return bitops(ledger, until_epoch, phase) / FLOAT_MAC_BITS


def cost_percent(ledger: Ledger) -> float:
    """Effective MACs of all training, in percent of what full precision would execute (without gates).

    Raises:
        ConfigError: nothing was counted.
    """
    return _cost_percent(collect_some(ledger).values())


# -- as published ----------------------------------------------------------------------------------------------------


def cp(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> float:
    """Computing percentage: cost relative to the same work in 32-bit floating point, in percent.

    For each gateable block (``ledger.meta["blocks"]``; gates inside are left out) the ratio
    ``sum(macs * bits1 * bits2 / 1024) / sum(macs)`` over FW, EB and GC and all samples, then the weighted mean over
    blocks, by ``meta["block_weights"]`` (in the order of the blocks or by name), else 1 for each: the authors take
    block FLOPs for MobileNetV2. Without blocks in the ledger, all layers together form one. Source: FracTrain (NeurIPS
    2020), section 3.2, and the authors' training scripts.

    Args:
        until_epoch: last epoch counted (inclusive).
        phase: ``train`` or ``eval``.

    Raises:
        ConfigError: nothing was counted, a block did no work, or the weights do not fit the blocks.
    """
    return cp_of(collect_some(ledger, phase, until_epoch).values(), weights_by_block(ledger))


# -- summary ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostPoint:
    """Cost of training up to and including one epoch.

    Attributes:
        epoch: last epoch counted (from 0).
        samples: training samples fed.
        raw_macs: executed MACs of any width.
        effective_macs: 32-bit-equivalent MACs, everything counted.
        bitops: bit operations, everything counted.
        quantized_bitops: those of products of two operands that are not in floating point.
        cp_percent: computing percentage of the gateable blocks.
        cost_percent: effective MACs of the whole model (stem, classifier and gates included) in percent of what the
            same training executes in full precision, without gates.
        macs_paper: MACs as the FracTrain paper counts them, the sum over epochs of ``cp/100 * samples * 3 *
            forward_macs``: comparable with the published ones where ``epoch`` is that of best test accuracy. None if
            the ledger does not know the model's forward MACs.
    """

    epoch: int
    samples: int
    raw_macs: int
    effective_macs: float
    bitops: int
    quantized_bitops: int
    cp_percent: float
    cost_percent: float
    macs_paper: float | None


@dataclass(frozen=True)
class CostSummary:
    """What a run cost: up to the epoch of best accuracy, as the papers count, and to its end.

    Attributes:
        best: cost up to the best epoch.
        end: cost of the whole run.
        gate_overhead: forward MACs of the gates as a fraction (0..1) of those of all other layers, widths ignored,
            whole run.
    """

    best: CostPoint
    end: CostPoint
    gate_overhead: float

    def as_dict(self) -> dict[str, float | None]:
        """Flat form for JSON and tables: ``macs_paper@best``, ``macs_paper@end``, ..."""
        flat: dict[str, float | None] = {}
        for where, point in (("best", self.best), ("end", self.end)):
            flat.update({f"{name}@{where}": value for name, value in asdict(point).items()})
        return {**flat, "gate_overhead": self.gate_overhead}


def summarize(ledger: Ledger, best_epoch: int) -> CostSummary:
    """Return all cost figures of a run at its best epoch and at its end.

    Args:
        best_epoch: epoch (from 0) of best accuracy.

    Raises:
        ConfigError: ``best_epoch`` is not an epoch of the ledger, an epoch has work but no samples counted, or what
            :func:`cp` refuses.
    """
    sums = collect_some(ledger)
    if best_epoch not in sums:
        raise ConfigError(f"best_epoch={best_epoch}: the ledger holds epochs {min(sums)} to {max(sums)}")
    weights = weights_by_block(ledger)
    best = {epoch: s for epoch, s in sums.items() if epoch <= best_epoch}
    return CostSummary(_point(ledger, best, weights), _point(ledger, sums, weights), _gate_share(sums))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _cost_percent(sums: Iterable[EpochSums]) -> float:
    every = list(sums)
    return 100 * sum(s.bitops for s in every) / FLOAT_MAC_BITS / sum(s.work for s in every)


def _point(ledger: Ledger, sums: Mapping[int, EpochSums], weights: Mapping[str, float]) -> CostPoint:
    """Return the cost of the given epochs together."""
    macs = ledger.meta.get("forward_macs")
    samples = {epoch: samples_of(ledger, epoch) for epoch in sums}
    cps = {epoch: cp_of([s], weights) for epoch, s in sums.items()}
    total_bitops = sum(s.bitops for s in sums.values())
    return CostPoint(
        epoch=max(sums), samples=sum(samples.values()), raw_macs=sum(s.raw for s in sums.values()),
        effective_macs=total_bitops / FLOAT_MAC_BITS, bitops=total_bitops,
        quantized_bitops=sum(s.quantized for s in sums.values()), cp_percent=cp_of(sums.values(), weights),
        cost_percent=_cost_percent(sums.values()),
        macs_paper=sum(cps[e] / 100 * samples[e] * 3 * float(macs) for e in sums) if macs else None,
    )  # fmt: skip


def _gate_share(sums: Mapping[int, EpochSums]) -> float:
    forward = sum(s.forward for s in sums.values())
    return sum(s.gate_forward for s in sums.values()) / forward if forward else 0.0


def samples_of(ledger: Ledger, epoch: int) -> int:
    """Samples of training fed in an epoch.

    Raises:
        ConfigError: none were counted.
    """
    count = ledger.sample_count("train", epoch)
    if not count:
        raise ConfigError(f"the ledger counts work but no samples in epoch {epoch}: call ledger.samples(n) per batch")
    return count


def collect_some(ledger: Ledger, phase: Phase = "train", until_epoch: int | None = None) -> dict[int, EpochSums]:
    """:func:`collect`; ConfigError: there is no work."""
    sums = collect(ledger, phase, until_epoch)
    if not sums:
        upto = "" if until_epoch is None else f" up to epoch {until_epoch}"
        raise ConfigError(
            f"the ledger holds no work of phase {phase!r}{upto}: train first, or take another run's ledger"
        )
    return sums


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

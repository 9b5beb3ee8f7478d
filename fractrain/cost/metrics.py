"""Cost figures read from a ledger: MACs (raw, effective, as the paper counts them), BitOPs, cp, gate overhead.

Two families. *Exact*: every MAC that was counted, weighted by its operand widths (:func:`raw_macs`,
:func:`effective_macs`, :func:`bitops`). *As published*: the computing percentage cp of the gateable blocks only
(:func:`cp`), and the MACs that follow from it, which leave out the stem, the classifier and the gates. All of a run
together: :func:`summarize`. Energy and latency are modelled afterwards (:mod:`fractrain.cost.price`).

Epochs are counted from 0 and ``until_epoch`` is inclusive; ``None`` means all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.sums import EpochSums, collect, cp_of, weights_by_block
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:  # reading a ledger needs no torch
    from fractrain.cost.ledger import Ledger, Phase


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


def cost_percent(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> float:
    """Effective MACs of everything, in percent of what full precision would execute (without gates).

    Raises:
        ConfigError: nothing was counted.
    """
    sums = collect(ledger, phase, until_epoch)
    if not sums:
        raise _nothing_counted(phase, until_epoch)
    return _cost_percent(sums.values())


# -- as published ----------------------------------------------------------------------------------------------------


def cp(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> float:
    """Computing percentage: cost relative to the same work in 32-bit floating point, in percent.

    For each gateable block (``ledger.meta["blocks"]``; gates inside are left out) the ratio
    ``sum(macs * bits1 * bits2 / 1024) / sum(macs)`` over FW, EB and GC and all samples, then the weighted mean over
    blocks, by ``meta["block_weights"]`` (in the order of the blocks or by name), else 1 for each: the authors take
    block FLOPs for MobileNetV2. Without blocks in the ledger, all layers together form one. Source: FracTrain (NeurIPS
    2020), section 3.2, and the authors' training scripts.

    Args:
        ledger: counts of a run.
        until_epoch: last epoch counted (inclusive).
        phase: ``train`` or ``eval``.

    Raises:
        ConfigError: nothing was counted, a block did no work, or the weights do not fit the blocks.
    """
    sums = collect(ledger, phase, until_epoch)
    if not sums:
        raise _nothing_counted(phase, until_epoch)
    return cp_of(sums.values(), weights_by_block(ledger))


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
        ledger: counts of a run.
        best_epoch: epoch (from 0) of best accuracy.

    Raises:
        ConfigError: ``best_epoch`` is not an epoch of the ledger, an epoch has work but no samples counted, or what
            :func:`cp` refuses.
    """
    sums = collect(ledger, "train", None)
    if not sums:
        raise _nothing_counted("train", None)
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
    samples = {epoch: _samples(ledger, epoch) for epoch in sums}
    cps = {epoch: cp_of([s], weights) for epoch, s in sums.items()}
    total_bitops = sum(s.bitops for s in sums.values())
    return CostPoint(
        epoch=max(sums),
        samples=sum(samples.values()),
        raw_macs=sum(s.raw for s in sums.values()),
        effective_macs=total_bitops / FLOAT_MAC_BITS,
        bitops=total_bitops,
        quantized_bitops=sum(s.quantized for s in sums.values()),
        cp_percent=cp_of(sums.values(), weights),
        cost_percent=_cost_percent(sums.values()),
        macs_paper=sum(cps[e] / 100 * samples[e] * 3 * float(macs) for e in sums) if macs else None,
    )


def _gate_share(sums: Mapping[int, EpochSums]) -> float:
    forward = sum(s.forward for s in sums.values())
    return sum(s.gate_forward for s in sums.values()) / forward if forward else 0.0


def _samples(ledger: Ledger, epoch: int) -> int:
    count = ledger.sample_count("train", epoch)
    if not count:
        raise ConfigError(f"the ledger counts work but no samples in epoch {epoch}: call ledger.samples(n) per batch")
    return count


def _nothing_counted(phase: str, until_epoch: int | None) -> ConfigError:
    upto = "" if until_epoch is None else f" up to epoch {until_epoch}"
    return ConfigError(f"the ledger holds no work of phase {phase!r}{upto}: train first, or take another run's ledger")

"""Cost figures read from a ledger: MACs (raw, effective, as the paper counts them), BitOPs, cp, gate overhead.

Two families. *Exact*: every MAC that was counted, weighted by its operand widths (:func:`raw_macs`,
:func:`effective_macs`, :func:`bitops`). *As published*: the computing percentage cp of the gateable blocks only, and
the MACs that follow from it (:func:`cp`, :func:`macs_paper`), which leave out the stem, the classifier and the gates.

Epochs are counted from 0 and ``until_epoch`` is inclusive; ``None`` means all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.hardware import HardwareModel, create
from fractrain.cost.price import Counts, Geometries, RunCost, price
from fractrain.cost.sums import EpochSums, collect, cp_of, weights_by_block
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:  # reading a ledger needs no torch
    from fractrain.cost.ledger import Ledger, Phase

BlockWeights = Sequence[float] | Mapping[str, float] | None
"""Weight of each block in cp: in the order of ``meta["blocks"]``, by name, or None for the ledger's own or equal."""


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


def gate_overhead(ledger: Ledger, until_epoch: int | None = None, phase: Phase = "train") -> float:
    """Forward MACs of the gates as a fraction (0..1) of the forward MACs of all other layers, widths ignored.

    Raises:
        ConfigError: the ledger holds no forward work.
    """
    sums = collect(ledger, phase, until_epoch)
    if not any(s.forward for s in sums.values()):
        raise _nothing_counted(phase, until_epoch)
    return _gate_share(sums)


# -- as published ----------------------------------------------------------------------------------------------------


def cp(
    ledger: Ledger,
    until_epoch: int | None = None,
    block_weights: BlockWeights = None,
    phase: Phase = "train",
) -> float:
    """Computing percentage: cost relative to the same work in 32-bit floating point, in percent.

    For each gateable block (``ledger.meta["blocks"]``; gates inside are left out) the ratio
    ``sum(macs * bits1 * bits2 / 1024) / sum(macs)`` over FW, EB and GC and all samples, then the weighted mean over
    blocks. Without blocks in the ledger, all layers together form one. Source: FracTrain (NeurIPS 2020), section 3.2,
    and the authors' training scripts.

    Args:
        ledger: counts of a run.
        until_epoch: last epoch counted (inclusive).
        block_weights: weight of each block, in the order of ``meta["blocks"]`` or by name; default
            ``meta["block_weights"]``, else 1 for each (the authors take block FLOPs for MobileNetV2).
        phase: ``train`` or ``eval``.

    Raises:
        ConfigError: nothing was counted, a block did no work, or the weights do not fit the blocks.
    """
    sums = collect(ledger, phase, until_epoch)
    if not sums:
        raise _nothing_counted(phase, until_epoch)
    return cp_of(sums.values(), weights_by_block(ledger, block_weights))


def macs_paper(
    ledger: Ledger,
    until_epoch: int | None = None,
    block_weights: BlockWeights = None,
    forward_macs: float | None = None,
) -> float:
    """MACs as the FracTrain paper counts them: the sum over epochs of ``cp/100 * samples * 3 * forward_macs``.

    Comparable with the published MACs when ``until_epoch`` is the epoch of best test accuracy. Training phase only.

    Args:
        ledger: counts of a run.
        until_epoch: last epoch counted (inclusive).
        block_weights: as in :func:`cp`.
        forward_macs: MACs of one forward pass of one sample; default ``ledger.meta["forward_macs"]``.

    Raises:
        ConfigError: nothing was counted, ``forward_macs`` is not known, or an epoch has work but no samples counted.
    """
    macs = _forward_macs(ledger) if forward_macs is None else forward_macs
    weights = weights_by_block(ledger, block_weights)
    sums = collect(ledger, "train", until_epoch)
    if not sums:
        raise _nothing_counted("train", until_epoch)
    return sum(cp_of([s], weights) / 100 * _samples(ledger, epoch) * 3 * macs for epoch, s in sums.items())


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
        macs_paper: MACs by the paper's definition; None if the ledger does not know the model's forward MACs.
        energy_j, latency_s: joules and seconds by the hardware model; None without one.
        extrapolated: the hardware model was asked outside its range for at least one epoch.
        note: why; empty if not extrapolated.
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
    energy_j: float | None
    latency_s: float | None
    extrapolated: bool
    note: str


@dataclass(frozen=True)
class CostSummary:
    """What a run cost: up to the epoch of best accuracy, as the papers count, and to its end.

    Attributes:
        best: cost up to the best epoch.
        end: cost of the whole run.
        gate_overhead: forward MACs of the gates as a fraction of those of all other layers, whole run.
        hardware: name of the hardware model, or None.
    """

    best: CostPoint
    end: CostPoint
    gate_overhead: float
    hardware: str | None

    def as_dict(self) -> dict[str, float | str | bool | None]:
        """Flat form for JSON and tables: ``macs_paper@best``, ``macs_paper@end``, ..."""
        flat: dict[str, float | str | bool | None] = {}
        for where, point in (("best", self.best), ("end", self.end)):
            flat.update({f"{name}@{where}": value for name, value in asdict(point).items()})
        return {**flat, "gate_overhead": self.gate_overhead, "hardware": self.hardware}


def summarize(
    ledger: Ledger,
    best_epoch: int,
    hardware: HardwareModel | str | None = None,
    block_weights: BlockWeights = None,
    geometry: Geometries | None = None,
) -> CostSummary:
    """Return all cost figures of a run at its best epoch and at its end.

    Args:
        ledger: counts of a run.
        best_epoch: epoch (from 0) of best accuracy.
        hardware: a hardware model or the name of one, with settings.
        block_weights: as in :func:`cp`.
        geometry: shapes of the layers, for hardware models that see them.

    Raises:
        ConfigError: ``best_epoch`` is not an epoch of the ledger, the hardware model is unknown or cannot price the
            ledger, or what :func:`cp` refuses.
        PluginError: the hardware model fails.
    """
    model = create(hardware) if isinstance(hardware, str) else hardware
    sums = collect(ledger, "train", None)
    if not sums:
        raise _nothing_counted("train", None)
    if best_epoch not in sums:
        raise ConfigError(f"best_epoch={best_epoch}: the ledger holds epochs {min(sums)} to {max(sums)}")
    weights = weights_by_block(ledger, block_weights)
    best = {epoch: s for epoch, s in sums.items() if epoch <= best_epoch}
    priced = None if model is None else price(Counts.of(ledger), model, geometry)
    return CostSummary(
        best=_point(ledger, best, weights, priced),
        end=_point(ledger, sums, weights, priced),
        gate_overhead=_gate_share(sums),
        hardware=model.title if model is not None else None,
    )


# -- helpers -----------------------------------------------------------------------------------------------------------


def _cost_percent(sums: Iterable[EpochSums]) -> float:
    every = list(sums)
    return 100 * sum(s.bitops for s in every) / FLOAT_MAC_BITS / sum(s.work for s in every)


def _point(
    ledger: Ledger, sums: Mapping[int, EpochSums], weights: Mapping[str, float], priced: RunCost | None
) -> CostPoint:
    """Return the cost of the given epochs together."""
    known = ledger.meta.get("forward_macs") is not None
    macs = _forward_macs(ledger) if known else 0.0
    samples = {epoch: _samples(ledger, epoch) for epoch in sums}
    cps = {epoch: cp_of([s], weights) for epoch, s in sums.items()}
    cost, note = (None, "") if priced is None else (priced.until(max(sums)), priced.note(max(sums)))
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
        macs_paper=sum(cps[e] / 100 * samples[e] * 3 * macs for e in sums) if known else None,
        energy_j=cost.joules.total if cost else None,
        latency_s=cost.seconds.total if cost else None,
        extrapolated=bool(note),
        note=note,
    )


def _gate_share(sums: Mapping[int, EpochSums]) -> float:
    forward = sum(s.forward for s in sums.values())
    return sum(s.gate_forward for s in sums.values()) / forward if forward else 0.0


def _samples(ledger: Ledger, epoch: int) -> int:
    count = ledger.sample_count("train", epoch)
    if not count:
        raise ConfigError(f"the ledger counts work but no samples in epoch {epoch}: call ledger.samples(n) per batch")
    return count


def _forward_macs(ledger: Ledger) -> float:
    macs = ledger.meta.get("forward_macs")
    if not macs:
        raise ConfigError(
            "the ledger does not know the model's MACs: set meta['forward_macs'] (forward pass, one sample)"
        )
    return float(macs)


def _nothing_counted(phase: str, until_epoch: int | None) -> ConfigError:
    upto = "" if until_epoch is None else f" up to epoch {until_epoch}"
    return ConfigError(f"the ledger holds no work of phase {phase!r}{upto}: train first, or take another run's ledger")

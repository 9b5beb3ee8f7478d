"""What stored runs cost on hardware models, in all and by layer, product, widths or stage. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from fractrain.util.errors import FractrainError, StoreError

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.cost.hardware import Cost, HardwareModel
    from fractrain.cost.ledger import Ledger
    from fractrain.cost.price import Counts, RunCost
    from fractrain.engine.store import RunRecord

BY: Final = ("layer", "product", "stage", "width", "epoch")


@dataclass(frozen=True)
class PricedRun:
    """One run on one hardware model.

    Attributes:
        hardware: the model's name with its settings.
        cost: what the run costs; None where the model cannot say.
        best: cost up to the epoch of best test accuracy, and the samples fed until then.
        problem: why there is no cost; empty if there is.
        groups: cost by group, in order; empty where none were asked for.
    """

    hardware: str
    cost: RunCost | None
    best: tuple[Cost, int] | None = None
    problem: str = ""
    groups: tuple[Group, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if self.cost is None or self.best is None:
            return {"hardware": self.hardware, "problem": self.problem}
        best, samples = self.best
        return {
            "hardware": self.hardware,
            "best": _plain(best, samples),
            "end": _plain(self.cost.until(), self.cost.samples()),
            "note": self.cost.note(),
            "by": [asdict(group) for group in self.groups],
        }


@dataclass(frozen=True)
class Group:
    """A share of a run's cost.

    Attributes:
        name: of the layer, product, stage, pair of widths or epoch.
        cycles, seconds, joules: of the whole run.
    """

    name: str
    macs: float
    cycles: float
    seconds: float
    joules: float


def price_run(record: RunRecord, models: Sequence[HardwareModel], by: str = "") -> list[PricedRun]:
    """Price a finished run with several hardware models; one that cannot says why.

    Args:
        by: what the cost is split by, one of :data:`BY`; empty: not at all.

    Raises:
        StoreError: the run is not finished, or its ledger cannot be read.
    """
    from fractrain.cost.price import Counts

    if record.summary is None:
        raise StoreError(f"run {record.run_id} has status {record.status!r}: only finished runs have a cost")
    counts = Counts.from_ledger(record.ledger())
    return [_priced(record, counts, model, by) for model in models]


def price_record(record: Any, counts: Counts, model: HardwareModel) -> RunCost:
    """Price what a run's ledger counted, with the shapes of its model and its own clock where a model needs them.

    Raises:
        FractrainError: the model cannot price it; says why.
    """
    from fractrain.cost.price import Recorded, price
    from fractrain.engine.layer_shapes import run_layer_shapes

    geometry = run_layer_shapes(record.config) if model.needs_geometry else None
    recorded = Recorded.from_metrics(record.metrics()) if model.measures else None
    return price(counts, model, geometry, recorded)


def costs_on(record: Any, ledger: Ledger, model: HardwareModel) -> tuple[dict[str, float], str]:
    """Return a finished run's energy and latency on a hardware model, and why they are an extrapolation (or nothing).

    The numbers are called as :class:`fractrain.cost.metrics.CostSummary` calls its own: ``energy_j@best``, ...
    What the model does not know (a clock or meter that was not read) is left out.

    Raises:
        FractrainError: the model cannot price it; says why.
    """
    from fractrain.cost.price import Counts

    priced, best = price_record(record, Counts.from_ledger(ledger), model), int(record.summary["best_test_epoch"])
    found: dict[str, float] = {}
    for at, cost in (("best", priced.until(best)), ("end", priced.until())):
        found |= {f"energy_j@{at}": cost.joules.total, f"latency_s@{at}": cost.seconds.total}
    return {key: value for key, value in found.items() if not math.isnan(value)}, priced.note(best)


def _priced(record: RunRecord, counts: Counts, model: HardwareModel, by: str) -> PricedRun:
    try:
        cost = price_record(record, counts, model)
    except FractrainError as problem:
        return PricedRun(model.title, None, problem=str(problem))
    epoch = int((record.summary or {})["best_test_epoch"])
    groups = tuple(_groups(cost, record, by)) if by else ()
    return PricedRun(model.title, cost, (cost.until(epoch), cost.samples(epoch)), groups=groups)


def _groups(cost: RunCost, record: RunRecord, by: str) -> Iterator[Group]:
    import numpy as np
    import pandas as pd

    from fractrain.cost.hardware.base import PARTS

    table = cost.frame()
    parts = [["macs"], ["cycles"], *([f"{kind}_{part}" for part in PARTS] for kind in ("seconds", "joules"))]
    amounts = np.column_stack([table[names].to_numpy(dtype=float).sum(axis=1) for names in parts])
    codes, names = pd.factorize(_keys(table, record, by))
    sums = np.zeros((len(names), len(parts)))
    np.add.at(sums, codes, amounts)
    for name, line in zip(names, sums.tolist(), strict=True):
        if line[2] > 0:
            yield Group(str(name), *line)


def _keys(table: pd.DataFrame, record: RunRecord, by: str) -> pd.Series[Any]:
    """Name of each line's group."""
    from fractrain.cost.price import OVERHEAD

    if by == "layer":
        return table["layer"]
    if by == "epoch":
        return table["epoch"]
    if by == "product":
        return table["product"].where(table["product"] != "", OVERHEAD)
    if by == "width":
        names = [table[f"format{n}"].where(table[f"format{n}"] != "", table[f"bits{n}"].astype(str)) for n in (1, 2)]
        widths = names[0] + "x" + names[1]
        return widths.where(table["macs"] > 0, OVERHEAD)
    return table["epoch"].map({line["epoch"]: _stage(line) for line in record.metrics()}).fillna("no stages")


def _stage(line: Mapping[str, Any]) -> str:
    stage = (line.get("method") or {}).get("stage")
    return "no stages" if stage is None else f"stage {int(stage)}"


def _plain(cost: Cost, samples: int) -> dict[str, Any]:
    seconds, joules = cost.seconds.total, cost.joules.total
    return {
        "samples": samples, "cycles": cost.cycles, "seconds": seconds, "joules": joules,
        "seconds_per_sample": seconds / samples, "joules_per_sample": joules / samples,
        "seconds_parts": asdict(cost.seconds), "joules_parts": asdict(cost.joules),
    }  # fmt: skip

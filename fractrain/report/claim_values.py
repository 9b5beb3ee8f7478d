"""The quantities that claims are about: paired numbers of runs, facts of single runs, and what was published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fractrain.cost.hardware import create
from fractrain.engine.record import RunRecord
from fractrain.report.rows import published_value
from fractrain.report.savings import split_text
from fractrain.report.sources import PublishedIndex, Sources, Store
from fractrain.report.spec import Pair, RunRequest, TableSpec
from fractrain.report.values import RunValues
from fractrain.util.errors import FractrainError

LENGTHS: Final = {"1/256": 256, "1/128": 128, "1/64": 64, "1/32": 32, "1/16": 16, "short": 8, "1/4": 4, "1/2": 2}
"""Profiles shorter than the paper's that are looked for, with n of 1/n, shortest first."""
Runs = dict[int, RunValues]


@dataclass(frozen=True)
class ClaimPlace:
    """Where a claim's numbers are.

    Attributes:
        row, against: keys of the row and of those it is set against.
        may_have: whether the store can hold a run of a request at all, where that is known without looking for it.
    """

    table: TableSpec
    row: str
    against: tuple[str, ...]
    store: Store | None
    sources: Sources
    printed: str
    may_have: Callable[[RunRequest], bool] = lambda _: True

    @property
    def circular(self) -> bool:
        """Whether the table's hardware model is fitted to published rows, so that it is no evidence for them."""
        return bool(self.table.hardware) and create(self.table.hardware).fitted_to_published

    def pairs(self, name: str) -> list[Pair]:
        """The table's pairs called ``model/dataset``, in each of their settings."""
        return [pair for pair in self.table.pairs if pair.key == name]

    def records(self, row: str, pair: Pair, profile: str, seeds: int) -> Iterator[tuple[int, RunRecord]]:
        """Finished runs of a row by seed."""
        if self.store is None:
            return
        try:
            request = self.table.request(pair, self.table.row(row), profile)
        except FractrainError:  # no such data or model here: nothing can have been run
            return
        for seed in range(seeds if self.may_have(request) else 0):
            try:
                record = self.store.get(self.sources.make_config(request, seed).run_id)
            except FractrainError:
                return
            if record is not None and record.status == "done":
                yield seed, record

    def measured(self, row: str, pair: Pair, profile: str, seeds: int) -> Runs:
        """Their numbers."""
        return {s: self.sources.measure(r, self.table.hardware) for s, r in self.records(row, pair, profile, seeds)}


def paired_values(place: ClaimPlace, quantity: str, name: str, profile: str, seeds: int) -> dict[object, float]:
    """The quantity over seeds (and settings of the pair) that the row and its rival both have."""
    found: dict[object, float] = {}
    for pair in place.pairs(name):
        own = place.measured(place.row, pair, profile, seeds)
        if not own:
            continue
        if quantity == "late_drop":
            drops = {s: m.values["accuracy_best_test"] - m.values["accuracy_last"] for s, m in own.items()}
            found |= {(pair.setting, s): v for s, v in drops.items()}
            continue
        others = [runs for key in place.against if (runs := place.measured(key, pair, profile, seeds))]
        if not others:
            continue
        rival = max(others, key=lambda runs: sum(m.values["accuracy_best_test"] for m in runs.values()) / len(runs))
        for seed in sorted(set(own) & set(rival)):
            value = _VALUES[quantity](own[seed], rival[seed])
            if value is not None:
                found[pair.setting, seed] = value
    return found


def _saving(own: float | None, other: float | None) -> float | None:
    return None if own is None or not other else 100 * (1 - own / other)


def _ratio(own: float | None, other: float | None) -> float | None:
    return None if not own or other is None else other / own


_VALUES: Final[dict[str, Callable[[RunValues, RunValues], float | None]]] = {
    "accuracy_gap": lambda own, other: own.values["accuracy_best_test"] - other.values["accuracy_best_test"],
    "saving_macs": lambda own, other: _saving(own.values.get("macs_best"), other.values.get("macs_best")),
    "saving_latency": lambda own, other: _saving(own.values.get("latency"), other.values.get("latency")),
    "saving_energy": lambda own, other: _saving(own.values.get("energy"), other.values.get("energy")),
    "ratio_bitops": lambda own, other: _ratio(*(r.values.get("bitops_quantized_end") for r in (own, other))),
    "ratio_energy": lambda own, other: _ratio(own.values.get("energy_end"), other.values.get("energy_end")),
}


# -- facts of single runs ----------------------------------------------------------------------------------------------


def mechanism(place: ClaimPlace, quantity: str, name: str, seeds: int) -> list[float | None]:
    """One number for each finished run of any length; None where its record does not have it."""
    readers: dict[str, Callable[[Any], float | None]] = {
        "share_below_final": _below_final,
        "adaptive_share": _adaptive,
        "analysis_share": partial(_last_metric, name="analysis_percent"),
        "storage_share": partial(_last_metric, name="storage_percent"),
    }
    profiles = (*LENGTHS, "paper")
    records = (
        record for pair in place.pairs(name) for profile in profiles
        for _, record in place.records(place.row, pair, profile, seeds)
    )  # fmt: skip
    return [readers[quantity](record) for record in records]


def _below_final(record: Any) -> float:
    """Percent of the evaluation periods that ended before the final stage; 100 if it is never reached."""
    settings = record.config.settings
    final = int(settings.get("stages") or len(settings["bits"])) - 1
    stages = [int((line.get("method") or {}).get("stage", 0)) for line in record.metrics()]
    return 100 * sum(stage < final for stage in stages) / len(stages)


def _last_metric(record: Any, name: str) -> float | None:
    """What the method said of itself at the run's end; None where an old record lacks it."""
    value = record.metrics()[-1].get("method", {}).get(name)
    return None if value is None else float(value)


def _adaptive(record: Any) -> float:
    """Percent of the gated blocks that ran at more than one precision in the last test, while weights stood still."""
    ledger = record.ledger()
    blocks = ledger.meta["blocks"]
    last = max(ledger.epochs("eval"))
    widths: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in ledger.rows():
        if row.phase == "eval" and row.epoch == last and ".gate" not in row.layer:
            block = next((b for b in blocks if row.layer.startswith(f"{b}.")), None)
            if block is not None:
                widths[f"{block} {row.layer}"].add((row.bits1, row.bits2))
    several = {key.split()[0] for key, found in widths.items() if len(found) > 1}
    return 100 * len(several) / len(blocks)


# -- what was published ------------------------------------------------------------------------------------------------

_METRICS: Final[dict[str, tuple[str, Callable[[float, Sequence[float]], float]]]] = {
    "accuracy_gap": ("acc_top1_%", lambda own, others: own - max(others)),
    "saving_macs": ("effective_MACs", lambda own, others: 100 * (1 - own / others[0])),
    "saving_latency": ("latency_min", lambda own, others: 100 * (1 - own / others[0])),
    "saving_energy": ("energy_kJ", lambda own, others: 100 * (1 - own / others[0])),
}


def published_text(place: ClaimPlace, quantity: str, names: Sequence[str]) -> str:
    """What the published rows give for the quantity, pair by pair; of latency and MACs also what it consists of."""
    if quantity not in _METRICS:
        return ""
    metric, combine = _METRICS[quantity]
    index = PublishedIndex(place.sources.published, place.printed)
    parts = []
    for pair in (pair for name in names for pair in place.pairs(name)):
        own = _number(place, index, pair, place.row, metric)
        others = [v for key in place.against if (v := _number(place, index, pair, key, metric)) is not None]
        if own is None or not others:
            continue
        value = combine(own, others)
        parts.append(f"{pair.key} {value:+.2f}" if quantity == "accuracy_gap" else f"{pair.key} {value:.1f} %")
    split = _split(place, index, names) if quantity in ("saving_macs", "saving_latency") and len(names) == 1 else ""
    return "; ".join(filter(None, (", ".join(parts), split)))


def _number(place: ClaimPlace, index: PublishedIndex, pair: Pair, row: str, metric: str) -> float | None:
    found = published_value(pair, place.table.row(row), metric, index)
    return None if found is None else float(found.value)


def _split(place: ClaimPlace, index: PublishedIndex, names: Sequence[str]) -> str:
    pair = place.pairs(names[0])[0]
    metrics = ("effective_MACs", "latency_min")
    own, other = ([_number(place, index, pair, row, m) for m in metrics] for row in (place.row, place.against[0]))
    return split_text(pair.model, own, other)

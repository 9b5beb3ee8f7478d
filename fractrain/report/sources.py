"""Where tables get their numbers from: the run store, the published rows, and the cost of a finished run.

Everything a table needs from elsewhere comes through :class:`Sources`, so that a table can be built from any store.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fractrain.cost import published
from fractrain.cost.published import PublishedRow
from fractrain.engine.config import RunConfig
from fractrain.engine.record import RunRecord
from fractrain.report.quantities import all_quantities
from fractrain.report.spec import RunRequest
from fractrain.report.values import RunValues
from fractrain.util.errors import ConfigError, FractrainError, PluginError, StoreError

if TYPE_CHECKING:
    from fractrain.cost.price import Counts, Geometries
    from fractrain.engine.registries import Registries


class Store(Protocol):
    """What is used of the run store."""

    def get(self, run_id: str) -> RunRecord | None:
        """The record of this run, or None."""


class Stores:
    """Several stores as one: the first that has a finished run of an id gives it.

    Args:
        stores: in the order in which they are asked.
    """

    def __init__(self, *stores: Store) -> None:
        self._stores = stores

    def get(self, run_id: str) -> RunRecord | None:
        """The finished record of this run; else that of the first store that has any."""
        found = [record for store in self._stores if (record := store.get(run_id)) is not None]
        return next((record for record in found if record.status == "done"), found[0] if found else None)


class Remembering:
    """A store that is asked for each run once."""

    def __init__(self, store: Store) -> None:
        self.get = functools.lru_cache(maxsize=None)(store.get)


class NotInRelease(ConfigError):
    """A table names a model or a data set that this release does not have.

    Attributes:
        state: ``no model`` or ``no data``.
    """

    def __init__(self, kind: Literal["model", "data set"], name: str, known: Sequence[str]) -> None:
        super().__init__(f"the {kind} {name} is not in this release, which has {', '.join(known)}")
        self.state: Literal["no model", "no data"] = "no model" if kind == "model" else "no data"


@dataclass(frozen=True)
class Work:
    """What one finished run computed: counts of its training and shapes of its layers."""

    counts: Counts
    geometry: Geometries


MakeConfig = Callable[[RunRequest, int], RunConfig]
Measure = Callable[[RunRecord, str], RunValues]


@dataclass(frozen=True)
class Sources:
    """The three suppliers of a table.

    Attributes:
        make_config: from a run request and a seed to a configuration; raises ``PluginError`` where the method's plugin
            is missing and another ``FractrainError`` where method, model and data do not go together.
        measure: from a finished run and the name of a hardware model to the numbers of a cell.
        published: the papers' numbers.
        work: from a finished run to what it computed; None where that is not known.
    """

    make_config: MakeConfig
    measure: Measure
    published: Sequence[PublishedRow]
    work: Callable[[Any], Work | None] = lambda record: None


def default_sources() -> Sources:
    """Configurations of the engine, costs from the ledger, and the published rows that ship with the package."""
    from fractrain.engine.registries import Registries

    known = Registries()  # one for all runs: it keeps the models that methods looked at
    rows = published.rows()
    return Sources(lambda request, seed: engine_config(request, seed, known), measure_run, rows, run_work)


def cached_sources(sources: Sources) -> Sources:
    """Sources that make each configuration and measure each run once: claims, tables and figures are about the same."""
    made: dict[tuple[str, int], RunConfig] = {}
    measured: dict[tuple[str, str], RunValues] = {}

    def make(request: RunRequest, seed: int) -> RunConfig:
        key = (repr(request), seed)
        if key not in made:
            made[key] = sources.make_config(request, seed)
        return made[key]

    def measure(record: RunRecord, hardware: str) -> RunValues:
        key = (record.run_id, hardware)
        if key not in measured:
            measured[key] = sources.measure(record, hardware)
        return measured[key]

    return replace(sources, make_config=make, measure=measure)


def engine_config(request: RunRequest, seed: int, registries: Registries | None = None) -> RunConfig:
    """The engine's configuration of one run.

    Raises:
        PluginError: the method is not installed, or cannot be loaded.
        NotInRelease: there is no such model or data set.
        ConfigError: method, settings, model, data set and profile do not go together.
    """
    from fractrain.data import registry as datasets
    from fractrain.engine.registries import Registries
    from fractrain.models import registry as models

    if request.model not in models.names():
        raise NotInRelease("model", request.model, models.names())
    if request.dataset not in datasets.names():
        raise NotInRelease("data set", request.dataset, datasets.names())
    known = registries or Registries()
    try:
        known.method_class(request.method)
    except FractrainError as error:
        raise PluginError(str(error)) from error

    return RunConfig.create(**request.model_dump(), seed=seed, registries=known)


def measure_run(record: RunRecord, hardware: str) -> RunValues:
    """The numbers of one finished run, by quantity.

    Args:
        record: a run with status ``done``.
        hardware: name of a hardware model, or an empty string for none.

    Raises:
        StoreError: the run has no summary.
        ConfigError: its ledger holds no work.
    """
    from fractrain.cost.hardware import create
    from fractrain.cost.metrics import summarize
    from fractrain.report.run_cost import costs_on

    summary = record.summary
    if summary is None:
        raise StoreError(f"run {record.run_id} has status {record.status!r} and no summary: it cannot be in a table")
    ledger, best_epoch = record.ledger(), int(summary["best_test_epoch"])
    costs, note, not_priced = summarize(ledger, best_epoch).as_dict(), "", ""
    costs["macs_authors@best"] = _in_authors_unit(record, ledger, costs["macs_paper@best"])
    if hardware:
        try:
            modelled, note = costs_on(record, ledger, create(hardware))
            costs |= modelled
            not_priced = "" if len(modelled) == 4 else "no meter was read"
        except FractrainError as problem:  # one model that fails must not end the table
            not_priced = str(problem)
    return RunValues({q.key: value for q, value in all_quantities({**summary, "cost": costs})}, note, not_priced)


def _in_authors_unit(record: RunRecord, ledger: Any, macs: Any) -> float | None:
    """MACs counted with the forward MACs of the published rows; None where those are not known.

    The exact count of a ResNet-38 is 1.9 % below the authors' constant: so far the same run would be off.
    """
    from fractrain.cost.formulas import AUTHORS_FORWARD_MACS

    summary = record.summary or {}
    ours, theirs = ledger.meta.get("forward_macs"), AUTHORS_FORWARD_MACS.get(str(summary.get("model")))
    if macs is None or not ours or theirs is None or summary.get("dataset") not in ("cifar10", "cifar100"):
        return None
    return float(macs) * theirs / float(ours)


def run_work(record: RunRecord) -> Work:
    """The work of a finished run.

    Raises:
        FractrainError: its ledger or its model cannot be read.
    """
    from fractrain.cost.price import Counts
    from fractrain.engine.layer_shapes import run_layer_shapes

    return Work(Counts.from_ledger(record.ledger()), run_layer_shapes(record.config))


class PublishedIndex:
    """Published rows by model, data set, method, precision and metric, as the paper writes them.

    Args:
        table: the table that is meant where a look-up names none.
    """

    def __init__(self, rows: Sequence[PublishedRow], table: str) -> None:
        apart = [part for row in rows for part in _parts(row)]
        self._rows = {(r.table, r.model, r.dataset, r.method, r.precision, r.metric): r for r in apart}
        self._places = {key[:-1] for key in self._rows}
        self._table = table

    def has(self, model: str, dataset: str, method: str, precision: str, table: str = "") -> bool:
        """Whether the source gives anything for this row, whatever the metric."""
        return (table or self._table, model, dataset, method, precision) in self._places

    def get(
        self, model: str, dataset: str, method: str, precision: str, metric: str, table: str = ""
    ) -> PublishedRow | None:
        """The published row, or None where the source gives none."""
        return self._rows.get((table or self._table, model, dataset, method, precision, metric))


def _parts(row: PublishedRow) -> list[PublishedRow]:
    """A row that holds several numbers (``acc_diff / MACs_saving``: ``-0.07 / 52.85%``) as one row each."""
    metrics, values = row.metric.split(" / "), str(row.value).split(" / ")
    if len(metrics) == 1 or len(metrics) != len(values):
        return [row]
    return [replace(row, metric=metric, value=value) for metric, value in zip(metrics, values, strict=True)]

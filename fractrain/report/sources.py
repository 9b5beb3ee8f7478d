"""Where tables get their numbers from: the run store, the published rows, and the cost of a finished run.

Everything a table needs from elsewhere comes through :class:`Sources`, so that a table can be built from any store
(and tested with a plain one), and so that importing this package loads neither torch nor the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from fractrain.cost import published
from fractrain.cost.published import PublishedRow
from fractrain.report.spec import RunRequest
from fractrain.report.values import Measured
from fractrain.util.errors import ConfigError, FractrainError, PluginError, StoreError


class Config(Protocol):
    """What is used of a run's configuration."""

    @property
    def run_id(self) -> str:
        """Hash of everything that can change the result."""


class SourceConfig(Config, Protocol):
    """What is used of the configuration of a source run: one that another run starts from."""

    @property
    def method(self) -> str:
        """Registry name of its method."""

    @property
    def model(self) -> str:
        """Registry name of its model."""

    @property
    def dataset(self) -> str:
        """Registry name of its data set."""

    @property
    def profile(self) -> str:
        """``smoke``, ``short`` or ``paper``."""

    @property
    def setting(self) -> str:
        """``adaptation-source`` or ``fine-tuning-source``."""

    @property
    def seed(self) -> int:
        """Its seed."""


class Record(Protocol):
    """What is used of a stored run."""

    @property
    def run_id(self) -> str:
        """Same as the configuration's."""

    @property
    def status(self) -> str:
        """``done``, ``failed``, ``diverged``, ``interrupted``, ``running`` or ``damaged``."""

    @property
    def message(self) -> str:
        """Why it is not done, or what is damaged."""

    @property
    def verified(self) -> bool:
        """Whether its files agree with its manifest."""

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """Accuracies in percent and epochs; None unless the status is ``done``."""

    @property
    def config(self) -> Any:
        """What was run."""

    def ledger(self) -> Any:
        """Counted work."""


class Store(Protocol):
    """What is used of the run store."""

    def get(self, run_id: str) -> Record | None:
        """The record of this run, or None."""


class NotInRelease(ConfigError):
    """A table names a model or a data set that this release does not have.

    Attributes:
        state: ``no model`` or ``no data``.
    """

    def __init__(self, kind: Literal["model", "data set"], name: str, known: Sequence[str]) -> None:
        super().__init__(f"the {kind} {name} is not in this release, which has {', '.join(known)}")
        self.state: Literal["no model", "no data"] = "no model" if kind == "model" else "no data"


MakeConfig = Callable[[RunRequest, int], Config]
Measure = Callable[[Record, str], Measured]


@dataclass(frozen=True)
class Sources:
    """The three suppliers of a table.

    Attributes:
        make_config: from a run request and a seed to a configuration; raises ``PluginError`` where the method's plugin
            is missing and another ``FractrainError`` where method, model and data do not go together.
        measure: from a finished run and the name of a hardware model to the numbers of a cell.
        published: the papers' numbers.
    """

    make_config: MakeConfig
    measure: Measure
    published: Sequence[PublishedRow]


def default_sources() -> Sources:
    """Configurations of the engine, costs from the ledger, and the published rows that ship with the package."""
    return Sources(engine_config, measure_run, published.rows())


def engine_config(request: RunRequest, seed: int) -> Config:
    """The engine's configuration of one run.

    Raises:
        PluginError: the method is not installed, or cannot be loaded.
        NotInRelease: there is no such model or data set.
        ConfigError: method, settings, model, data set and profile do not go together.
    """
    from fractrain.data import registry as datasets
    from fractrain.engine.config import RunConfig  # these load the method's plugin, and torch with it
    from fractrain.engine.registries import Registries
    from fractrain.models import registry as models

    if request.model not in models.names():
        raise NotInRelease("model", request.model, models.names())
    if request.dataset not in datasets.names():
        raise NotInRelease("data set", request.dataset, datasets.names())
    try:
        Registries().method_class(request.method)
    except FractrainError as error:
        raise PluginError(str(error)) from error

    config: Config = RunConfig.create(
        method=request.method,
        model=request.model,
        dataset=request.dataset,
        profile=request.profile,
        seed=seed,
        settings=dict(request.settings),
        recipe=dict(request.recipe),
        setting=request.setting,
    )
    return config


ACCURACIES = {
    "last": "test_accuracy_last",
    "best_val": "test_accuracy_at_best_val",
    "best_test": "test_accuracy_best",
    "trivial": "trivial_accuracy",  # of a predictor that has learned nothing but frequencies
}
PERPLEXITIES = {
    "last": "test_perplexity_last",
    "best_val": "test_perplexity_at_best_val",
    "best_test": "test_perplexity_best",
    "trivial": "trivial_perplexity",
}


def measure_run(record: Record, hardware: str) -> Measured:
    """Accuracies (or perplexities) and costs of one finished run.

    Args:
        record: a run with status ``done``.
        hardware: name of a hardware model, or an empty string for none.

    Raises:
        StoreError: the run has no summary.
        ConfigError: its ledger holds no work.
    """
    from fractrain.cost.metrics import summarize

    summary = record.summary
    if summary is None:
        raise StoreError(f"run {record.run_id} has status {record.status!r} and no summary: it cannot be in a table")
    ledger, best_epoch = record.ledger(), int(summary["best_test_epoch"])
    cost = summarize(ledger, best_epoch)
    best = cost.best
    return Measured(
        accuracy=_numbers(summary, ACCURACIES),
        perplexity=_numbers(summary, PERPLEXITIES),
        macs_best=best.macs_paper,
        macs_end=cost.end.macs_paper,
        cp_percent=best.cp_percent,
        bitops_end=float(cost.end.bitops),
        **(_modelled(record, ledger, best_epoch, hardware) if hardware else {}),
    )


def _modelled(record: Record, ledger: Any, best_epoch: int, hardware: str) -> dict[str, Any]:
    """Energy and latency by a hardware model, or why there are none: one model that fails must not end the table."""
    from fractrain.cost.hardware import create
    from fractrain.cost.price import Counts
    from fractrain.report.run_cost import price_record

    try:
        priced = price_record(record, Counts.of(ledger), create(hardware))
    except FractrainError as problem:
        return {"not_priced": str(problem)}
    best, end = priced.until(best_epoch), priced.until()
    found = {
        "energy_kj": best.joules.total / 1e3,
        "latency_min": best.seconds.total / 60,
        "energy_end_kj": end.joules.total / 1e3,
        "latency_end_min": end.seconds.total / 60,
    }
    known = {key: value for key, value in found.items() if not math.isnan(value)}
    lacks = "" if len(known) == len(found) else "no meter was read"
    return {**known, "caveat": priced.note(best_epoch), "not_priced": lacks}


def _numbers(summary: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, float]:
    return {name: float(summary[key]) for name, key in keys.items() if summary.get(key) is not None}


class PublishedIndex:
    """Published rows by model, data set, method, precision and metric, as the paper writes them.

    Args:
        rows: all published rows.
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

"""Campaigns: runs in a stated order at several lengths, read from ``benchmarks/campaigns/*.toml``.

A table asks for all its runs; a campaign is a list that may be stopped anywhere: whatever is done is a prefix of it.
Methods are rows of tables, so that the runs are those of ``fractrain reproduce TABLE --length 1/n``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from fractrain.engine.length import check_profile, length_divisor
from fractrain.report.grid import PlannedRun, planned_run
from fractrain.report.sources import Sources, Store, default_sources
from fractrain.report.spec import (
    Pair,
    PublishedKey,
    RowSpec,
    RunRequest,
    TableSpec,
    benchmark_folders,
    load_spec,
    read_closed,
)
from fractrain.util.errors import ConfigError, did_you_mean
from fractrain.util.schema import Strict


class CampaignMethod(Strict):
    """One method of a campaign: a row of a table with changes, or a method with settings of its own.

    Attributes:
        row: ``table/row``; empty: ``label``, ``method`` and ``precision`` say what it is.
        label, precision: in place of the row's.
        method: registry name, where there is no row.
        settings: on top of the row's.
        published: where its published numbers are, if not where the row's are.
    """

    key: str
    row: str = ""
    label: str = ""
    method: str = ""
    precision: str = ""
    settings: dict[str, Any] = {}
    published: PublishedKey | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> CampaignMethod:
        if bool(self.row) == bool(self.method):
            raise ValueError(f"{self.key}: give `row` or `method`")
        return self

    def resolve(self) -> tuple[TableSpec | None, RowSpec]:
        """The table it comes from, and its row with the changes.

        Raises:
            ConfigError: no such table or row.
        """
        if not self.row:
            label = self.label or self.method
            return None, RowSpec(
                key=self.key, label=label, method=self.method, precision=self.precision, settings=self.settings,
                published=self.published,
            )  # fmt: skip
        table, _, key = self.row.partition("/")
        spec = load_spec(table)
        if key not in [row.key for row in spec.rows]:
            raise ConfigError(f"{table} has no row {key!r}{did_you_mean(key, [row.key for row in spec.rows])}")
        row = spec.row(key)
        changes = {
            "key": self.key, "label": self.label or row.label, "precision": self.precision or row.precision,
            "settings": row.settings | self.settings, "published": self.published or row.published,
        }  # fmt: skip
        return spec, row.model_copy(update=changes)


class CampaignLine(Strict):
    """Some methods on one data set at one length, seed by seed: with every seed a comparison is complete."""

    dataset: str
    length: str
    methods: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    seeds: tuple[int, ...] = pydantic.Field(min_length=1, strict=False)


class TrendSpec(Strict):
    """How gaps are followed to the paper's length, see :mod:`fractrain.report.trend`.

    Attributes:
        against: keys of the methods that others are set against.
        tolerance: half the width of the zone around a published gap, in percentage points.
    """

    against: tuple[str, ...] = pydantic.Field(min_length=1, strict=False)
    tolerance: float = pydantic.Field(default=1.0, gt=0)


class Campaign(Strict):
    """A whole campaign; ``datasets`` gives the name of each data set in the published rows."""

    name: str
    version: int = pydantic.Field(ge=1)
    title: str
    caption: str
    source: str
    model: str
    model_label: str
    datasets: dict[str, str]
    published_table: str
    hardware: str = ""
    trend: TrendSpec
    methods: tuple[CampaignMethod, ...] = pydantic.Field(min_length=1, strict=False)
    lines: tuple[CampaignLine, ...] = pydantic.Field(min_length=1, strict=False)
    notes: tuple[str, ...] = pydantic.Field(default=(), strict=False)

    @pydantic.model_validator(mode="after")
    def _names_fit(self) -> Campaign:
        keys = [method.key for method in self.methods]
        if len(set(keys)) < len(keys):
            raise ValueError(f"methods: two have the same key in {keys}")
        for key in (*self.trend.against, *(key for line in self.lines for key in line.methods)):
            if key not in keys:
                raise ValueError(f"no method has the key {key!r}{did_you_mean(key, keys)}")
        for line in self.lines:
            if line.dataset not in self.datasets:
                raise ValueError(f"lines: no name is given for the data set {line.dataset!r}")
            if length_divisor(check_profile(line.length)) is None:
                raise ValueError(f"lines: {line.length!r} is no share of the paper's length")
        return self

    def pair(self, dataset: str) -> Pair:
        """Model and data set, with their names in the published rows."""
        return Pair(
            model=self.model, dataset=dataset, model_label=self.model_label, dataset_label=self.datasets[dataset]
        )


def campaign_names() -> list[str]:
    """Names of the campaigns there are."""
    return sorted(file.stem for folder in benchmark_folders("campaigns") for file in folder.glob("*.toml"))


def load_campaign(name: str) -> Campaign:
    """Read a campaign by its name, or from a TOML file of your own (ending in ``.toml``).

    Raises:
        ConfigError: no such campaign, or its file is not valid.
    """
    files = [Path(name)] if name.endswith(".toml") else [f / f"{name}.toml" for f in benchmark_folders("campaigns")]
    for file in files:
        if name.endswith(".toml") or file.is_file():
            return read_closed(file, Campaign)
    known = campaign_names()
    raise ConfigError(f"unknown campaign {name!r}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}")


def plan_campaign(campaign: Campaign, store: Store | None = None, sources: Sources | None = None) -> list[PlannedRun]:
    """List the runs in the order in which they are made; one that several lines name stands where it comes first."""
    sources = sources or default_sources()
    seen: set[str] = set()
    runs = []
    for pair, row, seed, request in _requests(campaign):
        run = planned_run(pair, row, seed, request, store, sources)
        if run.run_id not in seen or not run.run_id:
            runs.append(run)
        seen.add(run.run_id)
    return runs


def _requests(campaign: Campaign) -> Iterator[tuple[Pair, RowSpec, int, RunRequest]]:
    resolved = {method.key: method.resolve() for method in campaign.methods}
    for line in campaign.lines:
        pair, profile = campaign.pair(line.dataset), check_profile(line.length)
        for seed in line.seeds:
            for key in line.methods:
                yield pair, resolved[key][1], seed, _request(*resolved[key], pair, profile)


def _request(spec: TableSpec | None, row: RowSpec, pair: Pair, profile: str) -> RunRequest:
    if spec is not None:
        return spec.request(pair, row, profile)
    return RunRequest(
        method=row.method, model=pair.model, dataset=pair.dataset, profile=profile, settings=row.settings,
        recipe=row.recipe,
    )  # fmt: skip


def done_in_order(runs: Sequence[PlannedRun]) -> int:
    """How many runs of the list are finished before the first that is not."""
    for number, run in enumerate(runs):
        if run.state != "cached":
            return number
    return len(runs)

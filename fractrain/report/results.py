"""All results as one long pandas DataFrame: a line for each run (or configuration) and quantity."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fractrain.engine.index import RunEntry, read_index
from fractrain.engine.store import RunStore
from fractrain.report.quantities import BY_KEY, BY_METRIC, Quantity, all_quantities
from fractrain.report.stats import estimate
from fractrain.util.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


By = Literal["run", "configuration"]
WHO: Final = ("method", "settings", "model", "dataset", "setting", "profile")
COLUMNS: Final = (
    "run", "group", *WHO, "seed", "status", "quantity", "value", "low", "high", "n", "unit", "better", "origin",
    "source",
)  # fmt: skip


def results(
    store: RunStore | Path | str | None = None,
    by: By = "run",
    published: bool = False,
    hardware: str = "",
    **where: Any,
) -> pd.DataFrame:
    """Return all results of a run store as one long table, ready for ``pivot_table`` or a plotting library.

    Args:
        store: the run store or its folder; None: ``$FRACTRAIN_RESULTS``, else ``results/runs``.
        by: ``run``: a line for each run and quantity. ``configuration``: means over the seeds of runs that differ in
            nothing else, with their 95 % Student t interval; ``run`` and ``seed`` then hold all, separated by blanks.
        published: add the papers' numbers, with ``origin`` ``published`` and their citation as ``source``.
        hardware: name of a hardware model (``fractrain list hardware``); adds energy and latency. Reads every ledger.
        where: what the lines must match, for example ``method="sbm"`` or ``profile=["short", "paper"]``.

    Returns:
        A DataFrame with the columns of :data:`COLUMNS`. ``settings`` names what differs between the configurations of
        a method on one task. ``value`` is in ``unit``; ``low`` and ``high`` are the interval, NaN for a single run.
        ``origin`` is ``measured``, ``derived`` (by a hardware model) or ``published``. Runs that are not finished have
        one line without a quantity, so that they cannot be overlooked.

    Raises:
        ConfigError: unknown name in ``by``, ``where`` or ``hardware``.
        StoreError: the store cannot be read.
    """
    import pandas as pd

    if by not in ("run", "configuration"):
        raise ConfigError(f"by={by!r}{did_you_mean(by, ('run', 'configuration'))}: choose run or configuration")
    if unknown := sorted(where.keys() - {*WHO, "run", "group", "seed", "status"}):
        raise ConfigError(f"results has no column {unknown[0]!r} to choose by{did_you_mean(unknown[0], COLUMNS)}")
    if isinstance(store, str | os.PathLike) or store is None:
        store = RunStore(store)
    frame = frame_of(read_index(store), store, by, hardware)
    if published:
        frame = pd.concat([frame, pd.DataFrame(_published(), columns=list(COLUMNS))], ignore_index=True)
    for name, wanted in where.items():
        several = isinstance(wanted, Sequence | set | frozenset) and not isinstance(wanted, str)
        frame = frame[frame[name].isin(list(wanted) if several else [wanted])]
    return frame.reset_index(drop=True)


def frame_of(entries: Sequence[RunEntry], store: RunStore, by: By = "run", hardware: str = "") -> pd.DataFrame:
    """:func:`results` of some runs, whose ledgers (for a hardware model) are in ``store``."""
    import pandas as pd

    return pd.DataFrame(_lines(entries, by, hardware, store), columns=list(COLUMNS))


def differing(entries: Iterable[RunEntry]) -> dict[str, str]:
    """What tells the configurations of a method apart, by group: ``target_cp=3`` where others have another target."""
    by_method: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for entry in entries:
        recipe = {f"recipe.{key}": value for key, value in entry.recipe.items()}
        by_method[f"{entry.method} {entry.model} {entry.dataset} {entry.setting} {entry.profile}"].setdefault(
            entry.group, {**entry.settings, **recipe, "version": entry.method_version}
        )
    names: dict[str, str] = {}
    for groups in by_method.values():
        keys = list(dict.fromkeys(key for values in groups.values() for key in values))
        first = next(iter(groups.values()))
        varied = [k for k in keys if any(values.get(k) != first.get(k) for values in groups.values())]
        for group, values in groups.items():
            names[group] = ", ".join(f"{key}={_brief(values[key])}" for key in varied if key in values)
    return names


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_brief, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(entries: Sequence[RunEntry], by: By, hardware: str, store: RunStore) -> list[tuple[Any, ...]]:
    settings = differing(entries)
    groups: dict[str, list[RunEntry]] = defaultdict(list)
    for e in entries:
        groups[e.group if by == "configuration" and e.summary is not None else e.run_id].append(e)
    lines: list[tuple[Any, ...]] = []
    for group in groups.values():
        own = sorted(group, key=lambda e: e.seed)
        e = own[0]
        who = (" ".join(x.run_id for x in own), e.group, e.method, settings[e.group], e.model, e.dataset, e.setting,
               e.profile, " ".join(str(x.seed) for x in own), e.status)  # fmt: skip
        if e.summary is None:
            lines.append((*who, "", math.nan, math.nan, math.nan, 0, "", "", "", e.message))
            continue
        found: dict[str, list[float]] = defaultdict(list)
        for x in own:
            for quantity, value in all_quantities(_summary(store, x, hardware)):
                found[quantity.key].append(value)
        for key, values in found.items():
            if len(values) == len(own):  # a mean over some of the seeds would pass for one over all
                lines.append((*who, key, *_measured(BY_KEY[key], values, hardware)))
    return lines


def _summary(store: RunStore, entry: RunEntry, hardware: str) -> Mapping[str, Any]:
    """A run's summary, with its energy and latency on a hardware model, which are computed from its ledger."""
    from fractrain.cost.hardware import create
    from fractrain.report.run_cost import costs_on

    summary = entry.summary or {}
    record = store.get(entry.run_id) if hardware else None
    if record is None or record.summary is None:  # deleted or damaged since it was listed
        return summary
    found, _ = costs_on(record, record.ledger(), create(hardware))
    return {**summary, "cost": {**summary["cost"], **found}}


def _measured(quantity: Quantity, values: Sequence[float], hardware: str) -> tuple[Any, ...]:
    """Mean, interval, n, unit, direction, origin and source."""
    e = estimate(values)
    low, high = (math.nan if end is None else end for end in (e.low, e.high))
    origin = ("derived", f"modelled: {hardware}") if quantity.modelled else ("measured", "")
    return e.mean, low, high, e.n, quantity.unit, quantity.better, *origin


def _published() -> list[tuple[Any, ...]]:
    """The papers' numbers of results/published; one that is text, a range or a phrase, is left out."""
    from fractrain.cost import published

    lines = []
    for row in published.rows():
        if isinstance(row.value, str):
            continue
        q = BY_METRIC.get(row.metric)
        what = (q.key, row.value * q.metric_scale) if q else (row.metric, float(row.value))
        kind = (q.unit, q.better) if q else ("", "")
        source = f"{row.paper}, {row.table}: {row.source}; {row.confidence}"
        who = ("", "", row.method, row.precision, row.model, row.dataset, row.setting, "", "", "")
        lines.append((*who, *what, math.nan, math.nan, 0, *kind, "published", source))
    return lines

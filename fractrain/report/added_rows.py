"""Rows of one's own in a table that is there: methods added to it, each set against one of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fractrain.data import registry as datasets
from fractrain.engine.config import collect_sets
from fractrain.methods import registry
from fractrain.report.quantities import BY_KEY
from fractrain.report.spec import Relative, RowSpec, Series, TableSpec
from fractrain.util.errors import ConfigError, did_you_mean

GAINS = {"image": "accuracy_best_test", "text": "perplexity_best_test"}  # in tables that set no rows against others


def with_added(spec: TableSpec, added: Sequence[str], against: str = "") -> TableSpec:
    """Return a table with one more row for each method, for every pair of the table, and a name of its own.

    Args:
        added: methods, each as ``NAME`` or ``NAME:KEY=VALUE:KEY=VALUE`` with settings (``recipe.KEY`` for the recipe).
        against: key of the row that the new ones are set against; empty: none.

    Raises:
        ConfigError: nothing is trained in this table, an unknown method, setting or row, or a method twice.
    """
    if not added:
        if against:
            raise ConfigError(f"--against {against} sets added rows against that one: add a method with --add")
        return spec
    if spec.errors is not None:
        raise ConfigError(f"{spec.name} trains nothing, it measures number formats: no method can be added to it")
    rows: list[RowSpec] = []
    for text in added:
        row = _row(text, against, [r.key for r in (*spec.rows, *rows)], drawn=spec.figure is not None)
        rows.append(row)
    keys = [r.key for r in (*spec.rows, *rows)]
    if against and against not in keys:
        raise ConfigError(
            f"--against {against}: {spec.name} has no such row{did_you_mean(against, keys)}; it has {', '.join(keys)}"
        )
    names = ", ".join(f"{r.label} ({r.precision})" for r in rows)
    update: dict[str, Any] = {
        "name": f"{spec.name}+{'+'.join(r.key for r in rows)}",
        "rows": (*spec.rows, *rows),
        "relative": _relative(spec, against),
        "notes": (*spec.notes, f"Added to {spec.name}, not part of it: {names}."),
    }
    if spec.figure is not None:
        series = (*spec.figure.series, *(Series(key=r.key, label=r.label) for r in rows))
        update["figure"] = spec.figure.model_copy(update={"series": series})
    return TableSpec.model_validate({**{name: getattr(spec, name) for name in TableSpec.model_fields}, **update})


def _row(text: str, against: str, taken: Sequence[str], drawn: bool) -> RowSpec:
    name, *sets = text.split(":")
    settings, recipe = collect_sets(sets)
    registry.create(name, settings)  # an unknown name or setting ends here, not as an empty row
    key = name if name not in taken else "-".join([name, *(s.replace("=", "-") for s in sets)])
    if key in taken:
        raise ConfigError(f"--add {text}: the table has a row {key!r} already; give other settings, {name}:KEY=VALUE")
    return RowSpec(
        key=key, label=name, method=name, precision=", ".join(sets) or "defaults", settings=settings, recipe=recipe,
        against="" if against == key else against, series=key if drawn else "",
    )  # fmt: skip


def _relative(spec: TableSpec, against: str) -> tuple[Relative, ...]:
    """The table's relative columns; headings that name another rival than the new rows' are replaced."""
    if not against:
        return spec.relative
    rivals = {row.against for row in spec.rows if row.against}
    if spec.relative and rivals == {against}:
        return spec.relative
    if spec.relative:
        return tuple(r.model_copy(update=_heads(r.quantity, "rival")) for r in spec.relative)
    label = next((row.label for row in spec.rows if row.key == against), against)
    kinds = {datasets.info(pair.dataset).kind for pair in spec.pairs}
    gains = [*(quantity for kind, quantity in GAINS.items() if kind in kinds), "macs_best"]
    return tuple(Relative.model_validate({"quantity": gain, **_heads(gain, label)}) for gain in gains)


def _heads(quantity: str, rival: str) -> dict[str, str]:
    what = BY_KEY[quantity]
    if what.is_quality:
        return {"label": f"{what.label} over {rival}", "short": f"over {rival}"}
    return {"label": f"{what.label} {rival}/this", "short": f"{what.family} {rival}/this"}

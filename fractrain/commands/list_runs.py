"""``fractrain list runs``: the runs of a store, those that are looked for, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, stdout_to_stderr
from fractrain.util.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fractrain.engine.index import RunEntry

FIELDS = ("method", "model", "dataset", "setting", "profile", "seed", "status", "run_id", "group")
SHOWN = ("accuracy_last", "perplexity_last", "cost_end", "cp_end")
HEADS = {"accuracy_last": "acc %", "perplexity_last": "ppl", "cost_end": "cost %", "cp_end": "cp %"}


def list_runs(results: Path, where: Sequence[str], as_json: bool) -> None:
    """Print the runs that match all of ``where`` (``KEY=VALUE``; a setting's key is looked for, too)."""
    from fractrain.engine.index import read_index
    from fractrain.engine.store import RunStore

    with stdout_to_stderr():
        entries = read_index(RunStore(results))
    for text in where:
        entries = _matching(entries, text)
    if as_json:
        emit_json([_document(e) for e in entries])
    else:
        click.echo(_text(entries, results))


def _matching(entries: Sequence[RunEntry], text: str) -> list[RunEntry]:
    """The runs of which ``KEY=VALUE`` holds; a list is written with commas."""
    key, equals, value = text.partition("=")
    known = {*FIELDS}
    for e in entries:
        known.update(e.settings, (f"recipe.{name}" for name in e.recipe))
    if not equals or (entries and key not in known):
        raise ConfigError(
            f"--where {text!r}: expected KEY=VALUE{did_you_mean(key, known)}; keys: {', '.join(FIELDS)}, the methods' "
            "settings, recipe.KEY"
        )
    return [e for e in entries if _written(_value(e, key)) == value]


def _value(e: RunEntry, key: str) -> Any:
    if key in FIELDS:
        return getattr(e, key)
    return e.recipe.get(key.removeprefix("recipe.")) if key.startswith("recipe.") else e.settings.get(key)


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _document(e: RunEntry) -> dict[str, Any]:
    from fractrain.report.quantities import all_quantities

    named = {name: getattr(e, name) for name in (*FIELDS, "message", "time", "device", "settings", "recipe")}
    return {**named, "quantities": {q.key: value for q, value in all_quantities(e.summary or {})}}


def _text(entries: Sequence[RunEntry], results: Path) -> str:
    """Aligned lines; tabulate takes seconds for thousands of rows."""
    from fractrain.report.quantities import BY_KEY

    found = [[BY_KEY[key].read(e.summary or {}) for key in SHOWN] for e in entries]
    columns = [place for place in range(len(SHOWN)) if any(values[place] is not None for values in found)]
    rows = [["run", "status", *(HEADS[SHOWN[place]] for place in columns), "profile", "ended (UTC)"]]
    for e, values in zip(entries, found, strict=True):
        told = ["-" if (v := values[place]) is None else f"{v:.2f}" for place in columns]
        rows.append([e.run_id, e.status, *told, e.profile, e.time[:16].replace("T", " ") or "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    number = range(2, 2 + len(columns))
    lines = ["  ".join(text.rjust(w) if i in number else text.ljust(w) for i, (text, w) in
                       enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]  # fmt: skip
    count = f"{len(entries):,} run{'' if len(entries) == 1 else 's'} in {results}"
    legend = "; cost: whole model, cp: gated blocks, both in % of full precision" if columns else ""
    return "\n".join([*(lines if entries else []), count + legend])

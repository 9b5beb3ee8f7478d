"""``fractrain diff``: what differs between two runs in config, data, environment and result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, json_option, options, results_option

if TYPE_CHECKING:
    from fractrain.engine.store import RunRecord

MISSING = "-"
NOT_RESULT = ("run_id", "data_digest")  # told elsewhere
SECTIONS = ("config", "data", "environment", "result")
SHOWN = 60  # characters of a value in the text


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, plain value) of nested mappings; lists are values."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries whose values differ: ``{"key", "a", "b"}``, with ``"change"`` = b - a for numbers.

    A key that one side lacks has ``None`` there and is named in ``"only"``.
    """
    a, b = dict(flatten(one)), dict(flatten(other))
    found = []
    for key in sorted(k for k in a.keys() | b.keys() if k):
        if key in a and key in b and a[key] == b[key]:
            continue
        entry: dict[str, Any] = {"key": key, "a": a.get(key), "b": b.get(key)}
        if key not in a or key not in b:
            entry["only"] = "b" if key in b else "a"
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a[key], b[key])):
            entry["change"] = b[key] - a[key]
        found.append(entry)
    return found


def compare(a: RunRecord, b: RunRecord) -> dict[str, Any]:
    """All differences between two runs, by section; ``same_result`` says whether the trained weights are equal."""
    views = [_views(record) for record in (a, b)]
    sections = {name: differences(views[0][name], views[1][name]) for name in SECTIONS}
    weights = [(record.summary or {}).get("weights_sha256") for record in (a, b)]
    same = None if None in weights else weights[0] == weights[1]
    return {"a": a.run_id, "b": b.run_id, "same_weights": same, **sections}


def _views(record: RunRecord) -> dict[str, dict[str, Any]]:
    summary = dict(record.summary or {})
    environment = {k: v for k, v in record.environment.items() if k != "earlier"}
    return {
        "config": record.config.model_dump(mode="json"),
        "data": {"digest": summary.get("data_digest")},
        "environment": environment,
        "result": {"status": record.status, **{k: v for k, v in summary.items() if k not in NOT_RESULT}},
    }


def _print(found: dict[str, Any]) -> None:
    click.echo(f"a = {found['a']}\nb = {found['b']}")
    for section in SECTIONS:
        entries = found[section]
        click.echo(f"\n{section}: {'the same' if not entries else f'{len(entries)} differ'}")
        width = max((len(e["key"]) for e in entries), default=0)
        for entry in entries:
            a, b = (MISSING if entry.get("only", own) != own else _short(entry[own]) for own in ("a", "b"))
            change = f"  ({entry['change']:+.6g})" if "change" in entry else ""
            click.echo(f"  {entry['key']:<{width}}  {a} -> {b}{change}")
    told = {True: "the trained weights are bit-identical", False: "the trained weights differ"}
    click.echo(f"\n{told.get(found['same_weights'], 'not both runs are done: no weights to compare')}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


@click.command("diff", short_help="Show what differs between two runs.")
@options(click.argument("run_a"), click.argument("run_b"), results_option, json_option)
def diff_command(run_a: str, run_b: str, results: Path, as_json: bool) -> None:
    """Show what differs between two runs in config, data, environment and result.

    RUN_A and RUN_B are run ids or the beginnings of run ids.
    """
    from fractrain.engine.store import RunStore

    store = RunStore(results)
    found = compare(store.find(run_a).undamaged(), store.find(run_b).undamaged())
    if as_json:
        emit_json(found)
    else:
        _print(found)

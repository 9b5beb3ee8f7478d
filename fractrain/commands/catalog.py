"""``fractrain list``: what there is, from the registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import (
    NearestChoice,
    emit_json,
    json_option,
    json_safe,
    options,
    plugin_option,
    results_option,
    short,
    show,
    stdout_to_stderr,
)
from fractrain.util.console import log_line
from fractrain.util.errors import ConfigError, did_you_mean, message_line, typed_line

if TYPE_CHECKING:
    from fractrain.cost.hardware import HardwareModel
    from fractrain.data.info import DatasetInfo
    from fractrain.engine.index import RunEntry
    from fractrain.methods.base import Method
    from fractrain.util.registry import Registry

SAMPLES = 2


# -- what a method reaches in a model ----------------------------------------------------------------------------------


def list_coverage(model: str, method: str, dataset: str | None, sets: Sequence[str], as_json: bool) -> None:
    """Print ``session.report()`` of one evaluation pass; without a data set, the first embedded one that fits.

    Raises:
        ConfigError: a name or setting that is not known, or a data set or method that does not fit the model.
    """
    from fractrain.engine.config import collect_sets

    settings, recipe = collect_sets(sets)
    if recipe:
        raise ConfigError("fractrain list --model trains nothing: --set takes settings of the method only")
    with stdout_to_stderr():
        data = _dataset(model, dataset)
        report = _report(model, method, data, settings)
    value = {
        "model": model, "method": method, "dataset": data.name, "covered_percent": report.covered,
        "quantized_percent": report.percent("quantized"), "products": report.products,
    }  # fmt: skip
    show(as_json, value, f"{method} on {model}, {SAMPLES} samples as in {data.name}\n{report}")


def _dataset(model: str, name: str | None) -> DatasetInfo:
    from fractrain.data import registry
    from fractrain.models.registry import compatible

    if name is not None:
        found = registry.info(name)
        if (reason := compatible(model, found)) is not None:
            raise ConfigError(reason)
        return found
    embedded = (found for n in registry.names() if (found := registry.info(n)).embedded)
    fitting = next((found for found in embedded if compatible(model, found) is None), None)
    if fitting is None:
        raise ConfigError(f"no embedded data set fits {model}: name one, fractrain list --model {model} --dataset NAME")
    return fitting


def _report(model: str, method: str, data: DatasetInfo, settings: dict[str, Any]) -> Any:
    import torch

    from fractrain.methods.session import attach
    from fractrain.models.registry import build

    session = attach(method, build(model, data.classes, data.shape), **settings)
    generator = torch.Generator().manual_seed(0)
    if data.kind == "text":
        x = torch.randint(data.classes, (SAMPLES, *data.shape), generator=generator)
    else:
        x = torch.randn(SAMPLES, *data.shape, generator=generator)
    session.model.eval()
    with torch.no_grad():
        session.model(x)
    return session.report()


# -- runs --------------------------------------------------------------------------------------------------------------


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


# -- whatever the registries find --------------------------------------------------------------------------------------


Entry = dict[str, Any]


def _entries(kind: type[Registry[Any]], about: Callable[[Any], Entry]) -> list[Entry]:
    """What is known of everything that a registry finds."""
    registry = kind.discover()
    for problem in registry.problems:
        log_line(f"fractrain: warning: {problem}")
    return [_entry(registry, name, about) for name in registry.names()]


def _entry(registry: Registry[Any], name: str, about: Callable[[Any], Entry]) -> Entry:
    """What is known of one. What cannot be loaded is listed too, with the reason, and hides no other."""
    try:
        return {"name": name, **about(registry.get(name))}
    except Exception as error:  # a plugin may raise anything
        reason = message_line(error)
        return {"name": name, "description": f"cannot be used: {reason}", "problem": reason, "settings": []}


def _methods(verbose: bool = False) -> list[Entry]:
    from fractrain.methods.registry import MethodRegistry

    return _entries(MethodRegistry, lambda kind: _method(kind, verbose))


def _method(kind: type[Method], verbose: bool) -> Entry:
    return {
        "description": kind.summary(),
        "source": kind.source,
        "version": kind.version,
        "settings": [_setting(key, field) for key, field in kind.Settings.model_fields.items()],
        "notes": " ".join((kind.__doc__ or "").split("\n", 1)[-1].split()),
        **(_card(kind) if verbose else {}),
    }


def _card(kind: type[Method]) -> Entry:
    """The precision card as values and as lines for people, or why there is none."""
    from fractrain.methods.card import precision_card

    try:
        card = precision_card(kind)
    except Exception as error:  # a plugin may raise anything, and must not hide the others
        reason = typed_line(error)
        return {"card": {"problem": reason}, "card_lines": [f"no precision card: {reason}"]}
    return {"card": card.as_dict(), "card_lines": card.lines()}


def _setting(key: str, field: Any) -> Entry:
    kind = field.annotation
    return {
        "name": key,
        "type": kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""),
        "default": None if field.is_required() else json_safe(field.get_default(call_default_factory=True)),
        "required": field.is_required(),
        "description": field.description or "",
    }


def _models() -> list[Entry]:
    from fractrain.models.registry import ModelRegistry

    return _entries(ModelRegistry, _without_callables)


def _datasets() -> list[Entry]:
    from fractrain.data.registry import DatasetRegistry

    return _entries(DatasetRegistry, lambda info: {**_without_callables(info), "protocol": info.protocol})


def _formats() -> list[Entry]:
    from fractrain.numerics.registry import FormatRegistry

    return _entries(
        FormatRegistry, lambda info: {"description": info.title, "source": info.source, "bits": info.make().bits}
    )


def _without_callables(info: Any) -> Entry:
    listed = [name for name, field in info.__dataclass_fields__.items() if field.metadata.get("listed", True)]
    values = {name: getattr(info, name) for name in listed}
    return {name: json_safe(value) for name, value in values.items() if not callable(value)}


def _tables() -> list[Entry]:
    from fractrain.report.spec import load_spec, table_names

    specs = [load_spec(name) for name in table_names()]
    return [
        {
            "name": spec.name, "description": spec.title, "source": spec.source, "version": spec.version,
            "pairs": [[pair.model, pair.dataset] for pair in spec.pairs],
            "methods": list(dict.fromkeys(row.method for row in spec.rows)),
        }
        for spec in specs
    ]  # fmt: skip


def _hardware(verbose: bool = False) -> list[Entry]:
    from fractrain.cost.hardware import HardwareRegistry

    return _entries(HardwareRegistry, lambda kind: _machine(kind, verbose))


def _machine(kind: type[HardwareModel], verbose: bool) -> Entry:
    card = kind().card() if verbose else {}
    lines = [f"{key}: {value}" for key, value in card.items() if key != "source"]
    return {
        "description": kind.summary(),
        "source": kind.source,
        "is_not": kind.is_not,
        "settings": [_setting(key, field) for key, field in kind.Settings.model_fields.items()],
        "presets": {key: dict(values) for key, values in kind.presets.items()},
        **({"card": card, "card_lines": lines} if verbose else {}),
    }


KINDS: dict[str, Callable[[], list[Entry]]] = {
    "methods": _methods, "models": _models, "datasets": _datasets, "tables": _tables, "hardware": _hardware,
    "formats": _formats,
}  # fmt: skip
CARDS: dict[str, Callable[[bool], list[Entry]]] = {"methods": _methods, "hardware": _hardware}


def _details(kind: str, entry: Entry) -> list[str]:
    """Lines under an entry's description."""
    if "problem" in entry:
        return []
    if kind in ("methods", "hardware"):
        settings = [f"{s['name']}={'required' if s['required'] else short(s['default'])}" for s in entry["settings"]]
        source = entry.get("source")
        told = [*([f"settings: {', '.join(settings)}"] if settings else []), *([f"source: {source}"] if source else [])]
        told += [f"presets: {', '.join(entry['presets'])}"] if entry.get("presets") else []
        return told + [f"  {line}" for line in entry.get("card_lines", [])]
    if kind == "models":
        macs = [f"{count:,} forward MACs on {name}" for name, count in entry["forward_macs"].items()]
        return [*macs, f"{entry['blocks']} gateable blocks"]
    if kind == "datasets":
        if entry["kind"] == "text":
            samples = f"words of {entry['classes']:,}, {entry['protocol']}"
        else:
            samples = f"samples of {'x'.join(str(n) for n in entry['shape'])}"
        where = "embedded" if entry["embedded"] else f"download of {_size(entry['bytes'])}"
        stands = f", stands for {entry['stands_for']} in the smoke profile" if entry["stands_for"] else ""
        count = f"{entry['train_size']:,} + {entry['test_size']:,}" if entry["train_size"] else "a folder of"
        return [f"{count} {samples}, {where}{stands}"]
    return [f"source: {entry['source']}"] if entry["source"] else []


def _size(count: int) -> str:
    return f"{count / 1e9:.0f} GB" if count >= 1e10 else f"{count / 1e6:.0f} MB"


def _print(kind: str, entries: list[Entry]) -> None:
    width = max([len(entry["name"]) for entry in entries], default=0)
    for entry in entries:
        title = entry.get("description") or entry.get("title")
        click.echo(f"{entry['name']:<{width}}  {title}")
        for line in _details(kind, entry):
            click.echo(f"{'':<{width}}    {line}")


@click.command("list", short_help="List methods, models, datasets, tables, hardware models, number formats or runs.")
@options(
    click.argument("kind", type=NearestChoice([*KINDS, "runs", "all"]), default="all", metavar="[KIND]"),
    click.option(
        "-v", "--verbose", is_flag=True,
        help="With the cards: of methods the formats of all operands, of hardware models what they are.",
    ),
    click.option(
        "--where", multiple=True, metavar="KEY=VALUE",
        help="Of runs: only those with this method, model, dataset, setting, profile, seed, status, setting of the "
        "method or recipe.KEY; may be repeated.",
    ),
    click.option("--model", metavar="NAME", help="List what a method reaches in this model, operation by operation."),
    click.option("--method", metavar="NAME", help="With --model: the method.  [default: sbm]"),
    click.option("--dataset", metavar="NAME", help="With --model: gives size and number of inputs."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="With --model: a setting of the method."),
    results_option, plugin_option, json_option,
)  # fmt: skip
def list_command(
    kind: str, verbose: bool, where: tuple[str, ...], model: str | None, method: str | None, dataset: str | None,
    sets: tuple[str, ...], results: Path, as_json: bool,
) -> None:  # fmt: skip
    """List what there is: methods, models, datasets, tables, hardware, formats (all without KIND), or your runs."""
    if model is not None:
        list_coverage(model, method or "sbm", dataset, sets, as_json)
        return
    if method or dataset or sets:
        raise ConfigError("--method, --dataset and --set say more of a model: fractrain list --model NAME ...")
    if kind == "runs":
        list_runs(results, where, as_json)
        return
    if where:
        raise ConfigError("--where chooses among runs: fractrain list runs --where KEY=VALUE")
    kinds = list(KINDS) if kind == "all" else [kind]
    with stdout_to_stderr():
        found = {name: CARDS[name](verbose) if name in CARDS else KINDS[name]() for name in kinds}
    if as_json:
        emit_json(found if kind == "all" else found[kind])
        return
    for number, (name, entries) in enumerate(found.items()):
        if kind == "all":
            click.echo(f"{'' if number == 0 else chr(10)}{name}")
        _print(name, entries)

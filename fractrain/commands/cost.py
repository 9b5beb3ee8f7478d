"""``fractrain cost``: what stored runs cost on hardware models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import (
    NearestChoice,
    emit_json,
    json_option,
    options,
    plugin_option,
    profile_option,
    results_option,
    stdout_to_stderr,
)
from fractrain.commands.evidence import evidence_option, origin_option
from fractrain.commands.planning import seeds_option
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.engine.store import RunRecord, RunStore
    from fractrain.report.run_cost import PricedRun

DEFAULT_HARDWARE = "fractrain-fitted,bit-product,bitfusion"
BY = ("layer", "product", "stage", "width", "epoch")

hardware_option = click.option(
    "--hardware", metavar="NAME[,NAME...]",
    help="Hardware models, each with a preset or settings after colons: bit-product:fixed=0.5. "
    "`fractrain list hardware` shows all.",
)  # fmt: skip


@click.command("cost", short_help="Price stored runs on hardware models.")
@options(
    click.argument("names", nargs=-1, required=True, metavar="RUN|TABLE|DIR|all..."),
    hardware_option,
    click.option("--by", type=NearestChoice(BY), help="Split each run's time and energy."),
    origin_option, profile_option("smoke"), seeds_option, results_option, evidence_option, plugin_option, json_option,
)  # fmt: skip
def cost_command(
    names: tuple[str, ...], hardware: str | None, by: str | None, origin: str, profile: str, seeds: int | None,
    results: Path, evidence: Path, as_json: bool,
) -> None:  # fmt: skip
    """Price finished runs on hardware models, from what their ledgers counted; nothing is run.

    RUN is a run's id or its beginning, TABLE a table or figure (its finished runs of --profile), DIR the folder of a
    run or of several, "all" every finished run there is. Times and energies are modelled: `fractrain list hardware
    --verbose` says what each model counts and what it is not.
    """
    from fractrain.cost.hardware import create_all
    from fractrain.report.run_cost import price_run

    with stdout_to_stderr():
        models = create_all(hardware or DEFAULT_HARDWARE)
        records = _records(names, profile, seeds, _stores(origin, results, evidence))
        found = [(record, price_run(record, models, by or "")) for record in records]
    if as_json:
        emit_json([{**_names(record), "costs": [p.as_dict() for p in priced]} for record, priced in found])
        return
    click.echo("\n\n".join(_text(record, priced, by or "") for record, priced in found))
    click.echo("\n" + "\n".join(f"{model.title} is not {model.is_not}." for model in models))


def _stores(origin: str, results: Path, evidence: Path) -> list[RunStore]:
    """Where runs are looked for: the run store, or each campaign of the committed records."""
    from fractrain.engine.store import RunStore
    from fractrain.report.evidence import EvidenceStore

    return EvidenceStore(evidence).stores() if origin == "evidence" else [RunStore(results)]


def _records(names: Sequence[str], profile: str, seeds: int | None, stores: Sequence[RunStore]) -> list[RunRecord]:
    """The finished runs that are meant, each once.

    Raises:
        ConfigError: a name is neither a run nor a table nor a folder, or nothing is finished.
    """
    from fractrain.engine.length import length_text

    found: dict[str, RunRecord] = {}
    for name in names:
        found |= {record.run_id: record for record in _records_named(name, profile, seeds, stores)}
    if not found:
        where = " ".join(str(store.root) for store in stores) or "the records, of which there are none"
        raise ConfigError(
            f"{' '.join(names)}: no finished run in {where} ({length_text(profile)}); run some, or --results"
        )
    return list(found.values())


def _records_named(name: str, profile: str, seeds: int | None, stores: Sequence[RunStore]) -> Iterator[RunRecord]:
    """The runs that one name stands for."""
    from fractrain.engine.store import RunStore
    from fractrain.report.grid import plan
    from fractrain.report.spec import load_spec, table_names

    if name == "all":
        yield from _finished(stores)
    elif name in table_names() or name.endswith(".toml"):
        runs = plan(load_spec(name), profile, seeds)
        records = (store.get(run.run_id) for run in runs if run.run_id for store in stores)
        yield from (record for record in records if record is not None and record.status == "done")
    elif (folder := Path(name)).is_dir():
        one = RunStore(folder.parent)
        yield from [one.find(folder.name).undamaged()] if folder.name in one.ids() else _finished([RunStore(folder)])
    else:
        having = [store for store in stores if any(run_id.startswith(name) for run_id in store.ids())]
        yield (having or stores or [RunStore()])[0].find(name).undamaged()


def _finished(stores: Sequence[RunStore]) -> Iterator[RunRecord]:
    return (record for store in stores for record in store.records() if record.status == "done")


def _names(record: RunRecord) -> dict[str, Any]:
    c = record.config
    return {"run_id": record.run_id, "method": c.method, "model": c.model, "dataset": c.dataset, "profile": c.profile}


# -- text --------------------------------------------------------------------------------------------------------------


def _text(record: RunRecord, priced: Sequence[PricedRun], by: str) -> str:
    """One run: a column for each hardware model."""
    from tabulate import tabulate

    lines = [["", *(p.hardware for p in priced)]]
    lines += [[name, *(_cell(p, read) for p in priced)] for name, read in FIGURES.items()]
    lines += _group_lines(priced, by)
    told = [tabulate(lines[1:], headers=lines[0], tablefmt="simple", stralign="right", colalign=("left",))]
    told += [f"{p.hardware}: not priced: {p.problem}" for p in priced if p.problem]
    told += [f"{p.hardware}: extrapolated: {p.cost.note()}" for p in priced if p.cost and p.cost.note()]
    return "\n".join([record.run_id, *told])


def _group_lines(priced: Sequence[PricedRun], by: str) -> list[list[str]]:
    names = list(dict.fromkeys(group.name for p in priced for group in p.groups))
    lines = []
    for name in names:
        line = [f"  {name}"]
        for p in priced:
            group = next((g for g in p.groups if g.name == name), None)
            if p.cost is None or group is None:
                line.append("-")
                continue
            whole = p.cost.until()
            time = f"{seconds_text(group.seconds)} ({group.seconds / whole.seconds.total:.1%})"
            share = f" ({group.joules / whole.joules.total:.1%})" if whole.joules.total > 0 else ""
            line.append(f"{time}, {joules_text(group.joules)}{share}")
        lines.append(line)
    return [[f"time and energy by {by}"], *lines] if lines else []


def _cell(p: PricedRun, read: Callable[[Any, int], str]) -> str:
    """One figure at the end of the run, and at its best epoch where that is another."""
    if p.cost is None or p.best is None:
        return "-"
    end, best = read(p.cost.until(), p.cost.samples()), read(*p.best)
    return end if end == best else f"{end} (@best {best})"


def _shares(parts: Any) -> str:
    if math.isnan(parts.total):
        return "-"
    named = {"compute": parts.compute, "on chip": parts.on_chip, "DRAM": parts.dram, "fixed": parts.fixed}
    return ", ".join(f"{name} {value / parts.total:.0%}" for name, value in named.items() if value) or "-"


def seconds_text(value: float) -> str:
    """A duration with four significant digits."""
    return _scaled(value, ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")))


def joules_text(value: float) -> str:
    """An energy with four significant digits."""
    return _scaled(value, ((1e6, "MJ"), (1e3, "kJ"), (1, "J"), (1e-3, "mJ"), (1e-6, "uJ")))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    if math.isnan(value):
        return "not measured"
    size, unit = next(((size, unit) for size, unit in units if value >= size), units[-1])
    return f"{value / size:.4g} {unit}"


FIGURES: dict[str, Callable[[Any, int], str]] = {
    "time": lambda cost, _: seconds_text(cost.seconds.total),
    "energy": lambda cost, _: joules_text(cost.joules.total),
    "time per sample": lambda cost, n: seconds_text(cost.seconds.total / n),
    "energy per sample": lambda cost, n: joules_text(cost.joules.total / n),
    "time goes to": lambda cost, _: _shares(cost.seconds),
    "energy goes to": lambda cost, _: _shares(cost.joules),
}

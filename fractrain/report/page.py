"""The report page: one HTML file that shows what a run store holds, without a network and from any disk."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2

import fractrain
from fractrain.engine.index import RunEntry, read_index
from fractrain.engine.length import longest_first, words
from fractrain.engine.store import RunRecord, RunStore
from fractrain.report import charts
from fractrain.report.breakdown import bits_by_part, breakdown, mean_bits
from fractrain.report.page_tables import PageTable, benchmark_table, configurations_table, number_text, runs_table
from fractrain.report.quantities import BY_KEY
from fractrain.report.results import differing, frame_of
from fractrain.report.svg import SERIES, Mark
from fractrain.report.values import Table
from fractrain.util.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

MOST_RUNS: Final = 500
MOST_CONFIGURATIONS: Final = 200
TASK: Final = ["model", "dataset", "setting", "profile"]


@dataclass(frozen=True)
class Chart:
    """One drawing with its caption; ``view`` says to which choice of the section's switch it belongs."""

    svg: str
    caption: str = ""
    view: str = ""


@dataclass(frozen=True)
class Section:
    """A group of drawings: one task, or one configuration."""

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class Detail:
    """One run that is looked into: its configuration's place in the page, its curve and its counted work."""

    entry: RunEntry
    label: str
    lines: Sequence[Mapping[str, Any]]
    work: pd.DataFrame


def build_page(
    store: RunStore,
    tables: Sequence[Table] = (),
    hardware: str = "",
    details: int = 12,
    entries: Sequence[RunEntry] | None = None,
) -> str:
    """Return the page.

    Args:
        store: the run store.
        tables: tables of ``benchmarks/``, built from the same store.
        hardware: name of a hardware model for energy and latency; empty: neither is shown.
        details: how many configurations, the latest, are looked into (curves, precision, where the work goes).
        entries: the store's index, where it has been read already.

    Raises:
        StoreError: the store cannot be read.
        MachineError: matplotlib is missing.
    """
    entries = sorted(read_index(store) if entries is None else entries, key=lambda e: (e.time, e.run_id), reverse=True)
    shown = entries[:MOST_RUNS]
    frame = frame_of(shown, store, "run", hardware)
    groups = list(dict.fromkeys(e.group for e in entries if e.summary is not None))[:MOST_CONFIGURATIONS]
    chosen = set(groups)
    means = frame_of([e for e in entries if e.group in chosen], store, "configuration", hardware)
    means = means[means["quantity"] != ""]
    settings = differing(entries)
    methods = sorted({e.method for e in entries if e.summary is not None})
    found = list(_details(entries, groups[:details], store, settings))
    with charts.style():
        context = {
            "version": fractrain.__version__,
            "banner": _banner(entries),
            "counts": _counts(
                entries, shown, groups, len({e.group for e in entries if e.summary is not None}), len(found)
            ),
            "methods": [(number, name) for number, name in enumerate(methods)],
            "verdicts": _verdicts(tables),
            "tasks": list(_tasks(means, methods)),
            "curves": list(_curves(found, methods)),
            "precision": list(_precision(found)),
            "work": list(_work(found)),
            "tables": [benchmark_table(table) for table in tables],
            "lists": [configurations_table(means), runs_table(shown, frame, settings)],
            "series": SERIES,
        }
    return _template().render(context)


# -- words -------------------------------------------------------------------------------------------------------------


def _banner(entries: Sequence[RunEntry]) -> str:
    """What must be read before any number; empty where every run followed the paper's protocol."""
    profiles = Counter(e.profile for e in entries)
    reduced = [p for p in reversed(longest_first(profiles)) if p != "paper"]
    if not entries or not reduced:
        return "" if entries else "The run store is empty: nothing has been run yet."
    kinds = " and ".join(f"{profiles[p]:,} of {words(p)}" for p in reduced)
    rest = f"; {profiles['paper']:,} followed the paper's protocol" if profiles["paper"] else ""
    return (
        f"NOT A REPRODUCTION: {kinds}{rest}. Profile smoke means minutes-long runs, mostly on stand-in data; a length "
        "is a share of the paper's iterations. Their numbers must not be compared with published ones."
    )


def _counts(
    entries: Sequence[RunEntry], shown: Sequence[RunEntry], groups: Sequence[str], all_groups: int, details: int
) -> list[str]:
    """How much there is, and how much of it is on the page."""
    states = Counter(e.status for e in entries)
    texts = [f"{len(entries):,} runs ({', '.join(f'{n:,} {state}' for state, n in states.most_common())})"]
    texts.append(f"{all_groups:,} finished configurations")
    if len(shown) < len(entries):
        texts.append(f"the {len(shown):,} latest runs are listed (all: fractrain list runs)")
    if len(groups) < all_groups:
        texts.append(f"the {len(groups):,} latest configurations are drawn")
    if details < len(groups):
        texts.append(f"{details} of them in detail (--details N for more)")
    return texts


def _verdicts(tables: Sequence[Table]) -> list[tuple[str, str, int, int, list[str]]]:
    """For each table: name, title, rows, rows that were measured, and what was judged."""
    told = []
    for table in tables:
        rows = [row for row in table.rows if row.kind == "method"]
        measured = [row for row in rows if row.text("seeds").partition("/")[0] not in ("", "0")]
        judged = [f"{row.group}, {row.text('label')}: {row.text('verdict')}" for row in rows
                  if row.text("verdict").startswith(("reproduced", "differs"))]  # fmt: skip
        told.append((table.name, table.title, len(rows), len(measured), judged))
    return told


def _label(method: str, settings: str) -> str:
    return f"{method} {settings}".rstrip()


def _task_title(key: Sequence[Any]) -> str:
    model, dataset, setting, profile = key
    return f"{model} on {dataset}{'' if setting == 'standard' else f', {setting}'} [{words(profile)}]"


# -- accuracy against cost ---------------------------------------------------------------------------------------------


VIEWS: Final = {
    "whole": ("cost_end", ("accuracy_last", "perplexity_last")),
    "paper": ("macs_best", ("accuracy_best_test", "perplexity_best_test")),
}
"""Quantities of the axes: the whole model after the last step, and as the paper counts."""


def _tasks(means: pd.DataFrame, methods: Sequence[str]) -> Iterator[Section]:
    """For each model, data set and profile: accuracy against cost, in both ways of counting."""
    tasks = sorted(means.groupby(TASK, sort=False), key=lambda task: -task[1]["group"].nunique())
    for number, (key, own) in enumerate(tasks):
        title = _task_title(key)
        lines: dict[str, dict[str, Any]] = defaultdict(dict)
        for line in own.itertuples():
            lines[str(line.group)][str(line.quantity)] = line
        drawn = []
        for view, (x, qualities) in VIEWS.items():
            y = next((q for q in qualities if any(q in found for found in lines.values())), "")
            dots = [_dot(found[x], found[y], methods) for found in lines.values() if _is_point(found, x, y)]
            if dots:
                words = f"{title}: {BY_KEY[y].title} against {BY_KEY[x].title}"
                svg = charts.scatter(f"c{number}{view}", words, dots, (_axis(x), _axis(y)))
                drawn.append(Chart(svg, "", view))
        if drawn:
            yield Section(title, drawn)


def _axis(key: str) -> str:
    q = BY_KEY[key]
    return f"{q.label} [{q.unit}]"


def _is_point(found: Mapping[str, Any], x: str, y: str) -> bool:
    return x in found and y in found and math.isfinite(found[y].value) and found[x].value > 0


def _dot(x: Any, y: Any, methods: Sequence[str]) -> charts.Dot:
    """The point of one configuration, from its two lines of the DataFrame."""
    seeds = f"seed{'s' if y.n > 1 else ''} {y.seed}"
    text = (
        f"{_label(y.method, y.settings)}: {number_text(y.quantity, y.value)} {y.unit} at "
        f"{number_text(x.quantity, x.value)} {x.unit}; {seeds}; {words(y.profile)}; runs {y.run}"
    )
    label = _label(y.method, y.settings)
    return charts.Dot(methods.index(y.method), label, x.value, y.value, y.low, y.high, Mark(text, f"#group-{y.group}"))


# -- what is looked into -----------------------------------------------------------------------------------------------


def _details(
    entries: Sequence[RunEntry], groups: Sequence[str], store: RunStore, settings: Mapping[str, str]
) -> Iterator[Detail]:
    """One finished run of each group, that of the least seed; a damaged one is left out (the list names it)."""
    first: dict[str, RunEntry] = {}
    for e in sorted((e for e in entries if e.summary is not None), key=lambda e: e.seed):
        first.setdefault(e.group, e)
    for group in groups:
        entry = first[group]
        try:
            record = store.get(entry.run_id)
            if record is not None and record.summary is not None:
                yield _detail(entry, record, _label(entry.method, settings[group]))
        except StoreError:
            continue


def _detail(entry: RunEntry, record: RunRecord, label: str) -> Detail:
    return Detail(entry, label, record.metrics(), breakdown(record.ledger()))


def _by_task(details: Sequence[Detail]) -> Iterator[tuple[str, list[Detail]]]:
    found: dict[tuple[str, ...], list[Detail]] = defaultdict(list)
    for detail in details:
        found[tuple(getattr(detail.entry, name) for name in TASK)].append(detail)
    for key, own in sorted(found.items(), key=lambda item: -len(item[1])):
        yield _task_title(key), sorted(own, key=lambda d: d.label)


def _curves(details: Sequence[Detail], methods: Sequence[str]) -> Iterator[Section]:
    """Test accuracy (or perplexity) over steps, and over the cost so far; runs judged once have no curve."""
    for number, (title, own) in enumerate(_by_task(details)):
        words = any(line.get("test_perplexity") is not None for d in own for line in d.lines)
        key, y = ("test_perplexity", "test perplexity") if words else ("test_accuracy", "test accuracy [%]")
        by_step, by_cost = [], []
        for d in own:
            spent = d.work.groupby("epoch")["effective"].sum().cumsum()
            points = [(line["iteration"], spent.get(line["epoch"], math.nan), line.get(key)) for line in d.lines]
            points = [p for p in points if p[2] is not None and math.isfinite(p[2])]
            if len(points) < 2:
                continue
            steps, costs, values = zip(*points, strict=True)
            series = methods.index(d.entry.method)
            mark = Mark(f"{d.label}, seed {d.entry.seed}", f"#run-{d.entry.run_id}")
            by_step.append(charts.Line(series, d.label, steps, values, mark))
            by_cost.append(charts.Line(series, d.label, costs, values, mark))
        if by_step:
            step, cost = "training step", "effective MACs of the whole model so far"
            over = charts.curves(f"l{number}s", f"{title}: {y} over {step}", by_step, (step, y))
            paid = charts.curves(f"l{number}c", f"{title}: {y} over {cost}", by_cost, (cost, y))
            yield Section(title, (Chart(over), Chart(paid)))


def _precision(details: Sequence[Detail]) -> Iterator[Section]:
    """How widths move: mean widths over training, and by part of the model; constant ones are named in one note."""
    constant: dict[str, list[str]] = defaultdict(list)
    for number, d in enumerate(details):
        bits = mean_bits(d.work)
        parts = bits_by_part(d.work)
        title = f"{d.label} on {_task_title([getattr(d.entry, name) for name in TASK])}, seed {d.entry.seed}"
        moves = len(bits) > 1 and (bits.max() - bits.min()).max() > 1e-9
        inside = parts[(parts < 32).any(axis=1)]
        differs = len(inside) > 1 and (inside.max(axis=1).max() - inside.min(axis=1).min()) > 1e-9
        if not (moves or differs):
            width = "full precision" if bits.empty else "/".join(f"{v:.3g}" for v in bits.iloc[0]) + " bits (A/W/E)"
            constant[f"{d.label}: {width}"].append(d.entry.run_id)
            continue
        steps = [line["iteration"] for line in d.lines]
        drawn = []
        if moves:
            svg = charts.bits_over_time(f"p{number}t", f"{title}: mean widths of A, W and E", bits, steps)
            words = "Mean widths of activations A, weights W and errors E of quantized parts, weighted by MACs."
            drawn.append(Chart(svg, words))
        drawn.append(
            Chart(
                charts.bits_map(f"p{number}m", f"{title}: mean width of A by part", inside),
                "Mean width of A in forward products, by part and period; 0 where it was skipped.",
            )
        )
        yield Section(title, drawn)
    if constant:
        yield Section("Constant precision", (), "; ".join(constant) + ".")


def _work(details: Sequence[Detail]) -> Iterator[Section]:
    """Where the effective MACs of the whole model go: by product for all, by part for each."""
    for number, (title, own) in enumerate(_by_task(details)):
        label = "effective MACs of the whole model, whole run"
        bars = {d.label: _shares(d.work, ["product"])[""] for d in own}
        drawn = [Chart(charts.stacked(f"w{number}", f"{title}: {label} by product", bars, label))]
        for place, d in enumerate(own):
            parts = _shares(d.work, ["part", "product"])
            svg = charts.stacked(f"w{number}p{place}", f"{title}, {d.label}: {label} by part", parts, label)
            drawn.append(Chart(svg, d.label, "part"))
        yield Section(title, drawn)


def _shares(work: pd.DataFrame, by: list[str]) -> dict[str, dict[str, float]]:
    """Effective MACs by part (an empty name for all together) and product."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in work.groupby(by, sort=False)["effective"].sum().items():
        part, product = key if isinstance(key, tuple) and len(key) == 2 else ("", key)
        found[str(part)][str(product)] = float(value)
    return found


# -- writing -----------------------------------------------------------------------------------------------------------


def _template() -> jinja2.Template:
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2")


__all__ = ["Chart", "PageTable", "Section", "build_page"]

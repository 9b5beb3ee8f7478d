"""The report page: one HTML file that shows what a run store holds, without a network and from any disk."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import fractrain
from fractrain.cost.hardware import create
from fractrain.engine.index import RunEntry, read_index
from fractrain.engine.length import length_text, longest_first
from fractrain.engine.store import RunStore
from fractrain.report import charts, page_detail
from fractrain.report.page_bench import BenchRecord, bench_drawings, bench_table
from fractrain.report.page_detail import TASK, Chart, DrawingGroup, run_label, task_title
from fractrain.report.page_tables import (
    benchmark_tables,
    claims_table,
    configurations_table,
    number_text,
    runs_table,
)
from fractrain.report.quantities import BY_KEY
from fractrain.report.render import template
from fractrain.report.results import differing, frame_of
from fractrain.report.scaling_draw import themed_scaling
from fractrain.report.svg import SERIES, Mark
from fractrain.report.values import Table

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.report.claims import JudgedClaim
    from fractrain.report.scaling import Scaling

MOST_RUNS: Final = 300
MOST_CONFIGURATIONS: Final = 150


def build_page(
    store: RunStore, tables: Sequence[Table] = (), hardware: str = "", details: int = 12,
    entries: Sequence[RunEntry] | None = None, claims: Sequence[JudgedClaim] = (), scaling: Scaling | None = None,
    benches: Sequence[BenchRecord] = (),
) -> str:  # fmt: skip
    """Return the page.

    Args:
        tables: tables of ``benchmarks/``, built from the same store.
        hardware: name of a hardware model for energy and latency of every run; empty: of what is looked into alone, by
            :data:`fractrain.report.page_detail.AT_BEST`.
        details: how many configurations, the latest, are looked into (curves, precision, where the work goes).
        entries: the store's index, where it has been read already.
        scaling, benches: a campaign of which something is done; from :func:`fractrain.report.page_bench.read_benches`.

    Raises:
        ConfigError: no such hardware model.
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
    model = create(hardware or page_detail.AT_BEST)
    found = list(page_detail.details(entries, groups[:details], store, settings, model))
    with charts.style():
        context = {
            "version": fractrain.__version__,
            "banner": _banner(entries),
            "counts": [*_counts(entries, shown, groups, len(found)), *_left_out(entries, store)],
            "methods": [(number, name) for number, name in enumerate(methods)],
            "claims": claims_table(claims) if claims else None,
            "claim_verdicts": Counter(claim.verdict for claim in claims).most_common(),
            "scaling": (themed_scaling(scaling), benchmark_tables(scaling.table)) if scaling else None,
            "verdicts": _verdicts(tables),
            "tasks": list(_tasks(means, methods)),
            "curves": list(page_detail.curves(found, methods)),
            "precision": list(page_detail.precision(found)),
            "work": list(page_detail.cost_bars(found, model.title)),
            "parts": page_detail.work_table(found, model.title) if found else None,
            "hardware": model.title,
            "speed": (list(bench_drawings(benches)), [bench_table(record) for record in benches]),
            "tables": [shown for table in tables for shown in benchmark_tables(table)],
            "lists": [configurations_table(means), runs_table(shown, frame, settings)],
            "series": SERIES,
        }
    return template("report").render(context)


# -- words -------------------------------------------------------------------------------------------------------------


def _banner(entries: Sequence[RunEntry]) -> str:
    """What must be read before any number; empty where every run followed the paper's protocol."""
    profiles = Counter(e.profile for e in entries)
    reduced = [p for p in reversed(longest_first(profiles)) if p != "paper"]
    if not entries or not reduced:
        return "" if entries else "The run store is empty: nothing has been run yet."
    kinds = " and ".join(f"{profiles[p]:,} run{'' if profiles[p] == 1 else 's'} of {length_text(p)}" for p in reduced)
    rest = f"; {profiles['paper']:,} followed the paper's protocol" if profiles["paper"] else ""
    return (
        f"NOT A REPRODUCTION: {kinds}{rest}. Profile smoke means minutes-long runs, mostly on stand-in data; a length "
        "is a share of the paper's iterations. Their numbers must not be compared with published ones."
    )


def _counts(entries: Sequence[RunEntry], shown: Sequence[RunEntry], groups: Sequence[str], details: int) -> list[str]:
    """How much there is, and how much of it is on the page."""
    all_groups = len({e.group for e in entries if e.summary is not None})
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


def _left_out(entries: Sequence[RunEntry], store: RunStore) -> list[str]:
    """Which runs are nowhere on the page, because nobody can say what they are."""
    names = store.ids(but={e.run_id for e in entries})
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names):,} left out, their config.json is damaged: {some}"] if names else []


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


# -- accuracy against cost ---------------------------------------------------------------------------------------------


VIEWS: Final = {
    "whole": ("cost_end", ("accuracy_last", "perplexity_last")),
    "paper": ("macs_best", ("accuracy_best_test", "perplexity_best_test")),
}
"""Quantities of the axes: the whole model after the last step, and as the paper counts."""


def _tasks(means: pd.DataFrame, methods: Sequence[str]) -> Iterator[DrawingGroup]:
    """For each model, data set and profile: accuracy against cost, in both ways of counting."""
    tasks = sorted(means.groupby(TASK, sort=False), key=lambda task: -task[1]["group"].nunique())
    for number, (key, own) in enumerate(tasks):
        title = task_title(key)
        lines: dict[str, dict[str, Any]] = defaultdict(dict)
        for line in own.itertuples():
            lines[str(line.group)][str(line.quantity)] = line
        drawn = []
        for view, (x, qualities) in VIEWS.items():
            y = next((q for q in qualities if any(q in found for found in lines.values())), "")
            dots = [_dot(found[x], found[y], methods) for found in lines.values() if _is_point(found, x, y)]
            if dots:
                words = f"{title}: {BY_KEY[y].title} against {BY_KEY[x].title}"
                svg = charts.scatter(f"c{number}{view}", words, dots, (_axis(x), _axis(y))).element()
                drawn.append(Chart(svg, "", view))
        if drawn:
            yield DrawingGroup(title, drawn)


def _axis(key: str) -> str:
    q = BY_KEY[key]
    return f"{q.label} [{q.unit}]"


def _is_point(found: Mapping[str, Any], x: str, y: str) -> bool:
    return x in found and y in found and math.isfinite(found[y].value) and found[x].value > 0


def _dot(x: Any, y: Any, methods: Sequence[str]) -> charts.Dot:
    """The point of one configuration, from its two lines of the DataFrame."""
    seeds = f"seed{'s' if y.n > 1 else ''} {y.seed}"
    text = (
        f"{run_label(y.method, y.settings)}: {number_text(y.quantity, y.value)} {y.unit} at "
        f"{number_text(x.quantity, x.value)} {x.unit}; {seeds}; {length_text(y.profile)}; runs {y.run}"
    )
    label = run_label(y.method, y.settings)
    return charts.Dot(methods.index(y.method), label, x.value, y.value, y.low, y.high, Mark(text, f"#group-{y.group}"))

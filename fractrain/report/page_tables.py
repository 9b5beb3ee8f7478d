"""The tables of the report page: plain rows and columns that its script can sort, filter and copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from fractrain.report.quantities import ARROWS, BY_KEY
from fractrain.report.values import Cell, Table, fitted_text
from fractrain.report.values import Section as TableSection

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.engine.index import RunEntry
    from fractrain.report.claims import JudgedClaim

IN_RUNS: Final = {
    "accuracy_last": True, "accuracy_best_val": False, "accuracy_best_test": True, "perplexity_last": True,
    "perplexity_best_test": True, "cost_end": True, "effective_end": True, "cp_end": True, "macs_best": False,
    "bitops_end": False, "energy_end": True, "latency_end": True, "iterations": True, "seconds": False,
    "memory_host": False, "memory_gpu": False,
}  # fmt: skip
"""Quantities of the lists of runs, and whether they are shown before anybody asks for more."""
WHO: Final = {
    "method": "Method", "settings": "Differs in", "model": "Model", "dataset": "Data", "setting": "Setting",
    "profile": "Profile",
}  # fmt: skip

KEPT: Final = ("model", "data", "method", "precision")
"""Columns that are shown whole, whatever the compact layout makes of them."""


@dataclass(frozen=True)
class PageColumn:
    """One column.

    Attributes:
        long: whether it holds sentences, which are wrapped.
    """

    key: str
    head: str
    number: bool = False
    shown: bool = True
    meaning: str = ""
    long: bool = False


@dataclass(frozen=True)
class PageRow:
    """One row: cells by column key, an anchor for links, and the runs that its numbers come from."""

    cells: Mapping[str, Cell]
    anchor: str = ""
    runs: str = ""
    kind: str = ""


@dataclass(frozen=True)
class PageTable:
    """One table of the page.

    Attributes:
        name: its id in the page.
        title, note: heading, and a sentence under it.
        warning: why its numbers must not be compared with published ones; empty if they may.
        remarks: sentences below it, folded away.
    """

    name: str
    title: str
    columns: Sequence[PageColumn]
    rows: Sequence[PageRow]
    note: str = ""
    warning: str = ""
    remarks: Sequence[str] = field(default_factory=tuple)


WHO_COLUMNS: Final = tuple(PageColumn(key, head) for key, head in WHO.items())


def number_text(key: str, value: float) -> str:
    """Write a number of the vocabulary."""
    return BY_KEY[key].text(value) if key in BY_KEY else fitted_text(value)


def claims_table(claims: Sequence[JudgedClaim]) -> PageTable:
    """What the papers' abstracts claim, each with today's verdict and what it rests on."""
    columns = [
        PageColumn("text", "Claim", long=True), PageColumn("verdict", "Verdict"),
        PageColumn("reason", "Why", long=True),
        PageColumn("trend", "What shorter runs say", shown=any(claim.trend for claim in claims), long=True),
        PageColumn("published", "The published rows give", long=True),
        PageColumn("expected", "Reproduced by", long=True, meaning="The claim as an interval"),
        PageColumn("next", "What would decide it", shown=False, long=True),
        PageColumn("evidence", "Evidence", shown=any(claim.evidence for claim in claims), long=True),
        PageColumn("source", "Source", shown=False, long=True), PageColumn("note", "Note", shown=False, long=True),
    ]  # fmt: skip
    rows = []
    for claim in claims:
        cells = {column.key: Cell(str(getattr(claim, column.key))) for column in columns}
        cells["published"] = Cell(claim.published, "published" if claim.published else "", source=claim.source)
        rows.append(PageRow(cells, f"claim-{claim.id}", kind=claim.verdict.replace(" ", "-")))
    note = "A claim is judged by runs of the length it needs alone; where there are only shorter ones it is not run."
    return PageTable("claims", "Claims of the abstracts", columns, rows, note)


def benchmark_tables(table: Table) -> list[PageTable]:
    """A table of ``benchmarks/`` with every column (those that the compact layout leaves out are hidden at first), and
    its smaller tables.
    """
    columns = [
        PageColumn(c.key, c.short or c.head, bool(c.origin), bool(c.short) and c.key != "data_short", c.head)
        for c in table.columns
        if c.head and c.key != "runs"
    ]
    columns = [replace(c, head=c.meaning or c.head, number=False, shown=True) if c.key in KEPT else c
               for c in columns]  # fmt: skip
    rows = [PageRow(row.cells, runs=row.text("runs").strip("–"), kind=row.kind.split()[0]) for row in table.rows]
    whole = PageTable(
        f"table-{table.name}", table.title, [c for c in columns if not c.number or _is_filled(c.key, rows)], rows,
        table.caption, table.watermark, (*table.notes, *table.rules, f"Source: {table.source}."),
    )  # fmt: skip
    return [whole, *(_section_table(table, section) for section in table.sections)]


def _section_table(table: Table, section: TableSection) -> PageTable:
    columns = [PageColumn("group", "Of"), *(PageColumn(c.key, c.short or c.head, bool(c.origin), True, c.head)
                                            for c in section.columns)]  # fmt: skip
    rows = [PageRow({**row.cells, "group": Cell(row.group)}) for row in section.rows]
    title = f"{table.title}: {section.title}"
    return PageTable(f"table-{table.name}-{section.key}", title, columns, rows, section.caption, table.watermark)


def _is_filled(key: str, rows: Sequence[PageRow]) -> bool:
    """Whether any row has a number in this column."""
    cells = [row.cells[key] for row in rows if key in row.cells]
    return any(cell.value is not None or cell.low is not None for cell in cells)


def runs_table(entries: Sequence[RunEntry], frame: pd.DataFrame, settings: Mapping[str, str]) -> PageTable:
    """Every run: what it was and what came out."""
    keys = _present(frame)
    columns = [
        PageColumn("run", "Run"), *WHO_COLUMNS, PageColumn("seed", "Seed", True),
        PageColumn("status", "Status", long=True),
        *_number_columns(keys), PageColumn("time", "Ended (UTC)", shown=False),
        PageColumn("device", "Device", shown=False),
    ]  # fmt: skip
    triples = zip(frame["run"], frame["quantity"], frame["value"], strict=True)
    values = {(run, key): value for run, key, value in triples}
    rows = []
    for e in entries:
        status = f"{e.status}: {e.message}" if e.message else e.status
        words = {"run": e.run_id, **{k: getattr(e, k) for k in WHO if k != "settings"}, "settings": settings[e.group],
                 "status": status, "time": e.time, "device": e.device}  # fmt: skip
        cells = {key: Cell(str(word)) for key, word in words.items()}
        cells["seed"] = Cell(str(e.seed), value=e.seed)
        for key in keys:
            if (value := values.get((e.run_id, key))) is not None:
                cells[key] = Cell(
                    number_text(key, value), "derived" if BY_KEY[key].modelled else "measured", value, n=1
                )
        rows.append(PageRow(cells, f"run-{e.run_id}", e.run_id, e.status))
    return PageTable("runs", "Runs", _without_empty(columns, rows), rows)


def configurations_table(frame: pd.DataFrame) -> PageTable:
    """Means over seeds, with intervals, of the runs that differ in nothing else."""
    keys = _present(frame)
    columns = [*WHO_COLUMNS, PageColumn("seeds", "Seeds", True), *_number_columns(keys)]
    wanted, groups = {*keys}, dict[str, dict[str, Any]]()
    for line in frame.itertuples():
        if line.quantity in wanted:
            groups.setdefault(str(line.group), {})[str(line.quantity)] = line
    rows = []
    for group, own in groups.items():
        first = next(iter(own.values()))
        cells = {key: Cell(str(getattr(first, key))) for key in WHO}
        cells["seeds"] = Cell(str(first.n), value=float(first.n))
        cells |= {key: _mean_cell(line) for key, line in own.items()}
        rows.append(PageRow(cells, f"group-{group}", str(first.run)))
    return PageTable("configurations", "Configurations: means over seeds", _without_empty(columns, rows), rows)


def _without_empty(columns: Sequence[PageColumn], rows: Sequence[PageRow]) -> list[PageColumn]:
    """The columns, without showing at first those of words that say nothing in any row."""
    said = {c.key: {row.cells[c.key].text for row in rows if c.key in row.cells} for c in columns if not c.number}
    return [replace(c, shown=False) if said.get(c.key, {c.head}) <= {"", "standard"} else c for c in columns]


def _mean_cell(line: Any) -> Cell:
    low, high = (line.low, line.high) if line.low == line.low else (None, None)  # NaN: one seed has no interval
    spread = f" ± {number_text(line.quantity, high - line.value)}" if high is not None and high > low else ""
    return Cell(
        number_text(line.quantity, line.value) + spread, line.origin, line.value, low, high, line.n, line.source
    )


def _present(frame: pd.DataFrame) -> list[str]:
    there = set(frame["quantity"])
    return [key for key in IN_RUNS if key in there]


def _number_columns(keys: Sequence[str]) -> list[PageColumn]:
    columns = []
    for key in keys:
        q = BY_KEY[key]
        head = {"accuracy_best_test": "Best accuracy* [%]", "accuracy_last": "Last accuracy [%]",
                "accuracy_best_val": "Accuracy at best validation [%]", "perplexity_last": "Last perplexity",
                "perplexity_best_test": "Best perplexity*", "cost_end": "Cost, whole model [% of FP32]",
                "cp_end": "cp, gated blocks [%]", "effective_end": "Effective MACs, whole model"}.get(
                    key, f"{q.label} [{q.unit}]")  # fmt: skip
        columns.append(PageColumn(key, head + ARROWS[q.better], True, IN_RUNS[key], f"{q.title}; key {key}"))
    return columns

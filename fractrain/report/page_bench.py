"""What the report page shows of speed: the records that ``fractrain bench`` wrote, as drawings and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pydantic

from fractrain.report import charts
from fractrain.report.page_detail import Chart, DrawingGroup
from fractrain.report.page_tables import PageColumn, PageRow, PageTable
from fractrain.report.svg import Mark
from fractrain.report.values import Cell, fitted_text
from fractrain.util.errors import StoreError
from fractrain.util.files import storing
from fractrain.util.schema import read_json

FILES: Final = ("cpu", "cpu-formats", "cuda", "cuda-formats")
"""Names of the records of full benches; those of parts, which cannot be compared, have others."""
KINDS: Final = ("fractrain", "other libraries")


class _Absolute(pydantic.BaseModel):
    path: float | None
    baseline: float | None
    unit: str


class BenchPath(pydantic.BaseModel):
    """One line of a bench: see :func:`fractrain.bench.document.entry_of`."""

    path: str
    title: str
    baseline: str
    unit: str
    ratio: float | None
    spread: tuple[float, float] | None
    goal: float | None
    authors: str | None = None
    absolute: _Absolute
    note: str = ""

    @property
    def is_peer(self) -> bool:
        """Whether it is another library's."""
        return self.path.startswith("peer_")

    @property
    def is_timed(self) -> bool:
        """Whether it was measured and its ratio is one of times."""
        return self.ratio is not None and self.unit == "x" and self.absolute.unit == "s"

    def text(self, value: float) -> str:
        """A ratio of this line for people."""
        return f"{value:.2f}x" if self.unit == "x" else f"{100 * value:.2f} %"


class _Settings(pydantic.BaseModel):
    model: str
    batch: int
    size: int
    repeats: int


class _Machine(pydantic.BaseModel):
    cpu: str
    gpu: str | None
    threads: int
    versions: dict[str, str]


class _Document(pydantic.BaseModel):
    settings: _Settings
    machine: _Machine
    paths: list[BenchPath]


@dataclass(frozen=True)
class BenchRecord:
    """The record of one bench.

    Attributes:
        name: of its file, without the ending.
        where: model, batch, machine and versions in words.
    """

    name: str
    where: str
    paths: Sequence[BenchPath]


def read_benches(folder: Path) -> list[BenchRecord]:
    """Return the records of full benches in a folder, where there are any.

    Raises:
        StoreError: a file is no record of ``fractrain bench``, or cannot be read.
    """
    found = []
    for file in (folder / f"{name}.json" for name in FILES):
        if not file.exists():
            continue
        with storing(file, "read"):
            content = file.read_bytes()
        try:
            d = read_json(pydantic.TypeAdapter(_Document), content)
        except ValueError as error:
            raise StoreError(f"{file}: not a record of `fractrain bench` ({error}); measure it again") from error
        s, m = d.settings, d.machine
        place = m.gpu or f"{m.cpu}, {m.threads} threads"
        where = f"{s.model}, batch {s.batch}, {s.size}x{s.size}, {place}, torch {m.versions.get('torch', 'unknown')}, "
        found.append(BenchRecord(file.stem, f"{where}median of {s.repeats} rounds with quartiles", d.paths))
    return found


def bench_drawings(records: Sequence[BenchRecord]) -> Iterator[DrawingGroup]:
    """For each record its ratios of times; first those to what most are ratios to."""
    for record in records:
        timed = [p for p in record.paths if p.is_timed]
        bases = [p.baseline for p in timed]
        usual = max(bases, key=bases.count, default="")
        if timed:
            rows = [_ratio(p, usual) for p in sorted(timed, key=lambda p: p.baseline != usual)]
            label = "time, as a ratio to FP32"
            svg = charts.ratios(f"b{record.name}", f"{record.where}: {label}", rows, label, KINDS).element()
            note = "; †: to something else, which its row below names" if set(bases) != {usual} else ""
            yield DrawingGroup(record.where, [Chart(svg, f"To: {usual}{note}.")])


def _ratio(p: BenchPath, usual: str) -> charts.Ratio:
    assert p.ratio is not None
    low, high = p.spread or (p.ratio, p.ratio)
    goal = "" if p.goal is None else f", goal at most {p.text(p.goal)}"
    text = f"{p.path}: {p.text(p.ratio)}, quartiles {p.text(low)} to {p.text(high)}{goal}; {p.title}; to {p.baseline}"
    label = p.path.removeprefix("peer_") + ("" if p.baseline == usual else " †")
    return charts.Ratio(label, int(p.is_peer), p.ratio, low, high, p.goal, Mark(text))


def bench_table(record: BenchRecord) -> PageTable:
    """Everything that was measured, and what was not available."""
    columns = [
        PageColumn("path", "Path"), PageColumn("title", "What", long=True),
        PageColumn("ratio", "Ratio", True, meaning="Median of the rounds' ratios to the baseline"),
        PageColumn("goal", "Goal: at most", True), PageColumn("authors", "Authors' code"),
        PageColumn("time", "This", True), PageColumn("base", "Baseline", True),
        PageColumn("baseline", "Ratio to", long=True),
        PageColumn("note", "Note", shown=any(p.note for p in record.paths), long=True),
    ]  # fmt: skip
    source = f"{record.name}.json of `fractrain bench`: {record.where}"
    rows = []
    for p in record.paths:
        texts = {"path": p.path, "title": p.title, "authors": f"{p.authors}x" if p.authors else "",
                 "baseline": p.baseline, "note": p.note}  # fmt: skip
        cells = {key: Cell(text) for key, text in texts.items()}
        cells["ratio"] = Cell("not available")
        if p.ratio is not None:
            low, high = p.spread or (None, None)
            cells["ratio"] = Cell(p.text(p.ratio), "measured", p.ratio, low, high, source=source)
        if p.goal is not None:
            cells["goal"] = Cell(p.text(p.goal), value=p.goal)
        for key, value in (("time", p.absolute.path), ("base", p.absolute.baseline)):
            if value is not None:
                unit = p.absolute.unit
                text = f"{value / 2**20:.0f} MiB" if unit == "bytes" else f"{fitted_text(value)} {unit}"
                cells[key] = Cell(text, "measured", value, source=source)
        rows.append(PageRow(cells))
    return PageTable(f"bench-{record.name}", f"Speed and memory: {record.name}", columns, rows, record.where)

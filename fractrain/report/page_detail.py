"""What the report page shows of single runs: learning curves, precision over training, and where the work goes."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractrain.engine.index import RunEntry
from fractrain.engine.length import length_text
from fractrain.engine.store import RunRecord, RunStore
from fractrain.report import charts
from fractrain.report.breakdown import (
    NAMED,
    ModelParts,
    bits_by_part,
    breakdown,
    mean_bits,
    quantized_parts,
    width_shares,
)
from fractrain.report.charts import SIZE
from fractrain.report.page_tables import PageColumn, PageRow, PageTable
from fractrain.report.svg import Mark
from fractrain.report.values import Cell, fitted_text, macs_text
from fractrain.util.errors import FractrainError, StoreError

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.cost.hardware import HardwareModel
    from fractrain.cost.ledger import Ledger

TASK: Final = ["model", "dataset", "setting", "profile"]
AT_BEST: Final = "bit-product"
"""Prices what is looked into where no hardware model was asked for: it needs no shapes, and is quick."""
OVER: Final = {"step": "training step", "cost": "effective MACs of the whole model so far"}
SEEN: Final = 0.05  # bits: less cannot be seen in a drawing
MEASURES: Final = {
    "effective": ("effective MACs of the whole model, whole run", "effective MACs"),
    "joules": ("energy of the whole run [J]", "J"),
    "seconds": ("time of the whole run [s]", "s"),
}


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        view: to which choice of the section's switch it belongs.
        panels: how many pairs of axes stand side by side, where they fill a line of their own.
    """

    svg: str
    caption: str = ""
    view: str = ""
    panels: int = 0


@dataclass(frozen=True)
class DrawingGroup:
    """A group of drawings: one task, or one configuration."""

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class Detail:
    """One run that is looked into.

    Attributes:
        label: its method, and in what its configuration differs.
        lines: of its ``metrics.jsonl``.
        work: from :func:`fractrain.report.breakdown.breakdown`.
        chosen: from :func:`fractrain.report.breakdown.width_shares`.
        spent: effective MACs, joules and seconds by part and product; NaN where the hardware model cannot say.
        problem: why it cannot; empty if it can.
    """

    entry: RunEntry
    label: str
    lines: Sequence[Mapping[str, Any]]
    work: pd.DataFrame
    chosen: pd.DataFrame
    spent: pd.DataFrame
    problem: str = ""

    @property
    def title(self) -> str:
        """Configuration, task and seed."""
        return f"{self.label} on {self.task}, seed {self.entry.seed}"

    @property
    def task(self) -> str:
        """Model, data set, setting and profile."""
        return task_title([getattr(self.entry, name) for name in TASK])


def run_label(method: str, settings: str) -> str:
    """A method with what its configuration differs in."""
    return f"{method} {settings}".rstrip()


def task_title(key: Sequence[Any]) -> str:
    """The values of :data:`TASK` in words."""
    model, dataset, setting, profile = key
    return f"{model} on {dataset}{'' if setting == 'standard' else f', {setting}'} [{length_text(profile)}]"


def details(
    entries: Sequence[RunEntry], groups: Sequence[str], store: RunStore, settings: Mapping[str, str],
    hardware: HardwareModel,
) -> Iterator[Detail]:  # fmt: skip
    """One finished run of each group, that of the least seed; a damaged one is left out (the list names it)."""
    first: dict[str, RunEntry] = {}
    for e in sorted((e for e in entries if e.summary is not None), key=lambda e: e.seed):
        first.setdefault(e.group, e)
    for group in groups:
        entry = first[group]
        try:
            record = store.get(entry.run_id)
            if record is not None and record.summary is not None:
                yield look_into(entry, record, run_label(entry.method, settings[group]), hardware)
        except StoreError:
            continue


def look_into(entry: RunEntry, record: RunRecord, label: str, hardware: HardwareModel) -> Detail:
    """Read what is shown of one finished run.

    Raises:
        StoreError: its files cannot be read.
    """
    ledger = record.ledger()
    work = breakdown(ledger)
    spent, problem = work.groupby(["part", "product"], sort=False)[["effective"]].sum(), ""
    try:
        spent = spent.join(_priced(record, ledger, hardware), how="outer", sort=False)
    except FractrainError as error:
        problem = str(error)
    spent = spent.reindex(columns=list(MEASURES)).fillna({"effective": 0.0})
    return Detail(entry, label, record.metrics(), work, width_shares(ledger), spent, problem)


def _priced(record: RunRecord, ledger: Ledger, hardware: HardwareModel) -> pd.DataFrame:
    """Joules and seconds of a run by part and product."""
    from fractrain.cost.price import Counts
    from fractrain.report.run_cost import price_record

    frame = price_record(record, Counts.from_ledger(ledger), hardware).frame()
    part_of = ModelParts(ledger)
    columns = {name: frame.filter(like=f"{name}_").sum(axis=1, skipna=False) for name in ("joules", "seconds")}
    parts = frame["layer"].map(lambda layer: layer if layer.startswith("(") else part_of(layer)).rename("part")
    return frame.assign(**columns).groupby([parts, "product"], sort=False)[list(columns)].sum(min_count=1)


def by_task(found: Sequence[Detail]) -> Iterator[tuple[str, list[Detail]]]:
    """Runs of the same task together, the task with most of them first."""
    tasks: dict[str, list[Detail]] = defaultdict(list)
    for detail in found:
        tasks[detail.task].append(detail)
    for title, own in sorted(tasks.items(), key=lambda item: -len(item[1])):
        yield title, sorted(own, key=lambda d: d.label)


# -- learning curves ---------------------------------------------------------------------------------------------------


def curves(found: Sequence[Detail], methods: Sequence[str]) -> Iterator[DrawingGroup]:
    """Test accuracy (or perplexity) over steps, and over the cost so far; runs judged once have no curve."""
    for number, (title, own) in enumerate(by_task(found)):
        drawn = [curve(f"l{number}{over[0]}", title, own, methods, over) for over in OVER]
        if all(drawn):
            yield DrawingGroup(title, [Chart(one.element()) for one in drawn if one])


def curve(
    name: str, title: str, found: Sequence[Detail], methods: Sequence[str], over: str, size: tuple[float, float] = SIZE
) -> charts.Drawing | None:
    """Draw how runs learn; None where none of them was judged more than once.

    Args:
        methods: all methods there are, which decides the colours.
        over: one of :data:`OVER`.
        size: in inches.
    """
    text = any(line.get("test_perplexity") is not None for d in found for line in d.lines)
    key, y = ("test_perplexity", "test perplexity") if text else ("test_accuracy", "test accuracy [%]")
    lines = []
    for d in found:
        spent = d.work.groupby("epoch")["effective"].sum().cumsum()
        places = [line["iteration"] if over == "step" else spent.get(line["epoch"], math.nan) for line in d.lines]
        points = [(x, line[key]) for x, line in zip(places, d.lines, strict=True)
                  if line.get(key) is not None and math.isfinite(line[key])]  # fmt: skip
        if len(points) > 1:
            mark = Mark(f"{d.label}, seed {d.entry.seed}", f"#run-{d.entry.run_id}")
            x, values = zip(*points, strict=True)
            lines.append(charts.Line(methods.index(d.entry.method), d.label, x, values, mark))
    words = f"{title}: {y} over {OVER[over]}"
    return charts.curves(name, words, lines, (OVER[over], y), size) if lines else None


# -- precision ---------------------------------------------------------------------------------------------------------


def precision(found: Sequence[Detail]) -> Iterator[DrawingGroup]:
    """How widths move over training, differ between parts and are chosen; constant ones are named in one note."""
    constant: dict[str, list[str]] = defaultdict(list)
    for number, d in enumerate(found):
        view = width_curves(d)
        if not view.panels:
            bits = mean_bits(d.work)
            width = "full precision" if bits.empty else "/".join(f"{v:.3g}" for v in bits.iloc[0]) + " bits (A/W/E)"
            constant[f"{d.label}: {width}"].append(d.entry.run_id)
            continue
        svg = charts.precision(f"p{number}", f"{d.title}: precision over training", view).element()
        yield DrawingGroup(d.title, [Chart(svg, _caption(view), panels=view.panels)])
    if constant:
        yield DrawingGroup("Constant precision", (), "; ".join(constant) + ".")


def width_curves(d: Detail) -> charts.Widths:
    """The widths of a run, as far as they move, differ between parts or are chosen; else without any panel."""
    bits = mean_bits(d.work)
    moves = _moves(bits)
    parts = quantized_parts(d.work)
    maps = {name: own for name in NAMED if _moves(own := bits_by_part(d.work, name).reindex(parts))}
    steps = [line["iteration"] for line in d.lines]
    return charts.Widths(bits if moves else bits.iloc[:0], steps, stages(d.lines), maps, d.chosen)


def _moves(bits: pd.DataFrame) -> bool:
    """Whether the lines, periods or parts, have widths so different that it is seen."""
    return len(bits) > 1 and bool((bits.max() - bits.min()).max() > SEEN)


def stages(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The step at which the period began in which each stage after the first did (PFQ, FracTrain), and its number.

    Args:
        lines: of ``metrics.jsonl``, which say the stage at the end of each period.
    """
    found: list[tuple[int, int]] = []
    for before, line in itertools.pairwise(lines):
        stage, last = ((said.get("method") or {}).get("stage") for said in (line, before))
        if stage is not None and last is not None and stage != last:
            found.append((int(before["iteration"]), int(stage)))
    return found


def _caption(view: charts.Widths) -> str:
    texts = []
    if len(view.bits):
        texts.append("Mean widths of activations A, weights W and errors E of quantized parts, weighted by MACs")
    if view.stages:
        texts.append("dotted: start of the period in which a stage began")
    if view.maps:
        texts.append("maps: mean width by part and evaluation period, 0 where it was skipped")
    if len(view.chosen):
        texts.append("bars: at which widths each part ran, in percent of its forward MACs")
    return "; ".join(texts) + "."


# -- where the work goes -----------------------------------------------------------------------------------------------


def cost_bars(found: Sequence[Detail], hardware: str) -> Iterator[DrawingGroup]:
    """Where effective MACs, energy and time go by product: a bar for each configuration of a task."""
    for number, (title, own) in enumerate(by_task(found)):
        drawn = []
        for measure, (label, _) in MEASURES.items():
            bars = {d.label: _by_product(d, measure) for d in own}
            bars = {name: bars[name] for name in sorted(bars, key=lambda n: -sum(bars[n].values())) if bars[name]}
            if bars:
                label += "" if measure == "effective" else f", modelled by {hardware}"
                svg = charts.stacked(f"w{number}{measure[0]}", f"{title}: {label} by product", bars, label).element()
                drawn.append(Chart(svg, "", measure))
        yield DrawingGroup(title, drawn)


def _by_product(d: Detail, measure: str) -> dict[str, float]:
    sums = d.spent[measure].dropna().groupby(level="product").sum()
    return {str(name): float(value) for name, value in sums.items() if value > 0}


def work_table(found: Sequence[Detail], hardware: str) -> PageTable:
    """The same by part of the model, in numbers."""
    modelled = f"modelled by {hardware}"
    columns = [
        PageColumn("method", "Configuration"), PageColumn("task", "Task"), PageColumn("part", "Part"),
        *(PageColumn(p, f"{p} [effective MACs]", True) for p in ("FW", "EB", "GC")),
        PageColumn("share", "Share of the run [%]", True),
        PageColumn("joules", "Energy [J]", True, meaning=f"Energy of the whole run, {modelled}"),
        PageColumn("seconds", "Time [s]", True, meaning=f"Time of the whole run, {modelled}"),
    ]  # fmt: skip
    rows = []
    for d in found:
        total = d.spent["effective"].sum()
        for part, own in d.spent.groupby(level="part", sort=False):
            cells = {"method": Cell(d.label), "task": Cell(d.task), "part": Cell(str(part))}
            for product, value in own["effective"].groupby(level="product").sum().items():
                if product in ("FW", "EB", "GC"):
                    cells[str(product)] = Cell(macs_text(value), "measured", float(value), n=1)
            share = 100 * own["effective"].sum() / total
            cells["share"] = Cell(f"{share:.1f}", "measured", float(share), n=1)
            for measure in ("joules", "seconds"):
                value = float(own[measure].sum(min_count=1))
                if not math.isnan(value):
                    cells[measure] = Cell(fitted_text(value), "derived", value, n=1, source=modelled)
            rows.append(PageRow(cells, runs=d.entry.run_id))
    problems = sorted({f"{d.label}: {d.problem}" for d in found if d.problem})
    return PageTable("parts", "By part of the model", columns, rows, remarks=problems)

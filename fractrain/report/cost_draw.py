"""Draw what a training step costs (matplotlib, extra ``plots``): bars by part and product, curves along training."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from fractrain.report.cost_points import WHOLE, CostFigure, Share
from fractrain.report.draw import COLOURS, DPI, saved, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRODUCTS: Final = {"FW": ("#0072B2", "forward"), "EB": ("#D55E00", "error"), "GC": ("#009E73", "weight gradient")}
REST: Final = "#9aa3ad"
LIGHTEST: Final = 0.72  # share of white in the last part's shade
UNITS: Final = {"seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "joules": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))}
QUANTITIES: Final = {"seconds": "Time", "joules": "Energy"}
PANEL, LEFT, BETWEEN, RIGHT = 3.3, 0.95, 0.62, 0.62  # inches
BAR, CURVE, ABOVE, UNDER = 0.34, 1.9, 0.36, 0.44
STYLES: Final = ("-", "--", "-", "-.", ":")


def draw_costs(figure: CostFigure, form: str) -> bytes:
    """Return the figure as an ``svg``, ``png`` or ``pdf`` file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with style(figure.table.name):
        return saved(compose(figure), form)


def compose(figure: CostFigure) -> Figure:
    """Lay out and draw all panels; to be called, and saved, inside :func:`fractrain.report.draw.style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = LEFT + 2 * PANEL + BETWEEN + RIGHT
    rows = list(dict.fromkeys(share.row for share in figure.shares))
    bars = max(1, len(rows)) * BAR + 0.15
    texts = _texts(figure, width)
    head, foot = sum(space for *_, space in texts[0]) + 0.75, 0.16 * len(texts[1]) + 0.2
    height = head + 2 * (ABOVE + bars + UNDER) + ABOVE + CURVE + UNDER + foot
    made = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(made)
    _write(made, figure, texts, (width, height), head)
    down = head
    for hardware in figure.hardware:
        for column, quantity in enumerate(QUANTITIES):
            box = _box(column, down + ABOVE, bars, width, height)
            _bars(made.add_axes(box), figure, hardware, quantity, rows, names=column == 0)
        down += ABOVE + bars + UNDER
    for column, hardware in enumerate(figure.hardware):
        _curves(made.add_axes(_box(column, down + ABOVE, CURVE, width, height)), figure, hardware, legend=column == 0)
    return made


def _box(column: int, down: float, tall: float, width: float, height: float) -> tuple[float, float, float, float]:
    x = LEFT + column * (PANEL + BETWEEN)
    return x / width, 1 - (down + tall) / height, PANEL / width, tall / height


Line = tuple[str, dict[str, Any], float]


def _texts(figure: CostFigure, width: float) -> tuple[list[Line], list[str]]:
    """Lines above the panels with style and height, and lines below."""
    table, head = figure.table, []
    parts: list[tuple[str, int, float, dict[str, Any]]] = [
        (table.title, 11, 0.2, {"fontsize": 11, "fontweight": "bold"}),
        (table.watermark.partition(";")[0].replace("measured columns are", "the runs are"), 14, 0.16,
         {"color": "#8a4b00", "fontweight": "bold", "fontsize": 8}),
        (table.caption, 15, 0.16, {"color": "#3b4450"}),
    ]  # fmt: skip
    for text, per_inch, space, look in parts:
        head += [(line, look, space) for line in textwrap.wrap(text, int((width - 0.4) * per_inch))]
    below = [*figure.remarks, *(note for note in table.notes if "reconstruction" in note)]
    return head, [line for text in below for line in textwrap.wrap(text, int(width * 15))]


def _write(
    made: Figure, figure: CostFigure, texts: tuple[list[Line], list[str]], size: tuple[float, float], head: float
) -> None:
    from matplotlib.patches import Patch

    width, height = size
    down = 0.12
    for line, look, space in texts[0]:
        made.text(0.2 / width, 1 - down / height, line, va="top", **look)
        down += space
    handles = [Patch(color=colour, label=f"{name} ({words})") for name, (colour, words) in PRODUCTS.items()]
    layers = [part for part in figure.parts if part != WHOLE]
    shades = [Patch(facecolor=_shade("#3b4450", figure, part), label=part) for part in layers]
    rest = [Patch(color=REST, label=WHOLE)] if WHOLE in figure.parts else []
    for place, group in enumerate((handles, [*shades, *rest])):
        corner = 0.2 / width, 1 - (head - 0.52 + 0.2 * place) / height
        made.legend(handles=group, loc="upper left", bbox_to_anchor=corner,
                    ncols=max(1, len(group)), frameon=False, fontsize=8, borderpad=0, borderaxespad=0, handlelength=1.2,
                    columnspacing=1.2)  # fmt: skip
    made.text(0.2 / width, (0.1 + 0.16 * len(texts[1])) / height, "\n".join(texts[1]), va="top", fontsize=7.5,
              color="#3b4450", linespacing=1.35)  # fmt: skip


def _shade(colour: str, figure: CostFigure, part: str) -> tuple[float, float, float]:
    """The product's colour, the lighter the later the part."""
    from matplotlib.colors import to_rgb

    layers = [p for p in figure.parts if p != WHOLE]
    white = LIGHTEST * layers.index(part) / max(1, len(layers) - 1)
    red, green, blue = (c + (1 - c) * white for c in to_rgb(colour))
    return red, green, blue


def _unit(values: list[float], quantity: str) -> tuple[float, str]:
    largest = max(values, default=0.0)
    return next((unit for unit in UNITS[quantity] if largest >= unit[0]), UNITS[quantity][-1])


def _bars(axes: Axes, figure: CostFigure, hardware: str, quantity: str, rows: list[str], names: bool) -> None:
    """One bar for each row, from the first product of the first part to the last of the last."""
    own = [share for share in figure.shares if share.hardware == hardware]
    totals = {row: sum(getattr(s, quantity) for s in own if s.row == row) for row in rows}
    scale, unit = _unit(list(totals.values()), quantity)
    axes.set_title(f"{QUANTITIES[quantity]} of a step, {hardware}", loc="left", fontsize=9, fontweight="bold", pad=5)
    if not any(totals.values()):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color="#66707f")
        return
    for place, row in enumerate(rows):
        left = 0.0
        for share in sorted((s for s in own if s.row == row), key=lambda s: _order(figure, s)):
            size = getattr(share, quantity) / scale
            colour = _shade(PRODUCTS[share.product][0], figure, share.part) if share.product else REST
            axes.barh(place, size, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.35)
            left += size
        told = f" {totals[row] / scale:.3g}"
        told += f" (×{totals[row] / totals[rows[0]]:.2f})" if place and totals[rows[0]] else ""
        axes.text(left, place, told, va="center", fontsize=7.5, color="#3b4450")
    axes.set_yticks(range(len(rows)), rows if names else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.22 * max(totals.values()) / scale)
    axes.set_xlabel(unit, labelpad=1)
    axes.grid(True, axis="x", color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)


def _order(figure: CostFigure, share: Share) -> tuple[int, int]:
    return [*PRODUCTS, ""].index(share.product), figure.parts.index(share.part)


def _curves(axes: Axes, figure: CostFigure, hardware: str, legend: bool) -> None:
    """Time of a step along training, in percent of the mean step of the first row."""
    own = [period for period in figure.periods if period.hardware == hardware]
    rows = list(dict.fromkeys(period.row for period in own))
    axes.set_title(f"Time along training, {hardware}", loc="left", fontsize=9, fontweight="bold", pad=5)
    if not rows:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", va="center", color="#66707f")
        return
    first = [period for period in own if period.row == rows[0]]
    whole = sum((period.end - period.start) * period.seconds for period in first)
    for number, row in enumerate(rows):
        line = [period for period in own if period.row == row]
        edges = [line[0].start, *(period.end for period in line)]
        axes.stairs([100 * period.seconds / whole for period in line], edges, baseline=None, label=row, linewidth=1.5,
                    color=COLOURS[number % len(COLOURS)], linestyle=STYLES[number % len(STYLES)])  # fmt: skip
    axes.set_ylim(0, 1.12 * max(100 * period.seconds / whole for period in own))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the training (first seed)", labelpad=1)
    axes.set_ylabel(f"% of {rows[0]}'s mean step" if legend else "")
    axes.grid(True, color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(loc="lower left", fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", ncols=2)

"""A campaign in all formats; its figure is the gap to a rival against the length (matplotlib, extra ``plots``)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fractrain.engine.length import length_divisor
from fractrain.report.charts import Drawing
from fractrain.report.draw import COLOURS, DPI, MARKERS, saved, style
from fractrain.report.draw import FORMATS as DRAWABLE
from fractrain.report.page_detail import Chart
from fractrain.report.render import FORMATS, render
from fractrain.report.scaling import Gap, Scaling
from fractrain.report.svg import DIM, GRID, PANEL, SERIES, SOFT, series_colour
from fractrain.util.files import write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES: Final = (5.4, 3.4)  # inches of a panel
ABOVE, UNDER = 0.85, 1.05  # title and warning, legend
_MARKERS: Final = (*MARKERS, "<", ">")
LEAST: Final = 4.0  # points that a vertical axis shows at least below zero
APART: Final = 0.07  # doublings by which methods stand apart, so that no bar hides another


@dataclass(frozen=True)
class Look:
    """Colours of the figure, and what is written into it.

    Attributes:
        dim, neutral: of the line at zero; of what is no method in the legend.
        hollow: inside the markers of predictions.
        band: behind the paper's length.
        star: inside those of published gaps.
        told: whether title and warning are inside.
    """

    dim: str
    neutral: str
    grid: str
    hollow: str
    band: str
    star: str
    series: Sequence[str]
    told: bool

    def colour_and_marker(self, number: int) -> dict[str, Any]:
        """Colour and marker of a method."""
        return {"color": self.series[number % len(self.series)], "marker": _MARKERS[number % len(_MARKERS)]}


FILE: Final = Look("#66707f", "#3b4450", "#e3e6ea", "white", "#fff8ea", "#ffd75e", (*COLOURS, "#000000", "#8c6d31"),
                   told=True)  # fmt: skip
THEMED: Final = Look(DIM, DIM, GRID, PANEL, SOFT, series_colour(4), [series_colour(n) for n in range(SERIES)], False)


def draw_scaling(scaling: Scaling, form: str) -> bytes:
    """Return the figure as an ``svg`` or ``png`` file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with style(scaling.campaign.name):
        return saved(_compose(scaling, FILE), form)


def themed_scaling(scaling: Scaling) -> Chart:
    """The figure in the colours of the report page; to be called inside :func:`fractrain.report.charts.style`."""
    made = _compose(scaling, THEMED)
    title = scaling.campaign.title
    return Chart(Drawing(made, "scaling", title).element(), title, panels=len(made.axes))


def _compose(scaling: Scaling, look: Look) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    campaign = scaling.campaign
    rival = campaign.trend.against[0]
    panels = [(data, list(_gaps(scaling, data, rival))) for data in campaign.datasets]
    panels = [(data, gaps) for data, gaps in panels if gaps]
    width = max(1, len(panels)) * AXES[0] + 0.3
    top = ABOVE * look.told + AXES[1] + UNDER
    made = Figure(figsize=(width, top), dpi=DPI)
    FigureCanvasAgg(made)
    if look.told:
        title = "\n".join(textwrap.wrap(campaign.title, int(width * 12)))
        made.text(0.02, 1 - 0.08 / top, title, va="top", fontsize=10, fontweight="bold")
        warning = "\n".join(textwrap.wrap(scaling.table.watermark, int(width * 16)))
        made.text(0.02, 1 - 0.3 / top, warning, va="top", fontsize=7, color="#8a4b00", fontweight="bold")
    for number, (data, gaps) in enumerate(panels):
        left = (number * AXES[0] + 0.65) / width
        axes = made.add_axes((left, (UNDER + 0.4) / top, (AXES[0] - 0.75) / width, (AXES[1] - 0.6) / top))
        _panel(axes, scaling, data, gaps, look)
    _legend(made, scaling, rival, look)
    return made


def _gaps(scaling: Scaling, data: str, rival: str) -> Iterator[tuple[int, Gap]]:
    """Methods with a gap on this data set, with their number in the campaign, which gives the colour."""
    for number, method in enumerate(m for m in scaling.campaign.methods if m.key != rival):
        gap = scaling.gap(data, method.key, rival)
        if gap is not None and gap.at:
            yield number, gap


def _panel(axes: Axes, scaling: Scaling, data: str, gaps: list[tuple[int, Gap]], look: Look) -> None:
    name = scaling.campaign.datasets[data]
    axes.set_title(f"{scaling.campaign.model_label}, {name}", loc="left", fontsize=9.5, fontweight="bold")
    axes.axhline(0, color=look.dim, linewidth=0.8)
    low = -LEAST
    for place, (number, gap) in enumerate(gaps):
        shift = APART * (place - (len(gaps) - 1) / 2)
        low = min(low, *(_one(axes, gap, number, look, shift)))
    shares = sorted({_log(length) for _, gap in gaps for length in gap.at} | {0.0})
    axes.set_xticks(shares, ["1 (paper)" if x == 0 else f"1/{round(2**-x)}" for x in shares])
    axes.axvspan(-0.5, 0.5, color=look.band, zorder=0)
    axes.set_xlim(shares[0] - 0.6, 0.5)
    axes.set_ylim(1.15 * low, max(2.0, -0.35 * low))
    axes.set_xlabel("length of training, share of the paper's iterations")
    axes.set_ylabel(f"points over {_label(scaling, scaling.campaign.trend.against[0])}, paired")
    axes.grid(True, axis="y", color=look.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def _one(axes: Axes, gap: Gap, number: int, look: Look, shift: float) -> list[float]:
    """One method: measured gaps with their intervals, the line, the prediction, the published gap; lowest mean last."""
    own = look.colour_and_marker(number)
    xs = [_log(length) + shift for length in gap.at]
    means = [e.mean for e in gap.at.values()]
    half = [e.half_width or 0.0 for e in gap.at.values()]
    axes.errorbar(xs, means, yerr=half, linestyle="", capsize=2, linewidth=1.1, markersize=5, zorder=4, **own)
    if gap.trend is not None:
        ends = [xs[0], shift]
        line = [gap.trend.predicted + gap.trend.slope * (x - shift) for x in ends]
        axes.plot(ends, line, "--", color=own["color"], linewidth=0.9, alpha=0.7, zorder=3)
        axes.errorbar([shift], [gap.trend.predicted], yerr=[gap.trend.half], linestyle="", capsize=3, linewidth=0.8,
                      markersize=5, markerfacecolor=look.hollow, zorder=4, **own)  # fmt: skip
    if gap.published is not None:
        axes.plot([shift], [gap.published], linestyle="", marker="*", markersize=10, markeredgecolor=own["color"],
                  markerfacecolor=look.star, zorder=5)  # fmt: skip
    return means


def _legend(made: Figure, scaling: Scaling, rival: str, look: Look) -> None:
    from matplotlib.lines import Line2D

    methods = [m for m in scaling.campaign.methods if m.key != rival]
    shown = {gap.curve.row.key: n for data in scaling.campaign.datasets for n, gap in _gaps(scaling, data, rival)}
    handles: list[Any] = [
        Line2D([], [], linestyle="", markersize=6, label=_label(scaling, m.key), **look.colour_and_marker(shown[m.key]))
        for m in methods if m.key in shown
    ]  # fmt: skip
    columns = 2 * max(1, round(made.get_figwidth() / AXES[0]))
    handles.append(Line2D([], [], linestyle="--", color=look.neutral, marker="o", markerfacecolor=look.hollow,
                          linewidth=0.9, label="line, with 95 % prediction interval of one pair"))  # fmt: skip
    handles.append(Line2D([], [], linestyle="", marker="*", markersize=10, markerfacecolor=look.star,
                          markeredgecolor=look.neutral, label="published gap (one pair of runs)"))  # fmt: skip
    made.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.015, 0.0), ncols=columns, frameon=False,
                fontsize=7.8)  # fmt: skip


def _label(scaling: Scaling, key: str) -> str:
    return next(curve.row.label for (_, name), curve in scaling.curves.items() if name == key)


def _log(length: str) -> float:
    return -math.log2(length_divisor(length) or 1)


# -- files -------------------------------------------------------------------------------------------------------------


DRAWN: Final = ("svg", "png")


def scaling_content(scaling: Scaling, fmt: str) -> bytes:
    """Return the table as ``md``, ``csv``, ``tex``, ``html`` or ``json``, or the figure as ``svg``, ``png`` or ``pdf``.

    Raises:
        ConfigError: unknown format.
        MachineError: a drawing without matplotlib.
    """
    return draw_scaling(scaling, fmt) if fmt in DRAWABLE else render(scaling.table, fmt).encode()


def write(scaling: Scaling, tables: Path, figures: Path) -> list[Path]:
    """Write the table in every format and the figure as drawings, each file at once or not at all.

    Raises:
        StoreError: a folder cannot be written.
        MachineError: matplotlib is not installed.
    """
    name = scaling.campaign.name
    contents = {tables / f"{name}.{fmt}": render(scaling.table, fmt).encode() for fmt in FORMATS}
    contents |= {figures / f"{name}.{fmt}": draw_scaling(scaling, fmt) for fmt in DRAWN}
    return write_files(contents)

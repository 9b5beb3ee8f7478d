"""Draw the gap to a rival against the length of training (matplotlib, extra ``plots``)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fractrain.engine.length import share
from fractrain.report.draw import COLOURS, DPI, MARKERS, saved, style
from fractrain.report.scaling import Gap, Scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL: Final = (5.4, 3.4)  # inches
ABOVE, UNDER = 0.85, 1.05  # title and warning, legend
_COLOURS: Final = (*COLOURS, "#000000", "#8c6d31")
_MARKERS: Final = (*MARKERS, "<", ">")
LEAST: Final = 4.0  # points that a vertical axis shows at least below zero
APART: Final = 0.07  # doublings by which methods stand apart, so that no bar hides another


def draw_scaling(scaling: Scaling, form: str) -> bytes:
    """Return the figure as an ``svg`` or ``png`` file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with style(scaling.campaign.name):
        return saved(_compose(scaling), form)


def _compose(scaling: Scaling) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    campaign = scaling.campaign
    rival = campaign.trend.against[0]
    panels = [(data, list(_gaps(scaling, data, rival))) for data in campaign.datasets]
    panels = [(data, gaps) for data, gaps in panels if gaps]
    width = max(1, len(panels)) * PANEL[0] + 0.3
    top = ABOVE + PANEL[1] + UNDER
    made = Figure(figsize=(width, top), dpi=DPI)
    FigureCanvasAgg(made)
    title = "\n".join(textwrap.wrap(campaign.title, int(width * 12)))
    made.text(0.02, 1 - 0.08 / top, title, va="top", fontsize=10, fontweight="bold")
    warning = "\n".join(textwrap.wrap(scaling.table.watermark, int(width * 16)))
    made.text(0.02, 1 - 0.3 / top, warning, va="top", fontsize=7, color="#8a4b00", fontweight="bold")
    for number, (data, gaps) in enumerate(panels):
        left = (number * PANEL[0] + 0.65) / width
        axes = made.add_axes((left, (UNDER + 0.4) / top, (PANEL[0] - 0.75) / width, (PANEL[1] - 0.6) / top))
        _panel(axes, scaling, data, gaps)
    _legend(made, scaling, rival)
    return made


def _gaps(scaling: Scaling, data: str, rival: str) -> Iterator[tuple[int, Gap]]:
    """Methods with a gap on this data set, with their number in the campaign, which gives the colour."""
    for number, method in enumerate(m for m in scaling.campaign.methods if m.key != rival):
        gap = scaling.gap(data, method.key, rival)
        if gap is not None and gap.at:
            yield number, gap


def _look(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def _panel(axes: Axes, scaling: Scaling, data: str, gaps: list[tuple[int, Gap]]) -> None:
    name = scaling.campaign.datasets[data]
    axes.set_title(f"{scaling.campaign.model_label}, {name}", loc="left", fontsize=9.5, fontweight="bold")
    axes.axhline(0, color="#66707f", linewidth=0.8)
    low = -LEAST
    for place, (number, gap) in enumerate(gaps):
        shift = APART * (place - (len(gaps) - 1) / 2)
        low = min(low, *(_one(axes, gap, _look(number), shift)))
    shares = sorted({_log(length) for _, gap in gaps for length in gap.at} | {0.0})
    axes.set_xticks(shares, ["1 (paper)" if x == 0 else f"1/{round(2**-x)}" for x in shares])
    axes.axvspan(-0.5, 0.5, color="#fff8ea", zorder=0)
    axes.set_xlim(shares[0] - 0.6, 0.5)
    axes.set_ylim(1.15 * low, max(2.0, -0.35 * low))
    axes.set_xlabel("length of training, share of the paper's iterations")
    axes.set_ylabel(f"points over {_label(scaling, scaling.campaign.trend.against[0])}, paired")
    axes.grid(True, axis="y", color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)


def _one(axes: Axes, gap: Gap, look: dict[str, Any], shift: float) -> list[float]:
    """One method: measured gaps with their intervals, the line, the prediction, the published gap; lowest mean last."""
    xs = [_log(length) + shift for length in gap.at]
    means = [e.mean for e in gap.at.values()]
    half = [e.half_width or 0.0 for e in gap.at.values()]
    axes.errorbar(xs, means, yerr=half, linestyle="", capsize=2, linewidth=1.1, markersize=5, zorder=4, **look)
    if gap.trend is not None:
        ends = [xs[0], shift]
        line = [gap.trend.predicted + gap.trend.slope * (x - shift) for x in ends]
        axes.plot(ends, line, "--", color=look["color"], linewidth=0.9, alpha=0.7, zorder=3)
        axes.errorbar([shift], [gap.trend.predicted], yerr=[gap.trend.half], linestyle="", capsize=3, linewidth=0.8,
                      markersize=5, markerfacecolor="white", zorder=4, **look)  # fmt: skip
    if gap.published is not None:
        axes.plot([shift], [gap.published], linestyle="", marker="*", markersize=10, markeredgecolor=look["color"],
                  markerfacecolor="#ffd75e", zorder=5)  # fmt: skip
    return means


def _legend(made: Figure, scaling: Scaling, rival: str) -> None:
    from matplotlib.lines import Line2D

    methods = [m for m in scaling.campaign.methods if m.key != rival]
    shown = {gap.curve.row.key: n for data in scaling.campaign.datasets for n, gap in _gaps(scaling, data, rival)}
    handles: list[Any] = [
        Line2D([], [], linestyle="", markersize=6, label=_label(scaling, m.key), **_look(shown[m.key]))
        for m in methods if m.key in shown
    ]  # fmt: skip
    grey = "#3b4450"
    columns = 2 * max(1, round(made.get_figwidth() / PANEL[0]))
    handles.append(Line2D([], [], linestyle="--", color=grey, marker="o", markerfacecolor="white", linewidth=0.9,
                          label="line, with 95 % prediction interval of one pair"))  # fmt: skip
    handles.append(Line2D([], [], linestyle="", marker="*", markersize=10, markerfacecolor="#ffd75e",
                          markeredgecolor=grey, label="published gap (one pair of runs)"))  # fmt: skip
    made.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.015, 0.0), ncols=columns, frameon=False,
                fontsize=7.8)  # fmt: skip


def _label(scaling: Scaling, key: str) -> str:
    return next(curve.row.label for (_, name), curve in scaling.curves.items() if name == key)


def _log(length: str) -> float:
    return -math.log2(share(length) or 1)

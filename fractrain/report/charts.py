"""Drawings of runs, by matplotlib: accuracy against cost, curves, precision over training, costs.

Each is an element of the report page, whose colours follow its theme, or a file for a paper.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractrain.report.breakdown import PRODUCTS
from fractrain.report.draw import require_matplotlib, saved
from fractrain.report.labels import place_in_axes
from fractrain.report.svg import DIM, GRID, INK, MARKERS, PANEL, SERIES, Mark, series_colour, themed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS: Final = 16
PANEL_WIDTH: Final = 3.0  # inches, of one drawing of widths
SIZE: Final = (5.0, 3.1)  # inches; a drawing fills half of the page's width
COLUMN: Final = (3.35, 2.3)  # inches; one column of two
STYLE: Final[dict[Any, Any]] = {  # matplotlib types each key
    "font.family": "sans-serif", "font.sans-serif": ["system-ui", "DejaVu Sans"], "font.size": 8.5,
    "axes.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.linewidth": 0.6, "svg.fonttype": "none", "figure.facecolor": "none",
    "axes.formatter.useoffset": False,
}  # fmt: skip
FILE: Final[dict[Any, Any]] = {"font.sans-serif": ["DejaVu Sans"], "svg.fonttype": "path"}
PRINTED: Final = ("#c24e00", "#0072b2", "#00805f", "#b0548a", "#9a6a00", "#2b8fc4", "#7a3fb0", "#5f6b00", "#a32a2a",
                  "#3d5a80", "#00838f", "#6d4c41")  # fmt: skip
"""Colours of series on paper: the page's in its light theme."""


def _colours(ink: str, dim: str, grid: str, panel: str, series: Sequence[str]) -> dict[Any, Any]:
    """Settings of everything that has a colour; series are drawn as ``C0``, ``C1``, ..."""
    from cycler import cycler

    inks = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), ink)
    dims = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), dim)
    return {**inks, **dims, "grid.color": grid, "axes.facecolor": panel, "axes.prop_cycle": cycler(color=series)}


@dataclass(frozen=True)
class Drawing:
    """A finished drawing; to be turned into an element or a file inside the :func:`style` that it was made in.

    Attributes:
        name, title: prefix of its ids, and what it shows.
        marks: what its markers say, by id of their group.
    """

    figure: Figure
    name: str
    title: str
    marks: Mapping[str, Sequence[Mark]] | None = None

    def element(self) -> str:
        """The drawing as an element of the page."""
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = self.name
        stream = io.BytesIO()
        self.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": "fractrain"}, transparent=False)
        return themed(stream.getvalue(), self.name, self.title, self.marks)

    def file(self, form: str, note: str = "") -> bytes:
        """The drawing as ``svg``, ``png`` or ``pdf``.

        Args:
            note: a few words that are written into its corner.
        """
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = self.name
        if note:
            axes = self.figure.axes[0]
            axes.text(0.99, 0.1, note, transform=axes.transAxes, ha="right", fontsize=6.5, color="#8a4b00")
        return saved(self.figure, form)


@dataclass(frozen=True)
class Dot:
    """One configuration in a scatter: a mean with its interval.

    Attributes:
        series: number of its method.
        label: short text beside the point, where there are few.
        x, y: means.
        low, high: interval of ``y``; NaN where there is none.
    """

    series: int
    label: str
    x: float
    y: float
    low: float
    high: float
    mark: Mark


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        series: number of its method.
        label: short text at its end, where there are few.
    """

    series: int
    label: str
    x: Sequence[float]
    y: Sequence[float]
    mark: Mark


def scatter(name: str, title: str, dots: Sequence[Dot], labels: tuple[str, str]) -> Drawing:
    """Draw one point per configuration, with intervals."""
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        for number in sorted({dot.series for dot in dots}):
            own = [dot for dot in dots if dot.series == number]
            colour, marker = _series(number), MARKERS[number % len(MARKERS)]
            bars = _bars_of(own)
            axes.vlines([d.x for d in bars], [d.low for d in bars], [d.high for d in bars], colors=colour,
                        linewidth=1.1, alpha=0.7, gid=f"series-{number}-bars")  # fmt: skip
            gid = f"series-{number}-dots"
            axes.plot([d.x for d in own], [d.y for d in own], marker, color=colour, markersize=6.5, markeredgewidth=0.8,
                      markeredgecolor=_setting("axes.facecolor"), gid=gid)  # fmt: skip
            marks[gid] = [dot.mark for dot in own]
        _scales(axes, labels, [dot.x for dot in dots], [dot.y for dot in dots])
        axes.margins(0.12)
        if len(dots) <= MOST_LABELS:
            _labelled(axes, dots, [((d.x, d.low), (d.x, d.high)) for d in _bars_of(dots)])

    return _drawn(name, title, draw, marks)


def curves(
    name: str, title: str, lines: Sequence[Line], labels: tuple[str, str], size: tuple[float, float] = SIZE
) -> Drawing:
    """Draw one line per configuration; its points are marked, so that a curve of one point is seen."""
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            gid = f"series-{line.series}-line{number}"
            few = len(line.x) <= 40
            axes.plot(line.x, line.y, color=_series(line.series), linewidth=1.3, gid=gid, markersize=3.5,
                      marker=MARKERS[line.series % len(MARKERS)] if few else None)  # fmt: skip
            if few:
                marks[gid] = [Mark(f"{line.mark.text}: {labels[1]} {y:.4g} at {x:.4g} {labels[0]}", line.mark.link)
                              for x, y in zip(line.x, line.y, strict=True)]  # fmt: skip
        _scales(axes, labels, [x for line in lines for x in line.x], [y for line in lines for y in line.y])
        axes.margins(x=0.1)
        if size[0] < SIZE[0]:  # too narrow for texts beside the lines
            axes.legend(handles=axes.lines, labels=[line.label for line in lines], frameon=False, fontsize=7)
        elif len(lines) <= MOST_LABELS:
            points = [list(zip(line.x, line.y, strict=True)) for line in lines]
            _labelled(axes, [Dot(n.series, n.label, n.x[-1], n.y[-1], n.y[-1], n.y[-1], n.mark) for n in lines],
                      [piece for line in points for piece in itertools.pairwise(line)])  # fmt: skip

    return _drawn(name, title, draw, marks, size)


@dataclass(frozen=True)
class Widths:
    """The widths of one run.

    Attributes:
        bits: from :func:`fractrain.report.breakdown.mean_bits`; empty where they do not move.
        steps: training steps at the end of each period.
        stages: from :func:`fractrain.report.page_detail.stages`.
        maps: from :func:`fractrain.report.breakdown.bits_by_part`, by operand.
        chosen: from :func:`fractrain.report.breakdown.width_shares`.
    """

    bits: pd.DataFrame
    steps: Sequence[int]
    stages: Sequence[tuple[int, int]]
    maps: Mapping[str, pd.DataFrame]
    chosen: pd.DataFrame

    @property
    def panels(self) -> int:
        """Number of pairs of axes."""
        return bool(len(self.bits)) + len(self.maps) + bool(len(self.chosen))

    def top(self) -> float:
        """The greatest width below full precision, for the scale of colours."""
        widths = [value for bits in self.maps.values() for value in bits.to_numpy().ravel() if value < 32]
        found = max([1.0, *widths, *(width for width in map(int, self.chosen.columns) if width < 32)])
        return float(math.ceil(found))


def precision(name: str, title: str, widths: Widths, panel_width: float = PANEL_WIDTH) -> Drawing:
    """Draw widths over training, a heat map of each operand by part and period, and what each part chose."""
    names = [str(part) for own in (*widths.maps.values(), widths.chosen) for part in own.index]
    parts = max([0, *(len(own) for own in (*widths.maps.values(), widths.chosen))])
    panels: list[Callable[[Axes, bool], None]] = [lambda axes, _: _over_time(axes, widths)] if len(widths.bits) else []
    for operand, bits in widths.maps.items():
        panels.append(lambda axes, first, o=operand, b=bits: _heat(axes, o, b, widths.top(), first))  # type: ignore[misc]
    if len(widths.chosen):
        panels.append(lambda axes, first: _chosen(axes, widths.chosen, widths.top(), first))

    def fill(made: Figure, high: float) -> None:
        left, labelled = 0.5, False
        for number, panel in enumerate(panels):
            named = number >= bool(len(widths.bits)) and not labelled
            left += _label_width(names) if named else 0
            panel(made.add_axes((left / wide, 0.45 / high, panel_width / wide, 1 - 0.8 / high)), named)
            labelled = labelled or named
            left += panel_width + 0.25

    wide = 0.75 + len(panels) * (panel_width + 0.25) + (_label_width(names) if names else 0)
    return _filled(name, title, fill, (wide, max(2.2, 0.9 + 0.105 * parts)))


def _over_time(axes: Axes, widths: Widths) -> None:
    edges = [0, *widths.steps[: len(widths.bits)]]
    for number, (operand, dashes) in enumerate(zip(widths.bits.columns, ("-", "--", ":"), strict=False)):
        axes.stairs(widths.bits[operand].to_numpy(), edges, baseline=None, color=_series(number), linewidth=1.6,
                    linestyle=dashes, label=operand)  # fmt: skip
    axes.set_ylim(bottom=0)
    for step, stage in widths.stages:
        axes.axvline(step, color=_setting("xtick.color"), linewidth=0.8, linestyle=":")
        axes.text(step, 0.02, f"stage {stage} ", fontsize=6.5, color=_setting("xtick.color"), ha="right",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel("mean bits")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98), frameon=False, fontsize=7, borderpad=0)


def _heat(axes: Axes, operand: str, bits: pd.DataFrame, top: float, labelled: bool) -> None:
    axes.grid(False)
    image = axes.imshow(bits.to_numpy(), aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=top)
    _part_names(axes, bits, labelled)
    axes.set_xticks(*_ticks(len(bits.columns)))
    axes.set_xlabel("evaluation period")
    axes.text(0, 1.03, f"mean bits of {operand}", transform=axes.transAxes, fontsize=7)
    if not labelled:
        return
    scale = axes.inset_axes((0.45, 1.03, 0.5, 0.05), transform=axes.transAxes)
    axes.get_figure(root=True).colorbar(image, cax=scale, orientation="horizontal")  # type: ignore[union-attr]
    scale.set_xticks([0, top], labels=["0", f"{top:g} bits"], fontsize=6)
    scale.xaxis.set_ticks_position("top")
    scale.tick_params(length=0, pad=1)


def _chosen(axes: Axes, shares: pd.DataFrame, top: float, labelled: bool) -> None:
    from matplotlib import colormaps

    left = [0.0] * len(shares)
    places = list(range(len(shares)))
    for width in map(int, shares.columns):
        values = shares[width].tolist()
        label = "skipped" if width == 0 else f"{width} bits"
        axes.barh(places, values, left=left, height=0.8, label=label, color=colormaps["viridis"](min(1.0, width / top)))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.grid(False, axis="y")
    _part_names(axes, shares, labelled)
    axes.set_xlabel("share of forward MACs [%]")
    axes.legend(ncols=min(4, len(shares.columns)), loc="lower center", bbox_to_anchor=(0.5, 0.98), frameon=False,
                fontsize=6.5, handlelength=0.9, columnspacing=0.8, borderpad=0)  # fmt: skip


def _part_names(axes: Axes, lines: pd.DataFrame, labelled: bool) -> None:
    """Name at most 24 lines, and only at the first of several panels."""
    every = max(1, -(-len(lines) // 24))
    places = list(range(0, len(lines), every)) if labelled else []  # ticks that nobody sees take as long as others
    axes.set_yticks(places, labels=[str(lines.index[place]) for place in places], fontsize=6)
    axes.tick_params(axis="y", length=0)


def stacked(name: str, title: str, bars: Mapping[str, Mapping[str, float]], label: str) -> Drawing:
    """Draw one horizontal bar per key, made of one part per product.

    Args:
        bars: for each bar, its value by product.
        label: what the axis shows.
    """
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        rows = list(bars)
        left = [0.0] * len(rows)
        for number, (product, words) in enumerate(PRODUCTS.items()):
            values = [bars[row].get(product, 0.0) for row in rows]
            axes.barh(rows, values, left=left, color=_series(number), height=0.72, label=f"{product} ({words})")
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", labelsize=6.5, length=0)
        axes.set_xlabel(label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=7.5)

    high = 1.1 + 0.17 * len(bars)
    return _drawn(name, title, draw, marks, size=(SIZE[0], high), margins=(_label_width(bars), 0.15, 0.3, 0.5))


@dataclass(frozen=True)
class Ratio:
    """One ratio to a baseline.

    Attributes:
        value, low, high: median and quartiles.
        goal: largest one aimed at; None: no goal.
    """

    label: str
    kind: int
    value: float
    low: float
    high: float
    goal: float | None
    mark: Mark


def ratios(name: str, title: str, rows: Sequence[Ratio], label: str, kinds: Sequence[str]) -> Drawing:
    """Draw one line per ratio: median, quartiles and goal, on an axis on which half and twice lie as far from 1.

    Args:
        label: what the axis shows.
        kinds: what the kinds are called.
    """
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.axvline(1, color=_setting("xtick.color"), linewidth=0.9)
        for kind, words in enumerate(kinds):
            own = [(place, row) for place, row in enumerate(rows) if row.kind == kind]
            if own:
                places, gid = [place for place, _ in own], f"kind-{kind}"
                ends = [row.low for _, row in own], [row.high for _, row in own]
                axes.hlines(places, *ends, colors=_series(kind), linewidth=1.4)
                axes.plot([row.value for _, row in own], places, MARKERS[kind], color=_series(kind), markersize=5.5,
                          gid=gid, label=words)  # fmt: skip
                marks[gid] = [row.mark for _, row in own]
        goals = [(row.goal, place) for place, row in enumerate(rows) if row.goal is not None]
        if goals:
            axes.plot(*zip(*goals, strict=True), "|", color=_setting("text.color"), markersize=9, label="goal: at most")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(range(len(rows)), labels=[row.label for row in rows], fontsize=6.5)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel(label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=7.5)

    high = 1.0 + 0.19 * len(rows)
    margins = (_label_width(row.label for row in rows), 0.15, 0.3, 0.5)
    return _drawn(name, title, draw, marks, size=(SIZE[0], high), margins=margins)


# -- helpers -----------------------------------------------------------------------------------------------------------


def _bars_of(dots: Sequence[Dot]) -> list[Dot]:
    """Those that have an interval."""
    return [dot for dot in dots if dot.low == dot.low]


def _labelled(
    axes: Axes, dots: Sequence[Dot], lines: Sequence[tuple[tuple[float, float], tuple[float, float]]]
) -> None:
    """Write the label of each point near it, off the others and off lines and bars."""
    axes.autoscale_view()  # so that places on the page are known
    sizes = [(0.5 * 5.2 * len(dot.label) * 100 / 72, 6.0) for dot in dots]
    places = place_in_axes(axes, [(dot.x, dot.y) for dot in dots], sizes, 6.0, lines)
    for dot, (x, y) in zip(dots, places, strict=True):
        axes.text(x, y, dot.label, fontsize=7, color=_series(dot.series), ha="center", va="center",
                  gid=f"series-{dot.series}-label")  # fmt: skip


def _series(number: int) -> str:
    """The colour of a series in the present style."""
    return f"C{number % SERIES}"


def _setting(key: Any) -> Any:
    import matplotlib

    return matplotlib.rcParams[key]


def _label_width(labels: Iterable[str]) -> float:
    """Inches that the longest label of a bar takes."""
    return min(2.4, 0.2 + 0.062 * max((len(label) for label in labels), default=0))


def _ticks(count: int) -> tuple[list[int], list[str]]:
    """Places and labels of at most nine ticks."""
    places = list(range(0, count, max(1, -(-count // 9))))
    return places, [str(place) for place in places]


def _scales(axes: Axes, labels: tuple[str, str], x: Sequence[float], y: Sequence[float]) -> None:
    """Labels; and a logarithmic axis where numbers lie so far apart that no other shows them all."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis, values, label in zip((axes.xaxis, axes.yaxis), (x, y), labels, strict=True):
        axis.set_label_text(label)
        if min(values) > 0 and max(values) > 10 * min(values):
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+", "e")))
            axis.set_minor_locator(NullLocator())


@contextmanager
def style(page: bool = True) -> Iterator[None]:
    """Matplotlib's settings for the drawings inside a block: ours, whatever the user's are, and theirs after it.

    Args:
        page: for elements of the page, with stand-ins for its colours; else for files.

    Raises:
        MachineError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    stand_ins = [series_colour(number) for number in range(SERIES)]
    colours = _colours(INK, DIM, GRID, PANEL, stand_ins) if page else _colours("#1c2430", "#66707f", "#e3e6ea", "white",
                                                                               PRINTED)  # fmt: skip
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, **colours, **({} if page else FILE)})
        yield


def _drawn(
    name: str, title: str, draw: Callable[[Axes], None], marks: Mapping[str, Sequence[Mark]] | None = None,
    size: tuple[float, float] = SIZE, margins: tuple[float, float, float, float] = (0.6, 0.12, 0.12, 0.5),
) -> Drawing:  # fmt: skip
    """Let ``draw`` fill one pair of axes; to be called inside :func:`style`.

    The margins (left, right, top, bottom, in inches) are given: matplotlib takes half of its time to find them out.
    """

    def fill(made: Figure, high: float) -> None:
        left, right, top, bottom = margins
        wide = size[0]
        draw(made.add_axes((left / wide, bottom / high, 1 - (left + right) / wide, 1 - (top + bottom) / high)))

    return _filled(name, title, fill, size, marks)


def _filled(
    name: str, title: str, fill: Callable[[Figure, float], None], size: tuple[float, float],
    marks: Mapping[str, Sequence[Mark]] | None = None,
) -> Drawing:  # fmt: skip
    """Let ``fill`` put axes into a figure, which it is given with its height in inches."""
    from matplotlib.figure import Figure

    made = Figure(figsize=size)
    fill(made, size[1])
    for axes in made.axes:  # places that are known need not be found out, which takes as long as to draw
        axes.set_title("", y=1.0)
    return Drawing(made, name, title, marks)

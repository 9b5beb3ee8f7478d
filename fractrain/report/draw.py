"""Draw a figure with matplotlib (extra ``plots``). The same points give the same bytes: no date, no random ids."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fractrain.report.figure_data import FigureData, Panel, PlotPoint
from fractrain.report.labels import place_in_axes
from fractrain.util.errors import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by people with any common colour vision; markers differ as well.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "o", "^", "D", "v", "P")
DPI = 150
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STYLE: dict[Any, Any] = {  # matplotlib types each key
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.linewidth": 0.7, "axes.edgecolor": "#66707f", "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "path",
}  # fmt: skip


Look = Literal["page", "paper"]
LOOKS: Final = ("page", "paper")
FORMATS: Final = ("svg", "png", "pdf")


@dataclass(frozen=True)
class Sizes:
    """Geometry of a figure, in inches.

    Attributes:
        width, height: of one panel's axes.
        left, between, right: space beside the panels.
        above, under: of each panel: titles, and ticks with the axis label.
        across: most panels side by side; 0: as the figure's specification says.
        told: whether title, caption, remarks and source are inside.
    """

    width: float
    height: float
    left: float
    between: float
    right: float
    above: float
    under: float
    across: int
    told: bool


SIZES: Final[dict[Look, Sizes]] = {
    "page": Sizes(3.2, 2.5, 0.72, 0.62, 0.2, 0.52, 0.55, 0, True),
    "paper": Sizes(2.72, 2.0, 0.55, 0.0, 0.08, 0.42, 0.45, 1, False),  # 3.35 inches: one column of two
}


def require_matplotlib() -> None:
    """Say what to install where matplotlib is missing.

    Raises:
        MachineError: it cannot be imported.
    """
    with needed("figures need matplotlib ({}); pip install 'fractrain[plots]'"):
        import matplotlib  # noqa: F401


def draw(figure: FigureData, form: str, look: Look = "page") -> bytes:
    """Return the figure as a file.

    Args:
        form: one of :data:`FORMATS`.
        look: ``page``: with title, caption and source inside. ``paper``: as wide as one column of two, with none of
            them; panels of reduced runs still say what they are.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with style(figure.table.name):
        made = compose(figure, look)
        return saved(made, form)


def saved(made: Figure, form: str) -> bytes:
    """The bytes of a figure in one of :data:`FORMATS`; to be called inside :func:`style`."""
    stream = io.BytesIO()
    metadata: Any = {
        "svg": {"Date": None, "Creator": "fractrain"}, "png": {"Software": "fractrain"},
        "pdf": {"CreationDate": None, "Creator": "fractrain", "Producer": None},
    }[form]  # fmt: skip
    made.savefig(stream, format=form, dpi=DPI, metadata=metadata, facecolor="white")
    return stream.getvalue()


@contextmanager
def style(name: str) -> Iterator[None]:
    """Matplotlib's settings for the duration of a block: ours, whatever the user's are, and theirs again after it.

    Args:
        name: of the figure; the ids inside an SVG file depend on it alone.

    Raises:
        MachineError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style must not change the bytes
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        yield


@dataclass(frozen=True)
class _Page:
    """Geometry in inches, from the top left."""

    width: float
    height: float
    head: float
    sizes: Sizes

    def rectangle(self, column: int, row: int) -> tuple[float, float, float, float]:
        """Axes rectangle of a panel, in fractions of the page."""
        s = self.sizes
        x = s.left + column * (s.width + s.between)
        y = self.head + row * (s.above + s.height + s.under) + s.above
        return x / self.width, 1 - (y + s.height) / self.height, s.width / self.width, s.height / self.height

    def down(self, inches: float) -> float:
        """Height of a line, as a fraction of the page, so far below the top edge."""
        return 1 - inches / self.height


def compose(figure: FigureData, look: Look = "page") -> Figure:
    """Lay out and draw all panels that have points; to be called, and saved, inside :func:`style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    s = SIZES[look]
    across = min(s.across or figure.drawing.across, max(1, *(len(row) for row in _kinds(figure))))
    lines = list(_lines(figure, across))
    notes = {note: LETTERS[i % 26] for i, note in enumerate(dict.fromkeys(p.note for p in figure.points if p.note))}
    width = s.left + across * s.width + (across - 1) * s.between + s.right
    foot = _foot(figure, notes, width) if s.told else []
    head: list[HeadLine] = []
    if s.told:
        tags = f"Texts at the points: {figure.drawing.tags}. " if figure.drawing.tags else ""
        key = f"{tags}Lines join the points of a series from low to high precision."
        head = head_lines([figure.title, figure.warning, figure.table.caption, key], width - s.left, gap=0.05)
    top = 0.42 + sum(space for *_, space in head) if s.told else 0.4
    high = top + len(lines) * (s.above + s.height + s.under) + 0.16 * len(foot) + 0.15 * s.told
    page = _Page(width, high, top, s)

    made = Figure(figsize=(page.width, page.height), dpi=DPI)
    FigureCanvasAgg(made)
    write_head(made, head, s.left)
    _legend(made, figure, page)
    units = _units(figure)
    for row, panels in enumerate(lines):
        for column, panel in enumerate(panels):
            axes = made.add_axes(page.rectangle(column, row))
            _panel(axes, panel, figure, notes, units[panel.kind])
            _name(axes, panel, s.told, sum(map(len, lines)) > 1)
            if column == 0:
                axes.set_ylabel("accuracy [%], best on test")
    if foot:
        made.text(s.left / width, (0.1 + 0.16 * len(foot)) / page.height, "\n".join(foot), va="top", fontsize=7.5,
                  color="#3b4450", linespacing=1.35)  # fmt: skip
    return made


def _foot(figure: FigureData, notes: Mapping[str, str], width: float) -> list[str]:
    """Lines below the panels: remarks, notes on single points, source."""
    below = [*figure.remarks, *(f"{letter}: {note}." for note, letter in notes.items())]
    below.append(f"Source: {figure.table.source}.")
    return [line for text in below for line in textwrap.wrap(text, int(width * 15))]


HeadLine = tuple[str, dict[str, Any], float]  # a line above all panels, its style, and the inches it takes
HEAD: Final[tuple[tuple[int, float, dict[str, Any]], ...]] = (
    (11, 0.2, {"fontsize": 11, "fontweight": "bold"}),
    (14, 0.16, {"color": "#8a4b00", "fontweight": "bold", "fontsize": 8}),
    (15, 0.16, {"color": "#3b4450"}),
    (15, 0.16, {"color": "#3b4450"}),
)
"""Of title, warning, caption and key: letters on an inch, inches of a line, and style."""


def head_lines(texts: Sequence[str], width: float, gap: float = 0.0) -> list[HeadLine]:
    """Title, warning, caption and key (some may be empty or missing) in lines of ``width`` inches, a gap after each."""
    found: list[HeadLine] = []
    for text, (per_inch, space, look) in zip(texts, HEAD, strict=False):
        lines = textwrap.wrap(text, int(width * per_inch))
        found += [(line, look, space + gap * (number == len(lines))) for number, line in enumerate(lines, 1)]
    return found


def write_head(made: Figure, lines: Sequence[HeadLine], left: float) -> None:
    """Write the lines into a figure, so many inches from its left edge."""
    width, height = made.get_size_inches()
    down = 0.12
    for line, look, space in lines:
        made.text(left / width, 1 - down / height, line, va="top", **look)
        down += space


def _units(figure: FigureData) -> dict[str, int]:
    """Power of ten of the axes of MACs, the same on all panels of a kind."""
    largest = {panel.kind: 1.0 for panel in (*figure.published, *figure.measured)}
    for panel in (*figure.published, *figure.measured):
        largest[panel.kind] = max([largest[panel.kind], *(p.macs for p in panel.points)])
    return {kind: math.floor(math.log10(macs)) for kind, macs in largest.items()}


def _kinds(figure: FigureData) -> tuple[list[Panel], list[Panel]]:
    """The published panels that have points, and the measured ones."""
    published, measured = (
        [panel for panel in panels if panel.points] for panels in (figure.published, figure.measured)
    )
    return published, measured


def _lines(figure: FigureData, across: int) -> Iterator[Sequence[Panel]]:
    """Rows of panels: published ones, and below them measured ones; those without a point are left out."""
    for panels in _kinds(figure):
        for start in range(0, len(panels), across):
            yield panels[start : start + across]


# -- one panel ---------------------------------------------------------------------------------------------------------


def _name(axes: Axes, panel: Panel, told: bool, several: bool) -> None:
    """Write what a panel shows above it; where it stands in a paper only what the caption cannot take over."""
    if told or several:
        axes.set_title(panel.title, loc="left", fontsize=9.5 if told else 8, fontweight="bold", pad=17 if told else 14)
    measured = panel.kind == "measured"
    if told or measured:
        axes.text(0, 1.03, textwrap.shorten(panel.subtitle, 90), transform=axes.transAxes,
                  fontsize=7.2 if told else 6.3, color="#8a4b00" if measured else "#66707f")  # fmt: skip


def _panel(axes: Axes, panel: Panel, figure: FigureData, notes: dict[str, str], power: int) -> None:
    if panel.kind == "measured":
        axes.set_facecolor("#fff8ea")
    for series, (colour, marker) in zip(figure.drawing.series, _looks(), strict=False):
        for kind in ("published", "measured"):
            own = [p for p in panel.points if p.series == series.key and p.kind == kind]
            if own:
                _series(axes, own, 10.0**power, colour, marker, kind == "measured")
    _scale(axes, panel, figure.drawing.x_scale, 10.0**power)
    axes.set_xlabel(f"effective MACs@best [$10^{{{power}}}$]", labelpad=2)
    axes.grid(True, color="#e3e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    colours = {s.key: colour for s, (colour, _) in zip(figure.drawing.series, _looks(), strict=False)}
    _tags(axes, panel.points, 10.0**power, notes, colours)


def _looks() -> list[tuple[str, str]]:
    return list(zip(COLOURS, MARKERS, strict=True))


def _series(axes: Axes, points: Sequence[PlotPoint], unit: float, colour: str, marker: str, filled: bool) -> None:
    """One series: a thin line in the order of the precisions, hollow markers for published, filled for measured."""
    x, y = [p.macs / unit for p in points], [p.accuracy for p in points]
    axes.plot(x, y, "-" if filled else ":", color=colour, linewidth=0.9, alpha=0.55, zorder=2)
    for p in points:
        if p.accuracy_low is not None and p.accuracy_high is not None:
            ends = [p.accuracy_low, p.accuracy_high]
            axes.plot([p.macs / unit] * 2, ends, "-", color=colour, linewidth=1.1, zorder=3)
    face = colour if filled else "white"
    axes.scatter(x, y, s=34, marker=marker, facecolors=face, edgecolors=colour, linewidths=1.4, zorder=4,
                 gid=f"{points[0].kind}-{points[0].series}")  # fmt: skip


def _scale(axes: Axes, panel: Panel, kind: str, unit: float) -> None:
    """Limits with room for the texts, and round numbers on the axis of MACs."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    x = [p.macs / unit for p in panel.points]
    lows = [p.accuracy if p.accuracy_low is None else p.accuracy_low for p in panel.points]
    highs = [p.accuracy if p.accuracy_high is None else p.accuracy_high for p in panel.points]
    space = 0.13 * (max(highs) - min(lows)) or 0.5
    axes.set_ylim(min(lows) - space, max(highs) + space)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if kind == "linear":
        room = 0.12 * (max(x) - min(x)) or 0.1 * max(x)
        axes.set_xlim(max(0.0, min(x) - room), max(x) + room)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        return
    room = 0.1 * math.log(max(x) / min(x)) or 0.1
    low, high = min(x) * math.exp(-room), max(x) * math.exp(room)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [m * 10.0**e for e in range(-6, 4) for m in (1, 2, 5)]
    inside = [t for t in ticks if low <= t <= high]
    if len(inside) < 3:
        inside = [t for t in (m * 10.0**e for e in range(-6, 4) for m in (1, 1.5, 2, 3, 4, 5, 7)) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tags(axes: Axes, points: Sequence[PlotPoint], unit: float, notes: dict[str, str], colours: dict[str, str]) -> None:
    """Write the texts beside the points; a raised letter leads to the remark on a doubtful one."""
    texts = [p.tag + (f"$^{{{notes[p.note]}}}$" if p.note else "") for p in points]
    sizes = [(4.6 * (len(p.tag) + bool(p.note)), 7.5) if t else (0.0, 0.0) for p, t in zip(points, texts, strict=True)]
    places = place_in_axes(axes, [(p.macs / unit, p.accuracy) for p in points], sizes, 7.0)
    for p, text, (x, y) in zip(points, texts, places, strict=True):
        axes.text(x, y, text, fontsize=7.2, color=colours[p.series], ha="center", va="center", zorder=3.5,
                  bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "alpha": 0.75, "pad": 0.4})  # fmt: skip


def _legend(made: Figure, figure: FigureData, page: _Page) -> None:
    """Above all panels, so that it covers no point."""
    from matplotlib.lines import Line2D

    handles = []
    kinds = [k for k in ("published", "measured") if any(p.kind == k for p in figure.points)]
    for series, (colour, marker) in zip(figure.drawing.series, _looks(), strict=False):
        for kind in kinds:
            filled = kind == "measured"
            handles.append(Line2D([], [], color=colour, marker=marker, linestyle="-" if filled else ":", markersize=6,
                                  markerfacecolor=colour if filled else "white", markeredgewidth=1.4, linewidth=0.9,
                                  label=f"{series.label}, {kind}"))  # fmt: skip
    columns = len(handles) if page.sizes.told else min(2, len(handles))
    left = page.sizes.left if page.sizes.told else 0.1
    made.legend(handles=handles, loc="upper left", bbox_to_anchor=(left / page.width, page.down(page.head - 0.3)),
                ncols=columns, frameon=False, fontsize=8.5 if page.sizes.told else 7, borderpad=0, borderaxespad=0,
                columnspacing=1.0)  # fmt: skip

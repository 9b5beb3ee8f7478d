"""The drawings of the report page, by matplotlib: accuracy against cost, curves, precision over training, costs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fractrain.report.breakdown import PRODUCTS
from fractrain.report.draw import require_matplotlib
from fractrain.report.labels import Box, place
from fractrain.report.svg import DIM, GRID, INK, MARKERS, PANEL, Mark, series_colour, themed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_LABELS: Final = 16
SIZE: Final = (5.0, 3.1)  # inches; a drawing fills half of the page's width
STYLE: Final[dict[Any, Any]] = {  # matplotlib types each key
    "font.family": "sans-serif", "font.sans-serif": ["system-ui", "DejaVu Sans"], "font.size": 8.5, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": DIM, "axes.facecolor": PANEL, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.6, "xtick.color": DIM, "ytick.color": DIM, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "svg.fonttype": "none", "figure.facecolor": "none", "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """One configuration in a scatter: a mean with its interval.

    Attributes:
        series: number of its method.
        label: short text beside the point, where there are few.
        x, y: means.
        low, high: interval of ``y``; NaN where there is none.
        mark: what it says.
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
        x, y: its points.
        mark: what it says.
    """

    series: int
    label: str
    x: Sequence[float]
    y: Sequence[float]
    mark: Mark


def scatter(name: str, title: str, dots: Sequence[Dot], labels: tuple[str, str]) -> str:
    """Draw one point per configuration, with intervals."""
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        for number in sorted({dot.series for dot in dots}):
            own = [dot for dot in dots if dot.series == number]
            colour, marker = series_colour(number), MARKERS[number % len(MARKERS)]
            bars = [dot for dot in own if dot.low == dot.low]
            axes.vlines([d.x for d in bars], [d.low for d in bars], [d.high for d in bars], colors=colour,
                        linewidth=1.1, alpha=0.7, gid=f"series-{number}-bars")  # fmt: skip
            gid = f"series-{number}-dots"
            axes.plot([d.x for d in own], [d.y for d in own], marker, color=colour, markersize=6.5, markeredgewidth=0.8,
                      markeredgecolor=PANEL, gid=gid)  # fmt: skip
            marks[gid] = [dot.mark for dot in own]
        _scales(axes, labels, [dot.x for dot in dots], [dot.y for dot in dots])
        axes.margins(0.12)
        if len(dots) <= MOST_LABELS:
            _labelled(axes, dots)

    return _drawn(name, title, draw, marks)


def curves(name: str, title: str, lines: Sequence[Line], labels: tuple[str, str]) -> str:
    """Draw one line per configuration; its points are marked, so that a curve of one point is seen."""
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            gid = f"series-{line.series}-line{number}"
            few = len(line.x) <= 40
            axes.plot(line.x, line.y, color=series_colour(line.series), linewidth=1.3, gid=gid, markersize=3.5,
                      marker=MARKERS[line.series % len(MARKERS)] if few else None)  # fmt: skip
            if few:
                marks[gid] = [Mark(f"{line.mark.text}: {labels[1]} {y:.4g} at {x:.4g} {labels[0]}", line.mark.link)
                              for x, y in zip(line.x, line.y, strict=True)]  # fmt: skip
        _scales(axes, labels, [x for line in lines for x in line.x], [y for line in lines for y in line.y])
        axes.margins(x=0.1)
        if len(lines) <= MOST_LABELS:
            _labelled(axes, [Dot(n.series, n.label, n.x[-1], n.y[-1], n.y[-1], n.y[-1], n.mark) for n in lines])

    return _drawn(name, title, draw, marks)


def bits_over_time(name: str, title: str, bits: pd.DataFrame, steps: Sequence[int]) -> str:
    """Draw the mean widths of A, W and E over training as steps.

    Args:
        name, title: of the drawing.
        bits: from :func:`fractrain.report.breakdown.mean_bits`.
        steps: training steps at the end of each period.
    """

    def draw(axes: Axes) -> None:
        edges = [0, *steps[: len(bits)]]
        for number, (operand, style) in enumerate(zip(bits.columns, ("-", "--", ":"), strict=False)):
            axes.stairs(bits[operand].to_numpy(), edges, baseline=None, color=series_colour(number), linewidth=1.6,
                        linestyle=style, label=operand)  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training step")
        axes.set_ylabel("mean bits")
        axes.legend(ncols=3, loc="lower right", frameon=False)

    return _drawn(name, title, draw, size=(SIZE[0], 2.0), margins=(0.5, 0.15, 0.1, 0.45))


def bits_map(name: str, title: str, bits: pd.DataFrame) -> str:
    """Draw the mean width of the activations by part of the model and period, as a heat map with its scale.

    Args:
        name, title: of the drawing.
        bits: from :func:`fractrain.report.breakdown.bits_by_part`.
    """

    def draw(axes: Axes) -> None:
        axes.grid(False)
        values = bits.to_numpy()
        quantized = values[values < 32]
        top = quantized.max() if quantized.size else 32
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=max(1, top))
        every = max(1, len(bits) // 12)
        axes.set_yticks(range(0, len(bits), every), labels=list(bits.index[::every]), fontsize=6.5)
        axes.set_xticks(*_few(len(bits.columns)))
        axes.set_xlabel("evaluation period")
        scale = axes.figure.colorbar(image, ax=axes, pad=0.02, extend="max" if (values > top).any() else "neither")
        scale.set_label("mean bits of A")
        scale.outline.set_visible(False)

    left = _label_width(bits.index[:: max(1, len(bits) // 12)])
    return _drawn(name, title, draw, size=(SIZE[0], 2.0 + 0.03 * len(bits)), margins=(left, 0.0, 0.1, 0.45))


def stacked(name: str, title: str, bars: Mapping[str, Mapping[str, float]], label: str) -> str:
    """Draw one horizontal bar per key, made of one part per product.

    Args:
        name, title: of the drawing.
        bars: for each bar, its value by product.
        label: what the axis shows.
    """
    marks: dict[str, list[Mark]] = {}

    def draw(axes: Axes) -> None:
        rows = list(bars)
        left = [0.0] * len(rows)
        for number, (product, words) in enumerate(PRODUCTS.items()):
            values = [bars[row].get(product, 0.0) for row in rows]
            axes.barh(rows, values, left=left, color=series_colour(number), height=0.72, label=f"{product} ({words})")
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", labelsize=6.5, length=0)
        axes.set_xlabel(label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False, fontsize=7.5)

    high = 1.1 + 0.17 * len(bars)
    return _drawn(name, title, draw, marks, size=(SIZE[0], high), margins=(_label_width(bars), 0.15, 0.3, 0.5))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _labelled(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write the label of each point near it, off the others."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  # so that places on the page are known
    pixels = axes.transData.transform([(dot.x, dot.y) for dot in dots])
    sizes = [(0.5 * 5.2 * len(dot.label) * 100 / 72, 6.0) for dot in dots]
    (x0, y0), (x1, y1) = axes.transAxes.transform([(0, 0), (1, 1)])
    frame = Box((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)
    centres = place([Box(float(x), float(y), 6.0, 6.0) for x, y in pixels], sizes, frame)
    back = axes.transData.inverted()
    for dot, centre in zip(dots, centres, strict=True):
        x, y = back.transform(centre)
        axes.text(x, y, dot.label, fontsize=7, color=series_colour(dot.series), ha="center", va="center",
                  gid=f"series-{dot.series}-label")  # fmt: skip


def _label_width(labels: Iterable[str]) -> float:
    """Inches that the longest label of a bar takes."""
    return min(2.4, 0.2 + 0.062 * max((len(label) for label in labels), default=0))


def _few(count: int) -> tuple[list[int], list[str]]:
    """Places and labels of at most nine ticks."""
    places = list(range(0, count, max(1, -(-count // 9))))
    return places, [str(place) for place in places]


def _scales(axes: Axes, labels: tuple[str, str], x: Sequence[float], y: Sequence[float]) -> None:
    """Labels; and a logarithmic axis where numbers lie so far apart that no other shows them all."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, values, label in zip((axes.xaxis, axes.yaxis), (x, y), labels, strict=True):
        axis.set_label_text(label)
        if min(values) > 0 and max(values) > 10 * min(values):
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+", "e")))
            axis.set_minor_formatter(NullFormatter())


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for the drawings inside a block: ours, whatever the user's are, and theirs after it.

    Raises:
        MachineError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _drawn(
    name: str,
    title: str,
    draw: Callable[[Axes], None],
    marks: Mapping[str, Sequence[Mark]] | None = None,
    size: tuple[float, float] = SIZE,
    margins: tuple[float, float, float, float] = (0.6, 0.12, 0.12, 0.5),
) -> str:
    """Let ``draw`` fill one pair of axes and return the element; to be called inside :func:`style`.

    The margins (left, right, top, bottom, in inches) are given: matplotlib takes half of its time to find them out.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = name
    made = Figure(figsize=size)
    left, right, top, bottom = margins
    wide, high = size
    draw(made.add_axes((left / wide, bottom / high, 1 - (left + right) / wide, 1 - (top + bottom) / high)))
    stream = io.BytesIO()
    made.savefig(stream, format="svg", metadata={"Date": None, "Creator": "fractrain"}, transparent=False)
    return themed(stream.getvalue(), name, title, marks)

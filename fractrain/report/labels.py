"""Where the short texts beside the points of a figure go: near their point, off other points, texts and the frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: its centre and half its sides."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        wide = self.width + other.width - abs(self.x - other.x)
        high = self.height + other.height - abs(self.y - other.y)
        return max(0.0, min(wide, 2 * self.width, 2 * other.width)) * max(
            0.0, min(high, 2 * self.height, 2 * other.height)
        )

    def outside(self, frame: Box) -> float:
        """Area of this box that is not inside the frame."""
        return 4 * self.width * self.height - self.overlap(frame)


def place_in_axes(
    axes: Axes, points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], marker: float,
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[tuple[float, float]]:  # fmt: skip
    """:func:`place_labels` for points, and centres, in data coordinates.

    ``marker``: half its width, pixels; ``lines``: pieces of curves and error bars, from here to there.
    """
    frame = _spanned(*axes.transAxes.transform([(0, 0), (1, 1)]))
    boxes = [Box(float(x), float(y), marker, marker) for x, y in axes.transData.transform(list(points))]
    drawn = [_spanned(a, b, least=1.0) for a, b in (axes.transData.transform(ends) for ends in lines)]
    back = axes.transData.inverted()
    centres = (back.transform(centre) for centre in place_labels(boxes, sizes, frame, drawn))
    return [(float(x), float(y)) for x, y in centres]


def _spanned(one: Sequence[float], other: Sequence[float], least: float = 0.0) -> Box:
    """The rectangle between two corners; half its sides are at least so many pixels."""
    (x0, y0), (x1, y1) = one, other
    return Box((x0 + x1) / 2, (y0 + y1) / 2, max(least, abs(x1 - x0) / 2), max(least, abs(y1 - y0) / 2))


def place_labels(
    points: Sequence[Box], sizes: Sequence[tuple[float, float]], frame: Box, drawn: Sequence[Box] = ()
) -> list[tuple[float, float]]:
    """Choose a centre for the text of each point: greedily, the first of the places with the least overlap.

    Args:
        points: boxes of the markers, pixels.
        sizes: half width and half height of each text, pixels; zero for no text.
        drawn: what else no text should lie on.

    Returns:
        Centres in pixels, in the order of the points.
    """
    taken = [*points, *drawn]
    centres = []
    for point, (width, height) in zip(points, sizes, strict=True):
        best = min(_places(point, width, height), key=lambda c: _cost(c, taken, frame))
        centres.append((best.x, best.y))
        if width and height:
            taken.append(best)
    return centres


def _places(point: Box, width: float, height: float) -> Iterator[Box]:
    for gap in (2.0, 9.0, 18.0):
        for right, up in STEPS:
            x = point.x + right * (point.width + width + gap)
            y = point.y + up * (point.height + height + gap)
            yield Box(x, y, width, height)


def _cost(text: Box, taken: Sequence[Box], frame: Box) -> float:
    return round(sum(text.overlap(other) for other in taken) + 4 * text.outside(frame), 3)

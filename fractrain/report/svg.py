"""SVG drawings that live in a page: colours that follow its theme, points that say what they are, ids of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

SVG: Final = "http://www.w3.org/2000/svg"
XLINK: Final = "http://www.w3.org/1999/xlink"
INK, DIM, GRID, PANEL, SOFT = "#010101", "#020202", "#030303", "#040404", "#050505"
"""What a drawing is made in: colours that no one chooses, each of which becomes a variable of the page's theme."""
VARIABLES: Final = {INK: "--ink", DIM: "--dim", GRID: "--grid", PANEL: "--panel", SOFT: "--soft"}
SERIES: Final = 12
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")


def series_colour(number: int) -> str:
    """The stand-in for the colour of the ``number``-th series; after twelve they begin again, with other markers."""
    return f"#0a0a{number % SERIES:02x}"


@dataclass(frozen=True)
class Mark:
    """What a drawn element says.

    Attributes:
        text: shown under the pointer and read aloud.
        link: address inside the page that it leads to; empty: none.
    """

    text: str
    link: str = ""


def themed(svg: bytes, name: str, title: str, marks: Mapping[str, Sequence[Mark]] | None = None) -> str:
    """Return a drawing of matplotlib as an element to be put into a page.

    Args:
        svg: the file; groups that shall be shown and hidden have ids ``series-N`` or ``series-N-...``.
        name: prefix of all ids, different for each drawing of the page.
        title: what the drawing shows, for those who cannot see it.
        marks: by id of a group: what its markers say, in the order in which they were drawn.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for child in root.findall(f"{{{SVG}}}metadata"):
        root.remove(child)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "group" if marks else "img")
    root.set("aria-label", title)
    for element in list(root.iter()):
        own = element.get("id", "")
        if found := re.match(r"series-(\d+)(-|$)", own):
            element.set("class", f"series s{found[1]}")
        if marks and own in marks:
            _add_title(element, marks[own])
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)(?!run-|group-)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"#0a0a([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", text)


def _add_title(group: ElementTree.Element, marks: Sequence[Mark]) -> None:
    """Give every marker of a group its text, and make it a link where it leads somewhere."""
    places = [(parent, child) for parent in group.iter() for child in parent if child.tag == f"{{{SVG}}}use"]
    for (parent, use), mark in zip(places, marks, strict=True):
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = mark.text
        use.insert(0, title)
        if mark.link:
            link = ElementTree.Element(f"{{{SVG}}}a", {f"{{{XLINK}}}href": mark.link, "aria-label": mark.text})
            parent[list(parent).index(use)] = link
            link.append(use)

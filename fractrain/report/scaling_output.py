"""A campaign's table and figure in all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fractrain.report.draw import FORMATS as DRAWABLE
from fractrain.report.render import FORMATS, render
from fractrain.report.scaling import Scaling
from fractrain.report.scaling_draw import draw_scaling
from fractrain.util.files import atomic_write, storing

DRAWN: Final = ("svg", "png")


def content(scaling: Scaling, fmt: str) -> bytes:
    """Return the table as ``md``, ``csv``, ``tex``, ``html`` or ``json``, or the figure as ``svg``, ``png`` or ``pdf``.

    Raises:
        ConfigError: unknown format.
        MachineError: a drawing without matplotlib.
    """
    return draw_scaling(scaling, fmt) if fmt in DRAWABLE else render(scaling.table, fmt).encode()


def text(scaling: Scaling, fmt: str) -> str:
    """:func:`content` of a text format (``svg`` is one)."""
    return content(scaling, fmt).decode()


def write(scaling: Scaling, tables: Path, figures: Path) -> list[Path]:
    """Write the table in every format and the figure as drawings, each file at once or not at all.

    Raises:
        StoreError: a folder cannot be written.
        MachineError: matplotlib is not installed.
    """
    name = scaling.campaign.name
    contents = {tables / f"{name}.{fmt}": render(scaling.table, fmt).encode() for fmt in FORMATS}
    contents |= {figures / f"{name}.{fmt}": draw_scaling(scaling, fmt) for fmt in DRAWN}
    for path, content in contents.items():
        with storing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    return list(contents)

"""What is known of a named number format.

A format of your own is one file with one :class:`FormatInfo`: see ``docs/add-a-format.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fractrain.numerics.formats import Format


@dataclass(frozen=True)
class FormatInfo:
    """One number format.

    Attributes:
        name: registry name.
        title: one line: element, scale, and who shares it.
        make: returns it; formats of the registry have one width (:attr:`fractrain.numerics.formats.Format.bits`).
        source: paper or specification; empty where there is none.
    """

    name: str
    title: str
    make: Callable[[], Format]
    source: str = ""

"""Number formats by name, as tables and the command line name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fractrain.numerics.blocks import PerBlock
from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, Minifloat, integer
from fractrain.numerics.formats import Format
from fractrain.numerics.nvfp4 import Eden, FourOverSix
from fractrain.numerics.rotation import Rotated
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Step, TwoLevel
from fractrain.util.errors import ConfigError, did_you_mean


def _mx(element: Minifloat) -> Callable[[], Format]:
    return lambda: Scaled(PerBlock(1, 32), element=element, scale=E8M0())


def _int(block: PerBlock, element: Minifloat = INT8) -> Callable[[], Format]:
    return lambda: Scaled(block, element=element, scale=Step())


FORMATS: Final[dict[str, Callable[[], Format]]] = {
    "e4m3": lambda: Scaled(element=E4M3),
    "e5m2": lambda: Scaled(element=E5M2),
    "mxfp8": _mx(E4M3),
    "mxfp6-e2m3": _mx(E2M3),
    "mxfp6-e3m2": _mx(E3M2),
    "mxfp4": _mx(E2M1),
    "mxint8": _mx(integer(8, 6)),
    "nvfp4": lambda: Scaled(PerBlock(1, 16), element=E2M1, scale=TwoLevel()),
    "nvfp4-16x16": lambda: Scaled(PerBlock(16, 16), element=E2M1, scale=TwoLevel()),
    "nvfp4-stochastic": lambda: Scaled(PerBlock(1, 16), "stochastic", element=E2M1, scale=TwoLevel(17 / 16)),
    "nvfp4-stochastic-saturating": lambda: Scaled(PerBlock(1, 16), "stochastic", element=E2M1, scale=TwoLevel()),
    "nvfp4-4over6": FourOverSix,
    "ms-eden": lambda: Rotated(inner=Eden(), size=128, fresh=True),
    "ms-eden-released": lambda: Rotated(inner=Eden(released=True), size=128, fresh=True),
    "int8": _int(PerBlock(0, 0)),
    "int8-rows": _int(PerBlock(1, 0)),
    "int8-32x32": _int(PerBlock(32, 32)),
    "int4-1x16": _int(PerBlock(1, 16), INT4),
}


def number_format(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown number format {name!r}{did_you_mean(name, FORMATS)}; known: {', '.join(FORMATS)}")
    return FORMATS[name]()

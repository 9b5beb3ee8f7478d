"""The number formats that are shipped, as tables and the command line name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fractrain.numerics.blocks import PerBlock
from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, Minifloat, integer
from fractrain.numerics.formats import Format
from fractrain.numerics.info import FormatInfo
from fractrain.numerics.nvfp4 import Eden, FourOverSix
from fractrain.numerics.rotation import Rotated
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import E8M0, Step, TwoLevel


def _mx(element: Minifloat) -> Callable[[], Format]:
    return lambda: Scaled(PerBlock(1, 32), element=element, scale=E8M0())


def _int(block: PerBlock, element: Minifloat = INT8) -> Callable[[], Format]:
    return lambda: Scaled(block, element=element, scale=Step())


def _nvfp4(block: PerBlock) -> Callable[[], Format]:
    return lambda: Scaled(block, element=E2M1, scale=TwoLevel())


def _nvfp4_stochastic(larger: float) -> Callable[[], Format]:
    return lambda: Scaled(PerBlock(1, 16), "stochastic", element=E2M1, scale=TwoLevel(larger))


def _eden(released: bool) -> Callable[[], Format]:
    return lambda: Rotated(inner=Eden(released=released), size=128, fresh=True)


OCP, QUARTET = "OCP Microscaling Formats v1.0", "Quartet II (arXiv 2601.22813)"
FORMATS: Final = (
    FormatInfo("e4m3", "FP8 E4M3, one scale per tensor", lambda: Scaled(element=E4M3)),
    FormatInfo("e5m2", "FP8 E5M2, one scale per tensor", lambda: Scaled(element=E5M2)),
    FormatInfo("mxfp8", "E4M3 in blocks of 32, scales are powers of two", _mx(E4M3), OCP),
    FormatInfo("mxfp6-e2m3", "E2M3 in blocks of 32, scales are powers of two", _mx(E2M3), OCP),
    FormatInfo("mxfp6-e3m2", "E3M2 in blocks of 32, scales are powers of two", _mx(E3M2), OCP),
    FormatInfo("mxfp4", "E2M1 in blocks of 32, scales are powers of two", _mx(E2M1), OCP),
    FormatInfo("mxint8", "8-bit integers in blocks of 32, scales are powers of two", _mx(integer(8, 6)), OCP),
    FormatInfo("nvfp4", "E2M1 in blocks of 16, scales E4M3 and one per tensor", _nvfp4(PerBlock(1, 16))),
    FormatInfo("nvfp4-16x16", "the same in blocks of 16x16", _nvfp4(PerBlock(16, 16))),
    FormatInfo("nvfp4-stochastic", "NVFP4, rounded stochastically, scales 17/16 as large", _nvfp4_stochastic(17 / 16)),
    FormatInfo("nvfp4-stochastic-saturating", "NVFP4, rounded stochastically", _nvfp4_stochastic(1.0)),
    FormatInfo("nvfp4-4over6", "NVFP4 that chooses 4 or 6 as the largest value of each block", FourOverSix),
    FormatInfo("ms-eden", "NVFP4 after a rotation, scales corrected to be unbiased", _eden(False), QUARTET),
    FormatInfo("ms-eden-released", "the same as the released code does it", _eden(True), QUARTET),
    FormatInfo("int8", "8-bit integers, one scale per tensor", _int(PerBlock(0, 0))),
    FormatInfo("int8-rows", "8-bit integers, one scale per row", _int(PerBlock(1, 0))),
    FormatInfo("int8-32x32", "8-bit integers in blocks of 32x32", _int(PerBlock(32, 32))),
    FormatInfo("int4-1x16", "4-bit integers in blocks of 16", _int(PerBlock(1, 16), INT4)),
)

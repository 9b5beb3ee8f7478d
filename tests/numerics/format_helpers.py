"""Shared by the tests of elements and scaled formats: which elements there are, and inputs that are hard to round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from definitions import minifloat_values

from fractrain.numerics.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT8, Minifloat

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "format_vectors.json").read_text())
ELEMENTS = {"e4m3fn": E4M3, "e5m2": E5M2, "e2m1": E2M1, "e2m3": E2M3, "e3m2": E3M2}
FIELDS = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15), "e2m1": (2, 1, 1), "e2m3": (2, 3, 1), "e3m2": (3, 2, 3)}


def number(text: str) -> float:
    return float(text) if text in ("inf", "-inf", "nan") else float.fromhex(text)


def values_of(element: Minifloat) -> list[float]:
    """Non-negative values, from the definition."""
    if element.name in FIELDS:
        return minifloat_values(*FIELDS[element.name], element.max)
    step = element.max / (2 ** (element.bits - 1) - 1)
    return [k * step for k in range(2 ** (element.bits - 1))]


def hard_inputs(element: Minifloat, random: int = 20000) -> torch.Tensor:
    """Every value, every midpoint, one float32 to either side of both, beyond the range, subnormals, random ones."""
    values = np.array(values_of(element), np.float32)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    edges = np.concatenate(
        [values, middles, np.float32([element.max * 1.01, element.max * 1.04, element.max * 3, 1e30])]
    )
    near = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))])
    gen = np.random.default_rng(0)
    exponents = gen.uniform(np.log2(values[1]) - 4, np.log2(element.max) + 1, random)
    tiny = np.float32([1e-45, 1e-40, 1.2e-38])
    some = np.concatenate([near, tiny, np.exp2(exponents).astype(np.float32)])
    return torch.from_numpy(np.concatenate([some, -some]).astype(np.float32))


ALL = [*ELEMENTS.values(), INT8, INT4]

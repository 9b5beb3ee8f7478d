"""Fixtures of the method tests."""

from __future__ import annotations

import pytest
import torch

from fractrain.numerics.backend import SHIFT16, Quantized


@pytest.fixture
def float64_codes(monkeypatch):
    """Restore codes in the dtype of their grid, so that references in float64 meet a model in float64.

    The package restores codes as float32, which is what it trains in.
    """

    def values(self):
        shift = 0.0 if self.codes.dtype == torch.uint8 else SHIFT16
        g = self.grid() if callable(self.grid) else self.grid
        return (self.codes.to(g.scale.dtype) + (g.qmin + shift)) * g.scale + g.offset

    monkeypatch.setattr(Quantized, "values", values)

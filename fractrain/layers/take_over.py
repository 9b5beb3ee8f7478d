"""A module that stands in another one's place: with its parameters, buffers, hooks and attributes."""

from __future__ import annotations

from torch import nn


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Give ``new`` (after ``nn.Module.__init__``) the very parameters, buffers, hooks and attributes of ``old``."""
    for name, value in old.__dict__.items():
        new.__dict__[name] = value.copy() if isinstance(value, dict) else value

"""Delayed scaling: the scale of an operand comes from the largest magnitudes of its earlier uses.

The history is a buffer of the layer, so that checkpoints hold it and a resumed run goes on with it. Source:
TransformerEngine's ``DelayedScaling`` recipe (``amax_compute_algo="max"``, margin 0). Departure: where the whole
history is zero the scale is 1, as before the first use; the source keeps the last one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fractrain.numerics.formats import Limits
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled

PREFIX = "amax_history_"


def delayed_limits(layer: nn.Module, name: str, op: Operand, after: bool = False) -> Limits | None:
    """The range by which an operand is scaled in its next use, or was (``after``) in its last; None: its own.

    Args:
        layer: whose operand.
        name: of the operand.
        op: the operand.
        after: whether its last use is in the history already.
    """
    if not op.history:
        return None
    kept = _history(layer, name, op)
    amax = (kept[1:] if after else kept[:-1]).max()
    assert isinstance(op.format, Scaled)
    amax = torch.where(amax > 0, amax, op.format.element.max)
    return -amax, amax


def remember(layer: nn.Module, name: str, op: Operand, limits: Limits) -> None:
    """Put the largest magnitude of an operand into its history."""
    if op.history:
        kept = _history(layer, name, op)
        kept.copy_(torch.cat((limits[1].reshape(1), kept[:-1])))


def prepare_histories(layer: nn.Module, precision: Precision) -> None:
    """Make the histories of a layer's operands, so that a checkpoint finds them: of uses alike only one."""
    own = precision.operands()
    shared = {"gc_a": "fw_a", "eb_w": "fw_w"}
    kept = {n: o for n, o in own.items() if not (n in shared and o.same_as(own[shared[n]])) and n[-1] != "e"}
    errors = {"E": own["gc_e"]} if precision.one_error else {"E_gc": own["gc_e"], "E_eb": own["eb_e"]}
    for name, op in {**kept, **errors}.items():
        if op.history:
            _history(layer, name, op)


def adopt_histories(layer: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Make the histories that a checkpoint has and the layer has not, before it is loaded."""
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.startswith(PREFIX) and name not in layer._buffers:
            layer.register_buffer(name, torch.zeros_like(value))


def _history(layer: nn.Module, name: str, op: Operand) -> torch.Tensor:
    """Largest magnitudes, float32 ``[history + 1]``, the newest first; the oldest is only there to look back."""
    key = PREFIX + name
    kept = layer._buffers.get(key)
    if kept is None or len(kept) != op.history + 1:
        device = next((b.device for b in layer.buffers()), None)
        kept = torch.zeros(op.history + 1, device=device)
        layer.register_buffer(key, kept)
    return kept

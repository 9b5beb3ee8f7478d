"""Which functions of the package make up a category of a step's time; everything else goes by the operation's name."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.profiler import record_function

PREFIX = "fractrain::"
# A category, and where its work is done: module, then attributes. A new fast path belongs here as well.
SCOPES = (
    ("quantize", "fractrain.layers.base:QuantLayer._activation"),
    ("quantize", "fractrain.layers.base:QuantLayer.weight_operand"),
    ("quantize", "fractrain.layers.base:QuantLayer.error_operand"),
    ("quantize", "fractrain.numerics.quantize:Quantized.values"),
    ("conv", "fractrain.layers.conv_linear:convolve"),
    ("conv", "fractrain.layers.conv_linear:products"),
    ("conv", "fractrain.experimental.int8_conv:forward"),
    ("conv", "fractrain.experimental.int8_conv:input_gradient"),
    ("conv", "fractrain.experimental.int8_conv:weight_gradient"),
    ("conv", "fractrain.experimental.int8_gemm:forward"),
    ("conv", "fractrain.experimental.int8_gemm:input_gradient"),
    ("conv", "fractrain.experimental.int8_gemm:weight_gradient"),
    ("gate", "fractrain.methods.gate:GateNetwork.forward"),
    ("gate", "fractrain.methods.gated_block:pooled"),
    ("gate", "fractrain.methods.gated_block:straight_through"),
    ("gate", "fractrain.methods.dfq:DFQ.extra_loss"),
    ("ledger", "fractrain.layers.base:QuantLayer.report"),
    ("ledger", "fractrain.methods.gated_block:GatedBlock._count"),
    ("ledger", "fractrain.cost.ledger:Ledger.samples"),
)


def resolve(place: str) -> tuple[Any, str]:
    """Return (owner, name of the attribute) of a place ``module:Class.function``.

    Raises:
        AttributeError: the package has no such function.
    """
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    getattr(owner, name)
    return owner, name


@contextmanager
def labelled() -> Iterator[None]:
    """Make the functions of ``SCOPES`` show in a profile, inside the block."""
    with ExitStack() as stack:
        for category, place in SCOPES:
            owner, name = resolve(place)
            stack.enter_context(patch.object(owner, name, _label(PREFIX + category, getattr(owner, name))))
        yield


def _label(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return call(*args, **kwargs)

    return inside

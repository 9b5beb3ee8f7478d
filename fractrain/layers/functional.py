"""Products that a module computes itself, by ``F.linear`` or ``F.conv2d``, on the weight of a layer that it owns.

Such a module (torchvision's Swin attention) holds a layer and never calls it, so replacing the layer changes nothing.
While its ``forward`` runs, a call on the very weight and bias of a quantized layer is handed to that layer. Modules are
found by their source code: only those that read ``self.layer.weight`` pay for being watched.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fractrain.layers.base import QuantLayer
from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.eager import eager


class Redirected:
    """The ``forward`` of a module some of whose layers are used through their weights alone.

    Args:
        module: the module.
        names: of these layers among its children.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self._module, self._names = module, tuple(names)

    @eager
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own code."""
        with _Handing([getattr(self._module, name) for name in self._names]):
            return type(self._module).forward(self._module, *args, **kwargs)


class _Handing(TorchFunctionMode):
    """Hands functional products to the layers whose weights they multiply."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self._layers = layers

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.conv2d:
            return self._conv2d(*args, **kwargs)
        return func(*args, **kwargs)

    def _owner(self, weight: Any, bias: Any, kind: type[nn.Module]) -> Any:
        owners = (m for m in self._layers if isinstance(m, kind) and m.weight is weight and m.bias is bias)
        return next(owners, None)

    def _linear(self, input: torch.Tensor, weight: Any, bias: Any = None) -> torch.Tensor:
        layer = self._owner(weight, bias, QuantLinear)
        y: torch.Tensor = F.linear(input, weight, bias) if layer is None else layer(input)
        return y

    def _conv2d(
        self, input: torch.Tensor, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> torch.Tensor:  # fmt: skip
        layer = self._owner(weight, bias, QuantConv2d)
        asked = (_pair(stride), _pair(padding), _pair(dilation), groups)
        if layer is not None and layer.padding_mode == "zeros":
            own = (layer.stride, _pair(layer.padding), layer.dilation, layer.groups)
            if own == asked:
                y: torch.Tensor = layer(input)
                return y
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> Any:
    if isinstance(value, str):
        return value
    both = (value,) if isinstance(value, int) else tuple(value)
    return both * 2 if len(both) == 1 else both


def redirect(model: nn.Module) -> None:
    """Have modules use the quantized layers whose weights they multiply themselves."""
    for module in model.modules():
        if isinstance(module, QuantLayer) or "forward" in vars(module):
            continue
        kind: Any = type(module)
        names = [n for n in read_only_by_weight(kind) if isinstance(getattr(module, n, None), QuantLayer)]
        if names:
            module.forward = Redirected(module, names)


def direct(model: nn.Module) -> None:
    """Undo :func:`redirect`."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Redirected):
            del module.forward


@lru_cache
def read_only_by_weight(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the attributes of ``self`` of which a class reads weights and biases and nothing else.

    One that some method calls as well stays out: its product would be counted twice. A class that has no source, or
    hands ``self`` on to code that may call anything, has none. Its ``__init__`` runs before there is a product.
    """
    try:
        own = kind.__mro__[: kind.__mro__.index(nn.Module)]
        trees = [ast.parse(textwrap.dedent(inspect.getsource(c))) for c in own]
    except (OSError, TypeError, SyntaxError):
        return ()
    methods = [f for tree in trees for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name != "__init__"]
    parents = {child: node for method in methods for node in ast.walk(method) for child in ast.iter_child_nodes(node)}
    seen: dict[str, set[str]] = {}
    for node, part in parents.items():
        if not isinstance(node, ast.Name) or node.id != "self":
            continue
        if not isinstance(part, ast.Attribute):
            return ()
        then = parents[part]
        seen.setdefault(part.attr, set()).add(then.attr if isinstance(then, ast.Attribute) else "")
    return tuple(name for name, reads in seen.items() if "weight" in reads and reads <= {"weight", "bias"})

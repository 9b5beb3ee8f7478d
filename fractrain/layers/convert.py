"""Swap the convolutions, linear layers and products of activations of any model for quantized ones, by rule.

Layers inside an adaptive softmax, or inside a module with an attribute ``keeps_float = True`` (an embedding with
projections), always stay in floating point: which rows they see changes from batch to batch, so there is no sample that
a range, a width or a cost could belong to. They are wrapped all the same, and the ledger counts the rows they really
multiply.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fractrain.layers.attention import Projection, QuantProjection, layered, unfused
from fractrain.layers.compact import compact_layers
from fractrain.layers.conv_linear import PaddedQuantConv2d, QuantConv2d, QuantLayer, QuantLinear, zero_padding
from fractrain.layers.functional import redirect
from fractrain.layers.matmul import Matmul, QuantMatmul
from fractrain.layers.other_convs import KINDS as OTHER_CONVOLUTIONS
from fractrain.layers.own_products import own_products
from fractrain.layers.state import QuantState
from fractrain.numerics.precision import Precision
from fractrain.util.errors import ConfigError, did_you_mean

Rule = Callable[[str, nn.Module], Precision | None]
CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv2d, *OTHER_CONVOLUTIONS)
KINDS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, Matmul)

log = logging.getLogger(__name__)


def convert(
    model: nn.Module,
    precision: Precision | Rule,
    state: QuantState | None = None,
    *,
    keep_first: bool = False,
    keep_last: bool = True,
    keep: Sequence[str] = (),
    types: tuple[type[nn.Module], ...] = KINDS,
    strict: bool = True,
    compact: bool = True,
) -> nn.Module:
    """Replace layers of ``model`` in place by quantized ones that share the same parameters.

    Args:
        model: any module; it is changed in place (parameters stay the same objects).
        precision: one precision for all layers, or a rule ``(name, layer) -> Precision or None (leave the layer)``.
        state: shared by all layers; a new one by default.
        keep_first, keep_last: leave the first / last convolution or linear layer in floating point. An embedding is a
            first layer, and in floating point anyway: the next one is not kept.
        keep: names or patterns (``layer4.*``) of layers to leave; each must match something.
        types: which layers are replaced.
        strict: refuse a model in which nothing is replaced.
        compact: let BatchNorms, ReLUs and max pools keep less for backward and be faster when anything is quantized
            (same values and gradients, BatchNorm's but for float32's rounding), see :mod:`fractrain.layers.compact`.

    Kept layers are wrapped as well, at 32 bits, so that the ledger sees their products. A layer that is more than a
    plain convolution or linear layer (a derived class, a computed weight, a forward of its own) is left as it is:
    ``state.left_in_float`` names it, and one line of the log says so where anything is quantized.

    Returns:
        The model (a new layer if ``model`` itself is one).

    Raises:
        ConfigError: a pattern matches nothing, or nothing was replaced.
    """
    state = state if state is not None else QuantState()
    model = layered(model)
    places, embedded = _layers(model)
    _must_match(keep, [where[0] for where in places.values()])
    kept = _kept(model, places, types, keep, keep_first and not embedded, keep_last)
    new, replaced = _replace(model, places, kept, precision, state)
    if new is not model:
        return new
    if strict and not replaced:
        raise ConfigError(f"{type(model).__name__} has no layer to quantize ({_looked_for(types, state)})")
    redirect(model)
    if all(layer.precision.is_float for layer in quant_layers(model)):
        return model
    if state.left_in_float:
        log.warning("not quantized: %s", _left(state))
    unfused(model)
    return compact_layers(model, state) if compact else model


def _replace(
    model: nn.Module, places: Mapping[nn.Module, list[str]], kept: Mapping[nn.Module, str], precision: Precision | Rule,
    state: QuantState,
) -> tuple[nn.Module, int]:  # fmt: skip
    """Put the twins in their places; return the model, or the twin of a layer that is one, and how many were wanted."""
    device = next((p.device for p in model.parameters()), None)
    replaced = 0
    for layer, names in places.items():
        if (reason := own_way(layer)) is not None:
            state.left_in_float |= dict.fromkeys(names, reason)
            continue
        wanted: Precision | None = None
        if layer in kept:
            state.kept_in_float[names[0]] = kept[layer]
        else:
            wanted = precision if isinstance(precision, Precision) else precision(names[0], layer)
        replaced += wanted is not None
        new = quantized_layer(layer, wanted if wanted is not None else Precision(), state, names[0], device)
        if layer is model:
            return new, replaced
        for name in names:
            model.set_submodule(name, new)
    return model, replaced


def _left(state: QuantState) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in state.left_in_float.items())


def _looked_for(types: tuple[type[nn.Module], ...], state: QuantState) -> str:
    kinds = f"looked for {', '.join(t.__name__ for t in types) or 'nothing'}"
    return f"{kinds}; {_left(state)}" if state.left_in_float else kinds


def _kept(
    model: nn.Module, places: Mapping[nn.Module, list[str]], types: tuple[type[nn.Module], ...], keep: Sequence[str],
    keep_first: bool, keep_last: bool,
) -> dict[nn.Module, str]:  # fmt: skip
    """Why layers stay in floating point whatever a rule says, for those that do."""
    floating = {id(layer) for layer in _always_float(model)}
    weighted = [layer for layer in places if not isinstance(layer, Matmul)]
    kept: dict[nn.Module, str] = {}
    for i, (layer, where) in enumerate(places.items()):
        pattern = next((p for p in keep if fnmatch.fnmatchcase(where[0], p)), None)
        if id(layer) in floating:
            kept[layer] = "which of its rows are multiplied changes from batch to batch"
        elif pattern is not None:
            kept[layer] = f"keep={pattern}"
        elif i == 0 and keep_first:
            kept[layer] = "the method leaves the first layer"
        elif keep_last and weighted and layer is weighted[-1]:
            kept[layer] = "the method leaves the last layer"
        elif _plain_type(layer) not in types and own_way(layer) is None:
            kept[layer] = f"the method quantizes {', '.join(t.__name__ for t in types) or 'nothing'} alone"
    return kept


def _must_match(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"keep={pattern!r} matches no layer{did_you_mean(pattern, names)}")


def convert_body(
    model: nn.Module, precision: Precision | Rule, state: QuantState | None = None, keep: Sequence[str] = (),
    everything: bool = False,
) -> nn.Module:  # fmt: skip
    """:func:`convert` for methods that say: all convolutions, classifier in floating point.

    In a model without convolutions (a Transformer) all linear layers and products of activations take their place, the
    last layer apart. ``everything`` has them quantized beside convolutions. ``keep`` as for :func:`convert`.
    """
    if not everything and any(isinstance(m, CONVOLUTIONS) for m in model.modules()):
        return convert(model, precision, state, types=CONVOLUTIONS, keep_last=False, keep=keep)
    return convert(model, precision, state, keep=keep)


def convert_weighted(model: nn.Module, precision: Precision | Rule, state: QuantState | None = None) -> nn.Module:
    """:func:`convert` for methods that say: convolutions and linear layers but the first and the last.

    Products of two activations stay in floating point.
    """
    return convert(model, precision, state, keep_first=True, types=(*CONVOLUTIONS, nn.Linear))


def _layers(model: nn.Module) -> tuple[dict[nn.Module, list[str]], bool]:
    """Everything that can be replaced, each with all its names, and whether an embedding comes before it."""
    found: dict[nn.Module, list[str]] = {}  # a layer may be reachable by several names
    embedded = False
    for name, m in model.named_modules(remove_duplicate=False):
        if isinstance(m, KINDS) and not isinstance(m, QuantLayer) and own_products(m) is None:
            found.setdefault(m, []).append(name)
        embedded |= isinstance(m, nn.Embedding) and not found
    return found, embedded


def own_way(layer: nn.Module) -> str | None:
    """Why a layer does more than a plain layer of its kind, in a clause; None where it does not."""
    if isinstance(layer._parameters.get("weight"), nn.UninitializedParameter):
        return "its weight has no shape yet: run the model once before attach"
    if _plain_type(layer) not in KINDS:
        return f"{type(layer).__name__} may compute otherwise than {_kind(layer).__name__}"
    if "forward" in vars(layer):
        return "its forward has been replaced"
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(layer, Matmul | Projection) and not isinstance(weight, nn.Parameter):
        return "its weight is computed (weight norm, pruning): fold it into a plain parameter to have it quantized"
    if weight is not None and not weight.is_floating_point():
        return f"its weight is of type {weight.dtype}"
    return None


def replaced_whole(module: nn.Module) -> bool:
    """Whether a module is a layer, or an attention, in whose place another one comes, so that its code does not run."""
    if isinstance(module, KINDS):
        return own_way(module) is None
    return type(module) is nn.MultiheadAttention and "forward" not in vars(module)


def _plain_type(layer: nn.Module) -> type[nn.Module]:
    """Type of a layer; of those that compute what a linear layer does, that."""
    return nn.Linear if type(layer) in (Projection, NonDynamicallyQuantizableLinear) else type(layer)


def _kind(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in KINDS if isinstance(layer, kind))


def _always_float(model: nn.Module) -> Iterator[nn.Module]:
    for m in model.modules():
        if isinstance(m, nn.AdaptiveLogSoftmaxWithLoss) or getattr(m, "keeps_float", False) is True:
            yield from m.modules()


def quantized_layer(
    layer: nn.Module, precision: Precision, state: QuantState, name: str, device: torch.device | None = None
) -> QuantLayer:
    """Return the quantized twin of one layer.

    Args:
        layer: convolution, linear layer or product of activations.
        precision: of its products.
        state: shared by all layers of the model.
        name: of the layer in its model.
        device: of a layer without parameters.

    Raises:
        ConfigError: the layer has no quantized twin.
    """
    reason = (
        own_way(layer) if isinstance(layer, KINDS) else "only convolutions, Linear and Matmul have a quantized form"
    )
    if reason is not None:
        raise ConfigError(f"{name}: {type(layer).__name__} cannot be quantized: {reason}")
    if isinstance(layer, Matmul):
        return QuantMatmul(layer, precision, state, name, device).train(layer.training)
    if type(layer) in OTHER_CONVOLUTIONS:
        return OTHER_CONVOLUTIONS[type(layer)](layer, precision, state, name).train(layer.training)
    if isinstance(layer, nn.Conv2d):
        kind = QuantConv2d if zero_padding(layer) is not None else PaddedQuantConv2d
        return kind(layer, precision, state, name).train(layer.training)
    assert isinstance(layer, nn.Linear)
    if isinstance(layer, Projection):
        return QuantProjection(layer, precision, state, name).train(layer.training)
    return QuantLinear(layer, precision, state, name).train(layer.training)


def quant_layers(model: nn.Module) -> Iterator[QuantLayer]:
    """All quantized layers of a model, in module order."""
    return (m for m in model.modules() if isinstance(m, QuantLayer))

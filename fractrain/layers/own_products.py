"""Products that a model computes in its own code, by functions on tensors, as layers that methods reach.

A pass over example inputs finds them (:func:`find`): each gets a plain layer, a child of the module whose code calls
the function, so that a method converts it as every other layer, by rules, names and types. Afterwards (:func:`route`)
such a module's ``forward`` hands its calls to these layers: the first product of a kind in a pass to the first layer of
that kind. A call for which there is no layer runs as it is, and the coverage names it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from fractrain.layers.eager import eager
from fractrain.layers.functional import read_only_by_weight
from fractrain.layers.nested import call_of
from fractrain.layers.product_calls import READERS, Call, WeightCall, read
from fractrain.util.errors import ConfigError

log = logging.getLogger(__name__)
CHILD = "functional"  # name of the layers' place in the module whose products they compute
ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
CALL: CodeType = nn.Module._call_impl.__code__


class OwnProducts(nn.ModuleDict):
    """The layers for what the code of one module multiplies.

    Attributes:
        order: names of the layers of each call, by its kind, in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.order: dict[Hashable, list[tuple[str, ...]]] = {}
        self._warned = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Say what is wrong: a module's code that goes through its children calls this one, too."""
        raise ConfigError(
            f"a module calls all of its children, with {CHILD!r} among them, which only holds layers: attach without "
            "example_inputs"
        )

    def lacks(self, function: Any) -> None:
        """Say once that a product has no layer, where others are quantized."""
        layers: list[Any] = list(self.values())
        if not self._warned and any(not layer.precision.is_float for layer in layers):
            self._warned = True
            name = layers[0].site.rpartition(CHILD)[0].rstrip(".") or "the model"
            log.warning(
                "%s: a product (%s) that example_inputs has not shown stays in floating point, and is counted only "
                "where a first pass shows it", name, function.__name__,
            )  # fmt: skip

    def take(self, call: Call) -> None:
        """Make the layers of one more call."""
        names = []
        for name, layer in call.layers().items():
            number = sum(other.rpartition("_")[0] == name for other in self) + 1
            self[f"{name}_{number}"] = layer
            names.append(f"{name}_{number}")
        self.order.setdefault(call.key, []).append(tuple(names))


def own_products(module: nn.Module) -> OwnProducts | None:
    """The layers for what a module's own code multiplies; None where it has none."""
    found = module._modules.get(CHILD)
    return found if isinstance(found, OwnProducts) else None


def find(model: nn.Module, inputs: Any, converted: Any) -> None:
    """Give the modules of a plain model layers for the products that their own code computes in a pass over ``inputs``.

    The pass runs in evaluation mode; random numbers, modes and gradients are afterwards what they were.

    Args:
        model: the plain model; changed in place.
        inputs: a tensor, a tuple of the model's arguments, or a dict of them by name.
        converted: tells of a module whether it is replaced as a whole, so that its code will not run.

    Raises:
        ConfigError: there is no place for such layers.
    """
    modes = {module: module.training for module in model.modules()}
    args, kwargs = call_of(inputs)
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    try:
        model.eval()
        with torch.random.fork_rng(devices=list(dict.fromkeys(devices))), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a step warns of, the first one will
            with _Finding(model, converted) as finding:
                model(*args, **kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    for module, products in finding.found.items():
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or hasattr(module, CHILD):
            name = next(n for n, m in model.named_modules() if m is module)
            raise ConfigError(
                f"attach(..., example_inputs=...): {name or 'the model'} ({type(module).__name__}) multiplies in its "
                f"own code, and has no place for a child {CHILD!r}: attach without example_inputs"
            )
        module.add_module(CHILD, products.train(module.training))


def route(model: nn.Module) -> None:
    """Have modules hand what their own code multiplies to the layers found for it."""
    for module in model.modules():
        if own_products(module) is None:
            continue
        module.forward = Routed(module)
        for inner in module.modules():
            if isinstance(inner, ENCODERS) and not any("forward" in vars(m) for m in inner.modules()):
                inner.forward = Unseen(inner)  # type: ignore[method-assign]


def unroute(model: nn.Module) -> None:
    """Undo :func:`route`."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, Unseen):
            del module.forward
        elif isinstance(forward, Routed):
            del module.forward
            if forward.inner is not None:
                module.forward = forward.inner


class Routed:
    """The ``forward`` of a module whose own products are computed by layers.

    Attributes:
        inner: what stood in its place, where it was not the method of the module's type.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self.inner = module, vars(module).get("forward")

    @eager
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own code."""
        with _Routing(self._module):
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self._module).forward(self._module, *args, **kwargs)


class Unseen:
    """The ``forward`` of an encoder that has no routed module inside: PyTorch fuses it only where no mode looks on."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own code."""
        with torch._C.DisableTorchFunction():
            return type(self._module).forward(self._module, *args, **kwargs)


class _Routing(TorchFunctionMode):
    """Hands the products of one call of a module to its layers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._products: Any = own_products(module)
        self._seen: Counter[Hashable] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, _, checkpointed = _caller() if func in READERS else (None, None, False)
        call = read(func, args, kwargs) if module is self._module else None
        layers = () if call is None else self._next(call)
        if call is None:
            return func(*args, **kwargs)
        if not layers:
            self._products.lacks(func)
            return func(*args, **kwargs)
        floating = all(layer.effective(layer.precision).is_float for layer in layers)
        if floating and call.report(*layers):
            return func(*args, **kwargs)
        if checkpointed and not floating:
            raise ConfigError(
                f"{layers[0].site}: activation checkpointing inside of a module's own code would run its products "
                "again in floating point: checkpoint whole modules"
            )
        return call.compute(*layers)

    def _next(self, call: Call) -> tuple[Any, ...]:
        """The layers for the next call of its kind."""
        number = self._seen[call.key]
        self._seen[call.key] += 1
        each = self._products.order.get(call.key, [])
        return tuple(self._products[name] for name in each[number]) if number < len(each) else ()


class _Finding(TorchFunctionMode):
    """Notes the products in the own code of a plain model's modules."""

    def __init__(self, model: nn.Module, converted: Any) -> None:
        super().__init__()
        self.found: dict[nn.Module, OwnProducts] = {}
        self._modules = {m for m in model.modules() if not converted(m)}
        self._converted = converted
        self._seen: dict[FrameType, Counter[Hashable]] = {}  # by the frame of a module's call: it may run several times

    def __exit__(self, *args: Any) -> None:
        self._seen.clear()
        super().__exit__(*args)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module, frame, _ = _caller() if func in READERS else (None, None, False)
        call = read(func, args, kwargs) if module in self._modules else None
        if call is not None and module is not None and frame is not None and not self._redirected(module, call):
            seen = self._seen.setdefault(frame, Counter())
            seen[call.key] += 1
            products = self.found.setdefault(module, OwnProducts())
            if seen[call.key] > len(products.order.get(call.key, [])):
                products.take(call)
        return func(*args, **kwargs)

    def _redirected(self, module: nn.Module, call: Call) -> bool:
        """Whether it is on the weight of a layer that :mod:`fractrain.layers.functional` will run instead."""
        kind: Any = type(module)
        lent: Iterator[Any] = (getattr(module, name, None) for name in read_only_by_weight(kind))
        return isinstance(call, WeightCall) and any(
            self._converted(layer) and layer.weight is call.weight for layer in lent if isinstance(layer, nn.Module)
        )


def _caller() -> tuple[nn.Module | None, FrameType | None, bool]:
    """The innermost module that is running, the frame of its call, and whether a checkpoint lies between."""
    frame: FrameType | None = sys._getframe(2)
    checkpointed = False
    while frame is not None and frame.f_code is not CALL:
        checkpointed |= frame.f_code.co_filename == checkpoint.__file__
        frame = frame.f_back
    return (None if frame is None else frame.f_locals["self"]), frame, checkpointed

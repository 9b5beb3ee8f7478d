"""The plain model behind a low-precision one: its weights by their own names, and the model itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fractrain.layers.attention import fused
from fractrain.layers.functional import direct
from fractrain.layers.own_products import unroute
from fractrain.util.errors import ConfigError


class PlainForm:
    """Remembers a plain model before a method changes it in place.

    Args:
        model: the plain model, not changed yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        state = model.state_dict(keep_vars=True)
        self._tensors, self._versions = dict(state), getattr(state, "_metadata", {})
        self._modules = {m: dict(m._modules) for m in model.modules()}
        self._hooks = {m: _hooks(m) for m in model.modules()}
        self._places: dict[str, str] = {}

    def settle(self, model: nn.Module) -> None:
        """Find where the plain model's tensors are in the model that a method has made of it, and new hooks."""
        self._hooks = {m: _hooks(m) - before for m, before in self._hooks.items()}
        now = {id(t): name for name, t in model.state_dict(keep_vars=True).items()}
        self._places = {name: now[id(t)] for name, t in self._tensors.items() if id(t) in now}
        self._tensors = {name: t for name, t in self._tensors.items() if name not in self._places}

    @property
    def places(self) -> frozenset[str]:
        """Names of the plain model's tensors in the model that a method has made of it."""
        return frozenset(self._places.values())

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The plain model's ``state_dict``, with the values of ``model``, and the versions of its modules' states.

        Raises:
            ConfigError: the method keeps no counterpart of some tensors.
        """
        state = model.state_dict()
        self._whole(state)
        plain = OrderedDict((name, state[place]) for name, place in self._places.items())
        plain._metadata = dict(self._versions)  # type: ignore[attr-defined]  # some modules load no state without
        return plain

    def load(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        """Load a plain model's ``state_dict`` into ``model``; what the method has added stays as it is.

        Raises:
            ConfigError: names or shapes are others than the plain model's.
        """
        missing, more = sorted(self._places.keys() - state.keys()), sorted(state.keys() - self._places.keys())
        if missing or more:
            raise ConfigError(
                f"load_plain: these are not the plain {type(self._model).__name__}'s weights: "
                f"{len(missing)} names missing{f' ({missing[0]}, ...)' if missing else ''}, "
                f"{len(more)} unknown{f' ({more[0]}, ...)' if more else ''}"
            )
        own = model.state_dict()
        for name, place in self._places.items():
            if state[name].shape != own[place].shape:
                raise ConfigError(
                    f"load_plain: {name} has shape {tuple(state[name].shape)}, the model's {tuple(own[place].shape)}"
                )
        with torch.no_grad():
            for name, place in self._places.items():
                own[place].copy_(state[name])

    def _whole(self, state: Mapping[str, Any]) -> None:
        if self._tensors:
            raise ConfigError(
                f"the method keeps no counterpart of {len(self._tensors)} tensors of the plain "
                f"{type(self._model).__name__} ({next(iter(self._tensors))}, ...): there are no plain weights of it"
            )
        gone = [name for name, place in self._places.items() if place not in state]
        if gone:
            raise ConfigError(
                f"{gone[0]} of the plain {type(self._model).__name__} has been replaced since attach: undo that first "
                "(prune.remove, remove_parametrizations)"
            )

    def restore(self, model: nn.Module) -> nn.Module:
        """Put the plain modules back, with the very parameters and the buffers that ``model`` has now.

        Raises:
            ConfigError: the method keeps no counterpart of some tensors.
        """
        now: dict[str, Any] = model.state_dict(keep_vars=True)
        self._whole(now)
        for module, children in self._modules.items():
            module._modules = dict(children)
            for key in self._hooks[module]:
                for kept in (module._forward_hooks, module._forward_pre_hooks):
                    kept.pop(key, None)
            module.train(model.training)
        for name, place in self._places.items():
            parent, _, leaf = name.rpartition(".")
            owner = self._model.get_submodule(parent)
            (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = now[place]
        fused(self._model)
        unroute(self._model)
        direct(self._model)
        return self._model


def _hooks(module: nn.Module) -> set[int]:
    """Keys of a module's forward hooks."""
    return {*module._forward_hooks, *module._forward_pre_hooks}

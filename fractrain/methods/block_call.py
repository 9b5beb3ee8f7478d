"""What the gate of a block sees of a call, and how the calls of several passes become one output.

A block may take and return anything made of tensors: further arguments by place or by name, tuples, lists and dicts.
Its *input* is the first tensor that fits its first layer: samples along the first axis, and that layer's channels.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fractrain.layers.convert import CONVOLUTIONS
from fractrain.layers.state import QuantState
from fractrain.layers.tensor_hints import version_of
from fractrain.methods.gate import GateNetwork
from fractrain.util.errors import ConfigError

VALUES = (
    torch.Tensor, type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.Size,
    slice, range,
)  # fmt: skip
"""What may be given to several runs of a block: nothing that a run would change unseen."""


ALONE = tree_flatten(((0,), {}))[1]  # one argument, by place


@dataclass(frozen=True)
class Entrance:
    """What a block takes, read off its first layer.

    Attributes:
        channels: input channels.
        axes: where its input may have them, the likelier first.
    """

    channels: int
    axes: tuple[int, int]


def entrance(block: nn.Module, name: str) -> Entrance:
    """Find what a block takes.

    Raises:
        ConfigError: it has no layer, cannot be called, or has its samples along another axis than the first.
    """
    if type(block).forward is nn.Module.forward and "forward" not in vars(block):
        raise ConfigError(f"block {name!r} is a {type(block).__name__}, which has no forward: name what is in it")
    if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) and not block.self_attn.batch_first:
        raise ConfigError(
            f"block {name!r} ({type(block).__name__}) has samples along its second axis, a gate asks for the first: "
            "make it with batch_first=True"
        )
    for m in block.modules():
        for size in ("in_channels", "in_features"):
            if isinstance(channels := getattr(m, size, None), int):
                return Entrance(channels, (1, -1) if isinstance(m, CONVOLUTIONS) else (-1, 1))
    raise ConfigError(f"block {name!r} has no convolution or linear layer to gate")


def pooled(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Mean ``[N, C]`` over all axes but the first and that of the channels."""
    rest = [i for i in range(1, x.dim()) if i != axis % x.dim()]
    return x.mean(dim=rest) if rest else x


class Call:
    """The arguments of one call of a block, to be passed on for several runs of it.

    Args:
        args, kwargs: as the caller gave them.
        block: how the block is called in messages.
        entrance: what it takes.

    Attributes:
        input: the tensor that the gate sees, ``[N, ...]``.
        axis: of its channels.
        further: whether other tensors have a row per sample, too.

    Raises:
        ConfigError: no tensor fits the block's first layer, the batch is empty, or a run may change an argument.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], block: str, entrance: Entrance) -> None:
        self._leaves, self._form = tree_flatten((args, kwargs))
        self._block = block
        self._nested = self._form != ALONE
        found = ((i, axis) for i, x in enumerate(self._leaves) for axis in entrance.axes if _fits(x, entrance, axis))
        self._place, self.axis = next(found, (-1, 0))
        if self._place < 0:
            raise ConfigError(
                f"{block} takes {_told(self._leaves)}; none has samples along the first axis and the "
                f"{entrance.channels} channels of the block's first layer along axis {entrance.axes[0]} or "
                f"{entrance.axes[1]}, so no gate can be put before it; name other blocks: attach(..., blocks=[...])"
            )
        self.input: torch.Tensor = self._leaves[self._place]
        if not self.input.numel():
            raise ConfigError(f"{block}: empty batch (input shape {tuple(self.input.shape)}); drop empty batches")
        others = [x for i, x in enumerate(self._leaves) if i != self._place]
        for x in others:
            if not isinstance(x, VALUES) and (not callable(x) or isinstance(x, nn.Module)):
                raise ConfigError(
                    f"{block} takes a {type(x).__name__}, which a gated block cannot pass on: it may run several times "
                    "for one call, and each run may change that object; leave it out (a cache: use_cache=False) or "
                    "name other blocks: attach(..., blocks=[...])"
                )
        self._others = [x for x in others if isinstance(x, torch.Tensor)]
        self._versions = [version_of(x) for x in self._others]
        self.further = any(_has_rows(x, len(self.input)) for x in self._others)

    @property
    def shape(self) -> str:
        """Shape of a sample, and those of the other tensors, for the name of a work item."""
        return "|".join("x".join(map(str, s)) for s in (self.input.shape[1:], *(x.shape for x in self._others)))

    def run(self, block: Callable[..., Any], x: torch.Tensor) -> Any:
        """Call a block with ``x`` in the place of the input.

        Raises:
            ConfigError: it has changed one of the other arguments, which the next run would see.
        """
        return self._run(block, [*self._leaves[: self._place], x, *self._leaves[self._place + 1 :]])

    def run_rows(self, block: Callable[..., Any], x: torch.Tensor, rows: torch.Tensor) -> Any:
        """As :meth:`run`, with these samples alone of every tensor that has as many rows as there are samples."""
        n = len(self.input)
        leaves = [v[rows] if _has_rows(v, n) else v for v in self._leaves]
        leaves[self._place] = x
        return self._run(block, leaves)

    def _run(self, block: Callable[..., Any], leaves: list[Any]) -> Any:
        args, kwargs = tree_unflatten(leaves, self._form)
        out = block(*args, **kwargs)
        if self._nested and (
            tree_flatten((args, kwargs))[1] != self._form or self._versions != [version_of(x) for x in self._others]
        ):
            raise ConfigError(
                f"{self._block} changes its arguments in place, and a gated block may run several times for one call: "
                "have it return what is new, or name other blocks: attach(..., blocks=[...])"
            )
        return out


def _fits(x: Any, entrance: Entrance, axis: int) -> bool:
    return (
        isinstance(x, torch.Tensor)
        and x.is_floating_point()
        and x.dim() > 1
        and x.shape[axis] == entrance.channels
        and bool(axis % x.dim())
    )


def _has_rows(x: Any, samples: int) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() > 0 and len(x) == samples


def _told(leaves: Sequence[Any]) -> str:
    tensors = [f"{str(x.dtype)[6:]} {list(x.shape)}" for x in leaves if isinstance(x, torch.Tensor)]
    return ", ".join(tensors) or "no tensor"


@dataclass(frozen=True)
class Output:
    """What one run of a block returned.

    Attributes:
        leaves: its tensors and other values.
        form: how they are nested.
        samples: number of samples that the block ran on.
    """

    leaves: list[Any]
    form: TreeSpec
    samples: int

    @classmethod
    def of(cls, value: Any, samples: int, block: str) -> Output:
        """Take apart what a block returned.

        Raises:
            ConfigError: it has no tensor with a row per sample.
        """
        leaves, form = tree_flatten(value)
        if not any(_has_rows(x, samples) for x in leaves):
            raise ConfigError(
                f"{block} returns {type(value).__name__} without a tensor that has a row per sample ({samples} here): "
                "a gated block must return tensors, or tuples, lists or dicts of them"
            )
        return cls(leaves, form, samples)

    def detached(self) -> Output:
        """The same values, without their graphs."""
        return Output([x.detach() if isinstance(x, torch.Tensor) else x for x in self.leaves], self.form, self.samples)


Mix = Callable[[list[torch.Tensor]], torch.Tensor]


def combined(outs: Sequence[Output], mix: Mix, block: str, first: int = 0) -> Any:
    """Make one output of several runs' by ``mix``, which gets the runs' tensors that have a row per sample.

    What has none (a position bias) must be the same in all of them; it is taken from run ``first``.

    Raises:
        ConfigError: the runs' outputs are not alike.
    """
    if any(o.form != outs[0].form for o in outs):
        raise ConfigError(f"{block} returns other things at other precisions: {outs[0].form} and another form")
    leaves = []
    for values in zip(*(o.leaves for o in outs), strict=True):
        if all(_has_rows(x, o.samples) for x, o in zip(values, outs, strict=True)):
            leaves.append(mix(list(values)))
        elif all(x is values[0] or _equal(x, values[0]) for x in values):
            leaves.append(values[first])
        else:
            raise ConfigError(
                f"{block} returns, beside its output, {_told(values[:1])} that has no row per sample and depends on "
                "the precision, so that the samples' choices cannot be put together; name other blocks: "
                "attach(..., blocks=[...])"
            )
    return tree_unflatten(leaves, outs[0].form)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


class BlockWrapper(nn.Module):
    """A block of a model with a gate before it. What it does not know itself, it asks the block.

    Args:
        block: the block.
        name: its name in the model.
        index: position among the gated blocks.
        gate: gate network shared by all blocks (registered elsewhere, once).
        state: of the quantized layers.
    """

    def __init__(self, block: nn.Module, name: str, index: int, gate: GateNetwork, state: QuantState) -> None:
        super().__init__()
        self.block = block
        self.name = name
        self.index = index
        self.state = state
        self.title = f"block {name!r} ({type(block).__name__})"
        self._entrance = entrance(block, name)
        self._gate = (gate,)  # in a tuple: shared by all blocks, so it must not be registered in each

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read of their blocks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            block = self.__dict__.get("_modules", {}).get("block")
            if block is None or name.startswith("__"):
                raise
            return getattr(block, name)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The arguments of one call."""
        return Call(args, kwargs, self.title, self._entrance)

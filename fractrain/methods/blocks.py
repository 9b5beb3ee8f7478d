"""Finding the gateable blocks of a model: its own list, or the residual blocks of well-known model families."""

from __future__ import annotations

from torch import nn

from fractrain.methods.base import MethodContext
from fractrain.util.errors import ConfigError, did_you_mean

SPLITTING = ("shufflenetv2",)  # modules whose blocks are named like residual ones and are none
RESIDUAL_TYPES = ("BasicBlock", "Bottleneck", "InvertedResidual")


def gateable_blocks(model: nn.Module, context: MethodContext) -> list[str]:
    """Names of the blocks that get a precision of their own, in the order data flows.

    Taken from ``context.blocks`` if given, else from the model's ``gateable_blocks()``, else every residual block of
    torchvision's ResNet and MobileNet families.

    Raises:
        ConfigError: a given name does not exist, comes twice or lies inside another one, or no block is found.
    """
    modules = dict(model.named_modules())
    if context.blocks:
        for name in context.blocks:
            if name not in modules:
                raise ConfigError(f"block {name!r} is not a module of the model{did_you_mean(name, modules)}")
            if sum(f"{name}.".startswith(f"{other}.") for other in context.blocks) > 1:
                raise ConfigError(f"block {name!r} is named twice or lies inside another block of the list")
        return list(context.blocks)
    own = getattr(model, "gateable_blocks", None)
    if callable(own):
        return list(own())
    found = [name for name, m in modules.items() if type(m).__name__ in RESIDUAL_TYPES]
    split = next((m for name in found if (m := modules[name]) and type(m).__module__.endswith(SPLITTING)), None)
    if split is not None:
        raise ConfigError(
            f"{type(model).__name__}: blocks of type {type(split).__name__} from {type(split).__module__} split their "
            "input, so no gate can be put before them; name other blocks: attach(..., blocks=['stage2', ...])"
        )
    if not found:
        example = proposed(model) or ["layer1.0", "..."]
        raise ConfigError(
            f"{type(model).__name__} has no blocks known to this method; name them: attach(..., blocks={example}), "
            "MethodContext(blocks=...), or give the model a gateable_blocks() method"
        )
    return found


def proposed(model: nn.Module) -> list[str]:
    """Names of the longest row of modules of one type that have layers, or of an empty one: likely blocks."""
    rows: list[list[str]] = [[]]
    for name, module in model.named_modules():
        inside = list(module.named_children()) if isinstance(module, nn.Sequential | nn.ModuleList) else []
        kinds = {type(child) for _, child in inside}
        if len(inside) > 1 and len(kinds) == 1 and all(list(child.children()) for _, child in inside):
            rows.append([f"{name}.{child}" if name else child for child, _ in inside])
    return max(rows, key=len)


def block_weights(blocks: list[str], context: MethodContext) -> list[float]:
    """Weight of each block in cp: as given, or equal (the paper's choice for ResNets).

    Raises:
        ConfigError: another number of weights than blocks.
    """
    if not context.block_weights:
        return [1.0] * len(blocks)
    if len(context.block_weights) != len(blocks):
        raise ConfigError(f"{len(context.block_weights)} block weights for {len(blocks)} blocks")
    return list(context.block_weights)

"""Which BatchNorm layers hand their output to a ReLU and to nothing else, found by tracing the modules they are in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F

RELUS = (F.relu, torch.relu, torch.relu_)


class _Shallow(fx.Tracer):
    """Traces one module's own forward; everything it calls is a node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def before_relu(model: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """Layers of a kind whose every use in the module that owns them is followed by a ReLU alone.

    A module whose forward cannot be traced (its way depends on data) has none.
    """
    for parent in model.modules():
        own = {name: m for name, m in parent.named_children() if isinstance(m, kind)}
        graph = _graph_of(parent) if own else None
        if graph is None:
            continue
        uses = [node for node in graph.nodes if node.op == "call_module" and node.target in own]
        for layer in own.values():
            mine = [node for node in uses if own[str(node.target)] is layer]
            if mine and all(len(node.users) == 1 and _is_relu(parent, next(iter(node.users))) for node in mine):
                yield layer


def _graph_of(module: nn.Module) -> fx.Graph | None:
    before = dict(module.__dict__)
    try:
        return _Shallow().trace(module)
    except Exception:  # whatever somebody's code does when it is given no tensor
        return None
    finally:  # forward may have noted something of what it saw
        module.__dict__.clear()
        module.__dict__.update(before)


def _is_relu(parent: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(parent.get_submodule(str(node.target)), nn.ReLU)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in RELUS

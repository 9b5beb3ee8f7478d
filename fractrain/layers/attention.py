"""``nn.MultiheadAttention`` as layers that can be quantized: three projections, two products, and one projection.

PyTorch's module calls functions on its packed weights, and in evaluation one fused operation: nothing in it could be
replaced. Here the same parameters, under the same names, are multiplied by layers. Each projection has a grid of its
own (ours). In floating point PyTorch's own code runs, and the layers only report what it multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.base import QuantLayer
from fractrain.layers.conv_linear import QuantLinear
from fractrain.layers.eager import eager
from fractrain.layers.matmul import Matmul
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over
from fractrain.numerics.precision import Precision

Masks = torch.Tensor | None


class Projection(nn.Linear):
    """A linear layer whose weight and bias are rows of parameters of an attention module.

    Args:
        owner: the module; its parameters keep their names, and this layer has none of its own.
        weight: name of the parameter that holds the weight.
        part: 0, 1 or 2: query, key or value.
    """

    def __init__(self, owner: nn.MultiheadAttention, weight: str, part: int) -> None:
        nn.Module.__init__(self)
        self._owner = (owner,)  # in a tuple: a module here would be registered, and hold its owner
        self._name, self._part, self.out_features = weight, part, owner.embed_dim
        self.in_features = int(getattr(owner, weight).shape[1])

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """``[out, in]``, a view."""
        whole: torch.Tensor = getattr(self._owner[0], self._name)
        return self._rows(whole) if whole.shape[0] > self.out_features else whole

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """``[out]``, a view."""
        whole = self._owner[0].in_proj_bias
        return None if whole is None else self._rows(whole)

    def _rows(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self._part * self.out_features : (self._part + 1) * self.out_features]


class QuantProjection(QuantLinear, Projection):
    """:class:`Projection` with quantized operands."""

    def __init__(
        self, plain: Projection, precision: Precision, state: QuantState | None = None, site: str = ""
    ) -> None:
        nn.Module.__init__(self)
        take_over(self, plain)
        self.init_quant(precision, state or QuantState(), site or "projection", plain.weight.device)


class LayeredAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with the parameters of another one, computed by layers where these are quantized.

    Args:
        plain: the attention that this one stands for.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, plain: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        take_over(self, plain)
        packed = ("in_proj_weight",) * 3
        names = packed if self._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        out = self._modules.pop("out_proj")
        for part, (child, weight) in enumerate(zip(("q_proj", "k_proj", "v_proj"), names, strict=True)):
            self.add_module(child, Projection(self, weight, part))
        self.scores, self.mix = Matmul(transpose=True), Matmul()
        self.add_module("out_proj", out)  # the last, as data flows

    @eager
    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_padding_mask: Masks = None,
        need_weights: bool = True, attn_mask: Masks = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """As :meth:`nn.MultiheadAttention.forward`."""
        own = [m for m in self.children() if isinstance(m, QuantLayer)]
        plain = all(m.effective(m.precision).is_float for m in own)
        if plain and own and not query.is_nested:
            self._report(*(self._samples_first(t) for t in (query, key, value)))
        if plain:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        return self.by_layers(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )

    def by_layers(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_padding_mask: Masks = None,
        need_weights: bool = True, attn_mask: Masks = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """As :meth:`forward`, by the layers whatever they are."""
        first, batched = self.batch_first, query.dim() == 3
        mask = _additive(attn_mask, query)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query)
            assert padding is not None
            padding = (padding if batched else padding[None])[:, None, None]
        else:
            padding = None
        q, k, v = (self._samples_first(t) for t in (query, key, value))
        y, weights = self._attend(q, k, v, mask, padding)
        if not batched:
            return y[0], (weights[0].mean(0) if average_attn_weights else weights[0]) if need_weights else None
        y = y if first else y.transpose(0, 1)
        return y, (weights.mean(1) if average_attn_weights else weights) if need_weights else None

    def _samples_first(self, x: torch.Tensor) -> torch.Tensor:
        return x[None] if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, T, width]`` as ``[N, heads, T, width / heads]``."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Masks, padding: Masks
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output ``[N, T, width]`` and weights ``[N, heads, T, S]``; ``padding`` is ``[N, 1, 1, S]``."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        n, more = q.shape[0], 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([t, b.expand(n, -1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
            more += 1
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
            more += 1
        scores = self.scores(self._heads(q) * self.head_dim**-0.5, self._heads(k))
        if mask is not None:
            each = mask.reshape(n, self.num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask
            scores = scores + F.pad(each, (0, more))
        if padding is not None:
            scores = scores + F.pad(padding, (0, more))
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        y = self.mix(weights, self._heads(v)).transpose(1, 2).flatten(2)
        return self.out_proj(y), weights

    def _report(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Have the layers count what PyTorch's own code is about to multiply."""
        q, k, v = (p(x, elsewhere=True) for p, x in
                   ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))  # fmt: skip
        more = int(self.bias_k is not None) + int(self.add_zero_attn)
        k, v = (t[:, :1].expand(-1, t.shape[1] + more, -1) for t in (k, v))
        scores = self.scores(self._heads(q), self._heads(k), elsewhere=True)
        y = self.mix(scores, self._heads(v), elsewhere=True)
        self.out_proj(y.transpose(1, 2).flatten(2), elsewhere=True)


def _additive(mask: Masks, like: torch.Tensor) -> Masks:
    """A mask to be added to scores: of a boolean one, minus infinity where it is true."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def layered(model: nn.Module) -> nn.Module:
    """Put a :class:`LayeredAttention` in the place of every ``nn.MultiheadAttention`` (no derived classes).

    Returns:
        The model (a new module if ``model`` itself is one).
    """
    made: dict[nn.Module, nn.Module] = {}  # a module may be reachable by several names
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
            continue
        new = made.setdefault(module, LayeredAttention(module))
        if not name:
            return new
        model.set_submodule(name, new)
    return model


def _quantized(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer) and not module.precision.is_float


def unfused(model: nn.Module, quantized: Callable[[nn.Module], bool] = _quantized) -> None:
    """Keep evaluation from bypassing quantized layers by PyTorch's fused encoder layer, which reads their weights.

    Args:
        model: changed in place.
        quantized: tells such layers.
    """
    for module in model.modules():
        inner: Any = module
        if not any(quantized(m) for m in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            _make_unfused(inner, "activation_relu_or_gelu", 0)  # asked for it alone; the activation is elsewhere
        elif isinstance(module, nn.TransformerEncoder):
            _make_unfused(inner, "use_nested_tensor", False)


def _make_unfused(module: Any, name: str, value: Any) -> None:
    module._fused = getattr(module, "_fused", {}) | {name: getattr(module, name)}
    setattr(module, name, value)


def fused(model: nn.Module) -> None:
    """Undo :func:`unfused`."""
    for module in model.modules():
        for name, value in module.__dict__.pop("_fused", {}).items():
            setattr(module, name, value)

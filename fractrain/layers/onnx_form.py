"""Quantized layers as ONNX writes them: operands between QuantizeLinear and DequantizeLinear, and a plain product.

ONNX's grid is ``(code - zero point) * scale`` with an integer zero point; ours is ``code * scale + offset``. So an
offset other than zero is subtracted before QuantizeLinear and added after DequantizeLinear: every point of the grid is
kept. Where a width has fewer points than its type, a Min before QuantizeLinear saturates at the upper end; the lower
end is the type's own, code 0. Codes are unsigned (uint8 up to 8 bits, uint16 above): on processors without VNNI
onnxruntime's products of uint8 and int8 saturate.

The modules here are there to be traced by ``torch.onnx.export``; run as they are they give zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.attention import LayeredAttention
from fractrain.layers.conv_linear import PaddedQuantConv2d, QuantLayer
from fractrain.layers.matmul import QuantMatmul, multiply
from fractrain.layers.other_convs import QuantOtherConv
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Format, Limits, PerAxis, PerTensor
from fractrain.numerics.precision import Operand
from fractrain.util.errors import ConfigError

OPSET = 21  # of QuantizeLinear and DequantizeLinear; the first with 16 bits


def onnx_form(layer: QuantLayer) -> nn.Module:
    """The layer at its present precision, in evaluation, to be traced.

    Args:
        layer: whose operands are to be rounded as in evaluation: in its running ranges, or where it has none in those
            of the batch, which the graph then measures.

    Raises:
        ConfigError: QuantizeLinear cannot express an operand of its forward product.
    """
    precision = layer.effective(layer.precision)
    for name, op in (("activation", precision.fw_a), ("weight", precision.fw_w)):
        reason = inexpressible(op, name == "weight" and not isinstance(layer, QuantMatmul))
        if reason is not None:
            raise ConfigError(f"{layer.site}: {reason} ({name}: {op.describe()}) has no form in ONNX's QuantizeLinear")
    form: nn.Module
    if isinstance(layer, QuantMatmul):
        form = _Product(layer)
    elif isinstance(layer, nn.Linear):
        form = _Linear(layer)
    else:
        form = _Convolution(layer)
    form._forward_pre_hooks = layer._forward_pre_hooks  # a method may clip what goes in
    return form.eval()


def inexpressible(op: Operand, weight: bool) -> str | None:
    """What of an operand QuantizeLinear cannot express, in a few words; None: nothing."""
    if op.is_float:
        return None
    if isinstance(op.bits, torch.Tensor):
        return "widths from a map"
    if type(op.format).quantize is not Format.quantize:
        return "a format with other values than a uniform grid"
    if op.format.rounding != "nearest":
        return "stochastic rounding in evaluation"
    if op.format.granularity != PerTensor() and not (weight and op.format.granularity == PerAxis(0)):
        return "several grids in one operand"
    return None


class RoundedActivation(nn.Module):
    """An activation, float32 of any shape, rounded to the grid that evaluation uses.

    Args:
        op: format and width.
        known: its range; None: that of the batch.
        kind: type of the values.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, op: Operand, known: Limits | None, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        assert isinstance(op.bits, int)
        self._format, self._bits = op.format, op.bits
        limits = known or fixed_limits(op.format, kind)
        self._measures = limits is None
        one = torch.ones((), dtype=kind)
        grid = op.format.grid(limits or (-one, one), op.bits, one)
        self._shifts = self._measures or bool(grid.offset != 0)
        self._top = None if float(grid.qmax - grid.qmin) == _points(op.bits) - 1 else float(grid.qmax)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("offset", grid.offset)
        self.register_buffer("zero_point", (-grid.qmin).to(_type(op.bits)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round."""
        scale, offset = self.scale, self.offset
        if self._measures:
            grid = self._format.grid(self._format.limits(x, "reference"), self._bits, x)
            scale, offset = grid.scale, grid.offset
        moved = x - offset if self._shifts else x
        if self._top is not None:
            moved = torch.minimum(moved, scale * self._top)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (moved, scale, self.zero_point), dtype=self.zero_point.dtype, shape=x.shape, version=OPSET
        )
        values = _dequantized(codes, scale, self.zero_point)
        return values + offset if self._shifts else values


class RoundedWeight(nn.Module):
    """The quantized weight of a layer, kept as integer codes.

    Args:
        layer: whose weight.

    Raises:
        ConfigError: it has no integer codes.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        op = layer.precision.fw_w
        _, kept = layer.weight_operand(op, "fw_w", True)
        if not isinstance(kept, Quantized) or not isinstance(op.bits, int):
            raise ConfigError(f"{layer.site}: its weight ({op.describe()}) is not kept as codes of a uniform grid")
        grid, kind = kept.full_grid, _type(op.bits)
        several = grid.scale.numel() > 1
        scale = grid.scale.flatten() if several else grid.scale.reshape(())
        codes = kept.codes.int() + int(kept.shift)
        self._shifts = bool((grid.offset != 0).any())
        self.register_buffer("codes", codes.to(kind).contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", (-grid.qmin.flatten()).to(kind).expand(scale.numel()).reshape(scale.shape))
        self.register_buffer("offset", grid.offset)

    def forward(self) -> torch.Tensor:
        """Values, in the shape in which they were quantized."""
        values = _dequantized(self.codes, self.scale, self.zero_point)
        return values + self.offset if self._shifts else values


class Form(nn.Module):
    """What the forms of layers share: the layer, which is no child of theirs, and its rounded operands."""

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self._layer = (layer,)
        precision = layer.effective(layer.precision)
        self.first = _activation(layer, precision.fw_a, "fw_a")
        self.second: nn.Module | None = None
        if isinstance(layer, QuantMatmul):
            self.second = _activation(layer, precision.fw_w, "fw_w")
        elif not precision.fw_w.is_float:
            self.second = RoundedWeight(layer)
            vars(self)["weight"] = layer.weight  # models ask for its type; no part of the graph
        else:
            self.weight = _leaf(layer.weight)
        self.bias = _leaf(getattr(layer, "bias", None))

    @property
    def layer(self) -> Any:
        """What is exported."""
        return self._layer[0]

    def kernel(self) -> torch.Tensor:
        """The weight that is multiplied."""
        w: torch.Tensor = self.layer.as_kernel(self.weight) if self.second is None else self.second()
        return w


class _Linear(Form):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.first(x), self.kernel(), self.bias)


class _Product(Form):
    is_float = False  # as of the layer: models ask

    def forward(self, a: torch.Tensor, b: torch.Tensor, elsewhere: bool = False) -> torch.Tensor:
        assert self.second is not None
        return multiply(self.first(a), self.second(b), self.layer.transpose)

    def again(self) -> None:
        """Nothing is made again."""


class AttentionForm(LayeredAttention):
    """``nn.MultiheadAttention`` by the forms of its quantized layers.

    Args:
        attention: whose layers.

    Raises:
        ConfigError: as :func:`onnx_form`.
    """

    def __init__(self, attention: LayeredAttention) -> None:
        nn.Module.__init__(self)
        for name, value in attention.__dict__.items():
            self.__dict__[name] = value.copy() if isinstance(value, dict) else value
        for name, child in attention.named_children():
            if isinstance(child, QuantLayer):
                self.add_module(name, onnx_form(child))

    forward = LayeredAttention.by_layers


class _Convolution(Form):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, w = self.layer, self.kernel()
        other = isinstance(layer, QuantOtherConv)
        if layer._padded if other else isinstance(layer, PaddedQuantConv2d):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
        y: torch.Tensor = torch.ops.aten.convolution(
            self.first(x), layer.as_weight(w) if other else w, self.bias, layer.stride,
            layer._pad if other else layer.zero_padding, layer.dilation, layer.transposed, layer.output_padding,
            layer.groups,
        )  # fmt: skip
        return y


def _leaf(t: torch.Tensor | None) -> torch.Tensor | None:
    """A parameter, or the values of what is a view of one."""
    return t if t is None or t.is_leaf else t.detach()


def _activation(layer: QuantLayer, op: Operand, name: str) -> nn.Module:
    """What rounds an activation of a layer as it does itself in evaluation."""
    if op.is_float:
        return nn.Identity()
    running = None if op.running is None else layer.running_range(name)
    known = None if running is None or not bool(running[2] > 0) else running[:2]
    return RoundedActivation(op, known, layer.running_low.dtype)


def fixed_limits(form: Format, kind: torch.dtype = torch.float32) -> Limits | None:
    """The range that a format has whatever the data; None where it is measured."""
    a, b = (form.limits(torch.full((1, 1), value, dtype=kind), "reference") for value in (0.0, 1.0))
    return a if all(torch.equal(s, t) for s, t in zip(a, b, strict=True)) else None


def _dequantized(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, scale, zero_point), {"axis": 0} if scale.dim() else {}, dtype=scale.dtype,
        shape=codes.shape, version=OPSET,
    )  # fmt: skip


def _type(bits: int) -> torch.dtype:
    return torch.uint8 if bits <= 8 else torch.uint16


def _points(bits: int) -> int:
    """Numbers of the type that codes of a width have."""
    return 1 << (8 if bits <= 8 else 16)

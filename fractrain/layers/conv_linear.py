"""The two quantized layers: convolution and linear. No method has layers of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fractrain.experimental import int8_conv, int8_gemm
from fractrain.experimental.int8_gemm import GemmPlan, Shape
from fractrain.kernels.cpu.gemm import linear, matmul
from fractrain.kernels.cpu.int8 import (
    convolve,
    fit_int8,
    runs_on_int8,
    some_samples_fit_int8,
    tensor_fits_int8,
    weight_fits_int8,
)
from fractrain.kernels.cpu.int8_backward import Plan, possible, products
from fractrain.kernels.geometry import Geometry
from fractrain.layers.base import Backward, QuantLayer
from fractrain.layers.eager import eager
from fractrain.layers.matmul import stand_in
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over
from fractrain.numerics.backend import Quantized
from fractrain.numerics.precision import Operand, Precision
from fractrain.util.errors import ConfigError

__all__ = ["Backward", "PaddedQuantConv2d", "QuantConv2d", "QuantLayer", "QuantLinear", "zero_padding"]


LARGE = 1 << 16  # elements of a weight


class QuantConv2d(QuantLayer, nn.Conv2d):
    """2-D convolution (any stride, dilation, groups; zero padding) with quantized operands.

    Input ``[N, C, H, W]``; products of quantized operands are computed and returned in channels-last memory.

    Raises:
        ConfigError: padding that is not zeros alike on both sides, or an empty batch.
        NonFiniteError: inf or nan in an operand (at once on the CPU, at the next check on a GPU).
    """

    axes = 4

    def __init__(self, conv: nn.Conv2d, precision: Precision, state: QuantState | None = None, site: str = "") -> None:
        nn.Module.__init__(self)
        take_over(self, conv)
        self.init_quant(precision, state or QuantState(), site or "conv")
        zeros = zero_padding(conv)
        if zeros is None and not isinstance(self, PaddedQuantConv2d):
            raise ConfigError(f"{self.site}: padding {conv.padding_mode!r}, {conv.padding!r} needs a PaddedQuantConv2d")
        self.zero_padding = zeros or (0, 0)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, site={self.site!r}"

    def integer_geometry(self, x: torch.Tensor) -> Geometry | None:
        """How FW runs on integer codes: dense, both operands at up to 8 bits; :mod:`fractrain.kernels.cpu.int8`."""
        p, on_gpu = self.precision, x.device.type in int8_conv.DEVICES
        suited = fit_int8(p.fw_a, p.fw_w) and (_of_one_grid(p.fw_a) or not on_gpu)
        geometry = self._geometry(x) if suited else None
        if geometry is None:
            return None
        possible_here = int8_conv.possible(geometry, "forward", x.device) if on_gpu else runs_on_int8(geometry)
        return geometry if possible_here else None

    def integer_backward(self, x: torch.Tensor) -> Plan | None:
        """Which of EB and GC run on integer codes, see :mod:`fractrain.kernels.cpu.int8_backward`."""
        p, on_gpu = self.precision, x.device.type in int8_conv.DEVICES
        if on_gpu:
            eb = _of_one_grid(p.eb_e) and _of_one_grid(p.eb_w)
            gc = _of_one_grid(p.gc_e) and _of_one_grid(p.gc_a)
        else:
            eb = some_samples_fit_int8(p.eb_e) and weight_fits_int8(p.eb_w)
            gc = some_samples_fit_int8(p.gc_e) and tensor_fits_int8(p.gc_a)
        geometry = self._geometry(x) if eb or gc else None
        if geometry is None:
            return None
        return int8_conv.plan(geometry, eb, gc, x.device) if on_gpu else possible(geometry).only(eb, gc)

    def integer_product(
        self, a: Quantized, w: Quantized, values: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
    ) -> torch.Tensor | None:
        """FW, see :mod:`fractrain.kernels.cpu.int8`; None where compiled kernels did not quantize the activation."""
        if a.codes.device.type in int8_conv.DEVICES:
            return int8_conv.forward(a, w, bias, geometry)
        return convolve(a, w, bias, geometry, values)

    def integer_products(
        self, e: Quantized, values: torch.Tensor | None, a: Quantized | None, w: Quantized | None, plan: Plan
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """EB and GC; None where compiled kernels did not quantize the error."""
        if e.codes.device.type in int8_conv.DEVICES:
            da = int8_conv.input_gradient(e, w, plan.geometry) if plan.eb and w is not None else None
            return da, int8_conv.weight_gradient(e, a, plan.geometry) if plan.gc and a is not None else None
        if e.rows is None:
            return None
        da, dw = products(e, a, w, plan)
        if e.rows.coded is not None and values is not None:
            dw = _others(self, values, e.rows.coded, a, w, plan, da, dw)
        return da, dw

    def _geometry(self, x: torch.Tensor) -> Geometry | None:
        """Of dense convolutions of float32, on devices that have kernels for them, where these may be used."""
        if self.state.kernels == "reference" or x.device.type not in {"cpu", *int8_conv.DEVICES}:
            return None
        if x.dtype != torch.float32 or self.groups != 1 or self.dilation != (1, 1):
            return None
        image = (x.shape[1], x.shape[2], x.shape[3])
        kernel, stride = (self.kernel_size[0], self.kernel_size[1]), (self.stride[0], self.stride[1])
        return Geometry(image, self.out_channels, kernel, stride, self.zero_padding)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution in floating point."""
        return nn.Conv2d.forward(self, x)

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW."""
        return F.conv2d(a, w, bias, self.stride, self.zero_padding, self.dilation, self.groups)

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC."""
        if a is None:
            # only its shape and layout are read; another layout would choose another (slower) algorithm
            a = torch.empty(shape, dtype=e.dtype, device=e.device, memory_format=torch.channels_last)
        da, dw, _ = torch.ops.aten.convolution_backward(
            e, a, w, None, self.stride, self.zero_padding, self.dilation, False, [0, 0], self.groups,
            [want_a, want_w, False],
        )  # fmt: skip
        return da, dw

    def bias_gradient(self, e: torch.Tensor) -> torch.Tensor:
        """Sum of the error per output channel."""
        return e.sum(dim=(0, 2, 3))

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample."""
        k = self.kernel_size[0] * self.kernel_size[1]
        return output[0].numel() * k * (self.in_channels // self.groups)


class QuantLinear(QuantLayer, nn.Linear):
    """Linear layer on the last axis with quantized operands; input ``[N, ..., in]``, output ``[N, ..., out]``.

    Raises:
        ConfigError: an empty batch.
        NonFiniteError: inf or nan in an operand.
    """

    def __init__(
        self, linear: nn.Linear, precision: Precision, state: QuantState | None = None, site: str = ""
    ) -> None:
        nn.Module.__init__(self)
        take_over(self, linear)
        self.init_quant(precision, state or QuantState(), site or "linear")

    @property
    def keeps_codes(self) -> bool:  # type: ignore[override]
        """Whether the weight is large against what it costs to restore it from codes."""
        return bool(self.weight.numel() >= LARGE)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, site={self.site!r}"

    @eager
    def forward(self, x: torch.Tensor, elsewhere: bool = False) -> torch.Tensor:
        """Apply the layer; more than three axes are taken as three, lest four be read as an image.

        Args:
            x: input.
            elsewhere: the product is made by other means (allowed only in floating point): only count it. Returned are
                zeros of its shape that take no memory.
        """
        if elsewhere:
            y = stand_in(x, self.weight, True)
            self.shapes = {"A": x.shape, "W": self.weight.shape, "E": y.shape}
            self.report(x, y, self.wants(x), elsewhere)
            return y
        deep = x.dim() > 3 and x.numel() > 0
        y = super().forward(x.flatten(1, -2) if deep else x)
        return y.reshape(*x.shape[:-1], y.shape[-1]) if deep else y

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The product in floating point."""
        return nn.Linear.forward(self, x)

    def integer_geometry(self, x: torch.Tensor) -> Shape | None:
        """How FW runs on integer codes, see :mod:`fractrain.experimental.int8_gemm`."""
        shape = Shape(x.numel() // self.in_features, self.in_features, self.out_features)
        suited = _of_one_grid(self.precision.fw_a) and weight_fits_int8(self.precision.fw_w)
        return shape if suited and self._multiplies(x, shape) else None

    def integer_backward(self, x: torch.Tensor) -> GemmPlan | None:
        """Which of EB and GC run on integer codes: EB where the weight has one grid."""
        p, rows = self.precision, x.numel() // self.in_features
        eb = _of_one_grid(p.eb_e) and _of_one_grid(p.eb_w)
        gc = _of_one_grid(p.gc_e) and _of_one_grid(p.gc_a)
        return GemmPlan(
            eb and self._multiplies(x, Shape(rows, self.out_features, self.in_features)),
            gc and self._multiplies(x, Shape(self.out_features, rows, self.in_features)),
        )

    def _multiplies(self, x: torch.Tensor, shape: Shape) -> bool:
        return x.dtype == torch.float32 and self.state.kernels != "reference" and int8_gemm.possible(shape, x.device)

    def integer_product(
        self, a: Quantized, w: Quantized, values: torch.Tensor, bias: torch.Tensor | None, geometry: Shape
    ) -> torch.Tensor | None:
        """FW, see :mod:`fractrain.experimental.int8_gemm`."""
        return int8_gemm.forward(a, w, bias)

    def integer_products(
        self, e: Quantized, values: torch.Tensor | None, a: Quantized | None, w: Quantized | None, plan: GemmPlan
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """EB and GC, see :mod:`fractrain.experimental.int8_gemm`."""
        da = int8_gemm.input_gradient(e, w) if plan.eb and w is not None else None
        return da, int8_gemm.weight_gradient(e, a) if plan.gc and a is not None else None

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW."""
        return linear(a, w, bias)

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC."""
        da = matmul(e, w) if want_a else None
        dw = None
        if want_w and a is not None:
            dw = matmul(e.reshape(-1, e.shape[-1]).t(), a.reshape(-1, a.shape[-1]))
        return da, dw

    def bias_gradient(self, e: torch.Tensor) -> torch.Tensor:
        """Sum of the error over all vectors."""
        return e.reshape(-1, e.shape[-1]).sum(dim=0)

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample (first axis)."""
        return output[0].numel() * self.in_features


class PaddedQuantConv2d(QuantConv2d):
    """:class:`QuantConv2d` of images that are padded first: not with zeros, or not alike on both sides."""

    @eager
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad and convolve."""
        if not self.precision.is_float:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode)
        y: torch.Tensor = super().forward(x)
        return y


def zero_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on both sides of height and of width; None where a convolution pads otherwise."""
    if conv.padding_mode != "zeros":
        return None
    if not isinstance(conv.padding, str):
        return conv.padding[0], conv.padding[1]
    if conv.padding == "valid":
        return 0, 0
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)


def _of_one_grid(operand: Operand) -> bool:
    """Whether an operand has codes of at most 8 bits on one grid."""
    return isinstance(operand.bits, int) and tensor_fits_int8(operand)


def _others(
    layer: QuantConv2d, e: torch.Tensor, coded: np.ndarray, kept: Quantized | None, weight: Quantized | None,
    part: Plan, da: torch.Tensor | None, dw: torch.Tensor | None,
) -> torch.Tensor | None:  # fmt: skip
    """The products of samples whose errors have no codes, in float32, into ``da``; return their GC added to ``dw``."""
    rows = np.setdiff1d(np.arange(e.shape[0]), coded)
    which = torch.from_numpy(rows)
    error = e[which].contiguous(memory_format=torch.channels_last)
    a = None
    if part.gc:
        assert kept is not None
        a = kept.take(rows).values()
    w = layer.weight.detach() if weight is None else weight.values()
    shape = torch.Size((len(rows), *part.geometry.image))
    some_da, some_dw = layer.backward_products(error, a, w, shape, part.eb, part.gc)
    if da is not None:
        assert some_da is not None
        da[which] = some_da
    return dw if some_dw is None or dw is None else dw + some_dw

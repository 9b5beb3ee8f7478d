"""Quantized convolutions that are not 2-D, or transposed.

Operands are quantized as those of a 2-D convolution: images ``[N, C, H, W]`` (a signal ``[N, C, L]`` with one row, a
volume ``[N, C, D, H, W]`` with the last two axes in one), weights ``[O, I, kh, kw]`` with the filters first, also where
a transposed convolution stores them otherwise. So "per filter" or "along the reduction" means what it means there.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from fractrain.layers.base import QuantLayer
from fractrain.layers.eager import eager
from fractrain.layers.state import QuantState
from fractrain.layers.take_over import take_over
from fractrain.numerics.precision import Precision
from fractrain.numerics.tiles import PerTile
from fractrain.util.errors import ConfigError

KINDS: dict[type[nn.Module], type[QuantOtherConv]] = {}
"""The quantized twin of each kind of layer."""


class QuantOtherConv(QuantLayer):
    """What the five layers share; each derives from the layer it replaces as well.

    Raises:
        ConfigError: an empty batch, an input without a sample axis, or widths per tile.
        NonFiniteError: inf or nan in an operand.
    """

    kind: type[Any]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    kernel_size: tuple[int, ...]
    padding_mode: Any
    in_channels: int
    out_channels: int
    transposed: bool

    def __init_subclass__(cls) -> None:
        cls.kind = next(base for base in cls.__mro__ if base.__module__.startswith("torch.nn.modules.conv"))
        KINDS[cls.kind] = cls

    def __init__(self, conv: nn.Module, precision: Precision, state: QuantState | None = None, site: str = "") -> None:
        nn.Module.__init__(self)
        take_over(self, conv)
        self.init_quant(precision, state or QuantState(), site or "conv")
        self.axes = 2 + len(self.kernel_size)
        self._extra = tuple(self.output_padding)  # what a transposed convolution adds at one end of each axis
        self._spaces: tuple[torch.Size, torch.Size] = (torch.Size(), torch.Size())  # of input and output, last pass

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, site={self.site!r}"

    def effective(self, precision: Precision) -> Precision:
        """The precision as it stands, if the layer can have it."""
        if any(isinstance(o.bits, torch.Tensor) and isinstance(o.format.granularity, PerTile)
               for o in precision.operands().values()):  # fmt: skip
            raise ConfigError(
                f"{self.site}: {self.kind.__name__} takes no widths per tile; leave it (keep={self.site})"
            )
        return precision

    @eager
    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Apply the layer at its present precision; counts its products in the ledger."""
        self.check_input(x)
        if self.effective(self.precision).is_float:
            more = () if output_size is None else (output_size,)
            y = cast(torch.Tensor, self.kind.forward(self, x, *more))
        else:
            y = self._low(x, output_size)
        self.shapes = {"A": image(x).shape, "W": self.as_kernel(self.weight).shape, "E": image(y).shape}
        self.report(x, y, self.wants(x))
        return y

    def _low(self, x: torch.Tensor, output_size: list[int] | None) -> torch.Tensor:
        if self.transposed:
            n = len(self.kernel_size)
            sizes = (self.stride, self.padding, self.kernel_size, n, self.dilation)
            self._extra = tuple(cast(Any, self)._output_padding(x, output_size, *sizes))
        elif self._padded:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode)  # type: ignore[arg-type]
        self._spaces = x.shape[2:], self._space_after(x.shape[2:])
        y = self._quantized(image(x))
        return y.reshape(*y.shape[:2], *self._spaces[1])

    @property
    def _padded(self) -> bool:
        """Whether an input is padded before the layer, as it is not padded with zeros alike on both sides."""
        return self.padding_mode != "zeros" or isinstance(self.padding, str)

    @property
    def _pad(self) -> tuple[int, ...]:
        return (0,) * len(self.kernel_size) if self._padded else cast(tuple[int, ...], self.padding)

    def _space_after(self, space: torch.Size) -> torch.Size:
        """Spatial size of the output."""
        each = zip(space, self.kernel_size, self.stride, self._pad, self.dilation, self._extra, strict=True)
        if self.transposed:
            return torch.Size((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in each)
        return torch.Size((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in each)

    # -- as a 2-D convolution sees it ---------------------------------------------------------------------------------

    def as_kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as it is quantized: in a wide type, filters first, four axes."""
        return image(self._swapped(super().as_kernel(weight)))

    def as_weight(self, kernel: torch.Tensor) -> torch.Tensor:
        """A kernel in the order and shape of the layer's weight."""
        return self._swapped(kernel.reshape(*kernel.shape[:2], *self.kernel_size))

    def _swapped(self, w: torch.Tensor) -> torch.Tensor:
        """Of a transposed convolution: from filters first to inputs first within each group, and back."""
        return w.reshape(self.groups, -1, *w.shape[1:]).transpose(1, 2).flatten(0, 1) if self.transposed else w

    def operand_shape(self, x: torch.Tensor) -> torch.Size:
        """Shape of the input with all its axes, and then the output's spatial size."""
        return torch.Size((*x.shape[:2], *self._spaces[0], *self._spaces[1]))

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW."""
        x = a.reshape(*a.shape[:2], *self._spaces[0])
        y: torch.Tensor = torch.ops.aten.convolution(
            x, self.as_weight(w), bias, self.stride, self._pad, self.dilation, self.transposed,
            self._extra, self.groups,
        )  # fmt: skip
        return image(y)

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC; ``shape`` is :meth:`operand_shape`'s."""
        n = len(self.kernel_size)
        full, after = shape[: 2 + n], shape[2 + n :]
        x = e.new_empty(full) if a is None else a.reshape(full)
        da, dw, _ = torch.ops.aten.convolution_backward(
            e.reshape(*e.shape[:2], *after), x, self.as_weight(w), None, self.stride, self._pad, self.dilation,
            self.transposed, self._extra, self.groups, [want_a, want_w, False],
        )  # fmt: skip
        return None if da is None else image(da), None if dw is None else self.as_kernel(dw)

    def bias_gradient(self, e: torch.Tensor) -> torch.Tensor:
        """Sum of the error per output channel."""
        return e.sum(dim=(0, 2, 3))

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample: output elements (transposed: input elements) times a filter's size."""
        elements = self._input_elements if self.transposed else output[0].numel()
        return elements * (int(self.weight.numel()) // (self.in_channels if self.transposed else self.out_channels))

    def report(self, x: torch.Tensor, y: torch.Tensor, wants: tuple[bool, bool], elsewhere: bool = False) -> None:
        """As :meth:`QuantLayer.report`."""
        self._input_elements = x.numel() // (x.shape[0] if x.dim() == self.axes else 1) if x.numel() else 0
        super().report(x, y, wants, elsewhere)


def image(x: torch.Tensor) -> torch.Tensor:
    """A signal or volume as an image ``[N, C, H, W]``, a view where that is possible."""
    return x.unsqueeze(2) if x.dim() == 3 else x.flatten(3) if x.dim() == 5 else x


class QuantConv1d(QuantOtherConv, nn.Conv1d):
    """1-D convolution ``[N, C, L]`` with quantized operands."""


class QuantConv3d(QuantOtherConv, nn.Conv3d):
    """3-D convolution ``[N, C, D, H, W]`` with quantized operands."""


class QuantConvTranspose1d(QuantOtherConv, nn.ConvTranspose1d):
    """Transposed 1-D convolution with quantized operands."""


class QuantConvTranspose2d(QuantOtherConv, nn.ConvTranspose2d):
    """Transposed 2-D convolution with quantized operands."""


class QuantConvTranspose3d(QuantOtherConv, nn.ConvTranspose3d):
    """Transposed 3-D convolution with quantized operands."""

"""What the three products ask of a layer: its operands, quantized, and how it multiplies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fractrain.experimental.int8_gemm import GemmPlan, Shape
from fractrain.kernels.cpu.int8_backward import Plan
from fractrain.kernels.geometry import Geometry
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Kept, Quantized
from fractrain.numerics.precision import Operand, Precision


@dataclass
class Activation:
    """An activation operand ready for its product.

    Attributes:
        values: for FW now.
        codes: for backward.
        geometry: of the product on integer codes, where FW is to run on them.
    """

    values: torch.Tensor | None
    codes: Kept | None
    geometry: Geometry | Shape | None = None


@dataclass(frozen=True)
class Backward:
    """What a layer has at hand in its backward pass, for :attr:`QuantLayer.backward_observer`.

    Attributes:
        error: output gradient before it is quantized.
        activation: the quantized activation that GC multiplies; None in floating point.
        da, dw: gradients of input and weight, None where not wanted.
    """

    error: torch.Tensor
    activation: Kept | None
    da: torch.Tensor | None
    dw: torch.Tensor | None


class ProductLayer(nn.Module):
    """The hooks of a layer with three products; :class:`fractrain.layers.base.QuantLayer` gives the operands.

    Attributes:
        precision: formats and widths of all operands.
        state: shared by all quantized layers of a model.
        backward_observer: called as ``backward_observer(layer, Backward)`` at the end of each backward pass when set;
            for methods that steer by gradients. It must not change what it is shown.
    """

    precision: Precision
    state: QuantState
    backward_observer: Any
    keeps_codes = False  # of its weight from forward to backward, not the values: where these are large
    _paths: tuple[Any, tuple[Geometry | Shape | None, Plan | GemmPlan | None]] | None = None
    weight: Any  # a parameter, where there is one
    bias: Any

    # -- how it multiplies, to be given by the kinds of layers -------------------------------------------------------

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer that this one replaces computes, its hooks apart."""
        raise NotImplementedError

    def product(self, a: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """FW."""
        raise NotImplementedError

    def integer_geometry(self, x: torch.Tensor) -> Geometry | Shape | None:
        """How FW runs on integer codes, where the layer can do that and it pays; else None."""
        return None

    def integer_backward(self, x: torch.Tensor) -> Plan | GemmPlan | None:
        """Which backward products run on integer codes, where the layer can do that and it pays; else None."""
        return None

    def integer_paths(self, x: torch.Tensor) -> tuple[Geometry | Shape | None, Plan | GemmPlan | None]:
        """What the two above say, asked once for a precision whose widths are constant and a kind of input."""
        now = (self.precision, x.shape, x.dtype, x.device, self.state.kernels)
        if self._paths is None or self._paths[0] != now or not self.precision.is_constant:
            self._paths = (now, (self.integer_geometry(x), self.integer_backward(x)))
        return self._paths[1]

    def integer_product(
        self, a: Quantized, w: Quantized, bias: torch.Tensor | None, geometry: Any
    ) -> torch.Tensor | None:
        """FW on integer codes as :meth:`integer_geometry` says; None where the codes are not what it needs."""
        raise NotImplementedError

    def integer_products(
        self, e: Quantized, a: Quantized | None, w: Quantized | None, plan: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """EB and GC (None where not in the plan) on integer codes; None where the codes are not what they need."""
        raise NotImplementedError

    def backward_products(
        self, e: torch.Tensor, a: torch.Tensor | None, w: torch.Tensor, shape: torch.Size, want_a: bool, want_w: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """EB and GC from the same error: (dA or None, dW or None)."""
        raise NotImplementedError

    def sample_macs(self, output: torch.Tensor) -> int:
        """Forward MACs per sample (first axis)."""
        raise NotImplementedError

    def bias_gradient(self, e: torch.Tensor) -> torch.Tensor:
        """Gradient of the bias from the error."""
        raise NotImplementedError

    def as_kernel(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in the form it is quantized and multiplied in (by most layers, as it is)."""
        return weight

    def operand_shape(self, x: torch.Tensor) -> torch.Size:
        """What :meth:`backward_products` must know of the input's shape."""
        return x.shape

    # -- its operands ------------------------------------------------------------------------------------------------

    def forward_product(self, a: Activation, w: Operand, bias: torch.Tensor | None) -> torch.Tensor:
        """FW of a quantized activation and the weight."""
        raise NotImplementedError

    def quantized_weight(self, op: Operand, name: str = "fw_w") -> torch.Tensor:
        """Values of the quantized weight."""
        raise NotImplementedError

    def weight_operand(self, op: Operand, name: str, integer: bool) -> tuple[torch.Tensor, Kept | None]:
        """Values of the quantized weight and, where ``integer`` products want them, its codes."""
        raise NotImplementedError

    def forget_weights(self) -> None:
        """Drop the quantized weights kept for reuse."""
        raise NotImplementedError

    def quantized_error(self, g: torch.Tensor, op: Operand, name: str) -> torch.Tensor:
        """Values of the quantized output gradient."""
        raise NotImplementedError

    def error_operand(
        self, g: torch.Tensor, op: Operand, name: str, integer: bool = False, values: bool = True
    ) -> tuple[torch.Tensor | None, Kept | None]:
        """Values of the quantized output gradient, and its codes for ``integer`` products; either may come unasked."""
        raise NotImplementedError

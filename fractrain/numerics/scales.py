"""Scale rules: from the largest magnitude of a block to the scale that its elements are divided by.

Every rule gives two float32 factors per block: ``q = x * to`` is rounded to the element format, ``q * back`` is its
value. Where ``to`` is a power of two both are exact; elsewhere they are each other's reciprocals but for rounding, as
in the libraries whose rule it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fractrain.numerics.elements import E4M3, Minifloat, power_of_two

SMALLEST_AMAX = 1e-12  # torchao's: below, a scale stays that of an amax of this size
E8M0_LOWEST, E8M0_HIGHEST = -127, 127


@dataclass(frozen=True)
class Scales:
    """Scales of all blocks of a tensor.

    Attributes:
        to: factor before rounding, float32 of the shape of the amax they were made of.
        back: factor after it.
        packed: as they are kept, uint8 ``[blocks, bytes]``.
        tensor: scale of the whole tensor that those of the blocks are relative to; None: there is none.
    """

    to: torch.Tensor
    back: torch.Tensor
    packed: torch.Tensor
    tensor: torch.Tensor | None = None


@dataclass(frozen=True)
class Scale:
    """Base of scale rules.

    Attributes:
        margin: the scale is so many times that of the rule: room above the amax (over 1), or clipping (below 1).
    """

    margin: float = 1.0

    name = ""
    bits = 32  # of one scale
    whole = False  # whether it needs the amax of the whole tensor as well

    def scales(self, amax: torch.Tensor, element: Minifloat, whole: torch.Tensor | None = None) -> Scales:
        """Scales of blocks.

        Args:
            amax: largest magnitude per block, float32, finite.
            element: format of the elements.
            whole: largest magnitude of the tensor, where the rule needs it.
        """
        raise NotImplementedError

    def unpack(self, packed: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor:
        """``back`` of each block, float32 ``[blocks]``, from what is kept."""
        return packed.clone().reshape(-1).view(torch.float32)  # a copy: codes before it may end anywhere


@dataclass(frozen=True)
class Multiplier(Scale):
    """A float32 multiplier ``max / amax``, rounded down to a power of two on request: FP8's scale per tensor or row.

    Source: torchao float8 (tensorwise, rowwise), TransformerEngine (delayed).
    """

    power_of_two: bool = False

    name = "float32"

    def scales(self, amax: torch.Tensor, element: Minifloat, whole: torch.Tensor | None = None) -> Scales:
        """See :meth:`Scale.scales`."""
        bounded = amax.to(torch.float64).clamp(min=SMALLEST_AMAX)
        to = (element.max / (bounded * self.margin)).to(torch.float32)
        if self.power_of_two:
            to = power_of_two(torch.frexp(to).exponent - 1)
        back = to.reciprocal()
        return Scales(to, back, _bytes(back))


@dataclass(frozen=True)
class Step(Scale):
    """A float32 step ``amax / max``: integers' scale.

    Source: torchao quantized_training (INT8 per row).
    """

    name = "float32"

    def scales(self, amax: torch.Tensor, element: Minifloat, whole: torch.Tensor | None = None) -> Scales:
        """See :meth:`Scale.scales`."""
        back = amax.to(torch.float32) * self.margin / element.max
        return Scales(back.clamp(min=SMALLEST_AMAX).reciprocal(), back, _bytes(back))


@dataclass(frozen=True)
class E8M0(Scale):
    """A power of two in one byte: the scale of the OCP microscaling formats.

    Attributes:
        mode: which power of two. ``floor`` (OCP v1.0, section 6.3): of the amax, over that of the element's largest
            value, so that the largest elements may saturate. ``rceil``: the smallest that saturates nothing. ``ceil``:
            the amax rounded up to a power of two. ``even``: ``floor`` of the amax rounded to the element's mantissa.
    """

    mode: Literal["floor", "rceil", "ceil", "even"] = "floor"

    name = "e8m0"
    bits = 8

    def scales(self, amax: torch.Tensor, element: Minifloat, whole: torch.Tensor | None = None) -> Scales:
        """See :meth:`Scale.scales`."""
        amax = amax.to(torch.float32)
        if self.mode == "rceil":
            fraction, exponent = torch.frexp(amax / element.max)
            exponent = exponent - (fraction == 0.5).to(torch.int32)
        else:
            if self.mode == "even":  # add half a unit of the element's mantissa; carries go into the exponent
                amax = (amax.view(torch.int32) + (1 << (22 - element.mantissa_bits))).view(torch.float32)
            fraction, exponent = torch.frexp(amax)
            up = (fraction > 0.5).to(torch.int32) if self.mode == "ceil" else 0
            exponent = exponent - 1 + up - element.max_exponent
        exponent = torch.where(amax > 0, exponent, E8M0_LOWEST).clamp(E8M0_LOWEST, E8M0_HIGHEST)
        packed = (exponent - E8M0_LOWEST).to(torch.uint8).reshape(-1, 1)
        return Scales(power_of_two(-exponent) / self.margin, power_of_two(exponent) * self.margin, packed)

    def unpack(self, packed: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`Scale.unpack`."""
        return power_of_two(packed.reshape(-1).to(torch.int32) + E8M0_LOWEST) * self.margin


@dataclass(frozen=True)
class TwoLevel(Scale):
    """A scale in E4M3 per block, relative to one in float32 per tensor: NVFP4.

    ``tensor = amax / (bound * element max)``; ``block = E4M3(amax_block / element max / tensor)``. Tensors of zeros
    have scale 0 throughout. Source: TransformerEngine's NVFP4 recipe; "Pretraining LLMs with NVFP4", arXiv 2509.25149.

    Attributes:
        bound: largest block scale, 448; 256 leaves room for the block scales of "4 over 6", half again as large.
    """

    bound: float = E4M3.max

    name = "e4m3"
    bits = 8
    whole = True

    def scales(self, amax: torch.Tensor, element: Minifloat, whole: torch.Tensor | None = None) -> Scales:
        """See :meth:`Scale.scales`."""
        assert whole is not None
        tensor = whole.to(torch.float32) * self.margin / (self.bound * element.max)
        relative = amax.to(torch.float32) * self.margin / element.max / tensor
        return self.rounded(torch.where(tensor > 0, relative, 0.0), tensor)

    def rounded(self, relative: torch.Tensor, tensor: torch.Tensor, u: torch.Tensor | None = None) -> Scales:
        """Block scales ``relative`` to that of the tensor, rounded to E4M3 (stochastically by ``u``)."""
        block = E4M3.round(relative, u)
        back = block * tensor
        to = torch.where(back > 0, back.reciprocal(), 0.0).clamp(max=torch.finfo(torch.float32).max)
        return Scales(to, back, E4M3.encode(block).reshape(-1, 1), tensor)

    def unpack(self, packed: torch.Tensor, tensor: torch.Tensor | None) -> torch.Tensor:
        """See :meth:`Scale.unpack`."""
        assert tensor is not None
        return E4M3.decode(packed.reshape(-1)) * tensor


def _bytes(scales: torch.Tensor) -> torch.Tensor:
    return scales.reshape(-1, 1).contiguous().view(torch.uint8)

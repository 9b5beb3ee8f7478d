"""Two refinements of NVFP4: a choice between two scales for each block, and scales corrected by the result.

``FourOverSix``: "Four Over Six", arXiv 2512.02010. ``Eden``: MS-EDEN of "Quartet II", arXiv 2601.22813.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from fractrain.numerics.blocks import PerBlock, Place
from fractrain.numerics.elements import E2M1, Minifloat
from fractrain.numerics.formats import Granularity, Limits, Rounding
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.scales import Scale, Scales, TwoLevel
from fractrain.numerics.stochastic_rounding import NoiseKey, uniform

BY_16 = PerBlock(1, 16)
ROOM = 256.0  # largest block scale before a scale is made larger: E4M3 holds 448


@dataclass(frozen=True)
class FourOverSix(Scaled):
    """NVFP4 that gives each block the scale by which its largest value becomes 6 or 4, whichever errs less."""

    granularity: Granularity = BY_16
    element: Minifloat = E2M1
    scale: Scale = field(default_factory=lambda: TwoLevel(bound=ROOM))

    @property
    def name(self) -> str:
        """As of :class:`Scaled`, with the choice."""
        return f"{super().name} (4 over 6)"

    def scales_of(self, blocks: torch.Tensor, limits: Limits | None, place: Place) -> tuple[Scales, torch.Tensor]:
        """See :meth:`Scaled.scales_of`; of both scales the better."""
        six, measured = super().scales_of(blocks, limits, place)
        assert isinstance(self.scale, TwoLevel)
        assert six.tensor is not None
        amax = blocks.abs().amax((2, 4), keepdim=True).to(torch.float32)
        larger = amax * (1.5 * self.scale.margin) / self.element.max / six.tensor
        four = self.scale.rounded(torch.where(six.tensor > 0, larger, 0.0), six.tensor)
        errors = [
            (self._elements(blocks, s, None) * s.back - blocks).square().sum((2, 4), keepdim=True) for s in (six, four)
        ]
        take = errors[1] < errors[0]
        packed = torch.where(take.reshape(-1, 1), four.packed, six.packed)
        to, back = (torch.where(take, f, s) for f, s in ((four.to, six.to), (four.back, six.back)))
        return Scales(to, back, packed, six.tensor), measured


@dataclass(frozen=True)
class Eden(Scaled):
    """NVFP4 to nearest, whose scales are then corrected so that ``<x, value> = <x, x>``, and rounded stochastically.

    Unbiased over random rotations of ``x`` (:class:`fractrain.numerics.rotation.Rotated`), with less error than
    stochastic rounding of the elements.

    Attributes:
        group: neighbouring blocks that share a correction, that of ``group x 16`` values.
        released: take the inner products of the codes, as the authors' code does, not of the values: then blocks of
            different scales count alike, and the mean is off by 0.06 %.
    """

    granularity: Granularity = BY_16
    rounding: Rounding = "stochastic"
    element: Minifloat = E2M1
    scale: Scale = field(default_factory=lambda: TwoLevel(margin=17 / 16 * 0.93, bound=ROOM))
    group: int = 8
    released: bool = False

    @property
    def name(self) -> str:
        """As of :class:`Scaled`, with the correction."""
        return f"{super().name} (EDEN)"

    def neighbours(self, *_: object) -> None:  # type: ignore[override]
        """None: the scales are known only after rounding."""
        return

    def _rounded(
        self, blocks: torch.Tensor, scales: Scales, shape: torch.Size, key: NoiseKey | None
    ) -> tuple[torch.Tensor, Scales]:
        assert isinstance(self.scale, TwoLevel)
        assert scales.tensor is not None
        q = self._elements(blocks, scales, None)
        relative = scales.back / torch.where(scales.tensor > 0, scales.tensor, 1.0)
        unit = 1.0 if self.released else relative.to(blocks.dtype)  # of the tensor's scale: no overflow in the squares
        v, w = blocks * scales.to.to(blocks.dtype) * unit, q * unit
        own, with_q = self._summed(v * v), self._summed(v * w)
        correction = torch.where(with_q > 0, own / with_q, 1.0)
        corrected = (relative * correction).to(torch.float32)
        if key is None:
            return q, self.scale.rounded(corrected, scales.tensor)
        numbers = torch.arange(corrected.numel(), device=blocks.device).view(corrected.shape)
        drawn = uniform(replace(key, base=0), numbers)
        return q, self.scale.rounded(corrected, scales.tensor, drawn)

    def _summed(self, products: torch.Tensor) -> torch.Tensor:
        """Sums over the blocks of a group, spread over its blocks ``[G, block rows, 1, block columns, 1]``."""
        sums = products.sum((2, 4), keepdim=True)
        axis = 1 if self.block.rows > self.block.cols else 3
        count = sums.shape[axis]
        pad = [0] * (2 * (sums.dim() - 1 - axis)) + [0, -count % self.group]
        whole = torch.nn.functional.pad(sums, pad)
        shape = [*whole.shape[:axis], -1, self.group, *whole.shape[axis + 1 :]]
        whole = whole.reshape(shape).sum(axis + 1)
        return whole.repeat_interleave(self.group, axis).narrow(axis, 0, count)

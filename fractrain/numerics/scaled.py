"""Formats of elements with scales: FP8, MX, NVFP4, INT8 and INT4 blocks.

:class:`Scaled` is an element format, a scale rule and the blocks that share a scale. It has a fixed width and, unlike
:class:`fractrain.numerics.formats.Affine`, no uniform grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from fractrain.numerics.backend import Kept, backend_for
from fractrain.numerics.blocks import ACTIVATION, PerBlock, Place, cut, from_matrices, joined, matrices
from fractrain.numerics.elements import E4M3, Minifloat
from fractrain.numerics.formats import Bits, Format, Limits, Rounded
from fractrain.numerics.scales import Multiplier, Scale, Scales
from fractrain.numerics.stochastic_rounding import NoiseKey, element_numbers, uniform

WHOLE = PerBlock(0, 0)


@dataclass
class BlockCodes(Kept):
    """A quantized tensor as it is kept for backward: codes of the elements and scales of the blocks, in one buffer.

    Attributes:
        codes: uint8, flat: codes (two to a byte where they have four bits), then the packed scales.
        format: what they are codes of.
        shape: of the tensor.
        place: which operand it is.
        tensor: scale of the whole tensor, where the rule has one.
    """

    format: Scaled
    shape: torch.Size
    place: Place
    tensor: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """The values, float32, 4-D ones in channels-last memory."""
        return self.format.restore(self)

    def nbytes(self) -> int:
        """Bytes kept."""
        return self.codes.untyped_storage().nbytes() + (0 if self.tensor is None else 4)


@dataclass(frozen=True)
class Scaled(Format):
    """Elements with a scale per block.

    Attributes:
        element: format of the elements.
        scale: rule for the scales.
        granularity: ``PerTensor()`` or ``PerBlock``.
    """

    element: Minifloat = E4M3
    scale: Scale = field(default_factory=Multiplier)

    @property
    def name(self) -> str:
        """Element and scale: ``e4m3/e8m0``."""
        return f"{self.element.name}/{self.scale.name}"

    @property
    def bits(self) -> int:
        """Width of an element; an operand cannot have another."""
        return self.element.bits

    def points(self, bits: int) -> int:
        """As :meth:`Format.points`; a format of powers of two may have one value more than its codes."""
        return max(1 << bits, 2 * (1 << (self.element.code_bits - 2)) + 1 if self.element.code_bits > bits else 0)

    @property
    def block(self) -> PerBlock:
        """The blocks, whatever the granularity's kind."""
        return self.granularity if isinstance(self.granularity, PerBlock) else WHOLE

    @property
    def spans_samples(self) -> bool:
        """Whether a scale depends on elements of all samples of the batch."""
        return self.block.rows == 0 or self.scale.whole

    def scale_bits(self, shape: torch.Size, weight: bool) -> float:
        """See :meth:`Format.scale_bits`; activations and errors have as many rows as there are."""
        rows, cols = self.block.rows, self.block.cols
        if self.block == WHOLE or (rows == 0 and not weight):
            return 0.0
        m = matrices(torch.empty(shape, device="meta"), Place("W" if weight else "A"), self.block).shape
        across = -(-m[2] // (cols or m[2])) / m[2]
        down = -(-m[1] // (rows or m[1])) / m[1] if weight else 1 / rows
        return self.scale.bits * across * down

    def flipped(self) -> Scaled:
        """For the transposed operand."""
        return replace(self, granularity=self.block.flipped()) if self.block != WHOLE else self

    def limits(self, x: torch.Tensor, kernels: str = "auto") -> Limits:
        """Minus and plus the largest magnitude of the tensor."""
        amax = x.abs().amax()
        return -amax, amax

    def quantize(
        self, x: torch.Tensor, bits: Bits, noise: NoiseKey | None = None, limits: Limits | None = None,
        place: Place = ACTIVATION,
    ) -> Rounded:  # fmt: skip
        """See :meth:`Format.quantize`. Given limits take the place of the measured ones where one scale holds for all.

        The limits returned are the measured ones.
        """
        m = matrices(x, place, self.block)
        known = None if limits is None or self.block != WHOLE else torch.maximum(limits[0].abs(), limits[1].abs())
        fast = backend_for(m.device, place.kernels).quantize_blocks(self, m, noise, known, place)
        if fast is not None:
            values = from_matrices(fast.values.view(m.shape), x.shape, place, self.block)
            codes = None
            if fast.codes is not None:
                codes = BlockCodes(fast.codes, self, x.shape, replace(place, reduce=None), fast.tensor)
            return Rounded(values, codes, (-fast.amax, fast.amax))
        blocks = cut(m, self.block)
        scales, amax = self.scales_of(blocks, limits, place)
        q, scales = self._rounded(blocks, scales, m.shape, noise)
        values = from_matrices(joined(q * scales.back.to(x.dtype), m.shape), x.shape, place, self.block)
        kept = self._kept(joined(q, m.shape), scales, x.shape, place) if place.keep else None
        return Rounded(values, kept, (-amax, amax))

    def groups(self, values: torch.Tensor, place: Place = ACTIVATION) -> torch.Tensor:
        """See :meth:`Format.groups`."""
        return cut(matrices(values, place, self.block), self.block).transpose(2, 3).flatten(3).flatten(0, 2)

    def neighbours(
        self, x: torch.Tensor, limits: Limits | None = None, place: Place = ACTIVATION
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Format.neighbours`."""
        m = matrices(x, place, self.block)
        blocks = cut(m, self.block)
        scales, _ = self.scales_of(blocks, limits, place)
        below, above = (
            from_matrices(joined(self._elements(blocks, scales, u) * scales.back, m.shape), x.shape, place, self.block)
            for u in (torch.ones_like(m), torch.zeros_like(m))  # never up, and up where there is a fraction
        )
        return below, above

    def scales_of(self, blocks: torch.Tensor, limits: Limits | None, place: Place) -> tuple[Scales, torch.Tensor]:
        """Scales of blocks as :func:`cut` makes them, and the largest magnitude of the tensor.

        ``limits`` take the place of the measured ones where one scale holds for all.
        """
        amax = blocks.abs().amax((2, 4), keepdim=True)
        whole = measured = amax.amax()
        if place.reduce is not None:
            whole = place.reduce(whole)
            amax = place.reduce(amax) if self.block.rows == 0 and not place.rows else amax
        if limits is not None and self.block == WHOLE:
            amax = torch.maximum(limits[0].abs(), limits[1].abs()).to(amax).reshape(1, 1, 1, 1, 1).expand(amax.shape)
        return self.scale.scales(amax, self.element, whole), measured

    def _rounded(
        self, blocks: torch.Tensor, scales: Scales, shape: torch.Size, key: NoiseKey | None
    ) -> tuple[torch.Tensor, Scales]:
        """The elements in units of the scales, and the scales, which may depend on them.

        ``shape`` is that of the matrices the blocks were cut from.
        """
        u = None if key is None else uniform(key, element_numbers(shape, blocks.device))
        return self._elements(blocks, scales, u), scales

    def _elements(self, blocks: torch.Tensor, scales: Scales, u: torch.Tensor | None) -> torch.Tensor:
        noise = None if u is None else cut(u.to(blocks.dtype), self.block)
        return self.element.round(blocks * scales.to.to(blocks.dtype), noise)

    def restore(self, kept: BlockCodes) -> torch.Tensor:
        """Values of what was kept."""
        shape = matrices(torch.empty(kept.shape, device="meta"), kept.place, self.block).shape
        packed_in_pairs = self.element.code_bits == 4
        count = -(-shape.numel() // 2) if packed_in_pairs else shape.numel()
        codes = kept.codes[:count]
        groups, high, wide = shape[0], self.block.rows or shape[1], self.block.cols or shape[2]
        counts = (groups, -(-shape[1] // high), 1, -(-shape[2] // wide), 1)
        packed = kept.codes[count:].view(torch.Size(counts).numel(), -1)
        back = self.scale.unpack(packed, kept.tensor).view(counts)
        fast = backend_for(codes.device, kept.place.kernels).restore_blocks(self, codes, back, shape, kept.place)
        if fast is not None:
            return from_matrices(fast, kept.shape, kept.place, self.block)
        if packed_in_pairs:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).reshape(-1)[: shape.numel()]
        q = self.element.decode(codes.view(shape))
        blocks = cut(q, self.block)
        return from_matrices(joined(blocks * back, shape), kept.shape, kept.place, self.block)

    def _kept(self, q: torch.Tensor, scales: Scales, shape: torch.Size, place: Place) -> BlockCodes:
        codes = self.element.encode(q).reshape(-1)
        if self.element.code_bits == 4:
            codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
            codes = codes[:, 0] | codes[:, 1] << 4
        place = replace(place, reduce=None)
        return BlockCodes(torch.cat([codes, scales.packed.reshape(-1)]), self, shape, place, scales.tensor)

"""Random Hadamard rotations around a format: rotate, round, rotate back.

With an orthogonal ``H`` along the reduction, ``Q(H A)^T Q(H E)`` has the expectation of ``A^T E`` and spreads outliers
over a block. Values are rotated back after rounding, ``H^T Q(H A)``, so that products, and convolutions too, read plain
operands: ``(H^T Q(H A))^T (H^T Q(H E)) = Q(H A)^T Q(H E)``, the product that a machine does on rotated operands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from fractrain.numerics.backend import Kept
from fractrain.numerics.blocks import ACTIVATION, PerBlock, Place, cut, from_matrices, joined, matrices
from fractrain.numerics.formats import Bits, Format, Limits, Rounded
from fractrain.numerics.scaled import Scaled
from fractrain.numerics.stochastic_rounding import NoiseKey, noise_key, uniform

FIXED = noise_key(0, 0, "signs of rotations")


@dataclass
class RotatedCodes(Kept):
    """Codes of a rotated tensor.

    Attributes:
        kept: those of the rotated matrices.
        format, shape, place: of the tensor before it was rotated.
        key: see :meth:`Rotated.signs`.
    """

    kept: Kept
    format: Rotated
    shape: torch.Size
    place: Place
    key: NoiseKey | None

    def values(self) -> torch.Tensor:
        """See :meth:`Kept.values`."""
        rotated = replace(self.kept, codes=self.codes).values()
        return self.format.rotated_back(rotated, self.shape, self.place, self.key)

    def nbytes(self) -> int:
        """Bytes kept."""
        return replace(self.kept, codes=self.codes).nbytes()


@dataclass(frozen=True)
class Rotated(Format):
    """A format whose values are rounded after a random Hadamard rotation along the blocks' longer side.

    Beyond the last whole rotation rows or columns are padded with zeros; what rounding leaves there is dropped.

    Attributes:
        inner: the format of the rotated values; has blocks.
        size: of the rotation, a power of two.
        fresh: draw signs anew in every step (where the rounding has noise), or use one vector of signs throughout.
    """

    inner: Format = field(default_factory=lambda: Scaled(PerBlock(1, 32)))
    size: int = 32
    fresh: bool = False

    @property
    def name(self) -> str:
        """With the size of the rotation: ``e2m1/e4m3 (rotated by 16)``."""
        return f"{self.inner.name} (rotated by {self.size})"

    @property
    def bits(self) -> int | None:
        """Of the inner format."""
        return self.inner.bits

    @property
    def spans_samples(self) -> bool:
        """Of the inner format."""
        return self.inner.spans_samples

    def scale_bits(self, shape: torch.Size, weight: bool) -> float:
        """Of the inner format."""
        return self.inner.scale_bits(shape, weight)

    def flipped(self) -> Rotated:
        """For the transposed operand."""
        inner = self.inner.flipped()
        return replace(self, inner=inner, granularity=inner.granularity)

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", self.inner.granularity)
        object.__setattr__(self, "rounding", self.inner.rounding)

    @property
    def _cuts(self) -> PerBlock:
        """Blocks of one rotation."""
        g = self.granularity
        assert isinstance(g, PerBlock)
        return PerBlock(self.size, 1) if g.rows > g.cols else PerBlock(1, self.size)

    def limits(self, x: torch.Tensor, kernels: str = "auto") -> Limits:
        """Minus and plus the largest magnitude of the tensor."""
        amax = x.abs().amax()
        return -amax, amax

    def quantize(
        self, x: torch.Tensor, bits: Bits, noise: NoiseKey | None = None, limits: Limits | None = None,
        place: Place = ACTIVATION,
    ) -> Rounded:  # fmt: skip
        """See :meth:`Format.quantize`; the limits returned are those of the rotated tensor."""
        blocks = cut(matrices(x, place, self._cuts), self._cuts)
        rotated = joined(self._turn(blocks, self.signs(noise, x.device)), _padded(blocks))
        inner = replace(place, role="A", rows=rotated.shape[1] if rotated.shape[0] > 1 else 0)
        done = self.inner.quantize(rotated.flatten(0, 1), bits, noise, limits, inner)
        values = self.rotated_back(done.values, x.shape, place, noise)
        kept = None
        if done.codes is not None:
            kept = RotatedCodes(
                done.codes.codes, done.codes.emptied(), self, x.shape, replace(place, reduce=None), noise
            )
        return Rounded(values, kept, done.limits)

    def rotated_back(self, values: torch.Tensor, shape: torch.Size, place: Place, key: NoiseKey | None) -> torch.Tensor:
        """Values of the tensor from those of the rotated matrices ``[matrices x rows, columns]``."""
        m = matrices(torch.empty(shape, device="meta"), place, self._cuts).shape
        padded = _padded(cut(torch.empty(m, device="meta"), self._cuts))
        blocks = cut(values.reshape(padded), self._cuts)
        turned = self._turn(blocks, self.signs(key, values.device), back=True)
        return from_matrices(joined(turned, m), shape, place, self._cuts)

    def signs(self, key: NoiseKey | None, device: torch.device) -> torch.Tensor:
        """The signs of the rotation, float32 ``[size]``: of the step, where they are fresh, else always the same."""
        if key is None or not self.fresh:
            return _fixed_signs(self.size, device)
        return _signs(NoiseKey(key.k0, key.k1 ^ FIXED.k1), self.size, device)

    def _turn(self, blocks: torch.Tensor, signs: torch.Tensor, back: bool = False) -> torch.Tensor:
        """Blocks ``[G, block rows, rows, block columns, columns]`` times ``H diag(signs)`` or its inverse."""
        matrix = hadamard(self.size).to(blocks) * signs.to(blocks)
        matrix = matrix.T if back else matrix
        if blocks.shape[2] == 1:
            return blocks @ matrix.T
        return (matrix @ blocks.flatten(3)).view(blocks.shape)


def _padded(blocks: torch.Tensor) -> torch.Size:
    """Shape of the matrices that blocks make up, padding included."""
    return torch.Size((blocks.shape[0], blocks.shape[1] * blocks.shape[2], blocks.shape[3] * blocks.shape[4]))


def _signs(key: NoiseKey, size: int, device: torch.device) -> torch.Tensor:
    return torch.where(uniform(key, torch.arange(size, device=device)) < 0.5, -1.0, 1.0)


@lru_cache(maxsize=16)
def _fixed_signs(size: int, device: torch.device) -> torch.Tensor:
    return _signs(FIXED, size, device)


@lru_cache(maxsize=16)
def hadamard(size: int) -> torch.Tensor:
    """Orthonormal Hadamard matrix (Sylvester's), float32 ``[size, size]``; ``size`` a power of two."""
    h = torch.ones(1, 1)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return torch.mul(h, size**-0.5)

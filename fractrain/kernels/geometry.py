"""What a convolution on integer codes is, whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Geometry:
    """What a convolution is but for its batch (one group, no dilation, zero padding).

    Attributes:
        image: channels, height and width of the input.
        filters: channels of the output.
        kernel, stride, padding: height and width of each.
    """

    image: tuple[int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @cached_property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        image, parts = self.image[1:], zip(self.kernel, self.stride, self.padding, strict=True)
        h, w = ((n + 2 * p - k) // s + 1 for n, (k, s, p) in zip(image, parts, strict=True))
        return h, w

    @cached_property
    def terms(self) -> int:
        """Products per output element."""
        return self.image[0] * self.kernel[0] * self.kernel[1]

    @cached_property
    def macs(self) -> int:
        """Products per sample."""
        h, w = self.output
        return self.terms * self.filters * h * w

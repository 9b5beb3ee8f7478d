"""The common case in one call of a backend: measure the range, derive the grid and quantize, for uniform formats.

Same bits as the general path (``Format.limits`` + ``Format.grid`` + ``quantize``), which spends more time on
one-element tensors than on the data when layers are small, and on a GPU waits for the range.
"""

from __future__ import annotations

import torch

from fractrain.numerics.backend import Kernels, Measured, Uniform, backend_for
from fractrain.numerics.formats import Affine, Bits, Format, PerAxis, PerTensor, Symmetric
from fractrain.numerics.stochastic_rounding import NoiseKey

ROWS = PerAxis(0)


def quantize_measured(
    x: torch.Tensor, fmt: Format, bits: Bits, noise: NoiseKey | None, code_bits: int, kernels: Kernels,
    known: tuple[float, float] | None = None, only_codes: bool = False,
) -> Measured | None:  # fmt: skip
    """Quantize ``x``, or return None where this path does not apply.

    Applies to :class:`Affine` and :class:`Symmetric` themselves (not subclasses), one width, one grid per tensor or per
    index of the first axis, statistic ``extreme``, dense float32; on the CPU also to :class:`Affine` per tensor with
    one width per sample.

    Args:
        x: the tensor.
        fmt, bits: format and width.
        noise: key for stochastic rounding, or None.
        code_bits: as in :func:`fractrain.numerics.quantize.quantize`; samples of greater width get values only.
        kernels: as there.
        known: range to use instead of measuring it (per tensor only).
        only_codes: leave the values out (they can be restored from the codes).
    """
    per_row = fmt.granularity == ROWS
    if type(fmt) not in (Affine, Symmetric) or fmt.statistic != "extreme":
        return None
    if isinstance(bits, torch.Tensor) and (per_row or type(fmt) is not Affine or bits.numel() != x.shape[0]):
        return None
    if not (per_row and known is None) and not isinstance(fmt.granularity, PerTensor):
        return None
    form = Uniform(type(fmt) is Symmetric, per_row)
    return backend_for(x.device, kernels).quantize_measured(x, form, bits, noise, code_bits, known, only_codes)

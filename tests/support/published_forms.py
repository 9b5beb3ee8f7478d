"""One number out of the published rows, and the closed forms with which papers compute such numbers from integers."""

from __future__ import annotations

from fractrain.cost.published import PublishedRow, rows


def published_row(**where: str) -> PublishedRow:
    """The only published row with these coordinates: letters and digits count, and no text in parentheses."""
    (row,) = (r for r in rows() if all(_letters(getattr(r, key)) == _letters(value) for key, value in where.items()))
    return row


def _letters(text: str) -> str:
    return "".join(c for c in text.split("(")[0].casefold() if c.isalnum())


def published_macs(cp_percent: float, iterations: int, batch_size: int, forward_macs: float) -> float:
    """MACs of FracTrain's tables, up to the best iteration; from the authors' ``dfq_acc_mac.py``.

    The factor 3 stands for FW, EB and GC; the authors count every batch as full.
    """
    return cp_percent / 100.0 * iterations * batch_size * 3 * forward_macs


def bitops(forward_macs: int, images: int, fw_bits: int, bw_bits: int, weight_bits: int | None = None) -> int:
    """BitOPs of CPT's tables: ``MAC * (a*w + g*w + a*g) * images``; 64000 * 128 images, of the whole training."""
    a, g, w = fw_bits, bw_bits, fw_bits if weight_bits is None else weight_bits
    return forward_macs * images * (a * w + g * w + a * g)

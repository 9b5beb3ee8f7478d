"""Where the work of a run goes: by evaluation period, part of the model and product, from its ledger."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.sums import GATE, block_of

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.cost.ledger import Ledger

PRODUCTS: Final = {"FW": "forward", "EB": "error", "GC": "weight gradient"}
OPERANDS: Final = {"FW": ("A", "W"), "EB": ("E", "W"), "GC": ("A", "E")}
GATES: Final = "gates"


def breakdown(ledger: Ledger, phase: str = "train") -> pd.DataFrame:
    """Return the counted work as a DataFrame, a line for each period, part and product.

    Args:
        ledger: of a run.
        phase: ``train`` or ``eval``.

    Returns:
        Columns ``epoch`` (from 0), ``part`` (a gateable block, a layer outside all blocks, or ``gates``), ``product``
        (FW, EB, GC), ``macs`` (skipped ones included), ``effective`` (32-bit equivalents) and ``bits1``, ``bits2``:
        mean widths of the two operands, weighted by MACs; a skipped product counts with 0 bits. Parts come in the order
        of the model's blocks, the others after them.
    """
    import pandas as pd

    blocks = list(ledger.meta.get("blocks") or ())
    known = frozenset(blocks)
    sums: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    parts: dict[str, str] = {}
    for row in ledger.rows():
        if row.phase != phase:
            continue
        if row.layer not in parts:
            parts[row.layer] = GATES if GATE in row.layer.split(".") else block_of(row.layer, known) or row.layer
        s = sums[row.epoch, parts[row.layer], row.product]
        for place, factor in enumerate((1, row.bits1 * row.bits2, row.bits1, row.bits2)):
            s[place] += row.macs * factor
    order = {part: place for place, part in enumerate([*blocks, *sorted({*parts.values()} - known - {GATES}), GATES])}
    keys = sorted(sums, key=lambda key: (key[0], order[key[1]], list(PRODUCTS).index(key[2])))
    lines = [(*key, sums[key][0], sums[key][1] / FLOAT_MAC_BITS, *(n / max(1, sums[key][0]) for n in sums[key][2:]))
             for key in keys]  # fmt: skip
    return pd.DataFrame(lines, columns=["epoch", "part", "product", "macs", "effective", "bits1", "bits2"])


def mean_bits(work: pd.DataFrame) -> pd.DataFrame:
    """Return the mean widths of A, W and E by period, over all parts that are quantized at some time.

    Args:
        work: from :func:`breakdown`.

    Returns:
        A DataFrame with index ``epoch`` and columns A (of FW), W (of FW) and E (of EB), weighted by MACs.
    """
    import pandas as pd

    low = work.groupby("part")[["bits1", "bits2"]].transform("min").min(axis=1) < 32
    work = work[low & (work["part"] != GATES)]
    curves = {}
    for operand, product, column in (("A", "FW", "bits1"), ("W", "FW", "bits2"), ("E", "EB", "bits1")):
        own = work[work["product"] == product]
        total = (own[column] * own["macs"]).groupby(own["epoch"]).sum()
        curves[operand] = total / own["macs"].groupby(own["epoch"]).sum()
    return pd.DataFrame(curves)


def bits_by_part(work: pd.DataFrame) -> pd.DataFrame:
    """Return the mean width of the activations in forward products: a line for each part, a column for each period."""
    own = work[(work["product"] == "FW") & (work["part"] != GATES)]
    return own.pivot(index="part", columns="epoch", values="bits1").reindex(own["part"].drop_duplicates())

"""Where the work of a run goes: by evaluation period, part of the model and product, from its ledger."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.cost.metrics import GATE, block_of

if TYPE_CHECKING:
    import pandas as pd

    from fractrain.cost.ledger import Ledger

PRODUCTS: Final = {"FW": "forward", "EB": "error", "GC": "weight gradient"}
OPERANDS: Final = {"FW": ("A", "W"), "EB": ("E", "W"), "GC": ("A", "E")}
GATES: Final = "gates"
FLOAT_BITS: Final = 32
NAMED: Final = {"A": ("FW", "bits1"), "W": ("FW", "bits2"), "E": ("EB", "bits1")}
"""Where the width of each operand is read: the product, and the column of :func:`breakdown`."""


class ModelParts:
    """The part of a model that each layer belongs to: its gateable block, itself outside of all, or ``gates``."""

    def __init__(self, ledger: Ledger) -> None:
        self._blocks = list(ledger.meta.get("blocks") or ())
        self._known = frozenset(self._blocks)
        self._parts: dict[str, str] = {}

    def __call__(self, layer: str) -> str:
        """The part of a layer."""
        if layer not in self._parts:
            self._parts[layer] = GATES if GATE in layer.split(".") else block_of(layer, self._known) or layer
        return self._parts[layer]

    def in_order(self) -> list[str]:
        """All parts seen so far and all blocks, in the order of the model's blocks, the others after them."""
        return [*self._blocks, *sorted({*self._parts.values()} - self._known - {GATES}), GATES]


def breakdown(ledger: Ledger) -> pd.DataFrame:
    """Return the counted work of training as a DataFrame, a line for each period, part and product.

    Returns:
        Columns ``epoch`` (from 0), ``part`` (a gateable block, a layer outside all blocks, or ``gates``), ``product``
        (FW, EB, GC), ``macs`` (skipped ones included), ``effective`` (32-bit equivalents) and ``bits1``, ``bits2``:
        mean widths of the two operands, weighted by MACs; a skipped product counts with 0 bits. Parts come in the order
        of the model's blocks, the others after them.
    """
    import pandas as pd

    part_of = ModelParts(ledger)
    sums: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in ledger.rows():
        if row.phase == "train":
            s = sums[row.epoch, part_of(row.layer), row.product]
            for place, factor in enumerate((1, row.bits1 * row.bits2, row.bits1, row.bits2)):
                s[place] += row.macs * factor
    order = {part: place for place, part in enumerate(part_of.in_order())}
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

    low = work.groupby("part")[["bits1", "bits2"]].transform("min").min(axis=1) < FLOAT_BITS
    work = work[low & (work["part"] != GATES)]
    curves = {}
    for operand, (product, column) in NAMED.items():
        own = work[work["product"] == product]
        total = (own[column] * own["macs"]).groupby(own["epoch"]).sum()
        curves[operand] = total / own["macs"].groupby(own["epoch"]).sum()
    return pd.DataFrame(curves)


def bits_by_part(work: pd.DataFrame, operand: str = "A") -> pd.DataFrame:
    """Return the mean width of an operand (of :data:`NAMED`): a line for each part, a column for each period."""
    product, column = NAMED[operand]
    own = work[(work["product"] == product) & (work["part"] != GATES)]
    return own.pivot(index="part", columns="epoch", values=column).reindex(own["part"].drop_duplicates())


def width_shares(ledger: Ledger) -> pd.DataFrame:
    """Return how often a part ran at which width: shares of its forward MACs in training, in percent.

    Returns:
        A line for each quantized part, a column for each width of its activations, ascending; 0 bits are skipped
        products. Empty where no part had several widths within one period (chosen by a gate for each sample, or by a
        map for each tile).
    """
    part_of = ModelParts(ledger)
    macs: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    seen: dict[tuple[str, int], set[int]] = defaultdict(set)
    for row in ledger.rows():
        part = part_of(row.layer)
        if row.phase == "train" and row.product == "FW" and part != GATES and row.macs:
            macs[part][row.bits1] += row.macs
            seen[row.layer, row.epoch].add(row.bits1)
    import pandas as pd

    if all(len(widths) == 1 for widths in seen.values()):
        return pd.DataFrame()
    lines = {part: macs[part] for part in part_of.in_order() if part in macs and min(macs[part]) < FLOAT_BITS}
    found = pd.DataFrame.from_dict(lines, orient="index").fillna(0)
    return (100 * found.div(found.sum(axis=1), axis=0)).sort_index(axis=1)


def quantized_parts(work: pd.DataFrame) -> list[str]:
    """Return the parts whose products ever have an operand below full precision, in order.

    Args:
        work: from :func:`breakdown`.
    """
    low = work[(work[["bits1", "bits2"]].min(axis=1) < FLOAT_BITS) & (work["part"] != GATES)]
    return [part for part in work["part"].drop_duplicates() if part in set(low["part"])]

"""What layers tell the ledger, against torch's FLOP counter, slow loops over samples, and loops over element pairs."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import slow_sum, tensor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fractrain.cost.counting import round_to_sum
from fractrain.cost.ledger import Ledger
from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.convert import convert
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine, PerTile, expand_tiles, tile_counts
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision


def counts(ledger: Ledger, product: str | None = None) -> dict[tuple[int, int], int]:
    out: Counter[tuple[int, int]] = Counter()
    for r in ledger.rows():
        if product in (None, r.product):
            out[r.bits1, r.bits2] += r.macs
    return dict(out)


class Mixed(nn.Module):
    """Stem, stride, depthwise, grouped, 1x1, dilation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.pointwise = nn.Conv2d(12, 6, 1)
        self.dilated = nn.Conv2d(6, 4, 3, padding=2, dilation=2)
        self.fc = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for m in (self.stem, self.down, self.depthwise, self.grouped, self.pointwise, self.dilated):
            x = torch.relu(m(x))
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def flops(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """FLOPs (two per MAC) of forward and backward by torch's counter."""
    with FlopCounterMode(display=False) as fw:
        y = model(x)
    with FlopCounterMode(display=False) as bw:
        y.sum().backward()
    backward = bw.get_total_flops()
    for name in ("depthwise", "grouped"):  # torch's formula for the weight gradient leaves out the groups
        layer = getattr(model, name)
        if layer.weight.requires_grad:
            (own,) = fw.get_flop_counts()[f"{type(model).__name__}.{name}"].values()
            backward -= (layer.groups - 1) * own
    return fw.get_total_flops(), backward


@pytest.mark.parametrize("frozen", [(), ("grouped",), ("stem", "down", "depthwise"), ("fc", "stem")], ids=str)
def test_constant_widths_equal_torchs_flop_counter(frozen: tuple[str, ...]) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        net = Mixed()
        for name in frozen:
            getattr(net, name).weight.requires_grad_(False)
            if getattr(net, name).bias is not None:
                getattr(net, name).bias.requires_grad_(False)
        return net

    x = tensor((5, 3, 12, 12), 0)
    forward, backward = flops(model(), x)
    ledger = Ledger()
    net = convert(model(), fractrain_precision(4, 5, 7), QuantState(0, ledger), keep_last=False)
    executed = flops(net, x)
    assert executed == (forward, backward)  # neither more nor less is computed than by the plain model
    fw, eb, gc = (counts(ledger, p) for p in ("FW", "EB", "GC"))
    assert sum(fw.values()) * 2 == forward
    assert (sum(eb.values()) + sum(gc.values())) * 2 == backward
    assert (set(fw), set(eb), set(gc)) == ({(4, 5)}, {(7, 5)}, {(4, 7)})
    by_layer = {(r.layer, r.product) for r in ledger.rows()}
    assert ("stem", "EB") not in by_layer
    for name in frozen:
        assert (name, "GC") not in by_layer


def test_layers_kept_in_float_count_at_32_bits() -> None:
    ledger = Ledger()
    net = convert(Mixed(), fractrain_precision(8, 8, 8), QuantState(0, ledger), keep_first=True)
    net(tensor((2, 3, 12, 12), 0)).sum().backward()
    widths = {(r.layer, r.product): (r.bits1, r.bits2) for r in ledger.rows()}
    assert widths["stem", "FW"] == widths["fc", "EB"] == widths["fc", "GC"] == (32, 32)
    assert widths["down", "EB"] == (8, 8)


def test_float_operands_of_a_quantized_layer_count_at_32_bits() -> None:
    ledger = Ledger()
    p = Precision(fw_a=Operand(8), fw_w=Operand(4), eb_e=Operand(6), eb_w=Operand(4), gc_a=Operand(8), gc_e=FLOAT)
    layer = QuantLinear(nn.Linear(3, 4), p, QuantState(0, ledger), "l")
    layer(tensor((5, 3), 0).requires_grad_())
    assert {(r.product, r.bits1, r.bits2, r.macs) for r in ledger.rows()} == {
        ("FW", 8, 4, 60), ("EB", 6, 4, 60), ("GC", 8, 32, 60)
    }  # fmt: skip


def test_evaluation_counts_forward_only_and_in_its_own_phase() -> None:
    ledger = Ledger()
    net = convert(Mixed(), fractrain_precision(8, 8, 8), QuantState(0, ledger)).eval()
    ledger.begin("eval", 3)
    with torch.no_grad():
        net(tensor((2, 3, 12, 12), 0))
    assert {(r.phase, r.epoch, r.product) for r in ledger.rows()} == {("eval", 3, "FW")}
    ledger.enabled = False
    before = ledger.digest()
    net(tensor((2, 3, 12, 12), 0))
    assert ledger.digest() == before


def test_a_precision_changed_under_way_counts_from_then_on() -> None:
    ledger = Ledger()
    layer = QuantLinear(nn.Linear(3, 4), fractrain_precision(8, 8, 8), QuantState(0, ledger), "l")
    layer(tensor((5, 3), 0))
    layer.precision = layer.precision.with_bits(a=4)
    layer(tensor((2, 3), 0))
    layer.precision = layer.precision.with_bits(a=8)
    layer(tensor((1, 3), 0))
    assert counts(ledger, "FW") == {(8, 8): 12 * 6, (4, 8): 12 * 2}


# -- widths per sample -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conv", "depthwise", "linear", "sequence"])
def test_widths_per_sample_equal_a_loop_over_samples(kind: str) -> None:
    a = torch.tensor([2, 8, 0, 3, 8, 16])
    e = torch.tensor([6, 6, 0, 8, 12, 6])
    ledger = Ledger()
    p = Precision.of(Operand(a), Operand(5), Operand(e))
    state = QuantState(0, ledger)
    if kind in ("conv", "depthwise"):
        groups = 3 if kind == "depthwise" else 1
        layer: Any = QuantConv2d(nn.Conv2d(3, 6, 3, groups=groups), p, state, "l")
        x, macs = tensor((6, 3, 5, 5), 0), 6 * 9 * 9 * (3 // groups)
    elif kind == "linear":
        layer, x, macs = QuantLinear(nn.Linear(4, 7), p, state, "l"), tensor((6, 4), 0), 28
    else:
        layer, x, macs = QuantLinear(nn.Linear(4, 7), p, state, "l"), tensor((6, 3, 4), 0), 28 * 3
    layer(x.requires_grad_()).sum().backward()
    pairs = [(int(i), int(j)) for i, j in zip(a, e, strict=True)]
    assert counts(ledger, "FW") == slow_sum([(i, 5) for i, _ in pairs], macs)
    assert counts(ledger, "EB") == slow_sum([(j, 5) for _, j in pairs], macs)
    assert counts(ledger, "GC") == slow_sum(pairs, macs)


def test_width_maps_of_two_steps_add_up() -> None:
    ledger = Ledger()
    layer = QuantLinear(nn.Linear(4, 7), Precision(), QuantState(0, ledger), "l")
    for widths in ([2, 4], [4, 8, 8]):
        layer.precision = Precision(fw_a=Operand(torch.tensor(widths)))
        layer(tensor((len(widths), 4), 0))
    assert counts(ledger, "FW") == {(2, 32): 28, (4, 32): 56, (8, 32): 56}


# -- widths per tile -------------------------------------------------------------------------------------------------


def tile_operand(shape: tuple[int, ...], tile: PerTile, seed: int) -> Operand:
    gen = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, 7, tile_counts(torch.Size(shape), tile), generator=gen)
    return Operand(torch.where(bits == 2, 0, bits), Affine(tile))


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (3, 4, 7), (2, 2, 3, 7)], ids=str)
@pytest.mark.parametrize("tile", [PerTile(2, 3), PerTile(16, 16), PerTile(1, 1)], ids=str)
@pytest.mark.parametrize("which", ["all", "A", "W", "E", "A per sample"])
def test_widths_per_tile_of_a_linear_layer_equal_a_loop_over_element_pairs(shape, tile, which: str) -> None:
    rows, outs, ins = int(torch.Size(shape[:-1]).numel()), 5, shape[-1]
    x = tensor(shape, 0)
    shape = (shape[0], *((rows // shape[0],) if len(shape) > 2 else ()), ins)  # four axes are tiled as three
    out_shape = (*shape[:-1], outs)
    a = tile_operand(shape, tile, 1) if which in ("all", "A") else Operand(8)
    w = tile_operand((outs, ins), tile, 2) if which in ("all", "W") else Operand(7)
    e = tile_operand(out_shape, tile, 3) if which in ("all", "E", "A per sample") else Operand(6)
    if which == "A per sample":
        a = Operand(torch.arange(2, 2 + shape[0]))
    ledger = Ledger()
    layer = QuantLinear(nn.Linear(ins, outs), Precision.of(a, w, e), QuantState(0, ledger), "l")
    layer(x.requires_grad_())

    def full(op: Operand, s: tuple[int, ...]) -> list[list[int]]:
        if isinstance(op.bits, int):
            return torch.full(s, op.bits).reshape(-1, s[-1]).tolist()
        if not isinstance(op.format.granularity, PerTile):
            return op.bits.view(-1, *([1] * (len(s) - 1))).expand(s).reshape(-1, s[-1]).tolist()
        return expand_tiles(op.bits, torch.Size(s), op.format.granularity).reshape(-1, s[-1]).tolist()

    fa, fw, fe = full(a, shape), full(w, (outs, ins)), full(e, out_shape)
    triples = list(itertools.product(range(rows), range(outs), range(ins)))  # every MAC of each product
    assert counts(ledger, "FW") == slow_sum([(fa[r][i], fw[o][i]) for r, o, i in triples])
    assert counts(ledger, "EB") == slow_sum([(fe[r][o], fw[o][i]) for r, o, i in triples])
    assert counts(ledger, "GC") == slow_sum([(fa[r][i], fe[r][o]) for r, o, i in triples])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 1, "groups": 4, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 4},
        {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1), "groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("tile", [PerTile(2, 1), PerTile(7, 3)], ids=str)
def test_widths_per_tile_of_convolutions_equal_a_loop_over_element_pairs(options: Any, tile: PerTile) -> None:
    n, c, out, h = 2, 4, 8, 5
    conv = nn.Conv2d(c, out, **options)
    shapes = {"A": (n, c, h, h), "W": tuple(conv.weight.shape), "E": tuple(conv(torch.zeros(n, c, h, h)).shape)}
    ops = {k: tile_operand(s, tile, i) for i, (k, s) in enumerate(shapes.items())}
    ledger = Ledger()
    layer = QuantConv2d(conv, Precision.of(ops["A"], ops["W"], ops["E"]), QuantState(0, ledger), "l")
    layer(tensor(shapes["A"], 0).requires_grad_())
    full = {}
    for k, op in ops.items():
        assert isinstance(op.bits, torch.Tensor)
        full[k] = expand_tiles(op.bits, torch.Size(shapes[k]), tile).tolist()
    pairs: dict[str, list[tuple[int, int]]] = {"FW": [], "EB": [], "GC": []}
    per, (_, _, kh, kw) = c // conv.groups, shapes["W"]
    for s, o, i, a, b in itertools.product(range(n), range(out), range(per), range(kh), range(kw)):
        for y, x in itertools.product(range(shapes["E"][2]), range(shapes["E"][3])):
            # a padded position has no width: it counts as the nearest real one
            row = min(max(y * conv.stride[0] + a * conv.dilation[0] - conv.padding[0], 0), h - 1)  # type: ignore[operator]
            col = min(max(x * conv.stride[1] + b * conv.dilation[1] - conv.padding[1], 0), h - 1)  # type: ignore[operator]
            act = full["A"][s][o // (out // conv.groups) * per + i][row][col]
            weight, error = full["W"][o][i][a][b], full["E"][s][o][y][x]
            pairs["FW"].append((act, weight))
            pairs["EB"].append((error, weight))
            pairs["GC"].append((act, error))
    for product, expected in pairs.items():
        assert counts(ledger, product) == slow_sum(expected)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.integers(1, 10**11))
def test_rounding_keeps_the_sum_and_stays_within_one(parts: list[int], total: int) -> None:
    weight = sum(parts) or 1
    x = torch.tensor([p / weight * total for p in parts], dtype=torch.float64)
    if not sum(parts):
        x[0] = total
    out = round_to_sum(x, total)
    assert out.dtype == torch.int64
    assert int(out.sum()) == total
    assert float((out.double() - x).abs().max()) <= 1.0

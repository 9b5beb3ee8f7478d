"""Widths per tile in the ledger, against loops over every single MAC of small convolutions."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.cost.tile_count import Window, output_size, pair_counts
from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.state import QuantState
from fractrain.numerics.formats import Affine
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.tiles import PerTile, expand_tiles, tile_counts

CONVS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (2, 1), "stride": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 4, "groups": 4, "dilation": 2},
    {"kernel_size": 5},
]


def slow(fa, fw, fe, conv):
    """Width pairs of FW, EB and GC by loops over sample, output, channel and kernel position."""
    n, _, height, width = fa.shape
    out, per_group, kh, kw = fw.shape
    _, _, oh, ow = fe.shape
    fa, fw, fe = fa.tolist(), fw.tolist(), fe.tolist()
    pairs = {"FW": Counter(), "EB": Counter(), "GC": Counter()}
    spans = (range(n), range(out), range(oh), range(ow), range(per_group), range(kh), range(kw))
    for s, o, y, x, c, i, j in itertools.product(*spans):
        channel = o // (out // conv.groups) * per_group + c
        row = y * conv.stride[0] - conv.padding[0] + i * conv.dilation[0]
        column = x * conv.stride[1] - conv.padding[1] + j * conv.dilation[1]
        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)  # padding: the nearest position
        a, w, e = fa[s][channel][row][column], fw[o][c][i][j], fe[s][o][y][x]
        pairs["FW"][a, w] += 1
        pairs["EB"][e, w] += 1
        pairs["GC"][a, e] += 1
    return {p: dict(c) for p, c in pairs.items()}


def random_map(shape, tile, seed, rows=None):
    counts = tile_counts(torch.Size(shape), tile)
    gen = torch.Generator().manual_seed(seed)
    return torch.tensor([0, 2, 4, 8])[torch.randint(0, 4, (rows or counts[0], counts[1]), generator=gen)]


def counted(ledger):
    out = {}
    for r in ledger.rows():
        pairs = out.setdefault(r.product, Counter())
        pairs[r.bits1, r.bits2] += r.macs
    return {p: dict(c) for p, c in out.items()}


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("tile", [PerTile(3, 2), PerTile(16, 16), PerTile(1, 1)], ids=str)
def test_convolutions_equal_a_loop_over_every_mac(options, tile):
    conv = nn.Conv2d(4, 6 if options.get("groups", 1) < 3 else 4, bias=False, **options)
    shape = (2, 4, 6, 5)
    out = conv(torch.zeros(shape)).shape
    maps = [random_map(s, tile, k) for k, s in enumerate((shape, conv.weight.shape, out))]
    ledger = Ledger()
    layer = QuantConv2d(conv, Precision.of(*(Operand(m, Affine(tile)) for m in maps)), QuantState(0, ledger), "l")
    layer(torch.randn(shape).requires_grad_())
    fa, fw, fe = (
        expand_tiles(m, torch.Size(s), tile) for m, s in zip(maps, (shape, conv.weight.shape, out), strict=True)
    )
    want = slow(fa, fw, fe, conv)
    assert counted(ledger) == want
    nominal = shape[0] * out[1:].numel() * conv.weight[0].numel()
    assert {sum(pairs.values()) for pairs in want.values()} == {nominal}


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7])
def test_repeated_maps_equal_the_loop_for_any_batch(samples):
    tile = PerTile(4, 2, repeat=True)
    conv = nn.Conv2d(4, 3, 3, padding=1, stride=2, bias=False)
    shape = (samples, 4, 3, 2)  # 6 positions: A repeats after 2 samples; 2 output positions: E after 2
    out = conv(torch.zeros(shape)).shape
    a, w, e = random_map(shape, tile, 1, 3), random_map(conv.weight.shape, tile, 2), random_map(out, tile, 3, 1)
    ledger = Ledger()
    layer = QuantConv2d(conv, Precision.of(*(Operand(m, Affine(tile)) for m in (a, w, e))), QuantState(0, ledger), "l")
    for _ in range(2):  # the second time from what was kept
        layer(torch.randn(shape).requires_grad_())
    full = (expand_tiles(m, torch.Size(s), tile) for m, s in ((a, shape), (w, conv.weight.shape), (e, out)))
    want = slow(*full, conv)
    assert counted(ledger) == {p: {k: 2 * n for k, n in pairs.items()} for p, pairs in want.items()}


def test_a_uniform_map_counts_like_the_constant_and_a_changed_map_counts_anew():
    tile = PerTile(3, 2)
    shape = (2, 4, 5, 5)
    ledgers = []
    for mapped in (False, True):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        ledger = Ledger()
        layer = QuantConv2d(conv, Precision(), QuantState(0, ledger), "l")
        for bits in (4, 8):
            maps = [
                torch.full(tile_counts(torch.Size(s), tile), bits) for s in (shape, conv.weight.shape, (2, 6, 3, 3))
            ]
            layer.precision = Precision.of(*(Operand(m if mapped else bits, Affine(tile)) for m in maps))
            layer(torch.ones(shape).requires_grad_())
        ledgers.append(counted(ledger))
    assert ledgers[0] == ledgers[1]
    assert set(ledgers[0]["FW"]) == {(4, 4), (8, 8)}


def test_an_edited_map_is_seen():
    tile = PerTile(1, 1)
    bits = torch.full((2, 3), 4)
    ledger = Ledger()
    layer = QuantLinear(nn.Linear(3, 2), Precision(fw_a=Operand(bits, Affine(tile))), QuantState(0, ledger), "l")
    layer(torch.ones(2, 3))
    bits[0, 0] = 8
    layer(torch.ones(2, 3))
    assert counted(ledger)["FW"] == {(4, 32): 12 + 10, (8, 32): 2}


def test_three_pairs_by_hand():
    # one channel, 2 pixels in a row, kernel 1x2 with one padded pixel on each side: reads (p0,a) (a,b) (b,p1), where
    # the padding counts like its neighbour: a twice by the left tap, once by the right one; b the other way round
    a = torch.tensor([[[[2, 8]]]])
    w = torch.tensor([[[[4, 2]]]])
    window = Window(kernel=(1, 2), padding=(0, 1))
    assert output_size(2, window, 1) == 3
    assert pair_counts("FW", a, w, window) == {(2, 4): 2, (2, 2): 1, (8, 4): 1, (8, 2): 2}

#!/usr/bin/env bash
# torch 2.15.0, torch.utils.flop_counter.FlopCounterMode: three counts that one would put into a table.
#  1. The backward pass of a convolution with g groups costs 1 + g forward passes, where it does 2: a depthwise one of 8
#     channels 9. (Its formula for the weight's gradient knows no groups.)
#  2. A TransformerEncoderLayer costs nothing in evaluation without gradients: the fused path is one operator that has no
#     formula, and no line says so. With gradients the same layer costs 44,160.
#  3. An nn.LSTM costs nothing, with and without gradients; an nn.GRU of the same size without gradients does.
#
# Guess before the run: 2 forward passes whatever the groups; the same count in evaluation; LSTM and GRU alike.
# Seen: ratios 2, 3, 5, 9 for 1, 2, 4, 8 groups; 44160 and 0; 0 and 4608.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


ratios = []
for groups in (1, 2, 4, 8):
    x, conv = torch.randn(1, 8, 8, 8, requires_grad=True), nn.Conv2d(8, 8, 3, groups=groups)
    forward = flops(lambda: conv(x))
    assert forward == 2 * 8 * 36 * 9 * 8 // groups
    ratios.append((flops(lambda: conv(x).sum().backward()) - forward) / forward)
print("backward / forward for 1, 2, 4, 8 groups:", ratios)
assert ratios == [2.0, 3.0, 5.0, 9.0]

layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
with torch.no_grad():
    without = flops(lambda: layer(x))
print("encoder layer in evaluation, with and without gradients:", flops(lambda: layer(x)), without)
assert (flops(lambda: layer(x)), without) == (44160, 0)

x = torch.randn(3, 2, 8)
with torch.no_grad():
    counts = [flops(lambda kind=kind: kind(8, 8)(x)) for kind in (nn.LSTM, nn.GRU)]
print("LSTM and GRU:", counts)
assert counts == [0, 4608] and flops(lambda: nn.LSTM(8, 8)(x)) == 0
PY

#!/usr/bin/env bash
# torchinfo 1.8.0, thop 0.1.1, ptflops 0.7.5, fvcore 0.1.5 on torch 2.15.0: four counters of MACs, four answers.
#  1. torchinfo counts a linear layer once, however long the sequence is that it runs on: a Transformer's projections
#     lose the factor of the sequence's length.
#  2. torchinfo and thop count a transposed convolution with stride 2 four times: its weights at every output pixel.
#  3. An LSTM costs nothing in fvcore, nn.MultiheadAttention nothing in torchinfo and thop; all without an error.
#  4. ptflops counts one sample whatever the batch is, by its two backends differently: the default one 18 % too much
#     for nn.MultiheadAttention.
#
# Guess before the run: all agree on layers without branches, linear ones on sequences and transposed ones included, and
# differ in attention and recurrent cells only. (Counts of conv, depthwise and 1-D layers do agree.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchvision==0.29.2 torchinfo==1.8.0 \
  thop==0.1.1.post2209072238 ptflops==0.7.5 fvcore==0.1.5.post20221221
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io

import ptflops
import thop
import torch
import torchinfo
from fvcore.nn import FlopCountAnalysis
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, bias=False)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def by_ptflops(model, shape, backend):
    with contextlib.redirect_stdout(io.StringIO()):
        options = {"as_strings": False, "print_per_layer_stat": False, "backend": backend}
        return ptflops.get_model_complexity_info(model, shape[1:], **options)[0]


counters = {
    "torchinfo": lambda m, s: torchinfo.summary(m, input_size=s, verbose=0).total_mult_adds,
    "thop": lambda m, s: thop.profile(m, inputs=(torch.randn(s),), verbose=False)[0],
    "ptflops": lambda m, s: by_ptflops(m, s, "pytorch"),
    "ptflops aten": lambda m, s: by_ptflops(m, s, "aten"),
    "fvcore": lambda m, s: FlopCountAnalysis(m, torch.randn(s)).unsupported_ops_warnings(False).total(),
}
cases = [  # name, module, input, MACs by hand, seen
    ("conv 3x3, 8 to 16, 10x10", nn.Conv2d(8, 16, 3, padding=1, bias=False), (1, 8, 10, 10), 115200, [115200] * 5),
    ("linear 8 to 16, 5 tokens", nn.Linear(8, 16, bias=False), (1, 5, 8), 640, [128, 640, 640, 640, 640]),
    ("linear 8 to 16, batch of 4", nn.Linear(8, 16, bias=False), (4, 8), 512, [512, 512, 128, 128, 512]),
    ("transposed conv, stride 2", nn.ConvTranspose2d(8, 16, 2, stride=2, bias=False), (1, 8, 10, 10), 51200,
     [204800, 204800, 51200, 51200, 51200]),
    ("attention of 16, 5 tokens", SelfAttention(), (1, 5, 16), 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16,
     [0, 0, 6980, 5920, 5920]),
    ("LSTM 8 to 8, 5 tokens", nn.LSTM(8, 8, batch_first=True, bias=False), (1, 5, 8), 5 * 4 * (64 + 64),
     [2560, 2880, 2960, 0, 0]),
]
print(f"{'':28}{'by hand':>10}" + "".join(f"{name:>14}" for name in counters))
for name, module, shape, macs, seen in cases:
    found = [int(count(module.eval(), shape)) for count in counters.values()]
    print(f"{name:28}{macs:>10}" + "".join(f"{n:>14}" for n in found))
    assert found == seen, name
PY

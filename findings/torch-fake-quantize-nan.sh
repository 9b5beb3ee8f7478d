#!/usr/bin/env bash
# torch 2.15.0 on the CPU (x86-64), fake quantization (torch.fake_quantize_per_tensor_affine, ..._per_channel_affine), on
# which torch.ao's training with simulated INT8 rests:
#  1. nan becomes the lowest value of the grid, with gradient 0: a layer whose input has diverged gives finite numbers.
#     torch.quantize_per_tensor makes the highest code of the same nan.
#  2. per channel, +infinity and what is beyond 2^63 steps become the LOWEST value; per tensor they become the highest.
#
# Guess before the run: nan stays nan; infinities saturate to the nearer end; one channel per channel equals per tensor.
# Seen, step 0.1, codes -128 to 127: nan -> -12.8 (both), 127 (codes); inf and 1e30 -> 12.7 per tensor, -12.8 per channel.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import platform

import torch

assert platform.machine() == "x86_64", "seen on x86-64; conversions of huge numbers to integers differ elsewhere"
INF, NAN = float("inf"), float("nan")
x = torch.tensor([NAN, INF, -INF, 1e30, -1e30, 1.0], requires_grad=True)
whole = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
whole.sum().backward()
step, zero = torch.tensor([0.1]), torch.tensor([0], dtype=torch.int32)
channel = torch.fake_quantize_per_channel_affine(x.detach()[None], step, zero, 0, -128, 127)[0]
codes = torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8).int_repr()
for name, seen in (("per tensor", whole), ("per channel", channel), ("codes", codes), ("gradient", x.grad)):
    print(f"{name:12}", [round(v, 4) for v in seen.tolist()])
close = lambda seen, want: torch.allclose(seen.detach(), torch.tensor(want))
assert close(whole, [-12.8, 12.7, -12.8, 12.7, -12.8, 1.0])
assert close(channel, [-12.8, -12.8, -12.8, -12.8, -12.8, 1.0])
assert codes.tolist() == [127, 127, -128, 127, -128, 10]
assert x.grad.tolist() == [0, 0, 0, 0, 0, 1]
PY

#!/usr/bin/env bash
# torchao 0.18.0 and bitsandbytes 0.50.2, 8-bit Adam: opposite gradients do not give opposite weights. The dynamic map of
# signed codes holds 1 but not -1 (its lowest value is -0.993), so that the largest negative value of a block comes back
# 0.7 % smaller, and as the first moment is rounded anew in every step the loss adds up: under a gradient of -1 the moment
# settles at -0.934 instead of -1.
#
# Guess before the run: the map is symmetric, so that both weights are the same but for the sign.
# Seen, after 200 steps of 0.001 with gradients of 1 and -1: -0.2000 and +0.1890 in both libraries (first moments in
# torchao: 1.0000 and -0.9339); a value of -5 in a block of smaller ones is -2.47 after 100 roundings, 5 is still 5.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchao==0.18.0 bitsandbytes==0.50.2 numpy
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import bitsandbytes
import torch
import torchao.optim
from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, quantize_blockwise

torch.compiler.set_stance("force_eager")  # the same without a compiler
codes = create_dynamic_map()
print(f"map: {codes.min():.4f} to {codes.max():.4f}")
assert codes.max() == 1 and -0.9931 < codes.min() < -0.9929

for value in (5.0, -5.0):
    block = torch.full((256,), 0.1)
    block[0] = value
    for _ in range(100):
        block = dequantize_blockwise(*quantize_blockwise(block, blocksize=256))
    print(f"{value} after 100 roundings: {block[0]:.4f}")
assert -2.6 < block[0] < -2.3

for optimizer in (torchao.optim.Adam8bit, bitsandbytes.optim.Adam8bit):
    ends = []
    for gradient in (1.0, -1.0):
        weight = torch.nn.Parameter(torch.zeros(4096))
        adam = optimizer([weight], lr=1e-3)
        for _ in range(200):
            weight.grad = torch.full_like(weight, gradient)
            adam.step()
        ends.append(weight.detach().mean().item())
    print(f"{optimizer.__module__}: {ends[0]:.4f} {ends[1]:.4f}")
    assert abs(ends[0] + 0.2) < 1e-4 and abs(ends[1] - 0.1890) < 1e-3
PY

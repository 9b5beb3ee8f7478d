#!/usr/bin/env bash
# bitsandbytes 0.50.2 on the CPU, torch 2.15.0: what one nan does to its block depends on the number of bits.
#  1. 8 bits (quantize_blockwise, which 8-bit optimizer states use): the nan becomes the lowest finite value, -0.993 of the
#     block's largest magnitude, and the other values are as without it: a diverged state looks sound.
#  2. 4 bits (fp4 and nf4): every value of the block becomes nan.
#
# Guess before the run: nan in its own place, or in the whole block; in both by the same rule.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy bitsandbytes==0.50.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from bitsandbytes import functional as F

x = torch.linspace(-1, 1, 64)
bad = x.clone()
bad[7] = float("nan")


def eight(x: torch.Tensor) -> torch.Tensor:
    return F.dequantize_blockwise(*F.quantize_blockwise(x, blocksize=64)).flatten()


def four(x: torch.Tensor, kind: str) -> torch.Tensor:
    return F.dequantize_4bit(*F.quantize_4bit(x, blocksize=64, quant_type=kind)).flatten()


seen, plain = eight(bad), eight(x)
others = torch.arange(64) != 7
print("8 bits:", seen[7].item(), "instead of nan; the others as without it:", torch.equal(seen[others], plain[others]))
assert abs(seen[7].item() + 0.9929687) < 1e-6
assert torch.equal(seen[others], plain[others])
for kind in ("fp4", "nf4"):
    print(f"{kind}: {int(four(bad, kind).isnan().sum())} of 64 are nan")
    assert four(bad, kind).isnan().all()
    assert not four(x, kind).isnan().any()
PY

#!/usr/bin/env bash
# torchao 0.18.0, the stochastic rounding of float32 weights to bfloat16 in torchao.optim (bf16_stochastic_round=True): a
# NaN whose bits are all ones becomes zero. Rounding away from zero adds one to the upper 16 bits, and there it overflows
# into the sign: 0x7fffffff gives -0.0, 0xffffffff gives 0.0, with a chance of 65,535 in 65,536. A NaN whose lower bits are
# zero, such as 0x7fc00000 of processors, stays one. 0x7fffffff is the NaN that NVIDIA's PTX manual gives as the result of
# float32 arithmetic, so that weights that became NaN there would go on as zeros (not run on a GPU here).
#
# Guess before the run: a NaN stays a NaN, whatever its bits.
# Seen: [-0.0, 0.0, nan] for 0x7fffffff, 0xffffffff, 0x7fc00000; torch's own conversion gives three NaNs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 torchao==0.18.0 numpy
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torchao.optim.quant_utils import _fp32_to_bf16_sr

torch.manual_seed(0)
bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32)
weights = bits.view(torch.float32)
assert weights.isnan().all() and weights.bfloat16().isnan().all()
found = _fp32_to_bf16_sr(weights)
print([f"{int(b) & 0xFFFFFFFF:#x} -> {v}" for b, v in zip(bits, found.tolist(), strict=True)])
assert found.isnan().tolist() == [False, False, True] and (found[:2] == 0).all()
PY

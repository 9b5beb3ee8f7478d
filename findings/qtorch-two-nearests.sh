#!/usr/bin/env bash
# qtorch 0.3.0 (QPyTorch, the simulator many papers on low-precision training used) with torch 2.15.0 on the CPU:
#  1. rounding="nearest" sends ties to even for fixed point and away from zero for floating point.
#  2. float_quantize(exp=5, man=10) is not float16: the top exponent holds numbers, so that 65520 becomes 65536 (float16:
#     infinity) and the largest value is 131008.
#  3. its infinity and nan become that largest value; fixed point keeps nan.
#
# Guess before the run: one rule for ties, to even; exp=5, man=10 gives what torch.float16 gives; nan stays nan.
# It compiles its C++ when imported (g++ and ninja, about a minute).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy setuptools==84.2.1 ninja==1.13.2 qtorch==0.3.0
cd "$work"
export TORCH_EXTENSIONS_DIR=$work/built PATH="$work/venv/bin:$PATH"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from qtorch.quant import fixed_point_quantize, float_quantize

INF, NAN = float("inf"), float("nan")
half = lambda *x: float_quantize(torch.tensor(x), exp=5, man=10, rounding="nearest").tolist()
fixed = fixed_point_quantize(torch.tensor([0.5, 1.5, 2.5, NAN]), wl=8, fl=0, rounding="nearest").tolist()
ulp = 2.0**-10
ties = half(1 + ulp / 2, 1 + 3 * ulp / 2)
want = torch.tensor([1 + ulp / 2, 1 + 3 * ulp / 2]).half().tolist()
large = half(65520.0, 1e6, INF, NAN)
print("fixed point, 0.5 1.5 2.5 nan:", fixed)
print("half, 1 + 0.5 and 1.5 units:", [(v - 1) / ulp for v in ties], "float16:", [(v - 1) / ulp for v in want])
print("half, 65520 1e6 inf nan:", large)
assert fixed[:3] == [0, 2, 2]
assert fixed[3] != fixed[3]
assert ties == [1 + ulp, 1 + 2 * ulp]
assert want == [1, 1 + 2 * ulp]
assert large == [65536, 131008, 131008, 131008]
PY

#!/usr/bin/env bash
# qonnx 1.0.0: Quant takes a bit width of 2.5 and its result lies outside the range that the package states for it: the
# value is clipped first and rounded afterwards.
#
# Guess before the run: a width that is no integer is refused.
# Seen: range [-2.83, 1.83], results -3 and 2: six levels.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 qonnx==1.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from qonnx.custom_op.general.quant import max_int, min_int, quant

x = np.linspace(-10, 10, 201, dtype=np.float32)
levels = np.unique(quant(x, np.float32(1), np.float32(0), np.float32(2.5), True, False, "ROUND"))
low, high = float(min_int(True, False, 2.5)), float(max_int(True, False, 2.5))
print("stated range", low, high, "| levels", levels)
assert levels.min() == -3 < low and levels.max() == 2 > high and len(levels) == 6
PY

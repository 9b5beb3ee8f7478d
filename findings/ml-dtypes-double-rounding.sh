#!/usr/bin/env bash
# ml_dtypes 0.6.0: casting a float64 array to a narrow format rounds twice (through float32), the scalar constructor once.
# A float64 reference of a quantizer that casts arrays is therefore off by one code just above a midpoint.
#
# Guess before the run: both round the float64 value once, to 1.125.
# Seen: 1.0625 + 1e-12 becomes 1 as an array and 1.125 as a scalar in E4M3; in bfloat16 both round twice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

for dtype, midpoint, as_scalar in ((ml_dtypes.float8_e4m3fn, 1.0625, 1.125), (ml_dtypes.bfloat16, 1 + 2**-8, 1.0)):
    value = midpoint + 1e-12  # nearer to the code above than to 1
    array, scalar = float(np.array([value]).astype(dtype)[0]), float(dtype(value))
    print(dtype.__name__, "array", array, "scalar", scalar)
    assert array == 1.0 and scalar == as_scalar
PY

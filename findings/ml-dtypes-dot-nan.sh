#!/usr/bin/env bash
# ml_dtypes 0.6.0: the product of two FP8 vectors depends on how it is spelled. `a @ b` of matrices gives float32,
# np.dot of the vectors gives FP8 again, and E4M3 has no infinity: a sum above 448 comes back as nan.
#
# Guess before the run: both accumulate in float32 and return the same number.
# Seen: 1000 ones: `@` gives 1000.0 in float32, np.dot gives nan in E4M3; np.sum gives 16.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

ones = np.ones(1000, ml_dtypes.float8_e4m3fn)
matrix = ones[None, :] @ ones[:, None]
vector = np.dot(ones, ones)
total = ones.sum()
print("@", matrix.item(), matrix.dtype, "| dot", vector, vector.dtype, "| sum", total)
assert matrix.dtype == np.float32 and matrix.item() == 1000
assert np.isnan(float(vector)) and float(total) == 16
PY

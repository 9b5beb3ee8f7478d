#!/usr/bin/env bash
# ml_dtypes 0.6.0, FP4 (E2M1): a format without nan and infinity cannot report an error. A division by zero gives its
# largest value, and a nan becomes negative zero: a diverged tensor looks like a small one.
#
# Guess before the run: nan becomes the largest value, 0/0 is refused or warned of.
# Seen: 1/0 = 6, 0/0 = 0, nan -> -0.0, no exception.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

fp4 = ml_dtypes.float4_e2m1fn
with np.errstate(all="ignore"):
    one, zero, nan = float(fp4(1) / fp4(0)), float(fp4(0) / fp4(0)), float(np.array([np.nan]).astype(fp4)[0])
print("1/0:", one, "| 0/0:", zero, "| nan:", nan)
assert one == 6 and zero == 0 and nan == 0 and np.signbit(nan)
PY

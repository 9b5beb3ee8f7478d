#!/usr/bin/env bash
# ml_dtypes 0.6.0, E8M0 (the scale of MX blocks): a cast of 0 gives nan, np.zeros gives 2^-127, and a sum of ones is nan,
# because a sum begins with 0. The scale of an all-zero block must be set by hand.
#
# Guess before the run: 0 becomes the least power of two in every one of them, and the sum of three ones is 2 or 4.
# Seen: cast nan, zeros 5.877e-39, sum nan.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

e8m0 = ml_dtypes.float8_e8m0fnu
cast = float(np.zeros(1, np.float32).astype(e8m0)[0])
zeros = float(np.zeros(1, e8m0)[0])
total = float(np.ones(3, e8m0).sum())
print("cast of 0:", cast, "| np.zeros:", zeros, "| sum of three ones:", total)
assert np.isnan(cast) and zeros == 2.0**-127 and np.isnan(total)
PY

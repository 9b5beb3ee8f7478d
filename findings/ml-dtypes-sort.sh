#!/usr/bin/env bash
# ml_dtypes 0.6.0 under numpy 2.4: one nan leaves an FP8 array unsorted, without a warning. A percentile or a clipping
# range that is taken from a sorted array is then any element.
#
# Guess before the run: nan goes to the end, as it does in float32.
# Seen: np.sort of [1, nan, -2, 3] returns it as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

values = [1.0, np.nan, -2.0, 3.0]
plain = np.sort(np.array(values, np.float32))
narrow = np.sort(np.array(values, ml_dtypes.float8_e4m3fn)).astype(np.float32)
print("float32", plain, "E4M3", narrow)
assert np.array_equal(plain, [-2, 1, 3, np.nan], equal_nan=True)
assert np.array_equal(narrow, values, equal_nan=True)
PY

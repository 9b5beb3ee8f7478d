#!/usr/bin/env bash
# pandas 3.1.1 with ml_dtypes 0.6.0: a Series of FP8 numbers keeps its type, knows its missing values, and its statistics
# are wrong without a word.
#  1. E4M3, values 1, nan, 2, 288: min and max are nan, idxmax is the first row, the maximum of a group is nan. Missing values
#     are replaced by an infinity before the extreme is looked for, and E4M3 has none. E5M2, which has one, is right.
#  2. Sums are rounded to the narrow type, and means are made of them: 96 for 97 in E4M3, 112 for 107.67 in E5M2 (standard
#     deviation 192 for 183.9), and 101.33 for 101 in bfloat16, whose sum 303 is 304.
# A table of operands is converted to float32 first.
#
# Guess before the run: missing values are skipped and statistics computed in float64, as for float16.
# Seen: the above; bfloat16 and float16 skip missing values and find 1 and 300, float16's mean is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
cat > series.py <<'PY'
import ml_dtypes
import numpy as np
import pandas as pd

seen = {}
for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float16):
    series = pd.Series(np.array([1, np.nan, 2, 300]).astype(dtype))
    exact = series.astype(np.float64)
    name = str(series.dtype)
    seen[name] = [float(getattr(series, f)()) for f in ("min", "max", "idxmax", "mean", "std")]
    print(name, "missing", series.isna().tolist(), "min, max, idxmax, mean, std", seen[name])
    print("   in float64", [float(getattr(exact, f)()) for f in ("min", "max", "idxmax", "mean", "std")])
    assert series.isna().tolist() == [False, True, False, False]
low, high, where, mean, _ = seen["float8_e4m3fn"]
assert np.isnan(low) and np.isnan(high) and where == 0
assert mean == 96
low, high, where, mean, deviation = seen["float8_e5m2"]
assert (low, high, where) == (1, 320, 3)
assert (mean, deviation) == (112, 192)
for name in ("bfloat16", "float16"):
    assert seen[name][:3] == [1, 300, 3]
assert seen["float16"][3] == 101
assert seen["bfloat16"][3] > 101.3
group = pd.Series(np.array([1, np.nan, 2, 300]).astype(ml_dtypes.float8_e4m3fn)).groupby([0, 0, 0, 0]).max()
print("maximum of the group in E4M3:", group.tolist())
assert np.isnan(float(group.iloc[0]))
PY
"$work/venv/bin/python" -W ignore series.py

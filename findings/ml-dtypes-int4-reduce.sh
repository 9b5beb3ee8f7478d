#!/usr/bin/env bash
# ml_dtypes 0.6.0: sums and means of int4 arrays wrap in 4 bits. numpy adds up int8 in int64; the narrow integers get no
# wider accumulator, so the mean of equal values need not be that value.
#
# Guess before the run: as for int8: 100 and 3.0.
# Seen: sum of 100 ones = 4, mean of 100 threes = 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np

total = int(np.ones(100, ml_dtypes.int4).sum())
mean = float(np.full(100, 3, ml_dtypes.int4).mean())
print("int4 sum of 100 ones:", total, "| mean of 100 threes:", mean)
assert int(np.ones(100, np.int8).sum()) == 100
assert total == 4 and mean == 0
PY

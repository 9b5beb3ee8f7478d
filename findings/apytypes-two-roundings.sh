#!/usr/bin/env bash
# apytypes 0.5.1: the same class rounds in two ways. APyFixed.from_float goes to nearest (ties away from zero), .cast
# truncates; and what does not fit wraps, where fxpmath, the other library of the kind, saturates.
#
# Guess before the run: one default for both, and saturation.
# Seen: 0.9375 with 2 fraction bits: 1.0 by from_float, 0.75 by cast; 100 in 4 integer bits: 4.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check apytypes==0.5.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
from apytypes import APyFixed

direct = float(APyFixed.from_float(0.9375, int_bits=4, frac_bits=2))
cast = float(APyFixed.from_float(0.9375, int_bits=4, frac_bits=4).cast(int_bits=4, frac_bits=2))
over = float(APyFixed.from_float(100.0, int_bits=4, frac_bits=2))
print("from_float", direct, "| cast", cast, "| 100 ->", over)
assert direct == 1.0 and cast == 0.75 and over == 4.0
PY

#!/usr/bin/env bash
# pychop 0.6.2, pychop.Chop: what is too large for a format of few exponent bits becomes zero. With the widths of float16
# (5 exponent bits, 10 fraction bits), to the nearest, up, down or toward zero, in numpy and in torch:
#  1. 65,536 up to the next power of two gives 0, and only what is larger gives infinity. A weight that outgrows the format
#     vanishes without a sign of it. The stochastic mode gives infinity for the same numbers.
#  2. 65,520 gives 65,536, which the format does not hold (float16 gives infinity there).
#
# Guess before the run: infinity from 65,520 on, as numpy's float16.
# Seen: 65504 -> 65504, 65520 -> 65536, 66000, 70000 and -70000 -> 0, 131072 and above -> inf.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pychop==0.6.2 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import pychop

pychop.backend("numpy")
x = np.array([65504.0, 65519.0, 65520.0, 66000.0, 70000.0, -70000.0, 131072.0, 1e6])
with np.errstate(over="ignore"):
    print("float16:        ", x.astype(np.float16).astype(float).tolist())
for mode, name in ((1, "nearest"), (2, "up"), (3, "down"), (4, "toward zero"), (5, "stochastic")):
    found = pychop.Chop(5, 10, rmode=mode)(x)
    print(f"Chop, {name:11}", found.tolist())
    if mode < 5:
        assert found[0] == 65504 and (found[3:6] == 0).all() and np.isinf(found[6:]).all()
    else:
        assert np.isinf(found[3:]).all()
assert pychop.Chop(5, 10)(x)[2] == 65536
for exponent, fraction, largest in ((4, 3, 240.0), (5, 2, 57344.0)):  # the same in formats of 8 bits
    assert pychop.Chop(exponent, fraction)(np.array([largest * 1.25, largest * 20])).tolist() == [0, np.inf]
PY

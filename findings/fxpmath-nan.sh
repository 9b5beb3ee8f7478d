#!/usr/bin/env bash
# fxpmath 0.4.10: a nan becomes the LARGEST value of the fixed-point format, and the default rounding is truncation
# towards zero, so a diverged tensor looks saturated, and a round trip through the default has a bias.
#
# Guess before the run: nan is refused or becomes 0; the default rounding is to nearest.
# Seen: nan -> 7.9375 in s8/4; 0.99 -> 0.75, where nearest is 1.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 fxpmath==0.4.10
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings

from fxpmath import Fxp

warnings.simplefilter("ignore")
nan = float(Fxp(float("nan"), True, 8, 4)())
up, down = float(Fxp(0.99, True, 4, 2)()), float(Fxp(-0.99, True, 4, 2)())
print("nan:", nan, "| 0.99:", up, "| -0.99:", down)
assert nan == 7.9375 and up == 0.75 and down == -0.75
PY

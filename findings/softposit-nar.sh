#!/usr/bin/env bash
# softposit 0.3.4.4: posits have one value that is no number, NaR, and no infinity. Reading it back as a float gives
# infinity from posit8 and posit16, and nan from posit32; so an overflow test that asks for nan depends on the width.
#
# Guess before the run: nan from all three widths.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check softposit==0.3.4.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import math

import softposit

seen = {kind: float(getattr(softposit, kind)(math.nan)) for kind in ("posit8", "posit16", "posit32")}
print("nan stored, then read:", seen)
assert seen["posit8"] == math.inf
assert seen["posit16"] == math.inf
assert math.isnan(seen["posit32"])
PY

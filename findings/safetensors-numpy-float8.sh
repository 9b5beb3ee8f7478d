#!/usr/bin/env bash
# safetensors 0.8.0, numpy side: a float8 array is saved without a word and cannot be loaded again by the same module;
# bfloat16 makes the round trip. Checkpoints of FP8 weights need the torch side, or a view as uint8.
#
# Guess before the run: what can be saved can be loaded.
# Seen: load_file raises AttributeError for float8_e4m3fn, float8_e5m2 and float8_e8m0fnu.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ml_dtypes
import numpy as np
import safetensors.numpy as st

for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
    st.save_file({"w": np.ones(4, getattr(ml_dtypes, name))}, name)
    try:
        st.load_file(name)
    except AttributeError as error:
        print(name, "saved, then:", error)
    else:
        raise SystemExit(f"{name} loads now")
st.save_file({"w": np.ones(4, ml_dtypes.bfloat16)}, "bf16")
assert st.load_file("bf16")["w"].dtype == ml_dtypes.bfloat16
PY

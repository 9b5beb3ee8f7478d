#!/usr/bin/env bash
# mlx 0.32.4 on the CPU (x86-64), mx.quantize: the scale of a block is an 8-bit exponent that wraps round instead of
# saturating, and what is no number vanishes.
#  1. mxfp8: a block of values of 2^-120, which float32 holds as normal numbers, comes back as infinity: its exponent
#     would be -1 and is stored as 255. mxfp4: the same for 2^-126. Blocks of gradients that die out explode.
#  2. mxfp4: one nan or infinity turns its whole block into zeros; mxfp8: into 896. A diverged tensor looks healthy.
#  3. nvfp4 saturates at 2688 (6 x 448), but from about 1e20 on a block comes back as zeros.
#
# Guess before the run: exponents are clamped to 0..254, so that the smallest blocks become zeros or subnormals; a nan
# makes the block nan; nvfp4 saturates however large the values are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' numpy==2.4.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import platform

import mlx.core as mx
import numpy as np

assert platform.machine() == "x86_64", "seen on x86-64; conversions of negative numbers to bytes differ elsewhere"
mx.set_default_device(mx.cpu)


def round_trip(values, mode):
    """A row of float32 through the format; the values that come back, and the codes of their scales."""
    setting = {"mxfp8": (32, 8), "mxfp4": (32, 4), "nvfp4": (16, 4)}[mode]
    setting = dict(zip(("group_size", "bits"), setting), mode=mode)
    codes, scales = mx.quantize(mx.array(np.float32(values).reshape(1, -1)), **setting)
    return np.array(mx.dequantize(codes, scales, **setting).astype(mx.float32))[0], np.array(scales)[0]


for mode, last in (("mxfp8", -119), ("mxfp4", -125)):
    for power in (last, last - 1):
        back, scales = round_trip(np.full(32, 2.0**power), mode)
        print(f"{mode}, 2^{power}: comes back as {back[0]} (code of the scale: {scales[0]})")
        assert np.isinf(back).all() if power < last else (back == 2.0**power).all()

for bad in (np.nan, np.inf):
    block = np.ones(32)
    block[0] = bad
    for mode, seen in (("mxfp4", 0.0), ("mxfp8", 896.0)):
        back, _ = round_trip(block, mode)
        print(f"{mode}, ones and one {bad}: comes back as {back[0]}, {back[1]}")
        assert (back == seen).all()

for value, seen in ((1e10, 2688.0), (1e20, 0.0)):
    back, _ = round_trip(np.full(32, value), "nvfp4")
    print(f"nvfp4, {value:g}: comes back as {back[0]}")
    assert (back == seen).all()
PY

#!/usr/bin/env bash
# jax 0.10.2 on the CPU: reductions of narrow numbers keep the narrow type and, for FP8, also the narrow accumulator.
#  1. FP8: sum, mean, var and norm add in FP8. A thousand ones in E5M2 have the sum 64 and the mean 0.0625, in E4M3 the
#     sum 256 and the mean nan (the divisor 1000 is beyond the format). softmax of equal values in E4M3 is nan. bfloat16 and
#     float16 are added in float32 and give 1000 and 1, as one would hope; so does FP8 with dtype=float32 asked for by name.
#  2. int8: sum gives int32 and 1000, but cumsum and dot of the same thousand ones stay int8 and wrap round to -24.
#     numpy's cumsum widens as its sum does.
# So a mean over FP8 tensors (a loss, a statistic of an operand) has to be told its type.
#
# Guess before the run: all float types are added in float32, and cumsum ends with what sum gives.
# Seen: the above. (The exact FP8 sums follow the order of additions and are not asserted, only how far off they are.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6
cd "$work"
cat > sums.py <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

COUNT = 1000
for name in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16"):
    ones = jnp.ones(COUNT, name)
    total, mean, asked = jnp.sum(ones), jnp.mean(ones), jnp.sum(ones, dtype=jnp.float32)
    print(f"{name}: sum {total} ({total.dtype}), mean {mean}, sum with dtype=float32 {asked}")
    assert asked == COUNT
    narrow = name.startswith("float8")
    assert (abs(float(total) - COUNT) > 500) == narrow
    assert (float(mean) == 1) != narrow
softmax = jax.nn.softmax(jnp.ones(COUNT, "float8_e4m3fn"))
print("softmax in E4M3, its sum:", softmax.astype(jnp.float32).sum())
assert np.isnan(np.asarray(softmax, np.float32)).all()

ones = jnp.ones(COUNT, jnp.int8)
last, dot = jnp.cumsum(ones)[-1], jnp.dot(ones, ones)
widened = np.cumsum(np.ones(COUNT, np.int8))[-1]
print(f"int8: sum {ones.sum()} ({ones.sum().dtype}), last of cumsum {last} ({last.dtype}), dot {dot}; numpy's cumsum {widened}")
assert ones.sum() == COUNT == widened
assert last == dot == -24
PY
"$work/venv/bin/python" sums.py

#!/usr/bin/env bash
# openvino 2026.4.1, CPU: Convert to a narrow type and back, the plain way to emulate it, does nothing for bfloat16, float16,
# int4 and uint4, while it rounds for FP8, FP4 (E2M1) and NF4.
#  1. bfloat16 and float16: 0.1 comes back as the float32 number it was, 70000 too, which float16 does not hold. Asking for
#     float32 inference, or for the narrow value as a second output, changes nothing.
#  2. int4 and uint4 come back as 8 bits: 100 stays 100 by int4, whose largest number is 7, and 200 stays 200 by uint4.
# So a graph that models a width with Convert pairs is run at another width than it says; FakeQuantize, or FP8, has to be used.
#
# Guess before the run: every pair rounds to its type.
# Seen: the above.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
cd "$work"
cat > converts.py <<'PY'
import numpy as np
import openvino as ov
import openvino.opset13 as op


def there_and_back(values, narrow):
    x = np.array(values, np.float32)
    given = op.parameter([len(x)], np.float32)
    model = ov.Model([op.convert(op.convert(given, narrow), "f32")], [given])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([x])[0].tolist()


tenth = float(np.float32(0.1))
for narrow in ("bf16", "f16", "f8e4m3", "f8e5m2", "f4e2m1", "nf4"):
    back = there_and_back([0.1, 70000.0 if narrow == "f16" else 0.3], narrow)
    print(narrow, back)
    assert (back[0] == tenth) == (narrow in ("bf16", "f16"))
    assert narrow != "f16" or back[1] == 70000
for narrow, value in (("i4", 100.0), ("u4", 200.0)):
    back = there_and_back([value, 1.0], narrow)
    print(narrow, back)
    assert back == [value, 1.0]
PY
"$work/venv/bin/python" converts.py

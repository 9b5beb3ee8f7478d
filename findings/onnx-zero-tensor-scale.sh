#!/usr/bin/env bash
# onnx 1.23.2 and onnxruntime 1.32.0: DynamicQuantizeLinear of an all-zero tensor has scale 1/255 in the reference and 1
# in the runtime; the written formula gives 0. Code that compares scales, or divides by them, sees three answers.
#
# Guess before the run: scale 0, as the formula says, in both.
# Seen: 0.0039215688 (reference), 1.0 (onnxruntime).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 onnx==1.23.2 onnxruntime==1.32.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

node = h.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
outputs = [h.make_tensor_value_info("y", T.UINT8, [4]), h.make_tensor_value_info("s", T.FLOAT, []), h.make_tensor_value_info("z", T.UINT8, [])]
graph = h.make_graph([node], "g", [h.make_tensor_value_info("x", T.FLOAT, [4])], outputs)
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
x = np.zeros(4, np.float32)
reference = float(ReferenceEvaluator(model).run(None, {"x": x})[1])
runtime = float(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[1])
print("scale: reference", reference, "| onnxruntime", runtime)
assert abs(reference - 1 / 255) < 1e-8 and runtime == 1
PY

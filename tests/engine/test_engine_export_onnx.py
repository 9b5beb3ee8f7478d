"""Runs as ONNX graphs: onnxruntime gives our evaluation's output at two of its levels; what ONNX lacks is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fractrain
from fractrain.layers.convert import quant_layers
from fractrain.util.errors import ConfigError, MachineError

RECIPE = {"iterations": 2, "milestones": [], "eval_every": 2, "batch_size": 8}
RUNS = {
    "static8": ("static8", "resnet20", {}),
    "sbm of linear layers, too": ("sbm", "resnet20", {"layers": "all"}),
    "static, 4 bits": ("static", "resnet20", {"bits": 4}),
    "static, 12 bits": ("static", "resnet20", {"bits": 12}),
    "dorefa": ("dorefa", "resnet20", {}),
    "cpt": ("cpt", "resnet20", {}),
    "fp32": ("fp32", "resnet20", {}),
    "static8 mobilenet": ("static8", "mobilenet_v2", {}),
    "sbm mobilenet": ("sbm", "mobilenet_v2", {}),
}


def trained(method: str, model: str, settings: dict, store: Path) -> fractrain.Run:
    return fractrain.run(method, model, "digits", recipe=RECIPE, store=store, device="cpu", progress=False, **settings)


@pytest.fixture(scope="module")
def onnx():
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="extra export is not installed")
    return pytest.importorskip("onnx", reason="extra export is not installed")


@pytest.mark.parametrize("name", RUNS)
def test_onnxruntime_gives_our_evaluation(onnx, tmp_path: Path, name: str) -> None:
    import onnxruntime as ort

    run = trained(*RUNS[name], tmp_path / "store")
    file = run.export(tmp_path / "a.onnx", "onnx-qdq")
    model = run.model
    channels = next(model.parameters()).shape[1]
    x = torch.randn(50, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = model(x)
    quantized = [layer for layer in quant_layers(model) if not layer.precision.is_float]
    bits = max((layer.precision.fw_a.widest for layer in quantized), default=8)
    step = float(y.max() - y.min()) / (2**bits - 1)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        print(f"{name} {level}: {float((got - y).abs().max()) / step:.3f} steps")
        assert (got - y).abs().max() <= step, level
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    kinds = [node.op_type for node in graph.graph.node]
    weights = sum(not layer.precision.fw_w.is_float for layer in quantized)
    assert kinds.count("QuantizeLinear") == len(quantized)
    assert kinds.count("DequantizeLinear") == len(quantized) + weights
    about = json.loads({p.key: p.value for p in graph.metadata_props}["fractrain"])
    assert about["run"]["id"] == run.id
    assert about["card"]["method"] == RUNS[name][0]


def test_weights_are_our_codes_on_our_grid(onnx, tmp_path: Path) -> None:
    run = trained("static", "resnet20", {"bits": 4}, tmp_path / "store")
    graph = onnx.load(run.export(tmp_path / "a.onnx", "onnx-qdq")).graph
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    layers = [layer for layer in quant_layers(run.model) if not layer.precision.is_float]
    added = {n.input[0]: held[n.input[1]] for n in graph.node if n.op_type == "Add" and n.input[1] in held}
    assert len(nodes) == len(layers)
    ours = {layer.weight.shape: [] for layer in layers}
    for layer in layers:
        ours[layer.weight.shape].append(layer.quantized_weight(layer.precision.fw_w).numpy())
    for node in nodes:
        codes, scale, zero = (held[name] for name in node.input)
        assert codes.dtype == np.uint8
        assert codes.max() == 15
        assert scale.shape == codes.shape[:1]
        rows = (slice(None), *(None,) * (codes.ndim - 1))
        values = (codes.astype(np.float32) - zero[rows]) * scale[rows] + added[node.output[0]]
        assert min(np.abs(values - w).max() for w in ours[torch.Size(codes.shape)]) <= 1e-6 * np.abs(values).max()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mx", "a format with other values than a uniform grid"),
        ("fp8", "a format with other values than a uniform grid"),
        ("int8_rowwise", "a format with other values than a uniform grid"),
        ("dfq", "GatedBlock of method dfq has no form in ONNX"),
        ("dynasty", "several grids in one operand"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_in_a_line(tmp_path: Path, method: str, words: str) -> None:
    run = trained(method, "resnet20", {}, tmp_path / "store")
    with pytest.raises(ConfigError) as caught:
        run.export(tmp_path / "a.onnx", "onnx-qdq")
    assert words in str(caught.value)
    assert "the formats torch and safetensors keep the weights" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()


def test_what_must_be_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("static8", "resnet20", {}, tmp_path / "store")
    monkeypatch.setattr("fractrain.methods.export_onnx.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"needs onnx, onnxruntime, onnxscript: pip install 'fractrain\[export\]'"):
        run.export(tmp_path / "a.onnx", "onnx-qdq")
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("typed", "words"), [(True, r"by .* steps of the output grid;"), (False, "does not run: Input")]
)
def test_a_graph_that_computes_something_else_is_not_written(
    onnx, tmp_path: Path, monkeypatch, typed: bool, words: str
) -> None:
    run = trained("static8", "resnet20", {}, tmp_path / "store")
    monkeypatch.setattr("fractrain.methods.export_onnx.onnx_form", lambda layer: torch.nn.Identity())
    monkeypatch.setattr(
        "fractrain.methods.export_onnx._traced", lambda model, x, outputs, metadata: _zeros(onnx, x, typed)
    )
    with pytest.raises(ConfigError, match=f"differs from our evaluation .*{words}"):
        run.export(tmp_path / "a.onnx", "onnx-qdq")
    assert not (tmp_path / "a.onnx").exists()


def _zeros(onnx, x: torch.Tensor, typed: bool) -> bytes:
    """A graph that gives zeros for every image."""
    h, double = onnx.helper, typed and x.dtype == torch.float64
    kind = onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    inner = list(x.shape[1:])
    zeros = h.make_tensor("zeros", kind, [int(np.prod(inner)), 10], np.zeros(int(np.prod(inner)) * 10, np.float32))
    nodes = [h.make_node("Flatten", ["input"], ["flat"]), h.make_node("MatMul", ["flat", "zeros"], ["output"])]
    ends = [h.make_tensor_value_info("input", kind, ["n", *inner]), h.make_tensor_value_info("output", kind, ["n", 10])]
    graph = h.make_graph(nodes, "g", ends[:1], ends[1:], [zeros])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()

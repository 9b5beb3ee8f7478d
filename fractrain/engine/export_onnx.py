"""A run's model as an ONNX graph with QuantizeLinear and DequantizeLinear nodes, compared before it is written.

The plain model is put back in the place of the low-precision one, but for quantized layers: these become their ONNX
forms (:mod:`fractrain.layers.onnx_form`), and torch traces the whole. What else a method may do in evaluation would be
lost, so the graph's output by onnxruntime must be that of the run's own evaluation, up to a step of the output grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from fractrain.engine.registries import Registries
from fractrain.engine.restored import Restored
from fractrain.engine.store import RunRecord
from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.layers.functional import Redirected
from fractrain.layers.onnx_form import OPSET, onnx_form
from fractrain.util.errors import ConfigError, MachineError

NEEDED = ("onnx", "onnxruntime", "onnxscript")
SAMPLES = 8  # on which the graph is compared
INSTEAD = "; --format torch or safetensors keeps the weights, and names formats and ranges"


def onnx_graph(record: RunRecord, found: Restored, metadata: Mapping[str, str]) -> bytes:
    """Make the ONNX file: input ``input`` float32 ``[batch, C, H, W]``, output ``output``, any size of the batch.

    Args:
        record: the run.
        found: its model; the plain model is put back in its place.
        metadata: for the file.

    Raises:
        ConfigError: ONNX or this module cannot express the model, or its output by onnxruntime is another one.
        MachineError: a package of the extra ``export`` is not installed.
    """
    known = Registries().for_setting(record.config.setting, record.config.seed)
    shape = tuple(known.dataset_info(record.config.dataset).shape)
    if len(shape) != 3:
        raise ConfigError(f"--format onnx-qdq takes models of images, not {record.config.model}{INSTEAD}")
    x = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = found.model(x)  # first: a method may set widths for evaluation when a pass begins
    step = output_step(found.model, y)
    form = _exportable(found)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MachineError(f"--format onnx-qdq needs {', '.join(missing)}: pip install 'fractrain[export]'")
    graph = _traced(form, x, metadata)
    _compare(graph, x, y, step)
    return graph


def output_step(model: nn.Module, y: torch.Tensor) -> float:
    """A step of the output grid: the range of outputs, cut as finely as the model's quantized activations are.

    Args:
        model: the low-precision model; where it quantizes no activation, the grid has 8 bits.
        y: its outputs.
    """
    widths = [layer.precision.fw_a.widest for layer in quant_layers(model) if not layer.precision.fw_a.is_float]
    return float(y.max() - y.min()) / ((1 << max(widths, default=8)) - 1)


def _exportable(found: Restored) -> nn.Module:
    """The plain model with an ONNX form in the place of every quantized layer."""
    before = dict(found.model.named_modules(remove_duplicate=False))
    for name, module in before.items():
        if isinstance(vars(module).get("forward"), Redirected):
            raise ConfigError(f"{name}: {type(module).__name__} multiplies the weights of its layers itself{INSTEAD}")
    plain = found.plain.restore(found.model).eval()
    own = dict(plain.named_modules(remove_duplicate=False))
    forms: dict[nn.Module, nn.Module] = {}  # a layer may be reachable by several names
    twins: list[str] = []
    for name, module in before.items():
        if isinstance(module, QuantLayer):
            if module.effective(module.precision).is_float:
                continue
            if name in own:
                try:
                    forms[module] = forms.get(module) or onnx_form(module)
                except ConfigError as error:
                    raise ConfigError(f"{error}{INSTEAD}") from error
                continue
        elif name in own and isinstance(module, type(own[name])):
            if module is not own[name]:
                twins.append(f"{name}.")  # computes the same and keeps less for backward; may have parts of its own
            continue
        elif name.startswith(tuple(twins)):
            continue
        kind = type(module).__name__
        raise ConfigError(f"{name}: {kind} of method {type(found.method).name} has no form in ONNX{INSTEAD}")
    for name, module in before.items():
        if module in forms:
            plain.set_submodule(name, forms[module])
    return plain


def _traced(model: nn.Module, x: torch.Tensor, metadata: Mapping[str, str]) -> bytes:
    """The graph as torch's exporter makes it; its own optimizer would fold BatchNorms into weights that are codes."""
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                model, (x,), dynamo=True, optimize=False, verbose=False, external_data=False, opset_version=OPSET,
                input_names=["input"], output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"torch.onnx cannot export {type(model).__name__}: {reason}{INSTEAD}") from error
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(proto.SerializeToString())


def _compare(graph: bytes, x: torch.Tensor, y: torch.Tensor, step: float) -> None:
    """Refuse a graph whose output by onnxruntime is not ``y``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    difference = float((torch.from_numpy(session.run(None, {"input": x.numpy()})[0]) - y).abs().max())
    if not difference <= step:
        raise ConfigError(
            f"the graph's output by onnxruntime differs from the run's evaluation by {difference:.3g}, more than a "
            f"step of the output grid ({step:.3g}){INSTEAD}"
        )

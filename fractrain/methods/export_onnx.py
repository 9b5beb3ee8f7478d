"""A model as an ONNX graph with QuantizeLinear and DequantizeLinear nodes, compared before it is written.

The plain model is put back in the place of the low-precision one, but for quantized layers: these become their ONNX
forms (:mod:`fractrain.layers.onnx_form`), and torch traces the whole. What else a method may do in evaluation would be
lost, so the graph's output by onnxruntime must be that of our own evaluation, up to a step of the output grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.layers.functional import Redirected
from fractrain.layers.nested import call_of, first_tensor
from fractrain.layers.onnx_form import OPSET, onnx_form
from fractrain.layers.own_products import OwnProducts, Routed
from fractrain.methods.plain import PlainForm
from fractrain.util.errors import ConfigError, MachineError

NEEDED = ("onnx", "onnxruntime", "onnxscript")
INSTEAD = "; the formats torch and safetensors keep the weights, and name formats and ranges"
OWN = "products in a model's own code"


def onnx_graph(model: nn.Module, plain: PlainForm, method: str, examples: Any, metadata: Mapping[str, str]) -> bytes:
    """Make the ONNX file: inputs ``input``, or by their names, output ``output`` (several: ``output_0``, ...).

    The first axis of inputs that are as long there as the first one may have any size, where the examples have several
    samples.

    Args:
        model: the low-precision model in evaluation mode; the plain model is put back in its place.
        plain: where the plain model's tensors are in it.
        method: the method's name.
        examples: inputs on which the graph is compared: a tensor, a tuple of arguments, or a dict of them by name.
        metadata: for the file.

    Raises:
        ConfigError: ONNX or this module cannot express the model, or its output by onnxruntime is another one.
        MachineError: a package of the extra ``export`` is not installed.
    """
    args, kwargs = call_of(examples)
    with torch.no_grad():
        y = _tensors(model(*args, **kwargs))  # first: a method may set widths for evaluation when a pass begins
    steps = [output_step(model, t) for t in y]
    form = _exportable(model, plain, method)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MachineError(f"format onnx-qdq needs {', '.join(missing)}: pip install 'fractrain[export]'")
    graph = _traced(form, examples, len(y), metadata)
    _compare(graph, _tensors(examples), y, steps)
    return graph


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def output_step(model: nn.Module, y: torch.Tensor) -> float:
    """A step of the output grid: the range of outputs, cut as finely as the model's quantized activations are.

    Args:
        model: the low-precision model; where it quantizes no activation, the grid has 8 bits.
        y: its outputs.
    """
    widths = [layer.precision.fw_a.widest for layer in quant_layers(model) if not layer.precision.fw_a.is_float]
    return float(y.max() - y.min()) / ((1 << max(widths, default=8)) - 1)


def _exportable(model: nn.Module, plain: PlainForm, method: str) -> nn.Module:
    """The plain model with an ONNX form in the place of every quantized layer."""
    before = dict(model.named_modules(remove_duplicate=False))
    for name, module in before.items():
        _refuse_own_code(name, module)
    restored = plain.restore(model).eval()
    own = dict(restored.named_modules(remove_duplicate=False))
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
        elif name.startswith(tuple(twins)) or isinstance(module, OwnProducts):
            continue
        kind = type(module).__name__
        raise ConfigError(f"{name}: {kind} of method {method} has no form in ONNX{INSTEAD}")
    for name, module in before.items():
        if module in forms:
            restored.set_submodule(name, forms[module])
    return restored


def _refuse_own_code(name: str, module: nn.Module) -> None:
    """Refuse a module whose own code multiplies by quantized layers: a trace of it would not find them."""
    kind, forward = type(module).__name__, vars(module).get("forward")
    if isinstance(module, OwnProducts) and any(not layer.effective(layer.precision).is_float for layer in _all(module)):
        raise ConfigError(
            f"{name}: {OWN} have no form in ONNX; attach without example_inputs, which leaves "
            f"them in floating point{INSTEAD}"
        )
    if isinstance(forward.inner if isinstance(forward, Routed) else forward, Redirected):
        raise ConfigError(f"{name}: {kind} multiplies the weights of its layers itself{INSTEAD}")


def _all(module: nn.Module) -> list[QuantLayer]:
    return [layer for layer in module.modules() if isinstance(layer, QuantLayer)]


def _traced(model: nn.Module, examples: Any, outputs: int, metadata: Mapping[str, str]) -> bytes:
    """The graph as torch's exporter makes it; its own optimizer would fold BatchNorms into weights that are codes."""
    args, kwargs = call_of(examples)
    first = first_tensor(examples)
    samples = 0 if first is None or not first.dim() else first.shape[0]
    batch = {0: torch.export.Dim("batch")}

    def free(value: Any) -> Any:
        several = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == samples > 1
        return batch if several else None

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name")  # one size, several inputs that have it
            program = torch.onnx.export(
                model, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False, external_data=False,
                opset_version=OPSET, input_names=["input"] if examples is first else None,
                output_names=["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)],
                dynamic_shapes=tree_map(free, kwargs or args),
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


def _compare(graph: bytes, x: list[torch.Tensor], y: list[torch.Tensor], steps: list[float]) -> None:
    """Refuse a graph whose outputs by onnxruntime are not ``y``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of constants that it does not fold
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    fed = {place.name: t.numpy() for place, t in zip(session.get_inputs(), x, strict=True)}
    for got, own, step in zip(session.run(None, fed), y, steps, strict=True):
        difference = float((torch.from_numpy(got) - own).abs().max())
        if not difference <= step:
            raise ConfigError(
                f"the graph's output by onnxruntime differs from our evaluation by {difference:.3g}, more than a step "
                f"of the output grid ({step:.3g}){INSTEAD}"
            )

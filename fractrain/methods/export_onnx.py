"""A model as an ONNX graph with QuantizeLinear and DequantizeLinear nodes, compared before it is written.

The plain model is put back in the place of the low-precision one, but for quantized layers: these become their ONNX
forms (:mod:`fractrain.layers.onnx_form`), and torch traces the whole. What else a method may do in evaluation would be
lost, so the graph's output by onnxruntime must be that of our own evaluation, up to a step of the output grid.

Deep networks may miss that by float32's roundings alone: products are summed in another order, an activation next to
the middle of two points goes to the other one, and the layers behind amplify it. Even exactly rounded sums are no
remedy, as our own sums are not. Such a graph is written, with a warning, if in float64 it gives what our evaluation
gives in float64, where roundings do not flip.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fractrain.layers.attention import LayeredAttention, unfused
from fractrain.layers.conv_linear import QuantLayer
from fractrain.layers.convert import quant_layers
from fractrain.layers.functional import Redirected
from fractrain.layers.nested import call_of, first_tensor
from fractrain.layers.onnx_form import OPSET, AttentionForm, Form, onnx_form
from fractrain.layers.own_products import OwnProducts, Routed
from fractrain.methods.plain import PlainForm
from fractrain.util.errors import ConfigError, MachineError

NEEDED = ("onnx", "onnxruntime", "onnxscript")
INSTEAD = "; the formats torch and safetensors keep the weights, and name formats and ranges"
OWN = "products in a model's own code"
SAME = 1e-6  # steps of the output grid, in float64

log = logging.getLogger(__name__)


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
    twin, points = copy.deepcopy((model, plain)), _points(model)
    graph, y = _graph(model, plain, method, examples, metadata)
    apart = _steps(_by_onnxruntime(graph, _tensors(examples)), y, points)
    if apart <= 1:
        return graph
    if not _steps_in_float64(*twin, method, examples) <= SAME:
        raise ConfigError(
            f"the graph's output by onnxruntime differs from our evaluation by {apart:.3g} steps of the output "
            f"grid{INSTEAD}"
        )
    log.warning(
        "the graph's output by onnxruntime differs from our evaluation by %.3g steps of the output grid: float32 sums "
        "have another order there, and roundings that flip add up; in float64, where none flips, the two are equal",
        apart,
    )
    return graph


def _graph(
    model: nn.Module, plain: PlainForm, method: str, examples: Any, metadata: Mapping[str, str], double: bool = False
) -> tuple[bytes, list[torch.Tensor]]:
    """The graph, and what evaluation gives on the examples."""
    args, kwargs = call_of(examples)
    with torch.no_grad():
        y = _tensors(model(*args, **kwargs))  # first: a method may set widths for evaluation when a pass begins
    form = _exportable(model, plain, method)  # what has no form is refused whatever is installed
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MachineError(f"format onnx-qdq needs {', '.join(missing)}: pip install 'fractrain[export]'")
    return _traced(form.double() if double else form, examples, len(y), metadata), y


def _steps_in_float64(model: nn.Module, plain: PlainForm, method: str, examples: Any) -> float:
    """How far evaluation and graph are apart in float64; for onnxruntime, QuantizeLinear has no such type."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    wide = tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, examples)
    points = _points(model)
    graph, y = _graph(model.double(), plain, method, wide, {}, double=True)
    evaluator = ReferenceEvaluator(onnx.load_from_string(graph))
    try:
        got = evaluator.run(None, _fed(evaluator.input_names, _tensors(wide)))
    except RuntimeError as error:  # an operator that it lacks, or float32 in the model's own code
        raise ConfigError(
            "the graph's output by onnxruntime differs from our evaluation by more than a step of the output grid, and "
            f"in float64 the graph does not run: {str(error).splitlines()[0]}{INSTEAD}"
        ) from error
    return _steps(got, y, points)


def _by_onnxruntime(graph: bytes, x: list[torch.Tensor]) -> Any:
    """The graph's outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of constants that it does not fold
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, _fed([place.name for place in session.get_inputs()], x))


def _fed(names: Iterable[str], x: list[torch.Tensor]) -> dict[str, Any]:
    return {name: t.numpy() for name, t in zip(names, x, strict=True)}


def _points(model: nn.Module) -> int:
    """Points of the output grid: as many as the model's quantized activations have; 256 where it has none."""
    widths = [layer.precision.fw_a.widest for layer in quant_layers(model) if not layer.precision.fw_a.is_float]
    return 1 << max(widths, default=8)


def _steps(got: Any, y: list[torch.Tensor], points: int) -> float:
    """The largest difference of outputs, in steps of a grid that spans their range."""
    apart = []
    for theirs, ours in zip(got, y, strict=True):
        difference = (torch.from_numpy(theirs) - ours).abs().max()
        apart.append(float(difference / ((ours.max() - ours.min()) / (points - 1))) if difference else 0.0)
    return max(apart, default=0.0)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def _exportable(model: nn.Module, plain: PlainForm, method: str) -> nn.Module:
    """The plain model with an ONNX form in the place of every quantized layer."""
    before = dict(model.named_modules(remove_duplicate=False))
    for name, module in before.items():
        _refuse_own_code(name, module)
    restored = plain.restore(model).eval()
    own = dict(restored.named_modules(remove_duplicate=False))
    forms: dict[nn.Module, nn.Module] = {}  # a layer may be reachable by several names
    twins: list[str] = []
    attention: list[str] = []
    for name, module in before.items():
        if name.startswith(tuple(attention)):
            continue  # parts of a form
        if isinstance(module, LayeredAttention) and _quantized(module):
            forms[module] = forms.get(module) or _formed(AttentionForm, module)
            attention.append(f"{name}.")
            continue
        if isinstance(module, QuantLayer):
            if not _quantized(module):
                continue
            if name in own:
                forms[module] = forms.get(module) or _formed(onnx_form, module)
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
    unfused(restored, lambda module: isinstance(module, Form))
    return restored


def _formed(make: Callable[[Any], nn.Module], module: nn.Module) -> nn.Module:
    try:
        return make(module)
    except ConfigError as error:
        raise ConfigError(f"{error}{INSTEAD}") from error


def _refuse_own_code(name: str, module: nn.Module) -> None:
    """Refuse a module whose own code multiplies by quantized layers: a trace of it would not find them."""
    kind, forward = type(module).__name__, vars(module).get("forward")
    if isinstance(module, OwnProducts) and _quantized(module):
        raise ConfigError(
            f"{name}: {OWN} have no form in ONNX; attach without example_inputs, which leaves "
            f"them in floating point{INSTEAD}"
        )
    if isinstance(forward.inner if isinstance(forward, Routed) else forward, Redirected):
        raise ConfigError(f"{name}: {kind} multiplies the weights of its layers itself{INSTEAD}")


def _quantized(module: nn.Module) -> bool:
    """Whether it has, or is, a layer that quantizes."""
    return any(not layer.effective(layer.precision).is_float for layer in quant_layers(module))


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

"""Operands in ONNX: onnxruntime rounds each value to the very point that our quantizers do, at every width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.convert import quantized_layer
from fractrain.layers.matmul import Matmul, QuantMatmul
from fractrain.layers.onnx_form import OPSET, RoundedActivation, inexpressible, onnx_form
from fractrain.layers.state import QuantState
from fractrain.numerics.elements import INT8
from fractrain.numerics.formats import Affine, Format, PerAxis, PerTile, Symmetric
from fractrain.numerics.precision import Operand, Precision
from fractrain.numerics.scaled import Scaled
from fractrain.util.errors import ConfigError

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


@pytest.fixture
def outputs():
    """Runs a module's ONNX graph at both optimization levels."""
    ort = pytest.importorskip("onnxruntime", reason="extra export is not installed")
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="extra export is not installed")

    def run(module: nn.Module, *inputs: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        names = [f"i{n}" for n in range(len(inputs))]
        program = torch.onnx.export(
            module.eval(), inputs, dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=names
        )
        found = {}
        for level in LEVELS:
            options = ort.SessionOptions()
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
            session = ort.InferenceSession(
                program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            fed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
            found[level] = [torch.from_numpy(y) for y in session.run(None, fed)]
        return found

    return run


class Several(nn.Module):
    """Modules side by side in one graph, each with inputs of its own."""

    def __init__(self, modules: list[nn.Module], takes: list[int] | None = None) -> None:
        super().__init__()
        self.parts, self.takes = nn.ModuleList(modules), takes or [1] * len(modules)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        left = list(inputs)
        return [part(*[left.pop(0) for _ in range(n)]) for part, n in zip(self.parts, self.takes, strict=True)]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", [Affine(), Symmetric()], ids=["affine", "symmetric"])
@pytest.mark.parametrize("known", [(-0.7, 1.1), (0.0, 2.0), None], ids=["both signs", "from zero", "measured"])
def test_activations_land_on_the_same_points(outputs, fmt: Format, known) -> None:
    widths = (2, 3, 7, 8, 9, 16)
    x = 2 * numbers(3, 4, 5, 5)  # beyond the known ranges on both sides
    limits = None if known is None else tuple(torch.tensor(v) for v in known)
    module = Several([RoundedActivation(Operand(bits, fmt), limits) for bits in widths])
    for level, all_got in outputs(module, *[x] * len(widths)).items():
        for bits, got in zip(widths, all_got, strict=True):
            values = fmt.quantize(x, bits, limits=limits).values
            step = float(fmt.grid(limits or fmt.limits(x), bits, x).scale)
            assert len(values.unique()) > 2
            assert (got - values).abs().max() < 1e-3 * step, (level, bits)


def layers(precision: Precision):
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    uneven = nn.Conv2d(4, 6, 2, padding="same")
    reflecting = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
    plain = (convolution, uneven, reflecting, nn.Linear(4, 6), nn.Conv1d(4, 6, 3, padding=1),
             nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), Matmul(transpose=True))  # fmt: skip
    return [quantized_layer(p, precision, QuantState(), type(p).__name__) for p in plain]


def inputs_of(layer: nn.Module) -> tuple[torch.Tensor, ...]:
    if isinstance(layer, QuantMatmul):
        return numbers(2, 3, 4), numbers(2, 5, 4, seed=1)
    if isinstance(layer, QuantLinear):
        return (numbers(3, 4),)
    return (numbers(2, 4, 8) if isinstance(layer, nn.Conv1d) else numbers(2, 4, 8, 8),)


@pytest.mark.parametrize(
    ("a", "w"),
    [
        (Operand(8, Affine(), running=0.9), Operand(4, Affine(PerAxis(0)))),
        (Operand(6, Symmetric(), running=0.9), Operand(8, Symmetric(PerAxis(0)))),
        (Operand(8, Affine()), Operand(12, Symmetric())),
        (Operand(8, Affine(statistic="mean")), Operand()),
        (Operand(), Operand(2, Affine())),
    ],
    ids=["affine", "symmetric", "measured", "mean", "weight only"],
)
def test_layers_give_what_they_give_in_evaluation(outputs, a: Operand, w: Operand) -> None:
    torch.manual_seed(0)
    own = layers(Precision.of(a, w, Operand()))
    if a.is_float:
        own.pop()  # Matmul has no weight: nothing is quantized
    inputs = [inputs_of(layer) for layer in own]
    for layer, x in zip(own, inputs, strict=True):
        layer.train()(*x)  # one update of the running ranges
    module = Several([onnx_form(layer.eval()) for layer in own], [len(x) for x in inputs])
    for level, all_got in outputs(module, *(t for x in inputs for t in x)).items():
        for layer, x, got in zip(own, inputs, all_got, strict=True):
            y = layer(*x).detach()
            assert torch.allclose(got, y, rtol=1e-5, atol=1e-5 * float(y.abs().max())), (level, layer)


def test_what_qdq_cannot_express_is_refused_by_name() -> None:
    good = Operand(8, Affine(), running=0.9)
    for bad, reason in (
        (Operand(8, Affine(rounding="stochastic")), "stochastic rounding in evaluation"),
        (Operand(8, Affine(PerTile(4, 4))), "several grids in one operand"),
        (Operand(torch.full((2,), 8), Affine()), "widths from a map"),
        (Operand.of(Scaled(element=INT8)), "other values than a uniform grid"),
    ):
        assert reason in str(inexpressible(bad, weight=False))
        layer = QuantConv2d(nn.Conv2d(4, 6, 3), Precision.of(bad, good, Operand()), site="stem.0")
        with pytest.raises(ConfigError, match=rf"^stem\.0: .*{reason} \(activation: .*QuantizeLinear$"):
            onnx_form(layer)
    assert inexpressible(Operand(8, Affine(PerAxis(0))), weight=True) is None
    assert inexpressible(Operand(8, Affine(PerAxis(0))), weight=False) is not None

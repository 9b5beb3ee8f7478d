"""What is kept for backward, counted in bytes, against counts by hand."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from quant_helpers import tensor
from torch import nn

from fractrain.layers.conv_linear import QuantConv2d, QuantLinear
from fractrain.layers.convert import convert
from fractrain.layers.relu import CompactReLU
from fractrain.layers.state import CandidateScope
from fractrain.numerics.formats import Affine, PerTile
from fractrain.numerics.precision import Operand, Precision, fractrain_precision

P = fractrain_precision(8, 8, 8)


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "speed" / "memory.py"
    spec = importlib.util.spec_from_file_location("memory_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def resnet(memory: ModuleType) -> dict[int, dict[str, Any]]:
    """The benchmark's result by batch size."""
    return {n: memory.measure("resnet38", "sbm", batch=n, size=32) for n in (2, 4)}


def chain() -> nn.Module:
    """Three convolutions and a classifier without anything between them."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1, stride=2),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


BATCH = 6
INPUTS = [3 * 8 * 8, 8 * 8 * 8, 8 * 8 * 8, 4 * 4 * 4]  # elements per sample that each layer reads
WEIGHTS = [8 * 3 * 9, 8 * 9, 4 * 8, 64 * 5]


def kept(memory: ModuleType, p: Precision | None, **options: Any) -> dict[str, int]:
    torch.manual_seed(0)
    net = chain()
    if p is not None:
        net = convert(net, p, keep_last=False, **options)
    x = tensor((BATCH, 3, 8, 8), 0)
    result: dict[str, int] = memory.kept_bytes(net, x)
    return result


def test_fp32_keeps_four_bytes_per_element(memory: ModuleType) -> None:
    got = kept(memory, None)
    assert got["convolutions"] == 4 * BATCH * sum(INPUTS)
    assert got["weights"] == 0  # the parameters themselves


@pytest.mark.parametrize(("bits", "width"), [(2, 1), (8, 1), (9, 2), (16, 2)])
def test_codes_take_one_byte_up_to_8_bits_and_two_above(memory: ModuleType, bits: int, width: int) -> None:
    got = kept(memory, fractrain_precision(bits, 8, 8))
    assert got["convolutions"] == width * BATCH * sum(INPUTS)
    assert got["weights"] == 4 * sum(WEIGHTS)  # the quantized copy that EB reads
    assert got["everything"] == got["convolutions"] + got["weights"]


def test_float_activations_are_kept_as_they_are(memory: ModuleType) -> None:
    assert kept(memory, Precision(fw_w=Operand(8)))["convolutions"] == 4 * BATCH * sum(INPUTS)
    # FW in floating point, GC in 8 bits: only what GC reads is kept
    assert kept(memory, Precision(gc_a=Operand(8)))["convolutions"] == BATCH * sum(INPUTS)


def test_layers_kept_in_float_keep_float_inputs(memory: ModuleType) -> None:
    got = kept(memory, P, keep_first=True)
    assert got["convolutions"] == BATCH * (4 * INPUTS[0] + sum(INPUTS[1:]))


def test_widths_per_tile_keep_codes_and_one_grid_per_tile(memory: ModuleType) -> None:
    a = Operand(8, Affine(PerTile(4, 4)))
    assert kept(memory, Precision(fw_a=a, gc_a=a))["convolutions"] == BATCH * sum(INPUTS)
    layer = QuantLinear(nn.Linear(64, 64), Precision(gc_a=a))
    y = layer(tensor((32, 64), 0))
    grid = y.grad_fn.kept.grid  # type: ignore[union-attr]
    grid = grid() if callable(grid) and not hasattr(grid, "tile") else grid
    assert max(t.numel() for t in (grid.scale, grid.offset, grid.qmin, grid.qmax)) <= 8 * 16


def test_frozen_weights_keep_no_activation(memory: ModuleType) -> None:
    net = convert(chain(), P, keep_last=False)
    net[2].weight.requires_grad_(False)
    got = memory.kept_bytes(net, tensor((BATCH, 3, 8, 8), 0))
    assert got["convolutions"] == BATCH * (sum(INPUTS) - INPUTS[2])


def test_nothing_is_kept_without_gradients(memory: ModuleType) -> None:
    net = convert(chain(), P)
    with torch.no_grad(), memory.counting(net) as counted:
        net(tensor((BATCH, 3, 8, 8), 0))
    assert counted.totals() == {"convolutions": 0, "weights": 0, "everything": 0}


def test_backward_frees_the_codes_although_the_loss_lives_on() -> None:
    layer = QuantConv2d(nn.Conv2d(3, 4, 3), P)
    packed: list[weakref.ref[torch.Tensor]] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        copy = x.clone()
        packed.append(weakref.ref(copy))
        return copy

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = layer(tensor((2, 3, 6, 6), 0)).sum()
    assert any(ref() is not None and ref().dtype == torch.uint8 for ref in packed)  # type: ignore[union-attr]
    loss.backward()
    gc.collect()
    assert not [ref for ref in packed if ref() is not None]
    assert loss.grad_fn is not None  # as in a loop that logs the loss of the step before
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_graph_holds_nothing_that_candidates_share() -> None:
    layer = QuantLinear(nn.Linear(6, 5), P)
    x = tensor((3, 6), 0)
    memo: dict[Any, Any] = {}
    layer.state.scope = CandidateScope(1, x, "k", memo)
    y = layer(x)
    layer.state.scope = None
    shared = weakref.ref(memo[next(k for k in memo if k[0] == "product")][0])
    memo.clear()
    gc.collect()
    assert y.grad_fn is not None
    assert shared() is None


def test_repeated_backward_over_a_kept_graph_gives_the_same() -> None:
    layer = QuantLinear(nn.Linear(6, 5), P)
    y = layer(tensor((3, 6), 0)).square().sum()
    y.backward(retain_graph=True)
    first = layer.weight.grad.clone()  # type: ignore[union-attr]
    layer.weight.grad = None
    y.backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, first)


def test_the_benchmark_counts_resnet38_as_by_hand(resnet: dict[int, dict[str, Any]]) -> None:
    result = resnet[2]
    assert json.loads(json.dumps(result)) == result
    group = [16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8]  # elements per sample within each group
    # stem; 12 inputs in group 1; in groups 2 and 3 the first block reads what the group before put out
    inputs = 3 * 32 * 32 + 12 * group[0] + (group[0] + 11 * group[1]) + (group[1] + 11 * group[2])
    head = 64 * 4  # classifier input, floating point in both
    assert result["bytes"]["fp32"]["convolutions"] == 2 * (4 * inputs + head)
    # two layers read the input of a first block of groups 2 and 3, each keeps its own codes
    assert result["bytes"]["sbm"]["convolutions"] == 2 * (inputs + group[0] + group[1] + head)
    assert result["ratio"]["convolutions"] == pytest.approx(3.74, abs=0.01)


def test_memory_falls_only_with_a_relu_that_keeps_no_float_output(memory: ModuleType) -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = tensor((2, 3, 8, 8), 0)
    plain = memory.kept_bytes(net, x.requires_grad_())
    # ReLU's output is the convolution's input: one storage
    assert plain["everything"] == plain["convolutions"]
    loose = memory.kept_bytes(convert(copy.deepcopy(net), P, keep_last=False, compact=False), x)
    assert loose["everything"] > plain["everything"]
    assert memory.kept_bytes(convert(net, P, keep_last=False), x)["everything"] < plain["everything"]


def test_compact_relu_equals_relu_in_value_and_gradient() -> None:
    x = tensor((4, 3, 5, 5), 3).contiguous()
    x.view(-1)[:3] = torch.tensor([0.0, -0.0, float("-inf")])
    g = tensor((4, 3, 5, 5), 4).contiguous()
    g.view(-1)[:3] = torch.tensor([float("inf"), float("nan"), float("inf")])
    results = []
    for relu in (nn.ReLU(), CompactReLU()):
        leaf = x.clone().requires_grad_()
        y = relu(leaf)
        y.backward(g)
        results.append((y.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None
    assert results[1][1] is not None
    assert torch.equal(results[0][1], results[1][1])


def test_the_figures_in_the_documentation_are_the_benchmarks(resnet: dict[int, dict[str, Any]]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    small, large = resnet[2]["bytes"], resnet[4]["bytes"]

    def at_128(method: str, kind: str) -> float:
        """Bytes grow linearly with the batch."""
        slope = (large[method][kind] - small[method][kind]) / 2
        return float(small[method][kind] + slope * 126)

    for method in ("fp32", "sbm"):
        for kind in ("convolutions", "everything"):
            assert f"{at_128(method, kind) / 2**20:.2f}" in text
    for kind in ("convolutions", "everything"):
        assert f"{at_128('fp32', kind) / at_128('sbm', kind):.2f}" in text


def test_the_example_in_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:] if "bifurcated" in part]
    names: dict[str, Any] = {}
    exec(compile(code, "quantization.md", "exec"), names)
    assert names["model"][0].precision is names["usual"]
    assert names["bifurcated"].gc_e.is_float

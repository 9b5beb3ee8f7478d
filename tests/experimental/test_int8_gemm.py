"""Products of linear layers by int8 matrix products: exact sums; on the CPU, whose int8 products are slow but equal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_helpers import tensor
from torch import nn

from fractrain.experimental import int8_gemm
from fractrain.experimental.int8_gemm import GemmPlan, Shape, possible
from fractrain.kernels.cpu import cpu_features as capability
from fractrain.kernels.cuda import launch as device
from fractrain.layers.conv_linear import QuantLinear
from fractrain.layers.state import QuantState
from fractrain.numerics.backend import Quantized
from fractrain.numerics.formats import Affine, Format, PerAxis, Symmetric
from fractrain.numerics.precision import Operand, Precision, fractrain_precision
from fractrain.numerics.quantize import quantize

CPU = torch.device("cpu")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let linear layers on the CPU use them, too."""
    monkeypatch.setattr(int8_gemm, "DEVICES", {"cpu"})
    caches = (int8_gemm._tried, capability.report)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def coded(x: torch.Tensor, fmt: Format, bits: int, kernels: Any = "reference") -> tuple[torch.Tensor, Quantized]:
    """Values in float64 by codes and grid, and the codes."""
    grid = fmt.grid(fmt.limits(x, kernels), bits, x)
    _, codes = quantize(x, grid, None, bits, kernels)
    assert codes is not None
    g = codes.grid
    values = (codes.codes.double() + g.qmin.double()) * g.scale.double() + g.offset.double()  # type: ignore[union-attr]
    return values, codes


def near(got: torch.Tensor, want: torch.Tensor, size: torch.Tensor) -> bool:
    """Whether a float32 result is that of float64 but for its last few roundings, given the sums of absolute values.

    Where an 8-bit grid is lopsided, what is added for its offset is a few times as large as the sum.
    """
    return bool(((got.double() - want).abs() <= 16 * 2.0**-24 * size).all())


formats = st.sampled_from([Affine(), Symmetric(), Affine(PerAxis(0)), Symmetric(PerAxis(0))])
single = st.sampled_from([Affine(), Symmetric()])


@given(
    sizes=st.tuples(st.integers(17, 40), st.integers(1, 6), st.integers(1, 4)), bits=st.integers(2, 8),
    wbits=st.integers(2, 8), form=single, weight=formats, shift=st.sampled_from([0.0, 3.0, -40.0]),
    rectified=st.booleans(), bias=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_forward_equals_float64(
    sizes: tuple[int, int, int], bits: int, wbits: int, form: Format, weight: Format, shift: float, rectified: bool,
    bias: bool,
) -> None:  # fmt: skip
    rows, terms, columns = sizes
    x = tensor((rows, 8 * terms), 0, shift=shift)
    x, w = x.relu() if rectified else x, tensor((8 * columns, 8 * terms), 1, scale=0.2)
    (a, a_codes), (v, w_codes) = coded(x, form, bits), coded(w, weight, wbits)
    offset = tensor((8 * columns,), 2) if bias else None
    more = torch.zeros(8 * columns) if offset is None else offset
    got = int8_gemm.forward(a_codes, w_codes, offset)
    assert got.dtype == torch.float32
    assert near(got, a @ v.t() + more.double(), a.abs() @ v.abs().t() + more.abs().double())


@given(rows=st.integers(3, 6), filters=st.integers(3, 5), inputs=st.integers(1, 4), bits=st.integers(2, 8), form=single,
       weight=single, shift=st.sampled_from([0.0, 2.0, -30.0]))  # fmt: skip
@settings(deadline=None)
def test_backward_equals_float64(
    rows: int, filters: int, inputs: int, bits: int, form: Format, weight: Format, shift: float
) -> None:
    g, x = tensor((8 * rows, 8 * filters), 3, scale=1e-4), tensor((8 * rows, 8 * inputs), 4, shift=shift)
    w = tensor((8 * filters, 8 * inputs), 5)
    (e, e_codes), (a, a_codes), (v, w_codes) = coded(g, form, bits), coded(x, Affine(), 8), coded(w, weight, bits)
    assert near(int8_gemm.input_gradient(e_codes, w_codes), e @ v, e.abs() @ v.abs())
    assert near(int8_gemm.weight_gradient(e_codes, a_codes), e.t() @ a, e.abs().t() @ a.abs())


def test_extreme_codes_of_the_longest_sums_are_exact() -> None:
    terms = int8_gemm.MOST_TERMS // 8 * 8
    ends = torch.tensor([0.0, 255.0]).repeat(terms // 2)
    x, w = torch.stack([ends, ends.flip(0)]).repeat(9, 1), torch.stack([ends] * 4 + [-ends] * 4)
    (a, a_codes), (v, w_codes) = coded(x, Affine(), 8), coded(w, Symmetric(PerAxis(0)), 8)
    want = a @ v.t()
    assert near(int8_gemm.forward(a_codes, w_codes), want, want.abs() + 1)
    (e, e_codes), (b, b_codes) = coded(x.t().contiguous(), Affine(), 8), coded(w.t().contiguous(), Affine(), 8)
    assert near(int8_gemm.weight_gradient(e_codes, b_codes), e.t() @ b, e.abs().t() @ b.abs())


def test_sequences_keep_their_axes() -> None:
    (a, a_codes), (v, w_codes) = coded(tensor((3, 7, 16), 0), Affine(), 8), coded(tensor((8, 16), 1), Symmetric(), 8)
    got = int8_gemm.forward(a_codes, w_codes)
    assert got.shape == (3, 7, 8)
    assert near(got, a @ v.t(), a.abs() @ v.abs().t())
    assert int8_gemm.input_gradient(coded(tensor((3, 7, 8), 2), Affine(), 8)[1], w_codes).shape == (3, 7, 16)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((17, 8, 8), True), ((16, 8, 8), False), ((17, 12, 8), False), ((17, 8, 20), False),
     ((17, 33024, 8), True), ((17, 33032, 8), False)],
)  # fmt: skip
def test_shapes_the_library_takes(shape: tuple[int, int, int], fits: bool, on_cpu: None) -> None:
    assert Shape(*shape).fits is possible(Shape(*shape), CPU) is fits


# -- in a layer ------------------------------------------------------------------------------------------------------


def trained(
    kernels: Any, precision: Precision, shape: tuple[int, ...], seen: list[str] | None = None
) -> list[torch.Tensor]:
    """Output and gradients of one step of a linear layer of 24 to 16 features."""
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(24, 32), precision, QuantState(3, kernels=kernels), "linear")
    x = tensor(shape, 7, shift=0.3).requires_grad_()
    y = layer(x)
    y.backward(tensor(tuple(y.shape), 8, scale=1e-3))
    assert layer.bias is not None
    return [y.detach(), *(t.grad for t in (x, layer.weight, layer.bias))]  # type: ignore[list-item]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the products that ran on codes."""
    found: list[str] = []
    for name in ("forward", "input_gradient", "weight_gradient"):
        whole = getattr(int8_gemm, name)

        def noted(*args: Any, name: str = name, whole: Any = whole) -> Any:
            found.append(name)
            return whole(*args)

        monkeypatch.setattr(int8_gemm, name, noted)
    return found


ALL = ["forward", "input_gradient", "weight_gradient"]
PER_TENSOR = Operand(8, Symmetric())
PRECISIONS = {
    "per filter": (fractrain_precision(8, 8, 8), ["forward", "weight_gradient"]),
    "per tensor": (Precision.of(Operand(8, Affine()), PER_TENSOR, Operand(8, Affine(rounding="stochastic"))), ALL),
    "4 bits": (Precision.of(Operand(4, Affine()), Operand(4, Symmetric()), Operand(6, Affine())), ALL),
    "errors of 16 bits": (Precision.of(Operand(8, Affine()), PER_TENSOR, Operand(16, Affine())), ["forward"]),
    "activations of 12 bits": (
        Precision.of(Operand(12, Affine()), PER_TENSOR, Operand(8, Affine())), ["input_gradient"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("shape", [(40, 24), (4, 8, 24)], ids=str)
def test_a_layer_gives_the_reference_but_for_the_order_of_sums(
    name: str, shape: tuple[int, ...], on_cpu: None, used: list[str]
) -> None:
    precision, products = PRECISIONS[name]
    plain = trained("reference", precision, shape)
    assert used == []
    fast = trained("auto", precision, shape)
    assert used == products
    for got, want in zip(fast, plain, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert torch.equal(fast[3], plain[3])


def test_only_what_is_wanted_is_multiplied(on_cpu: None, used: list[str]) -> None:
    precision = PRECISIONS["per tensor"][0]
    layer = QuantLinear(nn.Linear(24, 32), precision, QuantState(3), "linear")
    layer(tensor((40, 24), 0)).sum().backward()
    assert used == ["forward", "weight_gradient"]
    used.clear()
    layer.weight.requires_grad_(False)
    layer(tensor((40, 24), 0).requires_grad_()).sum().backward()
    assert used == ["forward", "input_gradient"]
    used.clear()
    layer.eval()
    layer(tensor((40, 24), 0))
    assert used == []
    assert not GemmPlan(True, True).only(False, False)


def test_a_layer_on_the_cpu_does_not_use_them(used: list[str]) -> None:
    trained("auto", PRECISIONS["per tensor"][0], (40, 24))
    assert used == []


@pytest.mark.parametrize("trouble", ["wrong", "refused"])
def test_products_that_are_not_exact_are_not_used(
    trouble: str, on_cpu: None, used: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if trouble == "refused":
            raise RuntimeError("no such product\non this device")
        return (x.float() @ y.float()).to(torch.int32) + (x.shape[1] > 8)

    monkeypatch.setattr(int8_gemm, "_sums", broken)
    precision = PRECISIONS["per tensor"][0]
    fast, plain = (trained(kernels, precision, (40, 24)) for kernels in ("auto", "reference"))
    assert used == []
    for got, want in zip(fast, plain, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()


def test_a_transformer_trains_on_them(on_cpu: None, used: list[str]) -> None:
    from fractrain.cost.ledger import Ledger
    from fractrain.methods import registry
    from fractrain.methods.base import MethodContext

    def losses(kernels: Any) -> list[float]:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Linear(16, 32), block, nn.Linear(32, 8))
        method = registry.create("static8", {})
        prepared = method.prepare(copy.deepcopy(model), MethodContext(batch_size=4, ledger=Ledger()))
        method.state.kernels = kernels
        optimizer = torch.optim.SGD(prepared.parameters(), 0.1)
        found = []
        for step in range(5):
            method.on_step_start(step)
            optimizer.zero_grad()
            loss = (prepared(tensor((4, 10, 16), step)) - tensor((4, 10, 8), 100)).square().mean()
            loss.backward()
            optimizer.step()
            method.on_step_end(step, loss.detach(), None)
            found.append(float(loss.detach()))
        return found

    plain, fast = losses("reference"), losses("auto")
    assert {"forward", "weight_gradient"} <= set(used)
    assert fast == pytest.approx(plain, rel=2e-3)
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)
    assert plain[-1] < plain[0]


def test_rescaling_says_what_it_does() -> None:
    terms = device._some_terms(3, 4, torch.Generator().manual_seed(0), CPU)
    sums = torch.arange(12, dtype=torch.int32).view(3, 4) * 1000
    got = device.rescale(sums, terms)
    rows, columns, scale, of_rows, by_columns, of_columns = (t.tolist() for t in terms)
    for i in range(3):
        for j in range(4):
            want = (int(sums[i, j]) + rows[i] + columns[j]) * scale[j] + of_rows[i] * by_columns[j] + of_columns[j]
            assert float(got[i, j]) == pytest.approx(want, rel=1e-6, abs=1e-6)

"""Products of two activations: float64 references of all three GEMMs, ranges, ledger, sharing, what convert swaps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from quant_helpers import watch
from torch import nn

from fractrain.cost.ledger import Ledger
from fractrain.layers.conv_linear import QuantLinear
from fractrain.layers.convert import convert, convert_body, quant_layers
from fractrain.layers.matmul import Matmul, QuantMatmul
from fractrain.layers.softmax import Remake, causal_softmax
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.numerics.formats import Affine, PerAxis, PerTile, Symmetric
from fractrain.numerics.precision import FLOAT, Operand, Precision, fractrain_precision
from fractrain.util.errors import ConfigError, NonFiniteError

P8 = fractrain_precision(8, 4, 6)
MIXED = Precision(
    fw_a=Operand(5, Affine()),
    fw_w=Operand(2, Symmetric(PerAxis(0))),  # of weights: must not be used
    eb_e=Operand(6, Affine(rounding="stochastic")),
    eb_w=Operand(2, Affine()),  # likewise
    gc_a=Operand(12, Symmetric(rounding="stochastic")),
    gc_e=Operand(12, Symmetric(PerAxis(0), "stochastic")),
)
SHAPES = [((2, 3, 5, 4), (2, 3, 4, 6)), ((3, 5, 4), (3, 4, 2)), ((2, 2, 3, 1, 7), (2, 2, 3, 7, 5)), ((1, 1, 1, 1),) * 2]


def operands(a_shape: tuple[int, ...], b_shape: tuple[int, ...], transpose: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Random operands that are not contiguous, as attention's heads are not."""
    g = torch.Generator().manual_seed(sum(a_shape))
    a = torch.randn(a_shape[:-2] + a_shape[:-3:-1], generator=g).mT
    b = torch.randn(b_shape[:-2] + b_shape[:-3:-1], generator=g)  # [.., C, K]
    b = b if transpose else b.mT
    return a.detach().requires_grad_(), b.detach().requires_grad_()


def layer_at(precision: Precision, transpose: bool = False, ledger: Ledger | None = None) -> QuantMatmul:
    return QuantMatmul(Matmul(transpose), precision, QuantState(3, ledger), "site")


def loop_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b`` in float64 by a plain loop along the reduction."""
    a, b = a.double(), b.double()
    out = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.float64)
    for k in range(a.shape[-1]):
        out += a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return out


def close(x: torch.Tensor | None, reference: torch.Tensor) -> None:
    assert x is not None
    torch.testing.assert_close(x.double(), reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max() + 1))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("precision", [P8, MIXED, replace(P8, gc_e=FLOAT), replace(P8, fw_a=FLOAT, gc_a=FLOAT)])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_three_products_against_float64_loops(shapes, precision: Precision, transpose: bool) -> None:
    a, b = operands(*shapes, transpose)
    layer = layer_at(precision, transpose)
    seen = watch(layer)
    y = layer(a, b)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    plain = {"fw_a": a, "fw_w": b, "gc_a": a, "eb_w": b, "eb_e": g, "gc_e": g}

    def used(name: str, *observed: str) -> torch.Tensor:
        """What must have been multiplied: the first of these that was observed, else the original; as it came in."""
        kept = next((seen[o] for o in observed if o in seen), plain[name])
        return kept.detach().reshape(plain[name].shape)

    def facing(second: torch.Tensor) -> torch.Tensor:
        return second.mT if transpose else second

    fw_a, fw_b = used("fw_a", "fw_a"), used("fw_w", "fw_w")
    kept_a, kept_b = used("gc_a", "gc_a", "fw_a"), used("eb_w", "eb_w", "fw_w")
    close(y, loop_product(fw_a, facing(fw_b)))
    close(a.grad, loop_product(used("eb_e", "E", "E.eb"), facing(kept_b).mT))
    float_gc = precision.gc_e.is_float
    db = loop_product(kept_a.mT, plain["gc_e"] if float_gc else used("gc_e", "E", "E.gc"))
    close(b.grad, db.mT if transpose else db)


def test_operands_have_the_widths_of_the_activation() -> None:
    a, b = operands((2, 2, 9, 8), (2, 2, 8, 9), True)
    layer = layer_at(MIXED, True)
    seen = watch(layer)
    layer(a, b).sum().backward()
    for name, bits in (("fw_a", 5), ("fw_w", 5)):
        assert 2 ** (bits - 1) < len(seen[name].unique()) <= 2**bits
        step = (seen[name].max() - seen[name].min()) / (2**bits - 1)
        original = a if name == "fw_a" else b
        assert float((seen[name] - original.detach().reshape(seen[name].shape)).abs().max()) <= 0.5001 * float(step)
    assert len(seen["gc_a"].unique()) > 32
    assert len(seen["eb_w"].unique()) > 32


def test_ledger_books_both_operands_as_activations() -> None:
    ledger = Ledger()
    layer = layer_at(P8, True, ledger)
    a, b = operands((3, 2, 5, 4), (3, 2, 4, 6), True)
    layer(a, b)
    layer(a, b.detach())
    layer.eval()(a, b)
    macs = 2 * 5 * 6 * 4  # per sample: heads x rows x columns x reduction
    counted: dict[tuple[str, int, int], int] = {}
    for r in ledger.rows():
        counted[r.product, r.bits1, r.bits2] = counted.get((r.product, r.bits1, r.bits2), 0) + r.macs
    assert counted == {("FW", 8, 8): macs * 9, ("EB", 6, 8): macs * 6, ("GC", 8, 6): macs * 3}


def test_ledger_pairs_widths_sample_by_sample() -> None:
    bits = torch.tensor([2, 8, 8])
    p = Precision.of(Operand(bits), Operand(4), Operand(6))
    ledger = Ledger()
    layer_at(p, ledger=ledger)(*operands((3, 5, 4), (3, 4, 2), False))
    counted = {(r.product, r.bits1, r.bits2): r.macs for r in ledger.rows()}
    # a sample's operands meet each other only: no 2 x 8 bit product
    assert counted == {
        ("FW", 2, 2): 40, ("FW", 8, 8): 80, ("EB", 6, 2): 40, ("EB", 6, 8): 80, ("GC", 2, 6): 40, ("GC", 8, 6): 80,
    }  # fmt: skip


def test_running_ranges_are_apart_and_used_in_evaluation() -> None:
    layer = layer_at(P8)
    a, b = operands((2, 5, 4), (2, 4, 3), False)
    for scale in (1.0, 2.0):
        layer(a * scale, b * scale)
    for x, low, high in ((a, layer.running_low, layer.running_high), (b, layer.second_low, layer.second_high)):
        assert float(low) == pytest.approx(float(x.detach().min()) * 1.1, rel=1e-6)  # .9 * 1 + .1 * 2
        assert float(high) == pytest.approx(float(x.detach().max()) * 1.1, rel=1e-6)
    assert int(layer.running_steps) == int(layer.second_steps) == 2
    seen = watch(layer.eval())
    layer(a * 100, b * 100)
    assert float(seen["fw_a"].max()) == pytest.approx(float(layer.running_high), rel=1e-5)
    assert float(seen["fw_w"].min()) == pytest.approx(float(layer.second_low), rel=1e-5)
    assert {"second_low", "second_high", "second_steps"} < set(layer.state_dict())


def test_float_product_is_torchs_own_and_may_be_made_elsewhere() -> None:
    ledger = Ledger()
    layer = layer_at(Precision(), True, ledger)
    a, b = operands((2, 3, 5, 4), (2, 3, 4, 6), True)
    assert layer.is_float
    assert torch.equal(layer(a, b), a @ b.mT)
    before = [r.macs for r in ledger.rows()]
    stand_in = layer(a, b, elsewhere=True)
    assert stand_in.shape == (2, 3, 5, 6)
    assert stand_in.untyped_storage().nbytes() == 4
    assert stand_in.requires_grad
    assert [r.macs for r in ledger.rows()] == [2 * m for m in before]
    layer.precision = P8
    with pytest.raises(ConfigError, match="cannot be computed elsewhere"):
        layer(a, b, elsewhere=True)


def test_weight_only_precision_leaves_the_product_in_float() -> None:
    layer = layer_at(Precision(fw_w=Operand(4), eb_w=Operand(4)))
    assert layer.is_float


def test_a_candidate_of_equal_forward_precision_shares_the_product() -> None:
    state = QuantState(0)
    layer = QuantMatmul(Matmul(True, remade=True), P8, state, "site")
    a, b = operands((2, 3, 5, 4), (2, 3, 4, 6), True)
    memo: dict[object, object] = {}
    calls, outs, grads, remade = [], [], [], []
    real = layer.product
    layer.product = lambda *args: (calls.append(1), real(*args))[1]  # type: ignore[method-assign, func-returns-value]
    for index, errors in enumerate((6, 12)):
        layer.precision = fractrain_precision(8, 4, errors)
        state.scope = CandidateScope(index, a, "same", memo)
        y = layer(a, b)
        outs.append(y.detach())
        remake = layer.again()
        assert remake is not None
        remade.append(remake.build(*remake.tensors))
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        grads.append(torch.autograd.grad(y, (a, b), g))
        assert state.scope.sites == [(layer, 3 * 5 * 6 * 4, True, True)]
    state.scope = None
    assert len(calls) == 1
    assert all(torch.equal(outs[0], x) for x in (outs[1], *remade))
    exact = loop_product(g, b.detach())
    errors = [float((da.double() - exact).abs().mean()) for da, _ in grads]
    assert errors[1] < errors[0]


def test_bad_operands() -> None:
    layer = layer_at(P8)
    with pytest.raises(ConfigError, match="empty batch"):
        layer(torch.zeros(0, 3, 4), torch.zeros(0, 4, 3))
    with pytest.raises(ConfigError, match="no sample axis"):
        layer(torch.zeros(3, 4), torch.zeros(4, 3))
    for place in (0, 1):
        pair = [torch.ones(1, 2, 2), torch.ones(1, 2, 2)]
        pair[place][0, 0, 0] = math.nan
        with pytest.raises(NonFiniteError, match="site"):
            layer(*pair)
    tiled = Operand(torch.full((1, 1), 4), Affine(PerTile()))
    with pytest.raises(ConfigError, match="no widths per tile"):
        layer_at(Precision.of(tiled, tiled, tiled))(torch.ones(1, 2, 2), torch.ones(1, 2, 2))


def test_a_constant_width_in_tiles_is_allowed() -> None:
    tiled = Operand(8, Affine(PerTile(2, 2)))
    ledger = Ledger()
    layer = layer_at(Precision.of(tiled, tiled, tiled), True, ledger)
    a, b = operands((2, 3, 5, 4), (2, 3, 4, 6), True)
    y = layer(a, b)
    y.sum().backward()
    torch.testing.assert_close(y, a @ b.mT, atol=0.05, rtol=0.05)
    assert {(r.product, r.bits1, r.bits2): r.macs for r in ledger.rows()} == dict.fromkeys(
        (("FW", 8, 8), ("EB", 8, 8), ("GC", 8, 8)), 2 * 3 * 5 * 6 * 4
    )


# -- softmax ---------------------------------------------------------------------------------------------------------


def test_causal_softmax_is_the_explicit_one_and_keeps_nothing_where_scores_can_be_remade() -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.full((6, 6), -math.inf).triu(1)
    g = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.softmax(x.double() + mask.double(), -1)
    (dx,) = torch.autograd.grad(expected, x, g.double())
    kept: list[torch.Tensor] = []
    for remake in (None, Remake((x.detach() / 2,), lambda half: half * 2)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
            p = causal_softmax(x, remake)
        torch.testing.assert_close(p, expected.float())
        assert float(p.detach().triu(1).abs().max()) == 0
        (got,) = torch.autograd.grad(p, x, g)
        torch.testing.assert_close(got, dx.float())
        assert len(kept) == 1
        assert torch.equal(kept[0], p if remake is None else x.detach() / 2)


# -- convert ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """What convert has to find: an embedding, linear layers, a product, layers that stay float, an adaptive head."""

    def __init__(self, adaptive: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.first = nn.Linear(8, 8)
        self.product = Matmul(True)
        self.last = nn.Linear(8, 8)
        self.side = nn.Sequential(nn.Linear(8, 8))
        self.side.keeps_float = True  # type: ignore[assignment]
        self.head: nn.Module = nn.AdaptiveLogSoftmaxWithLoss(8, 30, [10, 20], 2.0) if adaptive else nn.Linear(8, 30)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("how", ["body", "first and last", "all"])
def test_which_layers_of_a_language_model_are_quantized(adaptive: bool, how: str) -> None:
    model = Attention(adaptive)
    if how == "body":
        convert_body(model, P8)
    elif how == "all":
        convert(model, P8, keep_last=False)
    else:
        convert(model, P8, keep_first=True, keep_last=True)
    layers = list(quant_layers(model))
    assert not [m for m in model.modules() if type(m) in (nn.Linear, Matmul)]
    expected = {"first", "product", "last"} | ({"head"} if how == "all" and not adaptive else set())
    assert {m.site for m in layers if not m.precision.is_float} == expected  # the embedding is the first layer
    assert isinstance(model.product, QuantMatmul)
    assert isinstance(model.side[0], QuantLinear)


def test_all_convolutions_means_convolutions_where_there_are_any() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2), nn.Conv2d(2, 2, 1))
    convert_body(model, P8)
    assert [m.site for m in quant_layers(model) if not m.precision.is_float] == ["0", "4"]


def test_head_in_float_counts_the_rows_it_multiplies() -> None:
    ledger = Ledger()
    model = convert(Attention(True), P8, QuantState(ledger=ledger))
    target = torch.tensor([1, 2, 11, 25, 12])
    model.head(torch.randn(5, 8), target).loss.backward()
    counted = {(r.layer, r.product): r.macs for r in ledger.rows()}
    forward = {layer: macs for (layer, product), macs in counted.items() if product == "FW"}
    assert forward == {
        "head.head": 5 * 8 * 12,  # 10 words and 2 clusters, for every row
        "head.tail.0.0": 2 * 8 * 4, "head.tail.0.1": 2 * 4 * 10,  # words 11 and 12
        "head.tail.1.0": 1 * 8 * 2, "head.tail.1.1": 1 * 2 * 10,  # word 25
    }  # fmt: skip
    assert all(r.bits1 == r.bits2 == 32 for r in ledger.rows())

"""A pass that is watched has the bits of one that is not, and shows operations of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from field_models import Encoder
from layer_models import batches, seeded
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torchvision.ops import DeformConv2d

import fractrain
from fractrain.util.errors import ConfigError


class Padded(nn.Module):
    """Encoder layers on sequences of different lengths, behind a convolution."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 16, 1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x[:, :, 0]).mT
        padding = torch.arange(8).expand(len(x), 8) >= torch.tensor([[8], [5], [3], [8]])
        return self.head(self.encoder(y, src_key_padding_mask=padding)).sum(1)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "whole sequences": Encoder, "padded": Padded, "norm first": partial(Padded, norm_first=True, activation="gelu"),
}  # fmt: skip
X = next(batches(1))[0]
nested = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def counted(session: fractrain.Session, phase: str) -> int:
    return sum(r.macs for r in session.ledger.rows() if (r.phase, r.product) == (phase, "FW"))


@nested
@pytest.mark.parametrize(
    ("name", "autocast"), [*((name, False) for name in ENCODERS), ("whole sequences", True), ("norm first", True)]
)
def test_pytorch_s_fused_evaluation_stays_and_is_counted_in_every_pass(name: str, autocast: bool) -> None:
    plain, session = seeded(ENCODERS[name]).eval(), fractrain.attach("fp32", seeded(ENCODERS[name]))
    session.model.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        for passes in (1, 2):
            with mode(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                assert torch.equal(session.model(X), plain(X))
            assert counted(session, "eval") == passes * session.report().macs
        session.ledger.clear()
    assert {p.status for p in session.report().products} == {"float"}
    fused = [p for p in session.report().products if p.operation == "_transformer_encoder_layer_fwd"]
    assert len(fused) == 2


class Topped(nn.Module):
    """A product in the code of a model whose encoder is PyTorch's own."""

    def __init__(self, inner: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner, self.top = inner(), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ self.top


@nested
@pytest.mark.parametrize("name", ENCODERS)
def test_it_stays_inside_of_a_model_that_multiplies_in_its_own_code(name: str) -> None:
    def build() -> nn.Module:
        return Topped(ENCODERS[name])

    plain, session = seeded(build).eval(), fractrain.attach("fp32", seeded(build), example_inputs=X)
    session.model.eval()
    for model in (session.model, copy.deepcopy(session.model)):
        with torch.no_grad():
            assert torch.equal(model(X), plain(X))
        assert torch.equal(model(X), plain(X))  # with gradients
    assert {p.status for p in session.report().products} == {"float"}
    assert "functional.linear_1" in {p.name for p in session.report().products}
    assert not [m for m in session.detach().modules() if "forward" in vars(m)]


@nested
@pytest.mark.parametrize("method", ["sbm", "static8"])
@pytest.mark.parametrize("name", ENCODERS)
def test_padded_sequences_evaluate_whatever_is_quantized(name: str, method: str) -> None:
    session = fractrain.attach(method, seeded(ENCODERS[name]))
    session.loss(session.model(X).square().mean()).backward()
    session.step()
    session.model.eval()
    outs = []
    for _ in range(2):
        with torch.no_grad():
            outs.append(session.model(X))
    assert torch.equal(*outs)
    first, rest = counted(session, "eval") // 2, counted(session, "eval") % 2
    assert rest == 0
    assert first > 0.7 * session.report().macs  # where it is fused, padding is not multiplied


class Around(nn.Module):
    """An operation between two linear layers."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.middle = nn.Sequential(nn.Linear(64, 6), nn.Linear(6, 6)), make()
        self.last = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x.flatten(2))))


class Bilinear(nn.Bilinear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, x)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(3, 5, (1, 3), padding=(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, :, None], x.new_zeros(len(x), 6, 1, 6)).flatten(2).mT


class Sparse(nn.Module):
    """A graph's neighbours: 4 edges."""

    def __init__(self, spelt: str) -> None:
        super().__init__()
        self.spelt, self.weight = spelt, nn.Parameter(torch.randn(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        graph = torch.sparse_coo_tensor([[0, 0, 1, 2], [0, 2, 1, 0]], torch.ones(4), (3, 3))
        y = (x @ self.weight)[0]
        return (torch.sparse.mm(graph, y) if self.spelt == "sparse.mm" else graph @ y).expand(4, 3, 5)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2, 6, 5)), nn.Parameter(torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.conv_tbc(x.transpose(0, 1).contiguous(), self.weight, self.bias, 1).transpose(0, 1)


class Dots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.dot(x[0, 0], self.weight), torch.vdot(x[0, 1], self.weight)]).sum().expand(4, 3, 5)


class Added(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addbmm(x.new_zeros(3, 5), x, x[:, :1].mT.expand(4, 6, 5)).expand(4, 3, 5)


OPERATIONS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "bilinear": (lambda: Bilinear(6, 6, 5), "_trilinear", 12 * 5 * 6 * 6),
    "deformable convolution": (Deformed, "deform_conv2d", 4 * 6 * 45),
    "sparse.mm": (lambda: Sparse("sparse.mm"), "_sparse_addmm", 4 * 5),
    "sparse @": (lambda: Sparse("@"), "mm", 4 * 5 + 12 * 6 * 5),
    "time first": (TimeFirst, "conv_tbc", 4 * 4 * 60),
    "dot": (Dots, "dot", 6),
    "addbmm": (Added, "addbmm", 4 * 3 * 6 * 5),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("method", ["fp32", "static8"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_no_method_reaches_are_named_and_counted(name: str, method: str) -> None:
    make, operation, macs = OPERATIONS[name]
    session = fractrain.attach(method, seeded(lambda: Around(make)))
    for _ in range(2):
        session.loss(session.model(X).square().mean()).backward()
        session.step()
    (found,) = [p for p in session.report().outside if p.operation == operation]
    assert found.macs == macs
    rows = [r for r in session.ledger.rows() if r.layer == found.name and r.product == "FW"]
    assert sum(r.macs for r in rows) == 2 * sum(p.macs for p in session.report().outside if p.name == found.name)
    assert {r.bits1 for r in rows} == {32}


@pytest.fixture
def library() -> Iterator[None]:
    lib = torch.library.Library("of_tests", "DEF")
    lib.define("mix(Tensor x, Tensor weight) -> Tensor")
    lib.impl("mix", lambda x, weight: x @ weight, "CompositeExplicitAutograd")
    yield
    lib._destroy()


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.ops.of_tests.mix(x, self.weight)


@pytest.mark.parametrize("method", ["fp32", "static8"])
def test_another_library_s_operation_on_a_weight_is_named_though_its_macs_are_not_known(library, method: str) -> None:
    session = fractrain.attach(method, seeded(lambda: Around(Foreign)))
    session.model(X)
    (found,) = session.report().outside
    assert (found.name, found.operation, found.macs) == ("middle", "mix", 0)
    assert found.why.endswith("its MACs are not known, and not counted")


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_recurrent_cells_are_named_and_counted(kind: Any, gates: int) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state: Any = None
            for t in range(3):
                state = self.cell(x[:, t], state)
            return (state[0] if isinstance(state, tuple) else state)[:, None]

    session = fractrain.attach("static8", seeded(lambda: nn.Sequential(Around(Cell), nn.Linear(4, 4))))
    session.model(X)
    found = [p for p in session.report().outside if p.name == "0.middle.cell"]
    assert {p.why for p in found} == {"recurrent layers stay in floating point"}
    assert sum(p.macs for p in found) == 3 * 4 * gates * 5 * (6 + 5)


class Chosen(nn.Module):
    """What is multiplied hangs on a flag, and on a name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 8), nn.Linear(8, 4)
        self.own = nn.ParameterDict({"a": torch.randn(8, 8), "b": torch.randn(8, 16)})

    def forward(self, x: torch.Tensor, more: bool = True, which: str = "a") -> torch.Tensor:
        y = self.first(x.flatten(1))
        return self.last(y + (F.linear(y, self.own[which].T).mean(1, keepdim=True) if more else 0))


def outside(session: fractrain.Session, product: str = "FW") -> int:
    return sum(r.macs for r in session.ledger.rows() if r.layer == "" and r.product == product)


@pytest.mark.parametrize("method", ["fp32", "pfq"])
def test_arguments_that_choose_what_runs_are_told_apart(method: str) -> None:
    session = fractrain.attach(method, seeded(Chosen))
    for more, which in ((True, "a"), (False, "a"), (True, "b"), (False, "b"), (True, "a")):
        session.model(X, more=more, which=which)
    assert outside(session) == 4 * (64 + 128 + 64)


@pytest.mark.parametrize("method", ["fp32", "pfq"])
def test_what_is_frozen_or_replaced_counts_anew_after_the_epoch(method: str) -> None:
    session = fractrain.attach(method, seeded(Chosen))

    def step() -> None:
        session.loss(session.model(X).square().mean()).backward()
        session.step()

    step()
    session.model.own["a"].requires_grad_(False)
    session.epoch()
    step()
    assert (outside(session, "FW"), outside(session, "GC")) == (2 * 256, 256)
    session.model.own["a"] = nn.Parameter(torch.randn(8, 32))
    session.epoch()
    step()
    assert (outside(session, "FW"), outside(session, "GC")) == (6 * 256, 5 * 256)


class Nested(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.own = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor, depth: int = 1) -> torch.Tensor:
        y = F.linear(self.first(x), self.own)
        return self(y, depth - 1) + F.linear(y, self.own) if depth else y


class Interrupted(Nested):
    """Is stopped by hand in its first pass."""

    passes = 0

    def forward(self, x: torch.Tensor, depth: int = 0) -> torch.Tensor:
        y = super().forward(x, 0)
        self.passes += 1
        if self.passes == 1:
            raise KeyboardInterrupt
        return y


@pytest.mark.parametrize(("build", "macs"), [(Nested, 12 * 64 * 5), (Interrupted, 12 * 64 * 2)])
def test_passes_inside_of_passes_and_interrupted_ones(build: Any, macs: int) -> None:
    session = fractrain.attach("fp32", seeded(build))
    x = torch.randn(4, 3, 8)
    if build is Interrupted:
        with pytest.raises(KeyboardInterrupt):
            session.model(x)
    session.model(x)
    assert session.report().macs == macs
    assert _get_current_dispatch_mode() is None
    assert session.method.state.seen is None


class InTurn(nn.Module):
    """Goes through its children, and multiplies besides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.own = nn.Linear(192, 8), nn.Linear(8, 8), nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(1)
        for layer in self.children():
            y = layer(y)
        return y @ self.own


@pytest.mark.parametrize("build", [InTurn, lambda: nn.Sequential(InTurn(), nn.Linear(4, 4))], ids=["alone", "inside"])
def test_own_products_of_a_module_that_calls_all_its_children_are_refused_in_words(build: Any) -> None:
    session = fractrain.attach("fp32", seeded(build), example_inputs=X)
    with pytest.raises(ConfigError, match=r"calls all of its children.*attach without example_inputs") as error:
        session.model(X)
    assert "\n" not in str(error.value)
    fractrain.attach("fp32", seeded(build)).model(X)

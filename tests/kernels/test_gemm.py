"""Products into blocks of memory, weights kept as codes, and rows taken from candidates: PyTorch's bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fractrain.kernels.cpu import gemm
from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.uniform import probed
from fractrain.layers.conv_linear import LARGE, QuantLinear
from fractrain.layers.convert import convert
from fractrain.layers.state import QuantState
from fractrain.methods.select import _pick, _shares
from fractrain.numerics.formats import Affine, Symmetric
from fractrain.numerics.precision import Operand, Precision


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(300, 256), (4, 128, 256), (2, 3, 64, 256), (3, 256)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_torch_s(shape: tuple[int, ...], biased: bool) -> None:
    a, w, bias = random(*shape), random(512, 256, seed=1), random(512, seed=2) if biased else None
    used = blocks.blocks().used
    y = gemm.linear(a, w, bias)
    torch.testing.assert_close(y, F.linear(a, w, bias), rtol=0, atol=1e-4)
    assert (blocks.blocks().used > used) == (y.nbytes >= blocks.SMALLEST)
    exact = a.double() @ w.double().t() + (0 if bias is None else bias.double())
    assert float((y - exact).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((4, 8, 64, 32), (4, 8, 32, 128)),
        ((300, 200), (200, 400)),
        ((2, 150, 64), (64, 300)),
        ((2, 1, 5, 3), (2, 3, 3, 4)),
    ],
    ids=str,
)
def test_matmul_is_torch_s(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    a, b = random(*first), random(*second, seed=1)
    for x, z in ((a, b), (a.mT.contiguous().mT, b), (a, b.mT.contiguous().mT), (a.double(), b.double())):
        y = gemm.matmul(x, z)
        want = x.double() @ z.double()
        assert y.shape == want.shape
        assert y.dtype == x.dtype
        assert float((y - want).abs().max()) < 1e-4


def test_products_that_autograd_must_see_are_torch_s() -> None:
    a, w = random(64, 128, 64).requires_grad_(), nn.Parameter(random(256, 64, seed=1))
    gemm.linear(a, w, None).sum().backward()
    gemm.matmul(a.detach(), w.t()).sum().backward()
    gemm.linear(a.detach(), w.detach(), nn.Parameter(random(256, seed=2))).sum().backward()
    assert a.grad is not None
    assert w.grad is not None


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("form", [Affine(rounding="stochastic"), Symmetric()], ids=["stochastic", "nearest"])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_a_large_weight_kept_as_codes_changes_nothing(
    bits: int, form: Affine | Symmetric, kernels: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for keeps in (True, False):
        if not keeps:
            monkeypatch.setattr(QuantLinear, "keeps_codes", False)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(256, LARGE // 256), nn.ReLU(), nn.Linear(LARGE // 256, 3))
        state = QuantState(3, kernels=kernels)  # type: ignore[arg-type]
        convert(net, Precision(*[Operand(bits, form)] * 6), state, keep_last=False)
        kept: dict[torch.dtype, int] = {}

        def pack(t: torch.Tensor, kept: dict[torch.dtype, int] = kept) -> torch.Tensor:
            if t.shape == (LARGE // 256, 256):
                kept[t.dtype] = kept.get(t.dtype, 0) + 1
            return t

        for step in range(2):
            state.step = step
            x = random(32, 256, seed=step).requires_grad_()
            net.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = net(x).square().mean()
            loss.backward()
        codes = torch.int16 if bits > 8 else torch.uint8
        assert kept[torch.float32] == (
            2 if keeps else 4
        )  # the parameter itself, in two steps; and its quantized values
        assert kept.get(codes, 0) == (2 if keeps else 0)
        found.append([x.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")
@pytest.mark.parametrize("shape", [(7, 16, 33, 33), (7, 300), (7, 5)], ids=str)
@pytest.mark.parametrize("last", [True, False])
def test_rows_of_the_chosen(shape: tuple[int, ...], last: bool) -> None:
    outs = [random(*shape, seed=k) for k in range(3)]
    if len(shape) == 4 and last:
        outs = [o.contiguous(memory_format=torch.channels_last) for o in outs]
    outs[1][2] = float("inf")
    choice = torch.tensor([2, 0, 0, 1, 2, 2, 1])
    got = _pick(choice, outs)
    assert all(torch.equal(got[n], outs[k][n]) for n, k in enumerate(choice.tolist()))
    assert got.data_ptr() not in {o.data_ptr() for o in outs}
    assert _shares(choice, [False, True], outs[1])[0] is None
    for k, only in enumerate(_shares(choice, [True] * 4, outs[1])):
        for n, chosen in enumerate(choice.tolist()):
            assert torch.equal(only[n], outs[1][n] if chosen == k else torch.zeros(shape[1:]))
    mixed = [outs[0], outs[1].double().float().clone(memory_format=torch.contiguous_format), outs[2]]
    assert torch.equal(_pick(choice, mixed), got)

"""Gradients of candidates are zero for samples that chose another: who knows that finds what reading them finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fractrain.kernels.cpu.uniform import probed
from fractrain.layers import tensor_hints as known_range
from fractrain.layers.batch_norm import CompactBatchNorm2d
from fractrain.layers.residual import CompactSumReLU
from fractrain.layers.state import CandidateScope, QuantState
from fractrain.methods.select import mix, row_products

pytestmark = pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")
SHAPES = [(12, 16, 32, 32), (7, 8, 5, 5), (5, 24, 3, 1)]


def images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def choices(samples: int, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    choice = torch.randint(0, candidates, (samples,), generator=torch.Generator().manual_seed(9))
    return torch.eye(candidates)[choice].requires_grad_(), choice


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [False, True], ids=["dense", "from a mean"])
def test_what_goes_round_a_block_is_added_up_over_its_candidates(shape: tuple[int, ...], spread: bool) -> None:
    (mask, choice), g = choices(shape[0], 3), images(shape, 1)
    found = []
    for compact in (False, True):
        state, x = QuantState(), images(shape, 2).requires_grad_()
        bodies = [images(shape, 3 + k).requires_grad_() for k in range(3)]
        join = CompactSumReLU(state)
        outs = []
        for k, body in enumerate(bodies):
            state.scope = CandidateScope(k, x, k, {})
            outs.append(join(body, x) if compact else torch.relu(body + x))
            state.scope = None
        y = mix(mask, choice, outs)
        # the gradient of a mean has no memory of its own: all its elements are one
        y.mean(dim=(2, 3)).sum().backward() if spread else y.backward(g)
        assert x.grad is not None
        found.append([x.grad, *(b.grad for b in bodies)])
    for plain, ours in zip(*found, strict=True):
        assert plain is not None
        assert ours is not None
        assert torch.equal(plain, ours)  # samples of candidates are apart: nothing is rounded


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_skips_zero_samples_without_changing_a_bit(shape: tuple[int, ...], relu: bool) -> None:
    live = np.arange(shape[0]) % 3 == 1
    g = images(shape, 1) * torch.from_numpy(live).view(-1, 1, 1, 1)
    found = []
    for told in (False, True):
        norm, x = CompactBatchNorm2d.of(nn.BatchNorm2d(shape[1]), QuantState()), images(shape, 2).requires_grad_()
        y = norm.rectified(x) if relu else norm(x)
        error = g.clone(memory_format=torch.preserve_format)
        if told:
            known_range.note_samples(error, live.astype(np.uint8))
        found.append([y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], error)])
    assert bool(found[0][1][0].any())  # what others' errors do to a sample without one
    for plain, ours in zip(*found, strict=True):
        assert torch.equal(plain, ours)


def test_a_note_is_of_no_use_once_the_tensor_has_changed() -> None:
    x = images((4, 8, 3, 3), 0)
    live = np.array([1, 0, 0, 1], np.uint8)
    known_range.note_samples(x, live)
    assert known_range.samples_of(x) is live
    x.add_(1.0)
    assert known_range.samples_of(x) is None


@pytest.mark.parametrize("shape", [*SHAPES, (3, 4100), (128, 16, 32, 32)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_inner_products_per_sample(shape: tuple[int, ...], threads: int) -> None:
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=gen) for _ in range(2))
    if len(shape) == 4:
        a, b = (t.contiguous(memory_format=torch.channels_last) for t in (a, b))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (got,) = row_products(a, [b])
    finally:
        torch.set_num_threads(before)
    exact = (a.double() * b.double()).flatten(1)
    # float32 sums of at most 4096 terms, of which any order errs by less
    assert bool(((got - exact.sum(1)).abs() <= 4096 * 2.0**-24 * exact.abs().sum(1)).all())
    assert float((got - exact.sum(1)).abs().max()) < 1e-5 * float(exact.abs().sum(1).max())
    bad = a.clone(memory_format=torch.preserve_format)
    bad[0, 0] = float("nan")
    assert row_products(bad, [b])[0].isnan().tolist() == [True, *[False] * (shape[0] - 1)]


def test_the_reference_takes_torch_s_inner_products() -> None:
    a, b = images((3, 16, 8, 8), 0), images((3, 16, 8, 8), 1)
    plain = torch.linalg.vecdot(*(t.permute(0, 2, 3, 1).reshape(3, -1) for t in (a, b)))
    assert torch.equal(row_products(a, [b], "reference")[0], plain)

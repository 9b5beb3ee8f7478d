"""Blocks of memory: whose they are, when they are used again, and how much may lie idle."""

from __future__ import annotations

import gc
import os
import threading
from itertools import pairwise

import pytest
import torch
from torch import nn

from fractrain.kernels.cpu import memory as blocks
from fractrain.kernels.cpu.memory import SMALLEST, Blocks, size_of_block
from fractrain.kernels.cpu.uniform import probed
from fractrain.layers.residual import CompactSumReLU, SumReLU

LARGE = (8, 16, 32, 32)
N = 8 * 16 * 32 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16, torch.bool])
@pytest.mark.parametrize("last", [False, True])
def test_tensors_are_what_torch_would_make(dtype: torch.dtype, last: bool) -> None:
    shape = (32, 16, 32, 32)
    layout = torch.channels_last if last else torch.contiguous_format
    like = torch.empty(shape, dtype=dtype, memory_format=layout)
    for x in (blocks.empty(shape, dtype, last), blocks.rows_like(like)[0]):
        assert (x.shape, x.stride(), x.dtype, x.is_leaf) == (like.shape, like.stride(), dtype, True)
        assert x.data_ptr() % 4096 == 0
        assert not x._is_view()
        x.zero_()
        assert not x.any()


@pytest.mark.parametrize(
    "shape", [(4, 8, 1, 1), (300, 960, 1, 1), (300, 1, 32, 32), (3, 8, 1, 5), (1, 300, 33, 33)], ids=str
)
@pytest.mark.parametrize("last", [False, True])
def test_strides_are_kept_where_both_layouts_are_dense(shape: tuple[int, ...], last: bool) -> None:
    x = torch.empty(shape, memory_format=torch.channels_last if last else torch.contiguous_format)
    for dtype in (torch.float32, torch.uint8):
        assert blocks.rows_like(x, dtype)[0].stride() == torch.empty_like(x, dtype=dtype).stride() == x.stride()


def test_small_and_unusual_tensors_are_torch_s_own() -> None:
    used = blocks.blocks().used
    kept = [blocks.empty((4, 4)), blocks.empty(LARGE, torch.float64), blocks.rows_like(torch.empty(64, 4))[0]]
    assert blocks.blocks().used == used
    assert [t.dtype for t in kept] == [torch.float32, torch.float64, torch.float32]


def test_a_block_is_used_again_when_nothing_holds_its_storage_and_not_before() -> None:
    mine = Blocks()
    x = mine.tensor(LARGE, torch.float32)
    place = x.data_ptr()
    holders = [x.view(-1)[5:9], x.numpy()[1], x.detach()]
    del x
    for _ in range(3):
        other = mine.tensor(LARGE, torch.float32)
        assert other.data_ptr() != place
        del other
        holders.pop()
    again = [mine.tensor(LARGE, torch.float32).data_ptr() for _ in range(2)]
    assert place in again


def test_autograd_s_graph_holds_a_block() -> None:
    mine = Blocks()
    x = mine.tensor(LARGE, torch.float32).fill_(3.0).requires_grad_()
    loss = (x * x).sum()
    place = x.data_ptr()
    del x
    gc.collect()
    other = mine.tensor(LARGE, torch.float32)
    assert other.data_ptr() != place
    loss.backward()


def test_there_is_hardly_more_than_was_in_use_at_once() -> None:
    mine = Blocks()
    for i in range(40):  # each of a size of its own, freed at once
        mine.tensor(((8 + i) << 20,), torch.uint8)
        assert mine.used == 0
        assert mine.idle <= mine.peak + blocks.SPARE
    assert mine.idle > 40 << 20
    for _ in range(3):  # two sizes in turn: both stay
        places = [mine.tensor(((n << 20),), torch.uint8).data_ptr() for n in (20, 10)]
    assert places == [mine.tensor(((n << 20),), torch.uint8).data_ptr() for n in (20, 10)]


def test_what_a_step_needs_is_not_given_back_step_by_step() -> None:
    mine, places = Blocks(), []
    for _ in range(5):  # forward keeps, backward frees and needs other sizes
        kept = [mine.tensor((8 << 20,), torch.uint8) for _ in range(30)]
        places.append({t.data_ptr() for t in kept})
        while kept:
            kept.pop()
            mine.tensor((12 << 20,), torch.uint8)
    assert places[-1] == places[-2]


def test_a_large_block_serves_small_tensors_and_is_whole_again() -> None:
    mine = Blocks()
    large = mine.tensor((8 << 20,), torch.uint8)
    place, size = large.data_ptr(), mine.used
    del large
    kept = [mine.tensor((2 << 20,), torch.uint8) for _ in range(4)]
    assert sorted(t.data_ptr() - place for t in kept) == [0, 2 << 20, 4 << 20, 6 << 20]
    for i in (2, 0, 3, 1):  # a hole, the ends, and what joins them all
        kept[i] = torch.empty(0)
    assert (mine.used, mine.idle) == (0, size)
    assert mine.tensor((8 << 20,), torch.uint8).data_ptr() == place


def test_tensors_in_use_never_overlap_and_all_bytes_are_accounted_for() -> None:
    mine, generator = Blocks(), torch.Generator().manual_seed(0)
    kept: list[torch.Tensor] = []
    for i in range(3000):
        draw = torch.randint(0, 1 << 30, (2,), generator=generator).tolist()
        if kept and (len(kept) > 40 or draw[0] % 2):
            x = kept.pop(draw[1] % len(kept))
            assert bool((x[:: len(x) - 1] == x[0]).all())  # first and last byte are what was written
            del x
        else:
            kept.append(mine.tensor((SMALLEST * (1 + draw[0] % 24) // 2 + SMALLEST,), torch.uint8).fill_(i % 251))
        places = sorted((t.data_ptr(), size_of_block(len(t))) for t in kept)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(places))
        assert sum(n for _, n in places) <= mine.used <= sum(n for _, n in places) + len(places) * SMALLEST
    segments = {id(p.segment): p.segment.nbytes for found in mine._free.values() for p in found.values()}
    kept.clear()
    assert mine.used == 0
    kept.append(mine.tensor((max(segments.values()) + 1,), torch.uint8))  # none has room for it before all are joined
    whole = [p for found in mine._free.values() for p in found.values()]
    assert all(p.size == p.segment.nbytes for p in whole)
    assert mine.idle == sum(p.size for p in whole)
    assert len(segments) > 1


@pytest.mark.parametrize("wanted", [1, 4096, 4097, SMALLEST, SMALLEST + 1, 8 << 20, (8 << 20) + 1, 10_000_019])
def test_sizes(wanted: int) -> None:
    size = size_of_block(wanted)
    assert size >= wanted
    assert size % 4096 == 0
    assert size - wanted < max(4096, wanted / 8)


def test_many_threads_never_share_a_block() -> None:
    mine, wrong = Blocks(), []

    def work(number: int) -> None:
        for i in range(200):
            x = mine.tensor((1 << 19,), torch.uint8)
            x.fill_(number)
            y = mine.tensor((1 << 19,), torch.uint8)
            y.fill_(100 + i % 100)
            if not bool((x == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert mine.used == 0


def test_where_the_system_gives_no_block_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    monkeypatch.setattr(blocks, "_BLOCKS", Blocks())  # with nothing free that another test has left
    x = blocks.empty((3, 7, 211, 307), channels_last=True)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert blocks.blocks().used == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own_copy() -> None:
    mine = Blocks()
    x = mine.tensor(LARGE, torch.float32).fill_(1.0)
    child = os.fork()
    if child == 0:
        x.fill_(2.0)
        os._exit(0)
    os.waitpid(child, 0)
    assert bool((x == 1.0).all())


@pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_sum_and_relu_in_one_pass_are_torch_s_bits(layout: torch.memory_format) -> None:
    gen = torch.Generator().manual_seed(0)

    def random() -> torch.Tensor:
        x = torch.randn(LARGE, generator=gen)
        x[0, 0, 0, :6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0])
        x[1] = 0.0
        return x.contiguous(memory_format=layout)

    a, b, g = random(), random(), random()
    found = []
    for layer in (SumReLU(), CompactSumReLU()):
        x, z = a.clone().requires_grad_(), b.clone().requires_grad_()
        y = layer(x, z)
        y.backward(g)
        assert x.grad is not None
        assert z.grad is not None
        found.append([y.detach(), x.grad, z.grad])
    for theirs, ours in zip(*found, strict=True):
        assert torch.equal(theirs.nan_to_num(7.0), ours.nan_to_num(7.0))
        assert torch.equal(theirs.isnan(), ours.isnan())


@pytest.mark.skipif(probed() is None, reason="compiled kernels are not available")
def test_sum_and_relu_of_what_differs_is_torch_s_own_and_keeps_no_float() -> None:
    layer = CompactSumReLU()
    x, z = torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5)
    for a, b in ((x.double(), z.double()), (x, z[:1]), (x, z.contiguous(memory_format=torch.channels_last))):
        assert torch.equal(layer(a, b), torch.relu(a + b))
    kept: list[tuple[torch.dtype, int]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append((t.dtype, t.numel())), t)[1], lambda t: t):
        layer(*(nn.Parameter(t.contiguous(memory_format=torch.channels_last)) for t in (x, z)))
        layer(nn.Parameter(x.double()), z.double())
    assert kept == [(torch.uint8, x.numel() // 8), (torch.bool, x.numel())]

"""What a gated block leaves behind and how it treats blocks of unusual shape."""

from __future__ import annotations

import copy
import io
import weakref

import pytest
import torch
from torch import nn

from fractrain.layers.convert import quant_layers
from fractrain.methods.base import MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.methods.gated_block import GatedBlock
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.errors import ConfigError


def small(seed=0, **settings):
    context = MethodContext(seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = DFQ(**settings)
        model = method.prepare(ResNetCifar(1, 4), context)
        for p in model.precision_gate.parameters():
            nn.init.normal_(p)
        x = torch.randn(8, 3, 8, 8)
    return method, model, x, context.ledger


def macs(ledger, product):
    return sum(r.macs for r in ledger.rows() if r.product == product)


def test_a_model_can_be_copied_and_saved_between_forward_and_backward():
    method, model, x, _ = small()
    loss = model(x).sum() + method.extra_loss()
    twin = copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    loss.backward()
    twin.eval()
    model.eval()
    assert torch.equal(twin(x), model(x))
    assert twin.precision_gate is not model.precision_gate
    gates = {id(m._gate[0]) for m in twin.modules() if isinstance(m, GatedBlock)}
    assert gates == {id(twin.precision_gate)}


def test_the_graph_keeps_no_float_copy_of_a_blocks_input():
    _, model, x, _ = small()
    alive = {}
    blocks = [m for m in model.modules() if isinstance(m, GatedBlock)]
    for b in blocks[1:]:
        b.register_forward_pre_hook(lambda b, args: alive.__setitem__(b.name, weakref.ref(args[0])))
    y = model(x)
    assert [name for name, ref in alive.items() if ref() is not None] == []
    y.sum().backward()


def test_work_that_did_not_run_is_not_counted():
    _method, model, x, ledger = small()
    model(x).sum().backward()
    once = {p: macs(ledger, p) for p in ("FW", "EB", "GC")}
    with torch.no_grad():
        model(x)  # still in training mode, as when batch norm statistics are re-estimated
    assert macs(ledger, "FW") == 2 * once["FW"]
    assert macs(ledger, "EB") == once["EB"]
    assert macs(ledger, "GC") == once["GC"]
    for b in (m for m in model.modules() if isinstance(m, GatedBlock)):
        b.block.conv2.weight.requires_grad_(False)  # frozen: no gradient computation from now on
    per_sample = sum((8 // 2**g) ** 2 * 9 * (16 * 2**g) ** 2 for g in range(3))
    model(x).sum().backward()
    assert macs(ledger, "GC") == 2 * once["GC"] - 8 * per_sample


class Net(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem, self.b0, self.head = nn.Conv2d(3, 4, 1), block, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.b0(self.stem(x)).mean(dim=(2, 3)))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(2, 4, 1)


class AddInPlace(Odd):
    def forward(self, x):
        y = self.conv(x)
        y += x
        return y


class CalledTwice(Odd):
    def forward(self, x):
        return self.conv(torch.tanh(self.conv(x)))


class SplitInput(Odd):
    def forward(self, x):
        return self.other(x[:, :2]) + self.conv(x)


class FlatInput(nn.Module):
    """Linear layers on a 3-D view: halves and whole begin at the same address."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.part, self.whole = nn.Linear(12, 25), nn.Linear(25, 25)

    def forward(self, x):
        n, c, h, w = x.shape
        z = x.reshape(n, c, h * w)
        return (self.part(z[..., :12]) + self.whole(z)).view(n, c, h, w) + self.conv(x)


@pytest.mark.parametrize(
    "block",
    [AddInPlace, SplitInput, CalledTwice, FlatInput],
)
@pytest.mark.parametrize("forward", ["all", "authors"])
def test_blocks_of_unusual_shape_equal_a_run_of_each_candidate_alone(block, forward):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        method = DFQ(bits=(3, 4, 4), grad_bits=(6, 6, 8), forward=forward)
        net = method.prepare(Net(block()), MethodContext(blocks=["b0"]))
        x = torch.randn(6, 3, 5, 5)
    method.state.ledger.enabled = False
    gated = net.b0
    choice = torch.tensor([0, 1, 2, 1, 2, 0])
    gated._gate = (lambda index, h: torch.eye(3)[choice].requires_grad_(),)
    h = net.stem(x).detach()
    ours = gated(h)
    for k in range(3):
        for layer in quant_layers(gated.block):
            layer.precision = gated.precisions[k]
        alone = gated.block(h.clone()).detach()
        assert torch.equal(ours[choice == k].detach(), alone[choice == k]), f"candidate {k}"


class WithDropout(Odd):
    def forward(self, x):
        return self.conv(nn.functional.relu(self.drop(self.conv0(x))))

    def __init__(self):
        super().__init__()
        self.conv0, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout(0.5)


class WithDropoutByFunction(WithDropout):
    def forward(self, x):
        return self.conv(nn.functional.relu(nn.functional.dropout(self.conv0(x), 0.5, self.training)))

    def __init__(self):
        super().__init__()
        del self.drop


@pytest.mark.parametrize("block", [WithDropout, WithDropoutByFunction])
def test_candidates_of_a_block_with_dropout_share_no_products(block):
    """Each pass draws a mask of its own: values of one pass must not meet the graph of another."""
    results = []
    for forward in ("all", "authors"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            method = DFQ(bits=(4, 4), grad_bits=(6, 8), forward=forward)
            net = method.prepare(Net(block()), MethodContext(blocks=["b0"]))
            method.state.ledger.enabled = False
            net.b0._gate = (lambda index, h: torch.eye(2)[torch.tensor([0, 1, 1, 0])].requires_grad_(),)
            y = net(torch.randn(4, 3, 5, 5))
            y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in net.b0.parameters()]))
    (y, grads), (other, others) = results
    assert torch.equal(y, other)
    assert all(torch.equal(g, o) for g, o in zip(grads, others, strict=True) if g is not None)


@pytest.mark.parametrize(
    "names", [["groups.1.0", "groups.0.0", "groups.2.0"], ["groups.0.0", "groups.2.0", "groups.1.0"]]
)
def test_blocks_named_out_of_order_are_refused(names):
    model = DFQ().prepare(ResNetCifar(1, 4), MethodContext(blocks=names))
    with pytest.raises(ConfigError, match="in the order data flows"):
        model(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("names", [["groups.0", "groups.0.0"], ["groups.0.0", "groups.0.0"]])
def test_nested_and_repeated_blocks_are_refused(names):
    with pytest.raises(ConfigError, match="named twice or lies inside another"):
        DFQ().prepare(ResNetCifar(1, 4), MethodContext(blocks=names))


def test_an_empty_batch_is_refused_in_one_line():
    _, model, x, _ = small()
    for training in (True, False):
        model.train(training)
        with pytest.raises(ConfigError, match="empty batch"):
            model(x[:0])


def test_unknown_block_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'groups\.0\.1'.*did you mean 'groups\.0"):
        DFQ().prepare(ResNetCifar(1, 4), MethodContext(blocks=["groups.0.1"]))

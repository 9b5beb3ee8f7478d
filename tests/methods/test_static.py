"""static: its quantizer is the authors' (checked against float64 by hand), its widths are those of the ledger."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fractrain.cost import metrics
from fractrain.cost.formulas import FLOAT_MAC_BITS
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.util.errors import ConfigError


def train(name, settings, steps=4):
    context = MethodContext(seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = ResNetCifar(1, 4)
        x, y = torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6,))
    context.ledger.meta["blocks"] = model.gateable_blocks()
    method = registry.create(name, settings)
    model = method.prepare(model, context).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        method.on_step_start(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, context.ledger


def test_at_8_8_it_is_the_sbm_of_the_authors_bit_for_bit():
    static, ledger = train("static", {})
    sbm, other = train("sbm", {"variant": "fractrain"})
    assert ledger.digest() == other.digest()
    for name, value in static.state_dict().items():
        assert torch.equal(value, sbm.state_dict()[name]), name


@pytest.mark.parametrize(
    ("bits", "grad_bits", "published"),  # the static points of the FracTrain figures, cp in percent
    [
        (8, 8, 6.25), (8, 12, 8.33), (8, 16, 10.417), (6, 8, 4.297), (6, 12, 5.859), (4, 6, 2.083), (3, 6, 1.465),
        (2, 6, 0.911),
    ],
)  # fmt: skip
def test_cp_of_the_published_static_points(bits, grad_bits, published):
    _, ledger = train("static", {"bits": bits, "grad_bits": grad_bits}, steps=1)
    assert metrics.cp(ledger) == pytest.approx(published, abs=4e-3)


@pytest.mark.parametrize("widths", [(4, 3, 6), (8, 32, 8), (32, 4, 32), (5, 5, 32)])
def test_every_operand_has_its_own_width(widths):
    a, w, e = widths
    _, ledger = train("static", {"bits": a, "weight_bits": w, "grad_bits": e}, steps=1)
    seen = {(r.product, r.bits1, r.bits2) for r in ledger.rows() if r.layer.endswith("conv1")}
    assert seen == {("FW", a, w), ("EB", e, w), ("GC", a, e)}
    assert metrics.cp(ledger) == pytest.approx(100 * (a * w + e * w + a * e) / (3 * FLOAT_MAC_BITS))
    assert {r.bits1 for r in ledger.rows() if r.layer == "head"} == {32}


def test_operands_lie_on_the_grids_of_the_formula():
    """Affine, 2^k - 1 steps between the extremes: per tensor for A and E, per filter for W; A and W to the nearest."""
    seen = {}
    context = MethodContext(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = ResNetCifar(1, 4)
    model = registry.create("static", {"bits": 3, "weight_bits": 4, "grad_bits": 5}).prepare(plain, context)
    layer = next(m for m in quant_layers(model) if m.site == "groups.1.0.conv1")
    layer.observer = lambda _layer, name, _op, x, q: seen.__setitem__(name, (x.double(), q.double()))
    g = torch.Generator().manual_seed(1)
    F.cross_entropy(model(torch.randn(6, 3, 8, 8, generator=g)), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
    for name, bits, dims in (("fw_a", 3, (0, 1, 2, 3)), ("fw_w", 4, (1, 2, 3)), ("E", 5, (0, 1, 2, 3))):
        x, q = seen[name]
        low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        codes = (q - low) / scale
        assert (codes - codes.round()).abs().max() < 1e-3, name
        assert codes.round().unique().numel() <= 2**bits
        bound = 1.0 if name == "E" else 0.5  # stochastic rounding
        assert ((q - x) / scale).abs().max() <= bound + 1e-3, name


@pytest.mark.parametrize("bad", [1, 17, 31, 33, 0, -4])
@pytest.mark.parametrize("key", ["bits", "grad_bits", "weight_bits"])
def test_widths_that_do_not_exist_are_refused_in_one_line(key, bad):
    with pytest.raises(ConfigError, match=f"{key}.*2..16 bits, or 32") as error:
        registry.create("static", {key: bad})
    assert "\n" not in str(error.value)

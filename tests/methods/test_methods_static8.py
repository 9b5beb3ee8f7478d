"""static8: symmetric grids, first and last layer in floating point."""

from __future__ import annotations

import pytest
import torch

from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import MethodContext
from fractrain.models.resnet_cifar import ResNetCifar


@pytest.mark.parametrize("bits", [8, 4])
def test_every_operand_is_on_a_symmetric_grid_and_the_ends_are_float(bits):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetCifar(1, 4)
    model = registry.create("static8", {"bits": bits}).prepare(model, MethodContext())
    top = 2 ** (bits - 1) - 1
    seen = {}

    def observer(layer, name, op, original, quantized):
        seen.setdefault(layer.site, set()).add(name)
        groups = zip(original, quantized, strict=True) if name == "fw_w" else [(original, quantized)]
        for x, q in groups:
            x, q = x.detach().double(), q.double()
            codes = q / (x.abs().max() / top)
            assert float((codes - codes.round()).abs().max()) < 1e-4
            assert float(codes.abs().max().round()) == top
            assert float((q - x).abs().max()) <= (1.001 if name == "E" else 0.501) * float(x.abs().max()) / top
            assert torch.equal(q == 0, codes.round() == 0)

    for layer in quant_layers(model):
        layer.observer = observer
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model(x).square().sum().backward()
    assert model.stem[0].precision.is_float
    assert model.head.precision.is_float
    blocks = {n for n, m in model.named_modules() if n.startswith("groups") and hasattr(m, "kernel_size")}
    assert set(seen) == blocks
    assert all(names == {"fw_a", "fw_w", "E"} for names in seen.values())

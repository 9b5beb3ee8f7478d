"""The CIFAR ResNets: exact MACs and parameters by hand and by torch's own counter, blocks, seeds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fractrain.models import registry
from fractrain.models.macs import forward_macs, layer_macs
from fractrain.util.errors import ConfigError

MACS = {
    ("resnet38", "cifar10"): 83_280_512,
    ("resnet38", "cifar100"): 83_286_272,
    ("resnet74", "cifar10"): 168_215_168,
    ("resnet74", "cifar100"): 168_220_928,
    ("resnet20", "cifar10"): 40_813_184,
    ("resnet56", "cifar100"): 125_753_600,
    ("resnet110", "cifar10"): 253_149_824,
}
CLASSES = {"cifar10": 10, "cifar100": 100}
BLOCKS = {"resnet38": 6, "resnet74": 12, "resnet20": 3, "resnet56": 9, "resnet110": 18}
CASES = sorted(MACS)


def by_hand(n: int, classes: int, size: int = 32) -> tuple[int, int]:
    """(MACs, parameters) of a 6n+2 ResNet with projection shortcuts, layer by layer."""
    macs, parameters = size * size * 16 * 3 * 9, 16 * 3 * 9 + 2 * 16
    inputs = 16
    for g, width in enumerate((16, 32, 64)):
        area = (size // 2**g) ** 2
        for i in range(n):
            macs += area * width * inputs * 9 + area * width * width * 9
            parameters += width * inputs * 9 + width * width * 9 + 4 * width
            if g > 0 and i == 0:
                macs += area * width * inputs
                parameters += width * inputs + 2 * width
            inputs = width
    return macs + 64 * classes, parameters + 64 * classes + classes


def build(name: str, dataset: str = "cifar10", size: int = 32, seed: int = 0) -> nn.Module:
    return registry.build(name, CLASSES[dataset], (3, size, size), seed)


@pytest.mark.parametrize(("name", "dataset"), CASES)
def test_macs_and_parameters(name, dataset):
    model = build(name, dataset)
    macs, parameters = by_hand(BLOCKS[name], CLASSES[dataset])
    info = registry.info(name)
    assert macs == MACS[name, dataset] == info.forward_macs[dataset] == forward_macs(model, (3, 32, 32))
    assert parameters == info.parameters[dataset] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * macs


def test_macs_of_other_sizes_and_unchanged_model():
    model = build("resnet38", size=8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert forward_macs(model, (3, 8, 8)) == by_hand(6, 10, 8)[0]
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_layer_macs_know_groups_strides_and_rows():
    model = nn.Sequential(nn.Conv2d(4, 8, (3, 1), stride=2, groups=2, padding=1), nn.Flatten(2), nn.Linear(20, 5))
    # output 8 x 4 x 5 of a 4 x 8 x 8 input; 2 channels per group, 3 x 1 kernel; then 8 rows of 20 -> 5
    assert layer_macs(model, (4, 8, 8)) == {"0": 8 * 4 * 5 * 3 * 2, "2": 8 * 20 * 5}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_come_in_the_order_data_flows(name):
    model = build(name, size=8)
    n = BLOCKS[name]
    expected = [f"groups.{g}.{i}" for g in range(3) for i in range(n)]
    assert model.gateable_blocks() == expected
    assert registry.info(name).blocks == 3 * n
    order = []
    for block in expected:
        model.get_submodule(block).register_forward_hook(
            lambda m, a, o, block=block: order.append((block, o.shape[1:]))
        )
    model(torch.zeros(2, 3, 8, 8))
    assert [b for b, _ in order] == expected
    assert [tuple(s) for _, s in order[n - 1 :: n]] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_depth_counts_its_name():
    for name, n in BLOCKS.items():
        weighted = [m for k, m in build(name, size=8).named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
                    and "shortcut" not in k]  # fmt: skip
        assert len(weighted) == 6 * n + 2 == int(name.removeprefix("resnet"))


def test_convolutions_start_with_the_authors_deviation():
    for m in build("resnet38").modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000:
            expected = (2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)) ** 0.5
            assert float(m.weight.detach().std()) == pytest.approx(expected, rel=5 / (2 * m.weight.numel()) ** 0.5)


def test_weights_are_a_function_of_the_seed_alone():
    before = torch.get_rng_state()
    one, two, other = build("resnet38", size=8), None, build("resnet38", size=8, seed=1)
    torch.rand(3)
    two = build("resnet38", size=8)
    torch.set_rng_state(before)
    build("resnet38", size=8, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (m.state_dict() for m in (one, two, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["stem.0.weight"], c["stem.0.weight"])


def test_unknown_model_and_impossible_pairs():
    with pytest.raises(ConfigError, match=r"unknown model 'resnet83' \(did you mean 'resnet38'"):
        registry.info("resnet83")
    text = SimpleNamespace(name="wikitext103", classes=10, shape=())
    tiny = SimpleNamespace(name="tiny", classes=10, shape=(3, 4, 4))
    fits = SimpleNamespace(name="digits", classes=10, shape=(3, 8, 8))
    assert "takes images" in registry.compatible("resnet38", text)
    assert "at least 8x8" in registry.compatible("resnet38", tiny)
    assert registry.compatible("resnet38", fits) is None


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_classifier_starts_as_the_authors_does(dataset):
    """N(0, sqrt(2 / (inputs * outputs))): 0.0559 and 0.0177."""
    weights = torch.stack([build("resnet38", dataset, seed=seed).head.weight.detach() for seed in range(8)])
    assert weights.std().item() == pytest.approx({"cifar10": 0.0559, "cifar100": 0.0177}[dataset], rel=0.03)

"""Depthwise convolutions keep their widths in PFQ, DFQ and FracTrain; gates of the papers' shapes; presets; run ids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fractrain.cost import metrics
from fractrain.engine.config import RunConfig
from fractrain.layers.convert import quant_layers
from fractrain.methods import registry
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.card import declared_precisions
from fractrain.methods.depthwise import is_depthwise
from fractrain.methods.gate import GateNetwork
from fractrain.methods.presets import PRESETS, paper_settings
from fractrain.models import registry as models
from fractrain.models.macs import block_macs, layer_macs

SHAPE = (3, 16, 16)


def step(name: str, settings: dict[str, object]) -> tuple[Method, nn.Module, MethodContext, dict[str, int]]:
    """One training step on MobileNetV2, weighted by its blocks' MACs."""
    plain: nn.Module = models.build("mobilenet_v2", 10, SHAPE)
    blocks = plain.gateable_blocks()  # type: ignore[operator]
    macs = layer_macs(plain, SHAPE)
    context = MethodContext(batch_size=4, blocks=blocks, block_weights=block_macs(plain, SHAPE, blocks))
    context.ledger.meta.update(blocks=blocks, block_weights=list(context.block_weights))
    method = registry.create(name, settings)
    model = method.prepare(plain, context).train()
    method.on_epoch_start(0)
    method.on_step_start(0)
    g = torch.Generator().manual_seed(0)
    context.ledger.samples(4)
    loss = F.cross_entropy(model(torch.randn(4, *SHAPE, generator=g)), torch.randint(0, 10, (4,), generator=g))
    extra = method.extra_loss()
    (loss if extra is None else loss + extra).backward()
    return method, model, context, macs


def cost(a: int, w: int, e: int) -> int:
    return a * w + e * w + a * e


def split(macs: dict[str, int]) -> tuple[int, int]:
    """MACs in blocks: (all others, depthwise)."""
    inside = {k: v for k, v in macs.items() if k.startswith("blocks.")}
    depthwise = sum(v for k, v in inside.items() if k.endswith(".conv2"))
    return sum(inside.values()) - depthwise, depthwise


def block_parts(macs: dict[str, int]) -> dict[tuple[str, str], int]:
    """MACs of each block's depthwise convolution and of its other layers."""
    parts: dict[tuple[str, str], int] = {}
    for layer, n in macs.items():
        if layer.startswith("blocks."):
            key = (layer.split(".")[1], "depthwise" if layer.endswith(".conv2") else "gated")
            parts[key] = parts.get(key, 0) + n
    return parts


@pytest.mark.parametrize("name", ["dfq", "fractrain"])
def test_gated_blocks_hold_depthwise_convolutions_at_8_and_16_bits(name: str) -> None:
    # one candidate: cp is known in closed form, and so is what the cost term must tell the gates
    method, _, context, macs = step(name, {"bits": (3,), "grad_bits": (6,)})
    others, depthwise = split(macs)
    executed = others * cost(3, 4, 6) + depthwise * cost(8, 4, 16)
    assert metrics.cp(context.ledger) == pytest.approx(100 * executed / (3 * 1024 * (others + depthwise)), rel=1e-12)
    # train_frac.py: depthwise weights taken for 8 bits, and in the 100 % at what they cost
    told = others * cost(3, 4, 6) + depthwise * cost(8, 8, 16)
    expected = 100 * told / (3 * 1024 * others + depthwise * cost(8, 8, 16))
    assert method.metrics()["gate_cp"] == pytest.approx(expected, rel=1e-6)
    gated = [n for k, n in block_parts(macs).items() if k[1] == "gated"]
    sign = -1 if expected < method.target() else 1
    term = 1e-3 * sign * 4 * told / 1024 / (sum(gated) / len(gated))  # beta * cost of 4 samples / mean(conv_info)
    assert float(method.extra_loss().detach()) == pytest.approx(term, rel=1e-6)
    seen = {(r.product, r.bits1, r.bits2) for r in context.ledger.rows() if r.layer.endswith(".conv2")}
    assert seen == {("FW", 8, 4), ("EB", 16, 4), ("GC", 8, 16)}
    rest = {(r.product, r.bits1, r.bits2) for r in context.ledger.rows()
            if r.layer.startswith("blocks.") and r.layer.split(".")[-1] in ("conv1", "conv3")}  # fmt: skip
    assert rest == {("FW", 3, 4), ("EB", 6, 4), ("GC", 3, 6)}


def test_the_constant_is_a_setting() -> None:
    _, _, context, macs = step("dfq", {"bits": (3,), "grad_bits": (6,), "depthwise_bits": (6, 12)})
    others, depthwise = split(macs)
    expected = 100 * (others * cost(3, 4, 6) + depthwise * cost(6, 4, 12)) / (3 * 1024 * (others + depthwise))
    assert metrics.cp(context.ledger) == pytest.approx(expected, rel=1e-12)


def test_what_every_sample_chose_is_what_the_gates_are_told() -> None:
    method, _, context, macs = step("dfq", {})
    others, depthwise = split(macs)
    executed = metrics.cp(context.ledger) / 100 * 3 * 1024 * (others + depthwise)
    told = executed + depthwise * (cost(8, 8, 16) - cost(8, 4, 16))
    expected = 100 * told / (3 * 1024 * others + depthwise * cost(8, 8, 16))
    assert method.metrics()["gate_cp"] == pytest.approx(expected, rel=1e-6)
    # equal weights are another figure: the weights are in use
    weighted = metrics.cp(context.ledger)
    context.ledger.meta["block_weights"] = [1.0] * 17
    assert metrics.cp(context.ledger) != pytest.approx(weighted, rel=1e-3)


def test_pfq_stages_leave_depthwise_convolutions_alone() -> None:
    method, model, context, macs = step("pfq", {"window": 2, "epsilon": 1e6})
    others, depthwise = split(macs)
    expected = 100 * (others * cost(3, 3, 6) + depthwise * cost(8, 8, 16)) / (3 * 1024 * (others + depthwise))
    assert metrics.cp(context.ledger) == pytest.approx(expected, rel=1e-12)
    for epoch in range(3):
        method.on_epoch_end(epoch, 1.0)
    assert method.metrics()["stage"] > 0
    for layer in quant_layers(model):
        p = layer.precision
        if is_depthwise(layer):
            assert (p.fw_a.bits, p.fw_w.bits, p.gc_e.bits) == (8, 8, 16)
        elif not p.is_float:
            assert p.fw_a.bits == method.metrics()["bits"] > 3


@pytest.mark.parametrize(
    ("conv", "depthwise"),
    [(nn.Conv2d(8, 8, 3, groups=8), True), (nn.Conv2d(8, 16, 3, groups=8), True), (nn.Conv2d(8, 8, 3), False),
     (nn.Conv2d(8, 8, 3, groups=4), False), (nn.Conv2d(1, 4, 3), False), (nn.Linear(4, 4), False)],
)  # fmt: skip
def test_what_depthwise_means(conv: nn.Module, depthwise: bool) -> None:
    assert is_depthwise(conv) == depthwise


@pytest.mark.parametrize(
    ("sizes", "macs", "parameters"),
    [
        # MobileNetV2: C -> 64 -> 32, LSTM(32, 32), 32 -> K
        ((64, 32, None), 24 * 64 + 64 * 32 + 4 * 32 * 64 + 32 * 5,
         24 * 64 + 64 + 64 * 32 + 32 + 4 * 32 * 64 + 8 * 32 + 32 * 5 + 5),
        # ImageNet: C -> 40, LSTM(40, 20), 20 -> K
        ((0, 40, 20), 24 * 40 + 4 * 20 * 60 + 20 * 5, 24 * 40 + 40 + 4 * 20 * 60 + 8 * 20 + 20 * 5 + 5),
    ],
)  # fmt: skip
def test_gates_of_both_shapes(sizes: tuple[int, int, int | None], macs: int, parameters: int) -> None:
    gate = GateNetwork([24], 5, *sizes)
    assert gate.macs(0) == macs
    assert sum(p.numel() for p in gate.parameters()) == parameters
    assert gate(0, torch.randn(3, 24, generator=torch.Generator().manual_seed(0))).sum(1).tolist() == (
        pytest.approx([1.0] * 3)
    )


def test_presets_are_settings_their_methods_have() -> None:
    for preset in PRESETS:
        for method in preset.methods:
            registry.create(method, preset.settings)
    indicator = {"indicator_clock": "authors", "indicator_loss": "total"}
    for method in ("fractrain", "dfq", "pfq", "sbm", "static", "cpt"):
        imagenet = paper_settings(method, "resnet18", "digits32")  # an embedded set has those of what it stands for
        assert imagenet["keep"] == ["conv1", "*.downsample.0"]
        registry.create(method, imagenet)
        used = {name for name in indicator if name in registry.get(method).Settings.model_fields}
        assert paper_settings(method, "resnet38", "cifar100") == {name: indicator[name] for name in used}
    for method in ("dynasty", "static8", "dorefa", "wageubn", "slu"):
        assert paper_settings(method, "resnet18", "digits32") == {}
    four = {"bits": [3, 4, 6, 8], "grad_bits": [6, 8, 12, 16], "keep": ["conv1", "*.downsample.0"]}
    gate = {"weight_bits": 6, "gate_hidden": 0, "gate_embed": 40, "gate_state": 20}
    stages = {"target_cp": 3.0, "target_step": 0.5, "sharp": False, "running": 0.9, "indicator_loss": "total"}
    for model in ("resnet18", "resnet34"):
        assert paper_settings("pfq", model, "imagenet") == four
        assert paper_settings("dfq", model, "imagenet") == {**four, **gate}
        assert paper_settings("fractrain", model, "imagenet") == {**four, **gate, **stages}
        for method in ("sbm", "static"):
            assert paper_settings(method, model, "imagenet") == {"bits": 8, "grad_bits": 16, "keep": four["keep"]}
    assert paper_settings("fractrain", "mobilenet_v2", "digits") == {"gate_hidden": 64, "gate_embed": 32, **indicator}


@pytest.mark.parametrize("name", ["sbm", "static", "pfq", "cpt", "dfq", "fractrain"])
def test_layers_that_are_kept_multiply_in_floating_point_and_are_not_in_cp(name: str) -> None:
    plain: nn.Module = models.build("resnet18", 10, (3, 32, 32))
    blocks = plain.gateable_blocks()  # type: ignore[operator]
    settings = paper_settings(name, "resnet18", "imagenet")
    settings |= {"bits": (3,), "grad_bits": (6,)} if name in ("dfq", "fractrain") else {}
    context = MethodContext(batch_size=4, blocks=blocks, total_steps=100)
    context.ledger.meta.update(blocks=blocks)
    method = registry.create(name, settings)
    model = method.prepare(plain, context).train()
    method.on_epoch_start(0)
    method.on_step_start(0)
    g = torch.Generator().manual_seed(0)
    model(torch.randn(4, 3, 32, 32, generator=g)).square().sum().backward()
    kept = {r.layer for r in context.ledger.rows() if r.layer.endswith("downsample.0")} | {"conv1"}
    assert len(kept) == 4
    for row in context.ledger.rows():
        assert ((row.bits1, row.bits2) == (32, 32)) == (row.layer in kept or row.layer == "fc" or ".gate" in row.layer)
    widths = {"sbm": (8, 8, 16), "static": (8, 8, 16), "pfq": (3, 3, 6), "cpt": (3, 3, 8)}.get(name, (3, 6, 6))
    assert metrics.cp(context.ledger) == pytest.approx(100 * cost(*widths) / 3072, rel=1e-12)
    if name in ("dfq", "fractrain"):
        method.extra_loss()
        assert method.metrics()["gate_cp"] == pytest.approx(metrics.cp(context.ledger), rel=1e-6)


@pytest.mark.parametrize("method", ["dfq", "pfq"])
def test_other_widths_of_depthwise_convolutions_are_another_run(method: str) -> None:
    ids = {
        RunConfig.create(method=method, model="resnet38", dataset="cifar10", settings=settings).run_id
        for settings in ({}, {"depthwise_bits": (8, 16)}, {"depthwise_bits": (8, 8)})
    }
    assert len(ids) == 2


def test_cards_and_the_contract_see_what_is_held() -> None:
    _, model, *_ = step("dfq", {})
    for layer, read in declared_precisions(model).items():
        if layer.site.startswith("blocks."):
            widths = [(p.fw_a.bits, p.gc_e.bits) for p in read()]
            assert widths == ([(8, 16)] if is_depthwise(layer) else [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)])

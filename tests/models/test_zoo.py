"""Models of timm and transformers, tiny and random: attach, train ten steps, evaluate, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fractrain
from fractrain.methods import registry

STEPS = 10
TINY = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WITHOUT = ("dorefa", "slu", "fp32")  # need activations of one sign, and shortcuts


def from_timm(name: str, **options) -> tuple[nn.Module, torch.Tensor]:
    timm = pytest.importorskip("timm", reason="extra zoo is not installed")
    return timm.create_model(name, pretrained=False, num_classes=4, **options), torch.randn(2, 3, 32, 32)


def from_transformers(kind: str, **options) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    transformers = pytest.importorskip("transformers", reason="extra zoo is not installed")
    config = getattr(transformers, f"{kind}Config")(**options)
    return getattr(transformers, f"{kind}Model")(config), {"input_ids": torch.randint(3, 30, (2, 6))}


MODELS = {
    "ViT of timm": lambda: from_timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3),
    "BERT": lambda: from_transformers("Bert", **TINY),
    "Llama": lambda: from_transformers("Llama", num_key_value_heads=1, use_cache=False, **TINY),
}
BLOCKS = {"ViT of timm": "blocks", "BERT": "encoder.layer", "Llama": "layers"}


def output(model: nn.Module, inputs) -> torch.Tensor:
    y = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return y if isinstance(y, torch.Tensor) else y[0]


def trained(name: str, method: str, **settings) -> tuple[fractrain.Session, torch.Tensor | dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    if method in ("dfq", "fractrain"):
        settings["blocks"] = [f"{BLOCKS[name]}.{i}" for i in (0, 1)]
    session = fractrain.attach(method, model, total_steps=STEPS, **settings)
    optimizer = session.optimizer(lr=1e-3)
    for _ in range(STEPS):
        session.loss(output(session.model.train(), inputs).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    return session, inputs


@pytest.mark.parametrize("name", MODELS)
def test_fp32_is_the_plain_model(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    want = output(model.eval(), inputs)
    session = fractrain.attach("fp32", model, example_inputs=inputs)
    assert torch.equal(output(session.model, inputs), want)
    assert session.report().covered == 100


@pytest.mark.parametrize("method", [m for m in registry.names() if m not in WITHOUT])
@pytest.mark.parametrize("name", MODELS)
def test_every_method_trains_and_evaluates(name: str, method: str) -> None:
    _, inputs = MODELS[name]()
    session, inputs = trained(name, method, example_inputs=inputs)
    with torch.no_grad():
        assert output(session.model.eval(), inputs).isfinite().all()
    assert session.report().covered == 100


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_graphs_are_exported(name: str, tmp_path: Path) -> None:
    session, inputs = trained(name, "static8")
    weights = torch.load(session.export(tmp_path / "a.pt"), weights_only=True)["weights"]
    MODELS[name]()[0].load_state_dict(weights)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="extra export is not installed")
    file = session.export(tmp_path / "a.onnx", "onnx-qdq", example_inputs=inputs)  # compares before it writes
    assert file.stat().st_size > 10_000

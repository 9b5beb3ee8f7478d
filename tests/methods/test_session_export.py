"""What a session writes: weights that the plain model loads, and a graph that gives our evaluation's output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from field_models import Attention, Borrowing, CrossAttention, Encoder, Functional, UNet
from layer_models import Residual, chain, seeded
from own_code_models import Words
from torch import nn

import fractrain
from fractrain.layers.convert import quant_layers
from fractrain.methods import export_onnx
from fractrain.util.errors import ConfigError


class Named(nn.Module):
    """Two inputs by name, a dict of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Linear(5, 6)
        self.mix, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        both = torch.cat([self.image(image).mean((2, 3)), self.words(words).mean(1)], 1)
        return {"logits": self.head(torch.relu(self.mix(both))), "both": both}


def named(samples: int) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(samples, 3, 8, 8), "words": torch.randn(samples, 7, 5)}


def images(samples: int) -> torch.Tensor:
    return torch.randn(samples, 3, 8, 8)


def call(model: nn.Module, inputs) -> list[torch.Tensor]:
    y = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return list(y.values()) if isinstance(y, dict) else list(y) if isinstance(y, tuple) else [y]


def trained(method: str, build, make=images, **options) -> fractrain.Session:
    session = fractrain.attach(method, seeded(build), total_steps=2, **options)
    train(session, make, range(2))
    return session


def train(session: fractrain.Session, make, steps: range) -> None:
    optimizer = torch.optim.SGD(session.model.parameters(), 0.05)
    for step in steps:
        torch.manual_seed(step)
        session.loss(call(session.model.train(), make(4))[0].square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()


class Padded(nn.Module):
    """Attention with other keys than queries, of which some are masked, and its weights as a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)

    def forward(self, words: torch.Tensor, others: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.attention(words, others, others, key_padding_mask=mask)


def words(samples: int) -> dict[str, torch.Tensor]:
    mask = torch.arange(5).expand(samples, 5) > 2
    return {"words": torch.randn(samples, 4, 8), "others": torch.randn(samples, 5, 5), "mask": mask}


GRAPHS = {
    "residual, sbm": (Residual, images, "sbm", {"layers": "all"}),
    "chain, static at 4 bits": (chain, images, "static", {"bits": 4}),
    "U-Net, cpt": (UNet, images, "cpt", {}),
    "attention in its own code, in floating point": (Attention, images, "static8", {}),
    "an encoder layer's attention": (Encoder, images, "static8", {}),
    "decoder layers, sbm": (CrossAttention, images, "sbm", {"layers": "all"}),
    "attention of padded words": (Padded, words, "static8", {}),
    "named inputs, two outputs": (Named, named, "static8", {}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnxruntime_gives_the_session_s_evaluation(tmp_path: Path, name: str) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="extra export is not installed")
    ort = pytest.importorskip("onnxruntime", reason="extra export is not installed")
    build, make, method, options = GRAPHS[name]
    session = trained(method, build, make, **options)
    file = session.export(tmp_path / "a.onnx", "onnx-qdq", example_inputs=make(4))
    graph = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model, inputs = session.model.eval(), make(9)
    with torch.no_grad():
        ours = call(model, inputs)
    feeds = inputs if isinstance(inputs, dict) else {"input": inputs}
    outputs = graph.run(None, {key: x.numpy() for key, x in feeds.items()})
    layers = [layer for layer in quant_layers(model) if not layer.precision.is_float]
    bits = max(layer.precision.fw_a.widest for layer in layers)
    for y, got in zip(ours, outputs, strict=True):
        assert (torch.from_numpy(got) - y).abs().max() <= float(y.max() - y.min()) / (2**bits - 1)
    about = json.loads(graph.get_modelmeta().custom_metadata_map["fractrain"])
    assert about["session"] == {"steps": 2, "epochs": 0}
    assert about["card"]["method"] == method


@pytest.mark.parametrize("build", [Residual, UNet])
def test_a_graph_that_only_float32_s_roundings_set_apart_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, build
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="extra export is not installed")
    session, run, x = trained("static8", build), export_onnx._by_onnxruntime, images(2)
    with torch.no_grad():
        y = session.model.eval()(x)
    steps = 3 * float(y.max() - y.min()) / 255  # as a deep network's roundings may do
    monkeypatch.setattr(export_onnx, "_by_onnxruntime", lambda graph, x: [t + steps for t in run(graph, x)])
    file = session.export(tmp_path / "a.onnx", "onnx-qdq", example_inputs=x)
    assert file.exists()
    assert "steps of the output grid: float32 sums have another order there" in caplog.text
    monkeypatch.setattr(export_onnx, "_steps_in_float64", lambda *args: 0.01)  # another function
    with pytest.raises(ConfigError, match=r"differs from our evaluation by .* steps of the output grid; the formats"):
        session.export(tmp_path / "b.onnx", "onnx-qdq", example_inputs=x)
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("method", ["fp32", "sbm", "mx", "dfq"])
@pytest.mark.parametrize("build", [Residual, Words])
def test_weights_load_into_the_plain_model_and_training_goes_on(tmp_path: Path, method: str, build) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="extra export is not installed")
    options = {"blocks": ["first", "second"]} if build is Words and method == "dfq" else {}
    session, other = (trained(method, build, example_inputs=images(2), **options) for _ in range(2))
    read = torch.load(session.export(tmp_path / "a.pt"), weights_only=True)
    for weights in (read["weights"], safetensors.load_file(session.export(tmp_path / "a.st", "safetensors"))):
        plain = seeded(build, 1)
        plain.load_state_dict(weights)
        assert all(torch.equal(t, weights[key]) for key, t in session.plain_state_dict().items())
    assert json.loads(read["fractrain"])["layers"].keys() == {layer.site for layer in quant_layers(session.model)}
    for one in (session, other):
        train(one, images, range(2, 4))
    assert all(torch.equal(t, other.model.state_dict()[key]) for key, t in session.model.state_dict().items())
    assert session.ledger.digest() == other.ledger.digest()


@pytest.mark.parametrize(
    ("build", "method", "options", "words"),
    [
        (Residual, "fp8", {}, "block1.conv1: a format with other values than a uniform grid"),
        (Residual, "dfq", {}, "block1: GatedBlock of method dfq has no form in ONNX"),
        (Words, "static8", {"example_inputs": images(2)}, "first.functional: products in a model's own code have no"),
        (Functional, "static8", {"example_inputs": images(2)}, "attach without example_inputs, which leaves them in"),
        (Borrowing, "static8", {}, "Borrowing multiplies the weights of its layers itself"),
    ],
)
def test_what_onnx_cannot_hold_is_refused_in_a_line(tmp_path: Path, build, method: str, options, words: str) -> None:
    session = trained(method, build, **options)
    with pytest.raises(ConfigError) as caught:
        session.export(tmp_path / "a.onnx", "onnx-qdq", example_inputs=images(2))
    assert words in str(caught.value)
    assert str(caught.value).endswith("the formats torch and safetensors keep the weights, and name formats and ranges")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    train(session, images, range(2, 3))  # the session's own model was not taken apart


def test_wrong_calls_say_what_to_do(tmp_path: Path) -> None:
    session = trained("sbm", Residual)
    with pytest.raises(ConfigError, match="needs example_inputs=x"):
        session.export(tmp_path / "a.onnx", "onnx-qdq")
    with pytest.raises(ConfigError, match="unknown format 'onnx' of an export; there are torch, safetensors, onnx-qdq"):
        session.export(tmp_path / "a.onnx", "onnx")
    session.export(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="is there already"):
        session.export(tmp_path / "a.pt")
    assert session.export(tmp_path / "a.pt", force=True) == tmp_path / "a.pt"
    session.detach()
    with pytest.raises(ConfigError, match="detached from this model"):
        session.export(tmp_path / "b.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]

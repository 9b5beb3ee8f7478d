"""The precision card says what the layers declare."""

from __future__ import annotations

import json

import contract_broken as broken
import torch

from fractrain.layers.conv_linear import QuantLayer
from fractrain.methods import registry
from fractrain.methods.card import declared_precisions, precision_card
from fractrain.models.resnet_cifar import ResNetCifar


def operands(card, place):
    (layer,) = [c for c in card.layers if c.place == place]
    return {o.operand: o for o in layer.operands}


def test_sbm_as_its_docstring_says():
    card = precision_card(registry.get("sbm"))
    for place in ("first layer", "inner layers"):
        found = operands(card, place)
        assert found["A"].text() == "A (FW, GC): affine 8 b, per tensor, nearest; evaluation: running range (keeps 0.9)"
        assert found["W"].text() == "W (FW, EB): affine 8 b, per output channel, nearest; evaluation: as in training"
        assert found["E"].text() == "E (EB, GC): affine 8 b, per tensor, stochastic"
    assert {o.format for o in operands(card, "last layer").values()} == {"float32"}
    assert card.normalization == ("BatchNorm2d in float32",)
    assert (card.master_weights, card.optimizer_state) == ("float32", "float32")


def test_banner_splits_the_error():
    card = precision_card(registry.get("sbm"), {"variant": "banner"})
    errors = [o for c in card.layers if c.place == "inner layers" for o in c.operands if o.operand == "E"]
    assert [(o.products, o.format) for o in errors] == [(("EB",), "affine"), (("GC",), "float32")]
    assert card.normalization == ("RangeBatchNorm2d in bits 8, grad_bits 8",)


def test_pfq_shows_all_stages_and_dfq_all_candidates():
    stages = operands(precision_card(registry.get("pfq")), "inner layers")
    assert (stages["A"].bits, stages["A"].varies) == ((3, 4, 6, 8), "while training")
    assert stages["E"].bits == (6, 8)
    gates = precision_card(registry.get("dfq"))
    found = operands(gates, "inner layers")
    assert (found["A"].bits, found["A"].varies) == ((3, 4, 6), "chosen by a gate")
    assert found["E"].bits == (6, 8, 12)
    assert found["W"].bits == (4,)
    assert gates.added == ("GateNetwork x 1", "GatedBlock x 3")


def test_first_and_last_layer_of_static8_are_float():
    card = precision_card(registry.get("static8"), {"bits": 5})
    assert [c.place for c in card.layers] == ["first layer", "inner layers", "last layer"]
    assert {o.bits for o in operands(card, "inner layers").values()} == {(5,)}
    assert {o.format for o in operands(card, "first layer").values()} == {"float32"}
    assert card.settings == {"bits": 5}
    assert json.loads(json.dumps(card.as_dict()))["layers"][1]["count"] == 8  # six in blocks, two shortcuts


def test_declared_master_weights_are_shown_and_nothing_is_disturbed():
    class Bits16(broken.Sound):
        """Keeps its weights in 16 bits."""

        name = "bits16"
        master_weights = "fixed point 16 b"

    before = torch.get_rng_state()
    card = precision_card(Bits16)
    assert card.lines()[-1] == "master weights: fixed point 16 b; optimizer state: float32"
    assert torch.equal(before, torch.get_rng_state())


def test_declared_precisions_of_a_gated_block_are_its_candidates():
    method = registry.create("dfq")
    model = method.prepare(ResNetCifar(1, 10))
    declared = {layer.site: [p.fw_a.bits for p in read()] for layer, read in declared_precisions(model).items()}
    assert declared["stem.0"] == [32]
    assert declared["groups.1.0.conv1"] == [3, 4, 4, 6, 6]
    assert len(declared) == sum(isinstance(m, QuantLayer) for m in model.modules())


def test_list_verbose_prints_the_cards(cli):
    text = cli("list", "methods", "--verbose")
    assert text.exit_code == 0, text.stderr
    assert "A (FW, GC): affine 3/4/6/8 b while training" in text.stdout


def test_a_method_that_crashes_has_no_card_and_hides_no_other(cli, tmp_path, monkeypatch):
    text = (
        "from fractrain import Method\n\n\nclass A(Method):\n    name = 'crash'\n"
        "    def convert(self, m, c): raise KeyError('x')\n"
    )
    (tmp_path / "crash.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr("fractrain.methods.registry.MethodRegistry.names", lambda self: ["crash", "static8"])
    listed = cli("list", "methods", "--verbose", "--plugin", "crash.py")
    assert listed.exit_code == 0, listed.stderr
    assert "no precision card: KeyError: 'x'" in listed.stdout
    assert "symmetric 8 b" in listed.stdout


def test_list_verbose_json_has_the_cards(cli, monkeypatch):
    monkeypatch.setattr("fractrain.methods.registry.MethodRegistry.names", lambda self: ["fp32", "static8"])
    methods = {m["name"]: m for m in json.loads(cli("list", "methods", "--verbose", "--json").stdout)}
    assert methods["static8"]["card"]["layers"][0]["place"] == "first layer"
    assert methods["fp32"]["card_lines"][-1].startswith("master weights: float32")
    assert "card" not in json.loads(cli("list", "methods", "--json").stdout)[0]

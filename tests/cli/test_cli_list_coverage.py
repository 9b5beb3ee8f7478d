"""``fractrain list --model``: every operation of a model that multiplies, by what happens to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import fractrain
from fractrain.engine.registries import Registries

FILE = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gru, self.head = nn.Conv2d(3, 4, 3), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.gru(F.relu(self.conv(x)).flatten(2).mT)[0].mean(1))

def make(classes, shape):
    return Net()
"""


@pytest.fixture
def model(tmp_path: Any) -> str:
    (tmp_path / "with_gru.py").write_text(FILE)
    return f"{tmp_path / 'with_gru.py'}:make"


def test_every_operation_is_named_with_its_share(cli: Any, model: str) -> None:
    result = cli("list", "--model", model, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    status = {p["name"]: p["status"] for p in found["products"]}
    assert (status["conv"], status["gru"], status["head"]) == ("quantized", "outside", "float")
    macs = {name: sum(p["macs"] for p in found["products"] if p["name"] == name) for name in status}
    assert macs == {"conv": 2 * 36 * 27 * 4, "gru": 2 * 36 * 12 * 8, "head": 2 * 4 * 10}
    assert found["dataset"] == "digits"
    assert found["covered_percent"] == pytest.approx(100 * (macs["conv"] + macs["head"]) / sum(macs.values()))
    text = cli("list", "--model", model, "--method", "fp32").stdout
    assert "gru" in text
    assert "recurrent layers stay in floating point" in text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--model", "resnet38", "--dataset", "docs_text"), "resnet38 takes images, docs_text has none"),
        (("--model", "resnet83"), "unknown model 'resnet83'"),
        (("--model", "resnet38", "--set", "recipe.lr=1"), "settings of the method only"),
        (("--method", "sbm"), "fractrain list --model NAME"),
    ],
)
def test_what_cannot_be_shown_is_one_line(cli: Any, args: tuple[str, ...], told: str) -> None:
    result = cli("list", *args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


OWN_CODE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(10, 4))

    def forward(self, x):
        return F.linear(F.relu(self.conv(x)).mean((2, 3)), self.out)

def make(classes, shape):
    return Net()
"""


@pytest.mark.parametrize(("text", "named"), [(FILE, "in gru (recurrent layers stay in"), (OWN_CODE, "mm in the model")])
def test_a_run_says_of_which_share_its_costs_are(cli: Any, tmp_path: Any, text: str, named: str) -> None:
    (tmp_path / "net.py").write_text(text)
    model = f"{tmp_path / 'net.py'}:make"
    share = json.loads(cli("list", "--model", model, "--json").stdout)["covered_percent"]
    recipe = {"iterations": 2, "milestones": [], "eval_every": 2, "batch_size": 8}
    run = fractrain.run("sbm", model, "digits", recipe=recipe, store=tmp_path / "s", device="cpu", progress=False)
    (said,) = run.summary["remarks"]
    assert f"of the covered {share:.1f} %" in said
    assert named in said
    assert said in repr(run)


PLUGIN = """
from fractrain.models.info import ModelInfo

NET = ModelInfo("own_net", "Own", "one", "a file", "image", 3, 0, {}, {}, make)
"""


@pytest.mark.parametrize(("text", "named"), [(FILE, "in gru (recurrent layers stay in"), (OWN_CODE, "mm in the model")])
def test_a_plugin_s_model_says_it_as_well(tmp_path: Any, monkeypatch: Any, text: str, named: str) -> None:
    (tmp_path / "own_net.py").write_text(text + PLUGIN)
    monkeypatch.setenv("FRACTRAIN_PLUGINS", str(tmp_path / "own_net.py"))
    recipe = {"iterations": 2, "milestones": [], "eval_every": 2, "batch_size": 8}
    run = fractrain.run("sbm", "own_net", "digits", recipe=recipe, store=tmp_path / "s", device="cpu", progress=False)
    (said,) = run.summary["remarks"]
    assert "of the covered" in said
    assert named in said


def test_models_of_this_package_are_not_watched() -> None:
    known = Registries()
    assert [known.from_elsewhere(name) for name in ("resnet20", "torchvision:resnet18")] == [False, True]

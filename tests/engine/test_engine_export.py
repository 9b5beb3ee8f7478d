"""Exported weights: read by torch and safetensors alone, loaded by the plain model, and nothing left half-written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import fractrain
from fractrain.engine.registries import Registries
from fractrain.util.errors import CheckpointError, ConfigError, MachineError

RECIPE = {"iterations": 2, "milestones": [], "eval_every": 2, "batch_size": 8}
METHODS = ("fp32", "sbm", "dfq", "mx")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fractrain.Run]:
    store = tmp_path_factory.mktemp("store")
    return {
        name: fractrain.run(name, "resnet38", "digits", recipe=RECIPE, store=store, device="cpu", progress=False)
        for name in METHODS
    }


@pytest.mark.parametrize("name", METHODS)
def test_both_formats_hold_what_the_plain_model_loads(
    runs: dict[str, fractrain.Run], name: str, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors", reason="extra export is not installed")
    run = runs[name]
    read = torch.load(run.export(tmp_path / "a.pt"), weights_only=True)
    file = run.export(tmp_path / "a.safetensors", "safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        weights, about = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()["fractrain"]  # noqa: SIM118
    assert about == read["fractrain"]
    plain = Registries().model("resnet38", "digits", seed=7)
    for state in (read["weights"], weights):
        plain.load_state_dict(state)  # strict: these names and no others
        for key, value in run.model.state_dict().items():
            if key in state:
                assert torch.equal(value, state[key]), key
    if name == "fp32":
        x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        x = x.expand(-1, next(plain.parameters()).shape[1], -1, -1)
        assert torch.equal(plain.eval()(x), run.model(x))


def test_card_widths_and_ranges_go_with_them(runs: dict[str, fractrain.Run], tmp_path: Path) -> None:
    about = {
        name: json.loads(torch.load(run.export(tmp_path / f"{name}.pt"), weights_only=True)["fractrain"])
        for name, run in runs.items()
    }
    for name, one in about.items():
        assert one["run"]["id"] == runs[name].id
        assert one["run"]["config"]["method"] == one["card"]["method"] == name
    assert about["fp32"]["ranges"] == {}
    sbm, model = about["sbm"], runs["sbm"].model
    stem = model.get_submodule("stem.0")
    assert sbm["ranges"]["stem.0.running_low"] == stem.running_low.tolist()
    assert sbm["ranges"]["stem.0.running_high"] == stem.running_high.tolist()
    assert sbm["layers"]["groups.0.0.conv1"] == [
        {n: o.describe() for n, o in model.get_submodule("groups.0.0.conv1").precision.operands().items()}
    ]
    gated = about["dfq"]["layers"]["groups.0.1.conv1"]
    assert len(gated) > 1
    assert len({str(candidate) for candidate in gated}) == len(gated)


def test_nothing_is_lost_or_half_written(
    runs: dict[str, fractrain.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.pt"
    file.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"mine\.pt is there already: give --force"):
        runs["sbm"].export(file)
    assert file.read_bytes() == b"mine"
    assert runs["sbm"].export(tmp_path / "new" / "folder" / "a.pt").is_file()
    shutil.rmtree(tmp_path / "new")
    runs["sbm"].export(file, force=True)
    assert set(torch.load(file, weights_only=True)) == {"weights", "fractrain"}
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MachineError, match=r"pip install 'fractrain\[export\]'"):
        runs["sbm"].export(tmp_path / "b.safetensors", "safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.pt"]


def test_a_method_with_other_layers_than_the_plain_model_is_refused(tmp_path: Path) -> None:
    run = fractrain.run(
        "wageubn", "resnet38", "digits", recipe=RECIPE, store=tmp_path / "store", device="cpu", progress=False
    )
    with pytest.raises(ConfigError, match=r"keeps no counterpart of .*: there are no plain weights of it"):
        run.export(tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_records_without_weights_say_so(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "results" / "evidence" / "scaling"
    first = sorted(p.name for p in folder.iterdir() if p.is_dir())[0]
    with pytest.raises(CheckpointError, match="only runs trained here keep their weights"):
        fractrain.load_run(first, folder).export(tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import tarfile

import pytest
import torch
from click.testing import CliRunner
from image_folders import CLASSES, ROWS, entry, install, make_folder, one_line, write_parquet

from fractrain.cli import main
from fractrain.data import registry
from fractrain.engine.recipes import recipe_values
from fractrain.util.errors import ConfigError, DataError, MachineError

pytestmark = pytest.mark.usefixtures("plain_environment")


# -- the registry and the recipe -------------------------------------------------------------------------------------


def test_what_is_known_of_imagenet():
    info = registry.info("imagenet")
    assert (info.classes, info.shape, info.train_size, info.test_size) == (1000, (3, 224, 224), 1_281_167, 50_000)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
    assert registry.info("digits32").stands_for == "imagenet"


def test_the_recipe_is_ninety_passes_with_drops_after_thirty_and_sixty():
    recipe = recipe_values(registry.info("imagenet"), "paper")
    steps = math.ceil(1_281_167 / 256)
    assert recipe["iterations"] == 90 * steps
    assert recipe["milestones"] == [30 * steps, 60 * steps]
    assert (recipe["batch_size"], recipe["lr"], recipe["momentum"], recipe["weight_decay"]) == (256, 0.1, 0.9, 1e-4)
    assert recipe.get("eval_every", 0) == 0


# -- where it is -----------------------------------------------------------------------------------------------------


def test_a_folder(tmp_path, monkeypatch):
    install(monkeypatch, entry("imagenet", 32, 3, 15, 6))
    make_folder(tmp_path / "imagenet")
    data = registry.load("imagenet", tmp_path)
    assert (len(data.train), len(data.test)) == (15, 6)
    assert registry.load("imagenet", tmp_path / "imagenet").digest == data.digest
    monkeypatch.setenv("FRACTRAIN_DATA", str(tmp_path))
    assert registry.load("imagenet").digest == data.digest
    next((tmp_path / "imagenet" / "train" / "n01").iterdir()).unlink()
    with pytest.raises(DataError, match="has 14 images, the data set has 15") as caught:
        registry.load("imagenet")
    one_line(caught)
    assert not registry.status("imagenet").ok


def test_nothing_there(tmp_path):
    for name, words in (("imagenet", "image-net.org"), ("imagenette", "fractrain data fetch imagenette")):
        with pytest.raises(DataError, match=words) as caught:
            registry.load(name, tmp_path)
        one_line(caught)
        found = registry.status(name, tmp_path)
        assert not found.ok
        assert words in found.advice
    with pytest.raises(MachineError, match="cannot be fetched for you") as caught:
        registry.fetch("imagenet", tmp_path)
    one_line(caught)


def test_a_hub_name_needs_a_revision_and_a_network(monkeypatch):
    for bad in ("imagenet-1k", "ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k@", "a/b/c@1", "a/b@main", "a/b@abc"):
        monkeypatch.setenv("FRACTRAIN_IMAGENET", bad)
        with pytest.raises(ConfigError, match="owner/name@revision") as caught:
            registry.load("imagenet")
        one_line(caught)
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    data = registry.load("imagenet")
    assert len(data.train) == 1_281_167
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abd")
    assert registry.load("imagenet").digest != data.digest
    assert registry.status("imagenet").looked_in == "owner/name@0123456789abcdef0123456789abcdef01234abd"
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            with pytest.raises(MachineError, match=f"{variable} is set") as caught:
                registry.load("imagenet")
            one_line(caught)
    with pytest.raises(ConfigError, match="stream of rows"):
        registry.load("imagenet", val_fraction=0.1)


# -- status, verify, fetch -------------------------------------------------------------------------------------------


def test_status_and_verify(tmp_path, monkeypatch):
    install(monkeypatch, entry("imagenette"))
    folder = make_folder(tmp_path / "imagenette")
    (folder / "val" / "n02" / "notes.txt").write_text("x")
    found = registry.status("imagenette", tmp_path)
    assert found.ok
    assert "15 + 6 images of 3 classes" in found.message
    assert "(1 other files ignored)" in found.message
    assert "FRACTRAIN_BAD_IMAGES=stop|skip" in found.message
    assert found.bytes == sum(p.stat().st_size for p in folder.rglob("*.JPEG"))
    checked = registry.verify("imagenette", tmp_path)
    assert (checked.train_size, checked.test_size) == (15, 6)
    assert checked.digest == registry.load("imagenette", tmp_path).digest
    bad = folder / "train" / "n03" / "img_002.JPEG"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"1 of 21 images cannot be decoded: {bad}") as caught:
        registry.verify("imagenette", tmp_path)
    one_line(caught)


def test_verify_of_rows(parquet, tmp_path):
    assert registry.verify("imagenet", tmp_path).train_size == ROWS
    write_parquet(parquet / "validation-00000-of-00001.parquet", [0] * 7, lambda i: b"no photo")
    with pytest.raises(DataError, match=r"7 of 37 images cannot be decoded: .* and 4 more"):
        registry.verify("imagenet", tmp_path)


def test_the_command_line_shows_all(tmp_path):
    result = CliRunner().invoke(main, ["data", "status", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    states = {line.split()[0]: line for line in result.output.splitlines() if not line.startswith(" ")}
    assert "  not ready: imagenet: not in" in states["imagenet"]
    assert "  ready: " in states["digits32"]
    assert "image-net.org" in result.output


def test_imagenette_is_fetched_from_a_mirror(tmp_path, monkeypatch):
    make_folder(tmp_path / "made" / "imagenette2-160")
    served = tmp_path / "served" / "imagenette2-160.tgz"
    served.parent.mkdir()
    with tarfile.open(served, "w:gz") as tar:
        tar.add(tmp_path / "made" / "imagenette2-160", arcname="imagenette2-160")
    info = entry("imagenette")
    access = dataclasses.replace(info.access, md5=hashlib.md5(served.read_bytes()).hexdigest())
    install(monkeypatch, dataclasses.replace(info, access=access))
    monkeypatch.setenv("FRACTRAIN_DATA_MIRROR", served.parent.as_uri())
    target = tmp_path / "data"
    assert registry.fetch("imagenette", target).ok
    assert len(registry.load("imagenette", target).train) == 15
    assert sorted(p.name for p in target.iterdir() if p.is_dir()) == ["imagenette"]
    shutil.rmtree(served.parent)
    assert registry.fetch("imagenette", target).ok  # it is there: nothing is downloaded
    shutil.rmtree(target / "imagenette" / "val")
    with pytest.raises(DataError, match=r"remove .* to have it fetched again") as caught:
        registry.fetch("imagenette", target)
    one_line(caught)


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.skipif("FRACTRAIN_TEST_IMAGENETTE" not in os.environ, reason="FRACTRAIN_TEST_IMAGENETTE names no folder")
def test_real_photos(tmp_path):
    (tmp_path / "imagenette").symlink_to(os.environ["FRACTRAIN_TEST_IMAGENETTE"])
    assert registry.verify("imagenette", tmp_path).ok
    data = registry.load("imagenette", tmp_path)
    assert len(data.train.classes) == 10 != len(CLASSES)
    x, y = data.train_stream(64, 0, torch.device("cpu"), True).batch(0, 0)
    assert x.shape == (64, 3, 128, 128)
    assert x.mean().abs() < 0.5  # normalized with ImageNet's own mean and std
    assert 0.7 < x.std() < 1.3
    assert len(y.unique()) > 5

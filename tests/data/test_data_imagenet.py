from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import sys
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from image_folders import CLASSES, entry, install, jpeg, make_folder

from fractrain.commands.data import data_group
from fractrain.data import folder_status, manage, registry
from fractrain.data.decode import decode, eval_pixels
from fractrain.data.row_loader import RowFetcher
from fractrain.data.rows import window_shuffle
from fractrain.engine.recipes import recipe_values
from fractrain.errors import ConfigError, DataError, MachineError

ROWS = 30


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("FRACTRAIN_BAD_IMAGES", "FRACTRAIN_WORKERS", "FRACTRAIN_DATA", "FRACTRAIN_IMAGENET",
                 "FRACTRAIN_DATA_MIRROR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def write_parquet(path, labels, image=jpeg, first=0, columns=("image", "label")):
    images = [{"bytes": image(first + i), "path": f"{path.stem}-{i}.jpg"} for i in range(len(labels))]
    table = pa.table({columns[0]: images, columns[1]: labels})
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """An ``imagenet`` of 3 classes in parquet files: 30 + 7 rows, training in three files."""
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 7))
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for i in range(3):
        write_parquet(folder / f"train-{i:05}-of-00003.parquet", [r % 3 for r in range(10)], first=10 * i)
    write_parquet(folder / "validation-00000-of-00001.parquet", [r % 3 for r in range(7)], first=900)
    return folder


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- the registry and the recipe -------------------------------------------------------------------------------------


def test_what_is_known_of_imagenet():
    info = registry.info("imagenet")
    assert (info.classes, info.shape, info.train_size, info.test_size) == (1000, (3, 224, 224), 1_281_167, 50_000)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
    assert registry.info("digits32").stands_for == "imagenet"


def test_the_recipe_is_ninety_passes_with_drops_after_thirty_and_sixty():
    recipe = recipe_values("imagenet", "paper", False)
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
    assert not manage.status("imagenet").ok


def test_nothing_there(tmp_path):
    for name, words in (("imagenet", "image-net.org"), ("imagenette", "fractrain data fetch imagenette")):
        with pytest.raises(DataError, match=words) as caught:
            registry.load(name, tmp_path)
        one_line(caught)
        found = manage.status(name, tmp_path)
        assert not found.ok
        assert words in found.advice
    with pytest.raises(MachineError, match="cannot be fetched for you") as caught:
        manage.fetch("imagenet", tmp_path)
    one_line(caught)


def test_a_hub_name_needs_a_revision_and_a_network(monkeypatch):
    for bad in ("imagenet-1k", "ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k@", "a/b/c@1"):
        monkeypatch.setenv("FRACTRAIN_IMAGENET", bad)
        with pytest.raises(ConfigError, match="owner/name@revision") as caught:
            registry.load("imagenet")
        one_line(caught)
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@abc")
    data = registry.load("imagenet")
    assert len(data.train) == 1_281_167
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@abd")
    assert registry.load("imagenet").digest != data.digest
    assert manage.status("imagenet").looked_in == "owner/name@abd"
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            with pytest.raises(MachineError, match=f"{variable} is set") as caught:
                registry.load("imagenet")
            one_line(caught)
    with pytest.raises(ConfigError, match="stream of rows"):
        registry.load("imagenet", val_fraction=0.1)


# -- rows ------------------------------------------------------------------------------------------------------------


def test_rows_are_evaluated_in_order(parquet, tmp_path):
    data = registry.load("imagenet", tmp_path)
    loader = data.eval_stream("test", 3, torch.device("cpu"))
    assert len(loader) == 3
    assert torch.cat([y for _, y in loader]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    found = RowFetcher(data.test, (32, 32), 7).fetch(0, 0).images
    expected = [torch.tensor(eval_pixels(decode(jpeg(900 + i)), (32, 32))) for i in range(7)]
    assert torch.equal(found, torch.stack(expected))


def test_rows_are_a_function_of_seed_epoch_and_index(parquet, tmp_path):
    part = registry.load("imagenet", tmp_path).train

    def batches(order, threads=1, seed=5, **more):
        fetcher = RowFetcher(part, (16, 16), 8, seed, True, True, threads=threads, **more)
        return {at: fetcher.fetch(*at) for at in order}

    order = [(e, i) for e in (0, 1) for i in range(4)]
    straight = batches(order)
    jumping = batches([(1, 2), (1, 3), (0, 3), (0, 0), (1, 0)], threads=3)
    for at, found in jumping.items():
        assert torch.equal(found.images, straight[at].images)
        assert torch.equal(found.labels, straight[at].labels)
    epochs = [torch.cat([straight[e, i].images for i in range(4)]) for e in (0, 1)]
    assert [len(e) for e in epochs] == [ROWS, ROWS]
    assert not torch.equal(*epochs)
    assert not torch.equal(batches([(0, 0)], seed=6)[0, 0].images, straight[0, 0].images)
    ranks = [batches(order, rank=r, world=2) for r in (0, 1)]
    for at in order:
        assert torch.equal(torch.cat([rank[at].images for rank in ranks]), straight[at].images)


def test_every_row_once_per_epoch_in_another_order(parquet, tmp_path):
    part = registry.load("imagenet", tmp_path).train
    plain = [name for name, _, _ in part.read()]
    first, second = ([name for name, _, _ in part.read(3, epoch)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(names) for names in (plain, first, second)}) == 3


def test_window_shuffle_keeps_every_row_and_moves_none_far_ahead():
    rows = [(str(i), b"", i) for i in range(1000)]
    order = [label for _, _, label in window_shuffle(iter(rows), 4, window=50)]
    assert sorted(order) == list(range(1000))
    assert all(label < at + 50 for at, label in enumerate(order))
    lag = [abs(at - label) for at, label in enumerate(order)]
    assert 15 < sum(lag) / len(lag) < 75  # each of the 50 held goes next with equal chance: about 50 steps on average
    assert order == [label for _, _, label in window_shuffle(iter(rows), 4, window=50)]
    assert order != [label for _, _, label in window_shuffle(iter(rows), 5, window=50)]


def test_a_bad_row_stops_or_turns_black(parquet, tmp_path, monkeypatch):
    write_parquet(parquet / "validation-00000-of-00001.parquet", [r % 3 for r in range(7)],
                  lambda i: jpeg(i)[:-300] if i == 904 else jpeg(i), first=900)  # fmt: skip
    cpu = torch.device("cpu")
    loader = registry.load("imagenet", tmp_path).eval_stream("test", 4, cpu)
    with pytest.raises(DataError, match=r"of-00001-4\.jpg in .*validation.*cannot be decoded") as caught:
        list(loader)
    one_line(caught)
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    data = registry.load("imagenet", tmp_path)
    loader = data.eval_stream("test", 4, cpu)
    assert torch.cat([y for _, y in loader]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(loader.bad_images) == 1
    assert (RowFetcher(data.test, (32, 32), 7, replace_bad=True).fetch(0, 0).images[4] == 0).all()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "train-00001-of-00003.parquet").unlink(), "20 rows, the data set has 30"),
        (lambda f: (f / "train-00001-of-00003.parquet").write_bytes(b"PAR1"), "no whole parquet file"),
        (lambda f: (f / "validation-00000-of-00001.parquet").unlink(), "no files validation-"),
        (lambda f: write_parquet(f / "validation-00000-of-00001.parquet", [5] * 7), "label 5, expected 0 to 2"),
        (lambda f: write_parquet(f / "validation-00000-of-00001.parquet", [0] * 7, columns=("image", "y")), "image, y"),
    ],
)
def test_wrong_parquet_is_one_line(parquet, tmp_path, damage, words):
    damage(parquet)
    with pytest.raises(DataError, match=words) as caught:
        list(registry.load("imagenet", tmp_path).eval_stream("test", 4, torch.device("cpu")))
    one_line(caught)


def test_rows_that_end_early(parquet, tmp_path):
    data = registry.load("imagenet", tmp_path)
    write_parquet(parquet / "validation-00000-of-00001.parquet", [0, 1, 2])
    with pytest.raises(DataError, match="gave 3 rows, expected 7"):
        list(data.eval_stream("test", 4, torch.device("cpu")))


def test_the_hub_is_asked_for_the_pinned_revision_and_streamed(parquet, tmp_path, monkeypatch):
    """What comes from there is served by ``datasets`` itself, from local files: there is no network here."""
    files = {"train": sorted(map(str, parquet.glob("train-*"))), "validation": sorted(map(str, parquet.glob("val*")))}
    local = list(registry.load("imagenet", tmp_path).eval_stream("test", 3, torch.device("cpu")))
    first = RowFetcher(registry.load("imagenet", tmp_path).train, (16, 16), 8, 5, True, True).fetch(1, 0)
    asked, load = [], datasets.load_dataset

    def served(name, *, revision, split, streaming):
        asked.append((name, revision, split, streaming))
        return load("parquet", data_files=files, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", served)
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@abc")
    data = registry.load("imagenet", tmp_path / "nothing")
    for (x, y), (want, labels) in zip(data.eval_stream("test", 3, torch.device("cpu")), local, strict=True):
        assert torch.equal(x, want)
        assert torch.equal(y, labels)
    again = RowFetcher(data.train, (16, 16), 8, 5, True, True).fetch(1, 0)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert set(asked) == {("owner/name", "abc", "validation", True), ("owner/name", "abc", "train", True)}


class Breaking:
    """A stream of ``datasets`` whose connection breaks after some rows."""

    num_shards = 1

    def __init__(self, error, at) -> None:
        self.error, self.at = error, at

    def cast_column(self, name, kind):
        return self

    def shard(self, count, number):
        if self.at < 0:
            raise self.error
        for i in range(10):
            if i == self.at:
                raise self.error
            yield {"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, "label": i % 3}


class ReadTimeout(Exception):
    """Like httpx's: no OSError, and often without a text."""


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("error", [ReadTimeout(""), ReadTimeout("timed\nout"), OSError("reset"), KeyError("x")])
def test_a_network_that_fails_while_streaming_is_one_line(monkeypatch, error, at):
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 10))
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@abc")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Breaking(error, at))
    part = registry.load("imagenet").test
    words = rf"owner/name@abc \(validation\): row {at} cannot be read: {type(error).__name__}: .*check the network"
    with pytest.raises(MachineError, match=words) as caught:
        list(part.read())
    one_line(caught)
    with pytest.raises(MachineError, match="check the network"):
        RowFetcher(part, (32, 32), 4, threads=2).fetch(0, at // 4)
    local = dataclasses.replace(part, hub="", files=(Path("folder/x.parquet"),))
    with pytest.raises(DataError, match=f"row {at} cannot be read"):
        list(local.read())


def test_memory_and_wrong_rows_are_no_network_failures(monkeypatch):
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 10))
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@abc")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Breaking(MemoryError(), 5))
    with pytest.raises(MemoryError):
        list(registry.load("imagenet").test.read())
    part = dataclasses.replace(registry.load("imagenet").test, classes=2)
    with pytest.raises(DataError, match="label 2, expected 0 to 1"):
        list(part.read())


def test_without_datasets(parquet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="pip install datasets") as caught:
        list(registry.load("imagenet", tmp_path).eval_stream("test", 4, torch.device("cpu")))
    one_line(caught)


# -- status, verify, fetch -------------------------------------------------------------------------------------------


def test_status_and_verify(tmp_path, monkeypatch):
    install(monkeypatch, entry("imagenette"))
    folder = make_folder(tmp_path / "imagenette")
    (folder / "val" / "n02" / "notes.txt").write_text("x")
    found = manage.status("imagenette", tmp_path)
    assert found.ok
    assert "15 + 6 images of 3 classes" in found.message
    assert "(1 other files ignored)" in found.message
    assert "FRACTRAIN_BAD_IMAGES=stop|skip" in found.message
    assert found.bytes == sum(p.stat().st_size for p in folder.rglob("*.JPEG"))
    checked = manage.verify("imagenette", tmp_path)
    assert (checked.train_size, checked.test_size) == (15, 6)
    assert checked.digest == registry.load("imagenette", tmp_path).digest
    bad = folder / "train" / "n03" / "img_002.JPEG"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"1 of 21 images cannot be decoded: {bad}") as caught:
        manage.verify("imagenette", tmp_path)
    one_line(caught)


def test_verify_of_rows(parquet, tmp_path):
    assert manage.verify("imagenet", tmp_path).train_size == ROWS
    write_parquet(parquet / "validation-00000-of-00001.parquet", [0] * 7, lambda i: b"no photo")
    with pytest.raises(DataError, match=r"7 of 37 images cannot be decoded: .* and 4 more"):
        manage.verify("imagenet", tmp_path)


def test_the_command_line_shows_all(tmp_path):
    result = CliRunner().invoke(data_group, ["status", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    states = {line.split()[0]: line for line in result.output.splitlines() if not line.startswith(" ")}
    assert "  not ready: imagenet: not in" in states["imagenet"]
    assert "  ready: " in states["digits32"]
    assert "image-net.org" in result.output


def test_imagenette_is_fetched_from_a_mirror(tmp_path, monkeypatch):
    install(monkeypatch, entry("imagenette"))
    make_folder(tmp_path / "made" / "imagenette2-160")
    served = tmp_path / "served" / "imagenette2-160.tgz"
    served.parent.mkdir()
    with tarfile.open(served, "w:gz") as tar:
        tar.add(tmp_path / "made" / "imagenette2-160", arcname="imagenette2-160")
    monkeypatch.setattr(folder_status, "IMAGENETTE_MD5", hashlib.md5(served.read_bytes()).hexdigest())
    monkeypatch.setenv("FRACTRAIN_DATA_MIRROR", served.parent.as_uri())
    target = tmp_path / "data"
    assert manage.fetch("imagenette", target).ok
    assert len(registry.load("imagenette", target).train) == 15
    assert sorted(p.name for p in target.iterdir() if p.is_dir()) == ["imagenette"]
    shutil.rmtree(served.parent)
    assert manage.fetch("imagenette", target).ok  # it is there: nothing is downloaded
    shutil.rmtree(target / "imagenette" / "val")
    with pytest.raises(DataError, match=r"remove .* to have it fetched anew") as caught:
        manage.fetch("imagenette", target)
    one_line(caught)


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.skipif("FRACTRAIN_TEST_IMAGENETTE" not in os.environ, reason="FRACTRAIN_TEST_IMAGENETTE names no folder")
def test_real_photos(tmp_path):
    (tmp_path / "imagenette").symlink_to(os.environ["FRACTRAIN_TEST_IMAGENETTE"])
    assert manage.verify("imagenette", tmp_path).ok
    data = registry.load("imagenette", tmp_path)
    assert len(data.train.classes) == 10 != len(CLASSES)
    x, y = data.train_stream(64, 0, torch.device("cpu"), True).batch(0, 0)
    assert x.shape == (64, 3, 128, 128)
    assert x.mean().abs() < 0.5  # normalized with ImageNet's own mean and std
    assert 0.7 < x.std() < 1.3
    assert len(y.unique()) > 5

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from fractrain.data import registry
from fractrain.util.errors import DataError

REAL = os.environ.get("FRACTRAIN_TEST_CIFAR", "")
needs_files = pytest.mark.skipif(not REAL, reason="FRACTRAIN_TEST_CIFAR does not name a folder with the CIFAR files")
NAMES = ("cifar10", "cifar100")


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", NAMES)
def test_arrays_are_those_of_the_files(fake_cifar, name):
    root, _, images, labels = fake_cifar(name)
    data = registry.load(name, root)
    assert np.array_equal(np.concatenate([data.train.images.numpy(), data.test.images.numpy()]), images)
    assert np.array_equal(np.concatenate([data.train.labels.numpy(), data.test.labels.numpy()]), labels)
    assert len(data.test) == 20


def test_where_it_looks(fake_cifar, monkeypatch, tmp_path):
    root, folder, _, _ = fake_cifar("cifar10")
    wanted = registry.load("cifar10", root).digest
    assert registry.load("cifar10", folder).digest == wanted  # the data set's own folder is taken too
    monkeypatch.chdir(folder)
    assert registry.load("cifar10", ".").digest == wanted
    monkeypatch.chdir(tmp_path)
    assert registry.status("cifar10").chosen_by == "default"
    assert registry.status("cifar10").looked_in == "data"
    root.rename(tmp_path / "data")
    assert registry.load("cifar10").digest == wanted
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setenv("FRACTRAIN_DATA", str(tmp_path / "moved"))
    assert registry.load("cifar10").digest == wanted
    assert registry.status("cifar10").chosen_by == "FRACTRAIN_DATA"
    with pytest.raises(DataError, match="elsewhere"):
        registry.load("cifar10", tmp_path / "elsewhere")  # an explicit folder is the only one searched


def test_validation_part(fake_cifar):
    root, _, _, _ = fake_cifar("cifar10")
    whole, data = registry.load("cifar10", root), registry.load("cifar10", root, val_fraction=0.2, seed=3)
    assert (len(data.train), len(data.val), len(data.test)) == (80, 20, 20)
    assert torch.bincount(data.val.labels).tolist() == [2] * 10
    both = {image.numpy().tobytes() for image in torch.cat([data.train.images, data.val.images])}
    assert both == {image.numpy().tobytes() for image in whole.train.images}
    assert whole.val is None


@pytest.mark.parametrize("name", NAMES)
def test_missing_folder(tmp_path, name):
    with pytest.raises(DataError) as caught:
        registry.load(name, tmp_path / "empty")
    text = one_line(caught)
    assert str(tmp_path / "empty") in text
    assert f"`fractrain data fetch {name} --data-dir {tmp_path / 'empty'}`" in text


def test_truncated_file(fake_cifar):
    root, folder, _, _ = fake_cifar("cifar10")
    path = folder / "data_batch_3"
    expected = dict(datasets.CIFAR10.train_list)["data_batch_3"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError) as caught:
        registry.load("cifar10", root)
    text = one_line(caught)
    found = registry.status("cifar10", root).files[2].found
    assert found != expected
    for part in (str(path), expected, found, "1000 bytes", "fractrain data fetch cifar10"):
        assert part in text


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_one_changed_byte(fake_cifar, file):
    root, folder, _, _ = fake_cifar("cifar100")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match="truncated or changed") as caught:
        registry.load("cifar100", root)
    assert str(folder / file) in one_line(caught)


def test_missing_and_several_bad_files(fake_cifar):
    root, folder, _, _ = fake_cifar("cifar10")
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch is missing") as caught:
        registry.load("cifar10", root)
    (folder / "data_batch_1").write_bytes(b"")
    with pytest.raises(DataError, match="1 more bad file") as caught:
        registry.load("cifar10", root)
    assert "data_batch_1" in one_line(caught)


def test_a_folder_in_place_of_a_file(fake_cifar):
    root, folder, _, _ = fake_cifar("cifar10")
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    with pytest.raises(DataError, match="cannot be read") as caught:
        registry.load("cifar10", root)
    assert "test_batch" in one_line(caught)
    assert registry.status("cifar10", root).files[5].state == "unreadable"


def test_status_of_good_bad_and_missing(fake_cifar, tmp_path):
    root, folder, _, _ = fake_cifar("cifar10")
    good = registry.status("cifar10", root)
    assert good.ok
    assert good.advice == ""
    assert good.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert [file.state for file in good.files] == ["ok"] * 7
    (folder / "test_batch").write_bytes(b"x")
    bad = registry.status("cifar10", root)
    assert not bad.ok
    assert "1 of 7" in bad.message
    assert "fetch" in bad.advice
    missing = registry.status("cifar10", tmp_path / "none")
    assert not missing.ok
    assert missing.download_bytes == 170_498_071
    assert {file.state for file in missing.files} == {"missing"}


def test_verify_counts_images(fake_cifar):
    root, _, _, _ = fake_cifar("cifar10")
    with pytest.raises(DataError, match="100 training and 20 test images, expected 50000 and 10000"):
        registry.verify("cifar10", root)


@pytest.mark.parametrize("name", ["digits", "digits100"])
def test_embedded_sets_need_nothing(name, tmp_path):
    for record in (registry.status(name), registry.fetch(name, tmp_path / "unused")):
        assert record.ok
        assert record.embedded
        assert record.bytes == record.download_bytes == 0
    assert not (tmp_path / "unused").exists()
    checked = registry.verify(name)
    assert checked.digest == registry.load(name).digest
    assert (checked.train_size, checked.test_size) == (registry.info(name).train_size, registry.info(name).test_size)


@needs_files
@pytest.mark.parametrize("name", NAMES)
def test_real_files(name):
    checked = registry.verify(name, REAL)
    assert checked.ok
    assert (checked.train_size, checked.test_size) == (50_000, 10_000)
    data = registry.load(name, REAL, val_fraction=0.1)
    for split, per_class in ((data.train, 45_000), (data.val, 5_000), (data.test, 10_000)):
        classes = data.info.classes
        assert torch.bincount(split.labels).tolist() == [per_class // classes] * classes
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](REAL, train=False)
    for index in (0, 4321, 9999):
        image, label = source[index]
        assert np.array_equal(np.asarray(image), data.test.images[index].permute(1, 2, 0).numpy())
        assert label == data.test.labels[index]
    # The means in use are the well-known ones; the files themselves give nearly the same.
    if name == "cifar10":
        measured = (data.train.images.double() / 255).mean((0, 2, 3))
        assert measured.tolist() == pytest.approx(list(data.info.mean), abs=2e-3)


@needs_files
def test_real_file_truncated(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (Path(REAL) / folder.name).iterdir():
        (folder / path.name).symlink_to(path.resolve())
    whole = (folder / "test_batch").read_bytes()
    (folder / "test_batch").unlink()
    (folder / "test_batch").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="expected 40351d587109b95175f43aff81a1287e"):
        registry.load("cifar10", tmp_path)

"""A tiny data set in the layout of the CIFAR files, with torchvision told its checksums; a small text."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import text_corpus
from image_folders import ROWS, entry, install, parquet_folder
from torchvision import datasets

LAYOUT = {
    "cifar10": (
        datasets.CIFAR10,
        "cifar-10-batches-py",
        [*(f"data_batch_{i}" for i in range(1, 6))],
        "test_batch",
        ("batches.meta", "label_names", "labels"),
    ),
    "cifar100": (
        datasets.CIFAR100,
        "cifar-100-python",
        ["train"],
        "test",
        ("meta", "fine_label_names", "fine_labels"),
    ),
}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """Return make(name) -> (root, folder, images [n, 3, 32, 32], labels) with 20 images per file."""
    monkeypatch.delenv("FRACTRAIN_DATA", raising=False)
    monkeypatch.delenv("FRACTRAIN_DATA_MIRROR", raising=False)

    def make(name: str):
        cls, base, train, test, (meta, names_key, label_key) = LAYOUT[name]
        root = tmp_path / "files"
        folder = root / base
        folder.mkdir(parents=True)
        rng = np.random.default_rng(7)
        images, labels, sums = [], [], {}
        for file in [*train, test]:
            pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            classes = [i % 10 for i in range(20)]
            (folder / file).write_bytes(pickle.dumps({"data": pixels, label_key: classes}))
            images.append(pixels.reshape(-1, 3, 32, 32))
            labels.append(classes)
            sums[file] = md5(folder / file)
        (folder / meta).write_bytes(pickle.dumps({names_key: [str(i) for i in range(10)]}))
        monkeypatch.setattr(cls, "train_list", [[file, sums[file]] for file in train])
        monkeypatch.setattr(cls, "test_list", [[test, sums[test]]])
        monkeypatch.setattr(cls, "meta", {"filename": meta, "key": names_key, "md5": md5(folder / meta)})
        return root, folder, np.concatenate(images), np.concatenate(labels)

    return make


@pytest.fixture
def fake_archive(fake_cifar, tmp_path, monkeypatch):
    """Return (archive, folder name, extracted folder) of a fake CIFAR-10 whose archive MD5 torchvision expects."""
    _, folder, _, _ = fake_cifar("cifar10")
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nobody/listens")
    for variable in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(variable, raising=False)
    return archive, folder


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Return the folder of data sets, the three texts, and the data set's entry with the facts of these texts."""
    for variable in ("FRACTRAIN_DATA", "FRACTRAIN_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    texts, entry = text_corpus.write(tmp_path / "data" / "wikitext-2")
    return tmp_path / "data", texts, entry


@pytest.fixture
def plain_environment(monkeypatch):
    """None of the variables that say where images are, or how they are read."""
    for name in ("FRACTRAIN_BAD_IMAGES", "FRACTRAIN_WORKERS", "FRACTRAIN_DATA", "FRACTRAIN_IMAGENET",
                 "FRACTRAIN_DATA_MIRROR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """An ``imagenet`` of 3 classes in parquet files: 30 + 7 rows, training in three files."""
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 7))
    return parquet_folder(tmp_path / "imagenet")

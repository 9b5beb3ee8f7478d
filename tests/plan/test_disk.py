"""What data sets take on disk: against what lies there, and figures of the data sets' publishers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fractrain.data import registry
from fractrain.plan.disk import DiskNeed, disk_need
from fractrain.plan.loading import photo_folder

WORDS = 103_227_021 + 217_646 + 245_569
PREPARED = 4 * WORDS  # 267,735 words do not fit into 16 bits


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRACTRAIN_IMAGENET", "FRACTRAIN_DATA", "FRACTRAIN_CACHE"):
        monkeypatch.delenv(name, raising=False)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_is_there_takes_what_is_known(name: str) -> None:
    folder = os.environ.get("FRACTRAIN_TEST_CIFAR")
    if not folder:
        pytest.skip("FRACTRAIN_TEST_CIFAR is not set: no real CIFAR here")
    found = disk_need(name, folder)
    assert (found.ready, found.there, found.to_come, found.passing) == (True, registry.info(name).disk_bytes, 0, 0)


def test_a_part_of_cifar_counts_when_it_is_right(tmp_path: Path) -> None:
    assert disk_need("cifar10", tmp_path) == DiskNeed("cifar10", str(tmp_path), False, 0, 186_214_026, 170_498_071)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"not the file")
    assert disk_need("cifar10", tmp_path).to_come == 186_214_026  # it will be replaced


def test_imagenet_by_its_folder(tmp_path: Path) -> None:
    found = disk_need("imagenet", tmp_path)
    archives = 147_897_477_120 + 6_744_924_160  # ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar
    assert (found.there, found.to_come, found.passing, found.note) == (0, archives, archives, "")
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    assert disk_need("imagenet", tmp_path).note.startswith("what is there is not counted: imagenet: ")


def test_a_folder_that_is_whole(tmp_path: Path) -> None:
    photo_folder(registry.info("imagenette"), tmp_path / "imagenette", classes=10, per_class=1)
    found = disk_need("imagenette", tmp_path)
    assert (found.ready, found.there, found.to_come, found.passing) == (True, size_of(tmp_path), 0, 0)


def test_a_streamed_set_takes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    found = disk_need("imagenet", tmp_path)
    assert (found.ready, found.there, found.to_come, found.note) == (True, 0, 0, "streamed, nothing is stored")


def test_a_text_and_its_prepared_form(tmp_path: Path) -> None:
    absent = disk_need("wikitext103", tmp_path)
    assert (absent.ready, absent.there, absent.to_come) == (False, 0, 313_093_838 + PREPARED)
    folder = tmp_path / "wikitext-103"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(f" = {part} = \n", encoding="utf-8")
    there = size_of(tmp_path)
    found = disk_need("wikitext103", tmp_path)
    assert (found.ready, found.there, found.to_come) == (True, there, PREPARED)
    prepared = folder / "tokens-wikitext103-0123456789abcdef"
    prepared.mkdir()
    (prepared / "train.npy").write_bytes(bytes(100))
    assert disk_need("wikitext103", tmp_path).to_come == PREPARED  # not finished: it has no record
    (prepared / "record.json").write_text("{}", encoding="utf-8")
    found = disk_need("wikitext103", tmp_path)
    assert (found.there, found.to_come) == (there + 102, 0)


def test_what_is_embedded_takes_nothing() -> None:
    for name in ("digits", "docs_text"):
        found = disk_need(name)
        assert (found.ready, found.there, found.to_come, found.passing) == (True, 0, 0, 0)

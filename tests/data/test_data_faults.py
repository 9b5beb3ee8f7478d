"""Data that are there in another form than expected: used rightly, or named in one line; the other sets go on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet

from fractrain.cli import main
from fractrain.data import registry, text_files
from fractrain.data.decode import BadImage, decode
from fractrain.data.folder import list_part
from fractrain.data.parquet import ParquetSplit
from fractrain.data.parquet_data import parquet_data
from fractrain.data.text_files import TextFiles
from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.util.errors import ConfigError, DataError

GREY = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_pictures_of_16_bits_are_scaled(form: str) -> None:
    found = np.asarray(decode(encoded(Image.fromarray(GREY), form)))
    expected = np.rint(GREY.astype(np.float64) * 255 / 65535)
    assert found.shape == (8, 8, 3)
    assert all(np.array_equal(found[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("values", [GREY.astype(np.int32), (GREY / 65535).astype(np.float32)], ids=["int32", "float"])
def test_pictures_whose_range_is_not_known_are_named(values: Any) -> None:
    with pytest.raises(BadImage, match="range is not known; convert it to 8 bits"):
        decode(encoded(Image.fromarray(values), "TIFF"))


def class_folder(root: Path, part: str = "train", name: str = "a") -> Path:
    folder = root / part / name
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "one.png")
    return folder


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    (folder / "._one.png").write_bytes(b"\0\5\26\7")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    part = list_part("photos", tmp_path, "train")
    assert (part.classes, len(part), part.ignored) == (("a",), 1, 1)


def test_a_class_of_other_files_says_which(tmp_path: Path) -> None:
    class_folder(tmp_path)
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "film.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"no image in the class folder .*b, which holds 'film.gif'; add .*\.png"):
        list_part("photos", tmp_path, "train")
    (tmp_path / "train" / "b" / "film.gif").unlink()
    with pytest.raises(DataError, match="which is empty"):
        list_part("photos", tmp_path, "train")


# -- rows --------------------------------------------------------------------------------------------------------------

PICTURE = {"bytes": encoded(Image.fromarray(np.zeros((4, 4, 3), np.uint8)), "PNG"), "path": None}


def table(folder: Path, images: list[Any], labels: pa.Array, part: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = folder / f"{part}-0.parquet"
    parquet.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), path)
    return path


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ([PICTURE] * 2, pa.array(["cat", "dog"]), "row 0 has str 'cat' in column label"),
        ([PICTURE] * 2, pa.array([0.0, 1.0]), "row 0 has float 0.0 in column label"),
        ([PICTURE] * 2, pa.array([0, None], pa.int64()), "row 1 has null in column label"),
        ([PICTURE, None], pa.array([0, 1]), "row 1 has .* in column image, expected an encoded image"),
    ],
    ids=["text", "float", "null", "no image"],
)
def test_what_is_wrong_in_a_row_is_named(tmp_path: Path, images: list[Any], labels: pa.Array, said: str) -> None:
    part = ParquetSplit("train", 2, 2, (table(tmp_path, images, labels),), (2,))
    with pytest.raises(DataError, match=said):
        list(part.in_order())


def test_brackets_in_a_path_are_no_pattern_and_two_colons_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "with[1k]*" / "imagenet", [PICTURE] * 2, pa.array([0, 1]))
    assert len(list(ParquetSplit("train", 2, 2, (path,), (2,)).in_order())) == 2
    table(tmp_path / "a::b", [PICTURE] * 2, pa.array([0, 1]))
    with pytest.raises(DataError, match="'::' in a path"):
        parquet_data(registry.info("imagenet"), tmp_path / "a::b")


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"text": pa.array(["a b", None])}, r"row 1 has no text \(null\)"),
        ({"sentence": pa.array(["a b"])}, r"expected a column text \(string\), found sentence \(string\)"),
        ({"text": pa.array([b"a b"])}, r"found text \(binary\)"),
        ({"text": pa.array([["a", "b"]])}, r"found text \(list<.*string>\)"),
    ],
    ids=["null", "other name", "bytes", "lists"],
)
def test_one_broken_text_is_not_ready_and_the_others_are_told_of(
    tmp_path: Path, column: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    for part in ("train", "validation", "test"):
        parquet.write_table(pa.table(column), folder / f"{part}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=said):
        list(TextFiles((folder / "test-00000-of-00001.parquet",)).blocks())
    result = CliRunner().invoke(main, ["data", "status", "--data-dir", str(tmp_path), "--json"])
    assert result.exit_code == 0
    states = {one["name"]: one["ok"] for one in json.loads(result.stdout)}
    assert states.keys() == set(registry.names())
    assert (states["wikitext2"], states["digits"]) == (False, True)
    assert CliRunner().invoke(main, ["data", "status", "wikitext2", "--data-dir", str(tmp_path)]).exit_code == 1
    assert CliRunner().invoke(main, ["data", "status", "digits", "--data-dir", str(tmp_path)]).exit_code == 0


def test_a_link_to_nothing_is_named_and_ends_nothing_else(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "imagenette", "train")
    class_folder(tmp_path / "imagenette", "val")
    os.symlink(tmp_path / "nothing", folder / "two.png")
    found = registry.status("imagenette", tmp_path)
    assert not found.ok
    assert "two.png is a link to nothing" in found.message


def test_whatever_a_set_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = registry.info("cifar10")

    def broken(self: Any, *arguments: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(type(entry.access), "status", broken)
    found = registry.status("cifar10", tmp_path)
    assert (found.ok, found.message) == (False, "cifar10: KeyError: 'surprise'")


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK", 64)
    monkeypatch.setattr(text_files, "LONGEST", 256)
    path = tmp_path / "wiki.train.tokens"
    path.write_bytes(b"a" * 1000)
    with pytest.raises(DataError, match="a line has more than 256 bytes"):
        list(TextFiles((path,)).blocks())
    path.write_bytes(b"a b\n" * 250)
    assert "".join(TextFiles((path,)).blocks()) == "a b\n" * 250


# -- another form ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", "is the binary version"),
        ("cifar10", "cifar10/train-0.parquet", "is a table"),
        ("cifar10", "data_batch_1", "one folder too high"),
        ("cifar10", "mine/cifar-10-batches-py/data_batch_1", "one folder deeper"),
        ("cifar100", "holiday.jpg", "there is holiday.jpg"),
        ("wikitext2", "wikitext-2-raw/wiki.train.raw", "is the raw version"),
        ("wikitext2", "mine/wikitext-2/wiki.train.tokens", "one folder deeper"),
    ],
)
def test_what_is_there_instead_is_said(tmp_path: Path, name: str, file: str, said: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = registry.status(name, tmp_path)
    assert not found.ok
    assert said in found.message


# -- the last batch ----------------------------------------------------------------------------------------------------


def test_a_last_batch_of_one_image_is_refused_before_the_first_step(tmp_path: Path) -> None:
    images = len(registry.load("digits32", None).train)

    def loop(model: str, batch: int) -> TrainingLoop:
        recipe = {"iterations": 4, "batch_size": batch, "val_fraction": 0.0}
        config = RunConfig.create(method="fp32", model=model, dataset="digits32", recipe=recipe)
        return TrainingLoop(config, Site(tmp_path, "cpu"))

    with pytest.raises(ConfigError, match=r"batches of 1 leave one for the last batch.*, for example 3$"):
        loop("resnet18", 1).check_last_batch()
    loop("resnet38", 1).check_last_batch()  # its BatchNorms see a picture of several positions
    size = next(n for n in range(40, images) if images % n == 1)
    with pytest.raises(ConfigError, match=r"leave one for the last batch.*choose another recipe.batch_size") as caught:
        loop("resnet18", size).check_last_batch()
    named = [int(text) for text in str(caught.value).rsplit("example ", 1)[1].split(", ")]
    assert named
    assert all(images % n != 1 for n in named)
    run = RunConfig.create(
        method="fp32", model="resnet18", dataset="digits32",
        recipe={"iterations": 4, "batch_size": size, "val_fraction": 0.0},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="leave one for the last batch"):
        Trainer(run, Site(tmp_path, "cpu")).run()
    assert not (tmp_path / run.run_id / "metrics.jsonl").exists()

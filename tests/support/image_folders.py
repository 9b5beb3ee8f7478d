"""Small folders of JPEG files in torchvision's layout or parquet files of them, and registry entries for them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fractrain.data import registry

CLASSES = ("n01", "n02", "n03")
ROWS = 30  # of a table's training part


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A smooth random photo: JPEG of plain noise would be large."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_folder(folder: Path, train: int = 5, val: int = 2, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write ``train`` and ``val`` images per class, of several sizes."""
    for part, count in (("train", train), ("val", val)):
        for c, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * (part == "val") + 100 * c + i
                data = jpeg(seed, 36 + 3 * (seed % 5), 44 - 4 * (seed % 4))
                (folder / part / name / f"img_{i:03}.JPEG").write_bytes(data)
    return folder


def entry(name: str = "imagenette", size: int = 32, classes: int = len(CLASSES), train: int = 0, test: int = 0):
    """The registry's entry for a small folder."""
    return dataclasses.replace(
        registry.info(name), classes=classes, shape=(3, size, size), train_size=train, test_size=test
    )


def install(monkeypatch, info) -> None:
    """Put ``info`` in the registry in place of the entry of the same name."""
    monkeypatch.setitem(registry.DatasetRegistry.shared()._loaded, info.name, info)


def write_parquet(path, labels, image=jpeg, first=0, columns=("image", "label")) -> None:
    """Write rows of (image, label); image i is ``image(first + i)``."""
    images = [{"bytes": image(first + i), "path": f"{path.stem}-{i}.jpg"} for i in range(len(labels))]
    table = pa.table({columns[0]: images, columns[1]: labels})
    pq.write_table(table, path, row_group_size=4)


def parquet_folder(folder: Path, rows: int = ROWS) -> Path:
    """Write a table of 3 classes: training rows in three files, 7 rows of validation."""
    folder.mkdir()
    for i in range(3):
        labels = [r % 3 for r in range(rows // 3)]
        write_parquet(folder / f"train-{i:05}-of-00003.parquet", labels, first=rows // 3 * i)
    write_parquet(folder / "validation-00000-of-00001.parquet", [r % 3 for r in range(7)], first=900)
    return folder


def one_line(error) -> str:
    """The text of a caught error, which has one line."""
    text = str(error.value)
    assert "\n" not in text
    return text

"""Data sets from elsewhere: a folder, a table on the hub, torchvision's; and one as a plugin file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from image_folders import make_folder, one_line

from fractrain.data import registry
from fractrain.data.cifar import RECIPE
from fractrain.engine.config import RunConfig
from fractrain.engine.site import Site
from fractrain.engine.trainer import Trainer
from fractrain.util.errors import ConfigError, DataError, MachineError
from fractrain.util.registry import PLUGIN_VARIABLE

CPU = torch.device("cpu")


def test_a_folder_is_trained_on(tmp_path):
    make_folder(tmp_path / "flowers", classes=("a", "b", "c", "d"))
    name = f"folder:{tmp_path / 'flowers'}?size=16"
    info = registry.info(name)
    assert (info.classes, info.shape) == (4, (3, 16, 16))
    assert registry.status(name).ok
    config = RunConfig.create(
        method="static8", model="resnet20", dataset=name, profile="smoke", recipe={"iterations": 2, "batch_size": 8}
    )
    record = Trainer(config, Site(tmp_path / "runs", "cpu")).run()
    assert record.status == "done"
    assert record.summary["data_digest"] == registry.load(name).digest


def test_the_default_recipe_is_cifars(tmp_path):
    make_folder(tmp_path / "flowers")
    recipe = RunConfig.create(
        method="fp32", model="resnet38", dataset=f"folder:{tmp_path / 'flowers'}", profile="paper"
    ).recipe
    assert {key: getattr(recipe, key) for key in ("iterations", "batch_size", "lr")} == {
        key: RECIPE[key] for key in ("iterations", "batch_size", "lr")
    }
    assert recipe.milestones == (32_000, 48_000)


def of_folder(folder, **more):
    return RunConfig.create(method="fp32", model="resnet38", dataset=f"folder:{folder}", profile="smoke", **more)


def test_the_id_of_a_run_on_a_folder_says_what_is_in_it_and_not_where_it_lies(tmp_path):
    places = [tmp_path / "me" / "flowers", tmp_path / "you" / "flowers"]
    for place in places:
        make_folder(place)
    mine, yours = (of_folder(place) for place in places)
    assert (mine.run_id, mine.dataset) == (yours.run_id, f"folder:{places[0]}")
    assert mine.run_id.startswith("fp32-resnet38-folder_flowers_")
    assert not {part for part in places[0].parts[1:-1] if part in mine.run_id}
    assert mine.public_dataset == yours.public_dataset == mine.dataset_id
    first = next((places[1] / "train").rglob("*.JPEG"))
    first.rename(first.with_name("other.JPEG"))
    other = of_folder(places[1])
    assert len({mine.run_id, other.run_id, of_folder(f"{places[0]}?size=16").run_id}) == 3


def test_a_record_from_before_folders_had_names_keeps_its_id():
    old = {
        "format_version": 1, "method": "fp32", "settings": {}, "method_version": 1, "model": "resnet38",
        "dataset": "folder:/home/me/flowers", "profile": "smoke", "seed": 2, "recipe": dict(RECIPE),
    }  # fmt: skip
    read = RunConfig.from_json(json.dumps(old), "old")
    assert read.run_id == "fp32-resnet38-folder_home_me_flowers-s2-78df58c95baa"
    assert read.public_dataset == "folder:/home/me/flowers"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("folder:", ConfigError, "expected a place"),
        ("folder:x?size=many", ConfigError, "size=N"),
        ("folder:/nowhere", DataError, "no folder /nowhere/train"),
        ("hf:owner", ConfigError, "owner/name@revision"),
        ("hf:owner/name@main", ConfigError, "owner/name@revision"),
        ("hf:owner/name", ConfigError, "a commit's hash"),
        ("torchvision:SVHM", ConfigError, "did you mean 'SVHN'"),
        ("ftp:x", ConfigError, "unknown data set 'ftp:x'"),
    ],
)
def test_errors_are_one_line(name, kind, words):
    with pytest.raises(kind) as caught:
        registry.info(name)
    assert words in one_line(caught)


def test_a_table_on_the_hub(parquet, monkeypatch):
    """What comes from there is served by ``datasets`` itself, from local files: there is no network here."""
    files = {"train": sorted(map(str, parquet.glob("train-*"))), "test": sorted(map(str, parquet.glob("val*")))}
    features = {"photo": datasets.Image(), "kind": datasets.ClassLabel(num_classes=3), "id": datasets.Value("int64")}
    splits = {"train": SimpleNamespace(num_examples=30), "test": SimpleNamespace(num_examples=7)}
    load = datasets.load_dataset

    def served(name, *, revision, split, streaming):
        assert (name, revision) == ("owner/name", "0123456789abcdef0123456789abcdef01234abc")
        stream = load("parquet", data_files=files, split=split, streaming=streaming)
        return stream.rename_columns({"image": "photo", "label": "kind"})

    builder = SimpleNamespace(
        info=SimpleNamespace(features=features, splits=splits), config=SimpleNamespace(data_files=files)
    )
    monkeypatch.setattr(datasets, "load_dataset", served)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, *, revision: builder)
    name = "hf:owner/name@0123456789abcdef0123456789abcdef01234abc?size=16"
    info = registry.info(name)
    assert (info.classes, info.shape, info.train_size, info.test_size) == (3, (3, 16, 16), 30, 7)
    batches = list(registry.load(name).eval_stream("test", 4, CPU))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 16, 16), (3, 3, 16, 16)]
    assert torch.cat([y for _, y in batches]).tolist() == [r % 3 for r in range(7)]
    builder.info.features.pop("kind")
    with pytest.raises(DataError, match="it has photo, id in train, test"):
        registry.info("hf:owner/name@0123456789abcdef0123456789abcdef01234abd")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        registry.info("hf:owner/name@0123456789abcdef0123456789abcdef01234abe")


def idx(values: np.ndarray) -> bytes:
    """MNIST's file format: a magic number with the dimensions, their sizes, bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def test_torchvisions_arrays(tmp_path):
    with pytest.raises(DataError, match="mend with --download") as caught:
        registry.load("torchvision:FashionMNIST", tmp_path)
    one_line(caught)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, labels = {}, {}
    for part, file, count in (("train", "train", 40), ("test", "t10k", 20)):
        pixels[part], labels[part] = rng.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        (raw / f"{file}-images-idx3-ubyte").write_bytes(idx(pixels[part]))
        (raw / f"{file}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    data = registry.load("torchvision:FashionMNIST", tmp_path, val_fraction=0.25, seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 20)
    assert np.array_equal(data.test.images.numpy()[:, 0], pixels["test"])
    assert data.test.labels.tolist() == labels["test"].tolist()
    assert registry.verify("torchvision:FashionMNIST", tmp_path).train_size == 40


PLUGIN = '''
import numpy as np

from fractrain.data.images import ArraySource
from fractrain.data.info import DatasetInfo


class Stripes(ArraySource):
    """Upright and lying stripes."""

    def arrays(self, info, data_dir, download):
        rng = np.random.default_rng(0)

        def part(count):
            labels = np.arange(count) % 2
            images = rng.integers(0, 128, (count, 3, 8, 8), dtype=np.uint8)
            images[labels == 0, :, ::2] += 127
            images[labels == 1, :, :, ::2] += 127
            return images, labels

        return part(info.train_size), part(info.test_size)


STRIPES = DatasetInfo(
    name="stripes", title="stripes in two directions", classes=2, shape=(3, 8, 8), train_size=64, test_size=32,
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), access=Stripes(), embedded=True,
)
'''


def test_a_data_set_as_a_plugin(tmp_path, monkeypatch):
    path = tmp_path / "stripes.py"
    path.write_text(PLUGIN)
    monkeypatch.setenv(PLUGIN_VARIABLE, str(path))
    assert "stripes" in registry.names()
    assert registry.verify("stripes").test_size == 32
    config = RunConfig.create(
        method="sbm", model="resnet20", dataset="stripes", recipe={"iterations": 12, "batch_size": 16, "lr": 0.05}
    )
    assert config.profile == "smoke"
    record = Trainer(config, Site(tmp_path / "runs", "cpu")).run()
    assert record.summary["test_accuracy_best"] == 100.0

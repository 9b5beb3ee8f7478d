from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_folders import entry, install, make_folder

from fractrain.engine.config import RunConfig
from fractrain.engine.loop import TrainingLoop
from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.testing.subject import TIMES
from fractrain.util.digests import weights_sha256
from fractrain.util.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nine training and six test images in three classes, 16x16; one of each part is damaged."""
    for name in ("FRACTRAIN_DATA", "FRACTRAIN_IMAGENET", "FRACTRAIN_BAD_IMAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FRACTRAIN_WORKERS", "0")
    install(monkeypatch, entry("imagenette", 16))
    made = make_folder(tmp_path / "imagenette", 3, 2)
    for bad in (made / "train" / "n02" / "img_000.JPEG", made / "val" / "n01" / "img_001.JPEG"):
        bad.write_bytes(bad.read_bytes()[:-100])
    return made


def config() -> RunConfig:
    recipe = {"iterations": 6, "batch_size": 4, "milestones": [], "lr": 0.01}
    return RunConfig.create(method="fp32", model="resnet38", dataset="imagenette", profile="smoke", recipe=recipe)


def loop_on(folder: Path, lines: list) -> TrainingLoop:
    return TrainingLoop(config(), Site(device="cpu", data_dir=folder.parent), on_epoch=lines.append)


def test_a_run_on_a_folder_resumes_to_the_same_bits(folder, monkeypatch):
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    ends, states = [], []
    with torch.random.fork_rng(devices=[]):
        for stop in (None, 4):
            lines: list = []
            loop = loop_on(folder, lines)
            while not loop.finished:
                loop.advance()
                if loop.step == stop:
                    states.append(loop.state_dict())
                    before = loop.lines
                    stop, loop = None, loop_on(folder, lines)
                    loop.load_state_dict(states[0])
                    assert loop.lines == before
            plain = [{k: v for k, v in line.items() if k not in TIMES} for line in loop.lines]
            ends.append((weights_sha256(loop.model), plain, loop.replaced.images))
            assert all(line["images_per_second"] > 0 and 0 < line["wait_share"] <= 1 for line in loop.lines)
    assert ends[0] == ends[1]
    assert [Path(path).parts[-3:] for path in ends[0][2]] == [
        ("train", "n02", "img_000.JPEG"), ("val", "n01", "img_001.JPEG"),
    ]  # fmt: skip


def test_the_summary_names_what_was_replaced(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    record = Trainer(config(), Site(tmp_path / "runs", "cpu", folder.parent)).run()
    summary = record.summary
    assert len(summary["replaced_images"]) == 2
    assert all("truncated" in reason for reason in summary["replaced_images"].values())


def test_a_run_stops_at_a_damaged_image_and_goes_on_where_they_are_replaced(folder, tmp_path, monkeypatch):
    """Stopping is the default; what was trained before the image is kept, and the same run goes on with ``skip``."""
    store = RunStore(tmp_path / "runs")

    def run():
        return Trainer(config(), Site(store.root, "cpu", folder.parent, checkpoint_seconds=0)).run()

    with pytest.raises(DataError) as stopped:
        run()
    assert "\n" not in str(stopped.value)
    assert "img_00" in str(stopped.value)
    assert stopped.value.exit_code == 2
    found = store.get(config().run_id)
    assert found is not None
    assert found.status == "failed"
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    record = run()
    assert record.status == "done"
    assert len(record.summary["replaced_images"]) == 2

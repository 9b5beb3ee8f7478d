"""How fast photos are read: from the folder there is, or from files of noise, and said which."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fractrain.data import registry
from fractrain.plan.loading import BATCH, Loading, measure_loading, photo_folder, reading_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FRACTRAIN_IMAGENET", "FRACTRAIN_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FRACTRAIN_WORKERS", "0")


INTERRUPTED = """
import os, signal, sys, tempfile, threading, time
from pathlib import Path
import torch
from fractrain.plan.loading import measure_loading
tempfile.tempdir = sys.argv[1]

def stop():
    from multiprocessing.forkserver import _forkserver
    while not _forkserver._forkserver_pid:
        time.sleep(0.01)
    os.killpg(0, signal.SIGINT)  # as a terminal does

threading.Thread(target=stop, daemon=True).start()
try:
    measure_loading("imagenet", torch.device("cpu"), Path(sys.argv[1]) / "none")
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_stop_while_workers_start_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that forks them is importing torch then, and must not tell of it."""
    if not hasattr(os, "killpg"):
        pytest.skip("no process groups on this platform")
    monkeypatch.setenv("FRACTRAIN_WORKERS", "1")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, text=True, start_new_session=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("stopped\n", "", 0)
    assert not list(tmp_path.glob("fractrain-plan-*"))


class Slow:
    """Two batches of ten images a pass, each of which takes 20 ms or more."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.closed = False

    def __len__(self) -> int:
        return 2

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append((epoch, index))
        time.sleep(0.02)
        return torch.zeros(10, 3, 4, 4), torch.zeros(10, dtype=torch.int64)

    def close(self) -> None:
        self.closed = True


def test_the_rate_leaves_out_the_first_batch_and_goes_on_over_passes() -> None:
    stream = Slow()
    rate, first = reading_rate(stream, 0.1)
    assert stream.asked[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)][: len(stream.asked)]  # a busy machine gets less far
    assert 0 < rate <= 10 / 0.02  # a busy machine reads slower, none faster; the first batch would make it more
    assert first >= 0.02
    assert stream.closed


def test_a_folder_that_is_there_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_folder(registry.info("imagenette"), tmp_path / "imagenette", classes=10, per_class=2)
    read: list[int] = []
    monkeypatch.setattr("fractrain.plan.loading.photo_folder", lambda *args: pytest.fail("made up"))
    monkeypatch.setattr(
        "fractrain.plan.loading.reading_rate", lambda stream, *more: (float(read.append(len(stream)) or 7.0), 0.0)
    )
    found = measure_loading("imagenette", CPU, tmp_path, 0.01)
    assert found == Loading(7.0, 0, str(tmp_path / "imagenette"), False)
    assert read == [-(-20 // BATCH)]


def test_without_data_photos_are_made_up_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    found = measure_loading("imagenet", CPU, tmp_path, 0.01)
    assert isinstance(found, Loading)
    assert found.synthetic
    assert found.images_per_s > 0
    assert found.source == f"made-up photos of 500x375 pixels, for there is no imagenet in {tmp_path / 'imagenet'}"
    assert list(tmp_path.rglob("*")) == [tmp_path / "scratch"]


def test_data_in_memory_and_streams_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_loading("cifar10", CPU, None) is None
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    assert (
        measure_loading("imagenet", CPU, None)
        == "streamed from owner/name@0123456789abcdef0123456789abcdef01234abc, at the pace of the network"
    )

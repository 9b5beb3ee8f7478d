from __future__ import annotations

import json
import os
import random

import pytest
import torch

from fractrain.engine import checkpoint
from fractrain.util.errors import CheckpointError, StoreError


def state(step: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(step)
    return {"w": torch.randn(40, generator=generator), "cursor": {"step": step}, "lines": [{"a": None, "b": 1.5}]}


def step_of(path, run_id="r"):
    loaded = checkpoint.load(path, run_id)
    return None if loaded is None else loaded["cursor"]["step"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


def test_round_trip_and_two_generations(path):
    assert checkpoint.load(path, "r") is None
    for step in (1, 2, 3):
        checkpoint.save(path, state(step), "r")
    loaded = checkpoint.load(path, "r")
    assert torch.equal(loaded["w"], state(3)["w"])
    assert loaded["lines"] == [{"a": None, "b": 1.5}]
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.prev.pt", "checkpoint.pt"]
    path.unlink()
    assert step_of(path) == 2


def test_truncation_anywhere_falls_back(path, caplog):
    rng = random.Random(0)
    for step in (1, 2):
        checkpoint.save(path, state(step), "r")
    whole, before = path.read_bytes(), checkpoint.previous_path(path).read_bytes()
    header = whole.index(b"\n") + 1
    for length in [0, 1, header - 1, header, header + 1, len(whole) - 1, *rng.sample(range(len(whole)), 20)]:
        path.write_bytes(whole[:length])
        checkpoint.previous_path(path).write_bytes(before)
        caplog.clear()
        assert step_of(path) == 1, length
        assert len(caplog.records) == 1
        assert "checkpoint.prev.pt" in caplog.text


def test_a_flipped_bit_anywhere_is_found(path):
    rng = random.Random(1)
    for step in (1, 2):
        checkpoint.save(path, state(step), "r")
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for position in [*range(header), len(whole) - 1, *rng.sample(range(header, len(whole)), 20)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert step_of(path) == 1, position


def test_the_damaged_one_never_pushes_out_the_sound_one(path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(path, state(step), "r")
    path.write_bytes(b"damaged")
    assert step_of(path) == 1
    assert (path.parent / "checkpoint.damaged.pt").exists()

    def no_rename(source: str, target: str) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", lambda descriptor: no_rename("", ""))
    with pytest.raises(StoreError, match="disk is full"):
        checkpoint.save(path, state(3), "r")
    monkeypatch.undo()
    assert step_of(path) == 1
    assert not list(path.parent.glob(".*"))


def test_both_damaged(path):
    for step in (1, 2):
        checkpoint.save(path, state(step), "r")
    path.write_bytes(path.read_bytes()[:-5])
    checkpoint.previous_path(path).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, "r")
    text = str(caught.value)
    assert "\n" not in text
    for word in ("checkpoint.pt is damaged", "checkpoint.prev.pt is damaged", "move", str(path.parent)):
        assert word in text


def test_the_only_one_damaged(path):
    checkpoint.save(path, state(1), "r")
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path, "r")


def test_another_run_or_another_format(path):
    checkpoint.save(path, state(1), "r")
    with pytest.raises(CheckpointError, match="belongs to run r, not to q"):
        checkpoint.load(path, "q")
    line, _, body = path.read_bytes().partition(b"\n")
    header = json.loads(line)
    header["format"] = 99
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)
    with pytest.raises(CheckpointError, match="format 99, this release reads 1"):
        checkpoint.load(path, "r")


class Surprise:
    """Something that may run code when unpickled."""


def test_objects_are_not_unpickled(path):
    checkpoint.save(path, {"x": Surprise()}, "r")
    with pytest.raises(CheckpointError, match="for safety") as caught:
        checkpoint.load(path, "r")
    assert "\n" not in str(caught.value)


def test_state_on_a_device_comes_back_on_the_cpu(path):
    checkpoint.save(path, {"w": torch.ones(3, device="cuda" if torch.cuda.is_available() else "cpu")}, "r")
    assert checkpoint.load(path, "r")["w"].device.type == "cpu"

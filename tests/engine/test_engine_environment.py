from __future__ import annotations

import getpass
import io
import json
import platform
import sys
from pathlib import Path

import pytest
import torch

from fractrain.engine import environment
from fractrain.util.device import determinism, resolve_device
from fractrain.util.errors import MachineError
from fractrain.util.progress import BarProgress, LineProgress, Progress, TableProgress, duration, make_progress


def test_environment_names_no_person_and_no_machine():
    found = environment.capture(torch.device("cpu"))
    text = json.dumps(found)
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0] or "+" in found["packages"]["torch"]
    assert found["python"] == platform.python_version()
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert str(Path(__file__).parents[2]) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def test_revision_outside_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "fractrain").mkdir()
    (tmp_path / "fractrain" / "__init__.py").touch()
    monkeypatch.setattr(environment.fractrain, "__file__", str(tmp_path / "fractrain" / "__init__.py"))
    assert environment.source_revision() is None


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "", "cuda:99"])
def test_devices_that_are_not_there(name):
    with pytest.raises(MachineError, match=f"--device {name}") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


def test_devices_that_are_there():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(MachineError, match="no GPU here; use --device cpu"):
        resolve_device("cuda")


def test_determinism_is_put_back():
    seen = []

    def fail() -> None:
        with determinism(True):
            seen.append(torch.are_deterministic_algorithms_enabled())
            raise RuntimeError("x")

    with pytest.raises(RuntimeError, match="x"):
        fail()
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_lines_come_at_intervals_with_the_time_left():
    stream, now = io.StringIO(), [0.0]
    progress = LineProgress(stream, interval=10, clock=lambda: now[0])
    progress.start("run", 100, 20)
    for step in range(21, 61):
        now[0] += 1.0
        progress.update(step, 0.5)
    progress.close()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run: 20/100 steps done, going on"
    assert lines[1] == "run: 30/100 steps (30 %), loss 0.500, 1 min 10 s left"
    assert lines[-1] == "run: 60/100 steps after 40 s"
    assert len(lines) == 6


def test_no_time_left_is_told_from_the_first_step_alone():
    """The first one compiles: here it takes nine of the first ten seconds."""
    stream, now = io.StringIO(), [0.0]
    progress = LineProgress(stream, interval=10, clock=lambda: now[0])
    progress.start("run", 100)
    for step, seconds in ((1, 90.0), (2, 10.0), (6, 4.0), (16, 10.0)):
        now[0] += seconds
        progress.update(step)
    told = stream.getvalue().splitlines()[1:]
    assert told[:2] == ["run: 1/100 steps (1 %)", "run: 2/100 steps (2 %)"]
    assert told[2] == f"run: 16/100 steps (16 %), {duration(24 / 15 * 84)} left"


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert isinstance(make_progress("auto", io.StringIO()), BarProgress)


def test_table_adds_up_and_shows_failures_at_once():
    stream, now = io.StringIO(), [0.0]
    table = TableProgress(LineProgress(stream, interval=10, clock=lambda: now[0]))
    table.start({"a": 10, "b": 30}, cached=2)
    now[0] = 10.0
    table.update("a", 5)
    table.finish("a", "failed", "no data")
    now[0] = 20.0
    table.update("b", 10)
    table.close()
    assert stream.getvalue().splitlines() == [
        "2 runs are in the store already, 2 to do",
        "runs 0/2: 40 steps",
        "runs 0/2: 5/40 steps (12 %)",
        "a: failed: no data",
        "runs 1/2: 20/40 steps (50 %), 13 s left",
        "runs 1/2: 20/40 steps after 20 s",
    ]


def test_bar_and_choice():
    stream = io.StringIO()
    bar = make_progress("bar", stream)
    assert isinstance(bar, BarProgress)
    bar.update(1)
    bar.start("run", 4, 1)
    bar.update(3, 0.25, "other")
    bar.note("hello")
    bar.close()
    bar.close()
    assert "run" in stream.getvalue()
    assert "hello" in stream.getvalue()
    assert isinstance(make_progress("auto", stream), LineProgress)
    silent = make_progress("silent")
    assert type(silent) is Progress
    silent.start("x", 1)
    silent.update(1)
    silent.note("x")
    silent.close()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text

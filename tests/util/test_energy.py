"""Energy meters: processors' counters that start again, a GPU's counter, and everything that may be missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fractrain.util import energy
from fractrain.util.energy import EnergyMeter


class Counter:
    def __init__(self, *readings: float) -> None:
        self.readings = list(readings)

    def __call__(self) -> float:
        return self.readings.pop(0)


def test_joules_are_differences_and_a_counter_may_start_again() -> None:
    meter = EnergyMeter({"a": (Counter(10, 15, 2, 2), 20.0), "b": (Counter(1, 1, 4, 4), 0.0)})
    assert meter.total == 5
    assert meter.total == 5 + 7 + 3
    assert meter.joules == {"a": 12, "b": 3}


def test_an_interruption_does_not_count() -> None:
    meter = EnergyMeter({"a": (Counter(100, 130, 131), 0.0)})
    meter.go_on({"a": 7.0})
    assert meter.total == 8


@pytest.mark.parametrize("before", [None, {}, {"b": 1.0}, {"a": 1.0, "b": 1.0}])
def test_other_meters_before_an_interruption_make_the_sum_unknown(before: dict[str, float] | None) -> None:
    meter = EnergyMeter({"a": (Counter(1, 2, 3), 0.0)})
    meter.go_on(before)
    assert meter.total is None
    assert meter.joules == {}


def test_a_meter_that_fails_is_given_up() -> None:
    meter = EnergyMeter({"a": (Counter(1), 0.0)})
    assert meter.total is None
    assert EnergyMeter().total is None


def test_a_poll_reads_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    counter = Counter(1, 5)
    meter = EnergyMeter({"a": (counter, 0.0)})
    meter.poll()
    assert counter.readings == [5]
    now[0] = energy.POLL_S + 1
    meter.poll()
    assert meter.joules == {"a": 4}


def package(root: Path, name: str, joules: str = "5000000") -> None:
    zone = root / name
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text(joules)


def test_processor_packages_are_found_and_their_parts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "intel-rapl:0")
    package(tmp_path, "intel-rapl:0:0")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    meter = EnergyMeter.for_device(torch.device("cpu"))
    assert meter.total == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000")
    assert meter.total == 2.5
    assert list(meter.joules) == ["processor package-0"]


def test_what_may_not_be_read_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "intel-rapl:0", "no number")
    package(tmp_path, "intel-rapl:1")
    (tmp_path / "intel-rapl:1" / "name").unlink()
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert EnergyMeter.for_device(torch.device("cpu")).total is None
    monkeypatch.setattr(energy, "RAPL", tmp_path / "missing")
    assert EnergyMeter.for_device(torch.device("cpu")).total is None


def test_a_gpu_is_read_by_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Counter(1000, 2000, 5000)  # mJ: tried once, then the start
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda uuid: readings() if uuid == "GPU-abc" else -1,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    properties = SimpleNamespace(uuid="abc", name="Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    meter = EnergyMeter.for_device(torch.device("cuda:1"))
    assert meter.total == 3.0
    assert list(meter.joules) == ["GPU Card"]


def test_without_the_package_a_gpu_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert EnergyMeter.for_device(torch.device("cuda")).total is None

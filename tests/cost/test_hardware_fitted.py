"""The fitted hardware model replays the published energy and latency columns, and says where it must not be trusted.

This is a check of consistency, not a validation: the lines were fitted to the static and DFQ rows replayed here. What
is overdetermined, and so could fail: 16 rows x 2 columns from 8 constants, and three columns of each FracTrain row from
two numbers (iterations, mean cp).
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_forms import published_macs, published_row

from fractrain.cost.formulas import AUTHORS_FORWARD_MACS
from fractrain.cost.hardware.base import Cost, Workload, WorkRow
from fractrain.cost.hardware.fitted import REFERENCES, FittedModel
from fractrain.util.errors import ConfigError

EXACT_MACS = {
    ("resnet38", "cifar10"): 83_280_512,
    ("resnet38", "cifar100"): 83_286_272,
    ("resnet74", "cifar10"): 168_215_168,
    ("resnet74", "cifar100"): 168_220_928,
}
CP = {"wageubn": 6.25, "dorefa": 6.25, "sbm": 6.25, "dfq": 3.0}
CELLS = [(model, dataset, method) for model, dataset in EXACT_MACS for method in CP]

# MACs cells that contradict the energy and latency of their own row; with the MACs that these two columns imply.
CONTRADICTORY = {
    ("resnet38", "cifar100", "dorefa"): ("misprint: energy and latency of the row imply about 8.9e13", 8.9e13),
    ("resnet38", "cifar100", "dfq"): ("the authors' log has iteration 34320, which gives 3.36e13", 3.36e13),
}
FRACTRAIN = {  # iterations up to the best epoch and mean cp, solved from latency and energy of the row
    ("resnet38", "cifar10"): (50_310, 2.42),
    ("resnet38", "cifar100"): (34_710, 2.35),
    ("resnet74", "cifar10"): (36_100, 2.48),
    ("resnet74", "cifar100"): (35_100, 2.39),
}
TOLERANCE = 0.015


def cell(model: str, dataset: str, method: str, metric: str) -> float:
    value = published_row(table="table2", model=model, dataset=dataset, method=method, metric=metric)
    assert isinstance(value.value, float)
    return value.value


def replay(model: str, dataset: str, method: str, macs: float | None = None) -> tuple[float, float]:
    """Relative errors of energy and latency when the number of images is derived from the row's MACs."""
    macs = cell(model, dataset, method, "effective_MACs") if macs is None else macs
    images = macs / (CP[method] / 100 * 3 * AUTHORS_FORWARD_MACS[model])
    hardware, asked = FittedModel(), (images, CP[method], EXACT_MACS[model, dataset])
    assert hardware.note(*asked[1:]) == ""
    return (
        hardware.energy_j(*asked) / 1e3 / cell(model, dataset, method, "energy_kJ") - 1,
        hardware.latency_s(*asked) / 60 / cell(model, dataset, method, "latency_min") - 1,
    )


@pytest.mark.parametrize("key", [key for key in CELLS if key not in CONTRADICTORY], ids="-".join)
def test_static_and_dfq_rows_follow_from_their_macs(key: tuple[str, str, str]) -> None:
    energy, latency = replay(*key)
    assert abs(energy) < TOLERANCE
    assert abs(latency) < TOLERANCE
    assert abs(energy) < 0.003  # what the fit reaches in fact
    assert abs(latency) < 0.003


@pytest.mark.parametrize("key", list(CONTRADICTORY), ids="-".join)
def test_the_two_contradictory_cells_are_named_not_fudged(key: tuple[str, str, str]) -> None:
    energy, latency = replay(*key)
    assert abs(energy) > TOLERANCE
    assert abs(latency) > TOLERANCE
    assert energy == pytest.approx(latency, abs=0.002)  # energy and latency agree with each other, MACs with neither
    energy, latency = replay(*key, macs=CONTRADICTORY[key][1])
    assert abs(energy) < TOLERANCE
    assert abs(latency) < TOLERANCE


def test_exactly_two_of_sixteen_rows_are_contradictory() -> None:
    outside = {key for key in CELLS if max(map(abs, replay(*key))) > TOLERANCE}
    assert len(CELLS) == 16
    assert outside == set(CONTRADICTORY)


@pytest.mark.parametrize("key", [("resnet38", "cifar100"), ("resnet74", "cifar10"), ("resnet38", "cifar10")])
def test_dfq_rows_follow_from_the_best_iteration_of_the_authors_script(key: tuple[str, str]) -> None:
    iterations = {("resnet38", "cifar10"): 50_700, ("resnet38", "cifar100"): 34_320, ("resnet74", "cifar10"): 37_440}
    images = 128 * iterations[key]
    hardware = FittedModel()
    assert hardware.energy_j(images, 3, EXACT_MACS[key]) / 1e3 == pytest.approx(
        cell(*key, "dfq", "energy_kJ"), rel=1e-3
    )
    assert hardware.latency_s(images, 3, EXACT_MACS[key]) / 60 == pytest.approx(
        cell(*key, "dfq", "latency_min"), rel=1e-3
    )


@pytest.mark.parametrize("key", list(FRACTRAIN), ids="-".join)
def test_fractrain_rows_follow_from_iterations_and_mean_cp(key: tuple[str, str]) -> None:
    iterations, cp = FRACTRAIN[key]
    hardware, asked = FittedModel(), (128 * iterations, cp, EXACT_MACS[key])
    assert hardware.energy_j(*asked) / 1e3 == pytest.approx(cell(*key, "fractrain", "energy_kJ"), rel=TOLERANCE)
    assert hardware.latency_s(*asked) / 60 == pytest.approx(cell(*key, "fractrain", "latency_min"), rel=TOLERANCE)
    macs = published_macs(cp, iterations, 128, AUTHORS_FORWARD_MACS[key[0]])
    assert macs == pytest.approx(cell(*key, "fractrain", "effective_MACs"), rel=TOLERANCE)
    assert "3 to 6.25 %" in hardware.note(*asked[1:])  # their cp is below what the lines were fitted to


def test_per_image_figures_by_hand() -> None:
    hardware = FittedModel()
    assert hardware.latency_s(1, 6.25, 83_280_512) * 1e3 == pytest.approx(1.774 + 0.1185 * 6.25)
    assert hardware.energy_j(1, 6.25, 83_280_512) * 1e3 == pytest.approx(4.528, abs=5e-4)
    assert hardware.latency_s(1, 3, 168_215_168) * 1e3 == pytest.approx(4.304, abs=5e-4)
    assert hardware.energy_j(1, 3, 168_215_168) * 1e3 == pytest.approx(7.487, abs=1e-3)


def test_other_models_are_scaled_from_the_nearest_reference() -> None:
    hardware = FittedModel()
    resnet18, mobilenet = 1_814_073_344, 91_154_944
    assert hardware.energy_j(10, 4, resnet18) == pytest.approx(
        hardware.energy_j(10, 4, 168_215_168) * resnet18 / 168_215_168
    )
    assert hardware.latency_s(10, 4, mobilenet) == pytest.approx(
        hardware.latency_s(10, 4, 83_280_512) * mobilenet / 83_280_512
    )
    assert "ResNet-74" in hardware.note(4, resnet18)
    assert hardware.note(4, mobilenet) == ""  # inside the range of sizes


def test_the_two_references_agree_per_mac() -> None:
    small, big = REFERENCES
    for name in ("time_a", "time_b", "energy_a", "energy_b"):
        ratio = (getattr(big, name) / big.forward_macs) / (getattr(small, name) / small.forward_macs)
        assert ratio == pytest.approx(1, abs=0.035)


def test_what_is_outside_the_fitted_range_is_named() -> None:
    hardware = FittedModel()
    assert "100 %" in hardware.note(100.0, 83_280_512)
    for cp in (3.0, 6.25, 4.7, 6.25 + 1e-12):
        assert hardware.note(cp, 83_280_512) == ""
    for cp in (2.99, 6.26):
        assert hardware.note(cp, 83_280_512)


def test_a_workload_has_a_fixed_part_and_rows_that_grow_with_cp() -> None:
    rows = (
        WorkRow("b.conv", "FW", 4, 4, 1000.0, block="b"), WorkRow("b.conv", "GC", 8, 4, 1000.0, block="b"),
        WorkRow("stem", "FW", 32, 32, 1000.0),
    )  # fmt: skip
    hardware, forward = FittedModel(), 83_280_512
    priced = hardware.work(Workload(rows, 7, 4.0, forward))
    own = [Cost.from_figures(line) for line in priced.rows]
    total = priced.overhead.seconds.total + sum(cost.seconds.total for cost in own)
    assert total == pytest.approx(hardware.latency_s(7, 4.0, forward), rel=1e-12)
    joules = priced.overhead.joules.total + sum(cost.joules.total for cost in own)
    assert joules == pytest.approx(hardware.energy_j(7, 4.0, forward), rel=1e-12)
    assert priced.overhead.seconds.fixed == pytest.approx(7 * 1.774e-3)
    assert own[1].seconds.compute == pytest.approx(2 * own[0].seconds.compute)
    assert own[2].seconds.total == 0
    assert priced.note == ""
    with pytest.raises(ConfigError, match="forward_macs"):
        hardware.work(Workload(rows, 7, 4.0, None))


@given(cp=st.floats(0, 100), step=st.floats(0.01, 10), macs=st.floats(1e6, 1e10), images=st.integers(1, 10**9))
def test_cost_rises_with_cp_and_is_additive_in_images(cp: float, step: float, macs: float, images: int) -> None:
    hardware = FittedModel()
    for cost in (hardware.energy_j, hardware.latency_s):
        assert cost(images, cp + step, macs) > cost(images, cp, macs) > 0
        assert cost(images, cp, macs) + cost(images, cp, macs) == pytest.approx(cost(2 * images, cp, macs))


@pytest.mark.parametrize(("images", "cp", "macs"), [(-1, 3, 1e8), (1, math.nan, 1e8), (1, -1, 1e8), (1, 3, 0)])
def test_bad_arguments_are_refused(images: float, cp: float, macs: float) -> None:
    with pytest.raises(ConfigError, match="fractrain-fitted"):
        FittedModel().energy_j(images, cp, macs)
    with pytest.raises(ConfigError, match="fractrain-fitted"):
        FittedModel().latency_s(images, cp, macs)

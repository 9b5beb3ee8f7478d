"""``fractrain plan`` of the tables there are, at the paper's length: steps are replaced, figures counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_run import estimate

from fractrain.commands import forecast
from fractrain.engine.config import RunConfig
from fractrain.plan.calibrate import Trial, parameters, run_trial
from fractrain.plan.calibrate import forecast as expect
from fractrain.plan.loading import Loading
from fractrain.report.spec import table_names

STEP_S, EVALUATION_S, RATE = 1.0, 0.001, 100.0
CIFAR_PASS = 391  # ceil(50,000 / 128)
IMAGENET = 90 * 5_005  # ceil(1,281,167 / 256)

# Runs by network, data set and setting; 3 seeds of each row.
RUNS = {
    "table1": {"resnet18 imagenet": 21, "resnet34 imagenet": 21, "transformer_base wikitext103": 18},
    "table2": {f"{m} {d}": 21 for m in ("resnet38", "resnet74") for d in ("cifar10", "cifar100")},
    "table3": {"resnet18 imagenet": 9, "resnet34 imagenet": 9},
    "table4": {"resnet38 cifar100 adaptation": 15, "resnet38 cifar100 fine-tuning": 15},
    "table5": {f"{m} {d}": 15 for m in ("resnet38", "resnet74") for d in ("cifar10", "cifar100")},
    "table6": {"resnet38 cifar100": 9, "resnet74 cifar100": 9, "resnet18 imagenet": 9},
    "overview": {f"{m} {d}": 36 for m in ("resnet38", "resnet74", "mobilenet_v2") for d in ("cifar10", "cifar100")}
    | {"resnet18 imagenet": 36, "resnet34 imagenet": 36, "transformer_base wikitext103": 63}
    | {"resnet38 cifar10": 66, "resnet38 cifar100": 66},  # ten methods in today's formats on two models
    "formats": {"resnet38 cifar10": 57, "transformer_base wikitext103": 57},  # FP32 and 18 formats
    "table7": {},  # trains nothing
    "figure-cost": {"resnet38 cifar100": 15},  # all of them runs of tables 2 and 6
    "figure-dfq": {f"{m} {d}": 39 for m in ("resnet38", "resnet74", "mobilenet_v2") for d in ("cifar10", "cifar100")},
    "figure-pfq": {f"{m} {d}": 24 for m in ("resnet38", "resnet74") for d in ("cifar10", "cifar100")},
}
# What is in a table and cannot run: widths above 16 bits, a model that is not here, activations with both signs.
CANNOT_RUN = {
    "table1": {("cpt", "resnet18"), ("cpt", "resnet34"), ("sbm", "resnet50"), ("cpt", "resnet50")},
    "overview": {("dorefa", "transformer_base")},
}
# Of one run: iterations, evaluations, samples of an evaluation.
ONE = {
    "cifar10": (64_000, 164, 10_000),  # 64,000 / 391 = 163.7 passes
    "cifar100": (64_000, 164, 10_000),
    "imagenet": (IMAGENET, 90, 50_000),
    "wikitext103": (50_000, 25, 426 + 480),  # windows of 512 words in 217,646 and 245,569
}
SOURCES = {"adaptation-source": (64_000, 327, 5_000), "fine-tuning-source": (64_000, 327, 10_000)}  # 25,000 images
TARGETS = {"adaptation": (32_000, 164, 5_000), "fine-tuning": (32_000, 164, 10_000)}


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """Make every step take a second, and a checkpoint weights and momentum; return the runs that are tried."""
    tried: list[RunConfig] = []
    counts: dict[tuple[str, str, str], int] = {}

    def one(config: RunConfig, device: torch.device) -> Trial:
        tried.append(config)
        key = (config.model, config.dataset, config.setting)
        known = counts[key] = counts.get(key) or parameters(config)
        return Trial(STEP_S, EVALUATION_S, 2 * 4 * known, known, config.recipe.batch_size)

    def rate(name: str, device: torch.device, data_dir: Path | None) -> Loading | None:
        return Loading(RATE, 1, "nowhere", True) if name == "imagenet" else None

    monkeypatch.setattr(forecast, "run_trial", one)
    monkeypatch.setattr(forecast, "measure_loading", rate)
    monkeypatch.setenv("FRACTRAIN_DATA", str(tmp_path / "no_data"))
    return tried


def plan(cli: Any, *args: Any) -> dict[str, Any]:
    result = cli("plan", *args, "--profile", "paper", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_table_is_known_here() -> None:
    assert sorted(RUNS) == sorted(table_names())


@pytest.mark.parametrize("table", sorted(RUNS))
def test_runs_and_their_lengths(cli: Any, table: str) -> None:
    found = plan(cli, table)
    counted: dict[str, int] = {}
    cannot = set()
    for run in found["runs"]:
        if run["state"] != "to run":
            assert run["state"] in ("incompatible", "no model")
            assert run["reason"]
            cannot.add((run["method"], run["model"]))
            continue
        setting = "" if run["setting"] == "standard" else f" {run['setting']}"
        key = f"{run['model']} {run['dataset']}{setting}"
        counted[key] = counted.get(key, 0) + 1
        iterations, evaluations, samples = TARGETS.get(run["setting"], ONE[run["dataset"]])
        value = run["estimate"]
        assert (value["iterations"], value["evaluations"]) == (iterations, evaluations)
        assert value["evaluation_s"] == pytest.approx(samples * EVALUATION_S)
    assert counted == RUNS[table]
    assert cannot == CANNOT_RUN.get(table, set())


def test_sums_of_cifar_with_hours_and_disk(cli: Any) -> None:
    """Table 2: 84 runs of 64,000 steps of a second and 164 evaluations of 10 s."""
    found = plan(cli, "table2")
    assert found["totals"]["runs"] == 84
    assert found["totals"]["iterations"] == 84 * 64_000
    assert found["totals"]["hours"] == pytest.approx(84 * (64_000 + 164 * 10) / 3600)
    # Stem, three stages of 2 n convolutions of 3x3 with BatchNorm (n = 6, 12), two shortcuts of 1x1, the last layer.
    small, large = (
        464 + (2 * n) * 2336 + (4672 + (2 * n - 1) * 9280) + (18560 + (2 * n - 1) * 36992) + 2752 + 650 for n in (6, 12)
    )
    classes = 90 * 65  # more in CIFAR-100, of 64 numbers and a bias
    every = 21 * 8 * (2 * small + 2 * large + 2 * classes)
    disk = found["disk"]
    assert disk["checkpoints_kept_bytes"] == pytest.approx(every, abs=84)  # rounded one by one
    assert disk["checkpoints_passing_bytes_per_job"] == 2 * 8 * (large + classes)
    data = {need["name"]: (need["there"], need["to_come"], need["passing"]) for need in disk["data"]}
    assert data == {"cifar10": (0, 186_214_026, 170_498_071), "cifar100": (0, 186_301_098, 169_001_437)}
    training = 186_214_026 + 186_301_098 + disk["checkpoints_kept_bytes"] + 2 * 8 * (large + classes)
    fetching = 186_214_026 + 186_301_098 + 169_001_437
    assert training > fetching
    assert disk["peak_to_come_bytes"] == training


def test_sums_of_imagenet_where_loading_is_slower(cli: Any) -> None:
    """Table 3: at 100 images/s a step waits 2.56 s for its 256 images, an evaluation 500 s for its 50,000."""
    found = plan(cli, "table3")
    assert {run["estimate"]["bound"] for run in found["runs"]} == {"loading"}
    assert found["totals"]["iterations"] == 18 * 450_450
    assert found["totals"]["hours"] == pytest.approx(18 * (450_450 * 2.56 + 90 * 500) / 3600)
    disk = found["disk"]
    assert disk["checkpoints_kept_bytes"] == 9 * 8 * (11_689_512 + 21_797_672)  # as torchvision documents them
    assert disk["peak_to_come_bytes"] == 2 * 154_642_401_280  # the archives lie beside what they hold
    text = cli("plan", "table3", "--profile", "paper", "--device", "cpu").stdout
    assert "1 s, loading 2.56 s; slower: loading" in text
    assert "imagenet: loading 100 images/s by 1 worker, MADE UP: nowhere" in text
    assert "imagenet  154.6 GB to come (not in " in text


def test_sums_of_table_1_hold_the_text(cli: Any) -> None:
    found = plan(cli, "table1")
    text = 50_000 + 25 * 0.906
    images = 450_450 * 2.56 + 90 * 500
    assert found["totals"]["hours"] == pytest.approx((42 * images + 18 * text) / 3600)
    need = found["disk"]["data"][1]
    words = 103_227_021 + 217_646 + 245_569
    assert (need["name"], need["to_come"]) == ("wikitext103", 313_093_838 + 4 * words)  # the download stays


def test_sums_of_table_4_hold_the_source_runs(cli: Any) -> None:
    found = plan(cli, "table4")
    assert found["source_counts"] == {"to run": 6}
    for source in found["sources"]:
        value = source["estimate"]
        iterations, evaluations, samples = SOURCES[source["setting"]]
        assert (value["iterations"], value["evaluations"]) == (iterations, evaluations)
        assert value["evaluation_s"] == pytest.approx(samples * EVALUATION_S)
        assert len(source["source_of"]) == 5
    assert sorted((s["setting"], s["seed"]) for s in found["sources"]) == [
        (setting, seed) for setting in ("adaptation-source", "fine-tuning-source") for seed in range(3)
    ]
    assert found["totals"]["runs"] == 36
    assert found["totals"]["iterations"] == 30 * 32_000 + 6 * 64_000
    halves = 15 * (32_000 + 164 * 5) + 3 * (64_000 + 327 * 5)
    all_classes = 15 * (32_000 + 164 * 10) + 3 * (64_000 + 327 * 10)
    assert found["totals"]["hours"] == pytest.approx((halves + all_classes) / 3600)
    half, whole = 564_122 + 40 * 65, 564_122 + 90 * 65  # 50 and 100 classes
    assert found["disk"]["checkpoints_kept_bytes"] == pytest.approx(18 * 8 * (half + whole), abs=36)


def test_all_is_one_job_that_tries_few(cli: Any, trials: list[RunConfig]) -> None:
    """Every method on every network but dorefa on the Transformer; formats and optimizers on two; shared runs once."""
    found = plan(cli, "all")
    runs = [run for run in found["runs"] + found["sources"] if run["state"] == "to run"]
    assert len({run["run_id"] for run in runs}) == len(runs) == found["totals"]["runs"]
    assert len(runs) < sum(sum(table.values()) for table in RUNS.values())
    assert len({(config.method, config.model) for config in trials}) == 6 * 12 - 1 + 2 * 10
    assert found["totals"]["tried"] == len(trials) < found["totals"]["kinds"] / 2


def test_one_pair_is_really_tried(monkeypatch: pytest.MonkeyPatch, cli: Any, tiny_table: Path) -> None:
    """The paper's ResNet-38 on CIFAR-10 and CIFAR-100: tried once, on 32 images of 128, without the data."""
    monkeypatch.setattr(forecast, "run_trial", run_trial)
    text = tiny_table.read_text(encoding="utf-8") + "[profiles.paper]\nseeds = 2\n"
    pair = text[text.index("[[pairs]]") : text.index("[[rows]]")]
    text = text.replace(pair, pair + pair.replace("cifar10", "cifar100").replace("CIFAR-10", "CIFAR-100"))
    tiny_table.write_text(text, encoding="utf-8")
    found = plan(cli, tiny_table)
    assert (found["totals"]["tried"], found["totals"]["kinds"], found["totals"]["runs"]) == (1, 2, 4)
    first, last = found["runs"][0]["estimate"], found["runs"][-1]["estimate"]
    assert (first["trial_batch"], first["batch"], first["iterations"]) == (32, 128, 64_000)
    assert first["step_s"] == last["step_s"] > 0
    assert first["seconds"] == pytest.approx(64_000 * first["step_s"] + 164 * first["evaluation_s"])
    # Weights and momentum, and BatchNorm's statistics.
    assert 2 * 4 * 564_122 <= first["disk_bytes"] <= 2.1 * 4 * 564_122
    own = estimate(RunConfig.create(method="fp32", model="resnet38", dataset="cifar100"))
    assert last["disk_bytes"] == pytest.approx(own.disk_bytes, rel=1e-3)


def test_too_little_disk_is_named(monkeypatch: pytest.MonkeyPatch, cli: Any, tmp_path: Path) -> None:
    """Of ImageNet twice 154,642,401,280 bytes while it is unpacked, and less than that once it is there."""
    real = forecast.DiskFolder.at

    def disk(free: int, disks: int) -> None:
        def of(folder: Path) -> forecast.DiskFolder:
            return forecast.DiskFolder(folder, disks and len(real(folder).folder.parts), free)

        monkeypatch.setattr(forecast.DiskFolder, "at", of)

    args = ("plan", "table3", "--profile", "paper", "--device", "cpu")
    disk(308_000_000_000, disks=0)
    text = cli(*args).stdout
    assert text.endswith(f"  NOTE: 1.3 GB too little for {tmp_path / 'no_data'}\n")  # 309.28 less 308
    disk(310_000_000_000, disks=0)
    assert "NOTE: " not in cli(*args).stdout.split("Disk:")[1]
    # On a disk of their own, checkpoints need 9 x 8 x 33,487,184 bytes and two more of the larger network.
    results = tmp_path / "another" / "disk" / "runs"
    disk(2_500_000_000, disks=1)
    text = cli(*args, "--results", results).stdout
    assert text.endswith(f"too little for {tmp_path / 'no_data'}\n  NOTE: 260 MB too little for {results}\n")


def test_a_rate_that_is_fast_enough_costs_nothing() -> None:
    config = RunConfig.create(method="fp32", model="resnet18", dataset="imagenet", profile="paper")
    trial = Trial(1.0, 0.01, 8 * 11_689_512, 11_689_512, 8)
    fast, slow = (expect(config, trial, trial.parameters, rate) for rate in (257.0, 64.0))
    assert (fast.bound, slow.bound) == ("step", "loading")
    assert fast.seconds == pytest.approx(450_450 * 1 + 90 * 500)
    assert slow.seconds == pytest.approx(450_450 * 4 + 90 * 50_000 / 64)

"""``fractrain plan``: the times it tells come from real steps, fit their own arithmetic, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_run import estimate

from fractrain.commands import forecast
from fractrain.commands.planning import plan_runs
from fractrain.cost.ledger import Ledger
from fractrain.data import registry
from fractrain.engine import checkpoint
from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.engine.store import RunStore
from fractrain.plan import calibrate
from fractrain.plan.calibrate import _samples

MODELS = {"docs_text": "transformer_base", "digits32": "resnet18", "digits100": "resnet38"}


def test_plan_tells_iterations_time_and_disk_and_stores_nothing(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = cli("plan", tiny_table, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)["runs"][0]
    found = run["estimate"]
    assert found["iterations"] == 4
    assert found["evaluations"] == 1
    assert found["seconds"] == pytest.approx(4 * found["step_s"] + found["evaluation_s"])
    assert found["step_s"] > 0
    # ResNet-38 on 10 classes: one checkpoint of weights and AdamW's two means, BatchNorm's statistics beside them.
    assert 3 * 4 * 564_122 <= found["disk_bytes"] <= 3.1 * 4 * 564_122
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cluster_is_simulated_with_the_times_found(cli: Any, tiny_table: Path) -> None:
    found = json.loads(cli("plan", tiny_table, "--device", "cpu", "--gpus", "64", "--losses", "0", "--json").stdout)
    (run,) = found["runs"]
    assert found["cluster"]["seconds"] == pytest.approx(run["estimate"]["seconds"] + found["cluster"]["restart_s"])
    assert found["cluster"]["limit_s"] == 0
    refused = cli("plan", tiny_table, "--executor", "slurm")
    assert refused.exit_code == 2
    assert "give --gpus N" in refused.stderr
    slurm = json.loads(
        cli("plan", tiny_table, "--device", "cpu", "--gpus", "4", "--executor", "slurm", "--json").stdout
    )
    assert slurm["cluster"]["limit_s"] == 86400
    refused = cli("plan", tiny_table, "--gpus", "64", "--no-times")
    assert refused.exit_code == 2
    assert "give one of them" in refused.stderr


def test_disk_is_what_a_finished_run_leaves(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    (run,) = json.loads(cli("plan", tiny_table, "--device", "cpu", "--json").stdout)["runs"]
    assert cli("reproduce", tiny_table, "--device", "cpu").exit_code == 0
    left = sum(path.stat().st_size for path in (tmp_path / "runs" / run["run_id"]).rglob("*"))
    assert left == pytest.approx(run["estimate"]["disk_bytes"], rel=0.1)  # the rest: records, names of tensors


@pytest.mark.parametrize("dataset", ["docs_text", "digits", "digits100", "digits32"])
def test_samples_of_training_and_evaluation_are_those_of_the_data(dataset: str) -> None:
    """Against the batches themselves; a validation part is rounded class by class, so images are counted to 2 %."""
    config = RunConfig.create(method="fp32", model=MODELS.get(dataset, "resnet38"), dataset=dataset)
    data = registry.load(dataset, val_fraction=config.recipe.val_fraction)
    known, cpu = Registries(), torch.device("cpu")
    parts = [part for part in ("val", "test") if getattr(data, part) is not None]
    evaluated = sum(len(x) for part in parts for x, _ in known.eval_stream(data, part, 64, cpu))
    stream = known.train_stream(data, 64, 0, cpu, False)
    trained = sum(len(stream.batch(0, index)[0]) for index in range(len(stream)))
    assert len(parts) == 2
    found = _samples(registry.info(dataset), config.recipe.val_fraction)
    assert found == pytest.approx((trained, evaluated), rel=0.02 if dataset != "docs_text" else 0)


def test_a_trial_on_large_images_has_eight_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "STEPS", 1)
    monkeypatch.setattr(calibrate, "WARM_UP", 0)
    config = RunConfig.create(
        method="fp32", model="resnet18", dataset="imagenet", profile="paper", recipe={"val_fraction": 0.01}
    )
    found = estimate(config)
    assert (found.trial_batch, found.batch, found.evaluations) == (8, 256, 91)  # a pass of 99 % is shorter
    assert found.disk_bytes == pytest.approx(2 * 4 * 11_689_512, rel=0.01)


@pytest.mark.parametrize(("seconds", "calls"), [(1.9, 1 + 2 + 1), (2.1, 1 + 1 + 1)])
def test_slow_steps_are_timed_once(monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int) -> None:
    """A first step, those that count, an evaluation."""
    timed: list[Any] = []
    monkeypatch.setattr(calibrate, "_timed", lambda call, device: timed.append(call()) or seconds)
    found = estimate(RunConfig.create(method="fp32", model="resnet38", dataset="digits"))
    assert (len(timed), found.step_s) == (calls, seconds * found.batch / found.trial_batch)


def test_what_is_held_in_memory_is_cropped_within_the_step() -> None:
    """The inputs of a trial on CIFAR are whole pixels, normalized; those of ImageNet come from elsewhere."""
    for name, whole in (("cifar10", True), ("imagenet", False)):
        info = registry.info(name)
        x, _ = calibrate._RandomData(info, 8, torch.device("cpu"), 50_000, augment=True).batch(0, 0)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
        pixels = (x * std + mean) * 255
        assert torch.allclose(pixels, pixels.round(), atol=1e-3) is whole


def test_plan_for_people_ends_with_the_sum(cli: Any, tiny_table: Path) -> None:
    result = cli("plan", tiny_table, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "  in all: 1 runs, 4 iterations, 0.0 CPU-hours" in result.stdout.splitlines()
    disk = result.stdout[result.stdout.index("Disk:") :].splitlines()
    assert disk[1] == "  digits  nothing needed (scikit-learn)"
    # 564,122 weights and twice as many means make 6.8 MB; two more generations of it while the run lasts.
    assert disk[2].startswith("  checkpoints: 7 MB to come and kept, the last one of each run; 14 MB more")
    assert disk[3] == "  in all: 0 kB already there, 7 MB to come, at most 20 MB at any one time"
    assert disk[4].startswith("  free now: ")
    assert "in all" not in cli("plan", tiny_table, "--no-times").stdout


def test_a_checkpoint_being_written_is_the_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan allows for while a run lasts, against the files that lie there when the third one is written."""
    path = tmp_path / "checkpoint.pt"
    most: list[int] = []

    def count(descriptor: int) -> None:
        most.append(sum(file.stat().st_size for file in tmp_path.iterdir()))

    monkeypatch.setattr("fractrain.util.files.os.fsync", count)
    for _ in range(4):
        checkpoint.save(path, {"weights": torch.zeros(100_000)}, "a-run")
    assert max(most) == pytest.approx(forecast.GENERATIONS * path.stat().st_size, rel=0.01)


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, cli: Any, tiny_table: Path) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 0.0, 0.0))
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    note = "NOTE: other programs use this machine (0.8 per core): times are too long"
    assert note in cli("plan", tiny_table, "--device", "cpu").stdout
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 9.0, 9.0))
    assert "NOTE" not in cli("plan", tiny_table, "--device", "cpu").stdout


def test_a_stop_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, cli: Any, tiny_table: Path) -> None:
    def stop(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(forecast, "run_trial", stop)
    before = sorted(tiny_table.parent.rglob("*"))
    result = cli("plan", tiny_table, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr
    assert sorted(tiny_table.parent.rglob("*")) == before


def test_a_trial_with_fewer_samples_is_scaled_up_and_said(cli: Any, tiny_table: Path) -> None:
    text = tiny_table.read_text(encoding="utf-8").replace("eval_every = 4", "eval_every = 4, batch_size = 1000")
    tiny_table.write_text(text, encoding="utf-8")
    result = cli("plan", tiny_table, "--device", "cpu")
    assert "tried with 512 of 1000 samples a step and scaled up" in result.stdout, result.stdout


# -- what runs start from ----------------------------------------------------------------------------------------------


@pytest.fixture
def transfer_table(tiny_table: Path) -> Path:
    """Two rows of adaptation, which start from one run."""
    text = tiny_table.read_text(encoding="utf-8").replace('"digits"', '"digits100"').replace("cifar10", "cifar100")
    text = text.replace('dataset_label = "CIFAR-10"', 'dataset_label = "CIFAR-100"\nsetting = "adaptation"')
    text += '\n[[rows]]\nkey = "static8"\nlabel = "static8"\nmethod = "static8"\nprecision = "INT8"\n'
    tiny_table.write_text(text, encoding="utf-8")
    return tiny_table


def finish(run_id: str, table: Path, store: RunStore) -> None:
    """Put a run of the table, or one that they start from, into the store as if it were finished."""
    runs = plan_runs(str(table), "smoke", 1, store.root)[1]
    configs = {config.run_id: config for run in runs for config in (run.config, run.source) if config}
    with store.open(configs[run_id]) as writer:
        writer.finish({"best_test_epoch": 0}, Ledger().state_dict())


def test_a_source_run_is_listed_once_and_counted(cli: Any, transfer_table: Path, tmp_path: Path) -> None:
    found = json.loads(cli("plan", transfer_table, "--device", "cpu", "--json").stdout)
    runs, (source,) = found["runs"], found["sources"]
    assert (found["counts"], found["source_counts"]) == ({"to run": 2}, {"to run": 1})
    assert source["source_of"] == [run["run_id"] for run in runs]
    assert (source["method"], source["setting"], source["seed"]) == ("fp32", "adaptation-source", 0)
    # The source is trained by the standard recipe, the four steps of the table are those of its targets.
    assert [entry["estimate"]["iterations"] for entry in (source, *runs)] == [224, 4, 4]
    # Half of 100 classes: one linear layer of 64 inputs and 50 outputs less than a network for all.
    assert 3 * 4 * 566_722 <= source["estimate"]["disk_bytes"] <= 3.1 * 4 * 566_722
    assert not (tmp_path / "runs").exists()


def test_sums_for_people_hold_the_source(cli: Any, transfer_table: Path) -> None:
    lines = cli("plan", transfer_table, "--device", "cpu").stdout.splitlines()
    assert lines[0].startswith("to run fp32 ")
    assert lines[0].endswith("(source of 2 runs)")
    assert lines[3] == "2 runs: 2 to run; and 1 source runs: 1 to run"
    assert [line.split()[:5] for line in lines[7:9]] == [
        ["resnet38", "on", "digits100,", "adaptation-source", "1"],
        ["resnet38", "on", "digits100,", "adaptation", "2"],
    ]
    assert any(line.startswith("  in all: 3 runs (1 of them source runs), 232 iterations, ") for line in lines)


def test_a_dry_run_lists_sources_too(cli: Any, transfer_table: Path) -> None:
    result = cli("reproduce", transfer_table, "--dry-run")
    assert result.stdout == cli("plan", transfer_table, "--no-times").stdout
    assert "(source of 2 runs)" in result.stdout


def test_a_source_is_cached_or_no_longer_needed(cli: Any, transfer_table: Path, tmp_path: Path) -> None:
    def plan() -> dict[str, Any]:
        return json.loads(cli("plan", transfer_table, "--no-times", "--json").stdout)

    store = RunStore(tmp_path / "runs")
    ids = [run["run_id"] for run in plan()["runs"]]
    finish(ids[0], transfer_table, store)
    assert plan()["source_counts"] == {"to run": 1}  # the other one still starts from it
    finish(plan()["sources"][0]["run_id"], transfer_table, store)
    assert plan()["source_counts"] == {"cached": 1}
    assert "\n  in all: 1 runs, 4 iterations, " in cli("plan", transfer_table, "--device", "cpu").stdout

    store = RunStore(tmp_path / "other")
    for run_id in ids:
        finish(run_id, transfer_table, store)
    text = cli("plan", transfer_table, "--device", "cpu", "--results", store.root).stdout
    assert text.startswith("not needed fp32 ")
    assert text.endswith("2 runs: 2 cached; and 1 source runs: 1 not needed\nnothing left to run\n")


def test_seeds_of_a_run_with_a_source_are_tried_once(cli: Any, transfer_table: Path) -> None:
    result = cli("plan", transfer_table, "--device", "cpu", "--seeds", "3")
    # Nine runs of two methods; the source is the same network as its target in full precision, with as many classes.
    assert "trying a few steps: 2/2 steps" in result.stderr
    assert "tried 2 of 3 kinds of run; the others do the same on the same network" in result.stdout
    assert "in all: 9 runs (3 of them source runs), 696 iterations" in result.stdout

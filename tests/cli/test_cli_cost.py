"""``fractrain cost`` on the committed records of real runs: three models side by side, groups, JSON, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

EVIDENCE = Path(__file__).parents[2] / "results" / "evidence"
CIFAR10 = EVIDENCE / "cifar10-one-epoch"
THREE = "fractrain-fitted,bit-product,bit-serial:published"

PLUGIN = '''
"""tiny: a second per MAC."""
from fractrain.cost.hardware import Cost, HardwareModel, Parts


class Tiny(HardwareModel):
    """A second per MAC."""

    name, source, counted, is_not = "tiny", "a test", "MACs", "a machine"

    def row(self, row):
        return Cost(Parts(compute={seconds}), Parts(compute=1.0 * row.macs))
'''


def document(cli: Any, *args: Any) -> Any:
    result = cli("cost", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def records(folder: Path) -> set[str]:
    """The runs of a campaign: its folders, for a reader may have left its index beside them."""
    return {p.name for p in folder.iterdir() if p.is_dir()}


@pytest.mark.parametrize("folder", sorted(p for p in EVIDENCE.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_every_committed_record_is_priced_by_three_models(cli: Any, folder: Path) -> None:
    runs = document(cli, "all", "--results", folder, "--hardware", THREE)
    assert {run["run_id"] for run in runs} == records(folder)
    for run in runs:
        assert [c["hardware"] for c in run["costs"]] == THREE.split(",")
        for found in run["costs"]:
            assert 0 < found["best"]["seconds"] <= found["end"]["seconds"]
            assert found["end"]["seconds"] == pytest.approx(sum(found["end"]["seconds_parts"].values()))


def test_text_has_a_column_for_each_model(cli: Any) -> None:
    result = cli("cost", "sbm", "--results", CIFAR10, "--hardware", THREE, "--by", "product")
    assert result.exit_code == 0, result.stderr
    assert all(name in result.stdout.splitlines()[1] for name in ("fractrain-fitted", "bit-product", "bit-serial"))
    assert "time per sample" in result.stdout
    assert "GC" in result.stdout
    assert "fractrain-fitted is not measured" in result.stdout


@pytest.mark.parametrize("by", ["layer", "product", "stage", "width", "epoch"])
def test_groups_add_up_to_the_whole(cli: Any, by: str) -> None:
    (run,) = document(cli, "fractrain", "--results", CIFAR10, "--hardware", THREE, "--by", by)
    for found in run["costs"]:
        for figure in ("cycles", "seconds", "joules"):
            assert sum(group[figure] for group in found["by"]) == pytest.approx(found["end"][figure])
    names = {group["name"] for group in run["costs"][1]["by"]}
    some = {"layer": "groups.0.0.gate", "product": "EB", "stage": "stage 0", "width": "3x6", "epoch": "0"}
    assert some[by] in names


def test_measured_is_the_clock_of_the_run_and_says_what_was_not_measured(cli: Any) -> None:
    (run,) = document(cli, "sbm", "--results", CIFAR10, "--hardware", "measured,bit-product", "--by", "product")
    summary = json.loads(next(CIFAR10.glob("sbm*/summary.json")).read_text())
    measured, modelled = run["costs"]
    assert measured["end"]["seconds"] == pytest.approx(summary["seconds"])
    assert measured["end"]["joules"] is None
    assert modelled["end"]["joules"] > 0
    text = cli("cost", "sbm", "--results", CIFAR10, "--hardware", "measured", "--by", "product").stdout
    assert "not measured" in text
    assert "nan" not in text
    assert "measured is not evidence of what low precision gains" in text


def test_plugins_are_used_and_their_faults_stay_theirs(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(PLUGIN.format(seconds="1.0 * row.macs"))
    (run,) = document(cli, "sbm", "--results", CIFAR10, "--plugin", tmp_path / "tiny.py", "--hardware", "tiny")
    assert run["costs"][0]["end"]["seconds"] == pytest.approx(50_000 * 3 * 83_280_512, rel=0.01)  # stem: no EB
    (tmp_path / "bad.py").write_text(
        PLUGIN.format(seconds="float('nan')").replace("tiny", "bad").replace("Tiny", "Bad")
    )
    args = ("--results", CIFAR10, "--plugin", tmp_path / "bad.py", "--hardware", "bad,bit-product")
    bad, good = document(cli, "sbm", *args)[0]["costs"]
    assert "nan" in bad["problem"]
    assert good["end"]["seconds"] > 0
    result = cli("cost", "sbm", *args)
    assert result.exit_code == 0
    assert "bad: not priced: bad: seconds_compute" in result.stdout


def test_a_table_means_its_finished_runs(cli: Any, tiny_table: Path) -> None:
    assert cli("reproduce", tiny_table).exit_code == 0
    (run,) = document(cli, tiny_table)
    assert run["method"] == "fp32"
    shown = cli("table", tiny_table, "--hardware", "bit-product", "--format", "json")
    assert shown.exit_code == 0, shown.stderr
    table = json.loads(shown.stdout)
    assert "modelled by bit-product" in " ".join(column["head"] for column in table["columns"])
    (row,) = table["rows"]
    assert row["cells"]["energy"]["value"] == pytest.approx(run["costs"][1]["best"]["joules"] / 1e3)


def test_bad_input_is_one_line(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    assert "unknown hardware model" in one_line_error(
        cli("cost", "sbm", "--results", CIFAR10, "--hardware", "bitfushion")
    )
    assert "no run 'nothing'" in one_line_error(cli("cost", "nothing", "--results", CIFAR10))
    assert "no finished run" in one_line_error(cli("cost", "all", "--results", tmp_path))
    assert "unknown hardware model" in one_line_error(cli("table", "table2", "--hardware", "x"))
    copy = tmp_path / "runs" / next(p.name for p in CIFAR10.iterdir() if p.name.startswith("sbm"))
    shutil.copytree(CIFAR10 / copy.name, copy)
    (copy / "status.json").write_text('{"status": "failed"}')
    assert "status 'failed'" in one_line_error(cli("cost", "sbm", "--results", tmp_path / "runs"))


def test_records_are_found_by_folder_and_among_the_committed_ones(cli: Any) -> None:
    folder = next(p for p in CIFAR10.iterdir() if p.name.startswith("sbm"))
    (one,) = document(cli, folder, "--hardware", THREE)
    assert document(cli, "sbm", "--results", CIFAR10, "--hardware", THREE) == [one]
    assert document(cli, folder.name, "--from", "evidence", "--evidence", EVIDENCE, "--hardware", THREE) == [one]
    both = document(cli, CIFAR10, "--hardware", THREE)
    assert {run["run_id"] for run in both} == records(CIFAR10)
    every = document(cli, "all", "--from", "evidence", "--evidence", EVIDENCE, "--hardware", "bit-product")
    assert {run["run_id"] for run in every} == {p.name for p in EVIDENCE.glob("*/*") if p.is_dir()}


def test_a_table_means_committed_records_too(cli: Any, tiny_table: Path, tmp_path: Path) -> None:
    assert cli("reproduce", tiny_table).exit_code == 0
    (run,) = document(cli, tiny_table, "--hardware", "bit-product")
    assert cli("evidence", "add", run["run_id"], "--campaign", "mine", "--evidence", tmp_path / "e").exit_code == 0
    args = ("--from", "evidence", "--evidence", tmp_path / "e", "--hardware", "bit-product")
    assert document(cli, tiny_table, *args) == [run]


def test_no_committed_record_is_one_line(cli: Any, one_line_error: Any, tmp_path: Path) -> None:
    args = ("--from", "evidence", "--evidence", tmp_path / "none")
    assert "no finished run" in one_line_error(cli("cost", "all", *args))
    assert "no run 'sbm'" in one_line_error(cli("cost", "sbm", *args))

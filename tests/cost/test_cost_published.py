"""Reading the published numbers, from a source tree and from an installed package."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fractrain.cost.published import PublishedRow, data_path, load_rows, rows
from fractrain.util.errors import DataError

ROW = {
    "paper": "A (B)",
    "table": "Table 2 (x)",
    "model": "M-1",
    "dataset": "D",
    "setting": "standard",
    "method": "Q",
    "precision": "FW-8 / BW-8",
    "metric": "acc_top1_%",
    "value": 1.5,
    "source": "s",
    "confidence": "stated",
}


def write(path: Path, records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def table_2() -> list[PublishedRow]:
    return [r for r in rows() if r.paper.startswith("FracTrain") and r.table.startswith("Table 2 ")]


def test_every_record_of_the_file_becomes_a_row_unchanged() -> None:
    records = json.loads(data_path().read_text(encoding="utf-8"))
    found = rows()
    assert len(found) == len(records) > 500
    for row, record in zip(found, records, strict=True):
        assert {**record, "note": record.get("note", "")} == vars(row)


def test_table_2_has_five_methods_on_four_pairs_with_four_columns() -> None:
    found = [r for r in table_2() if "Improv" not in r.method]
    pairs = collections.Counter((r.model, r.dataset) for r in found)
    assert len(found) == 80
    assert set(pairs.values()) == {20}
    assert {r.metric for r in found} == {"acc_top1_%", "effective_MACs", "energy_kJ", "latency_min"}
    assert all(isinstance(r.value, float) and r.confidence == "transcribed" for r in found)


def test_cells_of_table_2() -> None:
    """A number, and one that the paper itself prints wrongly."""
    cells = {(r.model, r.dataset, r.method.split()[0], r.metric): r for r in table_2()}
    cell = cells["ResNet-74", "CIFAR-10", "FracTrain", "latency_min"]
    assert (cell.value, cell.confidence, cell.note) == (321.98, "transcribed", "")
    assert "fractrain_result_cifar.png" in cell.source
    dorefa = cells["ResNet-38", "CIFAR-100", "DoReFa", "effective_MACs"]
    assert dorefa.value == 1.01e14
    assert "misprint" in dorefa.note


def test_installed_package_and_source_tree_are_both_found(tmp_path: Path) -> None:
    package = tmp_path / "fractrain"
    with pytest.raises(DataError, match="not found"):
        data_path(package)
    tree = write(tmp_path / "results" / "published" / "published_rows.json", [ROW])
    assert data_path(package) == tree
    wheel = write(package / "published" / "published_rows.json", [ROW])
    assert data_path(package) == wheel
    assert load_rows(wheel) == (PublishedRow(**ROW),)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"rows": []}, "valid array"),
        ([{k: v for k, v in ROW.items() if k != "source"}], "0.source: field required"),
        ([ROW, {**ROW, "colour": "red"}], "1.colour"),
        ([{**ROW, "value": None}], "0.value"),
        ([{**ROW, "value": True}], "0.value"),
        ([{**ROW, "model": 3}], "0.model.*got 3"),
        ([{**ROW, "value": float("-inf")}], "0.value"),
        ([{**ROW, "note": ["x"] * 3}], "0.note"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path: Path, records: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_rows(write(tmp_path / "rows.json", records))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW])[:-10], encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        load_rows(path)


def test_brackets_nested_too_deep_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        load_rows(tmp_path / "rows.json")


def test_readme_explains_every_confidence_and_column() -> None:
    readme = (data_path().parent / "README.md").read_text(encoding="utf-8")
    for confidence in {r.confidence for r in rows()}:
        assert f"| `{confidence}` |" in readme
    for column in (field.name for field in dataclasses.fields(PublishedRow)):
        assert f"`{column}`" in readme


def test_reading_needs_no_torch() -> None:
    modules = "fractrain.cost.published, fractrain.cost.hardware, fractrain.cost.metrics"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

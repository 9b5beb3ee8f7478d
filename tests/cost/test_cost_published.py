"""Reading the published numbers, from a source tree and from an installed package."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fractrain.cost.published import PublishedRow, data_path, load, rows
from fractrain.util.errors import ConfigError, DataError

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


def test_every_record_of_the_file_becomes_a_row_unchanged() -> None:
    records = json.loads(data_path().read_text(encoding="utf-8"))
    found = rows()
    assert len(found) == len(records) > 500
    for row, record in zip(found, records, strict=True):
        assert {**record, "note": record.get("note", "")} == vars(row)


def test_table_2_has_five_methods_on_four_pairs_with_four_columns() -> None:
    found = [r for r in rows(paper="fractrain", table="table2") if "Improv" not in r.method]
    pairs = collections.Counter((r.model, r.dataset) for r in found)
    assert len(found) == 80
    assert set(pairs.values()) == {20}
    assert {r.metric for r in found} == {"acc_top1_%", "effective_MACs", "energy_kJ", "latency_min"}
    assert all(isinstance(r.value, float) and r.confidence == "transcribed" for r in found)


def test_rows_by_registry_names() -> None:
    (cell,) = rows(table="table2", model="resnet74", dataset="cifar10", method="fractrain", metric="latency_min")
    assert (cell.value, cell.confidence, cell.note) == (321.98, "transcribed", "")
    assert "fractrain_result_cifar.png" in cell.source
    (dorefa,) = rows(table="table2", model="resnet38", dataset="cifar100", method="dorefa", metric="effective_MACs")
    assert dorefa.value == 1.01e14
    assert "misprint" in dorefa.note
    assert rows(table="table2", model="resnet38", dataset="digits", method="sbm", metric="acc_top1_%") == ()


def test_filters_and_names_that_do_not_exist() -> None:
    static = rows(table="table2", precision="FW-8/BW-8", metric="energy_kJ")
    assert len(static) == 12
    assert {r.dataset for r in rows(model="MobileNetV2", dataset="cifar100")} == {"CIFAR-100"}
    assert rows(model="mobilenet_v2") == rows(model="MobileNetV2")
    with pytest.raises(ConfigError, match="did you mean 'energy_kJ'"):
        rows(metric="energy_kWh")
    with pytest.raises(ConfigError, match="no published table 'table99'"):
        rows(table="table99")
    with pytest.raises(ConfigError, match="no published paper"):
        rows(paper="nobody")


def test_installed_package_and_source_tree_are_both_found(tmp_path: Path) -> None:
    package = tmp_path / "fractrain"
    with pytest.raises(DataError, match="not found"):
        data_path(package)
    tree = write(tmp_path / "results" / "published" / "published_rows.json", [ROW])
    assert data_path(package) == tree
    wheel = write(package / "published" / "published_rows.json", [ROW])
    assert data_path(package) == wheel
    assert load(wheel) == (PublishedRow(**ROW),)


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
        load(write(tmp_path / "rows.json", records))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW])[:-10], encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        rows(path=path)


def test_brackets_nested_too_deep_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        rows(path=tmp_path / "rows.json")


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

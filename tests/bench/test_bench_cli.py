"""``fractrain bench`` from the command line: one document, one table, one list; names that there are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from fractrain.bench import catalog
from fractrain.bench.document import markdown, number, readable
from fractrain.bench.timing import median, quartiles

KEYS = {"path", "ratio", "spread", "goal", "unit", "baseline"}
ISSUE = {  # names and goals are fixed
    "static8_exact": 0.65, "dfq_all_live": 2.4, "dfq_typical": 1.5, "dfq_selected_only": 0.9,
    "quantize_stochastic": 2.0, "memory_fractrain": 1.6, "harness_overhead": 0.01,
}  # fmt: skip


STEPS = {"static8_exact", "dfq_all_live", "dfq_typical", "dfq_selected_only"}


@pytest.fixture(scope="module")
def quick(bench: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """All paths once, at the smallest."""
    out = tmp_path_factory.mktemp("bench") / "deep" / "folder"
    return bench("--quick", "--json", "--out", out), out


def test_the_list_has_every_path_with_the_fixed_keys(quick: tuple[Result, Path]) -> None:
    result, _ = quick
    assert result.exit_code == 0, result.stderr
    lines = json.loads(result.stdout)
    assert [line["path"] for line in lines] == list(catalog.NAMES)
    assert all(set(line) == KEYS for line in lines)
    assert {line["path"]: line["goal"] for line in lines if line["goal"] is not None} == ISSUE
    for line in lines:
        if line["ratio"] is None:
            assert line["spread"] is None
        else:
            low, high = line["spread"]
            assert 0 < low <= line["ratio"] <= high


def test_the_document_holds_rounds_machine_and_versions(quick: tuple[Result, Path]) -> None:
    result, out = quick
    assert sorted(file.name for file in out.iterdir()) == ["cpu-quick.json", "cpu-quick.md"]
    found = json.loads((out / "cpu-quick.json").read_text(encoding="utf-8"))
    assert found["label"] == "quick"
    assert found["machine"]["versions"]["torch"]
    assert found["machine"]["cpu"]
    assert found["settings"]["batch"] == 4
    listed = {line["path"]: line for line in json.loads(result.stdout)}
    for entry in found["paths"]:
        assert {key: entry[key] for key in KEYS} == listed[entry["path"]]
        rounds = entry["rounds"]
        assert entry["ratio"] == median(rounds["ratio"])
        assert entry["spread"] == quartiles(rounds["ratio"])
        beside = entry["to_contiguous"]
        assert (beside is not None) == (entry["path"] in STEPS)
        if beside is not None:
            each = [p / c for p, c in zip(rounds["path"], beside["seconds"], strict=True)]
            assert (beside["ratio"], beside["spread"]) == (median(each), quartiles(each))
            assert beside["met"] == (beside["ratio"] <= ISSUE[entry["path"]])
        assert rounds["ratio"] == [p / b for p, b in zip(rounds["path"], rounds["baseline"], strict=True)]


def test_what_is_not_there_is_said_and_not_made_up(quick: tuple[Result, Path]) -> None:
    from fractrain.methods.dfq import DFQSettings

    found = json.loads((quick[1] / "cpu-quick.json").read_text(encoding="utf-8"))
    entry = next(e for e in found["paths"] if e["path"] == "dfq_selected_only")
    assert (entry["ratio"] is not None) == ("forward" in DFQSettings.model_fields)
    if entry["ratio"] is None:
        assert entry["note"].startswith("not available: ")
        assert "| `dfq_selected_only` | not available |" in (quick[1] / "cpu-quick.md").read_text(encoding="utf-8")


def test_progress_goes_to_stderr_with_the_end(quick: tuple[Result, Path]) -> None:
    result, _ = quick
    assert "bench: " in result.stderr
    assert "written: " in result.stderr.splitlines()[-1]


def test_a_part_of_the_bench_never_overwrites_the_whole(bench: Callable[..., Result], tmp_path: Path) -> None:
    torch.set_num_threads(3)
    result = bench("--path", "quantize_stochastic", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert torch.get_num_threads() == 3
    assert json.loads((tmp_path / "cpu-custom.json").read_text(encoding="utf-8"))["machine"]["threads"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cpu-custom.json", "cpu-custom.md"]
    assert "| `quantize_stochastic` |" in result.stdout


def test_a_gated_step_has_all_categories(quick: tuple[Result, Path]) -> None:
    (view,) = json.loads((quick[1] / "cpu-quick.json").read_text(encoding="utf-8"))["where_time_goes"]
    assert view["method"] == "dfq"
    assert view["candidates"] == [1, 3]
    assert sum(view["shares"].values()) == pytest.approx(1.0)
    assert all(view["shares"][name] > 0 for name in ("conv", "quantize", "batch norm", "gate", "ledger", "other"))
    assert sum(view["other"].values()) == pytest.approx(view["shares"]["other"])


def test_where_time_goes_alone(bench: Callable[..., Result], tmp_path: Path) -> None:
    """A plain model: nothing is quantized, gated or counted."""
    result = bench("--where-time-goes", "fp32", "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    (view,) = json.loads(result.stdout)
    shares = view["shares"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["quantize"] == shares["gate"] == shares["ledger"] == 0
    assert shares["conv"] > 0.1
    assert view["candidates"] is None
    assert json.loads((tmp_path / "cpu-custom.json").read_text(encoding="utf-8"))["paths"] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--path", "static8_exakt"), "did you mean 'static8_exact'?"),
        (("--where-time-goes", "sbmm"), "did you mean 'sbm'?"),
        (("--model", "resnet39"), "unknown model 'resnet39'"),
        (("--model", "resnet18"), "needs images of at least 32x32"),
        (("--model", "transformer_base"), "takes tokens"),
        (("--kernels", "fast"), "choose from auto, reference, fused"),
        (("--device", "cuda:99"), "--device cuda:99"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(bench: Callable[..., Result], tmp_path: Path, args: Any, said: str) -> None:
    result = bench(*args, "--out", tmp_path)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fractrain: error: ")]
    assert said in line
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(bench: Callable[..., Result], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    result = bench("--path", "quantize_stochastic", "--out", blocked / "inner")
    assert result.exit_code == 2
    assert "a file is in the way" in result.stderr


def test_numbers_for_people_by_hand() -> None:
    assert number(0.654, "x") == "0.65x"
    assert number(0.00812, "share of the step") == "0.81 %"
    assert readable(3 * 2**20, "bytes") == "3 MiB"
    assert readable(0.0123, "s") == "12.3 ms"
    assert readable(1.5, "s") == "1.5 s"


def test_the_table_by_hand() -> None:
    path = {
        "path": "a", "ratio": 0.5, "spread": [0.4, 0.6], "goal": 0.65, "unit": "x", "baseline": "b", "title": "t",
        "authors": "1.6", "met": True, "to_contiguous": {"ratio": 0.7, "spread": [0.69, 0.72], "met": False},
        "absolute": {"path": 0.25, "baseline": 0.5, "unit": "s"}, "note": "",
        "kept": {"path": 3, "baseline": 4, "ratio": 0.75, "per_element": 1.03125},
    }  # fmt: skip
    machine = {"gpu": None, "cpu": "C", "threads": 2, "versions": {"torch": "2"}}
    settings = {"model": "m", "batch": 1, "size": 2, "repeats": 3, "kernels": "auto"}
    document = {"label": "", "paths": [path], "where_time_goes": [], "machine": machine, "settings": settings}
    text = markdown(document)
    beside = "0.70x (0.69x to 0.72x), met: no"
    cells = f"| `a` | 0.50x | 0.40x to 0.60x | at most 0.65x | yes | {beside} | 1.6x | 250 ms, 500 ms | 0.75 | 1.03 |"
    assert cells in text
    assert "m, batch 1, 2x2, C, 2 threads, torch 2, kernels auto." in text

"""Grids and searches: which points there are, and that a search is the same each time."""

from __future__ import annotations

import pytest

from fractrain.execute.search import Axis, SweepPoint, grid, parse_grid, parse_range, search_points
from fractrain.util.errors import ConfigError, MachineError


@pytest.mark.parametrize(
    ("text", "method", "key", "values"),
    [
        ("target_cp=2,3.5", "", "target_cp", (2, 3.5)),
        ("dfq:target_cp=2", "dfq", "target_cp", (2,)),
        ("bits=[3,4],[4,6]", "", "bits", ([3, 4], [4, 6])),
        ("indicator_clock=authors,epochs", "", "indicator_clock", ("authors", "epochs")),
        ("sharp=true,false", "", "sharp", (True, False)),
        ("recipe.lr=1e-2,0.1", "", "recipe.lr", (0.01, 0.1)),
    ],
)
def test_a_grid_is_read(text: str, method: str, key: str, values: tuple[object, ...]) -> None:
    assert parse_grid(text) == Axis(key, method, values)


def test_a_range_is_read() -> None:
    assert parse_range("recipe.lr=0.01..0.3:log") == Axis("recipe.lr", low=0.01, high=0.3, log=True)
    assert parse_range("sbm:bits=4..8") == Axis("bits", "sbm", low=4, high=8, whole=True)
    assert not parse_range("x=4.0..8").whole


@pytest.mark.parametrize("text", ["target_cp", "=2", "target_cp=", "target_cp=2,2", ":x=2"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--grid"):
        parse_grid(text)


@pytest.mark.parametrize("text", ["x=1", "x=2..1", "x=0..1:log", "x=1..2:lin", "x=a..b", "x=nan..1", "..", "x=1..1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--range"):
        parse_range(text)


def test_every_combination_is_there_once_and_axes_of_one_method_stay_there() -> None:
    points = grid(["dfq", "sbm"], [parse_grid("recipe.lr=1,2"), parse_grid("dfq:target_cp=3,4")])
    assert points == [
        SweepPoint("dfq", (("recipe.lr", lr), ("target_cp", cp))) for lr in (1, 2) for cp in (3, 4)
    ] + [SweepPoint("sbm", (("recipe.lr", lr),)) for lr in (1, 2)]  # fmt: skip
    assert grid(["sbm"], []) == [SweepPoint("sbm", ())]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([Axis("x", "pfq", (1,))], "has no method 'pfq'"),
        ([Axis("x", "", (1,)), Axis("x", "sbm", (2,))], "varied twice for sbm"),
        ([Axis("x", low=0, high=1)], "--trials N"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes: list[Axis], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(["sbm"], axes)


AXES = [Axis("recipe.lr", low=1e-3, high=1.0, log=True), Axis("bits", low=2, high=8, whole=True),
        Axis("dfq", "dfq", ([1], [2]))]  # fmt: skip


def run_search(trials: int, batch: int = 1) -> tuple[list[SweepPoint], list[list[SweepPoint]]]:
    asked: list[list[SweepPoint]] = []

    def evaluate(points: list[SweepPoint]) -> list[list[float] | None]:
        asked.append(points)
        values = [dict(point.sets) for point in points]
        return [None if v["bits"] == 2 else [-abs(v["recipe.lr"] - 0.1), float(v["bits"])] for v in values]

    return search_points(["sbm", "dfq"], AXES, evaluate, ["maximize", "minimize"], trials, batch), asked


def test_a_search_goes_on_where_it_was_and_stays_within_its_ranges() -> None:
    pytest.importorskip("optuna", reason="extra sweep is not installed")
    short, _ = run_search(12)
    longer, asked = run_search(30)
    assert longer[:12] == short  # so all of its runs are in the store
    assert [len(points) for points in asked] == [1] * 30
    sets = [dict(point.sets) for point in longer]
    assert all(1e-3 <= s["recipe.lr"] <= 1.0 and s["bits"] in range(2, 9) for s in sets)
    assert {point.method for point in longer} == {"sbm", "dfq"}
    assert all(("dfq" in dict(point.sets)) == (point.method == "dfq") for point in longer)
    assert any(s["bits"] == 2 for s in sets)  # points without a result end nothing


def test_proposals_come_in_batches() -> None:
    pytest.importorskip("optuna", reason="extra sweep is not installed")
    points, asked = run_search(7, batch=3)
    assert [len(batch) for batch in asked] == [3, 3, 1]
    assert points == [point for batch in asked for point in batch]


def test_without_optuna_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MachineError, match="pip install 'fractrain\\[sweep\\]'"):
        run_search(1)

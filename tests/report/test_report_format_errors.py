"""Table 7: errors of number formats, measured without training and judged against published figures."""

from __future__ import annotations

import pytest

from fractrain.numerics.catalog import FORMATS
from fractrain.numerics.registry import number_format
from fractrain.report.build import build_table
from fractrain.report.format_errors import ErrorRow, FormatErrors, error_rows, measure_errors
from fractrain.report.grid import plan
from fractrain.report.render import FORMATS as LAYOUTS
from fractrain.report.render import render
from fractrain.report.spec import TableSpec, load_spec
from fractrain.util.errors import ConfigError


def row(**changes: object) -> ErrorRow:
    return ErrorRow.model_validate({"key": "a", "label": "A", "format": "nvfp4", **changes})


def verdict(**changes: object) -> str:
    errors = FormatErrors(rows=(row(**changes),), seeds=4, shape=(64, 256))
    (made,) = error_rows(errors, "a paper")
    return made.text("verdict")


def test_a_row_is_judged_by_its_interval():
    assert verdict(published=9.0, tolerance=1.0) == "reproduced"
    assert verdict(published=9.0, tolerance=0.0).startswith(("differs", "inconclusive"))
    assert verdict(published=15.0, tolerance=0.1).startswith("differs (-")
    assert verdict() == "inconclusive (no published value)"


def test_the_error_is_that_of_the_definition():
    (one, two) = measure_errors("int8", "error", 2, (8, 16))
    assert one != two
    import torch

    from fractrain.util.seeds import derive_seed

    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(derive_seed(0, "errors of formats")))
    step = x.abs().max() / 127
    q = (x / step).round() * step
    assert one == pytest.approx(1e3 * float(((q - x) ** 2).sum() / (x**2).sum()), rel=1e-3)


def test_the_table_says_reproduced_for_what_is_published(monkeypatch):
    """At a quarter of its seeds, with the whole tolerance."""
    spec = load_spec("table7")
    assert spec.errors is not None
    published = tuple(r for r in spec.errors.rows if r.published is not None and r.quantity == "error")
    assert [r.published for r in published] == [9.0, 12.4, 23.5, 7.6, 9.8, 9.8]
    small = spec.model_copy(update={"errors": spec.errors.model_copy(update={"rows": published, "seeds": 5})})
    table = build_table(small, None, "smoke", None)
    assert [r.text("verdict") for r in table.rows] == ["reproduced"] * 6
    assert table.watermark == ""
    for layout in LAYOUTS:
        assert "NVFP4, 4 over 6" in render(table, layout)


def test_nothing_is_run_for_it():
    assert plan(load_spec("table7"), "smoke", None, None) == []


def test_every_named_format_has_a_width():
    assert {number_format(info.name).bits for info in FORMATS} == {4, 6, 8}
    with pytest.raises(ConfigError, match=r"unknown number format 'nvfp5'.*nvfp4"):
        number_format("nvfp5")


def test_a_table_has_runs_or_errors():
    base = {"name": "t", "version": 1, "title": "T", "caption": "c", "source": "s", "published_table": ""}
    with pytest.raises(ValueError, match="give pairs and rows, or errors"):
        TableSpec.model_validate(base)

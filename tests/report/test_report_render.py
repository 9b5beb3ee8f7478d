"""All formats: golden files, well-formedness, escaping, and the same numbers everywhere."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import re
import shutil
import subprocess

import pytest

from fractrain.report.build import build_table
from fractrain.report.latex import escape, narrow
from fractrain.report.output import selected
from fractrain.report.render import FORMATS, render, write_all
from fractrain.report.values import fitted_text, macs_text
from fractrain.util.errors import ConfigError, StoreError


@pytest.fixture
def whole(spec, mixed_store, sources):
    """Two pairs: one with a diverged run, one with failed, interrupted and missing ones."""
    return build_table(spec.model_copy(update={"pairs": spec.pairs[1:3]}), mixed_store, "short", 3, sources)


@pytest.fixture
def table(whole):
    """The same without the sections below it."""
    return dataclasses.replace(whole, sections=())


@pytest.fixture
def nasty(table):
    """The table with a label that means something to every format."""
    text = 'A|B & 50% $x_1^2$ #{"q"} <b>\\~'
    first = table.rows[0]
    cells = {**first.cells, "label": dataclasses.replace(first.cells["label"], text=text)}
    cells["method"] = cells["label"]
    rows = (dataclasses.replace(first, cells=cells), *table.rows[1:])
    return dataclasses.replace(table, rows=rows), text


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_golden(whole, golden, fmt):
    golden(f"table2-short.{fmt}", render(whole, fmt))


def test_golden_of_smoke(spec, mixed_store, sources, golden):
    table = build_table(spec.model_copy(update={"pairs": spec.pairs[1:3]}), mixed_store, "smoke", 3, sources)
    golden("table2-smoke.md", render(table, "md"))


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_same_input_same_text(spec, mixed_store, sources, fmt):
    first, second = (render(build_table(spec, mixed_store, "short", 3, sources), fmt) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_every_format_says_profile_and_watermark(table, fmt):
    text = render(table, fmt)
    assert "short" in text
    if fmt != "csv":
        assert "NOT A REPRODUCTION" in text
        assert "profile short" in text.split("NOT A REPRODUCTION")[0]


# -- the same numbers ------------------------------------------------------------------------------------------------


def markdown_rows(text):
    """Cells of the two compact tables by (part, group), as they stand in the text."""
    found, part, group = {}, "", ""
    for line in text.splitlines():
        if line.startswith("## "):
            part = line
        elif line.startswith("### "):
            group = line.removeprefix("### ")
        elif line.startswith("|"):
            found.setdefault((part, group), []).append([c.strip() for c in line.strip("|").split("|")])
    return found


class Grid(html.parser.HTMLParser):
    """Collects tables of an HTML page and checks that tags nest."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.remote: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.remote += [v for k, v in attrs if k in ("src", "href")]
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def test_markdown_shows_the_cells(table):
    found = markdown_rows(render(table, "md"))
    assert len(found) == 2 * len(table.groups())
    for part in ("accuracy", "cost"):
        columns = [c for c in table.columns if c.short and part in c.parts]
        for group, rows in table.groups().items():
            head, _, *body = next(v for (p, g), v in found.items() if g == group and p.lower().startswith(f"## {part}"))
            assert head == [c.short for c in columns]
            assert body == [[row.text(c.key) for c in columns] for row in rows]


def test_html_shows_the_cells(table):
    page = Grid(render(table, "html"))
    assert page.open == []
    assert page.remote == []  # self-contained
    for part, found in zip(("accuracy", "cost"), page.tables, strict=True):
        columns = [c for c in table.columns if c.head and part in c.parts]
        assert [h.strip() for h in found[0]] == [c.head for c in columns]
        body = [row for row in found[1:] if len(row) > 1]
        assert len(body) == len(table.rows)
        for row, cells in zip(table.rows, body, strict=True):
            for column, text in zip(columns, cells, strict=True):
                if column.key != "runs":
                    assert text == row.text(column.key)
                elif row.text("runs") != "–":
                    assert text.split()[2:] == row.text("runs").split()


def test_csv_shows_the_cells_and_the_unrounded_numbers(table):
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(lines) == len(table.rows)
    for row, line in zip(table.rows, lines, strict=True):
        assert (line["row_kind"], line["profile"]) == (row.kind, "short")
        for column in table.columns:
            cell = row.cells[column.key]
            if column.origin:
                assert line[f"{column.key}_text"] == cell.text
                assert line[f"{column.key}_origin"] == cell.origin
                numbers = [line[column.key], line[f"{column.key}_low"], line[f"{column.key}_high"]]
                assert [float(n) if n else None for n in numbers] == [cell.value, cell.low, cell.high]
            elif column.head:
                assert line[column.key] == cell.text


def test_json_holds_everything(table):
    found = json.loads(render(table, "json"))
    assert (found["profile"], found["seeds"], found["version"]) == ("short", [0, 1, 2], table.version)
    for row, other in zip(table.rows, found["rows"], strict=True):
        for key, cell in row.cells.items():
            assert other["cells"][key]["text"] == cell.text
            for name in ("value", "low", "high", "n"):
                assert other["cells"][key].get(name) == getattr(cell, name)


def test_latex_shows_the_cells(table):
    body = [line for line in render(table, "tex").splitlines() if line.endswith(r"\\")]
    columns = [c for c in table.columns if c.short]
    assert len(body) == 1 + len(table.rows)
    for row, line in zip(table.rows, body[1:], strict=True):
        cells = [c.strip() for c in line.removesuffix(r"\\").split(" & ")]
        assert cells == [row.text("model"), *(escape(row.text(c.key)) for c in columns)]


def test_shown_text_is_the_rounded_number(table):
    for row in table.rows:
        for column in table.columns:
            cell = row.cells[column.key]
            if row.kind == "method" and cell.value is not None:
                shown = cell.text.split(" ")[0]
                digits = 3 if column.key.startswith(("macs", "effective")) else 4
                places = 5.1e-3 if column.key.endswith(("_relative", "_claim")) else 0.0  # differences: two decimals
                assert float(shown) == pytest.approx(cell.value, rel=0.6 * 10 ** (1 - digits), abs=places)


# -- layout and escaping ---------------------------------------------------------------------------------------------


def test_markdown_of_finished_runs_fits_a_terminal(spec, sources, store):
    for pair in spec.pairs:
        for method in ("fp32", "sbm", "pfq", "dfq", "fractrain"):
            data = spec.dataset(pair, "short")
            store.add(f"{method}-{pair.model}-{data}-smoke-s0", 97.25, macs_best=2.5e10)
    whole = build_table(spec, store, "short", 1, sources)
    assert max(len(line) for line in render(whole, "md").splitlines() if line.startswith("|")) <= 180
    table = render(dataclasses.replace(whole, sections=()), "md").splitlines()
    widths = [len(line) for line in table if line.startswith("|")]
    assert max(widths[: len(widths) // 2]) <= 145  # accuracy
    assert max(widths) <= 180  # cost


def test_markdown_escapes_bars(nasty):
    table, text = nasty
    shown = text.replace("|", "\\|").replace("<b>", "&lt;b>")
    lines = [line for line in render(table, "md").splitlines() if shown in line]
    assert len(lines) == 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"\|", lines[0])) - 1 for line in lines[:1])


def test_html_escapes(nasty):
    table, text = nasty
    page = render(table, "html")
    assert "<b>" not in page
    assert any(text in row for rows in Grid(page).tables for row in rows)


def test_csv_and_json_keep_any_text(nasty):
    table, text = nasty
    assert next(csv.DictReader(io.StringIO(render(table, "csv"))))["method"] == text
    assert json.loads(render(table, "json"))["rows"][0]["cells"]["method"]["text"] == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % & more", r"50 \% \& more"),
        ("a_b^c #1 $", r"a\_b\^{}c \#1 \$"),
        ("{x}\\", r"\{x\}\textbackslash{}"),
        ("64.4~67.2 %", r"64.4$\sim$67.2 \%"),
        ("92.5 ± 0.3", r"92.5 $\pm$ 0.3"),
        ("a < b > c | d", r"a \ensuremath{<} b \ensuremath{>} c \ensuremath{|} d"),
        ("↑↓–×≤≥", r"$\uparrow$$\downarrow$--$\times$$\leq$$\geq$"),
    ],
)
def test_latex_escaping(text, expected):
    assert escape(text) == expected


def test_latex_is_plain_ascii_and_balanced(nasty):
    table, text = nasty
    source = render(table, "tex")
    assert source.isascii()
    assert escape(text) in source
    bare = re.sub(r"\\[{}]", "", source)
    assert bare.count("{") == bare.count("}")
    for name in ("table*", "tabular", "itemize"):
        assert source.count(f"\\begin{{{name}}}") == source.count(f"\\end{{{name}}}") == 1
    width = len(re.search(r"begin\{tabular\}\{(\w+)\}", source)[1])
    body = [line for line in source.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {width - 1}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("chosen", [False, True])
def test_latex_compiles(nasty, table, tmp_path, chosen):
    for package in ("booktabs", "adjustbox"):
        if subprocess.run(["kpsewhich", f"{package}.sty"], capture_output=True, check=False).returncode:
            pytest.skip(f"needs {package}.sty")
    columns = ["accuracy_best_test", "macs_best"]
    (tmp_path / "table.tex").write_text(narrow(selected(table, columns, [])) if chosen else render(nasty[0], "tex"))
    packages = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage{graphicx}\usepackage{adjustbox}"
    (tmp_path / "main.tex").write_text(packages + r"\begin{document}\input{table.tex}\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not chosen or "Overfull" not in done.stdout  # it fits a column


def test_latex_of_chosen_columns_and_rows_fits_a_column(table):
    chosen = selected(table, ["accuracy_best_test", "macs_best"], ["sbm", "FracTrain cp"])
    source = narrow(chosen)
    assert source.isascii()
    assert "\\begin{table}\n" in source
    assert r"max width=\columnwidth" in source
    assert r"\textbf{NOT A REPRODUCTION" in source
    body = [line for line in source.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    head, *rows = [[cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in body]
    assert [len(cells) for cells in (head, *rows)] == [3] * (1 + len(chosen.rows))
    assert {cells[0].split()[0] for cells in rows} == {"SBM", "FracTrain"}
    expected = [[escape(r.text(key)) for key in ("label", "accuracy_best_test", "macs_best")] for r in chosen.rows]
    assert rows == expected


def test_a_choice_of_what_is_not_there_is_refused_in_one_line(table):
    with pytest.raises(ConfigError, match=r"table2 has no column 'macs_bst': did you mean|table2 has no column"):
        selected(table, ["macs_bst"])
    with pytest.raises(ConfigError, match=r"no row has 'nobody'; rows: FP32"):
        selected(table, rows=["nobody"])
    assert selected(table) is table


@pytest.mark.parametrize(
    ("value", "text"), [(4.96e13, "4.96e13"), (1.11e14, "1.11e14"), (9.996e9, "1.00e10"), (6.309e8, "6.31e8")]
)
def test_macs_text(value, text):
    assert macs_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(33.5512, "33.55"), (310.4687, "310.47"), (0.0123456, "0.01235"), (2.5, "2.500"), (1e-7, "1.000e-07")],
)
def test_fitted_text(value, text):
    assert fitted_text(value) == text


# -- files -----------------------------------------------------------------------------------------------------------


def test_unknown_format(table):
    with pytest.raises(ConfigError, match=r"unknown format 'latex'.*known: md, csv, tex, html, json"):
        render(table, "latex")


def test_write_all(table, tmp_path):
    folder = tmp_path / "results" / "tables"
    paths = write_all(table, folder)
    assert [p.name for p in paths] == [f"table2-short.{fmt}" for fmt in ("md", "csv", "tex", "html", "json")]
    assert sorted(folder.iterdir()) == sorted(paths)  # no temporary file stays
    assert all(p.read_text(encoding="utf-8") == render(table, p.suffix[1:]) for p in paths)
    assert write_all(table, str(folder)) == paths


def test_write_all_into_a_file(table, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StoreError, match="taken"):
        write_all(table, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_as_they_are():
    from fractrain.report.csv_cells import csv_text

    bad = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-cmd|x", "\t=1", " =1", "=", "-1+cmd|' /C calc'!A0", "-1+f(2)"]
    good = ["-0.80 ± 0.00 vs SBM", "+0.3 %", "-1e-5", "47.8~53.5 %", "–", "a=b", "", -3, 2.5, None]
    (line, returned) = csv.reader(io.StringIO(csv_text([[*bad, *good], ["\r=1"]]), newline=""))
    assert returned == ["' =1"]
    assert line == [*(f"'{text}" for text in bad), *("" if cell is None else str(cell) for cell in good)]


def test_html_in_a_label_is_text_in_markdown_and_csv_labels_are_no_formulas(table):
    label = "<img src=x onerror=alert(1)>=SUM"
    row = table.rows[0]
    cells = {**row.cells, "method": dataclasses.replace(row.cells["method"], text=label)}
    changed = dataclasses.replace(table, rows=[dataclasses.replace(row, cells=cells), *table.rows[1:]], caption="<b>x")
    text = render(changed, "md")
    assert "&lt;img src=x" in text
    assert "&lt;b>x" in text
    assert "<img" not in text

"""Figures: the published points as published, ours beside them only where comparable, the same bytes every time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import figure_fakes
import matplotlib
import numpy as np
import pytest
import synthetic_runs
from click.testing import CliRunner

from fractrain.cli import main
from fractrain.cost.hardware import create
from fractrain.cost.published import data_path
from fractrain.engine.index import RunEntry
from fractrain.engine.length import length_text
from fractrain.report import charts, output, page_detail
from fractrain.report.draw import compose, draw, require_matplotlib, style
from fractrain.report.figure_data import build_figure, points_csv, select_panels
from fractrain.report.labels import Box, place_labels
from fractrain.report.spec import load_spec
from fractrain.util.errors import ConfigError, MachineError

NAMES = ("figure-pfq", "figure-dfq")


@pytest.fixture
def sources():
    return figure_fakes.sources()


@pytest.fixture
def smoke(store, sources):
    """The PFQ figure with every point measured in the smoke profile, one seed."""
    spec = load_spec("figure-pfq")
    figure_fakes.fill(store, spec, "smoke", scale=1e-4)
    return build_figure(spec, store, "smoke", 1, sources)


@pytest.fixture
def paper(store, sources):
    spec = load_spec("figure-dfq")
    figure_fakes.fill(store, spec, "paper", seeds=3)
    return build_figure(spec, store, "paper", 3, sources)


def drawn(figure):
    """The composed figure, drawn once, so that everything has its place."""
    with style(figure.table.name):
        made = compose(figure)
        made.canvas.draw()
    return made


# -- published points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("figure-pfq", 4 * 8), ("figure-dfq", 4 * 13 + 2 * 8)])
def test_published_points_are_all_those_of_the_file(name, count, sources):
    """Against the raw JSON, paired here by hand: nothing left out, nothing added, nothing rounded."""
    spec = load_spec(name)
    cells: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in json.loads(data_path().read_text(encoding="utf-8")):
        if row["table"] in spec.figure.tables:
            key = (row["table"], row["model"], row["dataset"], row["method"], row["precision"])
            cells.setdefault(key, {})[row["metric"]] = row
    wanted = {
        (*key[1:4], key[4], c["effective_MACs"]["value"], c["acc_top1_%"]["value"],
         c["effective_MACs"]["confidence"], c["acc_top1_%"]["confidence"])
        for key, c in cells.items() if {"effective_MACs", "acc_top1_%"} <= c.keys()
    }  # fmt: skip
    methods = {series.key: series.published for series in spec.figure.series}
    points = build_figure(spec, None, "paper", 1, sources).points
    found = {
        (p.model, p.dataset, methods[p.series], p.precision, p.macs, p.accuracy, p.confidence_macs,
         p.confidence_accuracy)
        for p in points
    }  # fmt: skip
    assert len(points) == len(found) == count
    assert found == wanted


def test_two_published_points_by_hand(sources):
    points = build_figure(load_spec("figure-pfq"), None, "smoke", 1, sources).points
    point = next(p for p in points if (p.model, p.dataset, p.tag) == ("ResNet-74", "CIFAR-100", "8/8"))
    assert (point.macs, point.accuracy) == (pytest.approx(1.031e14), 71.01)
    assert point.confidence_macs == point.confidence_accuracy == "read off the plot"
    assert "1.40e14" in point.note
    points = build_figure(load_spec("figure-dfq"), None, "smoke", 1, sources).points
    point = next(p for p in points if (p.model, p.dataset, p.precision) == ("ResNet-38", "CIFAR-10", "cp=3"))
    assert point.macs == pytest.approx(0.03 * 50700 * 128 * 3 * 84.9e6)
    assert (point.accuracy, point.confidence_accuracy) == (92.49, "author script")


@pytest.mark.parametrize("name", NAMES)
def test_every_labelled_point_has_a_row_that_runs_it(name, sources):
    """A published point without a text belongs to no row; only unlabelled ones of the source may be like that."""
    for point in build_figure(load_spec(name), None, "smoke", 1, sources).points:
        assert bool(point.tag) == ("not labelled" not in point.precision), point


def test_how_the_points_were_read_stands_above_each_panel(sources):
    figure = build_figure(load_spec("figure-dfq"), None, "paper", 1, sources)
    subtitles = [panel.subtitle for panel in figure.published]
    script, plot = "published: author script, MACs computed by the author formula", "published: read off the plot"
    assert subtitles == [script, script, plot] * 2


# -- measured points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "short", "1/64"])
def test_reduced_profiles_never_share_axes_with_published_points(store, sources, profile):
    spec = load_spec("figure-pfq")
    figure_fakes.fill(store, spec, profile)
    figure = build_figure(spec, store, profile, 1, sources)
    assert {p.kind for panel in figure.published for p in panel.points} == {"published"}
    assert {p.kind for panel in figure.measured for p in panel.points} == {"measured"}
    assert len(figure.measured) == len(figure.published) == 4
    for panel in figure.measured:
        assert f"{length_text(profile)}; not comparable" in panel.subtitle
    if profile == "smoke":
        assert figure.measured[0].title == "ResNet-38, digits (for CIFAR-10)"
    assert figure.warning.startswith("NOT A REPRODUCTION: measured panels")
    assert length_text(profile) in figure.title


def test_paper_runs_on_the_paper_data_share_the_axes(paper):
    assert paper.measured == ()
    assert paper.warning == ""
    resnet = paper.published[0]
    assert [p.kind for p in resnet.points].count("measured") == 13
    assert resnet.subtitle.endswith("filled: measured")
    point = next(p for p in resnet.points if p.kind == "measured")
    assert (point.n, point.tag, point.accuracy) == (3, "2/6", pytest.approx(90 + 0.1 / 3))
    assert point.accuracy_low < point.accuracy < point.accuracy_high
    assert {p.kind for p in paper.published[2].points} == {"published"}  # MobileNetV2 is not in the fakes' release
    assert "MobileNetV2, CIFAR-10 was not run: the model mobilenet_v2 is not in this release" in " ".join(paper.remarks)


def test_paper_runs_on_other_data_do_not(store, sources):
    spec = load_spec("figure-pfq")
    spec = spec.model_copy(update={"profiles": {"paper": spec.profiles["smoke"]}})
    figure_fakes.fill(store, spec, "paper")
    figure = build_figure(spec, store, "paper", 1, sources)
    assert {p.kind for panel in figure.published for p in panel.points} == {"published"}
    assert figure.measured[0].points


def test_incomplete_rows_are_not_drawn(store, sources):
    spec = load_spec("figure-pfq")
    figure_fakes.add(store, spec, "sbm-8-8", "paper", 0, accuracy=92.0)
    figure = build_figure(spec, store, "paper", 2, sources)
    assert {p.kind for p in figure.points} == {"published"}
    assert figure.remarks[0].startswith("Published points only")


def test_a_pair_that_was_not_run_has_no_panel_and_is_named_below(store, sources):
    spec = load_spec("figure-dfq")
    figure_fakes.fill(store, spec, "smoke")
    figure = build_figure(spec, store, "smoke", 1, sources)
    assert [bool(panel.points) for panel in figure.measured] == [True] + [False] * 5
    made = compose(figure)
    assert [axes.get_title(loc="left") for axes in made.axes] == [
        *(panel.title for panel in figure.published), "ResNet-38, digits (for CIFAR-10)",
    ]  # fmt: skip
    assert all(axes.collections for axes in made.axes)
    assert any("ResNet-74, CIFAR-10 was not run" in text.get_text() for text in made.texts)


def test_a_panel_is_chosen_by_its_number_its_title_or_a_part_of_it(smoke):
    titles = [panel.title for panel in smoke.published]
    assert select_panels(smoke, "2").published == smoke.published[1:2]
    assert select_panels(smoke, titles[0].lower()).published == smoke.published[:1]  # though others begin with it
    assert [panel.title for panel in select_panels(smoke, "resnet-74").published] == [
        t for t in titles if "ResNet-74" in t
    ]
    measured = select_panels(smoke, "not comparable")
    assert (measured.published, len(measured.measured)) == ((), 1)
    for wrong in ("0", "99", "no such"):
        with pytest.raises(ConfigError, match=r"no panel .*1: ResNet-38, CIFAR-10 \(published\)"):
            select_panels(smoke, wrong)


def test_in_a_paper_a_figure_is_a_column_wide_without_a_title_and_reduced_runs_say_so(smoke):
    made = compose(smoke, "paper")
    assert made.get_size_inches()[0] == pytest.approx(3.35)
    assert made.texts == []
    said = [text.get_text() for axes in made.axes for text in axes.texts]
    assert sum("not comparable" in text for text in said) == 1
    one = compose(select_panels(smoke, "1"), "paper")
    assert [axes.get_title(loc="left") for axes in one.axes] == [""]
    one.canvas.draw()
    renderer = one.canvas.get_renderer()
    assert one.legends[0].get_window_extent(renderer).y1 <= one.bbox.y1
    assert not one.legends[0].get_window_extent(renderer).overlaps(one.axes[0].get_tightbbox(renderer))


def test_a_pdf_is_one_and_the_same_ones_again(smoke):
    first = draw(smoke, "pdf", "paper")
    assert first.startswith(b"%PDF-")
    assert draw(smoke, "pdf", "paper") == first


def test_only_figures_are_drawn(sources):
    with pytest.raises(ConfigError, match="table2 is a table, not a figure"):
        output.table_content(load_spec("table2"), None, "smoke", 1, "svg", sources)


# -- data and drawing --------------------------------------------------------------------------------------------------


def test_csv_holds_what_is_drawn(smoke):
    lines = list(csv.DictReader(io.StringIO(points_csv(smoke))))
    assert len(lines) == 32 + 8  # the smoke profile trains one of the four pairs
    for line, point in zip(lines, smoke.points, strict=True):
        assert (line["figure"], line["profile"]) == ("figure-pfq", "smoke")
        assert (float(line["macs"]), float(line["accuracy"])) == (point.macs, point.accuracy)
        assert (line["kind"], line["series"], line["tag"]) == (point.kind, point.series, point.tag)
        assert line["source"]
        assert bool(line["confidence_macs"]) == (point.kind == "published")
    assert {line["data"] for line in lines if line["kind"] == "measured"} == {"digits"}


@pytest.mark.parametrize("which", ["smoke", "paper"])
def test_markers_lie_where_the_points_are(which, request):
    figure = request.getfixturevalue(which)
    marks_at = []
    for axes in compose(figure).axes:
        power = re.search(r"\{(\d+)\}", axes.get_xlabel())
        for marks in axes.collections:
            assert marks.get_gid() in {f"{kind}-{s.key}" for kind in ("published", "measured") for s in
                                       figure.drawing.series}  # fmt: skip
            for x, y in np.asarray(marks.get_offsets()):
                marks_at.append((x * 10.0 ** int(power[1]), y))
                assert axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
                assert axes.get_ylim()[0] <= y <= axes.get_ylim()[1]
    wanted = sorted((p.macs, p.accuracy) for p in figure.points)
    assert np.allclose(sorted(marks_at), wanted, rtol=1e-12)


@pytest.mark.parametrize("which", ["smoke", "paper"])
def test_nothing_is_cut_off_and_the_legend_covers_no_panel(which, request):
    made = drawn(request.getfixturevalue(which))
    renderer = made.canvas.get_renderer()
    page = made.bbox
    texts = [*made.texts, *(t for axes in made.axes for t in (*axes.texts, axes.xaxis.label, axes.title))]
    for text in texts:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0, text.get_text()
        assert box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0, text.get_text()
        assert box.y1 <= page.y1, text.get_text()
    legend = made.legends[0].get_window_extent(renderer)
    assert legend.x1 <= page.x1
    for axes in made.axes:
        assert not legend.overlaps(axes.get_tightbbox(renderer))
    for text in made.texts:
        assert not legend.overlaps(text.get_window_extent(renderer)), text.get_text()


@pytest.mark.parametrize("name", NAMES)
def test_texts_cover_no_marker_of_the_published_panels(name, sources):
    made = drawn(build_figure(load_spec(name), None, "paper", 1, sources))
    renderer = made.canvas.get_renderer()
    covered = 0
    for axes in made.axes:
        centres = [axes.transData.transform(o) for marks in axes.collections for o in marks.get_offsets()]
        for text in axes.texts[1:]:
            box = text.get_window_extent(renderer)
            covered += sum(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in centres)
    assert covered == 0


def test_doubtful_points_carry_a_letter_and_a_remark(smoke):
    made = compose(smoke)
    marked = [t.get_text() for axes in made.axes for t in axes.texts if "^" in t.get_text()]
    assert marked == ["8/8$^{a}$"]
    assert any("a: x differs from the table row (1.40e14)" in t.get_text() for t in made.texts)


@pytest.mark.parametrize("form", ["svg", "png"])
def test_same_points_same_bytes_whatever_the_users_style(smoke, form):
    first = draw(smoke, form)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        assert draw(smoke, form) == first
        assert dict(matplotlib.rcParams) == before
    assert b"date" not in first.lower().replace(b"update", b"")


def test_same_bytes_in_another_process(sources):
    code = (
        "import sys; from fractrain.report.spec import load_spec;"
        "from fractrain.report.figure_data import build_figure;"
        "from fractrain.report.draw import draw; import figure_fakes;"
        "figure = build_figure(load_spec('figure-pfq'), None, 'paper', 1, figure_fakes.sources());"
        "sys.stdout.buffer.write(draw(figure, 'svg'))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
    assert other == draw(build_figure(load_spec("figure-pfq"), None, "paper", 1, sources), "svg")
    ET.fromstring(other)


def test_without_matplotlib_there_is_one_clear_line(sources, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = load_spec("figure-pfq")
    with pytest.raises(MachineError, match=r"pip install 'fractrain\[plots\]'"):
        require_matplotlib()
    assert output.table_content(spec, None, "smoke", 1, "csv", sources).startswith(b"figure,version,profile,model")


def test_drawing_is_loaded_only_when_something_is_drawn():
    code = "import sys, fractrain.report.output; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"


# -- texts beside the points -------------------------------------------------------------------------------------------

FRAME = Box(100, 100, 100, 100)


def test_a_lone_text_is_just_above_its_point():
    (centre,) = place_labels([Box(100, 100, 5, 5)], [(10, 6)], FRAME)
    assert centre == (100, 100 + 5 + 6 + 2)


def test_texts_stay_inside_the_frame():
    for x, y in itertools.product((4, 196), repeat=2):
        (centre,) = place_labels([Box(x, y, 3, 3)], [(20, 6)], FRAME)
        text = Box(*centre, 20, 6)
        assert text.outside(FRAME) == 0


def test_texts_of_crowded_points_overlap_nothing():
    points = [Box(100 + 12 * i, 100 + 3 * (i % 2), 5, 5) for i in range(4)]
    boxes = [Box(x, y, 10, 6) for x, y in place_labels(points, [(10, 6)] * 4, FRAME)]
    for text in boxes:
        assert all(text.overlap(point) == 0 for point in points)
    for one, other in itertools.combinations(boxes, 2):
        assert one.overlap(other) == 0


def test_labels_stay_off_bars_and_lines():
    bar = Box(100, 100, 1, 60)
    (centre,) = place_labels([Box(100, 100, 5, 5)], [(20, 6)], FRAME, [bar])
    assert Box(*centre, 20, 6).overlap(bar) == 0
    (above,) = place_labels([Box(100, 100, 5, 5)], [(20, 6)], FRAME)
    assert Box(*above, 20, 6).overlap(bar) > 0  # where it went before


# -- files and commands ------------------------------------------------------------------------------------------------


def test_write_makes_every_format_and_the_same_ones_again(store, sources, tmp_path):
    spec = load_spec("figure-pfq")
    figure_fakes.fill(store, spec, "smoke")
    table, files = output.write(spec, store, "smoke", tmp_path / "out", 1, sources)
    names = [f"figure-pfq-smoke.{ending}" for ending in ("svg", "png", "md", "csv", "tex", "html", "json")]
    assert [file.name for file in files] == names
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    first = {file.name: file.read_bytes() for file in files}
    assert first["figure-pfq-smoke.png"].startswith(b"\x89PNG")
    assert first["figure-pfq-smoke.csv"].decode() == points_csv(build_figure(spec, store, "smoke", 1, sources))
    output.write(spec, store, "smoke", tmp_path / "out", 1, sources)
    assert {file.name: file.read_bytes() for file in files} == first
    assert table.name == "figure-pfq"


TINY = """
name = "tiny"
version = 1
title = "Tiny"
caption = "One point."
source = "a test"
published_table = "PFQ vs SBM figure (README image)"
[figure]
tables = ["PFQ vs SBM figure (README image)"]
[[figure.series]]
key = "s"
label = "SBM"
published = "SBM (static)"
[profiles.smoke]
datasets = { cifar10 = "digits" }
[[pairs]]
model = "resnet38"
dataset = "cifar10"
model_label = "ResNet-38"
dataset_label = "CIFAR-10"
[[rows]]
key = "a"
label = "SBM"
method = "no_such_method"
precision = "8/8"
series = "s"
"""


def test_commands_treat_figures_like_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    Path("tiny.toml").write_text(TINY, encoding="utf-8")

    def cli(*args):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.stderr
        return result

    assert "1 runs: 1 no plugin" in cli("plan", "tiny.toml").stdout
    done = cli("reproduce", "tiny.toml")
    assert done.stdout.startswith("# Tiny [profile smoke")
    folder = tmp_path / "results" / "figures"
    files = sorted(path.suffix for path in folder.iterdir())
    assert files == [".csv", ".html", ".json", ".md", ".png", ".svg", ".tex"]
    svg = cli("table", "tiny.toml", "--format", "svg").stdout
    begun = (folder / "tiny-smoke.md").read_text(encoding="utf-8").split("\n\n")
    assert begun[1] == "![Tiny](tiny-smoke.svg)"
    page = (folder / "tiny-smoke.html").read_text(encoding="utf-8")
    assert page.index("<svg") < page.index("<table")
    png = CliRunner().invoke(main, ["table", "tiny.toml", "--format", "png", "--style", "paper", "--panel", "1"])
    assert png.stdout_bytes.startswith(b"\x89PNG")
    assert svg.rstrip("\n") == (folder / "tiny-smoke.svg").read_text(encoding="utf-8").rstrip("\n")
    lines = list(csv.DictReader(io.StringIO(cli("table", "tiny.toml", "--format", "csv").stdout)))
    assert [float(line["accuracy"]) for line in lines] == [92.75, 92.66, 92.68, 92.86]


# -- single runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return synthetic_runs.small_store(tmp_path_factory.mktemp("store") / "runs")


def draw_runs(store, *args):
    return CliRunner().invoke(main, ["draw", *args, "--results", str(store.root)])


def test_learning_curves_of_runs_are_drawn_through_their_test_accuracies(runs):
    ids = [synthetic_runs.config_of(method, 0).run_id for method in ("sbm", "fractrain")]
    done = draw_runs(runs, "curves", *ids, "--format", "svg")
    assert done.exit_code == 0, done.stderr
    ET.fromstring(done.stdout)
    entries = [RunEntry.from_record(runs.get(run)) for run in ids]
    found = [page_detail.look_into(e, runs.get(e.run_id), e.method, create("bit-product")) for e in entries]
    with charts.style(page=False):
        for over in page_detail.OVER:
            made = page_detail.curve("c", "", found, ["fractrain", "sbm"], over, charts.COLUMN)
            assert tuple(made.figure.get_size_inches()) == charts.COLUMN
            for d, line in zip(found, made.figure.axes[0].lines, strict=True):
                assert list(line.get_ydata()) == [synthetic_runs.accuracy(d.entry.method, 0, p) for p in range(4)]
                spent = d.work.groupby("epoch")["effective"].sum().cumsum()
                assert list(line.get_xdata()) == ([4, 8, 12, 16] if over == "step" else list(spent))


def test_precision_over_training_rises_with_the_stages(runs):
    done = draw_runs(
        runs, "precision", synthetic_runs.config_of("pfq", 0).run_id, "--format", "pdf", "--style", "paper"
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout_bytes.startswith(b"%PDF-")
    entry = RunEntry.from_record(runs.get(synthetic_runs.config_of("pfq", 0).run_id))
    view = page_detail.width_curves(page_detail.look_into(entry, runs.get(entry.run_id), "pfq", create("bit-product")))
    assert list(view.bits["A"]) == list(view.bits["E"]) == [3, 4, 5, 6]
    assert view.stages == [(4, 1), (8, 2), (12, 3)]
    assert view.panels == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("precision", "sbm-resnet38-digits-s1"), "its precision is constant"),
        (("precision", "pfq-resnet38-digits-s0", "pfq-resnet38-digits-s1"), "precision is drawn of one run, got 2"),
        (("curves", "nobody"), "no run 'nobody'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(runs, args, line):
    done = draw_runs(runs, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_svg_of_a_table_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FRACTRAIN_RESULTS", str(tmp_path / "runs"))
    result = CliRunner().invoke(main, ["table", "table6", "--format", "svg"])
    assert result.exit_code == 2
    assert "table6 is a table, not a figure" in result.stderr
    assert "Traceback" not in result.stderr

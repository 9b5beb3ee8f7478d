"""The report page without a browser: what stands in the file, and that nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scaling_fakes
from click.testing import CliRunner
from matplotlib import colormaps
from PIL import Image
from store_fakes import FakeStore
from synthetic_runs import MAPPED, METHODS, config_of, ledger_of, map_ledger, small_store, write_run

import fractrain
from fractrain.cli import main
from fractrain.cost.ledger import Entry, Ledger
from fractrain.engine.store import RunStore
from fractrain.report.breakdown import bits_by_part, breakdown, mean_bits, quantized_parts, width_shares
from fractrain.report.build import build_table
from fractrain.report.campaign import load_campaign
from fractrain.report.page import build_page
from fractrain.report.page_bench import read_benches
from fractrain.report.page_detail import stages
from fractrain.report.scaling import build_scaling
from fractrain.report.sources import engine_config
from fractrain.report.spec import load_spec
from fractrain.report.svg import INK, Mark, series_colour, themed
from fractrain.util.errors import StoreError

COMMITTED = Path(__file__).parents[2] / "results" / "bench"


class Page(HTMLParser):
    """Cells of each table by the anchor of their row, texts by tag, and every address."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.heads: dict[str, list[str]] = {}
        self._row = self._section = ""
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.addresses += [values[k] for k in ("href", "src", "xlink:href") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "section":
            self._section = values.get("id", "")
        if tag == "tr":
            self._row = values.get("id", "")
        if tag == "th":
            self.heads.setdefault(self._section, []).append(values["data-key"])
        if tag == "td":
            self.rows.setdefault(self._row, []).append(("", values))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            text, values = self.rows[self._row][-1]
            self.rows[self._row][-1] = (text + data, values)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return small_store(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture(scope="module")
def text(store: RunStore) -> str:
    return build_page(store, [build_table(load_spec("table2"), store, "smoke")], "fractrain-fitted")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_fetched_from_anywhere(text: str, page: Page) -> None:
    assert page.addresses
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert not re.search(r"@import|url\((?!#)|src=|XMLHttpRequest|fetch\(", text)
    outside = set(re.findall(r"https?://[^\s\"'<)]+", text)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert outside == set()


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    assert len(set(page.ids)) == len(page.ids)
    inside = {a[1:] for a in page.addresses if a.startswith("#")}
    assert inside <= set(page.ids)


def test_the_profile_cannot_be_missed(text: str) -> None:
    banner = re.search(r'<p class="banner" role="note">(.*?)</p>', text)
    assert banner is not None
    assert banner[1].startswith("NOT A REPRODUCTION: 13 runs of profile smoke and 1 run of profile short (length 1/8).")
    assert text.index(banner[0]) < text.index("<main")


def test_cells_are_the_numbers_of_the_dataframe(page: Page, store: RunStore) -> None:
    checked = 0
    for frame, prefix, key in (
        (fractrain.results(store, hardware="fractrain-fitted"), "run", "run"),
        (fractrain.results(store, "configuration", hardware="fractrain-fitted"), "group", "group"),
    ):
        columns = page.heads["runs" if prefix == "run" else "configurations"]
        for line in frame[frame["quantity"].isin(columns)].itertuples():
            text, values = page.rows[f"{prefix}-{getattr(line, key)}"][columns.index(line.quantity)]
            assert float(values["data-v"]) == line.value
            assert values["class"] == f"n {line.origin[0]}"
            assert int(values.get("data-n", 1)) == line.n
            assert float(text.split(" ±")[0].replace(",", "")) == pytest.approx(line.value, rel=5e-3, abs=5e-3)
            if line.n > 1:
                assert (float(values["data-low"]), float(values["data-high"])) == (line.low, line.high)
            checked += 1
    assert checked > 150


def test_columns_that_say_the_same_of_every_run_are_hidden_at_first(text: str) -> None:
    heads = re.findall(r'<th scope="col" data-key="(setting|model|settings)"([^>]*)>', text)
    hidden = {key: {"hidden" in rest for k, rest in heads if k == key} for key in ("setting", "model", "settings")}
    assert (hidden["setting"], hidden["model"]) == ({True}, {False})
    assert False in hidden["settings"]  # one run differs in its bits


def test_runs_that_failed_are_listed_with_their_reason(page: Page) -> None:
    cells = page.rows[f"run-{config_of('sbm', 0, bits=2).run_id}"]
    assert "diverged: went wrong" in [text for text, _ in cells]


def test_points_say_method_values_seeds_profile_and_runs(text: str) -> None:
    said = re.findall(r'aria-label="(fractrain: [^"]*)"', text)
    ids = " ".join(config_of("fractrain", seed).run_id for seed in range(3))
    assert any(f"seeds 0 1 2; profile smoke; runs {ids}" in one for one in said)


def test_the_same_store_gives_the_same_page(store: RunStore) -> None:
    assert build_page(store, details=2) == build_page(store, details=2)


def test_a_campaign_has_its_figure_and_its_table(store: RunStore) -> None:
    campaign, fakes = load_campaign("scaling"), FakeStore()
    scaling_fakes.fill(fakes, campaign, None, 0.2)
    text = build_page(store, details=0, scaling=build_scaling(campaign, fakes, scaling_fakes.sources()))
    page = Page(text)
    assert f'aria-label="{campaign.title}"' in text
    assert "trend" in page.heads["table-scaling"]
    drawn = text[text.index('id="scaling-') :].partition("</svg>")[0]
    assert "points over SBM, paired" in drawn
    assert re.findall("#[0-9a-f]{6}", drawn) == [], "every colour is the theme's"
    assert text.index('id="table-scaling"') < text.index('id="cost"')


def test_pairs_of_a_table_without_a_run_are_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    spec, store = load_spec("table2"), RunStore(tmp_path / "runs")
    write_run(store, engine_config(spec.request(spec.pairs[0], spec.row("sbm"), "smoke"), 0))
    common = ["report", "--results", str(store.root), "--details", "0", "--evidence", str(tmp_path)]
    for more, expected in (([], 1), (["--table", "table2"], 4)):
        done = CliRunner().invoke(main, [*common, "--out", str(tmp_path / "out"), *more])
        assert done.exit_code == 0, done.stderr
        text = (tmp_path / "out" / "index.html").read_text()
        table = text[text.index('id="table-table2"') :].partition("</section>")[0]
        assert len(set(re.findall(r"<td>(ResNet-\d+)</td>\s*<td>(.*?)</td>", table))) == expected
        assert ("Left out on this page" in table) == (expected == 1)


def test_an_empty_store_has_a_page_that_says_so(tmp_path: Path) -> None:
    text = build_page(RunStore(tmp_path))
    Page(text)
    assert "nothing has been run yet" in text


def test_texts_of_others_cannot_break_the_page(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    write_run(store, config_of("sbm", 0, evil='</script><img src=x onerror="alert(1)">&'))
    write_run(store, config_of("sbm", 0, evil="plain"))
    text = build_page(store)
    Page(text)
    assert "<img" not in text
    assert "&lt;/script&gt;" in text


def test_the_command_writes_one_file_and_says_where(store: RunStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["report", "--results", str(store.root), "--out", str(out), "--details", "1", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert [file.name for file in out.iterdir()] == ["index.html"]
    assert said["bytes"] == (out / "index.html").stat().st_size < 3e6


# -- where the work goes -----------------------------------------------------------------------------------------------


def slow(ledger: Ledger) -> Iterator[tuple[int, str, str, int, float]]:
    for row in ledger.rows():
        part = "gates" if ".gate." in row.layer else row.layer.split(".")[0]
        yield row.epoch, part, row.product, row.macs, row.macs * row.bits1 * row.bits2 / 1024


@pytest.mark.parametrize("method", METHODS)
def test_the_breakdown_adds_up_to_the_ledger(method: str) -> None:
    ledger = ledger_of(method)
    work = breakdown(ledger)
    lines = pd.DataFrame(slow(ledger), columns=["epoch", "part", "product", "macs", "effective"])
    expected = lines.groupby(["epoch", "part", "product"]).sum()
    found = work.set_index(["epoch", "part", "product"])[["macs", "effective"]]
    pd.testing.assert_frame_equal(found.sort_index(), expected.sort_index(), check_like=True)
    assert list(dict.fromkeys(work["part"]))[:2] == ["b0", "b1"]


def test_mean_bits_are_weighted_by_macs_and_leave_out_what_is_never_quantized() -> None:
    ledger = Ledger({"blocks": ["a", "b"]})
    for period, bits in enumerate((3, 6)):
        ledger.begin("train", period)
        ledger.samples(1)
        ledger.count(
            f"a{bits}", 1, lambda bits=bits: [Entry("a.c", "FW", bits, 8, 300), Entry("a.c", "EB", 12, 8, 300)]
        )
        ledger.count("b", 2, lambda: [Entry("b.c", "FW", 4, 4, 50), Entry("stem", "FW", 32, 32, 999)])
        ledger.count("skipped", 1, lambda: [Entry("b.c", "FW", 0, 0, 100)])
    found = mean_bits(breakdown(ledger))
    assert list(found["A"]) == [(3 * 300 + 4 * 100) / 500, (6 * 300 + 4 * 100) / 500]
    assert list(found["W"]) == [(8 * 300 + 4 * 100) / 500] * 2
    assert list(found["E"]) == [12, 12]
    by_part = bits_by_part(breakdown(ledger))
    assert list(by_part.index) == ["a", "b", "stem"]
    np.testing.assert_array_equal(by_part.to_numpy(), [[3, 6], [2, 2], [32, 32]])


def test_choices_are_shares_of_forward_macs_where_samples_or_tiles_differ() -> None:
    ledger = Ledger({"blocks": ["a", "b"]})
    ledger.begin("train", 0)
    ledger.samples(1)
    ledger.count("low", 3, lambda: [Entry("a.c", "FW", 4, 4, 100), Entry("a.c", "EB", 8, 4, 100)])
    ledger.count("high", 1, lambda: [Entry("a.c", "FW", 6, 6, 100), Entry("b.c", "FW", 6, 6, 100)])
    ledger.count("skip", 1, lambda: [Entry("b.c", "FW", 0, 0, 100), Entry("stem", "FW", 32, 32, 100)])
    found = width_shares(ledger)
    assert (list(found.index), list(found.columns)) == (["a", "b"], [0, 4, 6])
    np.testing.assert_array_equal(found.to_numpy(), [[0, 75, 25], [50, 0, 50]])
    assert quantized_parts(breakdown(ledger)) == ["a", "b"]


def test_nothing_was_chosen_where_widths_only_move_with_the_period() -> None:
    assert len(width_shares(ledger_of("pfq"))) == 0


def test_a_stage_stands_at_the_start_of_the_period_in_which_it_began() -> None:
    lines = [{"iteration": 10 * (n + 1), "method": {"stage": stage}} for n, stage in enumerate((0, 0, 1, 3))]
    assert stages(lines) == [(20, 1), (30, 3)]
    assert stages([{"iteration": 10, "method": {}}]) == []


def test_the_maps_of_dynasty_are_heat_maps_of_the_widths_in_its_ledger(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    write_run(store, config_of("dynasty", 0), ledger=map_ledger())
    text = build_page(store)
    assert 'aria-label="dynasty on resnet38 on digits [profile smoke], seed 0: precision over training"' in text
    assert "mean bits of A" in text
    image = re.search(r'<image [^>]*href="data:image/png;base64,([^"]+)"[^>]*transform="scale\(1 -1\)', text)
    assert image is not None
    with Image.open(io.BytesIO(base64.b64decode(image[1]))) as png:
        pixels = np.asarray(png.convert("RGB"))[::-1]  # the drawing turns it over
    high, wide = pixels.shape[0] / len(MAPPED), pixels.shape[1] / 4
    for row, means in enumerate(MAPPED.values()):
        for column, bits in enumerate(means):
            found = pixels[int((row + 0.5) * high), int((column + 0.5) * wide)]
            wanted = 255 * np.array(colormaps["viridis"](bits / 8)[:3])
            assert np.abs(found - wanted).max() < 4, (row, column)


# -- speed -------------------------------------------------------------------------------------------------------------


def test_benches_are_drawn_with_peers_beside_and_listed_with_what_is_missing(tmp_path: Path) -> None:
    benches = read_benches(COMMITTED)
    assert [record.name for record in benches] == ["cpu", "cpu-formats"]
    text = build_page(RunStore(tmp_path), benches=benches)
    page = Page(text)
    for record in benches:
        found = json.loads((COMMITTED / f"{record.name}.json").read_bytes())["paths"]
        section = text[text.index(f'id="bench-{record.name}"') :].partition("</section>")[0]
        for path in found:
            ratio = path["ratio"]
            assert f"<td>{path['path']}</td>" in section
            assert ratio is None or f'data-v="{ratio}" data-low="{path["spread"][0]}"' in section
        assert section.count(">not available<") == sum(path["ratio"] is None for path in found)
        drawn = text[text.index(f'id="b{record.name}-') :].partition("</svg>")[0]
        timed = [p for p in found if p["ratio"] and p["unit"] == "x" and p["absolute"]["unit"] == "s"]
        assert drawn.count("<title>") == len(timed)
        assert all(f"<title>{p['path']}: {p['ratio']:.2f}x, quartiles" in drawn for p in timed)
        assert ("other libraries" in drawn) == any(p["path"].startswith("peer_") for p in timed)
    assert "#speed" in page.addresses
    assert "#speed" not in Page(build_page(RunStore(tmp_path))).addresses


def test_a_file_that_is_no_bench_is_named(tmp_path: Path) -> None:
    assert read_benches(tmp_path / "nowhere") == []
    (tmp_path / "cpu.json").write_text('{"paths": []}')
    with pytest.raises(StoreError, match=r"cpu\.json: not a record of `fractrain bench` \(settings"):
        read_benches(tmp_path)


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_a_drawing_takes_the_colours_of_the_page_and_speaks() -> None:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9">'
        f'<metadata>x</metadata><defs><path id="m"/></defs><g id="series-3-dots"><g><use xlink:href="#m" '
        f'style="fill: {series_colour(3)}; stroke: {INK}"/></g></g><g clip-path="url(#p)"/></svg>'
    )
    text = themed(svg.encode(), "c1", "What & why", {"series-3-dots": [Mark("one <point>", "#run-x")]})
    for wanted in (
        "fill: var(--s3); stroke: var(--ink)", 'id="c1-m"', 'xlink:href="#c1-m"', "url(#c1-p)", 'class="series s3"',
        'xlink:href="#run-x" aria-label="one &lt;point&gt;"', "<title>one &lt;point&gt;</title>",
        'aria-label="What &amp; why"',
    ):  # fmt: skip
        assert wanted in text
    for unwanted in ("metadata", "width="):
        assert unwanted not in text
    with pytest.raises(ValueError, match="argument"):
        themed(svg.encode(), "c1", "", {"series-3-dots": []})

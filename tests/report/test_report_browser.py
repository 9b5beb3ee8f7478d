"""The report page in a real browser: Debian's chromium, driven by selenium; skipped where either is missing."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scaling_fakes
from matplotlib import colormaps
from PIL import Image
from store_fakes import FakeStore
from synthetic_runs import MAPPED, METHODS, config_of, map_ledger, small_store, write_run

import fractrain
from fractrain.engine.store import RunStore
from fractrain.report.build import build_table
from fractrain.report.campaign import load_campaign
from fractrain.report.claims import JudgedClaim, judge_claims
from fractrain.report.page import build_page
from fractrain.report.page_bench import read_benches
from fractrain.report.quantities import BY_KEY
from fractrain.report.render import csv_text
from fractrain.report.scaling import build_scaling
from fractrain.report.spec import load_spec

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("no browser: chromium and chromedriver are not installed", allow_module_level=True)
selenium = pytest.importorskip("selenium", reason="no driver of browsers: pip install 'fractrain[dev]'")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BENCHES = Path(__file__).parents[2] / "results" / "bench"
PATIENCE_S = 600  # a guard against hanging, not a measure


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return small_store(tmp_path_factory.mktemp("store") / "runs")


@pytest.fixture(scope="module")
def claims(store: RunStore) -> list[JudgedClaim]:
    return judge_claims(store)


@pytest.fixture(scope="module")
def page(store: RunStore, claims: list[JudgedClaim], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "index.html"
    tables = [build_table(load_spec("table2"), store, "short")]
    file.write_text(build_page(store, tables, "fractrain-fitted", claims=claims), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(PATIENCE_S)
    driver.set_script_timeout(PATIENCE_S)
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser: Any, page: Path) -> Iterator[Any]:
    """The page, just opened; no test may leave an error in the browser's console."""
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def rows(browser: Any, table: str, attribute: str = "") -> list[dict[str, str]]:
    """What the browser shows of a table: texts by column key (or an attribute of the cells), visible rows in order."""
    script = """
      const [name, attribute] = arguments;
      const section = document.getElementById(name);
      const heads = [...section.querySelectorAll("thead th")];
      return [...section.querySelectorAll("tbody tr")].filter((row) => row.checkVisibility()).map((row) =>
        Object.fromEntries(heads.map((head, i) => [head.dataset.key, attribute ?
          row.cells[i].getAttribute(attribute) : row.cells[i].textContent.trim()])));
    """
    return browser.execute_script(script, table, attribute)


def shown_columns(browser: Any, table: str) -> list[str]:
    script = """return [...document.querySelectorAll(`#${arguments[0]} thead th`)]
      .filter((head) => head.checkVisibility()).map((head) => head.dataset.key)"""
    return browser.execute_script(script, table)


def click(browser: Any, css: str) -> None:
    """Click as a user's hand does, on something that the header does not cover."""
    element = browser.find_element("css selector", css)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def head(table: str, key: str) -> str:
    return f"#{table} th[data-key={key}] button"


def test_the_cells_are_those_of_the_csv_of_the_table(open_page: Any, store: RunStore) -> None:
    expected = list(csv.DictReader(io.StringIO(csv_text(build_table(load_spec("table2"), store, "short")))))
    found, exact = rows(open_page, "table-table2"), rows(open_page, "table-table2", "data-v")
    assert len(found) == len(expected)
    published = 0
    for ours, numbers, theirs in zip(found, exact, expected, strict=True):
        assert ours["verdict"] == theirs["verdict"]
        for key in (k for k in ours if f"{k}_text" in theirs):
            assert ours[key] == theirs[f"{key}_text"]
            assert (numbers[key] or "") == "" if not theirs[key] else float(numbers[key]) == float(theirs[key])
            published += theirs[f"{key}_origin"] == "published"
    assert published > 50


def test_a_click_on_a_heading_sorts_up_and_another_one_down(open_page: Any) -> None:
    for css, key, order in (
        (head("runs", "accuracy_last"), "accuracy_last", 1),
        (head("runs", "accuracy_last"), "accuracy_last", -1),
        (head("runs", "effective_end"), "effective_end", 1),
    ):
        click(open_page, css)
        values = [v[key] for v in rows(open_page, "runs", "data-v")]
        numbers = [float(v) for v in values if v is not None]
        assert numbers == sorted(numbers, reverse=order < 0)
        assert len(set(numbers)) > 2
        assert values[-1] is None, "a run without the number comes last, whichever way"
        sorts = [h.get_attribute("aria-sort") for h in open_page.find_elements("css selector", "#runs thead th")]
        assert [s for s in sorts if s] == ["ascending" if order > 0 else "descending"]
    click(open_page, head("runs", "method"))
    names = [row["method"] for row in rows(open_page, "runs")]
    assert names == sorted(names)


def test_the_filter_keeps_rows_with_all_words(open_page: Any) -> None:
    box = open_page.find_element("css selector", "#runs input[type=search]")
    assert len(rows(open_page, "runs")) == 14
    box.send_keys("method:sbm smoke")
    found = rows(open_page, "runs")
    assert {(row["method"], row["profile"]) for row in found} == {("sbm", "smoke")}
    assert len(found) == 4
    assert open_page.find_element("css selector", "#runs .status").text == "4 of 14 rows"
    box.send_keys(" diverged")
    assert len(rows(open_page, "runs")) == 1
    box.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(rows(open_page, "runs")) == 14


def test_columns_are_chosen_and_what_is_shown_is_copied_unrounded(open_page: Any, store: RunStore) -> None:
    before = shown_columns(open_page, "runs")
    assert "macs_best" not in before
    click(open_page, "#runs .columns summary")
    click(open_page, "#runs input[data-column=macs_best]")
    click(open_page, "#runs input[data-column=model]")
    assert set(shown_columns(open_page, "runs")) == {*before, "macs_best"} - {"model"}
    webdriver.ActionChains(open_page).send_keys(Keys.ESCAPE).perform()
    assert not open_page.find_element("css selector", "#runs .choices").is_displayed()
    open_page.find_element("css selector", "#runs input[type=search]").send_keys("method:fractrain")
    click(open_page, head("runs", "seed"))
    click(open_page, "#runs [data-copy=csv]")
    copied = open_page.execute_script("return document.getElementById('runs').dataset.copied")
    lines = list(csv.DictReader(io.StringIO(copied)))
    frame = fractrain.results(store, method="fractrain")
    assert [line["Run"] for line in lines] == [config_of("fractrain", seed).run_id for seed in range(3)]
    wanted = frame[frame["quantity"] == "macs_best"].set_index("run")["value"]
    column = next(name for name in lines[0] if name.startswith(BY_KEY["macs_best"].label))
    assert [float(line[column]) for line in lines] == [wanted[line["Run"]] for line in lines]


def test_latex_of_a_table_has_its_rows_and_nothing_unescaped(open_page: Any) -> None:
    click(open_page, "#configurations [data-copy=tex]")
    text = open_page.execute_script("return document.getElementById('configurations').dataset.copied")
    lines = text.splitlines()
    assert (lines[0].split("{")[1], lines[1], lines[3]) == ("tabular}", r"\toprule", r"\midrule")
    body = lines[4:-2]
    assert len(body) == 5
    assert all(line.count(" & ") == lines[2].count(" & ") and line.endswith(r"\\") for line in body)
    assert r"\%" in lines[2]
    assert r"$\pm$" in text
    assert not any(character in text for character in "±↑↓")


def test_methods_and_ways_to_count_are_switched_in_the_drawings(open_page: Any) -> None:
    visible = """return [...document.querySelectorAll(arguments[0])].filter((e) =>
      getComputedStyle(e).display !== "none" && e.closest("figure").checkVisibility()).length"""
    number = sorted(METHODS).index("sbm")
    everything = open_page.execute_script(visible, "g.series")
    own = open_page.execute_script(visible, f"g.series.s{number}")
    assert own > 0
    click(open_page, f"input[data-series='{number}']")
    assert open_page.execute_script(visible, f"g.series.s{number}") == 0
    assert open_page.execute_script(visible, "g.series") == everything - own
    click(open_page, f"input[data-series='{number}']")
    assert open_page.execute_script(visible, "g.series") == everything

    labels = (
        "return [...document.querySelectorAll('#cost svg')].filter((e) => e.checkVisibility()).map((e) => e.ariaLabel)"
    )
    whole = open_page.execute_script(labels)
    click(open_page, "input[name=view][value=paper]")
    paper = open_page.execute_script(labels)
    assert len(whole) == len(paper) == 2
    assert all(BY_KEY["cost_end"].title in text for text in whole)
    assert all(BY_KEY["macs_best"].title in text for text in paper)


def test_the_claims_come_first_with_their_verdicts(open_page: Any, claims: list[JudgedClaim]) -> None:
    sections = open_page.execute_script("return [...document.querySelectorAll('main > section')].map((e) => e.id)")
    assert sections[0] == "known"
    found = rows(open_page, "claims")
    assert [(row["text"], row["verdict"]) for row in found] == [(c.text, c.verdict) for c in claims]
    assert len(found) > 10
    box = open_page.find_element("css selector", "#claims input[type=search]")
    box.send_keys("latency")
    assert [row["text"] for row in rows(open_page, "claims")] == [row["text"] for row in found if "latency" in str(row)]
    cell = open_page.find_element("css selector", "#claims tbody tr:not([hidden]) td.p")
    cell.click()
    assert claims[0].source in open_page.find_element("css selector", "dialog#origin dl").text


def test_work_is_shown_as_operations_energy_or_time(open_page: Any, store: RunStore) -> None:
    labels = (
        "return [...document.querySelectorAll('#work svg')].filter((e) => e.checkVisibility()).map((e) => e.ariaLabel)"
    )
    for value, words in (("effective", "effective MACs"), ("joules", "energy of the whole run [J], modelled by "),
                         ("seconds", "time of the whole run [s], modelled by ")):  # fmt: skip
        click(open_page, f"#work input[value={value}]")
        shown = open_page.execute_script(labels)
        assert len(shown) == 2  # one task of each profile
        assert all(words in text for text in shown)
    parts = rows(open_page, "parts", "data-v")
    names = rows(open_page, "parts")
    frame = fractrain.results(store, "run", hardware="fractrain-fitted").set_index(["run", "quantity"])["value"]
    for method in METHODS:
        own = [exact for exact, row in zip(parts, names, strict=True)
               if row["method"].split()[0] == method and "smoke" in row["task"]]  # fmt: skip
        run = config_of(method, 0).run_id
        effective = sum(float(row[p]) for row in own for p in ("FW", "EB", "GC") if row[p])
        assert effective == pytest.approx(frame[run, "effective_end"])
        energy = sum(float(row["joules"]) for row in own if row["joules"])
        assert energy == pytest.approx(1e3 * frame[run, "energy_end"])


def test_precision_over_training_shows_stages_and_names_what_is_constant(open_page: Any) -> None:
    drawn = open_page.find_elements("css selector", "#precision svg")
    assert all("precision over training" in svg.accessible_name for svg in drawn)
    staged = next(svg for svg in drawn if svg.accessible_name.startswith("pfq"))
    assert [f"stage {n}" in staged.get_attribute("textContent") for n in (1, 2, 3, 4)] == [True, True, True, False]
    said = open_page.find_element("css selector", "#precision").text
    assert "sbm: 8/8/8 bits (A/W/E)" in said
    assert "fp32: full precision" in said


def test_a_number_tells_its_origin_by_keys_alone(open_page: Any, store: RunStore) -> None:
    first = WebDriverWait(open_page, 60).until(
        lambda driver: driver.find_elements("css selector", '#configurations td[tabindex="0"]')
    )[0]
    open_page.execute_script("arguments[0].focus()", first)
    keys = webdriver.ActionChains(open_page)
    keys.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER).perform()
    dialog = open_page.find_element("css selector", "dialog#origin")
    assert dialog.is_displayed()
    terms = [e.text for e in dialog.find_elements("css selector", "dt")]
    values = [e.text for e in dialog.find_elements("css selector", "dd")]
    said = dict(zip(terms, values, strict=True))
    assert said["Origin"] == "measured"
    ids = said["Runs" if "Runs" in said else "Run"].split(", ")
    frame = fractrain.results(store, "configuration")
    line = frame[(frame["run"] == " ".join(ids)) & (frame["quantity"] == "accuracy_best_test")]
    assert float(said["Unrounded"]) == line["value"].item()
    dialog.find_element("css selector", "dd a").click()
    assert not dialog.is_displayed()
    assert open_page.execute_script("return location.hash") == f"#run-{ids[0]}"

    open_page.get(open_page.current_url.partition("#")[0])
    open_page.execute_script("document.querySelector('#table-table2 td.p').click()")
    assert "FracTrain README" in open_page.find_element("css selector", "dialog#origin dl").text
    webdriver.ActionChains(open_page).send_keys(Keys.ESCAPE).perform()
    assert not open_page.find_element("css selector", "dialog#origin").is_displayed()


def contrast(one: str, other: str) -> float:
    """Ratio of luminances of two ``rgb(r, g, b)``, as the accessibility guidelines (WCAG 2) define it."""

    def luminance(text: str) -> float:
        parts = [int(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_themes_can_be_read(open_page: Any) -> None:
    seen = {}
    for _ in range(2):
        click(open_page, "#theme")
        theme = open_page.execute_script("return document.documentElement.dataset.theme")
        colour = "const s = getComputedStyle(document.querySelector(arguments[0])); return s[arguments[1]]"
        page = open_page.execute_script(colour, "body", "backgroundColor")
        for css in ("body", ".legend", ".legend .published", ".legend .measured", "nav a", "#runs td.m"):
            ink = open_page.execute_script(colour, css, "color")
            assert contrast(ink, page) >= 4.5, (theme, css, ink, page)
        banner = [open_page.execute_script(colour, ".banner", key) for key in ("color", "backgroundColor")]
        assert contrast(*banner) >= 4.5
        for number in range(len(METHODS)):
            fill = open_page.execute_script(colour, f"#cost g.series.s{number} use", "fill")
            assert contrast(fill, page) >= 3, (theme, number, fill, page)
        seen[theme] = page
    assert set(seen) == {"light", "dark"}
    assert contrast(seen["light"], seen["dark"]) > 10


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a campaign, benches, and a run of dynasty."""
    folder = tmp_path_factory.mktemp("full")
    store, campaign, fakes = RunStore(folder / "runs"), load_campaign("scaling"), FakeStore()
    write_run(store, config_of("dynasty", 0), ledger=map_ledger())
    scaling_fakes.fill(fakes, campaign, None, 0.2)
    scaling = build_scaling(campaign, fakes, scaling_fakes.sources())
    text = build_page(store, scaling=scaling, benches=read_benches(BENCHES))
    (folder / "index.html").write_text(text, encoding="utf-8")
    return folder / "index.html"


def test_the_maps_of_dynasty_have_the_colours_of_their_widths(browser: Any, full_page: Path) -> None:
    browser.get(full_page.as_uri())
    element = WebDriverWait(browser, PATIENCE_S).until(
        lambda driver: driver.find_elements("css selector", "#precision svg image")
    )[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    with Image.open(io.BytesIO(element.screenshot_as_png)) as shot:
        pixels = np.asarray(shot.convert("RGB")).astype(float)
    high, wide = pixels.shape[0] / len(MAPPED), pixels.shape[1] / 4
    for row, means in enumerate(MAPPED.values()):
        for column, bits in enumerate(means):
            found = pixels[int((row + 0.5) * high), int((column + 0.5) * wide)]
            wanted = 255 * np.array(colormaps["viridis"](bits / 8)[:3])
            assert np.abs(found - wanted).max() < 4, (row, column, found, wanted)
    assert browser.get_log("browser") == []


def test_every_drawing_can_be_read_in_both_themes(browser: Any, full_page: Path) -> None:
    browser.get(full_page.as_uri())
    script = """const seen = new Set();
      for (const e of document.querySelectorAll("figure svg text")) if (e.checkVisibility()) {
        const back = e.closest("svg").querySelector("[id$=patch_1] path");
        seen.add([e.closest("section").id, getComputedStyle(e).fill, back && getComputedStyle(back).fill].join("|"));
      }
      return [getComputedStyle(document.body).backgroundColor, ...seen];"""
    for _ in range(2):
        click(browser, "#theme")
        page, *texts = browser.execute_script(script)
        found = [text.split("|") for text in texts]
        assert {where for where, _, _ in found} >= {"known", "curves", "precision", "speed"}
        for where, ink, back in found:
            assert back in ("", "none"), (where, back)  # nothing hides the page's own colour
            assert contrast(ink, page) >= 3, (where, ink, page)
    assert browser.get_log("browser") == []


def test_every_control_has_a_name_for_screen_readers(open_page: Any) -> None:
    for element in open_page.find_elements("css selector", "button, input, a, summary, [role=region], svg[role]"):
        if element.is_displayed():
            assert element.accessible_name.strip(), element.get_attribute("outerHTML")[:200]


def test_on_paper_the_tools_are_gone_and_the_tables_whole(open_page: Any) -> None:
    open_page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        gone = "return [...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility())"
        assert not open_page.execute_script(gone, "header, .tools, fieldset")
        assert open_page.execute_script(gone, ".banner")
        assert (
            open_page.execute_script("return getComputedStyle(document.querySelector('.scroll')).overflowY")
            == "visible"
        )
        assert len(open_page.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 10_000
    finally:
        open_page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_nothing_spills_over_a_narrow_screen(open_page: Any) -> None:
    try:
        open_page.set_window_size(500, 900)
        widths = open_page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
    finally:
        open_page.set_window_size(1400, 1000)


@pytest.mark.skipif("FRACTRAIN_SCREENSHOTS" not in os.environ, reason="FRACTRAIN_SCREENSHOTS=DIR keeps screenshots")
def test_screenshots_for_people_to_look_at(open_page: Any) -> None:
    folder = Path(os.environ["FRACTRAIN_SCREENSHOTS"])
    for _ in range(2):
        click(open_page, "#theme")
        theme = open_page.execute_script("return document.documentElement.dataset.theme")
        assert open_page.save_screenshot(str(folder / f"report-{theme}.png"))

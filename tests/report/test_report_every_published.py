"""Every number in the file of published rows stands in a table or a figure, or is left out for a reason given here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fractrain.cost.published import data_path
from fractrain.report.build import build_table
from fractrain.report.figure_data import build_figure
from fractrain.report.quantities import QUANTITIES
from fractrain.report.sources import default_sources
from fractrain.report.spec import load_spec, table_names

Record = dict[str, Any]
SCALE = {"GBitOPs": 1e9}  # shown in bit operations
COLUMN = {q.metric: q.published for q in QUANTITIES if q.metric} | {
    q.saving: q.published for q in QUANTITIES if q.saving
}
SAVING = "training cost saving_%"  # shown as the ratio it means
CPT_FIGURE = "CIFAR-100 figure"
CPT_8 = ("FW(3,8)/BW8", "FW8/BW8")  # the widths that rows of ours have
LEFT_OUT: dict[str, Callable[[Record], bool]] = {
    "authors' logs of 2019, before the paper; the tables have the paper's values":
        lambda r: r["table"].startswith("author training log"),
    "what the script's formula makes the effective MACs of, which the figure shows":
        lambda r: r["table"].startswith("DFQ vs SBM") and r["metric"] in ("best_iteration", "cp_%"),
    "differences of points that the figure shows": lambda r: r["metric"] == "annotation",
    "CPT's figure: widths that no row of ours trains":
        lambda r: r["table"] == CPT_FIGURE and r["precision"] not in CPT_8,
    "CPT's figure: FracTrain's own table has SBM on this pair, and a row shows one source":
        lambda r: (r["table"] == CPT_FIGURE and r["method"] == "SBM static" and r["precision"] in CPT_8
                   and r["model"] != "MobileNetV2" and r["metric"] == "acc_top1_%"),
    "CPT's figure: operations read off a plot; the overview has no column of published operations":
        lambda r: r["table"] == CPT_FIGURE and r["precision"] in CPT_8 and r["metric"] == "GBitOPs",
    "a model or a data set of none of the papers that are reproduced":
        lambda r: r["model"] in ("ResNet-110", "2-LSTM") and r["table"] != CPT_FIGURE,
    "SkipNet: trained by reinforcement, operations of inference; not this project's SLU":
        lambda r: r["method"] == "SkipNet RNN gate" and r["model"] != "ResNet-110",
    "E2-Train: energy measured on hardware, of SLU together with two other techniques":
        lambda r: r["method"] == "E2-Train" and r["model"] != "ResNet-110",
    "chips: no accuracy or cost of a training run": lambda r: r["model"] in ("chip", "diffusion network"),
}  # fmt: skip


def parts(record: Record) -> Iterator[Record]:
    """A record that holds several numbers (``a / b``) as one each; written again here, to be independent."""
    metrics, values = record["metric"].split(" / "), str(record["value"]).split(" / ")
    if len(metrics) != len(values) or len(metrics) == 1:
        yield record
    else:
        yield from ({**record, "metric": m, "value": v} for m, v in zip(metrics, values, strict=True))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [part for record in json.loads(data_path().read_text(encoding="utf-8")) for part in parts(record)]


@pytest.fixture(scope="module")
def shown() -> set[tuple[Any, ...]]:
    """Everything of origin ``published``, and every claim, that any table or figure shows, without a single run."""
    found: set[tuple[Any, ...]] = set()
    for name in table_names():
        spec = load_spec(name)
        if spec.errors is not None:  # its published figures stand in the table itself
            continue
        table = build_table(spec, None, "paper", 1, default_sources())
        for row in table.rows:
            for key, cell in row.cells.items():
                if cell.origin == "published" or (key.endswith("_claim") and cell.source):
                    number = cell.text.replace(" ", "") if cell.value is None else cell.value
                    found.add((row.text("model"), row.text("data"), key, number, cell.source))
        if spec.figure:
            methods = {series.key: series.published for series in spec.figure.series}
            for p in build_figure(spec, None, "paper", 1, default_sources()).points:
                for metric, value in (("acc_top1_%", p.accuracy), ("effective_MACs", p.macs)):
                    found.add((p.model, p.dataset, methods[p.series], p.precision, metric, value))
    return found


def is_shown(r: Record, shown: set[tuple[Any, ...]]) -> bool:
    value = r["value"] if isinstance(r["value"], str) else r["value"] * SCALE.get(r["metric"], 1)
    if (r["model"], r["dataset"], r["method"], r["precision"], r["metric"], value) in shown:
        return True
    source, column = f"{r['source']}; {r['confidence']}", COLUMN.get(r["metric"], "")
    if r["metric"] == "acc_diff":
        value = float(value)
    if (r["model"], r["dataset"], column, value, source) in shown:
        return True
    if r["metric"] == SAVING:
        ratio = 1 / (1 - r["value"] / 100)
        return any(str(c[2]).endswith("_claim") and c[3] == pytest.approx(ratio) and source in c[4] for c in shown)
    texts = {str(r["value"]).replace(" ", ""), f"{r['metric']}:{r['value']}".replace(" ", "")}
    claims = {(c[3], c[4]) for c in shown if str(c[2]).endswith("_claim")}
    return any((text, f"{r['paper']}: {source}") in claims for text in texts)


def test_every_published_number_is_shown_or_left_out_for_a_reason(records, shown):
    unknown = [r for r in records if not is_shown(r, shown) and not any(fits(r) for fits in LEFT_OUT.values())
               and not in_words(r)]  # fmt: skip
    assert [(r["table"], r["model"], r["dataset"], r["method"], r["precision"], r["metric"]) for r in unknown] == []


def test_nothing_of_imagenet_and_wikitext_is_left_out(records, shown):
    """Each of these numbers, ResNet-50's and those of a row that cannot run included, stands in a table."""
    found = [r for r in records if r["dataset"] in ("ImageNet", "WikiText-103")]
    assert {r["model"] for r in found} > {"ResNet-18", "ResNet-34", "ResNet-50", "Transformer"}
    assert {r["value"] for r in found if r["precision"] == "8-32"} == {70.67, 74.14}
    assert len(found) == 50
    assert [r for r in found if not is_shown(r, shown)] == []
    assert [r for r in found if any(fits(r) for fits in LEFT_OUT.values())] == []


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_left_out_is_there_and_is_not_shown(records, shown, reason):
    """A reason that fits nothing, or something that is shown after all, is out of date."""
    out = [r for r in records if LEFT_OUT[reason](r)]
    assert out
    assert [r for r in out if is_shown(r, shown)] == []


def in_words(r: Record) -> bool:
    """FracTrain's abstract: its numbers stand in sentences of table 4, and in the gain rows of table 2."""
    if r["table"] != "abstract" or r["method"] != "FracTrain":
        return False
    numbers = re.findall(r"[+-]?\d+\.\d+", str(r["value"]))
    if r["model"] == "six models":
        text = " ".join(load_spec("table4").notes)
    else:
        rows = build_table(load_spec("table2"), None, "paper", 1, default_sources()).rows
        gains = [row for row in rows if row.kind != "method" and row.group == f"{r['model']}, {r['dataset']}"]
        text = " ".join(cell.text for row in gains for cell in row.cells.values())
    assert numbers
    return all(number in text for number in numbers)


def test_the_abstract_is_in_words(records):
    assert len([r for r in records if in_words(r)]) == 4  # 77.6 %, 53.5 %, -0.07 %; and the range


def test_a_number_that_no_table_shows_would_be_found(records, shown):
    """Each kind of place shows numbers that stand nowhere else: without it, the search misses them."""
    places = {c: ("point" if len(c) == 6 else c[2]) for c in shown}
    assert {"point", "accuracy_published", "perplexity_published", "macs_published", "bitops_published",
            "energy_published", "latency_published", "bitops_end_claim"} <= set(places.values())  # fmt: skip
    for gone in set(places.values()):
        if gone.endswith("_claim") and gone != "bitops_end_claim":
            continue  # claims of savings stand in the gain rows, too
        left = {c for c, place in places.items() if place != gone}
        assert any(is_shown(r, shown) and not is_shown(r, left) for r in records), gone

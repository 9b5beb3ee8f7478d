"""The last words after a smoke table: counted from the runs, and the next command's time from their speed."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from store_fakes import FakeStore

from fractrain.report.build import build_table
from fractrain.report.closing import NEXT, closing, next_seconds
from fractrain.report.grid import plan
from fractrain.report.sources import Sources, default_sources
from fractrain.report.values import RunValues

RATE = 2e-10  # seconds for a multiply-accumulate of the forward pass and a sample
SAMPLES = 1_000 * 128 + 20 * 10_000 / 3  # of a run at 1/64: trained on, and tested on after each of 20 periods


@dataclass
class Done:
    """A finished smoke run at the speed ``RATE``."""

    config: Any
    status: str = "done"
    message: str = ""
    verified: bool = True
    macs: int = 1_000_000

    @property
    def run_id(self) -> str:
        return str(self.config.run_id)

    @property
    def summary(self) -> dict[str, Any]:
        return {"step_seconds_median": RATE * self.macs * self.config.recipe.batch_size}

    def ledger(self) -> Any:
        return SimpleNamespace(meta={"forward_macs": self.macs})


def measure(record: Any, hardware: str) -> RunValues:
    usual = dict.fromkeys(("accuracy_best_test", "train_accuracy", "macs_best", "effective_end", "cp_end"), 1.0)
    return RunValues({**usual, "accuracy_last": 50.0, "accuracy_trivial": 10.0}, "")


@pytest.fixture
def small(spec):
    """Two methods on both data sets, with ResNet-38."""
    rows = tuple(spec.row(key) for key in ("fp32", "sbm"))
    return spec.model_copy(update={"pairs": spec.pairs[:2], "rows": rows})


def ready(small, count):
    """The table, and its runs of which the first ``count`` are done."""
    sources = Sources(default_sources().make_config, measure, default_sources().published)
    store = FakeStore()
    for run in plan(small, "smoke", 1, None, sources)[:count]:
        store.records[run.run_id] = Done(run.config)
    return build_table(small, store, "smoke", 1, sources), plan(small, "smoke", 1, store, sources), sources


def test_three_sentences_say_what_was_shown_what_not_and_what_is_next(small):
    table, runs, sources = ready(small, 4)
    shown, missing, after = closing(small, table, runs, 2, sources)
    assert shown == (
        "Shown: 4 of 4 runs went to their end, and 4 of 4 rows are better than a predictor without learning on "
        "digits, digits100."
    )
    assert missing == (
        "Not shown: anything about the paper, whose numbers are of CIFAR-10 and CIFAR-100 and of runs of 64,000 steps; "
        "these had 120 to 224."
    )
    assert after.startswith(f"Next: fractrain reproduce table2 --length {NEXT} --seeds 1 --data-dir DIR (CIFAR-10 and")
    assert "here at the speed of these runs)." in after


def test_the_time_of_the_next_command_is_the_speed_times_its_work(small):
    _, runs, sources = ready(small, 4)
    macs = 83.28e6  # of a ResNet-38, both data sets (but for the classifier)
    assert next_seconds(small, runs, sources) == pytest.approx(4 * macs * SAMPLES * RATE, rel=1e-3)


def test_no_time_is_told_where_a_row_has_no_finished_run(small):
    table, runs, sources = ready(small, 1)
    assert next_seconds(small, runs, sources) is None
    shown, _, after = closing(small, table, runs, 2, sources)
    assert shown.startswith("Shown: 1 of 4 runs went to their end, and 1 of 1 rows are better")
    assert after.endswith("time: fractrain plan).")


def test_a_table_without_runs_has_no_last_words(small):
    table, _, sources = ready(small, 0)
    assert closing(small.model_copy(update={"rows": ()}), table, [], 1, sources) == ()

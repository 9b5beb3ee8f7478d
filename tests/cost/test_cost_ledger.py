"""The ledger itself: counting, saving and restoring, digest."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from fractrain.cost.ledger import Entry, Ledger, LedgerRow

CONV = [Entry("conv", "FW", 8, 8, 5), Entry("conv", "GC", 8, 6, 5)]


def filled(times: int = 1) -> Ledger:
    ledger = Ledger({"blocks": ["a", "b"], "forward_macs": 42, "batch_size": 4})
    for epoch in range(2):
        ledger.begin("train", epoch)
        ledger.samples(6 * times)
        ledger.count("conv", 6 * times, lambda: CONV)
        ledger.count_selected(
            ("a/0", "a/1", "a/2"),
            torch.tensor([1, 5, 0]) * times,
            lambda k: [Entry("a.conv", "FW", k + 2, 4, 10), Entry("a.conv", "EB", k + 6, 4, 10)],
        )
    ledger.begin("eval", 1)
    ledger.samples(3 * times)
    ledger.count("fw", 3 * times, lambda: [Entry("conv", "FW", 8, 8, 5)])
    return ledger


def test_rows_are_units_times_macs() -> None:
    rows = list(filled().rows())
    assert rows.count(LedgerRow("train", 0, "conv", "GC", 8, 6, 30)) == 1
    assert rows.count(LedgerRow("train", 1, "a.conv", "EB", 7, 4, 50)) == 1
    assert rows.count(LedgerRow("eval", 1, "conv", "FW", 8, 8, 15)) == 1
    assert len(rows) == 2 * (2 + 2 * 2) + 1  # candidate 2 was never chosen
    assert filled().epochs() == [0, 1]
    assert filled().epochs("eval") == [1]
    assert filled().sample_count("train", 1) == 6


def test_selected_counts_add_up_and_leave_the_callers_tensor_alone() -> None:
    ledger = Ledger()
    units = torch.tensor([2, 3])
    for _ in range(4):
        ledger.count_selected(("x/0", "x/1"), units, lambda k: [Entry("x", "FW", k + 1, 1, 1)])
    assert units.tolist() == [2, 3]
    assert [row.macs for row in ledger.rows()] == [8, 12]
    ledger.count_selected(("x/0", "x/1"), units, lambda k: [])  # after a read, and without defining anew
    assert [row.macs for row in ledger.rows()] == [10, 15]


def test_reading_in_between_changes_nothing() -> None:
    once, often = Ledger(), Ledger()
    for step in range(5):
        for ledger in (once, often):
            ledger.begin("train", step // 2)
            ledger.count_selected(("x/0", "x/1"), torch.tensor([step, 1]), lambda k: [Entry("x", "FW", k + 1, 1, 1)])
        often.digest()
    assert once.digest() == often.digest()


def test_disabled_counts_nothing() -> None:
    ledger = Ledger()
    empty = ledger.digest()
    ledger.enabled = False
    ledger.samples(1)
    ledger.count("conv", 6, lambda: CONV)
    ledger.count_selected(("x/0",), torch.tensor([1]), lambda k: CONV)
    assert ledger.digest() == empty
    assert list(ledger.rows()) == []


def test_state_survives_json_and_counting_goes_on() -> None:
    ledger, restored = filled(), Ledger()
    restored.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert list(restored.rows()) == list(ledger.rows())
    assert restored.state_dict() == ledger.state_dict()
    assert restored.digest() == ledger.digest()
    assert restored.meta == ledger.meta
    for one in (ledger, restored):
        one.begin("train", 1)
        one.samples(2)
        one.count("conv", 2, lambda: CONV)
        one.count_selected(("a/0", "a/1", "a/2"), torch.tensor([0, 0, 2]), lambda k: CONV)
    assert restored.digest() == ledger.digest()


def test_loading_replaces_what_was_counted_before() -> None:
    ledger = filled()
    ledger.count_selected(("z",), torch.tensor([9]), lambda k: CONV)  # still on the device
    ledger.load_state_dict(filled().state_dict())
    assert ledger.digest() == filled().digest()


def test_counts_of_another_process_are_added_to_those_made_here() -> None:
    ledger = filled()
    ledger.add(filled().state_dict())
    assert ledger.digest() == filled(times=2).digest()


def test_another_format_version_is_refused() -> None:
    with pytest.raises(ValueError, match="ledger format 99"):
        Ledger().load_state_dict({**filled().state_dict(), "version": 99})


def change(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    state = copy.deepcopy(filled().state_dict())
    place: Any = state
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("units", 0, -1), 4),
        (("units", 0, 1), 7),
        (("samples", 0, -1), 7),
        (("work", "conv", 0, 2), 7),  # a width
        (("work", "conv", 0, 4), 6),  # macs
        (("work", "conv", 0, 1), "EB"),
        (("work", "conv", 0, 0), "conv2"),
        (("meta", "forward_macs"), 43),
        (("meta", "blocks", 1), "c"),
    ],
)
def test_digest_changes_with_every_count_and_fact(path: tuple[Any, ...], value: Any) -> None:
    other = Ledger()
    other.load_state_dict(change(path, value))
    assert other.digest() != filled().digest()


def test_digest_does_not_depend_on_the_order_of_counting() -> None:
    one, two = Ledger(), Ledger()
    works = [("p", 3), ("q", 4), ("p", 1)]
    for ledger, order in ((one, works), (two, works[::-1])):
        for work, units in order:
            ledger.count(work, units, lambda work=work: [Entry(work, "FW", 8, 8, 5)])
    assert one.digest() == two.digest()

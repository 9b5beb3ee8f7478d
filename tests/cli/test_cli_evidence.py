"""``fractrain evidence``: a finished run becomes a record, and a changed digit anywhere in it is found."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from fractrain.report.evidence import FILES, SUMS, EvidenceStore, verify

COMMITTED = Path(__file__).parents[2] / "results" / "evidence"
RUN = "fractrain-resnet38-cifar10-s0-e0434f04f14e"


@pytest.fixture
def store(tmp_path):
    """A run store with one finished run (and a file that is no part of a record) and one that is not finished."""
    folder = tmp_path / "runs" / RUN
    shutil.copytree(COMMITTED / "cifar10-one-epoch" / RUN, folder)
    (folder / SUMS).unlink()
    (folder / "checkpoint.pt").write_bytes(b"weights")
    other = "sbm-resnet38-cifar10-s0-9df2383f4947"
    shutil.copytree(COMMITTED / "cifar10-one-epoch" / other, tmp_path / "runs" / other)
    (tmp_path / "runs" / other / "status.json").write_text('{"status": "running"}')
    return tmp_path / "runs"


def seal(folder: Path) -> None:
    """Write the digests again, as whoever changes a number on purpose would."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES]
    (folder / SUMS).write_text("".join(lines))


def test_committed_records_are_what_their_metrics_and_ledgers_say():
    store = EvidenceStore(COMMITTED)
    assert len(list(store.folders())) >= 12
    assert verify(store) == []


def test_add_copies_the_record_without_weights_and_verify_accepts_it(cli, store, tmp_path):
    made = cli("evidence", "add", "e0434f04f14e", "--campaign", "mine", "--evidence", "records")
    assert made.exit_code == 0, made.stderr
    folder = tmp_path / "records" / "mine" / RUN
    assert made.stdout.strip() == str(folder.relative_to(tmp_path))
    assert {f.name for f in folder.iterdir()} == {*FILES, SUMS}
    assert all((folder / f).read_bytes() == (store / RUN / f).read_bytes() for f in FILES)
    checked = cli("evidence", "verify", "--evidence", "records")
    assert (checked.exit_code, checked.stdout) == (0, "")
    assert "1 records in records: 0 differences" in checked.stderr
    assert EvidenceStore(tmp_path / "records").get(RUN).summary["test_accuracy_best"] == 38.75
    again = cli("evidence", "add", RUN, "--campaign", "mine", "--evidence", "records", "--json")
    assert json.loads(again.stdout)["campaign"] == "mine"


@pytest.mark.parametrize(
    ("name", "digit"),
    [
        ("summary.json", (r'"test_accuracy_best": 38\.75', '"test_accuracy_best": 38.85')),
        ("summary.json", (r'"bitops@end": 298994313461760', '"bitops@end": 298994313461761')),
        ("summary.json", (r'"best_test_iteration": 391', '"best_test_iteration": 390')),
        ("metrics.jsonl", (r'"test_accuracy": 38\.75', '"test_accuracy": 38.76')),
        ("metrics.jsonl", (r'"train_loss": 1\.8', '"train_loss": 1.9')),
        ("ledger.json", (r'\.\.",10000\]', '..",10001]')),
        ("config.json", (r'"seed": 0', '"seed": 1')),
    ],
)
@pytest.mark.parametrize("on_purpose", [False, True])
def test_a_changed_digit_is_found_even_with_its_digest(cli, store, tmp_path, name, digit, on_purpose):
    cli("evidence", "add", RUN, "--campaign", "mine", "--evidence", "records")
    folder = tmp_path / "records" / "mine" / RUN
    text = (folder / name).read_text()
    changed = re.sub(*digit, text, count=1)
    assert changed != text
    (folder / name).write_text(changed)
    if on_purpose:
        seal(folder)
    result = cli("evidence", "verify", "--evidence", "records")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines
    assert all(line.startswith("records/mine/") for line in lines)
    assert on_purpose or f"records/mine/{RUN}/{name}: changed since it was added" in lines
    assert "Traceback" not in result.stderr


def test_a_record_that_lacks_a_file_or_a_line_is_named(cli, store, tmp_path):
    cli("evidence", "add", RUN, "--campaign", "mine", "--evidence", "records")
    folder = tmp_path / "records" / "mine" / RUN
    (folder / "metrics.jsonl").write_text("")
    seal(folder)
    assert "metrics.jsonl does not have the 1 epochs" in cli("evidence", "verify", "--evidence", "records").stdout
    (folder / "ledger.json").unlink()
    assert "ledger.json is missing" in cli("evidence", "verify", "--evidence", "records").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing", "--campaign", "mine"), "no run 'nothing' in "),
        (("sbm-resnet38", "--campaign", "mine"), "has status 'running': only finished runs are evidence"),
        ((RUN, "--campaign", "../mine"), "campaign '../mine': use letters"),
    ],
)
def test_what_cannot_be_added_is_one_line(cli, store, args, message):
    result = cli("evidence", "add", *args, "--evidence", "records")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_is_added_unless_all_are_finished_and_nothing_is_replaced(cli, store, tmp_path):
    both = cli("evidence", "add", RUN, "sbm-resnet38", "--campaign", "mine", "--evidence", "records")
    assert both.exit_code == 2
    assert not (tmp_path / "records").exists()
    cli("evidence", "add", RUN, "--campaign", "mine", "--evidence", "records")
    (store / RUN / "environment.json").write_text("{}")
    other = cli("evidence", "add", RUN, "--campaign", "mine", "--evidence", "records")
    assert other.exit_code == 2
    assert "holds another record of this run" in other.stderr

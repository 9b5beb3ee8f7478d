"""Documents made from the records: what is committed is what they give, and a changed digit is found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import scaling_fakes
from store_fakes import FakeStore

from fractrain.report.campaign import load_campaign
from fractrain.report.documents import BEGIN, END, section, verify_documents, write_documents
from fractrain.report.evidence import EvidenceStore
from fractrain.report.scaling import build_scaling
from fractrain.util.errors import StoreError

ROOT = Path(__file__).parents[2]
STORE = EvidenceStore(ROOT / "results" / "evidence")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "README.md").write_text(f"# Head\n\n{BEGIN}\n{END}\n\nTail 1.5\n")
    write_documents(STORE, root)
    return root


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_committed_is_what_the_records_give():
    assert BEGIN in (ROOT / "README.md").read_text()
    assert verify_documents(STORE, ROOT) == []


def test_the_section_stands_between_the_marks_and_nothing_else_changes(copy):
    text = (copy / "README.md").read_text()
    assert text.startswith(f"# Head\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nTail 1.5\n")
    assert "Claims of the FracTrain and DYNASTY abstracts" in text
    assert "](results/figures/scaling.svg)" in text
    assert (copy / "results" / "figures" / "scaling.svg").is_file()
    assert verify_documents(STORE, copy) == []
    write_documents(STORE, copy)
    assert (copy / "README.md").read_text() == text


@pytest.mark.parametrize("name", ["README.md", "results/tables/scaling.md"])
def test_a_changed_digit_is_found(copy, name):
    path = copy / name
    changed = re.sub(r"-0\.12", "-0.13", path.read_text(), count=1)
    assert changed != path.read_text()
    path.write_text(changed)
    (line,) = verify_documents(STORE, copy)
    assert line.startswith(f"{path}, line ")
    assert "-0.13" in line


def test_a_line_too_many_is_found_and_text_outside_is_free(copy):
    path = copy / "results" / "tables" / "scaling.md"
    path.write_text(path.read_text() + "more\n")
    (line,) = verify_documents(STORE, copy)
    assert "lines, from the records" in line
    path.unlink()
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace("Tail 1.5", "Tail 2.5"))
    assert verify_documents(STORE, copy) == []


def test_a_readme_without_the_marks_is_not_written(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(StoreError, match="between which the results belong"):
        write_documents(STORE, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_gaps_in_the_section_are_those_of_the_table():
    store = FakeStore()
    scaling_fakes.fill(store, load_campaign("scaling"), count=30)
    scaling = build_scaling(load_campaign("scaling"), store, scaling_fakes.sources())
    text = section(scaling, [])
    gap = scaling.gap("cifar10", "fractrain", "sbm")
    line = next(li for li in text.splitlines() if re.match(r"\| CIFAR-10 +\| FracTrain +\|", li))
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells[0] == f"{gap.at['1/64'].mean:+.2f} ± {gap.at['1/64'].half_width:.2f}"
    assert cells[2] == "not run"
    assert cells[3].startswith(f"{gap.trend.predicted:+.2f} [")
    assert cells[4:] == ["-0.12", str(gap.verdict)]
    assert "**30 of 75 runs of the campaign are done** (the first 30 without a gap)" in text
    assert "reproduced" not in text

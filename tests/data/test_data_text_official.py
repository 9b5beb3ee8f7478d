"""The official files of a text are known by their checksum, in whatever form they are; other texts are refused."""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
import types
from dataclasses import replace

import pytest
from click.testing import CliRunner
from text_corpus import load, loop_tokens

from fractrain.cli import main
from fractrain.data import registry, text_files
from fractrain.data.text_files import official_sha256
from fractrain.util.errors import DataError


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def official(corpus, monkeypatch):
    """As ``corpus``, with the checksums of the validation and test files known, as of the WikiTexts."""
    root, texts, entry = corpus
    entry = replace(entry, checksums=("", sha256(texts["valid"]), sha256(texts["test"])))
    monkeypatch.setattr(registry, "info", lambda name: entry)
    return root, texts, entry


def swapped(content: str) -> str:
    """Another text of the same words: counts do not tell them apart."""
    lines = content.split("\n")
    first, second = [i for i, line in enumerate(lines) if len(line.split()) == 3][:2]
    assert lines[first] != lines[second]
    lines[first], lines[second] = lines[second], lines[first]
    made = "\n".join(lines)
    assert sorted(loop_tokens(made)) == sorted(loop_tokens(content))
    return made


def hub(monkeypatch, texts):
    """A package ``datasets`` that has these texts."""

    class Rows(list):
        def iter(self, batch_size):
            yield {"text": list(self)}

    def load_dataset(name, config, revision, split):
        lines = texts["valid" if split == "validation" else split].splitlines(keepends=True)
        return Rows(line if line.strip() else "" for line in lines)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


# -- the checksum ------------------------------------------------------------------------------------------------------


def test_the_checksum_of_an_official_file_is_that_of_its_bytes(corpus, monkeypatch):
    root, texts, _ = corpus
    monkeypatch.setattr(text_files, "BLOCK", 97)
    for part, found in text_files.find_files(root / "wikitext-2", "wikitext-2").items():
        content = texts["valid" if part == "val" else part]
        assert official_sha256(found.blocks()) == sha256(content) == hashlib.sha256(
            found.paths[0].read_bytes()
        ).hexdigest()  # fmt: skip


def test_other_containers_and_other_white_space_have_the_same_checksum(corpus, tmp_path):
    from pyarrow import parquet, table

    _, texts, _ = corpus
    content = texts["test"]
    rows = [line if line.strip() else "" for line in content.splitlines(keepends=True)]
    parquet.write_table(table({"text": rows}), tmp_path / "test.parquet")
    (tmp_path / "test.xz").write_bytes(lzma.compress(content.encode()))
    (tmp_path / "test.txt").write_text("".join(line.strip() + "\n" for line in content.splitlines()))
    (tmp_path / "windows.txt").write_bytes(content.replace("\n", "\r\n").encode())
    for file in tmp_path.glob("*.*"):
        assert official_sha256(text_files.TextFiles((file,)).blocks()) == sha256(content), file.name
    assert official_sha256([swapped(content)]) != sha256(content)


def test_what_is_known_of_the_wikitexts():
    sums = [registry.info(name).checksums for name in ("wikitext2", "wikitext103")]
    for train, *others in sums:
        assert train == ""  # articles in another order are no other data set
        assert all(len(bytes.fromhex(other)) == 32 for other in others)
    assert len({other for known in sums for other in known[1:]}) == 4  # the two WikiTexts have no file in common


# -- status, verify and use --------------------------------------------------------------------------------------------


def test_official_files_are_compared_without_reading_the_training_text(official):
    root, _, _ = official
    (root / "wikitext-2" / "wiki.train.tokens").write_bytes(b"\xff not read")
    found = registry.status("wikitext2", root)
    assert found.ok
    assert {file.path.split(".")[-2]: file.state for file in found.files} == {
        "test": "ok", "train": "unchecked", "valid": "ok",
    }  # fmt: skip
    assert found.state == "unchecked"


def test_official_files_are_verified(official):
    root, _, entry = official
    found = registry.verify("wikitext2", root)
    assert (found.state, {file.state for file in found.files}) == ("ready", {"ok"})
    assert {file.expected for file in found.files} == set(entry.checksums)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_another_text_with_the_same_counts_differs(official, part):
    root, texts, entry = official
    path = root / "wikitext-2" / f"wiki.{part}.tokens"
    path.write_text(swapped(texts[part]), encoding="utf-8")
    found = registry.status("wikitext2", root)
    assert (found.ok, found.state) == (False, "not ready")
    bad = [file for file in found.files if file.state != "ok" and "train" not in file.path]
    assert [(file.path, file.state) for file in bad] == [(str(path), "differs")]
    assert bad[0].found == sha256(swapped(texts[part]))
    assert bad[0].expected == sha256(texts[part])
    shown = CliRunner().invoke(main, ["data", "status", "wikitext2", "--data-dir", str(root)]).output.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith(f"wikitext2  not ready: wikitext2: {path} differs from the official file: sha256")
    assert "put the official files into" in shown[1]
    listed = CliRunner().invoke(main, ["data", "status", "wikitext2", "--data-dir", str(root), "--json"])
    assert sorted(file["state"] for file in json.loads(listed.stdout)[0]["files"]) == ["differs", "ok", "unchecked"]
    for use in (lambda: registry.verify("wikitext2", root), lambda: load(entry, root)):
        with pytest.raises(DataError, match=rf"wiki\.{part}\.tokens differs from the official file: .*take") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not list(root.rglob("record.json"))  # as with other counts: it is not used


def test_a_training_text_in_another_order_is_used(official):
    root, texts, entry = official
    digest = load(entry, root).digest
    (root / "wikitext-2" / "wiki.train.tokens").write_text(swapped(texts["train"]), encoding="utf-8")
    assert load(entry, root).digest != digest
    assert registry.verify("wikitext2", root).state == "ready"


def test_a_text_of_the_hub_is_compared_too(official, tmp_path, monkeypatch):
    root, texts, entry = official
    hub(monkeypatch, {**texts, "test": swapped(texts["test"])})
    with pytest.raises(DataError, match=r"wikitext-2-v1 \(test\) differs from the official file"):
        load(entry, tmp_path / "new", download=True)
    assert not list(tmp_path.rglob("record.json"))
    hub(monkeypatch, texts)
    assert load(entry, tmp_path / "new", download=True).digest == load(entry, root).digest


def test_a_file_that_is_no_text_is_unreadable(official):
    root, _, _ = official
    path = root / "wikitext-2" / "wiki.valid.tokens"
    path.write_bytes(b"\xff garbage")
    found = registry.status("wikitext2", root)
    assert not found.ok
    assert [file.state for file in found.files] == ["ok", "unchecked", "unreadable"]
    assert found.message.startswith(f"wikitext2: {path} cannot be read as text: ")

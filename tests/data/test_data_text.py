from __future__ import annotations

import json
import lzma
import math
import os
import pickle
import subprocess
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from text_corpus import lines, load, loop_tokens

from fractrain.cli import main
from fractrain.data import embedded_text, registry, text, text_cache, text_files
from fractrain.data.text_files import expected_sha256, official_sha256
from fractrain.data.text_stream import IGNORED, TextEvalStream, TextTrainStream
from fractrain.data.tokens import FileTokens, MemoryTokens
from fractrain.data.vocabulary import UNK, Vocabulary, by_frequency, count_words
from fractrain.util.errors import ConfigError, DataError, MachineError

REAL = os.environ.get("FRACTRAIN_TEST_WIKITEXT")


# -- vocabulary and tokens --------------------------------------------------------------------------------------------


def test_vocabulary_and_tokens_against_a_slow_loop(corpus, monkeypatch):
    root, texts, entry = corpus
    monkeypatch.setattr(text_files, "BLOCK", 97)  # blocks shorter than some lines
    data = load(entry, root)
    counts = Counter(loop_tokens(texts["train"]))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = (data.folder / text_cache.WORDS).read_text(encoding="utf-8").splitlines()
    assert list(words) == ranked
    for part, name in ((data.train, "train"), (data.val, "valid"), (data.test, "test")):
        expected = [ranked.index(word) for word in loop_tokens(texts[name])]
        assert part.windows([0], len(part))[0].tolist() == expected
        assert part.counts(entry.classes).tolist() == [expected.count(i) for i in range(entry.classes)]
    assert data.train.dtype == "<u2"


def test_the_order_of_articles_does_not_change_the_vocabulary():
    one, two = count_words(["b a\n", "c a\n"]), count_words(["c a\n", "b a\n"])
    assert by_frequency(one) == by_frequency(two) == ["<eos>", "a", "b", "c"]
    assert by_frequency(one, 2) == ["<eos>", "a"]


def test_large_vocabularies_get_wider_numbers():
    many = Vocabulary([str(i) for i in range(65_537)])
    assert many.encode(["65536"]).tolist() == [65_536]
    assert many.encode(["0"]).dtype == np.int32
    assert Vocabulary([str(i) for i in range(65_536)]).encode(["65535"]).tolist() == [65_535]


def test_prepared_once_then_read_and_the_same_from_packed_files(corpus, tmp_path):
    root, texts, entry = corpus
    first = load(entry, root)
    stamp = (first.folder / "train.npy").stat().st_mtime_ns
    assert load(entry, root).digest == first.digest
    assert (first.folder / "train.npy").stat().st_mtime_ns == stamp
    other = tmp_path / "other"
    other.mkdir()
    for part, content in texts.items():
        (other / f"wikitext-2.{part}.txt.xz").write_bytes(lzma.compress(content.encode()))
    packed = load(entry, other)
    assert packed.folder.parent == other
    assert packed.digest == first.digest
    assert not list(root.rglob(".tokens-*-*.tmp"))


def test_parquet_files_as_on_the_hub(corpus, tmp_path):
    from pyarrow import parquet, table

    root, texts, entry = corpus
    digest = load(entry, root).digest
    folder = tmp_path / "hub" / "wikitext-2-v1"
    folder.mkdir(parents=True)
    for part, content in texts.items():
        rows = [line if line.strip() else "" for line in content.splitlines(keepends=True)]  # empty lines are ""
        half = len(rows) // 2
        split = "validation" if part == "valid" else part
        parquet.write_table(table({"text": rows[:half]}), folder / f"{split}-00000-of-00002.parquet")
        parquet.write_table(table({"text": rows[half:]}), folder / f"{split}-00001-of-00002.parquet")
    assert load(entry, folder.parent).digest == digest


def test_a_changed_source_is_prepared_anew(corpus):
    root, texts, entry = corpus
    first = load(entry, root)
    swapped = texts["train"].split("\n")
    swapped[0], swapped[1] = " w1 w2 w3 ", " "
    changed = "\n".join(swapped)
    (root / "wikitext-2" / "wiki.train.tokens").write_text(changed, encoding="utf-8")
    second = load(replace(entry, train_size=0), root)
    assert second.folder != first.folder
    assert second.digest != first.digest
    assert len(second.train) == len(loop_tokens(changed))


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_test_part_of_another_release_is_an_error_that_names_the_word(corpus):
    root, texts, entry = corpus
    (root / "wikitext-2" / "wiki.test.tokens").write_text(texts["test"].replace("é", "stranger"), encoding="utf-8")
    with pytest.raises(DataError, match=r"wiki\.test\.tokens has the word 'stranger'.*one release") as caught:
        load(entry, root)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("record.json"))  # nothing half-made


def test_another_vocabulary_is_an_error(corpus):
    root, _, entry = corpus
    with pytest.raises(DataError, match=f"vocabulary has {entry.classes} words, that of the data set 99"):
        load(replace(entry, classes=99), root)
    with pytest.raises(DataError, match=r"train part has .* tokens"):
        load(replace(entry, train_size=5), root)
    load(entry, root)
    with pytest.raises(DataError, match=r"test part has .* another release"):  # prepared before, read now
        load(replace(entry, test_size=5), root)


@pytest.mark.parametrize("damage", ["record", "tokens", "gone"])
def test_a_damaged_preparation_is_named(corpus, damage):
    root, _, entry = corpus
    folder = load(entry, root).folder
    if damage == "record":
        (folder / "record.json").write_text("{")
    elif damage == "tokens":
        path = folder / "test.npy"
        path.write_bytes(path.read_bytes()[:-20])
    else:
        (folder / "val.npy").unlink()
    with pytest.raises(DataError, match=r"is damaged .* made anew"):
        load(entry, root)


def test_verify_reads_the_tokens(corpus):
    root, _, entry = corpus
    folder = load(entry, root).folder
    assert text_cache.check(text_cache.open_prepared(entry, folder)) == ""
    path = folder / "test.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "test.npy has changed" in text_cache.check(text_cache.open_prepared(entry, folder))


def test_missing_files(corpus, tmp_path):
    root, _, entry = corpus
    with pytest.raises(DataError, match=r"is not in .*empty.*wikitext-2/wiki.*fractrain data fetch wikitext2"):
        load(entry, tmp_path / "empty")
    (root / "wikitext-2" / "wiki.train.tokens").unlink()
    with pytest.raises(DataError, match="has no train text"):
        load(entry, root)
    (root / "wikitext-2" / "wiki.train.tokens").write_bytes(b" \xff\xfe \n")
    with pytest.raises(DataError, match=r"wiki\.train\.tokens cannot be read as text"):
        load(entry, root)
    with pytest.raises(ConfigError, match="validation part of its own"):
        load(entry, root, val_fraction=0.1)


def test_a_folder_that_cannot_be_written(corpus, monkeypatch, tmp_path):
    root, _, entry = corpus
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FRACTRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write .* set FRACTRAIN_CACHE"):
        load(entry, root)
    monkeypatch.setenv("FRACTRAIN_CACHE", str(tmp_path / "cache"))
    assert load(entry, root).folder.parent == tmp_path / "cache"


# -- the hub ----------------------------------------------------------------------------------------------------------


class FakeRows:
    def __init__(self, content: str) -> None:
        self.rows = [line if line.strip() else "" for line in content.splitlines(keepends=True)]

    def iter(self, batch_size: int):
        for start in range(0, len(self.rows), batch_size):
            yield {"text": self.rows[start : start + batch_size]}


def test_the_hub_is_asked_only_with_the_download_flag(corpus, tmp_path, monkeypatch):
    root, texts, entry = corpus
    digest = load(entry, root).digest
    asked = []

    def load_dataset(name, config, revision, split):
        asked.append((name, config, revision, split))
        return FakeRows(texts["valid" if split == "validation" else split])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="fractrain data fetch"):
        load(entry, tmp_path / "new")
    assert asked == []
    assert load(entry, tmp_path / "new", download=True).digest == digest
    assert {a[:3] for a in asked} == {("Salesforce/wikitext", "wikitext-2-v1", text._REVISION)}
    assert len(text._REVISION) == 40
    asked.clear()
    assert load(entry, tmp_path / "new").digest == digest  # prepared: neither flag nor network is needed any more
    assert load(entry, tmp_path / "new", download=True).digest == digest
    assert asked == []


def test_no_network_is_one_line(corpus, tmp_path, monkeypatch):
    _, _, entry = corpus

    def load_dataset(*args, **options):
        raise ConnectionError("cannot reach\nthe hub")

    agreed = types.SimpleNamespace(HF_HUB_OFFLINE=True)  # as it has it where the variable was set before it was loaded
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=agreed))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MachineError, match=r"cannot reach the hub; HF_HUB_OFFLINE is set") as caught:
        load(entry, tmp_path / "new", download=True)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="pip install datasets"):
        load(entry, tmp_path / "new", download=True)


# -- streams ----------------------------------------------------------------------------------------------------------


def ramp(n: int) -> MemoryTokens:
    return MemoryTokens(np.arange(n, dtype=np.uint16))


@given(st.integers(1, 12), st.integers(0, 60), st.integers(1, 7), st.integers(0, 2**40), st.integers(0, 3))
def test_train_windows_lie_side_by_side(context, extra, batch_size, seed, epoch):
    n = 2 * context + extra
    stream = TextTrainStream(ramp(n), context, batch_size, seed, "cpu")
    batches = [stream.batch(epoch, i) for i in range(len(stream))]
    x, y = (torch.cat([b[k] for b in batches]) for k in range(2))
    assert x.shape == ((n - context) // context, context)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)  # of the ramp: the target is the next word
    starts = sorted(x[:, 0].tolist())
    assert 0 <= starts[0] < context
    assert starts == [starts[0] + i * context for i in range(len(starts))]
    assert y.max() < n
    last = len(stream) - 1
    again = TextTrainStream(ramp(n), context, batch_size, seed, "cpu").batch(epoch, last)  # asked for directly
    assert torch.equal(again[0], batches[last][0])


def test_order_and_offset_change_with_epoch_and_seed_only():
    def starts(seed, epoch, batch_size=4):
        return TextTrainStream(ramp(400), 10, batch_size, seed, "cpu").starts(epoch).tolist()

    assert starts(0, 0) == starts(0, 0, batch_size=7)
    assert starts(0, 0) != starts(0, 1)
    assert starts(0, 0) != starts(1, 0)
    assert len({starts(0, epoch)[0] % 10 for epoch in range(30)}) > 5
    with pytest.raises(IndexError):
        TextTrainStream(ramp(400), 10, 4, 0, "cpu").batch(0, 10)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50), st.integers(1, 5))
def test_every_word_but_the_first_is_scored_once(context, stride, extra, batch_size):
    n, stride = context + 1 + extra, min(context, stride)
    stream = TextEvalStream(ramp(n), context, stride, batch_size, "cpu")
    batches = list(stream)
    assert len(batches) == len(stream)
    scored = []
    for x, y in batches:
        assert x.shape == y.shape
        assert x.shape[1] == context
        assert torch.equal(torch.where(y == IGNORED, x + 1, y), x + 1)
        scored += y[y != IGNORED].tolist()
    assert scored == list(range(1, n))
    rows = torch.cat([y for _, y in batches])
    for row in rows[1:]:  # context - stride words, or more, stand before every scored one
        assert int((row == IGNORED).sum()) >= context - stride


def test_evaluation_by_hand():
    stream = TextEvalStream(ramp(9), context=4, stride=2, batch_size=2, device="cpu")
    x, y = stream.batch(0)
    assert x.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert y.tolist() == [[1, 2, 3, 4], [IGNORED, IGNORED, 5, 6]]
    x, y = stream.batch(1)
    assert x.tolist() == [[4, 5, 6, 7]]
    assert y.tolist() == [[IGNORED, IGNORED, 7, 8]]
    assert len(stream) == 2
    assert torch.equal(list(stream)[1][0], list(stream)[1][0])


def test_streams_refuse_what_makes_no_sense():
    for build in (
        lambda: TextTrainStream(ramp(19), 10, 4, 0, "cpu"),
        lambda: TextTrainStream(ramp(50), 10, 0, 0, "cpu"),
        lambda: TextEvalStream(ramp(10), 10, 10, 4, "cpu"),
        lambda: TextEvalStream(ramp(50), 10, 11, 4, "cpu"),
        lambda: TextEvalStream(ramp(50), 10, 0, 4, "cpu"),
    ):
        with pytest.raises(ConfigError):
            build()


def test_tokens_in_a_file_travel_as_a_path(tmp_path):
    array = np.arange(1_000_000, dtype=np.int32) % 70_000
    np.save(tmp_path / "a.npy", array)
    tokens = FileTokens.open(tmp_path / "a.npy")
    assert len(pickle.dumps(tokens)) < 1_000
    copy = pickle.loads(pickle.dumps(tokens))
    assert np.array_equal(copy.windows([5, 999_990], 10), np.stack([array[5:15], array[999_990:]]))


MEMORY = """
import re, sys
from dataclasses import replace
from pathlib import Path
from fractrain.data import registry, text_cache, text_files, text_stream
def peak():  # not ru_maxrss, which a process inherits from its parent: growth below that would not be seen
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
folder = Path(sys.argv[1])
entry = replace(registry.info("wikitext2"), classes=0, train_size=0, val_size=0, test_size=0,
                checksums=("", "", ""))
texts = text_files.find_files(folder, "wikitext-2")
before = peak()
prepared = text_cache.prepare_text(entry, texts, text_cache.cache_folder("x", texts, folder))
stream = text_stream.TextTrainStream(prepared.parts["train"], 128, 16, 0, "cpu")
for index in range(50):
    stream.batch(0, index)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_preparing_takes_far_less_memory_than_the_text(tmp_path):
    once = lines(3, 40_000, words=2_000)
    (tmp_path / "train.txt").write_text(once * 32)
    (tmp_path / "valid.txt").write_text(once)
    (tmp_path / "test.txt").write_text(once)
    size = (tmp_path / "train.txt").stat().st_size // 2**20
    assert size >= 15
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert int(done.stdout) < 60  # blocks of 1 MiB and their words; the words of 15 MB would be 150


# -- the trivial predictor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_unigram_perplexity_against_a_loop(corpus, split):
    root, texts, entry = corpus
    counts = Counter(loop_tokens(texts["train"]))
    total = sum(counts.values()) + entry.classes
    scored = loop_tokens(texts["valid" if split == "val" else "test"])[1:]
    nll = sum(-math.log((counts[word] + 1) / total) for word in scored) / len(scored)
    assert text.unigram_perplexity(load(entry, root), split) == pytest.approx(math.exp(nll), rel=1e-12)


# -- the embedded text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs():
    return registry.load("docs_text")


def test_embedded_text_is_what_the_registry_says(docs):
    import sklearn

    info = docs.info
    assert info.kind == "text"
    assert info.stands_for == "wikitext103"
    assert len(docs.words) == info.classes == len(set(docs.words))
    assert (len(docs.train), len(docs.val), len(docs.test)) == (info.train_size, info.val_size, info.test_size)
    if sklearn.__version__ == "1.9.1":
        assert docs.digest == embedded_text.CONTENT
        assert info == registry.info("docs_text")
    counts = docs.train.counts(info.classes)
    assert (np.diff(counts) <= 0).all()  # by falling frequency, <unk> among them
    assert counts[docs.words.index(UNK)] / counts.sum() < 0.02
    assert 200 < text.unigram_perplexity(docs) < 500


def test_embedded_parts_share_no_paragraph(docs):
    eos = docs.words.index("<eos>")

    def paragraphs(tokens):
        ids = tokens.windows([0], len(tokens))[0]
        return {tuple(part[:-1]) for part in np.split(ids, np.flatnonzero(ids == eos) + 1) if len(part) > 30}

    train = paragraphs(docs.train)
    for part in (docs.val, docs.test):
        found = paragraphs(part)
        assert len(found) > 50
        assert not found & train


def test_articles_by_hand(tmp_path):
    (tmp_path / "b.py").write_text('"""Short."""\n')
    (tmp_path / "a.py").write_text(
        '"""The first paragraph of this module has two lines\nof text, with ``code`` and 2.5 apples.\n\n'
        "Parameters\n----------\nx : int, default=3\n    The text of a parameter, which says what it is for.\n\n"
        'Examples\n--------\nThis sentence belongs to an example and is left out of the text.\n"""\n\n'
        'def f():\n    """The first paragraph of this module has two lines\n    '
        'of text, with code and 2.5 apples.\n    """\n'
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "c.py").write_text('"""A paragraph in a test file that is long enough to be counted."""\n')
    assert [" ".join(words) for words in embedded_text.articles(tmp_path)] == [
        "the first paragraph of this module has two lines of text , with code and 2 . 5 apples . <eos> "
        "parameters the text of a parameter , which says what it is for . <eos>"
    ]


# -- registry and commands --------------------------------------------------------------------------------------------


def test_official_facts():
    two, big = registry.info("wikitext2"), registry.info("wikitext103")
    assert (two.classes, two.train_size, two.val_size, two.test_size) == (33_278, 2_088_628, 217_646, 245_569)
    assert (big.classes, big.train_size, big.val_size, big.test_size) == (267_735, 103_227_021, 217_646, 245_569)
    assert big.protocol == "perplexity per word token, context 512, stride 512"
    assert registry.info("docs_text").protocol == "perplexity per word token, context 64, stride 64"


def test_status_fetch_and_verify(corpus, monkeypatch, tmp_path):
    root, _, entry = corpus
    monkeypatch.setattr(registry, "info", lambda name: entry)
    missing = registry.status("wikitext2", tmp_path / "nowhere")
    assert not missing.ok
    assert missing.download_bytes == entry.bytes
    assert "fractrain data fetch wikitext2" in missing.advice
    found = registry.fetch("wikitext2", root)  # there already: nothing is asked of any network
    assert found.ok
    assert len(found.files) == 3
    assert found.chosen_by == "--data-dir"
    checked = registry.verify("wikitext2", root)
    assert f"{entry.train_size:,} training" in checked.message
    assert checked.digest == load(entry, root).digest
    assert "not read" not in checked.message
    assert (checked.state, {file.state for file in checked.files}) == ("ready", {"ok"})
    again = registry.status("wikitext2", root)
    assert again.ok
    assert (again.state, {file.state for file in again.files}) == ("unchecked", {"unchecked"})


def test_status_does_not_call_ready_what_it_has_not_read(corpus, monkeypatch):
    root, _, entry = corpus
    monkeypatch.setattr(registry, "info", lambda name: entry)
    (root / "wikitext-2" / "wiki.test.tokens").write_bytes(b"\xff garbage")
    shown = CliRunner().invoke(main, ["data", "status", "wikitext2", "--data-dir", str(root)])
    assert shown.output.startswith("wikitext2  unchecked: ")
    assert "not read yet; `fractrain data verify wikitext2` reads them" in shown.output
    found = CliRunner().invoke(main, ["data", "status", "wikitext2", "--data-dir", str(root), "--json"])
    assert [file["state"] for file in json.loads(found.stdout)[0]["files"]] == ["unchecked"] * 3
    with pytest.raises(DataError, match=r"wiki\.test\.tokens"):
        registry.verify("wikitext2", root)


def test_embedded_status():
    found = registry.verify("docs_text")
    assert found.ok
    assert found.embedded
    assert found.test_size == registry.info("docs_text").test_size


@pytest.mark.skipif(not REAL, reason="FRACTRAIN_TEST_WIKITEXT names no folder with the real files")
def test_the_real_wikitext2(monkeypatch, tmp_path):
    monkeypatch.setenv("FRACTRAIN_CACHE", str(tmp_path))
    data = registry.load("wikitext2", Path(str(REAL)))
    words = (data.folder / text_cache.WORDS).read_text(encoding="utf-8").splitlines()
    assert len(words) == 33_278
    assert (len(data.train), len(data.val), len(data.test)) == (2_088_628, 217_646, 245_569)
    assert words[:4] == ["the", ",", ".", "of"]
    assert data.test.counts(33_278)[words.index("<unk>")] == 15_218
    for name in ("wikitext-2", "wikitext-103"):
        info = registry.info(name.replace("-", ""))
        for part, files in text_files.find_files(Path(str(REAL)), name).items():  # WikiText-103 may be there in part
            sizes = {"train": info.train_size, "val": info.val_size, "test": info.test_size}
            assert count_words(files.blocks()).total() == sizes[part]
            if part != "train":  # WikiText-2's at hand may have its articles in another order
                assert official_sha256(files.blocks()) == expected_sha256(info, part)
    assert data.test.windows([0], 5)[0].tolist() == [words.index(w) for w in ("<eos>", "=", "Robert", "<unk>", "=")]

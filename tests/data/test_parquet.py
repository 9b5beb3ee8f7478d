"""ImageNet as rows of a table: what is read by whom, in which order, and what is said when it cannot be read."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import ROWS, entry, install, jpeg, one_line, write_parquet

from fractrain.data import registry
from fractrain.data.batches import Batching
from fractrain.data.decode import decode, eval_pixels
from fractrain.data.parquet import ParquetSplit, window_shuffle
from fractrain.data.parquet_data import RowFetcher
from fractrain.data.shards import Sharding, rank_positions
from fractrain.util.errors import DataError, MachineError

pytestmark = pytest.mark.usefixtures("plain_environment")


def test_rows_are_evaluated_in_order(parquet, tmp_path):
    data = registry.load("imagenet", tmp_path)
    loader = data.eval_stream("test", 3, torch.device("cpu"))
    assert len(loader) == 3
    assert torch.cat([y for _, y in loader]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    found = RowFetcher(data.test, Batching((32, 32), 7)).fetch(0, 0).images
    expected = [torch.tensor(eval_pixels(decode(jpeg(900 + i)), (32, 32))) for i in range(7)]
    assert torch.equal(found, torch.stack(expected))


def test_rows_are_a_function_of_seed_epoch_and_index(parquet, tmp_path):
    part = registry.load("imagenet", tmp_path).train

    def batches(order, threads=1, seed=5, **more):
        fetcher = RowFetcher(part, Batching((16, 16), 8, seed, True, True, **more), threads=threads)
        return {at: fetcher.fetch(*at) for at in order}

    order = [(e, i) for e in (0, 1) for i in range(4)]
    straight = batches(order)
    jumping = batches([(1, 2), (1, 3), (0, 3), (0, 0), (1, 0)], threads=3)
    for at, found in jumping.items():
        assert torch.equal(found.images, straight[at].images)
        assert torch.equal(found.labels, straight[at].labels)
    epochs = [torch.cat([straight[e, i].images for i in range(4)]) for e in (0, 1)]
    assert [len(e) for e in epochs] == [ROWS, ROWS]
    assert not torch.equal(*epochs)
    assert not torch.equal(batches([(0, 0)], seed=6)[0, 0].images, straight[0, 0].images)
    for world in (2, 3, 4):  # the last batch has 6 rows, so shards are empty in it, or belong to two of three ranks
        ranks = [batches(order, rank=r, world=world) for r in range(world)]
        for at in order:
            assert torch.equal(torch.cat([rank[at].images for rank in ranks]), straight[at].images)


def test_each_rank_reads_its_own_rows_only(parquet, tmp_path, monkeypatch):
    read = []
    take = ParquetSplit._take

    def taken(self, rows, number):
        read.append(number)
        return take(self, rows, number)

    monkeypatch.setattr(ParquetSplit, "_take", taken)
    data = registry.load("imagenet", tmp_path)

    def rows_of(rank, world):
        read.clear()
        fetcher = RowFetcher(data.train, Batching((16, 16), 8, 5, rank=rank, world=world))
        for index in range(len(fetcher)):
            fetcher.fetch(0, index)
        return sorted(read)

    for world in (1, 2, 4, 8):
        shares = [rows_of(rank, world) for rank in range(world)]
        assert sorted(itertools.chain(*shares)) == list(range(ROWS))
        assert max(map(len, shares)) - min(map(len, shares)) <= 4  # a row in each of the 4 batches

    def scored(rank, world):
        read.clear()
        labels = torch.cat([y for _, y in data.eval_stream("test", 1, torch.device("cpu")).shard(rank, world)])
        return labels.tolist(), sorted(set(read))

    assert scored(0, 1) == ([0, 1, 2, 0, 1, 2, 0], list(range(7)))
    assert scored(1, 2) == ([0, 1, 2, 0], [3, 4, 5, 6])  # the rows before are not read
    labels, rows = scored(0, 2)
    assert labels == [0, 1, 2]
    assert set(rows) <= set(range(6))  # a few in preparation, at most


def test_a_fetcher_that_is_dropped_waits_for_nobody_and_its_threads_end(parquet, tmp_path, monkeypatch):
    """The collector may run anywhere, in a thread that holds the lock which joining another needs: a run hung there."""
    data = registry.load("imagenet", tmp_path)
    before = set(threading.enumerate())
    fetcher = RowFetcher(data.train, Batching((16, 16), 8, 5), threads=2)
    fetcher.fetch(0, 0)  # the next ones are in preparation
    loader = iter(data.eval_stream("test", 3, torch.device("cpu")))
    next(loader)
    started = set(threading.enumerate()) - before
    assert len(started) >= 4
    monkeypatch.setattr(threading.Thread, "join", lambda *_: pytest.fail("the collector waits for a thread"))
    fetcher.itself = fetcher  # only the collector of cycles finds it
    del fetcher, loader
    gc.collect()
    deadline = time.monotonic() + 300
    while any(thread.is_alive() for thread in started):
        gc.collect()  # a thread that was at work held its fetcher
        assert time.monotonic() < deadline, "a thread is left"
        time.sleep(0.01)


@given(rows=st.integers(1, 500), batch=st.integers(1, 70), shards=st.integers(1, 17), world=st.integers(1, 9))
def test_lanes_divide_every_batch_and_every_row(rows, batch, shards, world):
    found = Sharding(rows, batch, shards)
    stretches = [found.rows_of(shard) for shard in range(shards)]
    assert [row for stretch in stretches for row in stretch] == list(range(rows))
    sizes = [min(batch, rows - first) for first in range(0, rows, batch)]
    for size in sizes:
        assert [p for shard in range(shards) for p in found.positions(shard, size)] == list(range(size))
    for shard, stretch in enumerate(stretches):
        assert len(stretch) == sum(len(found.positions(shard, size)) for size in sizes)
    for rank in range(world):
        mine = set(found.of_rank(rank, world))
        for size in sizes:
            for place in rank_positions(size, rank, world):
                assert any(place in found.positions(shard, size) for shard in mine)
    if shards % world == 0:
        assert sum(len(found.of_rank(rank, world)) for rank in range(world)) <= shards


def test_every_row_once_per_epoch_in_another_order(parquet, tmp_path):
    part = registry.load("imagenet", tmp_path).train
    plain = [name for name, _, _ in part.in_order()]

    def epoch(number):
        sharding = part.sharding(8)
        return [name for shard in range(sharding.count) for name, _, _ in part.read(3, number, sharding, shard)]

    first, second = epoch(0), epoch(1)
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(names) for names in (plain, first, second)}) == 3


def test_window_shuffle_keeps_every_row_and_moves_none_far_ahead():
    rows = [(str(i), b"", i) for i in range(1000)]
    order = [label for _, _, label in window_shuffle(iter(rows), 4, window=50)]
    assert sorted(order) == list(range(1000))
    assert all(label < at + 50 for at, label in enumerate(order))
    lag = [abs(at - label) for at, label in enumerate(order)]
    assert 15 < sum(lag) / len(lag) < 75  # each of the 50 held goes next with equal chance: about 50 steps on average
    assert order == [label for _, _, label in window_shuffle(iter(rows), 4, window=50)]
    assert order != [label for _, _, label in window_shuffle(iter(rows), 5, window=50)]


def test_a_bad_row_stops_or_turns_black(parquet, tmp_path, monkeypatch):
    write_parquet(parquet / "validation-00000-of-00001.parquet", [r % 3 for r in range(7)],
                  lambda i: jpeg(i)[:-300] if i == 904 else jpeg(i), first=900)  # fmt: skip
    cpu = torch.device("cpu")
    loader = registry.load("imagenet", tmp_path).eval_stream("test", 4, cpu)
    with pytest.raises(DataError, match=r"of-00001-4\.jpg in .*validation.*cannot be decoded") as caught:
        list(loader)
    one_line(caught)
    monkeypatch.setenv("FRACTRAIN_BAD_IMAGES", "skip")
    data = registry.load("imagenet", tmp_path)
    loader = data.eval_stream("test", 4, cpu)
    assert torch.cat([y for _, y in loader]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(loader.bad_images) == 1
    assert (RowFetcher(data.test, Batching((32, 32), 7, replace_bad=True)).fetch(0, 0).images[4] == 0).all()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "train-00001-of-00003.parquet").unlink(), "20 rows, the data set has 30"),
        (lambda f: (f / "train-00001-of-00003.parquet").write_bytes(b"PAR1"), "no whole parquet file"),
        (lambda f: (f / "validation-00000-of-00001.parquet").unlink(), "no files validation-"),
        (lambda f: write_parquet(f / "validation-00000-of-00001.parquet", [5] * 7), "label 5, expected 0 to 2"),
        (lambda f: write_parquet(f / "validation-00000-of-00001.parquet", [0] * 7, columns=("image", "y")), "image, y"),
    ],
)
def test_wrong_parquet_is_one_line(parquet, tmp_path, damage, words):
    damage(parquet)
    with pytest.raises(DataError, match=words) as caught:
        list(registry.load("imagenet", tmp_path).eval_stream("test", 4, torch.device("cpu")))
    one_line(caught)


def test_rows_that_end_early(parquet, tmp_path):
    data = registry.load("imagenet", tmp_path)
    write_parquet(parquet / "validation-00000-of-00001.parquet", [0, 1, 2])
    with pytest.raises(DataError, match="a file gave 3 rows, expected 7 or more"):
        list(data.eval_stream("test", 4, torch.device("cpu")))


def test_the_hub_is_asked_for_the_pinned_revision_and_streamed(parquet, tmp_path, monkeypatch):
    """What comes from there is served by ``datasets`` itself, from local files: there is no network here."""
    files = {"train": sorted(map(str, parquet.glob("train-*"))), "validation": sorted(map(str, parquet.glob("val*")))}
    local = list(registry.load("imagenet", tmp_path).eval_stream("test", 3, torch.device("cpu")))
    first = RowFetcher(registry.load("imagenet", tmp_path).train, Batching((16, 16), 8, 5, True, True)).fetch(1, 0)
    asked, load = [], datasets.load_dataset

    def served(name, *, revision, split, streaming):
        asked.append((name, revision, split, streaming))
        return load("parquet", data_files=files, split=split, streaming=streaming)

    def listed(name, *, revision):
        asked.append((name, revision))
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset", served)
    monkeypatch.setattr(datasets, "load_dataset_builder", listed)
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    data = registry.load("imagenet", tmp_path / "nothing")
    for (x, y), (want, labels) in zip(data.eval_stream("test", 3, torch.device("cpu")), local, strict=True):
        assert torch.equal(x, want)
        assert torch.equal(y, labels)
    again = RowFetcher(data.train, Batching((16, 16), 8, 5, True, True)).fetch(1, 0)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    pinned = ("owner/name", "0123456789abcdef0123456789abcdef01234abc")
    assert sorted(asked) == sorted([(*pinned, "validation", True), (*pinned, "train", True), pinned, pinned])


def test_a_hub_of_other_files_is_read_whole_by_every_rank(parquet, tmp_path, monkeypatch):
    files = {"train": sorted(map(str, parquet.glob("train-*")))}
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, *, revision, split, streaming: load("parquet", data_files=files, split=split, streaming=True),
    )
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda name, *, revision: SimpleNamespace(config=SimpleNamespace(data_files={"train": ["a.tar", "b.tar"]})),
    )
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    part = registry.load("imagenet", tmp_path / "nothing").train
    assert part.sharding(8).count == 1

    def labels(world):
        fetchers = [RowFetcher(part, Batching((16, 16), 8, 5, rank=rank, world=world)) for rank in range(world)]
        return [torch.cat([f.fetch(0, i).labels for f in fetchers]).tolist() for i in range(4)]

    assert labels(2) == labels(1)
    assert sorted(itertools.chain(*labels(1))) == sorted([r % 3 for r in range(10)] * 3)


def test_a_hub_with_another_number_of_rows(parquet, tmp_path, monkeypatch):
    files = {"train": sorted(map(str, parquet.glob("train-*")))[:2]}
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda name, *, revision: SimpleNamespace(config=SimpleNamespace(data_files=files)),
    )
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    with pytest.raises(
        DataError, match=r"owner/name@0123456789abcdef0123456789abcdef01234abc \(train\) has 20 rows, expected 30"
    ) as caught:
        RowFetcher(registry.load("imagenet").train, Batching((16, 16), 8, 5)).fetch(0, 0)
    one_line(caught)

    def unreachable(name, *, revision):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(MachineError, match="its files cannot be listed: ConnectionError: no route; check the network"):
        RowFetcher(registry.load("imagenet").train, Batching((16, 16), 8, 5)).fetch(0, 0)


class Breaking:
    """A stream of ``datasets`` whose connection breaks after some rows."""

    num_shards = 1

    def __init__(self, error, at) -> None:
        self.error, self.at = error, at

    def cast_column(self, name, kind):
        return self

    def shard(self, count, number):
        return self

    def skip(self, count):
        return itertools.islice(iter(self), count, None)

    def __iter__(self):
        if self.at < 0:
            raise self.error
        for i in range(10):
            if i == self.at:
                raise self.error
            yield {"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, "label": i % 3}


def unlisted(name, *, revision):
    """A data set on the hub whose files tell no number of rows."""
    return SimpleNamespace(config=SimpleNamespace(data_files={"validation": ["a.tar"]}))


class ReadTimeout(Exception):
    """Like httpx's: no OSError, and often without a text."""


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("error", [ReadTimeout(""), ReadTimeout("timed\nout"), OSError("reset"), KeyError("x")])
def test_a_network_that_fails_while_streaming_is_one_line(monkeypatch, error, at):
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 10))
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Breaking(error, at))
    monkeypatch.setattr("datasets.load_dataset_builder", unlisted)
    part = registry.load("imagenet").test
    hub = r"owner/name@0123456789abcdef0123456789abcdef01234abc \(validation\)"
    words = rf"{hub}: row {at} cannot be read: {type(error).__name__}: .*check the network"
    with pytest.raises(MachineError, match=words) as caught:
        list(part.in_order())
    one_line(caught)
    with pytest.raises(MachineError, match="check the network"):
        RowFetcher(part, Batching((32, 32), 4), threads=2).fetch(0, at // 4)
    local = dataclasses.replace(part, hub="", files=(Path("folder/x.parquet"),), sizes=(10,))
    with pytest.raises(DataError, match=f"row {at} cannot be read"):
        list(local.in_order())


def test_memory_and_wrong_rows_are_no_network_failures(monkeypatch):
    install(monkeypatch, entry("imagenet", 32, 3, ROWS, 10))
    monkeypatch.setenv("FRACTRAIN_IMAGENET", "owner/name@0123456789abcdef0123456789abcdef01234abc")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Breaking(MemoryError(), 5))
    monkeypatch.setattr("datasets.load_dataset_builder", unlisted)
    with pytest.raises(MemoryError):
        list(registry.load("imagenet").test.in_order())
    part = dataclasses.replace(registry.load("imagenet").test, classes=2)
    with pytest.raises(DataError, match="label 2, expected 0 to 1"):
        list(part.in_order())


def test_without_datasets(parquet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="pip install datasets") as caught:
        list(registry.load("imagenet", tmp_path).eval_stream("test", 4, torch.device("cpu")))
    one_line(caught)

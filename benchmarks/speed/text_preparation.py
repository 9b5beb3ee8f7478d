"""What preparing a text of WikiText-103's size takes: memory, time and disk; and what a reader of it takes afterwards.

    python benchmarks/speed/text_preparation.py [--megabytes 540] [--words 267735] [--out FILE]

Writes a made-up text to a temporary folder (words of a Zipf law, each at least once, about as long as English ones, in
lines of 57), prepares it through the code that ``fractrain run`` uses, and reads training batches from the result.
Preparing and reading are processes of their own. For each it tells, in MB of 10^6 bytes,

* ``peak_growth_mb``: highest resident memory above that at the start, which has everything imported already
  (``VmHWM`` of /proc, so Linux only); pages of a mapped file count while they are mapped;
* ``private_growth_mb``: of the reader, memory that is its own at the end above that at the start (``RssAnon``).

``disk_mb`` are the files that stay, for good, beside the text. Prints JSON, or writes it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fractrain.data import registry, text_cache, text_files
from fractrain.data.text_stream import TextTrainStream
from fractrain.data.tokens import FileTokens
from fractrain.util.files import atomic_write

MB = 10**6
CHUNK = 1 << 20  # words drawn at a time
LINE = 57  # words
NAME = "wikitext-103"
BATCH, CONTEXT, BATCHES = 32, 512, 200


def made_up_words(count: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return different words by falling frequency: the number in letters, the rarer the longer."""
    words = np.empty(count, dtype=object)
    more = rng.random(count)
    for number in range(count):
        letters, rest = "", number + 1
        while rest:
            rest, digit = divmod(rest - 1, 25)
            letters = chr(ord("a") + digit) + letters  # a to y; z fills up
        words[number] = "z" * int(more[number] * (2 + len(letters))) + letters
    return words


def write_text(folder: Path, size: int, words: int) -> int:
    """Write a training text of about ``size`` bytes and short validation and test texts; return the bytes of all."""
    rng = np.random.default_rng(0)
    known = made_up_words(words - 1, rng)  # the line end, <eos>, is a word too
    chances = np.cumsum(1 / (np.arange(len(known)) + 2.7))
    chances /= chances[-1]

    def lines(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> bytes:
        drawn = known[numbers].tolist()
        return "".join(f" {' '.join(drawn[at : at + LINE])} \n" for at in range(0, len(drawn), LINE)).encode()

    def draw() -> bytes:
        return lines(np.searchsorted(chances, rng.random(CHUNK)))

    with open(folder / "wiki.train.tokens", "wb") as out:
        out.write(lines(rng.permutation(len(known))))
        while out.tell() < size:
            out.write(draw())
    for part in ("valid", "test"):
        (folder / f"wiki.{part}.tokens").write_bytes(draw()[: size // 100].rsplit(b"\n", 1)[0] + b"\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def memory(kind: str) -> float:
    """Return a line of this process's /proc status in MB: ``VmRSS``, ``VmHWM`` (its highest so far) or ``RssAnon``.

    Not ``ru_maxrss``: a new process inherits that from the one that started it.
    """
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / MB


def prepare(folder: Path) -> dict[str, Any]:
    """Prepare the text in ``folder``, as a run does when it meets a text for the first time."""
    known = registry.info("wikitext103")
    anything: dict[str, Any] = {"unknowns": (0, 0, 0), "checksums": ("", "", "")}
    entry = replace(known, classes=0, train_size=0, val_size=0, test_size=0, **anything)  # 0: anything goes
    before, started = memory("VmRSS"), time.perf_counter()
    texts = text_files.find_files(folder, NAME)
    prepared = text_cache.prepare_text(entry, texts, text_cache.cache_folder(entry.name, texts, folder))
    seconds, peak = time.perf_counter() - started, memory("VmHWM")
    disk = {path.name: path.stat().st_size for path in sorted(prepared.folder.iterdir())}
    return {
        "folder": prepared.folder, "words": prepared.words, "seconds": round(seconds, 1),
        "tokens": {part: len(tokens) for part, tokens in prepared.parts.items()},
        "peak_growth_mb": round(peak - before, 1), "disk_mb": round(sum(disk.values()) / MB, 1), "disk_bytes": disk,
    }  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """Read random training batches from a prepared text, as a worker does."""
    tokens = FileTokens.open(folder / "train.npy")
    before, own = memory("VmRSS"), memory("RssAnon")
    stream = TextTrainStream(tokens, CONTEXT, BATCH, 0, "cpu")
    started = time.perf_counter()
    for index in range(BATCHES):
        stream.batch(0, index)
    seconds = time.perf_counter() - started
    return {
        "batches": BATCHES, "batch": BATCH, "context": CONTEXT, "ms_per_batch": round(1e3 * seconds / BATCHES, 2),
        "peak_growth_mb": round(memory("VmHWM") - before, 1), "private_growth_mb": round(memory("RssAnon") - own, 1),
    }  # fmt: skip


def alone(work: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Do ``work`` in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder,))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=540)
    parser.add_argument("--words", type=int, default=267_735)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        size = write_text(Path(scratch), args.megabytes * MB, args.words)
        prepared = alone(prepare, Path(scratch))
        reader = alone(read, prepared.pop("folder"))
    result = {
        "benchmark": "text_preparation", "text": "made up, Zipf", "text_mb": round(size / MB, 1), "python":
        platform.python_version(), "cores": os.cpu_count(), "prepare": prepared, "reader": reader,
    }  # fmt: skip
    report = json.dumps(result, indent=2) + "\n"
    if args.out:
        atomic_write(args.out, report.encode())
    print(report, end="")


if __name__ == "__main__":
    main()

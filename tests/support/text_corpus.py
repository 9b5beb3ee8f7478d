"""A small text in the form of the official files, and the slow way to read it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from fractrain.data import registry
from fractrain.data.info import DatasetInfo


def lines(seed: int, count: int, words: int = 60) -> str:
    """English of our own: lines with a blank at both ends, some of them empty, as the official files have."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        size = draw.choice([0, 3, 9])
        made.append(" " + "".join(f"w{min(int(draw.expovariate(0.1)), words - 1)} " for _ in range(size)) + "\n")
    return "".join(made)


def loop_tokens(text_: str) -> list[str]:
    """The slow way: line by line."""
    found = []
    for line in text_.split("\n")[:-1]:
        found += [*line.split(), "<eos>"]
    return found


def load(entry, root, **options):
    return entry.access.load(entry, root, options.get("download", False), options.get("val_fraction", 0.0), 0)


def write(folder: Path) -> tuple[dict[str, str], DatasetInfo]:
    """Write the three texts; return them, and the entry with their facts (no checksums: anything goes)."""
    folder.mkdir(parents=True)
    train = lines(0, 400) + " " + " ".join(f"w{i}" for i in range(60)) + " <unk> é \n"
    texts = {"train": train, "valid": lines(1, 40), "test": lines(2, 50) + " é <unk> \n"}
    for part, content in texts.items():
        (folder / f"wiki.{part}.tokens").write_text(content, encoding="utf-8")
    return texts, entry_of(texts)


def entry_of(texts: dict[str, str]) -> DatasetInfo:
    """``wikitext2`` as it would be if these were its texts."""
    train = texts["train"]
    return replace(
        registry.info("wikitext2"),
        classes=len(set(loop_tokens(train))), train_size=len(loop_tokens(train)), shape=(16,), stride=16,
        val_size=len(loop_tokens(texts["valid"])), test_size=len(loop_tokens(texts["test"])),
        checksums=("", "", ""),
    )  # fmt: skip

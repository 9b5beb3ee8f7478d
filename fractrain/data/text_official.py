"""The official token files of a text, known by their SHA-256, in whatever form they are here.

The official files have a blank before and after every word, and lines of one blank between paragraphs. Packed files and
the hub's rows hold the same words with other white space and in other containers, so the words are written the official
way again, and the checksum is that of the result: for an untouched ``wiki.test.tokens`` what ``sha256sum`` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fractrain.data.info import DatasetInfo
from fractrain.data.text_files import PARTS, Text
from fractrain.util.errors import DataError


def official_sha256(blocks: Iterable[str]) -> str:
    """SHA-256 of the official file that has these words.

    Args:
        blocks: a text in blocks of whole lines, each line with its end.
    """
    total = hashlib.sha256()
    for block in blocks:
        for line in block.split("\n")[:-1]:
            words = line.split()
            total.update(f" {' '.join(words)} \n".encode() if words else b" \n")
    return total.hexdigest()


def expected_sha256(entry: DatasetInfo, part: str) -> str:
    """What :func:`official_sha256` should be of a part; empty where nothing is known."""
    return entry.checksums[PARTS.index(part)]


def check_official(entry: DatasetInfo, part: str, text: Text) -> None:
    """Compare a part with the official file.

    Raises:
        DataError: it differs, or cannot be read.
    """
    expected = expected_sha256(entry, part)
    if expected and (found := official_sha256(text.blocks())) != expected:
        raise DataError(
            f"{entry.name}: {text.origin} differs from the official file: its text has sha256 {found}, that of "
            f"{entry.name} {expected}; take the official {part} file"
        )

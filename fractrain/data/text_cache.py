"""The prepared form of a text: its vocabulary and its tokens in files, made once beside the text.

A folder ``tokens-<name>-<digest>`` holds ``vocabulary.txt`` (one word a line, in the order of their numbers), one
``.npy`` per part and ``record.json``. The digest covers the source files and the version of this format, so a changed
source gets a folder of its own and never meets an old vocabulary. A folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock

from fractrain.data.info import DatasetInfo
from fractrain.data.text_files import PARTS, Text, check_official
from fractrain.data.tokens import FileTokens
from fractrain.data.vocabulary import Vocabulary, by_frequency, count_words, number_type, words_of
from fractrain.util.errors import DataError, message_line

FORMAT: Final = 1
CACHE_VARIABLE: Final = "FRACTRAIN_CACHE"
RECORD, WORDS = "record.json", "vocabulary.txt"


@dataclass(frozen=True)
class PreparedText:
    """A prepared text.

    Attributes:
        words: size of the vocabulary.
        parts: the tokens.
        digest: SHA-256 over vocabulary and tokens, the same from whichever files they were made.
    """

    folder: Path
    words: int
    parts: Mapping[str, FileTokens]
    digest: str


def cache_folder(name: str, texts: Mapping[str, Text], beside: Path) -> Path:
    """Return where the prepared form of these texts is or should be: beside them, or below ``FRACTRAIN_CACHE``.

    Reads the source files to their end (for their SHA-256).
    """
    total = hashlib.sha256(f"format {FORMAT}\n".encode())
    for part in PARTS:
        total.update(f"{part} {texts[part].digest}\n".encode())
    root = Path(os.environ.get(CACHE_VARIABLE) or beside).expanduser()
    return root / f"tokens-{name}-{total.hexdigest()[:16]}"


def prepare_text(entry: DatasetInfo, texts: Mapping[str, Text], folder: Path) -> PreparedText:
    """Return the prepared form, made now if it is not there.

    Raises:
        DataError: a source cannot be read or is of another release, or the folder cannot be written.
    """
    if not (folder / RECORD).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{folder.name}.lock"):
                if not (folder / RECORD).is_file():  # another process may have made it while we waited
                    _make(entry, texts, folder)
        except OSError as error:
            raise DataError(
                f"cannot write {folder}: {error.strerror or error}; set {CACHE_VARIABLE} to a folder that can be "
                "written"
            ) from error
    return open_prepared(entry, folder)


def open_prepared(entry: DatasetInfo, folder: Path) -> PreparedText:
    """Open a prepared text.

    Raises:
        DataError: a file is missing or truncated, or it is not what the data set has.
    """
    mend = f"delete {folder} and run again: it is made anew"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        parts = {part: FileTokens.open(folder / f"{part}.npy") for part in PARTS}
        sizes = {part: int(record["parts"][part]["tokens"]) for part in PARTS}
        words, digest = int(record["words"]), str(record["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({message_line(error)}); {mend}") from error
    for part, tokens in parts.items():
        if len(tokens) != sizes[part]:
            raise DataError(f"{tokens.path} has {len(tokens):,} tokens, expected {sizes[part]:,}; {mend}")
    check_release(entry, words, sizes)
    return PreparedText(folder, words, parts, digest)


def check(prepared: PreparedText) -> str:
    """Read everything and compare it with the record; return what is wrong, or an empty string."""
    record = json.loads((prepared.folder / RECORD).read_text(encoding="utf-8"))
    expected = {WORDS: record["vocabulary_sha256"], **{f"{p}.npy": record["parts"][p]["file_sha256"] for p in PARTS}}
    for file, digest in expected.items():
        with open(prepared.folder / file, "rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
                return f"{prepared.folder / file} has changed since it was made; delete {prepared.folder}"
    return ""


def check_release(entry: DatasetInfo, words: int, sizes: Mapping[str, int]) -> None:
    """Compare a text's sizes with what is known of the data set; 0 means that anything goes.

    The validation and test texts of the two WikiTexts have the same number of words: their checksums tell them apart.

    Args:
        sizes: tokens by part, of those parts that are to be compared.

    Raises:
        DataError: another number of words or tokens.
    """
    if entry.classes not in (0, words):
        raise DataError(
            f"{entry.name}: the vocabulary has {words:,} words, that of the data set {entry.classes:,}: the training "
            "text is of another release (raw instead of <unk> form?) or not complete"
        )
    known = {"train": entry.train_size, "val": entry.val_size, "test": entry.test_size}
    for part, size in sizes.items():
        if known[part] not in (0, size):
            raise DataError(
                f"{entry.name}: the {part} part has {size:,} tokens, that of the data set {known[part]:,}: it is of "
                "another release or not complete"
            )


def _make(entry: DatasetInfo, texts: Mapping[str, Text], folder: Path) -> None:
    counts = count_words(texts["train"].blocks())
    sizes = {"train": counts.total()}
    words = by_frequency(counts)
    del counts
    check_release(entry, len(words), sizes)
    for part in PARTS[1:]:  # before the training text is written: that takes longest
        sizes[part] = count_words(texts[part].blocks()).total()
    check_release(entry, len(words), sizes)
    for part in PARTS:
        check_official(entry, part, texts[part])
    vocabulary = Vocabulary(words)
    with _draft(folder) as draft:
        word_bytes = "".join(f"{word}\n" for word in vocabulary.words).encode()
        _write(draft / WORDS, iter([word_bytes]))
        parts: dict[str, Any] = {}
        content = hashlib.sha256(word_bytes)
        for part in PARTS:
            path = draft / f"{part}.npy"
            file_sha, token_sha = _write_tokens(path, vocabulary, texts[part], sizes[part])
            parts[part] = {"tokens": sizes[part], "file_sha256": file_sha, "origin": Path(texts[part].origin).name}
            content.update(f"{part} {sizes[part]} {token_sha}\n".encode())
        record = {
            "format": FORMAT, "name": entry.name, "words": len(vocabulary), "digest": content.hexdigest(),
            "vocabulary_sha256": hashlib.sha256(word_bytes).hexdigest(), "parts": parts,
        }  # fmt: skip
        _write(draft / RECORD, iter([(json.dumps(record, indent=1) + "\n").encode()]))


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``folder`` if nothing goes wrong; the caller holds its lock."""
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed while it filled it
        shutil.rmtree(left)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield draft
        draft.chmod(0o755)
        if folder.exists():  # a damaged one: it has no record
            shutil.rmtree(folder)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_tokens(path: Path, vocabulary: Vocabulary, text: Text, size: int) -> tuple[str, str]:
    """Write a text as numbers, block by block; return the SHA-256 of the file and of the tokens in it."""
    dtype = np.dtype(number_type(len(vocabulary))).newbyteorder("<")
    token_sha, written = hashlib.sha256(), 0

    def chunks() -> Iterator[bytes]:
        nonlocal written
        for block in text.blocks():
            numbers = vocabulary.encode(words_of(block), text.origin)
            data = numbers.astype(dtype, copy=False).tobytes()
            token_sha.update(data)
            written += len(numbers)
            yield data

    file_sha = _write(path, chunks(), {"descr": dtype.str, "fortran_order": False, "shape": (size,)})
    if written != size:
        raise DataError(f"{text.origin} changed while it was read; run again")
    return file_sha, token_sha.hexdigest()


def _write(path: Path, chunks: Iterator[bytes], header: dict[str, Any] | None = None) -> str:
    """Write bytes, after a ``.npy`` header if one is given; return the SHA-256 of the file."""
    with open(path, "w+b") as out:
        if header:
            np.lib.format.write_array_header_1_0(out, header)
        out.writelines(chunks)
        out.flush()
        os.fsync(out.fileno())
        out.seek(0)
        return hashlib.file_digest(out, "sha256").hexdigest()

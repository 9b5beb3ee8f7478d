"""Where a text comes from: files on disk (plain, xz, parquet) or a data set on the Hugging Face hub; read in blocks."""

from __future__ import annotations

import hashlib
import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from fractrain.data.info import DatasetInfo
from fractrain.data.places import offline_variable
from fractrain.util.errors import DataError, MachineError, message_line, needed

LONGEST: Final = 1 << 22  # bytes of a line: WikiText's have a few thousand
BLOCK: Final = 1 << 20  # bytes of text held at a time; its words take about ten times as much
ROWS: Final = 10_000
PARTS: Final = ("train", "val", "test")
_BY_HAND: Final = "put the official token files in place by hand"
_SPLIT: Final = {"train": "train", "val": "validation", "test": "test"}


class Text(Protocol):
    """One part of a text."""

    @property
    def origin(self) -> str:
        """Where it comes from, for messages."""

    @property
    def digest(self) -> str:
        """Hash of the content, or of what fixes it."""

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks of whole lines, each line with its end."""


@dataclass(frozen=True)
class TextFiles:
    """A text in one or several files, read in this order."""

    paths: tuple[Path, ...]

    @property
    def origin(self) -> str:
        """The file, or the first of them."""
        return str(self.paths[0])

    @property
    def digest(self) -> str:
        """SHA-256 over the SHA-256 of every file."""
        total = hashlib.sha256()
        for path in self.paths:
            try:
                with open(path, "rb") as handle:
                    total.update(hashlib.file_digest(handle, "sha256").digest())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        return total.hexdigest()

    def blocks(self) -> Iterator[str]:
        """Yield the text in blocks of whole lines.

        Raises:
            DataError: a file cannot be read, unpacked or is not UTF-8.
        """
        for path in self.paths:
            try:
                if path.suffix == ".parquet":
                    yield from _parquet_blocks(path)
                else:
                    opener: Any = lzma.open if path.suffix == ".xz" else open
                    with opener(path, "rb") as handle:
                        yield from _file_blocks(handle)
            except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, ValueError) as error:
                raise DataError(f"{path} cannot be read as text: {message_line(error)}") from error


@dataclass(frozen=True)
class HubText:
    """One part of a data set on the hub; what is there already is taken from the cache of the package ``datasets``.

    Attributes:
        hub: ``owner/name@revision/config``.
        part: ``train``, ``val`` or ``test``.
    """

    hub: str
    part: str

    @property
    def origin(self) -> str:
        """Hub name and part."""
        return f"{self.hub} ({_SPLIT[self.part]})"

    @property
    def digest(self) -> str:
        """Hash of the name: the revision fixes the content, so nothing has to be asked of the network."""
        return hashlib.sha256(self.origin.encode()).hexdigest()

    def blocks(self) -> Iterator[str]:
        """Yield the text; the package downloads it when it is not in its cache.

        Where a variable says that this machine is offline, only the cache is read, and only if the package was loaded
        with that variable set: it reads variables once, and takes fewer values for a yes than we do.

        Raises:
            MachineError: no network (or a variable forbids it), or the package is not installed.
        """
        with needed(f"{self.hub} needs the package datasets ({{}}): `pip install datasets`"):
            import datasets
        variable = offline_variable()
        if variable and not datasets.config.HF_HUB_OFFLINE:
            raise MachineError(f"cannot get {self.origin}: {variable} is set; unset it, or {_BY_HAND}")
        name, _, rest = self.hub.partition("@")
        revision, _, config = rest.partition("/")
        try:
            rows = datasets.load_dataset(name, config, revision=revision, split=_SPLIT[self.part])
        except Exception as error:  # datasets lets through what pyarrow, fsspec and the hub's client raise
            forbidden = f"; {variable} is set" if variable else ""
            raise MachineError(
                f"cannot get {self.origin}: {type(error).__name__}: {message_line(error)}{forbidden}; {_BY_HAND}, or "
                "try again with a network"
            ) from error
        for batch in rows.iter(batch_size=ROWS):
            yield _rows_block(batch["text"])


def find_files(folder: Path, name: str) -> dict[str, TextFiles]:
    """Return the files of each part in a folder, for those parts that are there.

    Names are the official ``wiki.train.tokens``, the same ending in ``.txt``, with the data set's name (as in
    ``wikitext-2.valid.txt``) or nothing in front, each also packed as ``.xz``; or parquet files as the hub has them
    (``train-00000-of-00002.parquet``). Where a part is there twice, the first of that list counts.

    Args:
        folder: where to look.
        name: official name, ``wikitext-2`` or ``wikitext-103``.
    """
    pattern = re.compile(
        rf"(?:(?P<wiki>wiki)\.|{re.escape(name)}\.)?(?P<part>train|valid|validation|test)(?:\.[\w-]+)*?"
        r"\.(?P<end>tokens|txt)(?P<xz>\.xz)?"
    )
    ranked: dict[str, list[tuple[Any, ...]]] = {part: [] for part in PARTS}
    found: dict[str, TextFiles] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            part = "val" if match["part"].startswith("val") else match["part"]
            ranked[part].append((not match["wiki"], match["end"] == "txt", bool(match["xz"]), path))
    for part in PARTS:
        shards = tuple(sorted(folder.glob(f"{_SPLIT[part]}-*.parquet")))
        if ranked[part]:
            found[part] = TextFiles((min(ranked[part])[-1],))
        elif shards:
            found[part] = TextFiles(shards)
    return found


def _file_blocks(handle: IO[bytes]) -> Iterator[str]:
    rest = b""
    while data := handle.read(BLOCK):
        data = rest + data
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if len(rest) > LONGEST:
            raise ValueError(f"a line has more than {LONGEST:,} bytes: a text has ends of lines")
        if end:
            yield data[:end].decode("utf-8")
    if rest:
        yield rest.decode("utf-8") + "\n"


def _parquet_blocks(path: Path) -> Iterator[str]:
    with needed(f"reading {path} needs pyarrow ({{}}); mend with `pip install datasets`"):
        from pyarrow import parquet  # type: ignore[import-untyped]
    with parquet.ParquetFile(path) as file:  # what pyarrow raises here are ValueErrors and OSErrors
        columns = {field.name: str(field.type) for field in file.schema_arrow}
        if columns.get("text") not in ("string", "large_string"):
            found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            raise ValueError(f"expected a column text (string), found {found}")
        first = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=["text"]):
            rows = batch.column(0).to_pylist()
            if None in rows:
                raise ValueError(f"row {first + rows.index(None):,} has no text (null)")
            yield _rows_block(rows)
            first += len(rows)


def _rows_block(rows: Iterable[str]) -> str:
    """A row is a line, with or without its end."""
    return "".join(row if row.endswith("\n") else f"{row}\n" for row in rows)


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

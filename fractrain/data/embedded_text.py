"""``docs_text``: a small real English text that needs no download, the documentation strings inside scikit-learn.

An article is a module; its text are the docstrings of the module, its classes and functions, in the order of the file,
up to the first section of examples or references, by paragraph. Lines of code, underlines and ``name : type`` lines are
left out, as are paragraphs of less than 40 characters and those that occurred before: libraries repeat themselves, and
a repeated paragraph in the test part would be known by heart.

It is the same for all Python versions and changes with scikit-learn: results are comparable for one release of it (the
lock file's), and a run records the digest of what it really used.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from fractrain.data.info import DatasetInfo, DataSource, package_status
from fractrain.data.status import DataStatus
from fractrain.data.text import LANGUAGE, TEXT, TextData, refuse_fraction, verify_text
from fractrain.data.tokens import MemoryTokens
from fractrain.data.vocabulary import EOS, UNK, Vocabulary, by_frequency
from fractrain.util.errors import MachineError

# SHA-256 of vocabulary and tokens with scikit-learn 1.9.1, the release of the lock file.
CONTENT: Final = "2364c051c994a99f66057e98e1a2d9baed516f0aa6ca7ab83186379c9ebb1100"
CYCLE: Final = 24  # of so many articles one is for validation and one for the test
_VAL, _TEST = 7, 19
_SHORTEST = 40

WORD: Final = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|[0-9]+|[^\sA-Za-z0-9`*]")
_LATER = re.compile(r"\n(?:Examples|References|See Also|Attributes|Methods)\n-+")
_SKIPPED_DIRS = frozenset({"tests", "externals", "_build_utils"})
_CODE = (">>>", "...", "---", "===", "..", ":")
_TYPE_LINE = re.compile(r"\*{0,2}\w[\w, *]* :(?: .*)?")

_log = logging.getLogger("fractrain.data")


class DocsText(DataSource):
    """Made from the files of scikit-learn, in memory."""

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> TextData:
        """Build the text; ``data_dir`` and ``download`` are not used.

        Raises:
            MachineError: scikit-learn is not installed.
            ConfigError: a validation fraction is asked for.
        """
        refuse_fraction(info, val_fraction)
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for number, words in enumerate(articles(package_folder())):
            parts[{_VAL: "val", _TEST: "test"}.get(number % CYCLE, "train")] += words
        vocabulary = _vocabulary(Counter(parts["train"]), info.classes)
        tokens = {part: vocabulary.encode(words) for part, words in parts.items()}
        total = hashlib.sha256("\n".join(vocabulary.words).encode())
        for part, array in tokens.items():
            total.update(f"\n{part} {len(array)}\n".encode() + array.astype("<u2").tobytes())
        digest = total.hexdigest()
        if digest != CONTENT:
            _log.warning("docs_text: this scikit-learn has another text than release 1.9.1: results are not comparable")
            train_size, val_size, test_size = (len(tokens[part]) for part in ("train", "val", "test"))
            info = replace(info, train_size=train_size, val_size=val_size, test_size=test_size)
        train, val, test = (MemoryTokens(tokens[part]) for part in ("train", "val", "test"))
        return TextData(info, train, val, test, digest, words=vocabulary.words)

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Whether scikit-learn is installed."""
        try:
            package_folder()
        except MachineError as error:
            return package_status(info, str(error))
        return package_status(info)

    def verify(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Build the text and compare its sizes with what is known."""
        return verify_text(self, info, data_dir)


DOCS_TEXT = DatasetInfo(
    name="docs_text", title="English prose: the documentation strings inside scikit-learn, lower case, 4,000 words",
    classes=4_000, shape=(64,), train_size=245_230, val_size=9_765, test_size=11_896, stride=64, embedded=True,
    stands_for="wikitext103", source="documentation strings of scikit-learn 1.9.1", licence="BSD 3-Clause", bytes=0,
    access=DocsText(),
    recipe={  # 256 words a step
        **LANGUAGE, "iterations": 100, "batch_size": 4, "lr": 1.5e-3, "warmup": 10, "eval_every": 100,
    },
    **TEXT,
)  # fmt: skip


def _vocabulary(counts: Counter[str], size: int) -> Vocabulary:
    """Return the most frequent words and ``<unk>``, which stands where the words it replaces put it together."""
    kept = by_frequency(counts, size - 1)
    total = {word: counts[word] for word in kept}
    total[UNK] = counts.total() - sum(total.values())
    words = by_frequency(total)
    return Vocabulary(words, unknown=words.index(UNK))


def package_folder() -> Path:
    """Return the folder of scikit-learn, which is not imported.

    Raises:
        MachineError: it is not installed.
    """
    from importlib.util import find_spec

    found = find_spec("sklearn")
    if found is None or not found.origin:
        raise MachineError("the embedded text needs scikit-learn; mend with `pip install scikit-learn`")
    return Path(found.origin).parent


def articles(folder: Path) -> Iterator[list[str]]:
    """Yield the words of each module with text, in the order of their paths; ``<eos>`` ends a paragraph."""
    seen: set[str] = set()
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name in sorted(paths):
        if _SKIPPED_DIRS.isdisjoint(name.split("/")):
            words = [w for text in _paragraphs(paths[name]) for w in _new_words(text, seen)]
            if words:
                yield words


def _new_words(text: str, seen: set[str]) -> list[str]:
    words = WORD.findall(text.lower())
    key = " ".join(words)  # with other markup it is the same paragraph
    if len(text) < _SHORTEST or key in seen:
        return []
    seen.add(key)
    return [*words, EOS]


def _paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a module's docstrings, each as one line."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler has to say about escapes in a library is not our business
        tree = ast.parse(path.read_bytes())
    found = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in sorted(found, key=lambda node: getattr(node, "lineno", 0)):
        prose = _LATER.split(ast.get_docstring(node) or "")[0]
        for paragraph in re.split(r"\n\s*\n", prose):
            lines = (line.strip() for line in paragraph.split("\n"))
            prose_lines = (line for line in lines if line and not line.startswith(_CODE))
            yield " ".join(line for line in prose_lines if not _TYPE_LINE.fullmatch(line))

"""Texts for language models: WikiText-103, WikiText-2, and the embedded one.

The WikiTexts are used as published: words as they stand between white space, ``<unk>`` where the authors put it, the
end of a line as the word ``<eos>``, upper and lower case. The vocabulary is that of the training part. A word of the
validation or test part that it lacks means that the files are of two releases (the two WikiTexts have the same articles
there, with different words replaced by ``<unk>``): an error, never counted as ``<unk>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from fractrain.data.info import DatasetInfo, DataSource
from fractrain.data.places import root_of, what_is_there
from fractrain.data.status import DataStatus, FileStatus
from fractrain.data.text_cache import CACHE_VARIABLE, RECORD, cache_folder, check, open_prepared, prepare_text
from fractrain.data.text_files import PARTS, HubText, Text, TextFiles, expected_sha256, find_files, official_sha256
from fractrain.data.tokens import Tokens
from fractrain.util.errors import ConfigError, DataError, FractrainError

if TYPE_CHECKING:
    import torch

    from fractrain.data.text_stream import TextEvalStream, TextTrainStream

_REVISION: Final = "b08601e04326c79dfdd32d625aee71d232d685c3"
OFFICIAL: Final = {"wikitext103": "wikitext-103", "wikitext2": "wikitext-2"}


TEXT: Final[dict[str, Any]] = {"mean": (), "std": (), "augment": False, "pad": 0, "flip": False, "kind": "text"}
_WIKITEXT: Final[dict[str, Any]] = {
    **TEXT, "shape": (512,), "stride": 512, "val_size": 217_646, "test_size": 245_569, "embedded": False,
    "stands_for": None, "source": "Merity et al., Pointer Sentinel Mixture Models, ICLR 2017",
    "licence": "CC BY-SA 3.0 (Wikipedia)",
}  # fmt: skip
# Ours: the papers' settings for language models are not known. Adam as for the first Transformer (Vaswani et al. 2017,
# section 5.3), 32,768 words a step (64 sequences of 512), 50,000 steps: 16 passes over the 103 million words.
LANGUAGE: Final[dict[str, Any]] = {
    "optimizer": "adam", "betas": [0.9, 0.98], "weight_decay": 0.0, "clip_norm": 1.0, "schedule": "cosine",
    "augment": False,
}  # fmt: skip
_WIKITEXT103: Final[dict[str, Any]] = {
    **LANGUAGE, "iterations": 50_000, "batch_size": 64, "lr": 5e-4, "warmup": 4_000, "eval_every": 2_000,
}  # fmt: skip
# Ours: 8,192 words a step (16 sequences of 512), 5,100 steps: 20 passes over the 2 million words.
_WIKITEXT2: Final[dict[str, Any]] = {
    **LANGUAGE, "iterations": 5_100, "batch_size": 16, "lr": 5e-4, "warmup": 500, "eval_every": 255,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TextData:
    """A loaded text.

    Attributes:
        train, val, test: its parts, as numbers of words.
        digest: SHA-256 over vocabulary and tokens.
        words: the vocabulary, by number; empty where it is left on disk.
        folder: of the prepared form, or None for a text in memory.
    """

    info: DatasetInfo
    train: Tokens
    val: Tokens
    test: Tokens
    digest: str
    words: tuple[str, ...] = field(default=(), repr=False)
    folder: Path | None = None

    @property
    def context(self) -> int:
        """Words per sequence."""
        return self.info.shape[0]

    def train_stream(self, batch_size: int, seed: int, device: torch.device | str, augment: bool) -> TextTrainStream:
        """Return the training batches; there is nothing to augment."""
        from fractrain.data.text_stream import TextTrainStream

        return TextTrainStream(self.train, self.context, batch_size, seed, device)

    def eval_stream(self, split: str, batch_size: int, device: torch.device | str) -> TextEvalStream:
        """Return the batches of ``val`` or ``test``."""
        from fractrain.data.text_stream import TextEvalStream

        return TextEvalStream(getattr(self, split), self.context, self.info.stride, batch_size, device)


class WikiText(DataSource):
    """The official token files, or the hub's rows of them, prepared once as numbers of words."""

    def load(
        self, info: DatasetInfo, data_dir: str | Path | None, download: bool, val_fraction: float, seed: int
    ) -> TextData:
        """Load ``wikitext103`` or ``wikitext2``, prepared if it is not yet."""
        refuse_fraction(info, val_fraction)
        found, missing = locate(info, data_dir)
        if not found:
            if not download:
                raise DataError(f"{missing}; {how_to_mend(info, data_dir)}")
            prepared = prepare_text(info, hub_texts(info), hub_cache(info, data_dir))
        elif isinstance(found, Path):
            prepared = open_prepared(info, found)
        else:
            prepared = prepare_text(info, found, cache_folder(info.name, found, found["train"].paths[0].parent))
        parts = prepared.parts
        return TextData(info, parts["train"], parts["val"], parts["test"], prepared.digest, folder=prepared.folder)

    def status(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Look for a text.

        Parts of which the official file's checksum is known, which are small, are read and compared with it; the others
        are ``unchecked``.
        """
        found, missing = locate(info, data_dir)
        if found is None:
            return _record(info, data_dir, message=missing, advice=how_to_mend(info, data_dir))
        if isinstance(found, Path):
            files = tuple(_unchecked(path) for path in found.glob("*.npy"))
            return _record(
                info, data_dir, found, files, f"{info.name}: from the hub, prepared in {found}{_unread(info)}"
            )
        files = tuple(file for part, text in found.items() for file in _compared(info, part, text))
        where = next(iter(found.values())).paths[0].parent
        bad = [file for file in files if file.state in ("differs", "unreadable")]
        if bad:
            message = f"{info.name}: {bad[0].reason or bad[0].problem}"
            advice = f"put the official files into {where}, or delete these and run `fractrain data fetch {info.name}`"
            return _record(info, data_dir, where, files, message, advice, ok=False)
        return _record(info, data_dir, where, files, f"{info.name}: {len(files)} files in {where}{_unread(info)}")

    def verify(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Read the whole text; see :func:`verify_text`."""
        return verify_text(self, info, data_dir)

    def fetch(self, info: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
        """Put a text in place: from the hub, at a fixed revision, prepared; does nothing when it is there.

        A connection that breaks is taken up again, a few times, by the hub's client. After a call that was interrupted,
        whole files are still in its cache and not downloaded again; a file that was begun is.
        """
        if locate(info, data_dir)[0] is None:
            prepare_text(info, hub_texts(info), hub_cache(info, data_dir))
        return self.status(info, data_dir)


DATASETS = (
    DatasetInfo(
        name="wikitext103", title="WikiText-103: 28,475 articles of the English Wikipedia, 103 million words",
        classes=267_735, train_size=103_227_021, bytes=313_093_838, access=WikiText(), recipe=_WIKITEXT103,
        checksums=(
            "",
            "9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
            "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
        ),
        **_WIKITEXT,
    ),
    DatasetInfo(
        name="wikitext2", title="WikiText-2: 600 articles of the English Wikipedia, 2 million words",
        classes=33_278, train_size=2_088_628, bytes=7_371_282, access=WikiText(), recipe=_WIKITEXT2,
        checksums=(
            "",  # whoever has its articles in another order has the same vocabulary and may train
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        ),
        **_WIKITEXT,
    ),
)  # fmt: skip


def verify_text(source: DataSource, entry: DatasetInfo, data_dir: str | Path | None) -> DataStatus:
    """Read the whole text: count words and tokens, compare with what is known and with the prepared form.

    Raises:
        DataError: missing, damaged or of another release.
        MachineError: the package of the embedded text is missing.
    """
    data = source.load(entry, data_dir, False, 0.0, 0)
    folder = getattr(data, "folder", None)
    if folder is not None and (problem := check(open_prepared(entry, folder))):
        raise DataError(f"{entry.name}: {problem}")
    train, val, test = len(data.train), len(data.val or ()), len(data.test)
    if (train, val, test) != (entry.train_size, entry.val_size, entry.test_size):
        raise DataError(
            f"{entry.name} has {train:,} + {val:,} + {test:,} tokens, expected {entry.train_size:,} + "
            f"{entry.val_size:,} + {entry.test_size:,}: another release of its source"
        )
    found = source.status(entry, data_dir)
    files = tuple(replace(file, state="ok") for file in found.files)
    message = (
        f"{found.message.removesuffix(_unread(entry))}; {train:,} training, {val:,} validation and {test:,} test "
        f"tokens, {data.info.classes:,} words, sha256 {data.digest}"
    )
    return replace(found, files=files, message=message, digest=data.digest, train_size=train, test_size=test)


def refuse_fraction(entry: DatasetInfo, val_fraction: float) -> None:
    """Raise a ConfigError unless ``val_fraction`` is 0: texts have a validation part of their own."""
    if val_fraction:
        raise ConfigError(
            f"val_fraction is {val_fraction}, but {entry.name} has a validation part of its own, which is always used: "
            "set it to 0"
        )


def locate(entry: DatasetInfo, data_dir: str | Path | None) -> tuple[dict[str, TextFiles] | Path | None, str]:
    """Look for a text: its files, else the prepared form of the hub's.

    Files may be in ``wikitext-103`` (``wikitext-2``), in a folder called like the data set, or in the folder itself.

    Returns:
        the files by part, or the folder of the prepared form, or None; and what is missing, in words.
    """
    root, official = root_of(data_dir), OFFICIAL[entry.name]
    found: dict[str, TextFiles] = {}
    for folder in (root / official, root / f"{official}-v1", root / entry.name, root):
        found = found or find_files(folder, official)
    if len(found) == len(PARTS):
        return found, ""
    cache = hub_cache(entry, data_dir)
    if (cache / RECORD).is_file():
        return cache, ""
    if found:
        where = next(iter(found.values())).paths[0].parent
        lacking = ", ".join(part for part in PARTS if part not in found)
        return None, f"{entry.name}: {where} has no {lacking} text (wiki.train.tokens, wiki.valid.tokens, ...)"
    raw = "{} is the raw version, whose words are others; this reads the tokens"
    signs = {f"{official}*/*.raw*": raw, f"{entry.name}/*.raw*": raw, "wiki.*.raw*": raw,
             f"*/{official}/wiki.train.tokens": "{} lies one folder deeper: give the parent as --data-dir"}  # fmt: skip
    there = what_is_there(root, signs)
    return None, f"{entry.name} is not in {root}: there are no files {official}/wiki.*.tokens{there}"


def hub_texts(entry: DatasetInfo) -> dict[str, Text]:
    """Return the parts as the hub has them, at a fixed revision."""
    return {part: HubText(f"Salesforce/wikitext@{_REVISION}/{OFFICIAL[entry.name]}-v1", part) for part in PARTS}


def hub_cache(entry: DatasetInfo, data_dir: str | Path | None) -> Path:
    """Return where the prepared form of the hub's text is or should be."""
    return cache_folder(entry.name, hub_texts(entry), root_of(data_dir) / OFFICIAL[entry.name])


def how_to_mend(entry: DatasetInfo, data_dir: str | Path | None) -> str:
    """Return how to get the data set, in one clause."""
    return (
        f"mend with `fractrain data fetch {entry.name} --data-dir {root_of(data_dir)}`, or put the official token "
        f"files into {root_of(data_dir) / OFFICIAL[entry.name]} (prepared beside them, or below {CACHE_VARIABLE})"
    )


def unigram_perplexity(data: TextData, split: str = "test") -> float:
    """Perplexity per word of the trivial predictor, which gives every word its frequency in the training part.

    Counts are raised by one, so that a word that only occurs in ``split`` has a probability. Every word after the first
    is scored, as for a model.

    Args:
        split: ``test`` or ``val``.
    """
    part: Tokens = getattr(data, split)
    counts = data.train.counts(data.info.classes).astype(np.float64) + 1
    cost = math.log(counts.sum()) - np.log(counts)
    scored = part.counts(data.info.classes)
    scored[part.windows([0], 1)[0, 0]] -= 1
    return math.exp(float(scored @ cost) / (len(part) - 1))


def _unchecked(path: Path) -> FileStatus:
    return FileStatus(str(path), "unchecked", "", None, path.stat().st_size)


def _compared(entry: DatasetInfo, part: str, text: TextFiles) -> tuple[FileStatus, ...]:
    """The files of a part, compared with the official one where its checksum is known."""
    files = tuple(_unchecked(path) for path in text.paths)
    expected = expected_sha256(entry, part)
    if not expected:
        return files
    try:
        digest = official_sha256(text.blocks())
    except FractrainError as error:
        return tuple(replace(file, state="unreadable", expected=expected, reason=str(error)) for file in files)
    state: Literal["ok", "differs"] = "ok" if digest == expected else "differs"
    return tuple(replace(file, state=state, expected=expected, found=digest) for file in files)


def _unread(entry: DatasetInfo) -> str:
    return f"; not read yet; `fractrain data verify {entry.name}` reads them"


def _record(
    entry: DatasetInfo, data_dir: str | Path | None, where: Path | None = None, files: Iterable[FileStatus] = (),
    message: str = "", advice: str = "", ok: bool = True,
) -> DataStatus:  # fmt: skip
    files = tuple(sorted(files, key=lambda file: file.path))
    return entry.status_in(
        data_dir, where, ok=ok and where is not None, bytes=sum(file.bytes for file in files),
        download_bytes=0 if where else entry.bytes, files=files, message=message, advice=advice,
    )  # fmt: skip

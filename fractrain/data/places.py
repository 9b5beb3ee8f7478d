"""Where data sets are looked for, and who said so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DATA_VARIABLE: Final = "FRACTRAIN_DATA"
MIRROR_VARIABLE: Final = "FRACTRAIN_DATA_MIRROR"
DEFAULT_ROOT: Final = "data"


def root_of(data_dir: str | Path | None) -> Path:
    """Return the folder of the data sets: ``data_dir``, else ``FRACTRAIN_DATA``, else ``./data``."""
    return Path(data_dir or os.environ.get(DATA_VARIABLE) or DEFAULT_ROOT).expanduser()


def chosen_by(data_dir: str | Path | None) -> str:
    """Return what chose :func:`root_of`: ``--data-dir``, ``FRACTRAIN_DATA`` or ``default``."""
    return "--data-dir" if data_dir else DATA_VARIABLE if os.environ.get(DATA_VARIABLE) else "default"


def mirrored(file: str, url: str) -> list[str]:
    """Return the addresses to try for a file: in the mirror of ``FRACTRAIN_DATA_MIRROR``, if set, then its own."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    return [f"{mirror.rstrip('/')}/{file}", url] if mirror else [url]

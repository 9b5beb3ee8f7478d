"""Where data sets are looked for, who said so, and whether the network may be asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


def what_is_there(folder: Path, signs: Mapping[str, str]) -> str:
    """Say in one clause what a folder holds instead of what is looked for; empty where there is nothing.

    Args:
        signs: glob patterns below it, and what a match means (``{}``: its path).
    """
    if not folder.is_dir():
        return ""
    for pattern, meaning in signs.items():
        if found := sorted(folder.glob(pattern)):
            return f"; {meaning.replace('{}', str(found[0]))}"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; there is {', '.join(names[:3])}{more}" if names else ""


OFFLINE_VARIABLES: Final = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_NO: Final = ("", "0", "false", "no", "off")


def offline_variable() -> str:
    """Return the name of the variable that says that this machine is offline, or an empty string.

    Empty, ``0``, ``false``, ``no`` and ``off`` mean online.
    """
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").strip().lower() not in _NO), "")

"""Variables that say that nothing may be asked of the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

OFFLINE_VARIABLES: Final = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_NO: Final = ("", "0", "false", "no", "off")


def offline(variables: Mapping[str, str] | None = None) -> str:
    """Return the name of the variable that says that this machine is offline, or an empty string.

    Args:
        variables: where to look; None means the environment. Empty, ``0``, ``false``, ``no`` and ``off`` mean online.
    """
    variables = os.environ if variables is None else variables
    return next((name for name in OFFLINE_VARIABLES if variables.get(name, "").strip().lower() not in _NO), "")

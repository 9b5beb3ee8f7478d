"""Modules of plugin files, importable by name, so that pickles of what they define can be read by other processes.

``fractrain.plugins.slu`` is ``baselines/slu.py``. Other files are found as long as ``FRACTRAIN_PLUGINS`` names them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _Finder(MetaPathFinder):
    """Finds the file of ``fractrain.plugins.NAME``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__:
            return None
        from fractrain.methods.registry import baselines_folder
        from fractrain.util.registry import PLUGIN_VARIABLE, content_name, plugin_spec

        given = [Path(p) for p in os.environ.get(PLUGIN_VARIABLE, "").split(os.pathsep) if p]
        files = [baselines_folder() / f"{name}.py", *(p for p in given if name.startswith(p.stem))]
        there = (p for p in files if p.is_file() and name in (p.stem, content_name(p.stem, p)))
        return next((plugin_spec(fullname, p) for p in there), None)


sys.meta_path.append(_Finder())

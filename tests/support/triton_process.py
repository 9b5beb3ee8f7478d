"""Runs a script in a process of its own: Triton reads its mode when it is imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(script: str, folder: Path, *args: str, **env: str) -> Any:
    """Run a script of this folder and return what it prints as JSON."""
    settings = {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    command = [sys.executable, str(HERE / script), *args]
    done = subprocess.run(command, env={**os.environ, **settings, **env}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)

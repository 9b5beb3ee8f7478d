"""fractrain: benchmark and reproducibility suite for low-precision DNN training.

As a library::

    import fractrain
    session = fractrain.attach("fractrain", model)   # any method, any model of convolutions and linear layers

    run = fractrain.run("sbm", "resnet38", "digits")  # or fractrain.load_run(ID): its model, curves and costs
    fractrain.results()                               # everything in the run store as one long DataFrame

See ``docs/library.md``. Importing this package imports neither torch nor anything heavy; the names load when used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "attach": "fractrain.methods.session",
    "Session": "fractrain.methods.session",
    "Method": "fractrain.methods.base",
    "MethodContext": "fractrain.methods.base",
    "MethodSettings": "fractrain.methods.base",
    "convert": "fractrain.layers.convert",
    "Precision": "fractrain.numerics.precision",
    "Operand": "fractrain.numerics.precision",
    "Affine": "fractrain.numerics.formats",
    "Symmetric": "fractrain.numerics.formats",
    "PerTensor": "fractrain.numerics.formats",
    "PerAxis": "fractrain.numerics.formats",
    "PerTile": "fractrain.numerics.formats",
    "Ledger": "fractrain.cost.ledger",
    "results": "fractrain.report.results",
    "run": "fractrain.report.api",
    "load_run": "fractrain.report.api",
    "Run": "fractrain.report.api",
}

__all__ = ["__version__", *_WHERE]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fractrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)

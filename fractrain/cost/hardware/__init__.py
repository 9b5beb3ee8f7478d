"""Hardware models: time and energy of training from the ledger's rows. One file each, and a registry."""

from fractrain.cost.hardware.base import (
    Cost,
    HardwareModel,
    HardwareSettings,
    LayerShape,
    Parts,
    Priced,
    Product,
    Workload,
    WorkRow,
)
from fractrain.cost.hardware.registry import HardwareRegistry, create, create_all

__all__ = [
    "Cost", "HardwareModel", "HardwareRegistry", "HardwareSettings", "LayerShape", "Parts", "Priced", "Product",
    "WorkRow", "Workload", "create", "create_all",
]  # fmt: skip

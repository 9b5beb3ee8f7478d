"""Hardware models: time and energy of training from the ledger's rows. One file each, and a registry."""

from fractrain.cost.hardware.base import (
    Cost,
    Geometry,
    HardwareModel,
    HardwareSettings,
    Parts,
    Priced,
    Product,
    Row,
    Workload,
)
from fractrain.cost.hardware.registry import HardwareRegistry, create, create_all

__all__ = [
    "Cost",
    "Geometry",
    "HardwareModel",
    "HardwareRegistry",
    "HardwareSettings",
    "Parts",
    "Priced",
    "Product",
    "Row",
    "Workload",
    "create",
    "create_all",
]

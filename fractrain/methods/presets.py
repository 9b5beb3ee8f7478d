"""Settings the papers give to a method on a model and data set, where they are not the method's defaults.

The defaults are the authors' for the CIFAR ResNets, but for the loss indicator. Here is what changes elsewhere, as
data: a rule says for which methods, models and data sets it holds, and all that fit are merged. An embedded data set
has the settings of the one it stands for. Nothing is known of the Transformer: the defaults are used.

Where the released code is not followed: docs/protocol.md. Not stated, and left at their defaults: the widths of
MobileNetV2's candidates, and the target cp of DFQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

GATED: Final = frozenset({"dfq", "fractrain"})
RESNETS: Final = frozenset({"resnet18", "resnet34"})
IMAGENET: Final = frozenset({"imagenet"})
CIFAR: Final = frozenset({"cifar10", "cifar100"})
STATIC: Final = frozenset({"static", "sbm"})


@dataclass(frozen=True)
class Preset:
    """One rule.

    Attributes:
        methods, models, datasets: registry names it holds for; empty means all.
        settings: what it sets.
        source: where from.
    """

    methods: frozenset[str]
    settings: Mapping[str, Any]
    source: str
    models: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()

    def holds(self, method: str, model: str, dataset: str) -> bool:
        """Whether the rule is about this run."""
        pairs = ((self.methods, method), (self.models, model), (self.datasets, dataset))
        return all(not names or name in names for names, name in pairs)


_CODE = "FracTrain authors' code, fractrain_imagenet"
_FOUR: Final = {"bits": [3, 4, 6, 8], "grad_bits": [6, 8, 12, 16]}
PRESETS: Final = (
    Preset(
        GATED, {"gate_hidden": 64, "gate_embed": 32}, "authors' CIFAR models: gate 64 / 32 / 32",
        models=frozenset({"mobilenet_v2"}),
    ),
    Preset(
        GATED, {**_FOUR, "weight_bits": 6, "gate_hidden": 0, "gate_embed": 40, "gate_state": 20}, _CODE,
        models=RESNETS, datasets=IMAGENET,
    ),
    Preset(
        frozenset({"fractrain"}), {"target_cp": 3.0, "target_step": 0.5, "sharp": False, "running": 0.9}, _CODE,
        models=RESNETS, datasets=IMAGENET,
    ),
    Preset(frozenset({"pfq"}), _FOUR, _CODE, models=RESNETS, datasets=IMAGENET),
    Preset(
        GATED | STATIC | {"pfq", "cpt"}, {"keep": ["conv1", "*.downsample.0"]},
        "authors' ImageNet models, FracTrain's and CPT's: stem and projections are plain convolutions",
        models=RESNETS, datasets=IMAGENET,
    ),
    Preset(
        frozenset({"pfq", "fractrain"}), {"indicator_clock": "authors"},
        "authors' CIFAR scripts: 400 and 390 iterations", datasets=CIFAR,
    ),
    Preset(
        frozenset({"fractrain"}), {"indicator_loss": "total"}, "authors' train_frac.py, on both kinds of data",
        datasets=CIFAR | IMAGENET,
    ),
    Preset(
        STATIC, {"bits": 8, "grad_bits": 16}, "FracTrain's ImageNet table: FW-8 / BW-16",
        models=RESNETS, datasets=IMAGENET,
    ),
)  # fmt: skip


def paper_settings(method: str, model: str, dataset: str) -> dict[str, Any]:
    """Return the settings that differ from the method's defaults, ready for ``RunConfig.create(settings=...)``.

    Args:
        method, model, dataset: registry names. A method, model or data set without a rule has none.

    Raises:
        ConfigError: no data set has that name.
    """
    from fractrain.data import registry

    dataset = registry.info(dataset).stands_for or dataset
    settings: dict[str, Any] = {}
    for preset in PRESETS:
        if preset.holds(method, model, dataset):
            settings |= preset.settings
    return settings

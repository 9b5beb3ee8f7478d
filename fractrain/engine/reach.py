"""Products of a model from elsewhere that the method of a run does not reach: a run's cost leaves them out."""

from __future__ import annotations

import torch

from fractrain.engine.config import RunConfig
from fractrain.engine.registries import Registries
from fractrain.methods.base import MethodContext
from fractrain.methods.coverage import WHOLE, Watch

SAMPLES = 2


def unreached(config: RunConfig, known: Registries) -> list[str]:
    """A sentence for the user where a method does not reach every product of a model; else nothing.

    A model from elsewhere (a library, a file, a plugin) is built anew and watched in one evaluation pass; those of this
    package consist of layers.
    """
    if not known.from_elsewhere(config.model):
        return []
    info = known.dataset_info(config.dataset)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        plain = known.model(config.model, config.dataset, config.seed)
        blocks = list(getattr(plain, "gateable_blocks", list)())
        method = known.method(config.method, config.settings)
        twin = method.prepare(plain, MethodContext(seed=config.seed, blocks=blocks)).eval()
        method.on_epoch_start(0)
        method.on_step_start(0)
        shape = (SAMPLES, *info.shape)
        watch = Watch(twin, method.state)
        watch.start()
        try:
            twin(torch.randint(info.classes, shape) if info.kind == "text" else torch.randn(shape))
        finally:
            found = watch.stop()
    if found.covered > WHOLE:
        return []
    first = found.outside[0]
    return [
        f"{100 - found.covered:.1f} % of the forward MACs are in products that no method reaches, first "
        f"{first.operation} in {first.name or 'the model'} ({first.why}): cost, cp and MACs are of the covered "
        f"{found.covered:.1f} %; fractrain list --model names them all"
    ]

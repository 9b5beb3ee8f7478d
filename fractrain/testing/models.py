"""Check of models: a method works on every one there is, or says in one line why not."""

from __future__ import annotations

import math

import torch

from fractrain.data import registry as datasets
from fractrain.models import registry
from fractrain.testing.report import ContractViolation
from fractrain.testing.subject import Subject
from fractrain.util.errors import ConfigError

QUICK_PARAMETERS = 3_000_000


def models(subject: Subject) -> str:
    """One step and one evaluation on every registered model for which there is an embedded data set.

    A quick check leaves out the models of more than ``QUICK_PARAMETERS``, and of a family all but the smallest and the
    one that the other checks use; it says so.
    """
    works, refused = [], []
    names = [n for n in registry.names() if n == subject.model or not (subject.quick and _is_left_out(n))]
    for name in names:
        dataset = subject.dataset if name == subject.model else embedded_for(name)
        if dataset is None:
            refused.append(f"{name}: no embedded data set fits it")
            continue
        try:
            _step(subject, name, dataset)
        except ConfigError as error:
            if "\n" in str(error):
                raise ContractViolation(f"{name} is refused in more than one line: {str(error)!r}") from error
            refused.append(f"{name}: {error}")
        else:
            works.append(name)
    if not works:
        raise ContractViolation(f"it works on no model: {'; '.join(refused)}")
    left = [n for n in registry.names() if n not in names]
    text = f"works on {', '.join(works)}"
    text += f"; not on {'; '.join(refused)}" if refused else ""
    return text + (f"; not tried (quick): {', '.join(left)}" if left else "")


def _is_left_out(model: str) -> bool:
    info = registry.info(model)
    size = min(info.parameters.values(), default=0)
    others = [registry.info(n) for n in registry.names() if info.family and registry.info(n).family == info.family]
    return size > QUICK_PARAMETERS or any(min(o.parameters.values(), default=0) < size for o in others)


def embedded_for(model: str) -> str | None:
    """The smallest embedded data set that a model can be trained on, or None."""
    infos = [datasets.info(name) for name in datasets.names()]
    fitting = [i for i in infos if i.embedded and registry.compatible(model, i) is None]
    return min(fitting, key=lambda i: math.prod(i.shape)).name if fitting else None


def _step(subject: Subject, model: str, dataset: str) -> None:
    loop = subject.loop(subject.config(subject.settings, steps=2, period=2, batch=3, model=model, dataset=dataset))
    loop.advance()
    x, _ = loop.stream.batch(*loop.clock.data(0))
    loop.model.eval()
    with torch.no_grad():
        output = loop.model(x)
    if not bool(torch.isfinite(output).all()):
        raise ContractViolation(f"{model}: the output is not finite after one step")

"""``fractrain list --model NAME``: what a method reaches in a model, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fractrain.commands.common import emit_json, stdout_to_stderr
from fractrain.util.errors import ConfigError

if TYPE_CHECKING:
    from fractrain.data.info import DatasetInfo

SAMPLES = 2


def list_coverage(model: str, method: str, dataset: str | None, sets: Sequence[str], as_json: bool) -> None:
    """Print ``session.report()`` of one evaluation pass; without a data set, the first embedded one that fits.

    Raises:
        ConfigError: a name or setting that is not known, or a data set or method that does not fit the model.
    """
    from fractrain.engine.config import collect_sets

    settings, recipe = collect_sets(sets)
    if recipe:
        raise ConfigError("fractrain list --model trains nothing: --set takes settings of the method only")
    with stdout_to_stderr():
        data = _dataset(model, dataset)
        report = _report(model, method, data, settings)
    if as_json:
        products = [asdict(p) for p in report.products]
        emit_json({"model": model, "method": method, "dataset": data.name, "covered_percent": report.covered,
                   "quantized_percent": report.percent("quantized"), "products": products})  # fmt: skip
    else:
        click.echo(f"{method} on {model}, {SAMPLES} samples as in {data.name}\n{report}")


def _dataset(model: str, name: str | None) -> DatasetInfo:
    from fractrain.data import registry
    from fractrain.models.registry import compatible

    if name is not None:
        found = registry.info(name)
        if (reason := compatible(model, found)) is not None:
            raise ConfigError(reason)
        return found
    embedded = (found for n in registry.names() if (found := registry.info(n)).embedded)
    fitting = next((found for found in embedded if compatible(model, found) is None), None)
    if fitting is None:
        raise ConfigError(f"no embedded data set fits {model}: name one, fractrain list --model {model} --dataset NAME")
    return fitting


def _report(model: str, method: str, data: DatasetInfo, settings: dict[str, Any]) -> Any:
    import torch

    from fractrain.methods.session import attach
    from fractrain.models.registry import build

    session = attach(method, build(model, data.classes, data.shape), **settings)
    generator = torch.Generator().manual_seed(0)
    if data.kind == "text":
        x = torch.randint(data.classes, (SAMPLES, *data.shape), generator=generator)
    else:
        x = torch.randn(SAMPLES, *data.shape, generator=generator)
    session.model.eval()
    with torch.no_grad():
        session.model(x)
    return session.report()

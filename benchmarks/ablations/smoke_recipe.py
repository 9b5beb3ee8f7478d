"""Do smoke runs learn with their recipe, whatever the method? And do PFQ and FracTrain get through all their stages?

    python benchmarks/ablations/smoke_recipe.py --out results/bench/smoke_recipe.json [--seeds 3] [--recipes adamw sgd]

Trains the rows of table 2 as its profile ``smoke`` does, on ResNet-38 and the two embedded data sets, with AdamW
(learning rate 0.01, down a cosine), the recipe of smoke runs, and with SGD (0.03 on ``digits``, 0.05 on ``digits100``,
two drops), which it was before. Per row: test and training accuracy at the end and the cost, as means over seeds, the
accuracies with their Student t interval, and the last stage of each seed. Finished runs are kept and never repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fractrain.engine.site import Site
from fractrain.engine.store import RunStore
from fractrain.engine.trainer import Trainer
from fractrain.report.grid import PlannedRun, plan
from fractrain.report.spec import TableSpec, load_spec
from fractrain.report.stats import estimate
from fractrain.util.files import atomic_write

MODEL = "resnet38"
SGD: dict[str, dict[str, Any]] = {
    "digits": {"lr": 0.03, "milestones": [90, 109]},
    "digits100": {"lr": 0.05, "milestones": [184, 208]},
}


def with_recipe(spec: TableSpec, recipe: str, dataset: str) -> TableSpec:
    """Table 2 with one pair only, its smoke runs with the recipe."""
    pairs = tuple(p for p in spec.pairs if p.model == MODEL and spec.dataset(p, "smoke") == dataset)
    change = {} if recipe == "adamw" else {"optimizer": "sgd", "schedule": "steps", **SGD[dataset]}
    rows = tuple(row.model_copy(update={"recipe": {**row.recipe, **change}}) for row in spec.rows)
    return spec.model_copy(update={"pairs": pairs, "rows": rows})


def train(runs: list[PlannedRun], store: RunStore, anew: bool) -> Iterator[tuple[str, Any]]:
    """Train what is missing if ``anew``; the row and the record of each run that is there."""
    for run in runs:
        record: Any = run.record if run.state == "cached" else None
        if record is None and run.config is not None and anew:
            Trainer(run.config, Site(store.root, device="cpu")).run()
            record = store.get(run.run_id)
        if record is not None:
            yield run.row.key, record


def summary(records: list[Any]) -> dict[str, Any]:
    """Means over the seeds of a row."""
    found: dict[str, Any] = {"seeds": [r.summary["seed"] for r in records], "runs": [r.run_id for r in records]}
    for key in ("test_accuracy_last", "train_accuracy"):
        e = estimate([r.summary[key] for r in records])
        found[key] = {"mean": e.mean, "half_width": e.half_width}
    found["cp_percent"] = estimate([r.summary["cost"]["cp_percent@end"] for r in records]).mean
    stages = [[line["method"]["stage"] for line in r.metrics() if "stage" in line["method"]] for r in records]
    if any(stages):
        found["last_stage"] = [int(max(one)) for one in stages]
    return found


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=["adamw", "sgd"], default=["adamw", "sgd"])
    parser.add_argument("--results", type=Path, default=Path("results/runs"), help="the run store")
    parser.add_argument("--no-training", action="store_true", help="summarize the runs that are there")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    store, spec = RunStore(args.results), load_spec("table2")
    document: dict[str, Any] = {"benchmark": "smoke_recipe", "model": MODEL, "recipes": {}}
    for recipe in args.recipes:
        for dataset in SGD:
            rows: dict[str, list[Any]] = {}
            runs = plan(with_recipe(spec, recipe, dataset), "smoke", args.seeds, store)
            for row, record in train(runs, store, not args.no_training):
                rows.setdefault(row, []).append(record)
            found = document["recipes"].setdefault(recipe, {})[dataset] = {k: summary(v) for k, v in rows.items()}
            for row, said in found.items():
                test, own = said["test_accuracy_last"], said["train_accuracy"]
                print(
                    f"{recipe:6} {dataset:10} {row:10} n={len(said['seeds'])} test {test['mean']:.1f} "
                    f"train {own['mean']:.1f} cp {said['cp_percent']:.2f} % last stages {said.get('last_stage', '–')}"
                )
    atomic_write(args.out, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    main()

"""Write docs/coverage.md: what attaching a method to public architectures covers. Needs timm and transformers.

    python benchmarks/coverage/architectures.py --minutes 60

Weights are random, inputs small, configurations of transformers tiny; nothing is downloaded. What was run is kept in
record.json beside this file, each result with its time, and the page is made of that: a call goes on with what was
never run, or not since ``--since``, in one thread at low priority, until its minutes are over.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fractrain
from fractrain.methods import registry

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
RECORD = Path(__file__).with_name("record.json")
STEPS, BATCH, CLASSES, RATE = 10, 4, 8, 1e-4
METHODS: dict[str, dict[str, Any]] = {"sbm": {"layers": "all"}, "fp8": {}}
HEAD = f"""# What `attach` covers

Written by `benchmarks/coverage/architectures.py`: public architectures with random weights, small inputs, batches of
{BATCH}, attached with `example_inputs`. *Covered* is the share of the forward MACs, measured on what ran, in layers
that methods reach: quantized, or left in floating point by the method. What is outside runs at 32 bits, is named by
`session.report()` and counted by `session.costs()`. *fp32* says whether a model with method `fp32` gives the plain
model's output, bit for bit, in training and in evaluation. Columns of methods: {STEPS} training steps (SGD or the
method's optimizer, rate {RATE:g}) and an evaluation with finite results; `sbm` with `layers=all`. *Run*: when (UTC)
and on what input these columns were last run; on images of 32 pixels some networks end in maps of one pixel, of which
a BatchNorm sees {BATCH} values. *Other methods*: how many went through the same of those that were run, and what the
others said; the rest was not run. Rows older than 2026-11-29 14:45 were attached without `example_inputs`. Methods
with gates were given the blocks of the Transformers of timm and transformers by name. Export was not run here.

"""


def _image(name: str, size: int, **options: Any) -> Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]:
    def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        source, _, model = name.partition(":")
        torch.manual_seed(0)
        if source == "torchvision":
            import torchvision

            made = torchvision.models.get_model(model, weights=None, num_classes=CLASSES, **options)
        else:
            import timm

            made = timm.create_model(model, pretrained=False, num_classes=CLASSES, **options)
        return made, {"": torch.randn(BATCH, 3, size, size)}

    return make


def _text(kind: str, part: str = "", **options: Any) -> Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]:
    def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(vocab_size=64, **options)
        model = getattr(transformers, f"{kind}{part}Model")(config)
        return model, {"input_ids": torch.randint(3, 60, (BATCH, 12))}

    return make


SIZE = 64  # pixels: no map that a BatchNorm sees is of one pixel
SMALL = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "densenet121",
    "efficientnet_b0", "regnet_y_400mf", "mnasnet0_5", "convnext_tiny", "swin_t",
)  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    **{f"torchvision {name}": _image(f"torchvision:{name}", SIZE) for name in SMALL},
    "torchvision alexnet": _image("torchvision:alexnet", 64),
    "torchvision vit_b_16": _image("torchvision:vit_b_16", 32, image_size=32),
    "timm resnet10t": _image("timm:resnet10t", SIZE),
    "timm vit_tiny_patch16_224": _image("timm:vit_tiny_patch16_224", 32, img_size=32),
    "transformers BERT": _text("Bert", **TINY),
    "transformers Llama": _text("Llama", num_key_value_heads=2, use_cache=False, **TINY),
    "transformers T5 encoder": _text("T5", "Encoder", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "transformers GPT-2": _text("GPT2", n_embd=32, n_layer=2, n_head=4, use_cache=False),
}  # fmt: skip

BLOCKS = {
    "timm vit_tiny_patch16_224": [f"blocks.{i}" for i in range(12)],
    "transformers BERT": ["encoder.layer.0", "encoder.layer.1"], "transformers Llama": ["layers.0", "layers.1"],
    "transformers T5 encoder": ["encoder.block.0", "encoder.block.1"], "transformers GPT-2": ["h.0", "h.1"],
}  # fmt: skip
"""Blocks for methods with gates, where the model's blocks are not known by themselves."""


def _run(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(1)  # dropout
    out = model(inputs[""]) if "" in inputs else model(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]


def _example(inputs: dict[str, torch.Tensor]) -> Any:
    return inputs.get("", inputs)


def _equal(make: Callable[[], Any]) -> str:
    (plain, inputs), (own, _) = make(), make()
    session = fractrain.attach("fp32", own, example_inputs=_example(inputs))
    for training in (True, False):
        plain.train(training)
        session.model.train(training)
        with torch.set_grad_enabled(training):
            if not torch.equal(_run(plain, inputs), _run(session.model, inputs)):
                return "no"
    return "yes"


def _trains(make: Callable[[], Any], method: str, settings: dict[str, Any]) -> tuple[str, fractrain.Session | None]:
    model, inputs = make()
    session = None
    try:
        session = fractrain.attach(
            method, model, steps_per_epoch=STEPS, total_steps=STEPS, batch_size=BATCH,
            example_inputs=_example(inputs), **settings,
        )  # fmt: skip
        own = session.method.makes_optimizer()
        optimizer = session.optimizer(lr=RATE) if own else torch.optim.SGD(session.model.parameters(), RATE)
        for _ in range(STEPS):
            session.loss(_run(session.model, inputs).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            session.step()
        session.model.eval()
        with torch.no_grad():
            good = bool(_run(session.model, inputs).isfinite().all())
        return ("yes" if good else "not finite"), session
    except Exception as error:  # the page says what happened, whatever it is
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}".replace("|", "/"), session


def _shares(session: fractrain.Session | None) -> list[str] | None:
    """Covered and quantized percent, and what is outside; None of a session without a finished step."""
    if session is None or not session.costs()["covered_percent"] >= 0:
        return None
    report = session.report()
    places: dict[str, int] = {}
    for p in report.outside:
        text = f"{p.operation} {p.why}"
        places[text] = places.get(text, 0) + p.macs
    why = "; ".join(f"{t} ({100 * n / report.macs:.2f} %)" for t, n in places.items())
    return [f"{report.covered:.2f}", f"{report.percent('quantized'):.1f}", why]


def _base(make: Callable[[], Any]) -> dict[str, Any]:
    """The columns of an architecture but that of the other methods."""
    began = time.process_time()
    ran = {method: _trains(make, method, settings) for method, settings in METHODS.items()}
    seconds = round(time.process_time() - began, 1)
    found = next((shares for _, session in ran.values() if (shares := _shares(session))), None)
    if found is None:  # refused by all: what fp32 shows tells why
        found = _shares(_trains(make, "fp32", {})[1]) or ["-", "-", ""]
    said = {method: text for method, (text, _) in ran.items()}
    size = "x".join(str(n) for n in next(iter(make()[1].values())).shape[1:])
    row = {"time": _now(), "input": size, "shares": found, "fp32": _equal(make), "methods": said}
    return {**row, "processor_seconds": seconds}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _due(record: dict[str, Any], since: str, first: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Architectures, the longest not run first; then, with their other methods, the cheapest first."""
    times = {name: record.get(name, {}).get("time", "") for name in MODELS}
    yield from (
        (name, "") for name in sorted(MODELS, key=lambda n: (n not in first, times[n])) if times[name] < since
    )  # fmt: skip
    for name in sorted(MODELS, key=lambda n: record.get(n, {}).get("processor_seconds", math.inf)):
        others = record.get(name, {}).get("others", {})
        yield from (
            (name, method) for method in registry.names()
            if method not in (*METHODS, "fp32") and others.get(method, {}).get("time", "") < since
        )  # fmt: skip


def _line(name: str, row: dict[str, Any]) -> str:
    if not row.get("time"):
        return f"| {name} | not run |" + " |" * (6 + len(METHODS))
    others = {method: one["said"] for method, one in row.get("others", {}).items()}
    well = [method for method, said in others.items() if said == "yes"]
    cells = [f"{len(well)} of {len(others)}" if others else "not run"]
    cells += [f"{method}: {said}" for method, said in others.items() if said != "yes"]
    covered, quantized, why = row["shares"]
    results = [row["methods"].get(method, "not run") for method in METHODS]
    run = f"{row['time']}, {row['input']}"
    return f"| {' | '.join([name, covered, quantized, row['fp32'], *results, run, '; '.join(cells), why])} |"


def _write(record: dict[str, Any]) -> None:
    quantized = f"quantized % by {next(iter(METHODS))}"
    head = ["Architecture", "covered %", quantized, "fp32", *METHODS, "run", "other methods", "outside"]
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * (7 + len(METHODS)),
        *(_line(name, record.get(name, {})) for name in MODELS),
    ]
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")


def main() -> None:
    """Run what is due and write record and page after each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=0.0, help="begin nothing after that; 0: only write the page")
    parser.add_argument("--since", default="2000-01-01", metavar="TIME", help="run anew what was last run before")
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="these first")
    chosen = parser.parse_args()
    os.nice(15)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    began = time.monotonic()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name, method in _due(record, chosen.since, chosen.names):
        if time.monotonic() - began > 60 * chosen.minutes:
            break
        row = record.setdefault(name, {})
        if method:
            gated = method in ("dfq", "fractrain", "slu") and name in BLOCKS
            said, _ = _trains(MODELS[name], method, {"blocks": BLOCKS[name]} if gated else {})
            row.setdefault("others", {})[method] = {"said": said, "time": _now()}
        else:
            row.update(_base(MODELS[name]))
        print(f"{time.monotonic() - began:6.0f} s", name, method or row["methods"], file=sys.stderr, flush=True)
        _write(record)
    _write(record)


if __name__ == "__main__":
    main()

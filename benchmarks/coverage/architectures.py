"""Write docs/coverage.md: what attaching each method to public architectures gives. Needs timm and transformers.

    python benchmarks/coverage/architectures.py --minutes 60

Weights are random, inputs small, configurations of transformers tiny; nothing is downloaded. What was run is kept in
record.json beside this file, each result with its time, and the page is made of that: a call goes on with what was
never run, or not since ``--since``, in one thread at low priority, until its minutes are over. Small architectures
come before big ones, and the methods whose steps take longest last.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fractrain
from fractrain.methods import export_onnx, registry
from fractrain.methods.base import MethodContext
from fractrain.methods.blocks import gateable_blocks, proposed
from fractrain.methods.export import SUFFIXES
from fractrain.methods.export_onnx import INSTEAD, OWN
from fractrain.util.errors import FractrainError

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
RECORD = Path(__file__).with_name("record.json")
STEPS, BATCH, CLASSES, RATE = 10, 2, 8, 1e-4
FLOAT64 = "in float64"  # where graph and evaluation are equal, not within a step in float32
BASE, EXPORT = "base", "export"  # parts of a record that are of no method
SETTINGS: dict[str, dict[str, Any]] = {"sbm": {"layers": "all"}}
GATED = ("dfq", "fractrain", "slu")
SLOW = ("adam8bit", "quartet2")
LIMIT = 600.0  # processor seconds of a method's steps
HEAD = f"""# What `attach` covers

Written by `benchmarks/coverage/architectures.py`: public architectures with random weights, from small to big, on
small inputs, batches of {BATCH}, attached with `example_inputs`. *Covered* is the share of the forward MACs, measured
on what ran, in layers that methods reach: quantized, or left in floating point by the method. What is outside runs at
32 bits, is named by `session.report()` and counted by `session.costs()`. *fp32* says whether a model with method `fp32`
gives the plain model's output, bit for bit, in training and in evaluation. *Trained*: how many methods of those run
went through {STEPS} training steps (SGD or the method's optimizer, rate {RATE:g}) and an evaluation with finite
results; what the others said is below the table, and what was not run is "not run". `sbm` with `layers=all`;
methods with gates on the blocks that they know, else on those that `attach` proposes, or that are named below.
*Export*: `session.export` after a training step with `sbm`; the plain model loads the weights of the first two formats,
and onnxruntime gives our evaluation's output within a step of its grid by the third. *In float64*: it gives more, and
graph and evaluation are equal in float64; see [library.md](library.md). *Run*: when (UTC, the oldest of a row's parts)
and on what input.

"""


def _image(name: str, size: int, **options: Any) -> Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]:
    def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        source, _, model = name.partition(" ")
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
IMAGES = {
    "torchvision shufflenet_v2_x0_5": {}, "torchvision squeezenet1_1": {}, "torchvision mnasnet0_5": {},
    "torchvision mobilenet_v3_small": {}, "torchvision mobilenet_v2": {}, "torchvision regnet_y_400mf": {},
    "torchvision efficientnet_b0": {}, "timm resnet10t": {}, "timm vit_tiny_patch16_224": {"img_size": SIZE},
    "torchvision densenet121": {}, "torchvision resnet18": {}, "torchvision resnet50": {}, "torchvision swin_t": {},
    "torchvision convnext_tiny": {}, "torchvision alexnet": {}, "torchvision vit_b_16": {"image_size": SIZE},
}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    "transformers T5 encoder": _text("T5", "Encoder", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "transformers Llama": _text("Llama", num_key_value_heads=2, use_cache=False, **TINY),
    "transformers BERT": _text("Bert", **TINY),
    "transformers GPT-2": _text("GPT2", n_embd=32, n_layer=2, n_head=4, use_cache=False),
    **{name: _image(name, SIZE, **options) for name, options in IMAGES.items()},
}
BLOCKS = {
    "torchvision shufflenet_v2_x0_5": ["stage2", "stage3", "stage4"],
    "torchvision squeezenet1_1": ["features.3", "features.4"], "torchvision alexnet": ["features"],
    "torchvision densenet121": [f"features.denseblock{i}" for i in (1, 2, 3, 4)],
}  # fmt: skip
"""Blocks for methods with gates, where neither the method nor ``attach`` finds any."""


@lru_cache(maxsize=1)
def _made(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return MODELS[name]()


def _model(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A copy of the architecture's model, and its inputs."""
    model, inputs = _made(name)
    return copy.deepcopy(model), inputs


def _run(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(1)  # dropout
    out = model(inputs[""]) if "" in inputs else model(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]


def _attached(name: str, method: str, shown: bool = True) -> tuple[fractrain.Session, dict[str, torch.Tensor]]:
    """A session, with the model's own products ``shown`` to it, and inputs."""
    model, inputs = _model(name)
    settings = dict(SETTINGS.get(method, {}))
    if method in GATED:
        try:
            gateable_blocks(model, MethodContext())
        except FractrainError:
            settings["blocks"] = BLOCKS.get(name) or proposed(model)
    session = fractrain.attach(
        method, model, steps_per_epoch=STEPS, total_steps=STEPS, batch_size=BATCH,
        example_inputs=inputs.get("", inputs) if shown else None, **settings,
    )  # fmt: skip
    return session, inputs


def _base(name: str) -> dict[str, Any]:
    """What is covered, by a pass with sbm, and whether fp32 changes nothing."""
    session, inputs = _attached(name, "sbm")
    _run(session.model.train(), inputs)
    report = session.report()
    places: dict[str, int] = {}
    for p in report.outside:
        text = f"{p.operation} {p.why}"
        places[text] = places.get(text, 0) + p.macs
    (plain, _), (session, _) = _model(name), _attached(name, "fp32")
    equal = True
    for training in (True, False):
        plain.train(training)
        session.model.train(training)
        with torch.set_grad_enabled(training):
            equal &= torch.equal(_run(plain, inputs), _run(session.model, inputs))
    return {
        "input": "x".join(str(n) for n in next(iter(inputs.values())).shape[1:]), "covered": f"{report.covered:.2f}",
        "quantized": f"{report.percent('quantized'):.1f}", "fp32": "yes" if equal else "no",
        "outside": "; ".join(f"{t} ({100 * n / report.macs:.2f} %)" for t, n in places.items()),
    }  # fmt: skip


def _trained(name: str, method: str) -> str:
    """``yes``, or why not, in a line."""
    session, inputs = _attached(name, method)
    own = session.method.makes_optimizer()
    optimizer = session.optimizer(lr=RATE) if own else torch.optim.SGD(session.model.parameters(), RATE)
    began = time.process_time()
    for step in range(STEPS):
        if time.process_time() - began > LIMIT:
            return f"too slow: stopped after {step} steps ({time.process_time() - began:.0f} processor seconds)"
        session.loss(_run(session.model, inputs).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    session.model.eval()
    with torch.no_grad():
        return "yes" if bool(_run(session.model, inputs).isfinite().all()) else "not finite"


def _stepped(name: str, shown: bool) -> tuple[fractrain.Session, Any]:
    session, inputs = _attached(name, "sbm", shown)
    session.loss(_run(session.model.train(), inputs).square().mean()).backward()
    torch.optim.SGD(session.model.parameters(), RATE).step()
    session.step()
    return session, inputs.get("", inputs)


def _exported(name: str) -> dict[str, str]:
    """For every format ``yes``, or why not."""
    from safetensors.torch import load_file

    said = {}
    with tempfile.TemporaryDirectory() as folder:
        session, examples = _stepped(name, True)
        weights = torch.load(session.export(f"{folder}/a.pt"), weights_only=True)["weights"]
        for form, state in (
            ("torch", weights),
            ("safetensors", load_file(session.export(f"{folder}/a.safetensors", "safetensors"))),
        ):
            plain, _ = _model(name)
            if form == "safetensors":  # holds no versions of modules' states, which some modules want
                state = OrderedDict(state)
                state._metadata = plain.state_dict()._metadata  # type: ignore[attr-defined]
            plain.load_state_dict(state)
            said[form] = "yes"
        for shown in (True, False):
            heard = BufferingHandler(capacity=9)
            export_onnx.log.addHandler(heard)
            try:
                session, examples = (session, examples) if shown else _stepped(name, False)
                session.export(f"{folder}/a.onnx", "onnx-qdq", example_inputs=examples)
                text = "".join(f"{FLOAT64}: {record.getMessage()}" for record in heard.buffer)
                without = f"attached without example_inputs ({said.get('onnx-qdq')}){'; ' if text else ''}"
                said["onnx-qdq"] = (text or "yes") if shown else without + text
                break
            except FractrainError as error:
                text = str(error).removesuffix(INSTEAD)
                said["onnx-qdq"] = text if shown else f"{said['onnx-qdq']}; without example_inputs: {text}"
            finally:
                export_onnx.log.removeHandler(heard)
            if OWN not in text:
                break
    return said


def _part(name: str, part: str) -> dict[str, Any]:
    """Run one part of an architecture's row."""
    began = time.process_time()
    try:
        found = _base(name) if part == BASE else _exported(name) if part == EXPORT else {"said": _trained(name, part)}
    except Exception as error:  # the page says what happened, whatever it is
        if part == BASE:
            raise
        kind = "" if isinstance(error, FractrainError) else f"crash: {type(error).__name__}: "
        text = f"{kind}{str(error).splitlines()[0]}".replace("|", "/")
        found = dict.fromkeys(SUFFIXES if part == EXPORT else ("said",), text)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    return {**found, "time": now, "seconds": round(time.process_time() - began, 1)}


def _due(record: dict[str, Any], since: str, names: Sequence[str], methods: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Parts of the record that are not there, or older than asked: small architectures first, slow methods last."""
    for slow in (False, True):
        for name in names or MODELS:
            for part in methods or (BASE, *registry.names(), EXPORT):
                if (part in SLOW) == slow and record.get(name, {}).get(part, {}).get("time", "") < since:
                    yield name, part


def _line(name: str, row: dict[str, Any]) -> str:
    base, said = row.get(BASE), {method: row[method]["said"] for method in registry.names() if method in row}
    if base is None:
        return f"| {name} | not run | | | | | | | | |"
    trained = f"{sum(s == 'yes' for s in said.values())} of {len(said)}"
    left = [method for method in registry.names() if method not in said]
    trained += f"; not run: {', '.join(left)}" if left else ""
    exported = [_short(row.get(EXPORT, {}).get(form, "not run")) for form in SUFFIXES]
    run = f"{min(part['time'] for part in row.values())}, {base['input']}"
    measured = [base[k] for k in ("covered", "quantized", "fp32")]
    return f"| {' | '.join([name, *measured, trained, *exported, run, base['outside']])} |"


def _short(said: str) -> str:
    """An export's result in a cell."""
    cell = "as attached without example_inputs" if said.startswith("attached") else "" if FLOAT64 in said else "no"
    return said if said in ("yes", "not run") else ", ".join(t for t in (cell, FLOAT64 if FLOAT64 in said else "") if t)


def _others(record: dict[str, Any], parts: Sequence[str], key: str) -> Iterator[str]:
    """What was said of parts that did not go well: once for architectures of which it begins alike."""
    for part in parts:
        alike: dict[str, list[str]] = {}
        texts: dict[str, str] = {}
        for name in MODELS:
            said = record.get(name, {}).get(part, {}).get(key, "yes")
            if said != "yes":
                begin = said if FLOAT64 in said else said[:20]
                alike.setdefault(begin, []).append(name)
                texts.setdefault(begin, said)
        for begin, names in alike.items():
            yield f"* {f'`{part}`, ' if key == 'said' else ''}{', '.join(names)}: {texts[begin]}"


def _write(record: dict[str, Any]) -> None:
    head = ["Architecture", "covered %", "quantized % by sbm", "fp32", "trained"]
    head += [*(f"export {form}" for form in SUFFIXES), "run", "outside"]
    given = [f"* {name}: {', '.join(f'`{b}`' for b in blocks)}" for name, blocks in BLOCKS.items()]
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(_line(name, record.get(name, {})) for name in MODELS),
        "",
        "What methods said that did not train (of architectures listed together, the first one's words):",
        "",
        *_others(record, registry.names(), "said"),
        "",
        "What `onnx-qdq` has refused, or said (likewise):",
        "",
        *_others(record, [EXPORT], "onnx-qdq"),
        "",
        "Blocks that were named for methods with gates:",
        "",
        *given,
    ]
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")


def main() -> None:
    """Run what is due and write record and page after each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=0.0, help="begin nothing after that; 0: only write the page")
    parser.add_argument("--since", default="2000-01-01", metavar="TIME", help="run anew what was last run before")
    parser.add_argument("--parts", default="", help=f"only these methods (or {BASE}, {EXPORT}), comma separated")
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="only these")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("fractrain").setLevel(logging.ERROR)
    export_onnx.log.setLevel(logging.WARNING)
    began = time.monotonic()
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name, part in list(_due(record, chosen.since, chosen.names, [p for p in chosen.parts.split(",") if p])):
        if time.monotonic() - began > 60 * chosen.minutes:
            break
        found = record.setdefault(name, {})[part] = _part(name, part)
        print(f"{time.monotonic() - began:6.0f} s", name, part, found, file=sys.stderr, flush=True)
        _write(record)
    _write(record)


if __name__ == "__main__":
    main()

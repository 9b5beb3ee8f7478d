"""Write docs/coverage.md: what attaching a method to public architectures covers. Needs timm and transformers.

    python benchmarks/coverage/architectures.py

Weights are random, inputs small, configurations of transformers tiny; nothing is downloaded.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fractrain

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
STEPS, BATCH, CLASSES, RATE = 10, 4, 8, 1e-4
METHODS: dict[str, dict[str, Any]] = {"sbm": {"layers": "all"}, "fp8": {}}
HEAD = f"""# What `attach` covers

Written by `benchmarks/coverage/architectures.py`: public architectures with random weights, small inputs, batches of
{BATCH}. *Covered* is the share of the forward MACs, measured on what ran, in layers that methods reach: quantized, or
left in floating point by the method. What is outside runs at 32 bits, is named by `session.report()` and counted by
`session.costs()`. *fp32* says whether a model with method `fp32` gives the plain model's output, bit for bit, in
training and in evaluation. Columns of methods: {STEPS} training steps (SGD, rate {RATE:g}) and an evaluation with
finite results; `sbm` with `layers=all`. Other methods, and export, were not run here. Operations `bmm` and
`scaled_dot_product...` are products of two activations in a model's own attention; methods reach those of
`nn.MultiheadAttention` alone. transformers' `Conv1D` (GPT-2) is no `nn.Linear`: it keeps its weight transposed.

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


SMALL = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "densenet121",
    "efficientnet_b0", "regnet_y_400mf", "mnasnet0_5", "convnext_tiny", "swin_t",
)  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]] = {
    **{f"torchvision {name}": _image(f"torchvision:{name}", 32) for name in SMALL},
    "torchvision alexnet": _image("torchvision:alexnet", 64),
    "torchvision vit_b_16": _image("torchvision:vit_b_16", 32, image_size=32),
    "timm resnet10t": _image("timm:resnet10t", 32),
    "timm vit_tiny_patch16_224": _image("timm:vit_tiny_patch16_224", 32, img_size=32),
    "transformers BERT": _text("Bert", **TINY),
    "transformers Llama": _text("Llama", num_key_value_heads=2, **TINY),
    "transformers T5 encoder": _text("T5", "Encoder", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    "transformers GPT-2": _text("GPT2", n_embd=32, n_layer=2, n_head=4),
}  # fmt: skip


def _run(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(1)  # dropout
    out = model(inputs[""]) if "" in inputs else model(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]


def _equal(make: Callable[[], Any]) -> str:
    (plain, inputs), (own, _) = make(), make()
    session = fractrain.attach("fp32", own)
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
        session = fractrain.attach(method, model, **settings)
        optimizer = torch.optim.SGD(session.model.parameters(), RATE)
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


def _row(name: str, make: Callable[[], Any]) -> str:
    ran = {method: _trains(make, method, settings) for method, settings in METHODS.items()}
    found = next((shares for _, session in ran.values() if (shares := _shares(session))), None)
    if found is None:  # refused by all: what fp32 shows tells why
        found = _shares(_trains(make, "fp32", {})[1]) or ["-", "-", ""]
    covered, quantized, why = found
    results = " | ".join(said for said, _ in ran.values())
    return f"| {name} | {covered} | {quantized} | {_equal(make)} | {results} | {why} |"


def main() -> None:
    """Run all and write the page."""
    logging.disable(logging.WARNING)
    lines = [
        f"| Architecture | covered % | quantized % by {next(iter(METHODS))} | fp32 | {' | '.join(METHODS)} | outside |",
        "|" + "---|" * (5 + len(METHODS)),
    ]
    for name, make in MODELS.items():
        lines.append(_row(name, make))
        print(lines[-1], file=sys.stderr, flush=True)
        PAGE.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

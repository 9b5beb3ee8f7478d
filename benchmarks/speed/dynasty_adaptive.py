"""Does it matter which tile DYNASTY's adaptive map (a reconstruction, ours) gives its bits? And what does it take?

    python benchmarks/speed/dynasty_adaptive.py --out FILE [--seeds 8] [--steps 100] [--pairs "3 bits"]

Trains the CIFAR ResNet-8 on the embedded 8x8 digits with the adaptive map at a fixed budget (no feedback, so that the
cost stays put) and with three controls of the same cost: the same widths at other tiles of each operand (shuffled), by
the sensitivities of other tiles of any layer (random), and one width (uniform); for every seed the same initial weights
and batches. Prints the paired differences (adaptive - control) of test accuracy and test loss with their Student t
interval, and the costs: bit operations per MAC over *all* layers, first and last included. Then the share of a
training step of ResNet-38 (batch 64) that measuring sensitivities and making maps takes, and the step's ratio to the
static 8-bit baseline ``sbm``. FILE keeps every run: the same command goes on where it was stopped.

What is compared:

* ``2 bits``: widths 0 (errors only), 2, 4, 8 against uniform 2;
* ``3 bits``: widths 2, 3, 4, 6, 8 against uniform 3;
* ``4 bits``: the default widths 2, 4, 8 against uniform 4.

In all three every layer is quantized. ``ends in float``: the same with first and last layer in floating point, so that
what the map does for these two cannot decide; it tells how much of a gain is theirs.

A small net on small images: it shows whether the mechanism works, and says nothing about CIFAR-100 or ImageNet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fractrain.data import registry as data_registry
from fractrain.methods.session import Session, attach
from fractrain.models.resnet_cifar import ResNetCifar
from fractrain.report.stats import Estimate, estimate
from fractrain.util.files import atomic_write

FIXED = {"tighten": 0.0, "relax": 0.0}
SKIP = [0, 2, 4, 8]
FINE = [2, 3, 4, 6, 8]
ENDS = {"keep_first": True, "keep_last": True}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2 bits": ({"budget": 2.0}, {"widths": SKIP, "budget_low": 2.0}),
    "2 bits, ends in float": ({"budget": 2.0, **ENDS}, {"widths": SKIP, "budget_low": 2.0}),
    "3 bits": ({"budget": 3.0}, {"widths": FINE}),
    "3 bits, ends in float": ({"budget": 3.0, **ENDS}, {"widths": FINE}),
    "4 bits": ({"budget": 4.0}, {}),
}
CONFIDENCE = 0.95
LR, BATCH = 0.05, 64
CONSTANT = 1e-3  # relative difference of cost that counts as equal

KINDS = ("adaptive", "shuffled", "random", "uniform")

Images = tuple[torch.Tensor, torch.Tensor]
Runs = dict[str, list[dict[str, float]]]  # by kind of map, one per seed
Keep = Callable[[], None]


def digits() -> tuple[Images, Images]:
    """Training and test part, images float ``[N, 3, 8, 8]`` around 0."""
    data = data_registry.load("digits")
    train, test = (((s.images.float() / 255 - 0.5) / 0.35, torch.as_tensor(s.labels)) for s in (data.train, data.test))
    return train, test


def picture(x: torch.Tensor) -> torch.Tensor:
    """The batch in channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


def session_of(method: str, seed: int, depth: int, **settings: Any) -> tuple[Session, torch.optim.Optimizer]:
    """A seeded model of ``6 depth + 2`` layers with the method attached, and its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetCifar(depth, 10).to(memory_format=torch.channels_last)
    session = attach(method, model, seed=seed, **settings)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, foreach=True)
    return session, optimizer


def step(session: Session, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One training step."""
    loss = session.loss(F.cross_entropy(session.model(x), y))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    session.step()


def trained(train: Images, test: Images, seed: int, steps: int, **settings: Any) -> dict[str, float]:
    """Train one ResNet-8; return test accuracy (percent), test loss, and bit operations per MAC."""
    session, optimizer = session_of("dynasty", seed, 1, **settings)
    generator = torch.Generator().manual_seed(seed)
    order, position = torch.empty(0, dtype=torch.int64), 0
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR if i < 0.75 * steps else LR / 10
        if position + BATCH > len(order):
            order, position = torch.randperm(len(train[0]), generator=generator), 0
        chosen = order[position : position + BATCH]
        position += BATCH
        step(session, optimizer, picture(train[0][chosen]), train[1][chosen])
    rows = list(session.ledger.rows())
    cost = sum(r.macs * r.bits1 * r.bits2 for r in rows) / sum(r.macs for r in rows)
    session.model.eval()
    with torch.no_grad():
        output = torch.cat([session.model(picture(x)) for x in torch.split(test[0], BATCH)])
    right = (output.argmax(1) == test[1]).double().mean()
    return {"accuracy": 100 * float(right), "loss": float(F.cross_entropy(output, test[1])), "bitops_per_mac": cost}


def train_all(train: Images, test: Images, seeds: int, steps: int, name: str, runs: Runs, keep: Keep) -> Runs:
    """Train what is missing in ``runs`` of one pair; ``keep`` is called after each run."""
    common, more = PAIRS[name]
    for seed in range(seeds):
        for kind in KINDS:
            done = runs.setdefault(kind, [])
            if len(done) <= seed:
                own = {} if kind == "uniform" else {**FIXED, **more}
                done.append(trained(train, test, seed, steps, map=kind, **common, **own))
                keep()
        print(f"  {name}: seed {seed + 1} of {seeds}", file=sys.stderr)
    return runs


def compare(runs: Runs, name: str) -> dict[str, Any]:
    """Set the adaptive maps of a pair against each control."""
    common, more = PAIRS[name]
    out: dict[str, Any] = {"settings": {"common": common, "maps": {**more, **FIXED}}, "runs": runs, "against": {}}
    for control in KINDS[1:]:
        found: dict[str, Any] = {}
        for key in ("accuracy", "loss"):
            pairs = zip(runs["adaptive"], runs[control], strict=True)
            found[key] = interval(estimate([a[key] - c[key] for a, c in pairs], CONFIDENCE))
        means = [statistics.mean(r["bitops_per_mac"] for r in runs[kind]) for kind in ("adaptive", control)]
        found["cost"] = {"adaptive": means[0], "control": means[1], "ratio": means[0] / means[1]}
        out["against"][control] = {**found, "verdict": verdict(found)}
    return out


def interval(e: Estimate) -> dict[str, float | None]:
    """As plain values."""
    return {"mean": e.mean, "low": e.low, "high": e.high, "sd": e.sd, "n": e.n}


def verdict(result: dict[str, Any]) -> str:
    """What the intervals say, and nothing more."""
    ratio = result["cost"]["ratio"]
    if ratio > 1 + CONSTANT:
        return f"adaptive costs {100 * (ratio - 1):.1f} % more: no comparison at equal cost"
    words = []
    for key, better in (("accuracy", 1), ("loss", -1)):
        low, high = result[key]["low"], result[key]["high"]
        if low is None or low <= 0 <= high:
            words.append(f"{key}: no difference shown")
        else:
            words.append(f"{key}: adaptive {'better' if low * better > 0 else 'worse'}")
    return "; ".join(words) + f" (at {100 * ratio:.1f} % of the control's cost)"


def median_step(name: str, train: Images, steps: int, **settings: Any) -> tuple[float, float]:
    """Median seconds of a ResNet-38 step, and mean seconds per step inside analytics and map generation."""
    session, optimizer = session_of(name, 0, 6, **settings)
    spent = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args)
            finally:
                spent[0] += time.perf_counter() - start

        return wrapped

    method: Any = session.method
    for inner in ("_observe", "_refresh"):
        if hasattr(method, inner):
            setattr(method, inner, timed(getattr(method, inner)))
    x, y = picture(train[0][:BATCH]), train[1][:BATCH]
    times = []
    for i in range(steps + 8):
        if i == 8:  # compiled kernels are loaded
            spent[0] = 0.0
        start = time.perf_counter()
        step(session, optimizer, x, y)
        times.append(time.perf_counter() - start)
    return statistics.median(times[8:]), spent[0] / steps


def overhead(train: Images, steps: int) -> dict[str, float]:
    """Share of the analytics, and the ratio to static 8-bit training."""
    baseline, _ = median_step("sbm", train, steps)
    uniform, _ = median_step("dynasty", train, steps, map="uniform")
    adaptive, inside = median_step("dynasty", train, steps)
    return {
        "sbm_step_seconds": baseline, "uniform_step_seconds": uniform, "step_seconds": adaptive,
        "analytics_share": inside / adaptive, "step_over_sbm": adaptive / baseline,
    }  # fmt: skip


def read(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a former call left in the file; an error where it was about other runs."""
    if not path.is_file():
        return {**about, "comparisons": {}}
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if different := [key for key in about if known.get(key) != about[key]]:
        raise SystemExit(f"{path} is of other runs ({', '.join(different)} differ): name another file")
    return known


def show(document: dict[str, Any]) -> None:
    """Print a summary."""
    print(f"DYNASTY (reconstruction): adaptive maps against controls, ResNet-8 on digits, {document['steps']} steps")
    for name, pair in document["comparisons"].items():
        for control, r in pair["against"].items():
            for key, unit in (("accuracy", "points"), ("loss", "")):
                e = r[key]
                print(
                    f"  {name:22} - {control:9} {key:8} {e['mean']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}] {unit}, "
                    f"n={e['n']}"
                )
            print(f"  {name:22} - {control:9} -> {r['verdict']}")
    if cost := document.get("overhead"):
        print(
            f"analytics and maps: {100 * cost['analytics_share']:.1f} % of a step ({1000 * cost['step_seconds']:.0f} "
            f"ms); step = {cost['step_over_sbm']:.2f} x sbm"
        )


def main() -> None:
    """Run what is missing of all comparisons, print a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="seeds per comparison, at least 2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--overhead-steps", type=int, default=48, help="0: do not time steps")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is fastest for tensors as small as these")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS), help="what is compared")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, kept up to date after every run")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one seed has no interval")
    torch.set_num_threads(args.threads)
    about = {
        "benchmark": "dynasty_adaptive", "model": "resnet8", "dataset": "digits", "steps": args.steps,
        "confidence": CONFIDENCE, "torch": torch.__version__,
    }  # fmt: skip
    document = read(args.out, about)

    def keep() -> None:
        atomic_write(args.out, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())

    train, test = digits()
    for name in args.pairs:
        runs = document["comparisons"].setdefault(name, {"runs": {}})["runs"]
        train_all(train, test, args.seeds, args.steps, name, runs, keep)
        document["comparisons"][name] = compare(runs, name)
        keep()
    if args.overhead_steps:
        document["overhead"] = overhead(train, args.overhead_steps)
        keep()
    show(document)


if __name__ == "__main__":
    main()

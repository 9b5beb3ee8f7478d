"""What ``fractrain bench`` measures, and what is aimed at. Imports nothing heavy: ``--help`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL, BATCH, SIZE, REPEATS = "resnet38", 128, 32, 10
QUICK_BATCH, QUICK_SIZE, QUICK_REPEATS = 8, 8, 2
FP32_STEP = "eager FP32 training step of the same model, channels_last"
VIEWS = ("fp32", "sbm", "dfq", "fractrain")  # whose step a full run takes apart
QUICK_VIEWS = ("dfq",)
TYPICAL = (1, 3)  # candidates that trained gates share most


@dataclass(frozen=True)
class PathInfo:
    """One line of the table.

    Attributes:
        name: in the JSON and on the command line.
        title: what is measured, exactly.
        goal: largest ratio aimed at; None: for orientation only.
        unit: of the ratio.
        baseline: what it is a ratio to.
        authors: the same ratio for the FracTrain authors' code (to FP32 in contiguous memory), or an empty text.
        method: whose step it is, where that is all there is to say.
        settings: of the method that differ from its defaults.
        batch: samples per step at most, where the row is about small batches.
        threads: instead of the bench's.
        candidates: those that the gates are made to choose in turn; None: the gates decide.
    """

    name: str
    title: str
    goal: float | None
    unit: str = "x"
    baseline: str = FP32_STEP
    authors: str = ""
    method: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None
    threads: int | None = None
    candidates: tuple[int, ...] | None = None


PATHS = (
    PathInfo(
        "fp32_contiguous",
        "FP32 training step in contiguous (NCHW) memory: for orientation, older figures are ratios to this one", None,
    ),
    PathInfo(
        "static8_exact",
        "static 8/8 training step, exact: method sbm at its defaults, which are the quantizer of the authors' code",
        0.65, authors="1.6-1.9", method="sbm",
    ),
    PathInfo(
        "dfq_all_live",
        "DFQ step, exact, all five candidates live: in every block a fifth of the samples is made to choose each",
        2.4, authors="9", method="dfq", candidates=(0, 1, 2, 3, 4),
    ),
    PathInfo(
        "dfq_typical",
        "DFQ step, exact, two of five candidates live: in every block half of the samples is made to choose candidate "
        "1 (4 bits, errors 6), half candidate 3 (6 bits, errors 8), the two that trained gates share most; trained "
        "gates have 1.3 to 1.9 live candidates per block",
        1.5, authors="9", method="dfq", candidates=TYPICAL,
    ),
    PathInfo(
        "dfq_selected_only",
        "DFQ step with forward=selected (each sample at its own precision only), choices as in dfq_typical", 0.9,
        method="dfq", settings={"forward": "selected"}, candidates=TYPICAL,
    ),
    PathInfo(
        "quantize_stochastic",
        "quantize with stochastic rounding to 8 bits, range included, of an error tensor [batch, 16, size, size]",
        2.0, baseline="memory floor: one read (fastest of amax, amin, sum) and one copy_ of the same tensor",
        authors="26",
    ),
    PathInfo(
        "memory_fractrain", "peak memory of FracTrain training steps above the import base, choices as in dfq_typical",
        1.6, baseline="the same of " + FP32_STEP + "; each in a process of its own", authors="4.9",
    ),
    PathInfo(
        "harness_overhead",
        "time of a FracTrain step of the training loop spent outside forward, backward and optimizer, plus the "
        "layers' reports to the ledger inside them",
        0.01, unit="share of the step", baseline="the whole step",
    ),
)  # fmt: skip
SMALL = 16  # batch of the rows that compare with emulators at their usual size
LINEAR_STEP = "forward and backward pass of the same linear layer in FP32"


def _step(name: str, title: str, goal: float | None, method: str, **settings: str) -> PathInfo:
    return PathInfo(name, f"training step of {title}", goal, method=method, settings=settings)


def _small(method: str) -> PathInfo:
    title = f"training step of method {method} at batch {SMALL} with one thread"
    return PathInfo(f"{method}_small", title, 0.85, method=method, batch=SMALL, threads=1)


FORMATS = (
    _step("fp8_tensorwise", "fp8, recipe tensorwise", 1.3, "fp8"),
    _step("mxfp8", "mx, MXFP8", 1.5, "mx", format="mxfp8"),
    _step("mxint8", "mx, MXINT8", 1.2, "mx", format="mxint8"),
    _step("mxfp4", "mx, MXFP4", 2.2, "mx", format="mxfp4"),
    _step("nvfp4", "nvfp4 at its defaults: stochastic errors, operands of GC rotated", 2.2, "nvfp4"),
    _step("quartet2", "quartet2: 4 over 6, MS-EDEN", None, "quartet2"),
    _step("int8_rowwise", "int8_rowwise", 1.1, "int8_rowwise"),
    _step("jetfire", "jetfire", 1.1, "jetfire"),
    _small("sbm"),
    _small("static8"),
    PathInfo("fp8_linear", "linear layer 512 to 2048 by fp8, recipe tensorwise", None, baseline=LINEAR_STEP),
)
PEERS = (  # other libraries' emulation of the same, from the optional extra `peers`
    PathInfo(
        "peer_brevitas", f"brevitas, weights and activations of 8 bits, forward only, batch {SMALL}, one thread", None,
        batch=SMALL, threads=1,
    ),
    PathInfo(
        "peer_torch_ao", f"torch.ao fake quantization of 8 bits, forward only, batch {SMALL}, one thread", None,
        batch=SMALL, threads=1,
    ),
    PathInfo("peer_torchao_linear", "torchao float8 emulation, linear layer 512 to 2048", None, baseline=LINEAR_STEP),
    PathInfo("peer_microxcaling_mxfp8", "microxcaling, MXFP8 in all products", None),
    PathInfo("peer_microxcaling_mxint8", "microxcaling, MXINT8 in all products", None),
)  # fmt: skip
MICROXCALING = "FRACTRAIN_MICROXCALING"  # environment variable: folder of a copy of microxcaling, which is on no index
NAMES = tuple(path.name for path in PATHS)
EXTRA_NAMES = tuple(path.name for path in FORMATS + PEERS)
TODAY = (*EXTRA_NAMES, "dfq_typical")  # what `--formats` measures


def info(name: str) -> PathInfo:
    """Return what is known of a path."""
    return next(path for path in PATHS + FORMATS + PEERS if path.name == name)

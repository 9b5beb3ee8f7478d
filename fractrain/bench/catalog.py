"""What ``fractrain bench`` measures, and what is aimed at. Imports nothing heavy: ``--help`` reads it."""

from __future__ import annotations

from dataclasses import dataclass

MODEL, BATCH, SIZE, REPEATS = "resnet38", 128, 32, 10
QUICK_BATCH, QUICK_SIZE, QUICK_REPEATS = 8, 8, 2
FP32_STEP = "eager FP32 training step of the same model, channels_last"
VIEWS = ("fp32", "sbm", "dfq", "fractrain")  # whose step a full run takes apart
QUICK_VIEWS = ("dfq",)


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
    """

    name: str
    title: str
    goal: float | None
    unit: str = "x"
    baseline: str = FP32_STEP
    authors: str = ""


PATHS = (
    PathInfo(
        "fp32_contiguous",
        "FP32 training step in contiguous (NCHW) memory: for orientation, older figures are ratios to this one",
        None,
    ),
    PathInfo(
        "static8_exact",
        "static 8/8 training step, exact: method sbm at its defaults, which are the quantizer of the authors' code",
        0.65,
        authors="1.6-1.9",
    ),
    PathInfo(
        "dfq_all_live",
        "DFQ step, exact, all five candidates live: in every block a fifth of the samples is made to choose each",
        2.4,
        authors="9",
    ),
    PathInfo(
        "dfq_typical",
        "DFQ step, exact, two of five candidates live: in every block half of the samples is made to choose candidate "
        "1 (4 bits, errors 6), half candidate 3 (6 bits, errors 8), the two that trained gates share most; trained "
        "gates have 1.3 to 1.9 live candidates per block",
        1.5,
        authors="9",
    ),
    PathInfo(
        "dfq_selected_only",
        "DFQ step with forward=selected (each sample at its own precision only), choices as in dfq_typical",
        0.9,
    ),
    PathInfo(
        "quantize_stochastic",
        "quantize with stochastic rounding to 8 bits, range included, of an error tensor [batch, 16, size, size]",
        2.0,
        baseline="memory floor: one read (fastest of amax, amin, sum) and one copy_ of the same tensor",
        authors="26",
    ),
    PathInfo(
        "memory_fractrain",
        "peak memory of FracTrain training steps above the import base, choices as in dfq_typical",
        1.6,
        baseline="the same of " + FP32_STEP + "; each in a process of its own",
        authors="4.9",
    ),
    PathInfo(
        "harness_overhead",
        "time of a FracTrain step of the training loop spent outside forward, backward and optimizer, plus the "
        "layers' reports to the ledger inside them",
        0.01,
        unit="share of the step",
        baseline="the whole step",
    ),
)
NAMES = tuple(path.name for path in PATHS)


def info(name: str) -> PathInfo:
    """Return what is known of a path."""
    return PATHS[NAMES.index(name)]

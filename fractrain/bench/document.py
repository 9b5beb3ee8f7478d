"""The result of a bench as JSON and as Markdown, and where it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fractrain.bench.catalog import PathInfo
from fractrain.bench.step_profile import CATEGORIES, StepProfile
from fractrain.bench.subject import LR, Setup
from fractrain.bench.timing import Measurement, median, quartiles, ratios
from fractrain.engine import environment
from fractrain.kernels.cpu.uniform import probed
from fractrain.util.files import write_files

FORMAT_VERSION = 3  # 2: to_contiguous; 3: kept
VERSIONS = ("torch", "numba", "numpy")
MET = {None: "", True: "yes", False: "no"}


def line_of(info: PathInfo, found: Measurement) -> dict[str, Any]:
    """One path as ``{path, ratio, spread, goal, unit, baseline}``; ``spread`` holds the quartiles of the rounds."""
    return {
        "path": info.name, "ratio": median(found.ratios), "spread": quartiles(found.ratios), "goal": info.goal,
        "unit": info.unit, "baseline": info.baseline,
    }  # fmt: skip


def entry_of(info: PathInfo, found: Measurement) -> dict[str, Any]:
    """The same with what was measured in absolute terms, and every round."""
    ratio = median(found.ratios)
    return {
        **line_of(info, found),
        "title": info.title,
        "authors": info.authors or None,
        "met": None if ratio is None or info.goal is None else ratio <= info.goal,
        "to_contiguous": _to_contiguous(info, found),
        "absolute": {"path": median(found.path), "baseline": median(found.base), "unit": found.unit},
        "kept": _kept(found),
        "rounds": {"ratio": list(found.ratios), "path": list(found.path), "baseline": list(found.base)},
        "note": found.missing or found.note,
    }


def _kept(found: Measurement) -> dict[str, Any] | None:
    """Bytes held for backward in a step, of FP32's, and per element of the quantized activations among them."""
    if found.kept is None:
        return None
    path, base = found.kept
    return {"path": path, "baseline": base, "ratio": path / base, "per_element": found.kept_per_element}


def _to_contiguous(info: PathInfo, found: Measurement) -> dict[str, Any] | None:
    """The ratio to the baseline in contiguous memory, which is what a goal's older figures are ratios to."""
    if not found.contiguous:
        return None
    rounds = ratios(found.path, found.contiguous)
    ratio = median(rounds)
    assert ratio is not None
    met = None if info.goal is None else ratio <= info.goal
    return {"ratio": ratio, "spread": quartiles(rounds), "met": met, "seconds": list(found.contiguous)}


def view_of(found: StepProfile) -> dict[str, Any]:
    """One view as plain values."""
    return {
        "method": found.method,
        "candidates": None if found.candidates is None else list(found.candidates),
        "step_seconds": found.seconds,
        "profiled_step_seconds": found.profiled_seconds,
        "shares": found.shares,
        "other": found.other,
    }


def document(
    setup: Setup, paths: Sequence[tuple[PathInfo, Measurement]], views: Sequence[StepProfile], label: str
) -> dict[str, Any]:
    """Everything about one bench as JSON-able values; no host name, no path of the machine."""
    machine = {**environment.capture(setup.device), "threads": setup.threads}
    versions = {name: version for name, version in machine.pop("packages").items() if name in VERSIONS}
    return {
        "format_version": FORMAT_VERSION,
        "label": label,
        "settings": {
            "model": setup.model, "batch": setup.batch, "size": setup.size, "repeats": setup.repeats,
            "threads": setup.threads, "kernels": setup.kernels, "fused_kernels_pass_the_probe": probed() is not None,
            "optimizer": f"SGD, momentum 0.9, weight decay 1e-4, lr {LR}", "data": "synthetic, N(0, 1)",
        },
        "machine": {**machine, "versions": versions},
        "paths": [entry_of(*each) for each in paths],
        "where_time_goes": [view_of(v) for v in views],
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The document as tables for people."""
    s, m = found["settings"], found["machine"]
    where = m["gpu"] or f"{m['cpu']}, {m['threads']} threads"
    label = f" ({found['label']})" if found["label"] else ""
    lines = [
        f"# Speed and memory{label}",
        "",
        f"{s['model']}, batch {s['batch']}, {s['size']}x{s['size']}, {where}, torch {m['versions']['torch']}, kernels "
        f"{s['kernels']}. Ratios of paired, interleaved rounds: median of {s['repeats']} with quartiles; written by "
        "`fractrain bench`. `met` is judged by the ratio to FP32 in channels-last memory, the faster one; figures of "
        "the authors' code are ratios to FP32 in contiguous memory, PyTorch's default, and the column beside them is, "
        "too.",
        "",
    ]
    if found["paths"]:
        lines += [*_paths_table(found["paths"]), ""]
    if found["where_time_goes"]:
        lines += [*_views_table(found["where_time_goes"]), ""]
    return "\n".join(lines)


def _paths_table(paths: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        "| path | ratio | quartiles | goal | met | to contiguous FP32 | authors' code | path, baseline "
        "| kept for backward, of FP32's | bytes kept per element |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for p in paths:
        cells = (
            f"`{p['path']}`",
            "not available" if p["ratio"] is None else number(p["ratio"], p["unit"]),
            "" if p["spread"] is None else " to ".join(number(v, p["unit"]) for v in p["spread"]),
            "" if p["goal"] is None else f"at most {number(p['goal'], p['unit'])}",
            MET[p["met"]],
            _beside(p["to_contiguous"], p["unit"]),
            f"{p['authors']}x" if p["authors"] else "",
            ", ".join(readable(p["absolute"][k], p["absolute"]["unit"]) for k in ("path", "baseline") if p["ratio"]),
            "" if p["kept"] is None else f"{p['kept']['ratio']:.2f}",
            "" if p["kept"] is None or p["kept"]["per_element"] is None else f"{p['kept']['per_element']:.2f}",
        )
        rows.append("| " + " | ".join(cells) + " |")
        note = f" ({p['note']})" if p["note"] else ""
        notes.append(f"- `{p['path']}`: {p['title']}; to {p['baseline']}{note}")
    return [*rows, "", *notes]


def _beside(other: dict[str, Any] | None, unit: str) -> str:
    if other is None:
        return ""
    spread = " to ".join(number(v, unit) for v in other["spread"])
    return f"{number(other['ratio'], unit)} ({spread})" + (f", met: {MET[other['met']]}" if MET[other["met"]] else "")


def _views_table(views: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        "Where a step's time goes, in percent:",
        "",
        "| method | step | " + " | ".join(CATEGORIES) + " | sum |",
        "|---|---|" + "---|" * (len(CATEGORIES) + 1),
    ]
    for v in views:
        shares = [100 * v["shares"][name] for name in CATEGORIES]
        cells = [v["method"], readable(v["step_seconds"], "s"), *(f"{s:.1f}" for s in shares), f"{sum(shares):.1f}"]
        rows.append("| " + " | ".join(cells) + " |")
    rows += ["", "What `other` is:", ""]
    for v in views:
        parts = ", ".join(f"{name} {100 * share:.1f}" for name, share in v["other"].items() if share >= 0.0005)
        rows.append(f"- {v['method']}: {parts}")
    return rows


def number(value: float, unit: str) -> str:
    """A ratio for people: ``1.23x``, or a share as a percentage."""
    return f"{value:.2f}x" if unit == "x" else f"{100 * value:.2f} %"


def readable(value: float, unit: str) -> str:
    """Seconds or bytes for people."""
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def write(found: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write ``name.json`` and ``name.md``, each at once or not at all; return the files.

    Raises:
        StoreError: the folder cannot be written to.
    """
    return write_files({
        folder / f"{name}.json": (json.dumps(found, indent=2, allow_nan=False) + "\n").encode(),
        folder / f"{name}.md": markdown(found).encode(),
    })  # fmt: skip

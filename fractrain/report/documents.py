"""Documents made from the committed records: the scaling table, its figure and the README's section of results.

They are written by ``fractrain evidence write`` and compared again by ``fractrain evidence verify``, so that no number
in them can be changed by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tabulate import tabulate

from fractrain.report import scaling_draw
from fractrain.report.campaign import done_in_order, load_campaign
from fractrain.report.claims import JudgedClaim, judge_claims, markdown
from fractrain.report.evidence import EvidenceStore
from fractrain.report.render import render
from fractrain.report.scaling import Gap, Scaling, build_scaling
from fractrain.report.stats import estimate
from fractrain.util.errors import StoreError
from fractrain.util.files import atomic_write, storing

CAMPAIGN: Final = "scaling"
README: Final = Path("README.md")
TABLES, FIGURES = Path("results/tables"), Path("results/figures")
BEGIN: Final = "<!-- results: begin; made by `fractrain evidence write`, checked by `fractrain evidence verify` -->"
END: Final = "<!-- results: end -->"


def write_documents(store: EvidenceStore, root: Path) -> list[Path]:
    """Write the table, the figure and the README's section below ``root``.

    Raises:
        StoreError: a file cannot be written, or the README has no place for the section.
    """
    scaling, claims = _built(store)
    text = _read(root / README)
    written = scaling_draw.write(scaling, root / TABLES, root / FIGURES)
    atomic_write(root / README, _with_section(text, section(scaling, claims), root / README).encode())
    return [*written, root / README]


def verify_documents(store: EvidenceStore, root: Path) -> list[str]:
    """One line for each committed document that is not what the records give; those that are not there are left out."""
    table, readme = root / TABLES / f"{CAMPAIGN}.md", root / README
    text = _read(readme) if readme.is_file() else ""
    if not table.is_file() and BEGIN not in text:
        return []
    scaling, claims = _built(store)
    lines = []
    if table.is_file():
        lines += list(_differences(table, _read(table), render(scaling.table, "md")))
    if BEGIN in text:
        lines += list(_differences(readme, text, _with_section(text, section(scaling, claims), readme)))
    return lines


def _built(store: EvidenceStore) -> tuple[Scaling, list[JudgedClaim]]:
    return build_scaling(load_campaign(CAMPAIGN), store), judge_claims(store)


def _differences(path: Path, said: str, made: str) -> Iterator[str]:
    old, new = said.splitlines(), made.splitlines()
    for number, (a, b) in enumerate(zip(old, new, strict=False), start=1):
        if a != b:
            yield f"{path}, line {number}: {a!r}, from the records {b!r}"
            return
    if len(old) != len(new):
        yield f"{path}: {len(old)} lines, from the records {len(new)}"


def _read(path: Path) -> str:
    with storing(path, "read"):
        return path.read_text(encoding="utf-8")


def _with_section(text: str, content: str, path: Path) -> str:
    """The text with everything between the marks replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise StoreError(f"{path} has no lines {BEGIN!r} and {END!r}, between which the results belong")
    return f"{head}{BEGIN}\n\n{content}\n\n{END}{tail}"


# -- the README's section ----------------------------------------------------------------------------------------------


def section(scaling: Scaling, claims: Sequence[JudgedClaim]) -> str:
    """Figure, gaps and claims, in Markdown."""
    finished = sum(run.state == "cached" for run in scaling.runs)
    total = len(scaling.runs)
    parts = [
        f"![Accuracy gap to SBM against the length of training]({FIGURES / CAMPAIGN}.svg)",
        f"**{finished} of {total} runs of the campaign are done** "
        f"(the first {done_in_order(scaling.runs)} without a gap). {scaling.table.watermark} "
        f"All numbers: [{CAMPAIGN}.md]({TABLES / CAMPAIGN}.md).",
    ]
    if finished:
        parts += ["Accuracy over SBM in points, paired over seeds (± 95 % t interval; SBM: its accuracy in %):",
                  _gaps(scaling)]  # fmt: skip
    counts = {word: sum(c.verdict == word for c in claims)
              for word in ("reproduced", "differs", "inconclusive", "not run")}  # fmt: skip
    words = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    parts += [f"Claims of the FracTrain and DYNASTY abstracts ({words}), by `fractrain claims`:", markdown(claims)]
    return "\n\n".join(parts)


def _gaps(scaling: Scaling) -> str:
    """One line for each data set and method: the gap at each length, at the paper's, as published, and the words."""
    campaign = scaling.campaign
    rival = campaign.trend.against[0]
    lengths = list(dict.fromkeys(run.request.profile for run in scaling.runs))
    rows = []
    for (data, key), curve in scaling.curves.items():
        lead = [campaign.datasets[data], curve.row.label]
        if key == rival:
            means = {length: curve.accuracy(length) for length in lengths}
            cells = [estimate(list(m.values())).text() if m else "not run" for m in means.values()]
            rows.append([*lead, *cells, "", "", ""])
        elif (gap := scaling.gap(data, key, rival)) is not None:
            rows.append([*lead, *_cells(gap, lengths)])
    heads = ["Data", "Method", *lengths, "1 (trend)", "1 (published)", "Trend"]
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _cells(gap: Gap, lengths: Sequence[str]) -> list[str]:
    at = [
        gap.at[length].text("+") if length in gap.at else "not run" if length in gap.curve.planned else ""
        for length in lengths
    ]
    ahead = "" if gap.trend is None else f"{gap.trend.predicted:+.2f} [{gap.trend.low:+.2f}, {gap.trend.high:+.2f}]"
    published = "" if gap.published is None else f"{gap.published:+.2f}"
    return [*at, ahead, published, str(gap.verdict or "")]

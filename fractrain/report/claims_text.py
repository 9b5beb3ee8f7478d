"""Claims in words: a listing for a terminal and a table for the README."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from fractrain.report.claims import Claim


def verdict_text(claim: Claim) -> str:
    """The verdict, its reason, and what shorter runs say."""
    word = f"{claim.verdict} ({claim.reason})" if claim.reason else claim.verdict
    return f"{word}; {claim.trend}" if claim.trend else word


def listing(claims: Sequence[Claim]) -> str:
    """One paragraph for each claim."""
    parts = []
    for claim in claims:
        needs = "any length" if claim.length == "any" else "the paper's length"
        facts = {
            "verdict": verdict_text(claim),
            "expected": f"{claim.expected} (needs {needs})" if claim.expected else "",
            "published": claim.published,
            "evidence": claim.evidence,
            "note": claim.note if claim.note != claim.reason else "",
            "next": claim.next,
            "source": claim.source,
        }
        lines = [f"{claim.id}: {claim.text}"]
        for name, text in facts.items():
            if text:
                lines += textwrap.wrap(text, 110, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown(claims: Sequence[Claim]) -> str:
    """A table: claim, what the published rows themselves give, verdict."""
    rows = [[c.text, c.published or "–", verdict_text(c)] for c in claims]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(rows, ["Claim", "The published rows give", "Today's verdict"], tablefmt="github",
                    disable_numparse=True)  # fmt: skip

"""docs/methods.md shows the cards the program prints now."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from fractrain.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
# The widths DYNASTY's maps hold after a few steps depend on floating point details of the machine.
VOLATILE = {"dynasty"}


def cards(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=\w)", text, flags=re.M)
    return {part.split()[0]: part.rstrip() for part in parts if part.strip()}


def test_the_page_shows_the_present_cards() -> None:
    shown = cards(re.findall(r"```text\n(.*?)```", PAGE.read_text(), flags=re.S)[0])
    result = CliRunner().invoke(main, ["list", "methods", "--verbose"])
    printed = cards(result.stdout)
    assert list(shown) == list(printed)
    assert {n: c for n, c in shown.items() if n not in VOLATILE} == {
        n: c for n, c in printed.items() if n not in VOLATILE
    }, "run: fractrain list methods --verbose, and put the output into docs/methods.md"

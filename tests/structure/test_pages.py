"""The pages: the picture of the imports is theirs, links lead somewhere, guides are followed word for word."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fractrain.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_picture_shows_todays_imports():
    done = subprocess.run([sys.executable, str(DOCS / "architecture.py"), "--check"], check=False)
    assert done.returncode == 0, "run python docs/architecture.py"


def test_every_room_is_on_the_page():
    rooms = {path.parent.name for path in (DOCS.parent / "fractrain").glob("*/__init__.py")}
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in sorted(rooms) if f"`{room}`" not in text] == []


def test_decisions_are_where_the_page_says():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## Where it is decided")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .* \| `([\w/]+\.py)` \| `(\w+)`", text, re.MULTILINE)
    assert len(rows) >= 10
    for file, name in rows:
        folder = DOCS.parent if file.startswith("baselines/") else DOCS.parent / "fractrain"
        code = (folder / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b|^{name}\b", code, re.MULTILINE), (file, name)


def test_files_named_on_pages_for_readers_of_the_code_exist():
    known = {path.name for path in DOCS.parent.rglob("*.py") if ".venv" not in path.parts}
    for page in ("architecture.md", "quantization.md", "speed.md"):
        named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", (DOCS / page).read_text(encoding="utf-8")))
        assert len(named) >= 3
        assert named - known == set(), page


@pytest.mark.parametrize("page", ["README.md", "architecture.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([\w.-]+\.md)\)", (DOCS / page).read_text(encoding="utf-8"))
    assert len(links) >= 4
    assert [link for link in links if not (DOCS / link).is_file()] == []


@pytest.mark.parametrize(
    ("page", "file"), [("add-a-model", "three_layers"), ("add-a-data-set", "stripes"), ("add-a-format", "octaves")]
)
def test_a_guide_works_word_for_word(page, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRACTRAIN_PLUGINS", raising=False)
    Path(f"{file}.py").write_text(blocks(DOCS / f"{page}.md", "python")[0], encoding="utf-8")
    for block in blocks(DOCS / f"{page}.md", "toml"):
        Path("errors.toml").write_text(block, encoding="utf-8")
    commands = [line for block in blocks(DOCS / f"{page}.md", "sh") for line in block.splitlines()]
    assert len(commands) in (2, 3)
    for command in commands:
        result = follow(command)
    assert "done" in result.output


def test_the_guide_to_tables_works_word_for_word_but_for_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRACTRAIN_PLUGINS", raising=False)
    Path("plain6.py").write_text(blocks(DOCS / "add-a-method.md", "python")[0], encoding="utf-8")
    commands = [line for block in blocks(DOCS / "add-a-table.md", "sh") for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        result = follow(f"{command} --dry-run" if "reproduce" in command else command)
    assert "mine" in result.output


def test_the_guide_to_columns_works_word_for_word():
    entry = blocks(DOCS / "add-a-table.md", "python")[0].strip()
    start = "QUANTITIES: Final = ("
    text = (DOCS.parent / "fractrain" / "report" / "quantities.py").read_text(encoding="utf-8")
    code = f"""if True:
        import sys, types
        module = sys.modules["fractrain.report.quantities"] = types.ModuleType("fractrain.report.quantities")
        exec({text.replace(start, f"{start}{entry},")!r}, vars(module))
        from fractrain.report.columns import columns
        from fractrain.report.spec import load_spec
        table = load_spec("table2").model_copy(update={{"columns": ("gates",)}})
        print([column.head for column in columns(table) if column.key == "gates"])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Forward MACs of the gates [of the other layers'] ↓, measured" in done.stdout, done.stderr


def follow(command):
    program, *args = shlex.split(command)
    assert program == "fractrain"
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result

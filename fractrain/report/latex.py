"""LaTeX output with booktabs rules, to be put into a paper with ``\\input``: as wide as the page, or as one column."""

from __future__ import annotations

from tabulate import LATEX_ESCAPE_RULES, tabulate

from fractrain.engine.length import length_text, profile_slug
from fractrain.report.values import Column, Section, Table

_SYNTAX = str.maketrans(LATEX_ESCAPE_RULES)  # tabulate's own, so only for text outside the tabular
# What it does not escape: characters that the default font encoding or older engines lack.
_GLYPHS = str.maketrans({
    "|": r"\ensuremath{|}", '"': "''", "`": "'", "±": r"$\pm$", "–": "--", "×": r"$\times$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
})  # fmt: skip

_ASCII = str.maketrans({"±": "+-", "–": "-", "×": "x", "↑": "(up)", "↓": "(down)", "≤": "<=", "≥": ">=", "\n": " "})


def escape(text: str) -> str:
    """Return the text with every character that means something to LaTeX, or that old engines lack, written out."""
    return _glyphs(text.translate(_SYNTAX))


def _glyphs(text: str) -> str:
    """The second half of :func:`escape`; a range is written with the relation sign instead of an accent."""
    return text.translate(_GLYPHS).replace(r"\textasciitilde{}", r"$\sim$")


def latex(table: Table) -> str:
    """Return the table with the columns of the compact layout, its caption, and notes as small print below."""
    columns = [Column("model", "Model", "Model"), *(c for c in table.columns if c.short)]
    body: list[list[str]] = []
    for rows in table.groups().values():
        body += [[row.text(c.key) for c in columns] for row in rows]
    heads = [c.short for c in columns]
    align = ["left" if not c.origin else "right" for c in columns]
    tabular = _glyphs(tabulate(body, heads, tablefmt="latex_booktabs", disable_numparse=True, colalign=align))
    small = "\n".join(rf"\item {escape(text)}" for text in (*table.notes, *table.rules))
    return (
        f"% {table.name} version {table.version}, {length_text(table.profile)}; made by fractrain, do not edit.\n"
        "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
        "\\begin{table*}\n\\centering\n"
        f"{_caption(table, f' {escape(table.caption)}')}"
        f"\\resizebox{{\\textwidth}}{{!}}{{%\n{_between_groups(tabular, table)}}}\n"
        "\\end{table*}\n"
        + "".join(_section(table, section) for section in table.sections)
        + f"{{\\footnotesize\\begin{{itemize}}\n{small}\n\\item Source: {escape(table.source)}.\n\\end{{itemize}}}}\n"
    )


def narrow(table: Table) -> str:
    """Return the table for one column of a page: models and data stand on lines of their own, notes are comments.

    The columns are those of the compact layout; :func:`fractrain.report.output.selected` chooses them.
    """
    columns = [c for c in table.columns if c.short and c.key != "data_short"]
    align = "".join("r" if c.origin else "l" for c in columns)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", _line([c.short for c in columns])]
    for name, rows in table.groups().items():
        lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{escape(name)}}}}} \\"]
        lines += [_line([row.text(c.key) for c in columns]) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = "".join(
        f"% {text.translate(_ASCII)}\n" for text in (*table.notes, *table.rules, f"Source: {table.source}.")
    )
    return (
        f"% {table.name} version {table.version}, {length_text(table.profile)}; made by fractrain, do not edit.\n"
        "% Needs \\usepackage{booktabs} and \\usepackage{adjustbox}, which makes it smaller where it is too wide.\n"
        f"{notes}"
        "\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"{_caption(table)}"
        "\\begin{adjustbox}{max width=\\columnwidth}\n" + "\n".join(lines) + "\n\\end{adjustbox}\n\\end{table}\n"
    )


def _caption(table: Table, more: str = "") -> str:
    """Caption and label."""
    warning = rf" \textbf{{{escape(table.watermark)}}}" if table.watermark else ""
    label = f"tab:{table.name}-{profile_slug(table.profile)}"
    return f"\\caption{{{escape(table.title)}.{more}{warning}}}\n\\label{{{label}}}\n"


def _line(cells: list[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


def _section(table: Table, section: Section) -> str:
    """A section as a table of its own."""
    columns = [c for c in section.columns if c.short]
    body = [[row.group, *(row.text(c.key) for c in columns)] for row in section.rows]
    align = ["left", *("left" if not c.origin else "right" for c in columns)]
    heads = ["Of", *(c.short for c in columns)]
    tabular = _glyphs(tabulate(body, heads, tablefmt="latex_booktabs", disable_numparse=True, colalign=align))
    return (
        f"\\begin{{table*}}\n\\centering\n\\caption{{{escape(f'{table.title}: {section.title}. {section.caption}')}}}\n"
        f"\\label{{tab:{table.name}-{profile_slug(table.profile)}-{section.key}}}\n"
        f"\\resizebox{{\\textwidth}}{{!}}{{%\n{tabular}}}\n\\end{{table*}}\n"
    )


def _between_groups(tabular: str, table: Table) -> str:
    """Put a rule between the groups of rows."""
    lines = tabular.splitlines()
    first = lines.index(r"\midrule") + 1
    for rows in list(table.groups().values())[:-1]:
        first += len(rows)
        lines.insert(first, r"\midrule")
        first += 1
    return "\n".join(lines) + "\n"

"""A table as Markdown, LaTeX and HTML.

Classes of the HTML, for the page's style sheet: `results` and `table-<name>` on the table; `teacher`, `base`,
`student` or `difference` on a row; `number` on a numeric cell, `text` on any other; `spread` on the interval or
spread inside a cell; `note` on each paragraph of notes and `command` on the last, in the table's foot. Bold
cells are `<strong>`.
"""

from __future__ import annotations

import html
import re
import textwrap
from pathlib import Path

from matvlm.files import write_text
from matvlm.report.table import Column, Entry, Row, Table

TEX_HEADING = 14
"""Most characters in a line of a LaTeX heading."""

_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "–": "--",
}


def write(table: Table, out: Path) -> None:
    """Write ``out.md``, ``out.tex`` and ``out.html``."""
    for suffix, make in ((".md", markdown_page), (".tex", tex), (".html", fragment)):
        write_text(out.with_name(out.name + suffix), make(table))


def markdown_page(table: Table) -> str:
    """The table with its title, notes and command."""
    notes = "".join(f"- {escape_markdown(note)}\n" for note in table.notes)
    return f"# {escape_markdown(table.title)}\n\n{markdown(table)}\n{notes}\nMade by `{table.command}`.\n"


def markdown(table: Table) -> str:
    """The bare table."""
    lines = [
        [escape_markdown(column.header) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *([_markdown_cell(entry) for entry in row.entries] for row in table.rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tex(table: Table) -> str:
    """A `table` float, its notes below; it needs `\\usepackage{booktabs}` and nothing else."""
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    head = " & ".join(_tex_heading(column) for column in table.columns)
    body = ""
    for row, after in zip(table.rows, (*table.rows[1:], None), strict=True):
        body += " & ".join(_tex_cell(entry) for entry in row.entries) + r" \\" + "\n"
        if after is not None and _is_new_block(table, row, after):
            body += "\\midrule\n"
    notes = " ".join(escape_tex(note) for note in table.notes)
    return (
        f"% Made by: {table.command}\n"
        "\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{escape_tex(table.title)}}}\n\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n\n"
        "\\smallskip\n"
        f"\\parbox{{\\linewidth}}{{\\footnotesize {notes}}}\n"
        "\\end{table}\n"
    )


def fragment(table: Table) -> str:
    """A bare `<table>`, to be put into a page."""
    numeric = ['class="number"' if column.numeric else 'class="text"' for column in table.columns]
    head = "".join(
        f'<th scope="col" {kind}>{html.escape(column.header)}</th>'
        for column, kind in zip(table.columns, numeric, strict=True)
    )
    lines = [
        f'<table class="results table-{html.escape(table.name)}">',
        f"<caption>{html.escape(table.title)}</caption>",
        f"<thead>\n<tr>{head}</tr>\n</thead>",
        "<tbody>",
    ]
    for row in table.rows:
        cells = "".join(
            f'<th scope="row" {kind}>{_html_cell(entry)}</th>'
            if not at
            else f"<td {kind}>{_html_cell(entry)}</td>"
            for at, (entry, kind) in enumerate(zip(row.entries, numeric, strict=True))
        )
        lines.append(f'<tr class="{html.escape(row.kind)}">{cells}</tr>')
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    notes += f'<p class="command">Made by <code>{html.escape(table.command)}</code></p>'
    foot = f'<tr><td colspan="{len(table.columns)}">{notes}</td></tr>'
    return "\n".join([*lines, "</tbody>", f"<tfoot>\n{foot}\n</tfoot>", "</table>"]) + "\n"


def escape_markdown(text: str) -> str:
    """Text in which nothing is markup, inside a table or out of one."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def escape_tex(text: str) -> str:
    """Text for LaTeX, in ASCII as far as this module's own signs go."""
    return "".join(_TEX.get(sign, sign) for sign in text)


def _is_new_block(table: Table, row: Row, after: Row) -> bool:
    """Whether a line parts two rows: below a teacher on top of its students, and between points."""
    if table.name == "speed":
        return row.entries[0].text != after.entries[0].text
    return row.kind == "teacher"


def _markdown_cell(entry: Entry) -> str:
    text = escape_markdown(entry.text)
    text = f"**{text}**" if entry.bold else text
    return f"{text} {escape_markdown(entry.spread)}".rstrip()


def _tex_heading(column: Column) -> str:
    """The heading in short lines, so that a table of many columns fits a page."""
    lines = textwrap.wrap(column.header, TEX_HEADING, break_on_hyphens=False)
    text = r" \\ ".join(escape_tex(line) for line in lines)
    return f"\\shortstack[{'r' if column.numeric else 'l'}]{{{text}}}" if len(lines) > 1 else text


def _tex_cell(entry: Entry) -> str:
    text = escape_tex(entry.text)
    text = f"\\textbf{{{text}}}" if entry.bold else text
    return f"{text} {escape_tex(entry.spread)}".rstrip()


def _html_cell(entry: Entry) -> str:
    text = html.escape(entry.text)
    text = f"<strong>{text}</strong>" if entry.bold else text
    return f'{text} <span class="spread">{html.escape(entry.spread)}</span>' if entry.spread else text

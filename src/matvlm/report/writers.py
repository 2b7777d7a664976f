"""A table as Markdown, LaTeX and HTML.

Classes of the HTML, for the page's style sheet: `results` and `table-<name>` on the table; `teacher`, `base`,
`student` or `difference` on a row, `section` on one that is the title of those below it; `number` on a numeric
cell, `text` on any other; `spread` on the interval or spread inside a cell; `note` on each paragraph of notes and
`command` on the last, in the table's foot. Bold cells are `<strong>`.
"""

from __future__ import annotations

import html
import re
import textwrap
from dataclasses import replace
from pathlib import Path

from matvlm.files import write_text
from matvlm.report.table import Column, Entry, Row, Table

TEX_COLUMNS = 9
"""Most columns that fit on a page with their spreads."""
TEX_HEADING, TEX_NARROW = 14, 11
"""Most characters in a line of a LaTeX heading, and where there are more columns than that."""

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
    "†": r"$\dagger$",
}


def write(table: Table, out: Path) -> None:
    """Write ``out.md``, ``out.tex`` and ``out.html``."""
    for suffix, make in ((".md", markdown_page), (".tex", tex), (".html", fragment)):
        write_text(out.with_name(out.name + suffix), make(table))


def markdown_page(table: Table) -> str:
    """The table with its title, notes and command; a table for each section."""
    notes = "".join(f"- {escape_markdown(note)}\n" for note in table.notes)
    return f"# {escape_markdown(table.title)}\n\n{markdown(table)}\n{notes}\nMade by `{table.command}`.\n"


def markdown(table: Table) -> str:
    """The bare table, or one below the title of each section."""
    head = [
        [escape_markdown(column.header) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
    ]
    parts = []
    for title, rows in table.sections:
        lines = head + [[_markdown_cell(entry) for entry in row.entries] for row in rows]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"## {escape_markdown(title)}\n\n{text}" if title else text)
    return "\n".join(parts)


def tex(table: Table) -> str:
    """A `table` float, or one for each section, the notes below the last; it needs `\\usepackage{booktabs}` and
    nothing else. Where there are too many columns for a page, spreads are left out."""
    if len(table.columns) > TEX_COLUMNS:
        table = _without_spreads(table)
    floats = []
    for number, (title, rows) in enumerate(table.sections, 1):
        caption = f"{table.title}: {title}" if title else table.title
        label = f"{table.name}-{number}" if len(table.sections) > 1 else table.name
        floats.append(_tex_float(table, rows, caption, label, table.notes * (number == len(table.sections))))
    return f"% Made by: {table.command}\n" + "\n".join(floats)


def _without_spreads(table: Table) -> Table:
    rows = [replace(row, entries=tuple(replace(e, spread="") for e in row.entries)) for row in table.rows]
    return replace(table, rows=tuple(rows), notes=(*table.notes, "What stands in brackets is left out here."))


def _tex_float(table: Table, rows: tuple[Row, ...], caption: str, label: str, notes: tuple[str, ...]) -> str:
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    width = TEX_NARROW if len(table.columns) > TEX_COLUMNS else TEX_HEADING
    head = " & ".join(_tex_heading(column, width) for column in table.columns)
    body = ""
    for row, after in zip(rows, (*rows[1:], None), strict=True):
        body += " & ".join(_tex_cell(entry) for entry in row.entries) + r" \\" + "\n"
        if after is not None and _is_new_block(table, row, after):
            body += "\\midrule\n"
    below = " ".join(escape_tex(note) for note in notes)
    below = f"\n\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize {below}}}\n" if below else ""
    return (
        "\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{escape_tex(caption)}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n{below}"
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
    ]
    for title, rows in table.sections:
        lines.append("<tbody>")
        if title:
            span = f'<th scope="rowgroup" colspan="{len(table.columns)}">{html.escape(title)}</th>'
            lines.append(f'<tr class="section">{span}</tr>')
        lines += [_html_row(row, numeric) for row in rows]
        lines.append("</tbody>")
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    notes += f'<p class="command">Made by <code>{html.escape(table.command)}</code></p>'
    foot = f'<tr><td colspan="{len(table.columns)}">{notes}</td></tr>'
    return "\n".join([*lines, f"<tfoot>\n{foot}\n</tfoot>", "</table>"]) + "\n"


def _html_row(row: Row, numeric: list[str]) -> str:
    cells = "".join(
        f'<th scope="row" {kind}>{_html_cell(entry)}</th>' if not at else f"<td {kind}>{_html_cell(entry)}</td>"
        for at, (entry, kind) in enumerate(zip(row.entries, numeric, strict=True))
    )
    return f'<tr class="{html.escape(row.kind)}">{cells}</tr>'


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


def _tex_heading(column: Column, width: int) -> str:
    """The heading in short lines, so that a table of many columns fits a page."""
    lines = textwrap.wrap(column.header, width, break_on_hyphens=False)
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

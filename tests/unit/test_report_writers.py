"""A table as Markdown, LaTeX and HTML: whole, balanced, and nothing in it is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from matvlm.report import writers
from matvlm.report.table import Column, Entry, Row, Table

NASTY = "50% & $a_b$ {x} #1 ~ ^ \\ <b>|*|</b> ± × − –"
TABLE = Table(
    name="nasty",
    title=NASTY,
    columns=(Column(NASTY, numeric=False), Column("value")),
    rows=(
        Row("teacher", (Entry(NASTY), Entry("1", "± 2", bold=True))),
        Row("student", (Entry("b"), Entry("> 3", '"quoted"'))),
    ),
    notes=(NASTY,),
    command="snakemake table_nasty",
)


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="a row of 1 for 2 columns"):
        replace(TABLE, rows=(Row("student", (Entry("a"),)),))


def test_latex_is_balanced_and_escaped():
    text = writers.tex(TABLE)
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert [line.count("&") for line in bare.splitlines() if "&" in line] == [1, 1, 1]
    assert not re.search(r"[_^#~<>|]", bare.replace("table_nasty", ""))
    assert "%" not in bare.split("\n", 1)[1]
    assert text.isascii()
    for line in (r"\begin{tabular}{lr}", r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:nasty}"):
        assert line in text
    assert r"\textbf{1} $\pm$ 2 \\" in text
    assert r"\textbackslash{} \textless{}b\textgreater{}" in text
    assert text.count(r"\midrule") == 2  # below the head and below the teacher


def test_latex_breaks_long_headings():
    long = replace(TABLE, columns=(Column("a", False), Column("Sort-of-CLEVR non-relational & more")))
    assert r"a & \shortstack[r]{Sort-of-CLEVR \\ non-relational \\ \& more} \\" in writers.tex(long)


def test_markdown_has_one_cell_a_column():
    text = writers.markdown(TABLE)
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    assert [len(line) for line in cells] == [2, 2, 2, 2]
    assert cells[1] == [" --- ", " ---: "]
    assert cells[2][1] == " **1** ± 2 "
    assert "<b>" not in text.replace(r"\<b\>", "")
    page = writers.markdown_page(TABLE)
    assert page.startswith("# 50% & $a")
    assert "Made by `snakemake table_nasty`." in page


class Reader(HTMLParser):
    """Collects tags with their attributes and the text of a page; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


SECTIONS = replace(
    TABLE, rows=(Row("section", (Entry("one"),)), TABLE.rows[0], Row("section", (Entry(NASTY),)), TABLE.rows[1])
)


def test_sections_in_every_format():
    assert [title for title, _ in SECTIONS.sections] == ["one", NASTY]
    assert TABLE.sections == [("", TABLE.rows)]
    assert replace(TABLE, rows=()).sections == [("", ())]
    text = writers.markdown(SECTIONS)
    assert text.startswith("## one\n\n| 50%")
    assert len(re.findall("^## ", text, re.MULTILINE)) == text.count("---:") == 2
    text = writers.tex(SECTIONS)
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == 2
    assert (r"\label{tab:nasty-1}" in text, r"\label{tab:nasty-2}" in text) == (True, True)
    assert text.index(r"\parbox") > text.index("nasty-2")
    page = Reader(writers.fragment(SECTIONS))
    assert [tag for tag, _ in page.tags].count("tbody") == 2
    assert [attrs["colspan"] for tag, attrs in page.tags if attrs.get("scope") == "rowgroup"] == ["2", "2"]
    assert page.text.count(NASTY) == 5


def test_latex_of_a_wide_table_has_no_spreads():
    wide = replace(TABLE, columns=TABLE.columns * 5, rows=tuple(Row(r.kind, r.entries * 5) for r in TABLE.rows))
    assert r"$\pm$ 2" in writers.tex(TABLE)
    text = writers.tex(wide)
    assert r"$\pm$ 2" not in text
    assert "What stands in brackets is left out here." in text
    assert "± 2" in writers.markdown(wide)


def test_html_nests_is_escaped_and_has_scopes():
    text = writers.fragment(TABLE)
    page = Reader(text)
    assert page.tags[0] == ("table", {"class": "results table-nasty"})
    assert text.strip().startswith("<table")
    assert text.strip().endswith("</table>")
    assert page.text.count(NASTY) == 4  # caption, header, cell, note
    assert "b" not in [tag for tag, _ in page.tags]
    scopes = [attrs["scope"] for tag, attrs in page.tags if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]
    assert [attrs["class"] for tag, attrs in page.tags if tag == "tr" and attrs] == ["teacher", "student"]
    assert '<td class="number"><strong>1</strong> <span class="spread">± 2</span></td>' in text
    assert "&quot;quoted&quot;" in text

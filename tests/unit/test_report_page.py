"""The page: everything is on it, nothing is loaded from elsewhere, and no text becomes markup."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
from html.parser import HTMLParser

import figure_data
import pytest

from matvlm.errors import UserError
from matvlm.report import claim_rows, figures, origins, page, svg

TABLES = ("main", "losses", "layouts", "ratios", "inits", "divergences", "speed")
VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = '<script>alert("1")</script> & <b>'


class Parser(HTMLParser):
    """Collects ids, references and headings, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if attributes.get(name)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with all figures."""
    report, root = figure_data.settings(), tmp_path_factory.mktemp("pictures")
    frames = dict.fromkeys(("speed", "memory"), figure_data.profile_frame())
    frames["convergence"] = figure_data.train_frame(report)
    for name in figures.DRAW:
        data = figure_data.write(frames.get(name, figure_data.eval_frame(report)), root / f"{name}.csv")
        figures.write(name, report, data, root / name)
    return root


def make(root, pictures, *, seeds=1, claims=None, change=lambda frame: frame):
    """All inputs of a page below ``root``; returns the arguments of `page.write`."""
    report = figure_data.settings(seeds)
    frames = {
        "eval": figure_data.eval_frame(report),
        "train": figure_data.train_frame(report),
        "profile": figure_data.profile_frame(),
        "runs": change(figure_data.runs_frame(report)),
    }
    data = [figure_data.write(frame, root / "data" / f"{kind}.csv") for kind, frame in frames.items()]
    shutil.copytree(pictures, root / "figures", ignore=shutil.ignore_patterns("*.csv"))
    (root / "tables").mkdir()
    for name in TABLES:
        table = f'<table class="results"><caption>Table {name}</caption><tr><td>1</td></tr></table>\n'
        (root / "tables" / f"{name}.html").write_text(table)
    with open(root / "claims.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(claim_rows.CLAIM_COLUMNS)
        writer.writerows(
            claims or [["speed", "Up to 3.6 x", "3.6", "1.07", "", "", "not shown", "snakemake claims"]]
        )
    tables = [root / "tables" / f"{name}.html" for name in TABLES]
    drawn = [root / "figures" / f"{name}.svg" for name in figures.DRAW]
    return report, root / "claims.csv", tables, drawn, data, other(root), root / "index.html"


def other(root):
    """The `claims.csv` of one more preset, which has the page that links lead to."""
    folder = root.parent / f"{root.name}-other" / "smol"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text("<p>the other page</p>")
    with open(folder / "claims.csv", "w", newline="", encoding="utf-8") as stream:
        row = ["speed", "Up to 3.6 x", "3.6", "2.5", "2.4", "2.6", "holds", "snakemake claims"]
        csv.writer(stream).writerows([claim_rows.CLAIM_COLUMNS, row])
    return [folder / "claims.csv"]


def parse(path):
    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, pictures):
    """Arguments of a page with an ordinary set of results."""
    return make(tmp_path_factory.mktemp("page"), pictures, seeds=2)


@pytest.fixture(scope="module")
def parsed(inputs):
    page.write(*inputs)
    return parse(inputs[-1])


def test_the_page_loads_nothing(inputs, parsed):
    text = inputs[-1].read_text(encoding="utf-8")
    loads = re.findall(r"(?:src|href)=[\"'](?!#)[^\"']*|@import[^;]*|url\((?!#)[^)]*", text)
    downloads = {f'href="{address}' for address in parsed.values("href") if not address.startswith("#")}
    assert set(loads) == downloads
    assert not [one for one in downloads if ":" in one.removeprefix('href="')]
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "img", "iframe", "image", "object"})
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {svg.SVG, svg.XLINK}


def test_every_table_and_figure_is_there_with_its_command_and_files(inputs, parsed):
    ids, links = parsed.values("id"), parsed.values("href")
    for name in TABLES:
        assert f"table-{name}" in ids
        assert f"Table {name}" in parsed.text
        assert f"snakemake table_{name} --config preset=tiny" in parsed.text
        assert {f"tables/{name}.md", f"tables/{name}.tex"} <= set(links)
    for name in figures.DRAW:
        assert f"figure-{name}" in ids
        assert f"snakemake figure_{name} --config preset=tiny" in parsed.text
        assert {f"figures/{name}.svg", f"figures/{name}.png"} <= set(links)
    assert {"data/eval.csv", "data/train.csv", "data/profile.csv", "data/runs.csv", "claims.csv"} <= set(links)
    assert sum(tag == "svg" for tag, _ in parsed.tags) == len(figures.DRAW)


def test_every_link_to_a_file_leads_somewhere(inputs, parsed):
    made = {".md", ".tex"}  # written beside the HTML by the tables' own rule
    root = inputs[-1].parent
    for address in parsed.values("href"):
        if not address.startswith("#"):
            assert (root / address).is_file() or (root / address).suffix in made, address


def test_ids_are_unique_and_references_lead_somewhere(inputs, parsed):
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    text = inputs[-1].read_text(encoding="utf-8")
    used = [*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)]
    assert len(used) > 100
    assert set(used) <= set(ids)
    assert set(parsed.values("aria-labelledby")) <= set(ids)


def test_the_page_can_be_used_without_seeing_it(parsed):
    assert ("html", {"lang": "en"}) in parsed.tags
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes in parsed.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 20
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]


def test_equal_inputs_give_equal_bytes(inputs, parsed):
    before = inputs[-1].read_bytes()
    page.write(*inputs)
    assert inputs[-1].read_bytes() == before


def test_provenance_is_summed_up(inputs, parsed):
    report, runs = inputs[0], 2 * 2 * len(figure_data.cells(inputs[0]))
    assert report.ablation.seeds == (0, 1)
    for value in (figure_data.PROVENANCE["commit"], "cpu x86_64", "2.11.0", "7eac4e77eac4e77e"):
        assert value in parsed.text
    assert page.duration(30.5 * runs) in parsed.text
    assert "900.0 MB" in parsed.text
    assert "Uncommitted changes no" in " ".join(parsed.text.split())
    assert "not committed" not in parsed.text


def test_uncommitted_changes_and_several_commits_are_pointed_out(tmp_path, pictures):
    def change(frame):
        frame.loc[0, ["dirty", "commit"]] = ["true", "f" * 40]
        frame.loc[1, "commit"] = ""
        return frame

    arguments = make(tmp_path, pictures, change=change)
    page.write(*arguments)
    text = parse(arguments[-1]).text
    assert "not committed" in text
    assert "several commits" in text
    assert "commit is not known" in text


def test_verdicts_are_told_without_colour(tmp_path, pictures):
    rows = [
        ["a", "First", "3.6", "1.0718", "1.03871", "1.1", "holds", "snakemake a"],
        ["b", "Second", "27.5 %", "-4.2", "-5", "-3", "does not hold", "snakemake b"],
        ["c", "Third", "", "0.01", "-1", "1", "not shown", "snakemake c"],
        ["d", "Fourth", "", "", "", "", "not run", "snakemake d"],
        ["e", "Fifth", "", "123456", "", "", "something new", ""],
    ]
    arguments = make(tmp_path, pictures, claims=rows)
    page.write(*arguments)
    parsed = parse(arguments[-1])
    badges = [a["class"] for _, a in parsed.tags if (a.get("class") or "").startswith("badge")]
    assert badges[:10] == [f"badge {style}" for style in ("yes", "no", "open", "none", "none")] * 2
    text = " ".join(parsed.text.split())
    for words in ("✓ holds", "✗ does not hold", "? not shown", "– not run", "• something new", "✓ holds: 1"):
        assert words in text
    for words in ("1.072 1.039 to 1.1", "27.5 %", "−4.2 −5 to −3", "123,456", "snakemake d"):
        assert words in text


def test_other_presets_stand_beside(inputs, parsed, tmp_path):
    text = " ".join(parsed.text.split())
    section = text[text.rindex("Beside the other presets") : text.rindex("Quality")]
    for words in ("Published tiny smol", "? not shown 1.07", "✓ holds 2.50 [2.40, 2.60]"):
        assert words in section
    assert any(address.endswith("smol/index.html") for address in parsed.values("href"))
    assert [a.get("class") for tag, a in parsed.tags if tag in ("td", "th")].count("own") == 2
    *rest, _, _ = inputs
    page.write(*rest, [], tmp_path / "index.html")
    assert "Beside the other presets" not in parse(tmp_path / "index.html").text


def test_text_never_becomes_markup(tmp_path, pictures):
    def change(frame):
        return frame.assign(device=EVIL, step=EVIL)

    rows = [[EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL]]
    arguments = make(tmp_path, pictures, claims=rows, change=change)
    page.write(*arguments)
    parsed = parse(arguments[-1])
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "b")]
    assert parsed.text.count(EVIL) >= 7


def test_units_tests_and_details_of_claims_are_shown_where_they_are(tmp_path, pictures):
    arguments = make(tmp_path, pictures)
    columns = [*claim_rows.CLAIM_COLUMNS, "unit", "over", "tested", "detail"]
    row = [
        "m",
        "Less",
        "27.5",
        "25.2",
        "24",
        "26",
        "holds",
        "snakemake m",
        "%",
        "seeds",
        "direction",
        "All of it.",
    ]
    with open(arguments[1], "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, row])
    page.write(*arguments)
    text = " ".join(parse(arguments[-1]).text.split())
    assert "Tested: direction" in text
    assert "27.5 % 25.2 % 24 to 26, over seeds" in text
    assert "All of it." in text


def test_what_the_page_does_not_know_comes_last(inputs, tmp_path):
    report, claims, tables, drawn, data, beside, _ = inputs
    extra = tmp_path / "novel.html"
    extra.write_text("<table><caption>New</caption></table>")
    page.write(report, claims, [extra, *tables], drawn, data, beside, tmp_path / "index.html")
    parsed = parse(tmp_path / "index.html")
    assert parsed.text.rindex("Further results") > parsed.text.index("Speed and memory in numbers")
    assert "table-novel" in parsed.values("id")


def test_bad_inputs_are_one_line(inputs, tmp_path):
    report, claims, tables, drawn, data, beside, _ = inputs
    out = tmp_path / "index.html"
    bad = tmp_path / "bad.html"
    bad.write_text("<p>no table</p>")
    with pytest.raises(UserError, match=r"bad.html: not an HTML table"):
        page.write(report, claims, [bad], drawn, data, beside, out)
    with pytest.raises(UserError, match=r"eval.csv: column id, claim, .* is missing"):
        page.write(report, data[0], tables, drawn, data, beside, out)
    picture = tmp_path / "bad.svg"
    for text, words in (
        ("<svg", "not SVG"),
        (f'<svg xmlns="{svg.SVG}"><script/></svg>', "script is not allowed"),
        (f'<svg xmlns="{svg.SVG}"><image href="http://example.org/a.png"/></svg>', "self-contained"),
        (f'<svg xmlns="{svg.SVG}" onload="x()"/>', "onload is not allowed"),
    ):
        picture.write_text(text)
        with pytest.raises(UserError, match=words):
            page.write(report, claims, tables, [picture], data, beside, out)
    assert not out.exists()


def test_inlined_pictures_bring_no_style_sheet_and_keep_their_references(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text(
        f'<?xml version="1.0"?>\n<svg xmlns="{svg.SVG}" xmlns:xlink="{svg.XLINK}" width="9pt" viewBox="0 0 450 9">'
        "<metadata>m</metadata><defs><style>*{color:red}</style><path id='p'/></defs>"
        "<use xlink:href='#p'/><g clip-path='url(#p)' style='fill: url(\"#p\")'/></svg>"
    )
    text = svg.inline(path, "one-", 'a "label"')
    assert text.startswith("<svg")
    assert 'id="one-p"' in text
    assert 'xlink:href="#one-p"' in text
    assert text.count("url(#one-p)") == 2
    assert "style>" not in text
    assert "metadata" not in text
    assert 'width="9pt"' not in text
    assert "&quot;label&quot;" in text
    assert svg.width(text) == 450


def test_costs_must_be_numbers(tmp_path):
    path = figure_data.write(
        figure_data.runs_frame(figure_data.settings()).assign(wall_s="long"), tmp_path / "r.csv"
    )
    with pytest.raises(UserError, match=r"r.csv: column wall_s: 'long' is not a number"):
        origins.read_origins([path])


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (59.97, "60.0 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds, text):
    assert page.duration(seconds) == text

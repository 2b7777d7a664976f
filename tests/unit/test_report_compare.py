"""The comparison of presets: each claim on its line, in a table, a file, a figure and the README."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from matvlm.errors import UserError
from matvlm.report import claims, compare, comparison
from matvlm.report.claim_rows import CLAIM_COLUMNS
from matvlm.report.figures import forest, style

ROOT = Path(__file__).parents[2]
COLUMNS = (*CLAIM_COLUMNS, "unit", "over", "tested", "detail")
SPEED = {"id": "speed", "claim": "Faster", "published": "3.6", "unit": "x", "tested": "faster (direction only)"}
LAYOUT = {"id": "layout", "claim": "Even is best", "unit": "points", "tested": "even above all"}


def answer(row, verdict="holds", *numbers, **other):
    """A row of `claims.csv` with what was measured."""
    return row | dict(zip(("measured", "low", "high"), numbers, strict=False)) | {"verdict": verdict} | other


def write(root, **presets):
    """`claims.csv` of each preset below ``root``; returns the files by preset."""
    files = {}
    for name, rows in presets.items():
        files[name] = root / name.replace("_", "-") / "claims.csv"
        files[name].parent.mkdir(parents=True)
        with open(files[name], "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return {path.parent.name: path for path in files.values()}


@pytest.fixture
def files(tmp_path):
    """A preset that is not known, the paper's model, and two small ones."""
    return write(
        tmp_path / "results",
        own=[answer(LAYOUT, "holds", "9", "8", "10")],
        paper_profile=[
            answer(SPEED, "holds", "11.94", "10.7", "13.4", tested="3.6 times"),
            answer(SPEED, "does not hold", "1.19", "1.188", "1.192", id="speed_architecture", tested="3.6 times"),
            answer(LAYOUT, "not run"),
        ],
        smol=[answer(SPEED, "not shown", "1.05", "0.9", "1.2"), answer(LAYOUT, "not shown", "0.5", "-1", "2")],
        tiny=[answer(LAYOUT, "holds", "2.067", "0.9193", "3.214"), answer(SPEED, "does not hold", "0.906")],
    )


def test_presets_and_claims_keep_their_order(files):
    found = comparison.compare(files)
    assert found.presets == ("tiny", "smol", "paper-profile", "own")
    assert [line.id for line in found.lines] == ["speed", "speed_architecture", "layout"]


def test_what_was_measured_in_one_runtime_stands_on_one_line(files):
    own, same, _ = comparison.compare(files).lines
    assert set(own.ran) == {"paper-profile"}
    assert {name: claim.in_short for name, claim in same.ran.items()} == {
        "tiny": "0.91×",
        "smol": "1.05× [0.90, 1.20]",
        "paper-profile": "1.19×",
    }
    assert own.claim == "Faster, each in a runtime of its own"
    assert same.claim == "Faster, all in the same runtime"
    (note,) = comparison.differences(comparison.compare(files))
    assert "faster (direction only) (tiny, smol); that 3.6 times (paper-profile)" in note


def test_cells_say_verdict_number_and_interval(files):
    table = comparison.table(comparison.compare(files))
    assert [column.header for column in table.columns] == [
        *("Claim", "Published", "tiny", "smol", "paper-profile", "own"),
    ]
    texts = [[entry.text for entry in row.entries] for row in table.rows]
    assert texts[1][1:5] == ["3.6×", "✗ does not hold", "? not shown", "✗ does not hold"]
    assert texts[2][1:] == ["–", "✓ holds", "? not shown", "–", "✓ holds"]
    assert table.rows[2].entries[0].spread == "(tested: even above all)"
    assert table.rows[2].entries[2].spread == "2.07 points [0.92, 3.21]"
    assert table.rows[2].entries[3].spread == "0.50 points [−1.00, 2.00]"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (("93.37", "91.35", "95.38"), "93.4 % [91.4, 95.4]"),
        (("35.07", "35.07", "35.07"), "35.1 %"),
        (("-0.0001", "-1", "1"), "0.00 % [−1.00, 1.00]"),
        (("4.2",), "4.20 %"),
        ((), ""),
    ],
)
def test_numbers_in_short(tmp_path, numbers, text):
    files = write(tmp_path, tiny=[answer(LAYOUT, "holds", *numbers, unit="% of the other")])
    (line,) = comparison.compare(files).lines
    assert line.answers["tiny"].in_short == text


def segments(axes):
    """The bars and ticks of a panel."""
    return [part for each in axes.collections for part in each.get_segments() if len(part)]


def test_the_figure_shows_numbers_intervals_and_verdicts(files):
    with style.in_use():
        figure = forest.draw_forest(comparison.compare(files))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(panels) == {"Scores", "Speed"}
    lines = {line.get_label(): line for line in panels["Scores"].lines}
    assert lines["layout tiny"].get_xdata()[0] == pytest.approx(2.067)
    assert lines["layout smol"].get_markerfacecolor() == "white"
    assert lines["layout tiny"].get_markerfacecolor() == style.BLUE
    bars = [part[:, 0].tolist() for part in segments(panels["Scores"])]
    assert [0.9193, 3.214] in bars
    rows = {line.get_ydata()[0] for label, line in lines.items() if label.startswith("layout")}
    assert len(rows) == 3, "one preset hides another"
    ticks = [part[0, 0] for part in segments(panels["Speed"])]
    assert ticks.count(3.6) == 2
    assert panels["Speed"].get_xscale() == "log"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:4] == ["tiny", "smol", "paper-profile", "own"]


def test_a_figure_of_nothing_is_one_line(tmp_path):
    found = comparison.compare(write(tmp_path, tiny=[answer(LAYOUT, "not run")]))
    with pytest.raises(UserError, match="no claim of any preset has a number"):
        forest.draw_forest(found)


@pytest.fixture
def root(files, tmp_path, monkeypatch):
    """A folder to run the command in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{compare.BEGIN}old\n{compare.END}after\n")
    return tmp_path


def test_the_command_writes_everything_and_checks_it(root, capsys):
    assert compare.main([]) == 0
    assert {path.name for path in (root / "results").glob("claims*")} == {
        f"claims.{suffix}" for suffix in ("csv", "md", "svg", "png")
    }
    readme = (root / "README.md").read_text()
    assert readme.startswith(f"before\n{compare.BEGIN}![")
    assert readme.endswith(f"\n{compare.END}after\n")
    assert "\nold\n" not in readme
    assert "own" not in re.findall(r"\| Claim.*", readme)[0], "a preset that is not known has a column"
    with open("results/claims.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["preset"]) for row in rows if row["measured"]] == [
        ("speed", "paper-profile"),
        *(("speed_architecture", name) for name in ("tiny", "smol", "paper-profile")),
        *(("layout", name) for name in ("tiny", "smol")),
    ]
    assert compare.main(["--check"]) == 0
    text = readme.replace("2.07", "2.08")
    (root / "README.md").write_text(text)
    (root / "results/claims.md").unlink()
    capsys.readouterr()
    assert compare.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "error: results/claims.md and README.md: stale; run python -m matvlm.report.compare\n"
    )
    assert (root / "README.md").read_text() == text


def test_links_of_readme_and_page_lead_somewhere(root):
    for name in ("tiny", "smol", "paper-profile"):
        (root / "results" / name / "claims.md").write_text("")
    compare.main([])
    for page in (root / "README.md", root / "results/claims.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert len(links) == 4
        assert all((page.parent / link).is_file() for link in links)


def test_the_readme_may_be_left_alone(root):
    assert compare.main(["--no-readme", "--claims", "results/own/claims.csv", "--out", "new/all"]) == 0
    assert "\nold\n" in (root / "README.md").read_text()
    assert "a preset of your own" in (root / "new/all.md").read_text()


def test_bad_input_is_one_line(root, capsys):
    (root / "README.md").write_text(compare.END + compare.BEGIN)
    assert compare.main([]) == 2
    assert capsys.readouterr().err.startswith("error: README.md: must have <!-- Written by")
    assert not (root / "results/claims.md").exists()
    (root / "results/tiny/claims.csv").write_text("id\n")
    assert compare.main([]) == 2
    assert "tiny/claims.csv: column claim" in capsys.readouterr().err
    shutil.rmtree(root / "results")
    assert compare.main([]) == 2
    assert "no preset of tiny, tiny-long, smol, paper-profile has a claims.csv" in capsys.readouterr().err


def test_what_is_committed_is_up_to_date(monkeypatch, capsys):
    """If this fails: python -m matvlm.report.compare"""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "results/*/claims.csv"], cwd=ROOT, capture_output=True, text=True
    )
    if changed.returncode or changed.stdout:
        pytest.skip("not a checkout, or results of other runs than those committed")
    monkeypatch.chdir(ROOT)
    assert compare.main(["--check"]) == 0, capsys.readouterr().err


def test_the_modules_order_knows_every_preset_that_is_drawn():
    assert forest.PRESETS.keys() == comparison.SHOWN.keys()
    assert forest.NAMES.keys() == {*claims.ORDER} - {"mamba_vlms"}

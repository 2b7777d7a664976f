"""`python -m matvlm.report.compare`: the paper's claims and what each preset found, side by side.

Reads the `claims.csv` that presets have below `results/` and writes `results/claims.md`, `.csv`, `.svg` and
`.png`, and the section of the README between its markers. ``--check`` says whether the texts still are what the
files give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matvlm.errors import UserError, one_line
from matvlm.files import csv_text, write_text
from matvlm.report import comparison
from matvlm.report.claim_rows import NUMBERS
from matvlm.report.comparison import Comparison
from matvlm.report.figures import forest, style
from matvlm.report.writers import escape_markdown, markdown

MODULE = "python -m matvlm.report.compare"
RESULTS, README = Path("results"), Path("README.md")
BEGIN, END = f"<!-- Written by `{MODULE}`. -->\n", "<!-- End of what is written by it. -->\n"
COLUMNS = ("id", "preset", "claim", *NUMBERS, "unit", "over", "verdict", "tested", "command")
CAPTION = (
    "Every claim with a number, by preset: what was measured with its interval, hollow where nothing is shown. A "
    "claim holds right of the dashed line; for the paper's own model, right of the paper's number."
)


def make_csv(found: Comparison) -> str:
    """One row for each claim and preset that was asked about it, in the order of the table."""
    rows = []
    for line in found.lines:
        for preset, claim in line.answers.items():
            if claim is not None:
                values = {name: getattr(claim, name) for name in ("unit", "over", "verdict", "tested", "command")}
                rows.append({"id": line.id, "preset": preset, "claim": line.claim, **claim.figures} | values)
    return csv_text(COLUMNS, rows)


def make_page(found: Comparison) -> str:
    """`claims.md`: picture, table and what the presets are."""
    table = comparison.table(found)
    return f"# {table.title}\n\n{_body(found, '')}\nMade by `{table.command}`.\n"


def make_section(found: Comparison) -> str:
    """What stands in the README, markers included."""
    return f"{BEGIN}{_body(found, f'{RESULTS}/')}{END}"


def with_section(readme: Path, section: str) -> str:
    """The README with its section replaced.

    Raises:
        UserError: not both of the markers are there once, in order.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme}: must have {BEGIN.strip()} and below it {END.strip()}, each once on a line")
    return text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :]


def _body(found: Comparison, results: str) -> str:
    """
    Args:
        results: what links to files below the results begin with.
    """
    table = comparison.table(found)
    presets = (
        f"- [{name}]({results}{name}/claims.md): {comparison.SHOWN.get(name, 'a preset of your own')}\n"
        for name in found.presets
    )
    notes = "".join(f"- {escape_markdown(note)}\n" for note in table.notes)
    picture = f"![What each preset measured for every claim]({results}claims.png)\n\n*{CAPTION}*"
    return f"{picture}\n\n{markdown(table)}\n{''.join(presets)}{notes}"


@one_line
def main(argv: list[str] | None = None) -> int:
    """Write the paper's claims and what each preset found, side by side."""
    args = _parse(argv)
    paths = args.claims or comparison.present(RESULTS)
    if not paths:
        raise UserError(f"{RESULTS}: no preset of {', '.join(comparison.SHOWN)} has a claims.csv")
    found = comparison.compare({path.parent.name: path for path in paths})
    texts = {
        args.out.with_name(f"{args.out.name}.csv"): make_csv(found),
        args.out.with_name(f"{args.out.name}.md"): make_page(found),
    }
    if not args.no_readme:
        texts[README] = with_section(README, make_section(found))
    if args.check:
        stale = [str(path) for path, text in texts.items() if not _is(path, text)]
        if stale:
            print(f"error: {' and '.join(stale)}: stale; run {MODULE}", file=sys.stderr)
        return int(bool(stale))
    for path, text in texts.items():
        write_text(path, text)
    with style.in_use():
        style.save(forest.draw_forest(found), args.out)
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=MODULE, description=main.__doc__)
    parser.add_argument(
        "--claims",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="claims.csv of each preset; else those that are there",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "claims", help="path without suffix")
    parser.add_argument("--no-readme", action="store_true", help="leave the README as it is")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a text is stale")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m matvlm.report.render table|figure|claims|page`: results from tidy CSV files.

Every command reads files and writes files; none computes a model, and none needs a network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matvlm import config
from matvlm.errors import one_line
from matvlm.report.settings import Report

TABLES = ("main", "losses", "layouts", "ratios", "inits", "divergences", "grid", "speed")
FIGURES = ("speed", "memory", "convergence", "ablations", "radar")


@one_line
def main(argv: list[str] | None = None) -> None:
    """Render tables, figures, the verdicts on the paper's claims, or the page of a preset."""
    args = _parse(argv)
    settings = config.parse_settings(Report, args.settings)
    args.run(settings, args)


def _table(settings: Report, args: argparse.Namespace) -> None:
    from matvlm.report import tables, writers

    writers.write(tables.build(args.table, settings, args.data, args.train), args.out)


def _figure(settings: Report, args: argparse.Namespace) -> None:
    from matvlm.report import figures

    figures.write(args.figure, settings, args.data, args.out)


def _claims(settings: Report, args: argparse.Namespace) -> None:
    from matvlm.report import claims

    claims.write(settings, args.eval, args.train, args.profile, args.out)


def _page(settings: Report, args: argparse.Namespace) -> None:
    from matvlm.report import page

    page.write(settings, args.claims, args.tables, args.figures, args.data, args.beside, args.out)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m matvlm.report.render", description=main.__doc__)
    commands = parser.add_subparsers(required=True, metavar="table|figure|claims|page")

    table = commands.add_parser("table", help="one table as Markdown, LaTeX and HTML")
    table.add_argument("--table", required=True, metavar="NAME", help=", ".join(TABLES))
    table.add_argument("--data", type=Path, required=True, help="eval.csv; profile.csv for the table speed")
    table.add_argument("--train", type=Path, help="train.csv, for the column of the validation KL")
    table.set_defaults(run=_table)

    figure = commands.add_parser("figure", help="one figure as SVG and PNG")
    figure.add_argument("--figure", required=True, metavar="NAME", help=", ".join(FIGURES))
    figure.add_argument(
        "--data",
        type=Path,
        required=True,
        help="profile.csv for speed and memory, train.csv for convergence, eval.csv for ablations and radar",
    )
    figure.set_defaults(run=_figure)

    claims = commands.add_parser("claims", help="a verdict on each claim of the paper, as Markdown and CSV")
    for name in ("eval", "train", "profile"):
        claims.add_argument(f"--{name}", type=Path, help=f"{name}.csv; none where the preset has none")
    claims.set_defaults(run=_claims)

    page = commands.add_parser("page", help="one HTML page with everything, for use without a network")
    page.add_argument("--claims", type=Path, required=True, help="claims.csv")
    page.add_argument("--tables", type=Path, nargs="+", required=True, help="the tables' .html files, in order")
    page.add_argument("--figures", type=Path, nargs="+", required=True, help="the figures' .svg files, in order")
    page.add_argument("--data", type=Path, nargs="+", required=True, help="the CSV files, for their provenance")
    page.add_argument("--beside", type=Path, nargs="*", default=[], help="claims.csv of other presets")
    page.set_defaults(run=_page)

    for command, out in ((table, "path without suffix"), (figure, "path without suffix")):
        command.add_argument("--out", type=Path, required=True, help=out)
    claims.add_argument("--out", type=Path, required=True, help="path without suffix; .md and .csv are written")
    page.add_argument("--out", type=Path, required=True, help="the HTML file")
    for command in (table, figure, claims, page):
        command.add_argument("--settings", required=True, help="JSON of matvlm.report.settings.Report")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())

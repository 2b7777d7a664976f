"""`python -m matvlm.report.metrics`: the scores of `eval.csv` as nested JSON, for `dvc metrics`.

Keys are model, cell and task; values are means over the seeds.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from matvlm.errors import UserError, one_line
from matvlm.files import write_json

CELL = ("init", "layout", "loss", "divergence")


def summarise(table: Path) -> dict[str, dict]:
    """``{"teacher": {task: accuracy}, "student": {cell: {task: accuracy}}}`` of an `eval.csv`.

    Raises:
        UserError: a column is missing.
    """
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with open(table, encoding="utf-8", newline="") as stream:
        try:
            for row in csv.DictReader(stream):
                if row["metric"] == "accuracy":
                    cell = [] if row["model"] == "teacher" else ["/".join(row[name] for name in CELL)]
                    values[(row["model"], *cell, row["task"])].append(float(row["value"]))
        except KeyError as error:
            raise UserError(f"{table}: column {error} is missing") from None
    tree: dict[str, dict] = {}
    for (*path, task), found in values.items():
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[task] = round(fmean(found), 6)
    return tree


@one_line
def main(argv: list[str] | None = None) -> None:
    """Write the scores of eval.csv as nested JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--eval", type=Path, required=True, help="eval.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    args = parser.parse_args(argv)
    write_json(args.out, summarise(args.eval))


if __name__ == "__main__":
    raise SystemExit(main())

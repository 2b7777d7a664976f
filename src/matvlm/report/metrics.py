"""`python -m matvlm.report.metrics`: what a preset is about as nested JSON, for `dvc metrics`.

Of `eval.csv` the scores by model, cell and task: means over the seeds. Of a preset that scores nothing the rates
and memory of `profile.csv` by model, protocol, runtime and point: medians over the repeats.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

from matvlm.errors import one_line
from matvlm.files import write_json
from matvlm.report.origins import read_rows

CELL = ("init", "layout", "loss", "divergence")
MEASURED = ("decode_tokens_per_s", "peak_memory_bytes")


def summarise(table: Path) -> dict[str, dict]:
    """``{"teacher": {task: accuracy}, "student": {cell: {task: accuracy}}}`` of an `eval.csv`.

    Raises:
        UserError: a column is missing.
    """
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in read_rows(table, ("model", *CELL, "task", "metric", "value")):
        if row["metric"] == "accuracy":
            cell = [] if row["model"] == "teacher" else ["/".join(row[name] for name in CELL)]
            values[(row["model"], *cell, row["task"])].append(float(row["value"]))
    return _tree({path: round(fmean(found), 6) for path, found in values.items()})


def summarise_profile(table: Path) -> dict[str, dict]:
    """``{"teacher" or layout: {protocol: {runtime: {point: {column: median}}}}}`` of a `profile.csv`; a point is
    ``<batch> x <prompt tokens> + <generated tokens>``. What ran out of memory is left out.

    Raises:
        UserError: a column is missing.
    """
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    place = ("batch", "prompt_tokens", "generated_tokens")
    for row in read_rows(table, ("model", "layout", "protocol", "runtime", *place, *MEASURED)):
        point = "{} x {} + {}".format(*(row[name] for name in place))
        for name in MEASURED:
            if row[name]:
                subject = row["layout"] or row["model"]
                values[(subject, row["protocol"], row["runtime"], point, name)].append(float(row[name]))
    return _tree({path: round(median(found), 3) for path, found in values.items()})


def _tree(leaves: dict[tuple[str, ...], float]) -> dict[str, dict]:
    """Nested dictionaries of values by path."""
    tree: dict[str, dict] = {}
    for (*path, last), value in leaves.items():
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = value
    return tree


@one_line
def main(argv: list[str] | None = None) -> None:
    """Write the scores of eval.csv, or the rates and memory of profile.csv, as nested JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--eval", type=Path, help="eval.csv")
    source.add_argument("--profile", type=Path, help="profile.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    args = parser.parse_args(argv)
    write_json(args.out, summarise(args.eval) if args.eval else summarise_profile(args.profile))


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m matvlm.report.collect`: one tidy CSV from the files of many runs.

Kinds and the files they read:

- ``eval``: `results.json` of evaluations; one row per model, seed, task and metric, with provenance.
- ``train``: `log.csv` of distillations; the cell comes from the `provenance.json` beside each. The cell's
  column ``loss`` names the losses in use, so the loss itself stands in ``loss_total``.
- ``profile``: JSON files of profiling; one row per measured point and repeat, with provenance.
- ``runs``: `results.json`, `provenance.json` and profile JSON files; one row per run with what it cost.

Rows are sorted, numbers are written as they were read, so that equal runs give equal bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

from matvlm.errors import UserError, one_line
from matvlm.files import write_text
from matvlm.provenance import COLUMNS as PROVENANCE
from matvlm.provenance import COST_COLUMNS
from matvlm.report import order
from matvlm.report.columns import PROFILE_FIGURES, PROFILE_KEY, PROFILE_MARKS, PROFILE_MEASURED
from matvlm.training import log

CELL = ("init", "layout", "loss", "divergence", "seed")
EVAL_KEY = ("model", *CELL, "task", "metric")
LOGGED = {"loss_total" if name == "loss" else name: name for name in log.COLUMNS if name != "step"}
"""Columns of train.csv, where ``loss`` is a cell's set of losses, and those of log.csv that they come from."""
TRAIN_VALUES = tuple(LOGGED)
TRAIN_PROVENANCE = ("commit", "config_hash")
"""Columns of train.csv that lead to a run's full provenance in runs.csv."""

Row = dict[str, object]


@one_line
def main(argv: list[str] | None = None) -> None:
    """Collect the files of many runs into one tidy CSV."""
    args = _parse(argv)
    if not args.inputs:
        raise UserError("no files to collect: --inputs is empty")
    collect = {"eval": collect_eval, "train": collect_train, "profile": collect_profile, "runs": collect_runs}
    write_text(args.out, collect[args.kind](sorted(args.inputs)))


def collect_eval(paths: Iterable[Path]) -> str:
    """CSV text of `eval.csv` from `results.json` files."""
    columns = (*EVAL_KEY, "value", "n", *PROVENANCE)
    rows: list[tuple[Path, Row]] = []
    for path in paths:
        document = _read_json(path)
        for number, row in enumerate(_rows(document, path)):
            _require(row, (*EVAL_KEY, "value", "n"), f"{path}: rows[{number}]")
            _number(row["value"], f"{path}: rows[{number}].value")
            rows.append((path, row | _provenance(document, path)))
    return _csv(rows, EVAL_KEY, columns)


def collect_train(paths: Iterable[Path]) -> str:
    """CSV text of `train.csv` from `log.csv` files, each with its `provenance.json` beside it."""
    columns = (*CELL, "step", *TRAIN_VALUES, *TRAIN_PROVENANCE)
    rows: list[tuple[Path, Row]] = []
    for path in paths:
        document = _read_json(path.with_name("provenance.json"))
        cell = _mapping(document, "cell", path.with_name("provenance.json"))
        _require(cell, CELL, f"{path.with_name('provenance.json')}: cell")
        source = _provenance(document, path.with_name("provenance.json"))
        for line in _read_log(path):
            values = {name: line.get(logged, "") for name, logged in LOGGED.items()}
            rows.append((path, {**cell, "step": line["step"], **values, **source}))
    return _csv(rows, (*CELL, "step"), columns)


def collect_profile(paths: Iterable[Path]) -> str:
    """CSV text of `profile.csv` from profile JSON files; further columns that rows have are kept."""
    known = (*PROFILE_KEY, *PROFILE_FIGURES, *PROFILE_MARKS)
    rows: list[tuple[Path, Row]] = []
    extra: set[str] = set()
    for path in paths:
        document = _read_json(path)
        for number, row in enumerate(_rows(document, path)):
            _require(row, (*PROFILE_KEY, *PROFILE_MEASURED), f"{path}: rows[{number}]")
            extra |= set(row)
            rows.append((path, row | _provenance(document, path)))
    extra -= {*known, *PROVENANCE}
    return _csv(rows, PROFILE_KEY, (*known, *sorted(extra), *PROVENANCE))


def collect_runs(paths: Iterable[Path]) -> str:
    """CSV text of `runs.csv`: step, cell and cost of every run that recorded a cost."""
    key = ("step", "model", *CELL)
    rows: list[tuple[Path, Row]] = []
    for path in paths:
        document = _read_json(path)
        cost = _mapping(document, "cost", path)
        _require(cost, COST_COLUMNS, f"{path}: cost")
        rows.append((path, {**_identity(document, path), **cost, **_provenance(document, path)}))
    return _csv(rows, key, (*key, *COST_COLUMNS, *PROVENANCE), distinct=False)


def _identity(document: dict, path: Path) -> Row:
    """Step, model and cell of a run, from its own words or from its first row."""
    first = document["rows"][0] if document.get("rows") else {}
    step = document.get("step") or ("evaluate" if "task" in first else "profile" if first else "")
    if not step:
        raise UserError(f"{path}: neither 'step' nor 'rows' say what kind of run this is")
    cell = document.get("cell") or first
    model = first.get("model") or ("student" if cell.get("layout") else "teacher")
    return {"step": step, "model": model} | {name: cell.get(name) for name in CELL}


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a JSON object")
    return document


def _read_log(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        for name in ("step", "tokens", "loss", "val_kl"):
            if name not in (reader.fieldnames or ()):
                raise UserError(f"{path}: column {name} is missing")
        return list(reader)


def _rows(document: dict, path: Path) -> list[Row]:
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: 'rows' is missing or empty")
    return rows


def _mapping(document: dict, name: str, path: Path) -> dict:
    value = document.get(name)
    if not isinstance(value, dict):
        raise UserError(f"{path}: '{name}' is missing")
    return value


def _provenance(document: dict, path: Path) -> Row:
    source = _mapping(document, "provenance", path)
    _require(source, PROVENANCE, f"{path}: provenance")
    return {name: source[name] for name in PROVENANCE}


def _require(row: dict, names: Iterable[str], where: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing")


def _number(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: {value!r} is not a finite number")


def _csv(
    rows: list[tuple[Path, Row]], key: tuple[str, ...], columns: tuple[str, ...], *, distinct: bool = True
) -> str:
    """Sorted CSV text.

    Raises:
        UserError: two rows for the same observation, where they are to be ``distinct``.
    """
    seen: dict[tuple, Path] = {}
    for path, row in rows:
        identity = tuple(_text(row.get(name)) for name in key)
        if distinct and identity in seen:
            named = ", ".join(f"{k} {v}" for k, v in zip(key, identity, strict=True) if v)
            raise UserError(f"{path}: measured a second time ({named}); first in {seen[identity]}")
        seen[identity] = path
    rows = sorted(rows, key=lambda item: [order.key(name, item[1].get(name)) for name in key])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(row.get(name)) for name in columns] for _, row in rows)
    return stream.getvalue()


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m matvlm.report.collect", description=main.__doc__)
    parser.add_argument("--kind", choices=("eval", "train", "profile", "runs"), required=True)
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())

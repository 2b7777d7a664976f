"""The tidy CSV files as data frames, checked for the columns that a report reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from matvlm.errors import UserError
from matvlm.experiments import Cell
from matvlm.report.columns import PROFILE_FIGURES, PROFILE_KEY, PROFILE_MARKS, PROFILE_MEASURED

CELL = ["init", "layout", "loss", "divergence"]
EVAL_COLUMNS = ["model", *CELL, "seed", "task", "metric", "value", "n"]
TRAIN_COLUMNS = [*CELL, "seed", "step", "tokens", "val_kl"]
PROFILE_COLUMNS = [*(name for name in PROFILE_KEY if name != "runtime"), *PROFILE_MEASURED]
_TEXT = dict.fromkeys(("model", *CELL, "task", "metric", "protocol", "runtime", *PROFILE_MARKS), str)


def read_eval(path: Path) -> pd.DataFrame:
    """`eval.csv`; the teacher's cell columns are empty strings, its seed NaN."""
    return _read(path, EVAL_COLUMNS)


def read_train(path: Path) -> pd.DataFrame:
    """`train.csv`; what was not measured at a step is NaN."""
    return _read(path, TRAIN_COLUMNS)


def read_profile(path: Path) -> pd.DataFrame:
    """`profile.csv`; the teacher's layout is an empty string, what was not measured or ran out of memory is NaN.
    Columns that came later are there in any case: empty, and the runtime that of `same_runtime`."""
    frame = _read(path, PROFILE_COLUMNS, PROFILE_FIGURES)
    for name, default in {"runtime": "transformers", "beyond_positions": "", "note": ""}.items():
        if name not in frame:
            frame[name] = default
    frame["beyond_positions"] = frame["beyond_positions"].str.lower() == "true"
    return frame


def rows_of(frame: pd.DataFrame, cell: Cell | None) -> pd.DataFrame:
    """Rows of one student cell, or of the teacher where ``cell`` is None (`eval.csv` only)."""
    if cell is None:
        return frame[frame["model"] == "teacher"]
    same = frame["model"] == "student" if "model" in frame else frame["init"] == cell.init
    for name in CELL:
        same = same & (frame[name] == getattr(cell, name))
    return frame[same]


def seeds_of(frame: pd.DataFrame, cell: Cell, seeds: Sequence[int]) -> pd.DataFrame:
    """Rows of one student cell with these seeds; other seeds that a file may hold are left out.

    Raises:
        UserError: a seed without any row.
    """
    rows = rows_of(frame, cell)
    if absent := sorted(set(seeds) - set(rows["seed"])):
        named = f"{cell.path} seed {', '.join(map(str, absent))}"
        raise UserError(f"{frame.attrs.get('path', 'data')}: no rows of {named}")
    return rows[rows["seed"].isin(seeds)]


def _read(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """
    Args:
        optional: columns of numbers that the file may lack; then they are NaN.

    Raises:
        UserError: not a CSV file, a column missing, no row, or text where a number should be.
    """
    try:
        frame = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values={})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file: {str(error).splitlines()[0]}") from None
    if missing := [name for name in columns if name not in frame]:
        raise UserError(f"{path}: column {', '.join(missing)} is missing")
    if frame.empty:
        raise UserError(f"{path}: has no rows")
    for name in optional:
        if name not in frame:
            frame[name] = math.nan
    for name in dict.fromkeys((*columns, *optional)):
        if name not in _TEXT:
            try:
                frame[name] = pd.to_numeric(frame[name].replace("", None))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}: column {name}: {error}") from None
    frame.attrs["path"] = str(path)  # selections keep it, so that errors can name the file
    return frame

"""Where the numbers of a report come from and what they cost, from the provenance columns of its CSV files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from matvlm.errors import UserError
from matvlm.provenance import COST_COLUMNS

COLUMNS = {
    "commit": "Commit",
    "dirty": "Uncommitted changes",
    "device": "Device",
    "kernel_path": "Kernel path",
    "torch": "torch",
    "transformers": "transformers",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
    "lmms_eval": "lmms-eval",
    "teacher_hash": "Teacher hash",
    "data_hash": "Data hash",
    "config_hash": "Configuration hash",
}
"""Columns in the order in which the page lists them, and their names there."""
WORDS = {"dirty": {"true": "yes, in some runs", "false": "no"}}
"""What values of a column are called."""


@dataclass(frozen=True)
class Fact:
    """One column: its distinct values, sorted, and whether some rows leave it empty."""

    name: str
    values: list[str]
    gaps: bool


@dataclass
class Step:
    """What all runs of one step took together; ``peak_memory_bytes`` is the highest of them."""

    name: str
    runs: int = 0
    wall_s: float = 0.0
    gpu_s: float = 0.0
    peak_memory_bytes: float = 0.0

    def add(self, row: dict[str, str], path: Path) -> None:
        """Count one row of `runs.csv` in."""
        self.runs += 1
        wall, gpu, peak = (_number(row[name], name, path) for name in COST_COLUMNS)
        self.wall_s, self.gpu_s = self.wall_s + wall, self.gpu_s + gpu
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)


@dataclass
class Origins:
    """``rows``: number of rows by file name; ``steps``: the runs of `runs.csv`, and ``total`` of them."""

    facts: list[Fact] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    total: Step = field(default_factory=lambda: Step("total"))
    warnings: list[str] = field(default_factory=list)


def read_origins(paths: Iterable[Path]) -> Origins:
    """Gather the origins of all files.

    Raises:
        UserError: not a CSV file with a header, or a cost that is not a number.
    """
    found = Origins()
    values: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    steps: dict[str, Step] = {}
    for path in paths:
        rows = read_rows(path)
        found.rows[path.name] = len(rows)
        for row in rows:
            for name in values:
                if name in row:
                    values[name][row[name] or ""] += 1
            if all(name in row for name in ("step", *COST_COLUMNS)):
                steps.setdefault(row["step"], Step(row["step"])).add(row, path)
                found.total.add(row, path)
    found.steps = list(steps.values())
    for name, title in COLUMNS.items():
        if values[name]:
            words = WORDS.get(name, {})
            known = sorted(words.get(value, value) for value in values[name] if value)
            found.facts.append(Fact(title, known, "" in values[name]))
    found.warnings = _warnings(values)
    return found


def read_rows(path: Path, required: Iterable[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV file as text.

    Raises:
        UserError: not a CSV file, or a required column is missing.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file: {error}") from None
    if missing := [name for name in required if name not in (reader.fieldnames or ())]:
        raise UserError(f"{path}: column {', '.join(missing)} is missing")
    return rows


def _warnings(values: dict[str, Counter[str]]) -> list[str]:
    warnings = []
    if values["dirty"]["true"]:
        warnings.append(
            "Some runs had changes that were not committed: their commit does not tell all of their code."
        )
    if len([commit for commit in values["commit"] if commit]) > 1:
        warnings.append(
            "Runs come from several commits: each step is repeated only when its own code or inputs change."
        )
    if values["commit"][""]:
        warnings.append("Of some runs the commit is not known.")
    return warnings


def _number(text: str, name: str, path: Path) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise UserError(f"{path}: column {name}: {text!r} is not a number") from None

"""What claims are judged by, and what comes of it.

A verdict compares an interval with a bound: `holds` if all of it lies on the claim's side, `does not hold` if all
of it lies on the other, `not shown` if it spans the bound or if there is none. `not run`: this preset's
configuration or data cannot answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from matvlm.errors import UserError
from matvlm.experiments import Cell
from matvlm.report.read import seeds_of
from matvlm.report.settings import Report

HOLDS, FAILS, NOT_SHOWN, NOT_RUN = "holds", "does not hold", "not shown", "not run"


class NotRun(Exception):
    """Why a claim cannot be answered."""


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by: the preset's settings and its tidy data; none of what it does not do."""

    settings: Report
    scores: pd.DataFrame | None
    train: pd.DataFrame | None
    profile: pd.DataFrame | None

    def of(self, cell: Cell) -> pd.DataFrame:
        """Scores of a cell, all configured seeds.

        Raises:
            NotRun: they are not all there.
        """
        return self._rows(self.scores, cell)

    def log_of(self, cell: Cell) -> pd.DataFrame:
        """Training log of a cell, all configured seeds.

        Raises:
            NotRun: they are not all there.
        """
        return self._rows(self.train, cell)

    def cells(self, axis: str, field: str) -> dict[str, Cell]:
        """The configured cells of an axis by the value that varies."""
        return {getattr(cell, field): cell for cell in self.settings.cells(axis)}

    def _rows(self, frame: pd.DataFrame, cell: Cell) -> pd.DataFrame:
        try:
            return seeds_of(frame, cell, self.settings.ablation.seeds)
        except UserError as error:
            raise NotRun(str(error)) from None


@dataclass(frozen=True)
class Claim:
    """One row of `claims.csv`. ``measured``, ``low`` and ``high`` are in ``unit``; NaN where there is none."""

    claim: str
    tested: str
    """What the verdict is about."""
    unit: str = ""
    published: float = math.nan
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    over: str = "none"
    """What the interval is over: seeds, questions, repeats or none."""
    verdict: str = NOT_RUN
    detail: str = ""
    """What was compared, with the numbers."""


def judge(low: float, high: float, bound: float = 0.0) -> str:
    """Verdict on "above ``bound``" from an interval."""
    if low > bound:
        return HOLDS
    return FAILS if high < bound else NOT_SHOWN


def answer(start: Claim, rule: Callable[[Evidence, Claim], Claim], evidence: Evidence) -> Claim:
    """The claim as ``rule`` fills it in, or as not run, with the reason."""
    try:
        return rule(evidence, start)
    except NotRun as reason:
        return replace(start, verdict=NOT_RUN, detail=f"Not run: {reason}.")

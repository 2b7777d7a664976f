"""Means with 95 % confidence intervals, over seeds where there are several, else over test questions.

Over seeds: Student's t on the seeds' values; the difference of two cells is taken seed by seed, since equal
seeds share data order and initial weights. With one seed what is left is the chance of the draw of test
questions: each task's binomial with Agresti and Coull's standard error (two right and two wrong answers added,
so that a perfect score on few questions is not taken for certain), tasks and models taken as independent. Models
answer the same questions, so their differences are known better than that says. It says nothing of how another
seed would turn out, so `Estimate.over` goes wherever the interval goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from matvlm.errors import UserError

MEAN = "mean"
"""Task of the rows that hold the plain mean over the tasks."""
NORMAL_95 = 1.959964
_NO_SEED = -1  # stands for the teacher's empty seed
# Quantile 0.975 of Student's t for 1, 2, ... 30 degrees of freedom; the last serves for more.
_T_95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval. ``n``: seeds. ``over``: `seeds`, `questions`, or `none` (NaN bounds)."""

    mean: float
    low: float
    high: float
    n: int
    over: str

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def side(self) -> int:
        """1 if the interval lies above zero, -1 if below, 0 if it spans zero or there is none."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def over_seeds(values: list[float]) -> Estimate:
    """Mean of one value a seed; no interval for a single one.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1, "none")
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = _T_95[min(n - 2, len(_T_95) - 1)] * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, "seeds")


def score(rows: pd.DataFrame, task: str = MEAN) -> Estimate:
    """Accuracy of one model on a task, or the mean over the tasks.

    Args:
        rows: the model's rows of `eval.csv`, all its seeds.

    Raises:
        UserError: no accuracy of that task, or two of one seed.
    """
    values = _by_seed(rows, task)
    if len(values) > 1:
        return over_seeds(list(values))
    return _over_questions(float(values.iloc[0]), _question_error(rows, task, values.index[0]))


def difference(rows: pd.DataFrame, other: pd.DataFrame, task: str = MEAN) -> Estimate:
    """Accuracy of ``rows`` minus that of ``other``, over the seeds that both have; a teacher, which has no
    seed, is compared with each.

    Raises:
        UserError: no accuracy of that task, or no seed that both have.
    """
    mine, theirs = _by_seed(rows, task), _by_seed(other, task)
    if list(theirs.index) == [_NO_SEED]:
        theirs = pd.Series(theirs.iloc[0], index=mine.index)
    seeds = mine.index.intersection(theirs.index)
    if seeds.empty:
        raise UserError(f"{_path(rows)}: two models that are to be compared have no seed in common")
    values = list((mine - theirs).loc[seeds])
    if len(values) > 1:
        return over_seeds(values)
    seed = seeds[0]
    error = math.hypot(_question_error(rows, task, seed), _question_error(other, task, seed))
    return _over_questions(float(values[0]), error)


def _over_questions(mean: float, error: float) -> Estimate:
    return Estimate(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error, 1, "questions")


def _by_seed(rows: pd.DataFrame, task: str) -> pd.Series:
    """Accuracy with the seed as index."""
    chosen = rows[(rows["task"] == task) & (rows["metric"] == "accuracy")]
    if chosen.empty:
        raise UserError(f"{_path(rows)}: no accuracy of task {task} for one of the models")
    values = chosen.set_index(chosen["seed"].fillna(_NO_SEED).astype(int))["value"]
    if values.index.has_duplicates:
        raise UserError(f"{_path(rows)}: two accuracies of task {task} for the same model and seed")
    return values


def _question_error(rows: pd.DataFrame, task: str, seed: int) -> float:
    """Standard error of the accuracy by the draw of questions; of the mean: of a mean of independent tasks."""
    of_seed = rows["seed"].isna() | (rows["seed"] == seed)
    chosen = rows[of_seed & (rows["metric"] == "accuracy")]
    chosen = chosen[chosen["task"] != MEAN] if task == MEAN else chosen[chosen["task"] == task]
    if chosen.empty:
        raise UserError(f"{_path(rows)}: has a mean over tasks but no task")
    n = chosen["n"] + 4
    share = (chosen["value"] * chosen["n"] + 2) / n
    return math.sqrt((share * (1 - share) / n).sum()) / len(chosen)


def _path(rows: pd.DataFrame) -> str:
    return rows.attrs.get("path", "data")

"""Means with 95 % confidence intervals, over seeds where there are several, else over test questions.

Over seeds: Student's t on the seeds' values; the difference of two cells is taken seed by seed, since equal
seeds share data order and initial weights. With one seed what is left is the chance of the draw of test
questions: the normal approximation of each task's binomial, tasks taken as independent. It says nothing of how
another seed would turn out, so `Estimate.over` goes wherever the interval goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

MEAN = "mean"
"""Task of the rows that hold the plain mean over the tasks."""
NORMAL_95 = 1.959964
# Quantile 0.975 of Student's t for 1, 2, ... degrees of freedom.
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


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
    half = (_T_95[n - 2] if n - 2 < len(_T_95) else NORMAL_95) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, "seeds")


def score(rows: pd.DataFrame, task: str = MEAN) -> Estimate:
    """Accuracy of one model on a task, or the mean over the tasks.

    Args:
        rows: the model's rows of `eval.csv`, all its seeds.
    """
    values = _by_seed(rows, task)
    if len(values) > 1:
        return over_seeds(list(values))
    error = _question_error(rows, task)
    mean = float(values.iloc[0])
    return Estimate(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error, 1, "questions")


def difference(rows: pd.DataFrame, other: pd.DataFrame, task: str = MEAN) -> Estimate:
    """Accuracy of ``rows`` minus that of ``other``, over the seeds that both have; a teacher, which has no
    seed, is compared with each."""
    mine, theirs = _by_seed(rows, task), _by_seed(other, task)
    if len(theirs) == 1 and theirs.index[0] == -1:
        values = list(mine - theirs.iloc[0])
    else:
        values = list((mine - theirs).dropna())
    if len(values) > 1:
        return over_seeds(values)
    error = math.hypot(_question_error(rows, task), _question_error(other, task))
    mean = float(values[0])
    return Estimate(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error, 1, "questions")


def _by_seed(rows: pd.DataFrame, task: str) -> pd.Series:
    chosen = rows[(rows["task"] == task) & (rows["metric"] == "accuracy")]
    if chosen.empty:
        raise ValueError(f"no accuracy of task {task}")
    return chosen.set_index(chosen["seed"].fillna(-1).astype(int))["value"]


def _question_error(rows: pd.DataFrame, task: str) -> float:
    """Standard error of the accuracy by the draw of questions; of the mean: of a mean of independent tasks."""
    chosen = rows[rows["metric"] == "accuracy"]
    chosen = chosen[chosen["task"] != MEAN] if task == MEAN else chosen[chosen["task"] == task]
    chosen = chosen.groupby("task").first()
    variances = chosen["value"] * (1 - chosen["value"]) / chosen["n"]
    return math.sqrt(variances.sum()) / len(chosen)

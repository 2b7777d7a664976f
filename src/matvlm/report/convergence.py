"""How fast students converge: tokens of training until the validation KL has fallen to a fixed level.

The level is the highest final KL of all runs of the two initialisations that the paper compares. So each of
them reaches it at the latest with its last step: none is censored, and neither side is favoured. Runs of other
cells may never reach it; for them only a lower bound is known. As the schedule lets the KL drop in its last
steps, which the slower run's final KL includes, speed-ups are on the cautious side.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from matvlm.errors import UserError
from matvlm.report.read import seeds_of
from matvlm.report.settings import Report

COMPARED = ("attention", "random")
"""Initialisations that set the level, those of them that are configured."""


@dataclass(frozen=True)
class Reach:
    """Tokens of training after which a run reached the level; a lower bound where it never did."""

    tokens: float
    reached: bool
    at_once: bool = False
    """Whether it was there at its first validation already; then ``tokens`` are the shortest training there is."""


def final_kl(rows: pd.DataFrame) -> list[float]:
    """Validation KL at the last step, one value a seed.

    Args:
        rows: one cell's rows of `train.csv`.

    Raises:
        UserError: the last step has no validation KL.
    """
    last = rows.sort_values("step").groupby("seed").tail(1).sort_values("seed")
    if last.empty or last["val_kl"].isna().any():
        raise UserError(f"{rows.attrs.get('path', 'data')}: no val_kl at the last step of a run")
    return [float(value) for value in last["val_kl"]]


def level(train: pd.DataFrame, settings: Report) -> float | None:
    """The KL to reach, in nats per answer token; None where none of `COMPARED` is configured."""
    cells = [cell for cell in settings.cells("inits") if cell.init in COMPARED]
    finals = [final_kl(seeds_of(train, cell, settings.ablation.seeds)) for cell in cells]
    return max((value for values in finals for value in values), default=None)


def tokens_to(rows: pd.DataFrame, level: float) -> list[Reach]:
    """When each seed of a cell first reached ``level``, on straight lines between validations.

    A run that starts below the level counts from its first logged step, the shortest training there is.

    Args:
        rows: the cell's rows of `train.csv`.
    """
    return [_tokens_to(run.sort_values("step"), level) for _, run in rows.groupby("seed")]


def _tokens_to(run: pd.DataFrame, level: float) -> Reach:
    shortest = float(run.loc[run["tokens"] > 0, "tokens"].min())
    validated = run.dropna(subset=["val_kl"])
    before: tuple[float, float] | None = None
    for tokens, kl in zip(validated["tokens"].astype(float), validated["val_kl"], strict=True):
        if kl <= level:
            if before is not None:
                share = (before[1] - level) / (before[1] - kl)
                tokens = before[0] + share * (tokens - before[0])
            return Reach(max(tokens, shortest), True, at_once=before is None)
        before = (tokens, kl)
    return Reach(float(run["tokens"].max()), False)

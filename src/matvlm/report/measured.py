"""Medians of profiled points with the spread of their repeats, and ratios of them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from matvlm.report import order

POINT = ["protocol", "batch", "prompt_tokens", "generated_tokens"]
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Spread:
    """A median over repeats, the smallest and the largest of them, and how many there are."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Point:
    """What models are compared at; both run by the same protocol, so in the same runtime."""

    protocol: str
    batch: int
    prompt_tokens: int
    generated_tokens: int

    @property
    def context(self) -> int:
        """Tokens of a sequence when its last one is generated."""
        return self.prompt_tokens + self.generated_tokens

    def __str__(self) -> str:
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.context:,} tokens of context ({self.prompt_tokens:,} + {self.generated_tokens:,}{batch})"


def points(frame: pd.DataFrame) -> list[Point]:
    """All points of a `profile.csv`: by protocol, batch, then context."""
    found = {Point(row[0], *map(int, row[1:])) for row in frame[POINT].itertuples(index=False)}
    return sorted(found, key=lambda p: (order.key("protocol", p.protocol), p.batch, p.context, p.prompt_tokens))


def layouts(frame: pd.DataFrame) -> list[str]:
    """Layouts of the hybrids of a `profile.csv`, in their fixed order."""
    found = frame.loc[frame["model"] == "student", "layout"].unique()
    return sorted(found, key=lambda layout: order.key("layout", layout))


def rows_at(frame: pd.DataFrame, point: Point, layout: str | None) -> pd.DataFrame:
    """Repeats of one hybrid at a point, or of the teacher where ``layout`` is None."""
    subject = frame["model"] == "teacher" if layout is None else frame["layout"] == layout
    same = subject
    for name in POINT:
        same = same & (frame[name] == getattr(point, name))
    return frame[same]


def spread(rows: pd.DataFrame, column: str) -> Spread | None:
    """Median and spread of a column; None where there are no rows or memory did not suffice."""
    values = rows[column]
    if values.empty or values.isna().any():
        return None
    return Spread(float(values.median()), float(values.min()), float(values.max()), len(values))


def ratio(mine: Spread | None, other: Spread | None) -> Spread | None:
    """Ratio of the medians, between what the extremes of the repeats allow; None where either is."""
    if mine is None or other is None:
        return None
    repeats = min(mine.repeats, other.repeats)
    return Spread(mine.median / other.median, mine.low / other.high, mine.high / other.low, repeats)


def saving(mine: Spread | None, other: Spread | None) -> Spread | None:
    """Share by which ``mine`` is smaller than ``other``, bounds as in `ratio`; None where either is."""
    share = ratio(mine, other)
    return share and Spread(1 - share.median, 1 - share.high, 1 - share.low, share.repeats)

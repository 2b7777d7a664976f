"""Medians of profiled points with the spread of their repeats, and what models are compared by.

In protocol `same_runtime` models are compared in one runtime. In protocol `paper` each has its own, the teacher
several, of which always the best one counts: the fastest, or the one that needs least memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from matvlm.profiling.points import FUSED, PAPER
from matvlm.report import order

PLACE = ["batch", "prompt_tokens", "generated_tokens"]
RATES = ("decode_tokens_per_s", "generated_decode_tokens_per_s")
"""Columns of which more is better; of all others less is."""
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
    """What models are compared at. ``runtime`` is that of all of them; empty where each has its own."""

    protocol: str
    runtime: str
    batch: int
    prompt_tokens: int
    generated_tokens: int

    @property
    def place(self) -> tuple[int, int, int]:
        """What is the same in another protocol or runtime."""
        return self.batch, self.prompt_tokens, self.generated_tokens

    @property
    def context(self) -> int:
        """Tokens of a sequence when its last one is generated."""
        return self.prompt_tokens + self.generated_tokens

    def __str__(self) -> str:
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.context:,} tokens of context ({self.prompt_tokens:,} + {self.generated_tokens:,}{batch})"


def points(frame: pd.DataFrame) -> list[Point]:
    """All points of a `profile.csv`: by protocol, runtime, batch, then context."""
    found = {
        Point(protocol, "" if protocol == PAPER else runtime, *map(int, place))
        for protocol, runtime, *place in frame[["protocol", "runtime", *PLACE]].itertuples(index=False)
    }
    return sorted(
        found,
        key=lambda p: (
            order.key("protocol", p.protocol),
            order.key("runtime", p.runtime),
            p.batch,
            p.context,
            p.prompt_tokens,
        ),
    )


def points_of(frame: pd.DataFrame, protocol: str) -> list[Point]:
    """Points of one protocol in one runtime: the one that hybrids have in protocol `paper`, if it was measured."""
    found = [point for point in points(frame) if point.protocol == protocol]
    runtimes = [point.runtime for point in found]
    chosen = FUSED if FUSED in runtimes else runtimes[0] if runtimes else ""
    return [point for point in found if point.runtime == chosen]


def layouts(frame: pd.DataFrame) -> list[str]:
    """Layouts of the hybrids of a `profile.csv`, in their fixed order."""
    found = frame.loc[frame["model"] == "student", "layout"].unique()
    return sorted(found, key=lambda layout: order.key("layout", layout))


def rows_at(frame: pd.DataFrame, point: Point, layout: str | None, runtime: str = "") -> pd.DataFrame:
    """A hybrid's rows at a point, or the teacher's where ``layout`` is None; of one ``runtime`` if it is named."""
    wanted = {name: getattr(point, name) for name in ("protocol", *PLACE)}
    wanted |= {"model": "teacher"} if layout is None else {"layout": layout}
    if runtime or point.runtime:
        wanted["runtime"] = runtime or point.runtime
    same = [frame[name].to_numpy() == value for name, value in wanted.items()]
    return frame[np.logical_and.reduce(same)]


def runtimes_at(frame: pd.DataFrame, point: Point, layout: str | None) -> list[str]:
    """Runtimes of a model at a point, in their fixed order."""
    found = rows_at(frame, point, layout)["runtime"].unique()
    return sorted(found, key=lambda runtime: order.key("runtime", runtime))


def best_runtime(frame: pd.DataFrame, point: Point, layout: str | None, column: str) -> str | None:
    """The runtime of a model at a point that serves a column best; None where none has a value."""
    found = {
        name: spread(rows_at(frame, point, layout, name), column) for name in runtimes_at(frame, point, layout)
    }
    medians = {name: value.median for name, value in found.items() if value}
    return (max if column in RATES else min)(medians, key=medians.__getitem__, default=None)


def spread_at(frame: pd.DataFrame, point: Point, layout: str | None, column: str) -> Spread | None:
    """Median and spread of a column of a model at a point, in the runtime that serves it best."""
    runtime = best_runtime(frame, point, layout, column)
    return spread(rows_at(frame, point, layout, runtime), column) if runtime else None


def spread(rows: pd.DataFrame, column: str) -> Spread | None:
    """Median and spread of a column; None where there are no rows, or a value is missing."""
    values = rows[column]
    if values.empty or values.isna().any():
        return None
    return Spread(float(values.median()), float(values.min()), float(values.max()), len(values))


def why_empty(rows: pd.DataFrame) -> str:
    """Why a model's rows at a point have no figures: their note, else memory did not suffice."""
    notes = [note for note in rows["note"] if note]
    return notes[0] if notes else OUT_OF_MEMORY


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


def against_teacher(frame: pd.DataFrame, point: Point, layout: str, column: str) -> Spread | None:
    """Ratio of a hybrid's rate to the teacher's at a point, or what it saves of anything else; None where either
    has no value."""
    pair = (spread_at(frame, point, subject, column) for subject in (layout, None))
    return (ratio if column in RATES else saving)(*pair)

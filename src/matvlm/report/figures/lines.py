"""A line for each model against tokens, with the spread of its repeats: what the figures of profiles share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from matvlm.errors import UserError
from matvlm.report import measured, published
from matvlm.report.figures import style
from matvlm.report.measured import OUT_OF_MEMORY, Point, Spread

Values = dict[int, Spread | None]
"""By number of tokens; None where memory did not suffice."""
CROSS = {"marker": "x", "markeredgewidth": 1.6, "linestyle": "none"}


def collect(
    frame: pd.DataFrame, points: Iterable[Point], layouts: Iterable[str], column: str, scale: float = 1
) -> dict[str, Values]:
    """Values of a column by layout and generated tokens; the teacher's layout is empty. What was not run, or not
    measured, is left out."""
    series: dict[str, Values] = {layout: {} for layout in layouts}
    for layout, values in series.items():
        for point in points:
            rows = measured.rows_at(frame, point, layout or None)
            value = measured.spread_at(frame, point, layout or None, column)
            failed = rows["decode_tokens_per_s"].isna() & (rows["note"] == "")
            if value is not None or failed.any():
                values[point.generated_tokens] = scaled(value, scale)
    return series


def check(drawn: Iterable[dict[str, Values]], frame: pd.DataFrame, column: str) -> None:
    """Whether there is anything to be drawn.

    Raises:
        UserError: there is not.
    """
    if not any(value for series in drawn for values in series.values() for value in values.values()):
        raise UserError(f"{frame.attrs.get('path', 'data')}: no value of {column}; every point ran out of memory")


def scaled(spread: Spread | None, scale: float) -> Spread | None:
    """The spread in another unit."""
    if spread is None:
        return None
    return replace(spread, median=spread.median * scale, low=spread.low * scale, high=spread.high * scale)


def tokens_of(series: dict[str, Values]) -> set[int]:
    """All numbers of tokens."""
    return {tokens for values in series.values() for tokens in values}


def has_failures(series: dict[str, Values]) -> bool:
    """Whether some model ran out of memory somewhere."""
    return any(value is None for values in series.values() for value in values.values())


def draw_all(axes: Axes, series: dict[str, Values], *, at_top: bool = False) -> None:
    """A line for each model, and a cross at the foot of the panel, or ``at_top``, where it ran out of memory, each
    on a level of its own."""
    level, step = (0.95, -0.07) if at_top else (0.05, 0.07)
    looks = style.looks(series)
    for layout, values in series.items():
        look, name = looks[layout], style.model_name(layout)
        drawn = {tokens: value for tokens, value in values.items() if value is not None}
        for tokens, value in drawn.items():
            draw_point(axes.vlines, tokens, value, look)
        axes.plot(list(drawn), [value.median for value in drawn.values()], **look.marks, label=name, zorder=3)
        if failed := [tokens for tokens, value in values.items() if value is None]:
            foot = {"color": look.color, **CROSS, "transform": axes.get_xaxis_transform()}
            axes.plot(failed, [level] * len(failed), **foot, label=f"{name}, {OUT_OF_MEMORY}")
            level += step


def draw_point(lines: Callable, at: float, value: Spread, look: style.Look) -> None:
    """A bar from the smallest to the largest repeat."""
    lines(at, value.low, value.high, color=look.color, linewidth=1.1, alpha=0.75)


def draw_published(axes: Axes, points: dict[int, float], layout: str) -> None:
    """What the paper shows of a model, in hollow markers."""
    if points:
        name = f"{style.model_name(layout)}, {published.MARK}"
        axes.plot(list(points), list(points.values()), **style.LAYOUTS[layout].hollow, label=name, zorder=2.5)


def handles(layouts: Iterable[str], *, failed: bool) -> list[Line2D]:
    """The legend's entries: the models, what is published, and points that ran out of memory if there are any."""
    looks = style.looks(layouts)
    found = [Line2D([], [], **look.marks, label=style.model_name(layout)) for layout, look in looks.items()]
    found.append(Line2D([], [], **style.Look(style.MUTED, "o").hollow, label=published.MARK))
    if failed:
        found.append(Line2D([], [], color=style.MUTED, **CROSS, label=OUT_OF_MEMORY))
    return found

"""Speed and memory against the number of generated tokens, after Figure 1 (b) and (c) of the paper.

Both are drawn in units of our own and relative to the teacher. The paper's values, in hollow markers, stand
among ours only where both are of the same model. Else they have a panel of their own, relative to the paper's
teacher, with its own axes: the two panels compare in shape and direction, not point by point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from matvlm.errors import UserError
from matvlm.report import measured, published
from matvlm.report.figures import style
from matvlm.report.measured import OUT_OF_MEMORY, Point, Spread
from matvlm.report.settings import Report

RUNTIMES = {"same_runtime": "all models in one runtime", "paper": "each model in the paper's runtime"}
Values = dict[int, Spread | None]
"""By number of tokens; None where memory did not suffice."""
Paper = dict[int, tuple[float | None, ...]]


@dataclass(frozen=True)
class Subject:
    """Points that compare, of one protocol, batch and prompt length, and the layouts, the teacher's first;
    ``device`` is empty where the file does not name it."""

    points: list[Point]
    layouts: list[str]
    device: str

    @property
    def words(self) -> str:
        """What was measured, for the foot of a figure."""
        one = self.points[0]
        runtime = RUNTIMES.get(one.protocol, one.protocol)
        parts = [self.device, f"batch {one.batch}", f"prompt of {one.prompt_tokens:,} tokens", runtime]
        return f"{', '.join(filter(None, parts))}; medians, bars from the smallest to the largest repeat"


def draw_speed(settings: Report, frame: pd.DataFrame) -> Figure:
    """Decoding rate, the rate relative to the teacher, and the time of the prompt pass.

    Raises:
        UserError: every point ran out of memory.
    """
    subject = subject_of(frame)
    series = collect(frame, subject, "decode_tokens_per_s")
    together = settings.at_paper_scale
    figure = Figure(figsize=(style.PAGE, 2.75 if together else 4.6), layout="constrained")
    if together:
        absolute, relative, prompt = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 0.9])
        theirs = relative
    else:
        (absolute, prompt), (relative, theirs) = figure.subplots(2, 2)
    _absolute_panel(absolute, series, published.TOKENS_PER_S if together else {})
    absolute.set(title="Decoding", ylabel="tokens per second")
    _relative_panels(relative, theirs, series, published.TOKENS_PER_S, "rate / teacher's rate")
    relative.set_title("Relative to the teacher" if together else "Decoding, relative to the teacher")
    _prompt_panel(prompt, prompt_times(frame, subject))
    _finish(figure, series, subject)
    return figure


def draw_memory(settings: Report, frame: pd.DataFrame) -> Figure:
    """Peak memory, and the same relative to the teacher.

    Raises:
        UserError: every point ran out of memory.
    """
    subject = subject_of(frame)
    size, name = style.unit(frame["peak_memory_bytes"].max(), {1e6: "MB", 1e9: "GB"})
    if settings.at_paper_scale:
        size, name = 1e9, "GB"  # the paper's unit
    series = collect(frame, subject, "peak_memory_bytes", 1 / size)
    together = settings.at_paper_scale
    figure = Figure(figsize=(style.PAGE, 2.85), layout="constrained")
    absolute, relative, *rest = figure.subplots(1, 2 if together else 3)
    theirs = rest[0] if rest else relative
    _absolute_panel(absolute, series, published.MEMORY_GB if together else {})
    absolute.set(title="Peak memory", ylabel=f"peak allocated memory ({name})")
    _relative_panels(relative, theirs, series, published.MEMORY_GB, "memory / teacher's memory")
    relative.set_title("Relative to the teacher")
    limits = [*relative.get_ylim(), *theirs.get_ylim()]
    for axes in (relative, theirs):
        axes.set_ylim(min(limits), max(limits))
    _finish(figure, series, subject)
    return figure


def subject_of(frame: pd.DataFrame) -> Subject:
    """What of a `profile.csv` is drawn: the first protocol, the smallest batch and the shortest prompt."""
    points = measured.points(frame)
    first = points[0]
    points = [p for p in points if (p.protocol, p.batch) == (first.protocol, first.batch)]
    shortest = min(point.prompt_tokens for point in points)
    device = " and ".join(sorted(set(frame["device"]))) if "device" in frame else ""
    return Subject([p for p in points if p.prompt_tokens == shortest], ["", *measured.layouts(frame)], device)


def collect(frame: pd.DataFrame, subject: Subject, column: str, scale: float = 1) -> dict[str, Values]:
    """Values of a column by layout and generated tokens.

    Raises:
        UserError: every point ran out of memory.
    """
    series: dict[str, Values] = {}
    for layout in subject.layouts:
        rows = {p.generated_tokens: measured.rows_at(frame, p, layout or None) for p in subject.points}
        series[layout] = {
            tokens: _scaled(measured.spread(found, column), scale) for tokens, found in rows.items() if len(found)
        }
    return _checked(series, frame, column)


def prompt_times(frame: pd.DataFrame, subject: Subject) -> dict[str, Values]:
    """Seconds of the prompt pass by layout and prompt tokens, over all repeats at whatever length they went on
    to generate."""
    one = subject.points[0]
    frame = frame[(frame["protocol"] == one.protocol) & (frame["batch"] == one.batch)]
    series: dict[str, Values] = {}
    for layout in subject.layouts:
        rows = frame[frame["layout"] == layout]
        series[layout] = {
            int(tokens): measured.spread(found.dropna(subset=["prefill_s"]), "prefill_s")
            for tokens, found in rows.groupby("prompt_tokens")
        }
    return _checked(series, frame, "prefill_s")


def relative_to_teacher(series: dict[str, Values]) -> dict[str, Values]:
    """Each hybrid divided by the teacher, between what the extremes of both models' repeats allow."""
    teacher = series[""]
    ratios: dict[str, Values] = {}
    for layout, values in series.items():
        if layout:
            found = {tokens: measured.ratio(value, teacher.get(tokens)) for tokens, value in values.items()}
            ratios[layout] = {tokens: value for tokens, value in found.items() if value is not None}
    return ratios


def _absolute_panel(axes: Axes, series: dict[str, Values], paper: Paper) -> None:
    _draw_all(axes, series)
    for position, layout in enumerate(published.LAYOUTS):
        _draw_published(axes, {t: row[position] for t, row in paper.items() if row[position] is not None}, layout)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.04)
    axes.yaxis.set_major_formatter(style.NUMBER)
    style.token_axis(axes, {*_tokens(series), *paper}, "generated tokens")


def _relative_panels(ours: Axes, theirs: Axes, series: dict[str, Values], paper: Paper, label: str) -> None:
    """Our ratios and the paper's, on the same axes where ``ours`` is ``theirs``."""
    ratios = relative_to_teacher(series)
    _draw_all(ours, ratios)
    known = {tokens: row for tokens, row in paper.items() if None not in row}
    for position, layout in enumerate(published.LAYOUTS):
        if layout:
            _draw_published(theirs, {tokens: row[position] / row[0] for tokens, row in known.items()}, layout)
    if ours is not theirs:
        theirs.set_title("Published, 3.1B model")
    tokens = {ours: _tokens(series), theirs: set(known) | (_tokens(series) if ours is theirs else set())}
    for axes in dict.fromkeys((ours, theirs)):
        axes.axhline(1, color=style.TEACHER.color, linewidth=1, linestyle=style.DASHED, zorder=1.5)
        axes.set_ylabel(label)
        style.token_axis(axes, tokens[axes], "generated tokens")


def _prompt_panel(axes: Axes, series: dict[str, Values]) -> None:
    """A line against prompt lengths, or a row for each model where there is one length."""
    highest = max(value.high for values in series.values() for value in values.values() if value)
    size, name = style.unit(highest, {1e-3: "ms", 1.0: "s"})
    series = {layout: {t: _scaled(v, 1 / size) for t, v in values.items()} for layout, values in series.items()}
    lengths = sorted(_tokens(series))
    axes.set_title("Prompt pass")
    if len(lengths) > 1:
        _draw_all(axes, series)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"time ({name})")
        style.token_axis(axes, lengths, "prompt tokens", most=4)
        return
    looks = style.looks(series)
    for row, (layout, values) in enumerate(series.items()):
        for value in values.values():
            if value is not None:
                _draw_point(axes.hlines, row, value, looks[layout])
                axes.plot(value.median, row, **looks[layout].marks, label=style.model_name(layout))
    axes.set_yticks(range(len(series)), [style.model_name(layout) for layout in series])
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0, right=axes.get_xlim()[1] * 1.03)
    axes.set_xlabel(f"time for {lengths[0]:,} tokens ({name})")


def _draw_all(axes: Axes, series: dict[str, Values]) -> None:
    """A line for each model; a cross at the foot of the panel where it ran out of memory, models one above the
    other."""
    level, looks = 0.05, style.looks(series)
    for layout, values in series.items():
        look, name = looks[layout], style.model_name(layout)
        drawn = {tokens: value for tokens, value in values.items() if value is not None}
        for tokens, value in drawn.items():
            _draw_point(axes.vlines, tokens, value, look)
        axes.plot(list(drawn), [value.median for value in drawn.values()], **look.marks, label=name, zorder=3)
        if failed := [tokens for tokens, value in values.items() if value is None]:
            mark = {"color": look.color, "marker": "x", "markeredgewidth": 1.6, "linestyle": "none"}
            foot = axes.get_xaxis_transform()
            axes.plot(failed, [level] * len(failed), **mark, transform=foot, label=f"{name}, {OUT_OF_MEMORY}")
            level += 0.07


def _draw_point(lines: Callable, at: float, value: Spread, look: style.Look) -> None:
    lines(at, value.low, value.high, color=look.color, linewidth=1.1, alpha=0.75)


def _draw_published(axes: Axes, points: dict[int, float], layout: str) -> None:
    if points:
        name = f"{style.model_name(layout)}, {published.MARK}"
        axes.plot(list(points), list(points.values()), **style.LAYOUTS[layout].hollow, label=name, zorder=2.5)


def _scaled(spread: Spread | None, scale: float) -> Spread | None:
    if spread is None:
        return None
    return replace(spread, median=spread.median * scale, low=spread.low * scale, high=spread.high * scale)


def _checked(series: dict[str, Values], frame: pd.DataFrame, column: str) -> dict[str, Values]:
    if not any(value for values in series.values() for value in values.values()):
        raise UserError(f"{frame.attrs.get('path', 'data')}: no value of {column}; every point ran out of memory")
    return series


def _tokens(series: dict[str, Values]) -> set[int]:
    return {tokens for values in series.values() for tokens in values}


def _finish(figure: Figure, series: dict[str, Values], subject: Subject) -> None:
    """One legend for all panels, above them, and what was measured, below."""
    looks = style.looks(series)
    handles = [Line2D([], [], **look.marks, label=style.model_name(layout)) for layout, look in looks.items()]
    handles.append(Line2D([], [], **style.Look(style.MUTED, "o").hollow, label=published.MARK))
    if any(value is None for values in series.values() for value in values.values()):
        cross = {"marker": "x", "markeredgewidth": 1.6, "linestyle": "none"}
        handles.append(Line2D([], [], color=style.MUTED, **cross, label=OUT_OF_MEMORY))
    style.legend(figure, handles)
    style.note(figure, subject.words)

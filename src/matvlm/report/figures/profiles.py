"""Speed and memory against the number of generated tokens, after Figure 1 (b) and (c) of the paper.

Both are drawn in units of our own and relative to the teacher. The paper's values, in hollow markers, have a panel
of their own, relative to the paper's teacher, with its own axes: the two panels compare in shape and direction,
not point by point. For a model of the paper's own size see `matvlm.report.figures.paper_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from matvlm.report import measured, published
from matvlm.report.figures import lines, paper_scale, style
from matvlm.report.figures.lines import Values
from matvlm.report.measured import Point
from matvlm.report.settings import Report

RUNTIMES = {"same_runtime": "all models in one runtime", "paper": "each model in the paper's runtime"}
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
    if settings.at_paper_scale:
        return paper_scale.draw(frame, paper_scale.SPEED)
    subject = subject_of(frame)
    series = collect(frame, subject, "decode_tokens_per_s")
    figure = Figure(figsize=(style.PAGE, 4.6), layout="constrained")
    (absolute, prompt), (relative, theirs) = figure.subplots(2, 2)
    _absolute_panel(absolute, series)
    absolute.set(title="Decoding", ylabel="tokens per second")
    _relative_panels(relative, theirs, series, published.TOKENS_PER_S, "rate / teacher's rate")
    relative.set_title("Decoding, relative to the teacher")
    _prompt_panel(prompt, prompt_times(frame, subject))
    _finish(figure, series, subject)
    return figure


def draw_memory(settings: Report, frame: pd.DataFrame) -> Figure:
    """Peak memory, and the same relative to the teacher.

    Raises:
        UserError: every point ran out of memory.
    """
    if settings.at_paper_scale:
        return paper_scale.draw(frame, paper_scale.MEMORY)
    subject = subject_of(frame)
    size, name = style.unit(frame["peak_memory_bytes"].max(), {1e6: "MB", 1e9: "GB"})
    series = collect(frame, subject, "peak_memory_bytes", 1 / size)
    figure = Figure(figsize=(style.PAGE, 2.85), layout="constrained")
    absolute, relative, theirs = figure.subplots(1, 3)
    _absolute_panel(absolute, series)
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
    first = measured.points(frame)[0]
    points = [p for p in measured.points_of(frame, first.protocol) if p.batch == first.batch]
    shortest = min(point.prompt_tokens for point in points)
    device = " and ".join(sorted(set(frame["device"]))) if "device" in frame else ""
    return Subject([p for p in points if p.prompt_tokens == shortest], ["", *measured.layouts(frame)], device)


def collect(frame: pd.DataFrame, subject: Subject, column: str, scale: float = 1) -> dict[str, Values]:
    """Values of a column by layout and generated tokens.

    Raises:
        UserError: every point ran out of memory.
    """
    series = lines.collect(frame, subject.points, subject.layouts, column, scale)
    lines.check([series], frame, column)
    return series


def prompt_times(frame: pd.DataFrame, subject: Subject) -> dict[str, Values]:
    """Seconds of the prompt pass by layout and prompt tokens, over all repeats at whatever length they went on
    to generate."""
    one = subject.points[0]
    frame = frame[(frame["protocol"] == one.protocol) & (frame["batch"] == one.batch)]
    frame = frame[frame["runtime"] == one.runtime] if one.runtime else frame
    series: dict[str, Values] = {}
    for layout in subject.layouts:
        rows = frame[frame["layout"] == layout]
        series[layout] = {
            int(tokens): measured.spread(found.dropna(subset=["prefill_s"]), "prefill_s")
            for tokens, found in rows.groupby("prompt_tokens")
        }
    lines.check([series], frame, "prefill_s")
    return series


def relative_to_teacher(series: dict[str, Values]) -> dict[str, Values]:
    """Each hybrid divided by the teacher, between what the extremes of both models' repeats allow."""
    teacher = series[""]
    ratios: dict[str, Values] = {}
    for layout, values in series.items():
        if layout:
            found = {tokens: measured.ratio(value, teacher.get(tokens)) for tokens, value in values.items()}
            ratios[layout] = {tokens: value for tokens, value in found.items() if value is not None}
    return ratios


def _absolute_panel(axes: Axes, series: dict[str, Values]) -> None:
    lines.draw_all(axes, series)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.04)
    axes.yaxis.set_major_formatter(style.NUMBER)
    style.token_axis(axes, lines.tokens_of(series), "generated tokens")


def _relative_panels(ours: Axes, theirs: Axes, series: dict[str, Values], paper: Paper, label: str) -> None:
    """Our ratios, and the paper's in a panel of their own."""
    lines.draw_all(ours, relative_to_teacher(series))
    known = {tokens: row for tokens, row in paper.items() if None not in row}
    for position, layout in enumerate(published.LAYOUTS):
        if layout:
            lines.draw_published(theirs, {tokens: row[position] / row[0] for tokens, row in known.items()}, layout)
    theirs.set_title("Published, 3.1B model")
    for axes, tokens in ((ours, lines.tokens_of(series)), (theirs, set(known))):
        axes.axhline(1, color=style.TEACHER.color, linewidth=1, linestyle=style.DASHED, zorder=1.5)
        axes.set_ylabel(label)
        style.token_axis(axes, tokens, "generated tokens")


def _prompt_panel(axes: Axes, series: dict[str, Values]) -> None:
    """A line against prompt lengths, or a row for each model where there is one length."""
    highest = max(value.high for values in series.values() for value in values.values() if value)
    size, name = style.unit(highest, {1e-3: "ms", 1.0: "s"})
    series = {
        layout: {t: lines.scaled(v, 1 / size) for t, v in values.items()} for layout, values in series.items()
    }
    lengths = sorted(lines.tokens_of(series))
    axes.set_title("Prompt pass")
    if len(lengths) > 1:
        lines.draw_all(axes, series)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"time ({name})")
        style.token_axis(axes, lengths, "prompt tokens", most=4)
        return
    looks = style.looks(series)
    for row, (layout, values) in enumerate(series.items()):
        for value in values.values():
            if value is not None:
                lines.draw_point(axes.hlines, row, value, looks[layout])
                axes.plot(value.median, row, **looks[layout].marks, label=style.model_name(layout))
    axes.set_yticks(range(len(series)), [style.model_name(layout) for layout in series])
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0, right=axes.get_xlim()[1] * 1.03)
    axes.set_xlabel(f"time for {lengths[0]:,} tokens ({name})")


def _finish(figure: Figure, series: dict[str, Values], subject: Subject) -> None:
    """One legend for all panels, above them, and what was measured, below."""
    style.legend(figure, lines.handles(series, failed=lines.has_failures(series)))
    style.note(figure, subject.words)

"""Figure 1 (b) and (c) of the paper for a model of its own size: rate and peak memory over generated tokens.

A column of panels for each protocol and a row for each batch size; panels of a row have one vertical axis, so that
what runtimes make of a model can be read across.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from matvlm.profiling.points import PAPER, SAME
from matvlm.report import measured, order, published
from matvlm.report.figures import lines, style
from matvlm.report.measured import Point

TITLES = {SAME: "One runtime", PAPER: "As the paper measured"}
BOUND = {"linestyle": style.DASHED, "linewidth": 0.8, "alpha": 0.8}
"""How what is computed is drawn: a thin line."""
TICK = BOUND | {"marker": "_", "markersize": 11, "markeredgewidth": 0.8}
"""And where it may lie below what is measured: with ticks that are wider than markers."""
HEADROOM = 1.15
"""Of axes that start at zero, for the crosses at their top."""


@dataclass(frozen=True)
class Quantity:
    """What a figure shows: a measured column, the computed one beside it, and the paper's values."""

    column: str
    bound: str
    bound_name: str
    paper: dict[int, tuple[float | None, ...]]
    scale: float
    label: str
    logarithmic: bool
    computed: dict[str, object]
    """How the computed one is drawn."""


SPEED = Quantity(
    *("decode_tokens_per_s", "bandwidth_limit_tokens_per_s", "limit of the memory's bandwidth"),
    *(published.TOKENS_PER_S, 1.0, "tokens per second", True, BOUND),
)
MEMORY = Quantity(
    *("peak_memory_bytes", "predicted_memory_bytes", "predicted"),
    *(published.MEMORY_GB, 1e-9, "peak memory (GB)", False, TICK),
)


def draw(frame: pd.DataFrame, quantity: Quantity) -> Figure:
    """The figure of one quantity.

    Args:
        frame: `profile.csv`.

    Raises:
        UserError: every point ran out of memory.
    """
    panels = panels_of(frame)
    protocols = sorted({protocol for protocol, _ in panels}, key=lambda name: order.key("protocol", name))
    batches = sorted({batch for _, batch in panels})
    layouts = ["", *measured.layouts(frame)]
    height = 0.75 + 2.25 * len(batches)
    figure = Figure(figsize=(style.PAGE, height), layout="constrained")
    grid = figure.subplots(len(batches), len(protocols), sharey="row", sharex=True, squeeze=False)
    drawn = []
    for row, batch in zip(grid, batches, strict=True):
        for axes, protocol in zip(row, protocols, strict=True):
            points = panels.get((protocol, batch), [])
            axes.set_visible(bool(points))
            series = lines.collect(frame, points, layouts, quantity.column, quantity.scale)
            bounds = lines.collect(frame, points, layouts, quantity.bound, quantity.scale)
            paper = quantity.paper if batch == 1 and protocol == protocols[-1] else {}
            _panel(axes, quantity, series, bounds, paper)
            axes.set_title(f"{TITLES.get(protocol, protocol)}, batch {batch}")
            drawn.append(series)
        _vertical_axis(row[0], quantity)
    lines.check(drawn, frame, quantity.column)
    tokens = {point.generated_tokens for points in panels.values() for point in points}
    for column in grid.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        for axes in column:
            style.token_axis(axes, tokens, "generated tokens" if axes is lowest else "")
        lowest.tick_params(labelbottom=True)
    entries = lines.handles(layouts, failed=any(map(lines.has_failures, drawn)))
    entries.append(Line2D([], [], color=style.MUTED, **quantity.computed, label=quantity.bound_name))
    style.legend(figure, entries, columns=-(-len(entries) // 2))
    style.note(figure, "\n".join(_words(frame, panels, quantity.column)))
    return figure


def panels_of(frame: pd.DataFrame) -> dict[tuple[str, int], list[Point]]:
    """Points by protocol and batch size, each protocol in one runtime, after the shortest prompt."""
    panels: dict[tuple[str, int], list[Point]] = {}
    shortest = frame["prompt_tokens"].min()
    for protocol in frame["protocol"].unique():
        for point in measured.points_of(frame, protocol):
            if point.prompt_tokens == shortest:
                panels.setdefault((protocol, point.batch), []).append(point)
    return panels


def _panel(
    axes: Axes, quantity: Quantity, series: dict[str, lines.Values], bounds: dict[str, lines.Values], paper: dict
) -> None:
    looks = style.looks(series)
    lines.draw_all(axes, series, at_top=not quantity.logarithmic)
    for layout, values in bounds.items():
        known = {tokens: value.median for tokens, value in values.items() if value is not None}
        if known:
            name = f"{style.model_name(layout)}, computed"
            drawn = {"color": looks[layout].color, **quantity.computed, "label": name, "zorder": 2}
            axes.plot(list(known), list(known.values()), **drawn)
    for position, layout in enumerate(published.LAYOUTS):
        shown = {tokens: row[position] for tokens, row in paper.items() if row[position] is not None}
        lines.draw_published(axes, shown, layout)


def _vertical_axis(axes: Axes, quantity: Quantity) -> None:
    """That of a row of panels, once all is drawn."""
    axes.set_ylabel(quantity.label)
    if quantity.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * HEADROOM)
    axes.yaxis.set_major_formatter(style.NUMBER)


def _words(frame: pd.DataFrame, panels: dict[tuple[str, int], list[Point]], column: str) -> Iterator[str]:
    """What was measured, for the foot of the figure."""
    points = [point for found in panels.values() for point in found]
    device = " and ".join(sorted(set(frame["device"]))) if "device" in frame else ""
    prompt = f"prompt of {points[0].prompt_tokens:,} tokens"
    yield f"{', '.join(filter(None, [device, prompt]))}; medians, bars from the smallest to the largest repeat"
    yield "; ".join(_runtimes(frame, points, column))
    beyond = frame.loc[frame["beyond_positions"], "generated_tokens"]
    if len(beyond):
        first = style.token_count(beyond.min())
        yield f"from {first} generated tokens on, contexts are longer than what the model is made for"


def _runtimes(frame: pd.DataFrame, points: list[Point], column: str) -> Iterator[str]:
    """In what the models of each protocol ran: the best of the teacher's own, and the hybrids'."""

    def used(protocol: str, layouts: list[str | None]) -> str:
        pairs = [(point, layout) for point in points if point.protocol == protocol for layout in layouts]
        names = {measured.best_runtime(frame, point, layout, column) for point, layout in pairs}
        return " or ".join(sorted(names - {None}))

    hybrids = measured.layouts(frame)
    if one := used(SAME, [None, *hybrids]):
        yield f"{TITLES[SAME].lower()}: {one}"
    if own := used(PAPER, [None]):
        others = used(PAPER, hybrids)
        yield f"{TITLES[PAPER].lower()}: teacher in whichever serves it best ({own}), hybrids in {others}"

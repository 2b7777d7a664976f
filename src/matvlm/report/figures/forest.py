"""What each preset measured for every claim, with its interval, on one axis for each unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from matvlm.errors import UserError
from matvlm.report.claim_rows import Claim
from matvlm.report.comparison import Comparison, Line
from matvlm.report.evidence import NOT_SHOWN
from matvlm.report.figures import style
from matvlm.report.verdicts import MARGIN


@dataclass(frozen=True)
class Panel:
    """Claims of one unit. ``bound``: what a value has to be above, unless the paper names a number."""

    title: str
    label: str
    units: tuple[str, ...]
    bound: float
    logarithmic: bool = False


PANELS = (
    (
        Panel("Scores", "difference of mean scores (points)", ("points",), 0),
        Panel(
            "Quality kept",
            "mean score, share of the other's (%)",
            ("% of the teacher's score", "% of the score of 12.5 %"),
            100 * (1 - MARGIN),
        ),
    ),
    (
        Panel("Speed", "times as fast", ("x",), 1, logarithmic=True),
        Panel("Memory", "memory saved (%)", ("%",), 0),
    ),
)
"""Panels from top to bottom in each column of the figure."""
NAMES = {
    "speed": "decoding,\nown runtimes",
    "speed_architecture": "decoding,\none runtime",
    "memory": "27.5 % claimed,\nown runtimes",
    "memory_architecture": "27.5 % claimed,\none runtime",
    "memory_25": "20 % claimed,\nown runtimes",
    "memory_25_architecture": "20 % claimed,\none runtime",
    "quality": "student of\nteacher",
    "layout": "even − front,\nmiddle, end",
    "losses": "all losses −\nany fewer",
    "distillation": "all losses −\nanswers alone",
    "divergence": "kl − other\ndivergences",
    "init": "convergence,\nby attention",
    "ratio": "25 % hybrid of\n12.5 % hybrid",
}
PRESETS = {
    "tiny": style.Look(style.BLUE, "o"),
    "tiny-long": style.Look(style.SKY, "v"),
    "smol": style.Look(style.VERMILION, "^"),
    "paper-profile": style.Look(style.GREEN, "D"),
}
OTHER = style.Look(style.PURPLE, "s")
"""A preset that is not one of those compared as a rule."""
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw_forest(comparison: Comparison) -> Figure:
    """Dots with intervals, hollow where nothing is shown; the bound is a dashed line, the paper's number a tick.

    Raises:
        UserError: no preset measured anything.
    """
    filled = [[(panel, lines) for panel in column if (lines := _lines(comparison, panel))] for column in PANELS]
    filled = [column for column in filled if column]
    if not filled:
        raise UserError("no claim of any preset has a number to be drawn")
    looks = {name: PRESETS.get(name, OTHER) for name in comparison.presets}
    tallest = max(sum(len(lines) for _, lines in column) for column in filled)
    panels = max(map(len, filled))
    height = 0.42 * tallest + 0.62 * panels + 0.55
    figure = Figure(figsize=(style.PAGE, height), layout="constrained")
    for part, column in zip(figure.add_gridspec(1, len(filled)), filled, strict=True):
        heights = [len(lines) + 0.3 for _, lines in column]
        rows = part.subgridspec(len(column), 1, height_ratios=heights).subplots(squeeze=False)
        for axes, (panel, lines) in zip(rows[:, 0], column, strict=True):
            _draw(axes, panel, lines, looks)
    drawn = {name for column in filled for _, lines in column for line in lines for name in line.ran}
    style.legend(figure, _handles({name: look for name, look in looks.items() if name in drawn}))
    return figure


def _lines(comparison: Comparison, panel: Panel) -> list[Line]:
    return [line for line in comparison.lines if any(_is_in(claim, panel) for claim in line.ran.values())]


def _is_in(claim: Claim, panel: Panel) -> bool:
    return claim.unit in panel.units and not math.isnan(claim.number("measured"))


def _draw(axes: Axes, panel: Panel, lines: list[Line], looks: dict[str, style.Look]) -> None:
    axes.set_title(panel.title)
    axes.axvline(panel.bound, color=style.INK, linewidth=1, linestyle=style.DASHED, label="bound", zorder=1.5)
    for row, line in enumerate(lines):
        shown = {name: claim for name, claim in line.ran.items() if _is_in(claim, panel)}
        for place, (name, claim) in enumerate(shown.items()):
            at, look = row + 0.24 * (place - (len(shown) - 1) / 2), looks[name]
            axes.hlines(at, claim.number("low"), claim.number("high"), color=look.color, linewidth=1.4, zorder=2)
            face = "white" if claim.verdict == NOT_SHOWN else look.color
            marks = look.marks | {"linestyle": "none", "markerfacecolor": face, "label": f"{line.id} {name}"}
            axes.plot(claim.number("measured"), at, **marks, zorder=3)
        theirs = next(claim.number("published") for claim in shown.values())
        axes.vlines(theirs, row - 0.42, row + 0.42, color=style.INK, linewidth=2, zorder=2)
        if row:
            axes.axhline(row - 0.5, color=style.GRID, linewidth=0.7)
    axes.set_yticks(range(len(lines)), [NAMES.get(line.id, line.id) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(panel.label)
    if panel.logarithmic:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_xlim(low, high)
        axes.xaxis.set_minor_locator(NullLocator())


def _handles(looks: dict[str, style.Look]) -> list[Line2D]:
    handles = [Line2D([], [], **look.marks, linewidth=1.4, label=name) for name, look in looks.items()]
    hollow = {"color": style.MUTED, "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    return [
        *handles,
        Line2D([], [], **hollow, label="not shown"),
        Line2D([], [], color=style.INK, linewidth=1, linestyle=style.DASHED, label="bound of the test"),
        Line2D(
            [],
            [],
            color=style.INK,
            marker="|",
            markersize=9,
            markeredgewidth=2,
            linestyle="none",
            label="the paper's number",
        ),
    ]

"""One panel for each axis of the ablation: the mean accuracy over the tasks of every cell."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from matvlm.experiments import AXES, Cell
from matvlm.report.figures import style
from matvlm.report.read import rows_of, seeds_of
from matvlm.report.settings import Report
from matvlm.report.statistics import MEAN, Estimate, score

TITLES = {
    "losses": "Losses",
    "layouts": "Placement",
    "ratios": "Ratio of replaced layers",
    "inits": "Initialisation",
    "divergences": "Divergence of the probability loss",
}
COLUMNS = (("losses", "divergences"), ("layouts", "ratios", "inits"))
"""Panels from top to bottom in each column of the figure."""
SEED_OFFSET = 0.27


def draw_ablations(settings: Report, frame: pd.DataFrame) -> Figure:
    """Dots with 95 % intervals, each seed's value as a small dot below, the teacher as a dashed line.

    Raises:
        UserError: a cell or the teacher has no mean accuracy.
    """
    cells = {axis: settings.cells(axis) for axis in AXES}
    once = dict.fromkeys(cell for of_axis in cells.values() for cell in of_axis)
    rows = {cell: seeds_of(frame, cell, settings.ablation.seeds) for cell in once}
    scores = {cell: score(of_cell) for cell, of_cell in rows.items()}
    seeds = {cell: seed_values(of_cell) for cell, of_cell in rows.items()}
    teacher = 100 * score(rows_of(frame, None)).mean

    tallest = max(sum(len(cells[axis]) for axis in column) for column in COLUMNS)
    panels = max(len(column) for column in COLUMNS)
    figure = Figure(figsize=(style.PAGE, 0.22 * tallest + 0.42 * panels + 0.75), layout="constrained")
    limits = _limits([*scores.values()], [*seeds.values()], teacher)
    grid = figure.add_gridspec(1, len(COLUMNS))
    for part, column in zip(grid, COLUMNS, strict=True):
        heights = [len(cells[axis]) + 0.6 for axis in column]
        shared = part.subgridspec(len(column), 1, height_ratios=heights).subplots(sharex=True)
        for axes, axis in zip(shared, column, strict=True):
            axes.set_title(TITLES[axis])
            axes.axvline(teacher, color=style.TEACHER.color, linewidth=1, linestyle=style.DASHED, label="teacher")
            _panel(axes, settings, axis, [(cell, scores[cell], seeds[cell]) for cell in cells[axis]])
            axes.set_xlim(*limits)
        tasks = f"{len(settings.tasks)} task{'s' * (len(settings.tasks) > 1)}"
        axes.set_xlabel(f"mean accuracy over {tasks} (%)")
    style.legend(figure, _handles([*scores.values()], teacher))
    return figure


def seed_values(rows: pd.DataFrame) -> list[float]:
    """Each seed's mean accuracy in per cent."""
    return list(100 * rows[(rows["task"] == MEAN) & (rows["metric"] == "accuracy")].sort_values("seed")["value"])


def interval_words(estimates: list[Estimate]) -> str:
    """What the intervals are over, in words."""
    over = {estimate.over for estimate in estimates}
    parts = []
    if "seeds" in over:
        counts = sorted({estimate.n for estimate in estimates if estimate.over == "seeds"})
        parts.append(f"{' or '.join(map(str, counts))} seeds")
    if "questions" in over:
        parts.append("test questions, one seed")
    return f"95 % interval over {'; or over '.join(parts)}"


def _panel(axes: Axes, settings: Report, axis: str, cells: list[tuple[Cell, Estimate, list[float]]]) -> None:
    for row, (cell, estimate, seeds) in enumerate(cells):
        base = cell == settings.base_cell
        color = style.BLUE if base else style.MUTED
        if base:
            axes.axhspan(row - 0.5, row + 0.5, color=style.BLUE, alpha=0.08, linewidth=0, zorder=0)
        axes.hlines(row, 100 * estimate.low, 100 * estimate.high, color=color, linewidth=1.4, zorder=2)
        axes.plot(
            100 * estimate.mean,
            row,
            color=color,
            marker="o",
            markersize=6 if base else 5,
            linestyle="none",
            label=cell.path,
            zorder=3,
        )
        if len(seeds) > 1:
            axes.plot(
                seeds,
                [row + SEED_OFFSET] * len(seeds),
                color=color,
                marker="o",
                markersize=2.2,
                linestyle="none",
                label=f"{cell.path} seeds",
            )
    axes.set_yticks(range(len(cells)), [_name(cell, axis, settings) for cell, _, _ in cells])
    for label, (cell, _, _) in zip(axes.get_yticklabels(), cells, strict=True):
        label.set_fontweight("bold" if cell == settings.base_cell else "normal")
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _name(cell: Cell, axis: str, settings: Report) -> str:
    value = getattr(cell, AXES[axis])
    if axis == "losses":
        return value.replace("+", " + ")
    if axis == "ratios":
        return f"{style.model_name(value).removeprefix('Hybrid ')} ({style.replaced(value, settings)})"
    return value


def _limits(scores: list[Estimate], seeds: list[list[float]], teacher: float) -> tuple[float, float]:
    """One range for all panels, so that they compare; never beyond what an accuracy can be."""
    ends = [100 * end for one in scores for end in (one.low, one.mean, one.high) if end == end]
    ends += [teacher, *(value for values in seeds for value in values)]
    margin = max(0.04 * (max(ends) - min(ends)), 1)
    return max(min(ends) - margin, -1), min(max(ends) + margin, 101)


def _handles(scores: list[Estimate], teacher: float) -> list[Line2D]:
    dot = {"marker": "o", "linewidth": 1.4}
    handles = [
        Line2D([], [], color=style.BLUE, label="base cell", **dot),
        Line2D([], [], color=style.MUTED, label=interval_words(scores), **dot),
        Line2D(
            [],
            [],
            color=style.TEACHER.color,
            linewidth=1,
            linestyle=style.DASHED,
            label=f"teacher ({teacher:.1f} %)",
        ),
    ]
    if any(one.n > 1 for one in scores):
        handles.insert(
            2, Line2D([], [], color=style.MUTED, marker="o", markersize=2.2, linestyle="none", label="one seed")
        )
    return handles

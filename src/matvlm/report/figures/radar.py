"""Scores by task as a radar, after Figure 1 (a) of the paper: the teacher and the ratios of replaced layers.

Each axis has a range of its own, so that differences show; as in the paper, the values of the inner and of the
outer ring are written on it. The centre is not zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from matvlm.errors import UserError
from matvlm.report.figures import style
from matvlm.report.read import rows_of, seeds_of
from matvlm.report.settings import Report

NAMES = {
    "easy_vqa_yesno": "easy-VQA\nyes/no",
    "easy_vqa_open": "easy-VQA\nopen",
    "sort_of_clevr_nonrelational": "Sort-of-CLEVR\nnon-relational",
    "sort_of_clevr_relational": "Sort-of-CLEVR\nrelational",
}
METRICS = {"accuracy": "", "f1": " F1"}
INNER = 0.3
"""Radius of the inner ring; that of the outer one is 1."""
SMALLEST_RANGE = 5
"""Percentage points that an axis spans at least, so that noise is not blown up."""


@dataclass(frozen=True)
class Spoke:
    """One axis: a metric of a task in per cent, from the inner to the outer ring."""

    task: str
    metric: str
    inner: float
    outer: float

    @property
    def name(self) -> str:
        """What the figure calls it; accuracy goes without saying."""
        return NAMES.get(self.task, self.task.replace("_", " ")) + METRICS[self.metric]

    def radius(self, value: float) -> float:
        """Where a value in per cent is drawn."""
        return INNER + (1 - INNER) * (value - self.inner) / (self.outer - self.inner)


def draw_radar(settings: Report, frame: pd.DataFrame) -> Figure:
    """Means over the seeds of the teacher and of the cells of the axis ``ratios``.

    Raises:
        UserError: a model lacks a score that the teacher has.
    """
    seeds = settings.ablation.seeds
    models = {"": rows_of(frame, None)}
    models |= {cell.layout: seeds_of(frame, cell, seeds) for cell in settings.cells("ratios")}
    asked = [
        (task, metric)
        for task in settings.tasks
        for metric in METRICS
        if metric == "accuracy" or not _scores(models[""], task, metric).empty
    ]
    values = {layout: [_mean(rows, *one, layout) for one in asked] for layout, rows in models.items()}
    spokes = [Spoke(*one, *nice_range([of[i] for of in values.values()])) for i, one in enumerate(asked)]

    figure = Figure(figsize=(style.COLUMN, 3.4))
    axes = figure.add_axes((0.19, 0.15, 0.62, 0.62 * style.COLUMN / 3.4), projection="polar")
    angles = [2 * math.pi * i / len(spokes) for i in range(len(spokes))]
    _frame(axes, spokes, angles)
    looks = style.looks(values)
    for layout, look in looks.items():
        radii = [spoke.radius(value) for spoke, value in zip(spokes, values[layout], strict=True)]
        line = look.marks | {"markersize": 4, "linewidth": 1.3, "linestyle": "-" if layout else style.DASHED}
        axes.plot([*angles, angles[0]], [*radii, radii[0]], **line, label=style.model_name(layout), zorder=3)
        axes.fill(angles, radii, color=look.color, alpha=0.05, linewidth=0)
    _words(figure, looks, len(seeds))
    return figure


def nice_range(values: list[float]) -> tuple[float, float]:
    """Round ends of an axis that holds all ``values`` in per cent, and spans `SMALLEST_RANGE` at least."""
    low, high = min(values), max(values)
    span = max(high - low, SMALLEST_RANGE)
    step = next(size for size in (1, 2, 5, 10, 20) if span / size <= 8)
    inner = max(math.floor((low - 0.05 * span) / step) * step, 0)
    outer = min(math.ceil((high + 0.02 * span) / step) * step, 100)
    if outer - inner < SMALLEST_RANGE:
        inner = max(outer - SMALLEST_RANGE, 0)
        outer = inner + SMALLEST_RANGE
    return float(inner), float(outer)


def _frame(axes: PolarAxes, spokes: list[Spoke], angles: list[float]) -> None:
    """Rings as polygons, one spoke for each axis, its name outside and the values of two rings on it."""
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1.03)
    axes.set_axis_off()
    around = [*angles, angles[0]]
    for radius in np.linspace(INNER, 1, 4):
        edge = style.MUTED if radius in (INNER, 1) else style.GRID
        axes.plot(around, [radius] * len(around), color=edge, linewidth=0.6, zorder=1)
    for spoke, angle in zip(spokes, angles, strict=True):
        axes.plot([angle, angle], [0, 1], color=style.GRID, linewidth=0.7, zorder=1)
        right, up = math.sin(angle), math.cos(angle)
        place = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
        offset = (8 * right, (7 if abs(right) < 0.1 else 12) * (1 if up > -0.1 else -1))
        axes.annotate(spoke.name, (angle, 1), xytext=offset, va="bottom" if up > -0.1 else "top", **place)
        place |= {"fontsize": 6.5, "color": style.MUTED, "va": "center", "zorder": 4}
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4}
        # Beside the spoke, clockwise of it; the inner ring's value towards the centre, where no line runs.
        for radius, value in ((INNER - 0.1, spoke.inner), (0.99, spoke.outer)):
            beside = (8 * up, -8 * right) if radius > INNER else (0, 0)
            axes.annotate(f"{value:g}", (angle, radius), xytext=beside, bbox=box, **place)


def _words(figure: Figure, looks: dict[str, style.Look], seeds: int) -> None:
    names = {layout: style.model_name(layout).removeprefix("Hybrid ") for layout in looks}
    handles = [
        Line2D([], [], **look.marks, linestyle="-" if layout else style.DASHED, label=names[layout])
        for layout, look in looks.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), columnspacing=1.2, handletextpad=0.5)
    over = f"means of {seeds} seeds" if seeds > 1 else "one seed"
    text = (
        f"Accuracy or F1 in %, {over}. Hybrids by ratio of replaced layers.\n"
        "Each axis has its own range: values at the two dark rings."
    )
    figure.text(0.5, 0.015, text, ha="center", va="bottom", fontsize=6.5, color=style.MUTED)


def _scores(rows: pd.DataFrame, task: str, metric: str) -> pd.Series:
    return rows[(rows["task"] == task) & (rows["metric"] == metric)]["value"]


def _mean(rows: pd.DataFrame, task: str, metric: str, layout: str) -> float:
    found = _scores(rows, task, metric)
    if found.empty:
        where = rows.attrs.get("path", "data")
        raise UserError(f"{where}: no {metric} of {layout or 'the teacher'} on {task}")
    return 100 * float(found.mean())

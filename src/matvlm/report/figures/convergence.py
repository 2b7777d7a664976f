"""Validation KL against training tokens for each initialisation, at the base layout."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from matvlm.errors import UserError
from matvlm.report import convergence
from matvlm.report.figures import style
from matvlm.report.read import seeds_of
from matvlm.report.settings import Report

WIDE = 8
"""Ratio of the ends of the vertical axis from which ticks at 1, 2 and 5 are enough."""
SCALES = {1.0: "", 1e3: "thousand", 1e6: "million", 1e9: "billion"}


def draw_convergence(settings: Report, frame: pd.DataFrame) -> Figure:
    """The mean over the seeds as a line with markers, each seed as a thin line where there are several, and the
    KL at which `matvlm.report.convergence` compares the initialisations.

    Raises:
        UserError: a cell or a seed has no validation KL.
    """
    seeds = settings.ablation.seeds
    curves = {cell.init: curve_of(seeds_of(frame, cell, seeds)) for cell in settings.cells("inits")}
    if empty := [init for init, curve in curves.items() if curve.empty]:
        raise UserError(f"{frame.attrs.get('path', 'data')}: no val_kl of {', '.join(empty)}")
    last = max(curve["tokens"].max() for curve in curves.values())
    size, name = style.unit(last, SCALES)
    compared = len(set(curves) & set(convergence.COMPARED)) > 1
    level = convergence.level(frame, settings) if compared else None

    figure = Figure(figsize=(style.COLUMN, 3.2), layout="constrained")
    axes = figure.subplots()
    if level is not None:
        axes.axhline(level, color=style.MUTED, linewidth=1, linestyle=style.DASHED, label="level")
    for init, curve in curves.items():
        _draw(axes, curve.assign(tokens=curve["tokens"] / size), style.INITS[init], init)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > WIDE else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(style.NUMBER)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(-0.025 * last / size, 1.025 * last / size)
    axes.set_xlabel(f"training tokens ({name})" if name else "training tokens")
    axes.set_ylabel("validation KL (nats per answer token)")
    axes.set_title(f"Initialisation, layout {settings.base.layout}")
    style.legend(figure, [Line2D([], [], **style.INITS[init].marks, label=init) for init in curves])
    lines = [f"bold: mean of {len(seeds)} seeds; thin: each seed" if len(seeds) > 1 else "one seed"]
    lines += [f"dashed: the KL of {level:.3g} at which convergence is compared"] if level is not None else []
    style.note(figure, "\n".join(lines))
    return figure


def curve_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns seed, step, tokens and val_kl of the steps at which it was measured and is above zero, which is
    all that a logarithmic axis can show."""
    rows = rows[rows["val_kl"] > 0]
    return rows[["seed", "step", "tokens", "val_kl"]].sort_values(["seed", "step"])


def mean_curve(curve: pd.DataFrame) -> pd.DataFrame:
    """Mean tokens and val_kl by step, over the steps that every seed has, so that no line jumps where a seed
    ends."""
    steps = curve.groupby("step")
    return steps[["tokens", "val_kl"]].mean()[steps.size() == curve["seed"].nunique()]


def _draw(axes: Axes, curve: pd.DataFrame, look: style.Look, label: str) -> None:
    if curve["seed"].nunique() > 1:
        for seed, one in curve.groupby("seed"):
            thin = {"color": look.color, "linewidth": 0.7, "alpha": 0.45}
            axes.plot(one["tokens"], one["val_kl"], **thin, label=f"{label} seed {seed:g}")
    mean = mean_curve(curve)
    axes.plot(mean["tokens"], mean["val_kl"], **look.marks, markersize=4, label=label, zorder=3)

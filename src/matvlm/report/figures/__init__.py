"""The figures of a report, as SVG and PNG, from tidy CSV files.

Each ``draw_<name>`` takes the settings and a data frame and returns a matplotlib Figure, so that tests can ask
what is drawn. `write` reads, draws and saves: equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from matvlm.errors import UserError
from matvlm.report.figures import style
from matvlm.report.figures.ablations import draw_ablations
from matvlm.report.figures.convergence import draw_convergence
from matvlm.report.figures.profiles import draw_memory, draw_speed
from matvlm.report.figures.radar import draw_radar
from matvlm.report.read import read_eval, read_profile, read_train
from matvlm.report.settings import Report

DRAW: dict[str, tuple[Callable[[Path], pd.DataFrame], Callable[[Report, pd.DataFrame], Figure]]] = {
    "speed": (read_profile, draw_speed),
    "memory": (read_profile, draw_memory),
    "convergence": (read_train, draw_convergence),
    "ablations": (read_eval, draw_ablations),
    "radar": (read_eval, draw_radar),
}
"""How each figure's CSV file is read, and how it is drawn."""


def write(name: str, settings: Report, data: Path, out: Path) -> None:
    """Draw one figure from its CSV file as ``out``.svg and ``out``.png.

    Raises:
        UserError: no such figure, or the file lacks what the figure shows.
    """
    if name not in DRAW:
        raise UserError(f"--figure {name}: allowed: {', '.join(DRAW)}")
    read, draw = DRAW[name]
    frame = read(data)
    with style.in_use():
        style.save(draw(settings, frame), out)

"""What all figures share: fonts, colours, names, axes of token counts, and saving with stable bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter

from matvlm.files import write_bytes, write_text
from matvlm.report.settings import Report

COLUMN, PAGE = 3.5, 7.16
"""Widths in inches of one column and of both in a two-column paper."""
DPI = 200
DASHED = (0, (4, 2))
NUMBER = StrMethodFormatter("{x:,g}")
INK, MUTED, GRID = "#222222", "#5f6368", "#e4e6e8"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"

# The fonts are those that matplotlib brings along, and text becomes outlines: the same picture everywhere.
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "mathtext.fontset": "dejavusans",
    "text.hinting": "none",  # so that text is equally wide at every resolution
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 1.9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.h_pad": 0.05,
    "svg.fonttype": "path",
    "svg.hashsalt": "matvlm",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """How one model is drawn: told apart by colour and by marker."""

    color: str
    marker: str

    @property
    def marks(self) -> dict[str, object]:
        """Arguments of `plot`: a line with filled markers."""
        return {"color": self.color, "marker": self.marker}

    @property
    def hollow(self) -> dict[str, object]:
        """Arguments of `plot` for what others published: a dotted line with hollow markers."""
        return self.marks | {"linestyle": ":", "linewidth": 0.8, "markerfacecolor": "white", "markeredgewidth": 1}


TEACHER = Look(INK, "s")
LAYOUTS = {
    "": TEACHER,
    "even-12.5": Look(ORANGE, "^"),
    "even-25": Look(BLUE, "o"),
    "even-50": Look(GREEN, "D"),
}
INITS = {"attention": Look(BLUE, "o"), "random": Look(VERMILION, "^"), "release-random": Look(PURPLE, "D")}
SPARE = (Look(VERMILION, "v"), Look(PURPLE, "P"), Look(SKY, "X"), Look(MUTED, "<"), Look(INK, ">"))
"""For layouts that the paper does not have, in the order in which they come."""


def looks(layouts: Iterable[str]) -> dict[str, Look]:
    """A look for every layout, that of the teacher for the empty one; the paper's layouts always look alike."""
    spare = 0
    found: dict[str, Look] = {}
    for layout in layouts:
        if layout in LAYOUTS:
            found[layout] = LAYOUTS[layout]
        elif layout not in found:
            found[layout] = SPARE[spare % len(SPARE)]
            spare += 1
    return found


def model_name(layout: str) -> str:
    """What a legend calls the hybrid of a layout, or the teacher where it is empty."""
    if not layout:
        return "Teacher"
    ratio = re.fullmatch(r"even-(\d+(?:\.\d+)?)", layout)
    return f"Hybrid {ratio[1]} %" if ratio else f"Hybrid {layout}"


def replaced(layout: str, settings: Report) -> str:
    """How many layers a layout replaces, as `4 of 16 layers`."""
    return f"{settings.replaced(layout)} of {settings.depth} layers"


def token_count(value: float) -> str:
    """A number of tokens as the paper writes it where it is round (1k, 1.5k, 32k), else in full."""
    return f"{value:,.0f}" if value < 1024 or value % 512 else f"{value / 1024:g}k"


def token_axis(axes: Axes, values: Iterable[float], label: str, most: int = 6) -> None:
    """A doubling x axis: ticks at ``values`` where they are few and far apart, else at powers of two."""
    values = sorted(set(values))
    low, high = values[0], values[-1]
    ticks = values
    if len(values) > most or any(b / a < 1.6 for a, b in itertools.pairwise(values)):
        exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        ticks = [2**exponent for exponent in list(exponents)[:: math.ceil(len(exponents) / most)]] or [low]
    axes.set_xscale("log", base=2)
    margin = max((high / low) ** 0.06, 1.12)
    axes.set_xlim(low / margin, high * margin)
    axes.set_xticks(ticks, [token_count(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def unit(largest: float, names: dict[float, str]) -> tuple[float, str]:
    """The largest unit that ``largest`` is not below, else the smallest: its size and its name."""
    fitting = [size for size in names if largest >= size]
    size = max(fitting) if fitting else min(names)
    return size, names[size]


def legend(figure: Figure, handles: list[Line2D], columns: int | None = None) -> None:
    """A legend above all panels, which covers no data; in one row if nothing else is said."""
    spacing = {"columnspacing": 1.4, "handletextpad": 0.5}
    figure.legend(handles=handles, loc="outside upper left", ncols=columns or len(handles), **spacing)


def note(figure: Figure, text: str) -> None:
    """Small print below all panels."""
    figure.supxlabel(text, fontsize=6.5, color=MUTED)


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Draw in this style, whatever a user's own settings are."""
    with matplotlib.style.context(["default", RC]):
        yield


def save(figure: Figure, out: Path) -> None:
    """Write ``out``.svg and ``out``.png, without dates and in one layout."""
    _freeze(figure)
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    write_text(out.with_name(f"{out.name}.svg"), svg.getvalue())
    write_bytes(out.with_name(f"{out.name}.png"), png.getvalue())


def _freeze(figure: Figure) -> None:
    """Lay the figure out once and round what comes out: the solver's last digits differ from process to process,
    and the ids in an SVG are hashes of them."""
    engine = figure.get_layout_engine()
    if engine is None:
        return
    for _ in range(2):  # the first pass may change how many ticks there are
        engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(part, 6) for part in axes.get_position(original=True).bounds])
    for text in figure.texts:
        text.set_position([round(part, 6) for part in text.get_position()])

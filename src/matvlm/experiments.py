"""The ablation cells: which students are trained, and which table each belongs to.

A cell is one student up to its seed. Cells that several tables share are the same object, so that their
runs are the same files.
"""

from __future__ import annotations

from dataclasses import dataclass

from matvlm import layouts
from matvlm.config import BaseCell, Preset

AXES = {
    "losses": "loss",
    "layouts": "layout",
    "ratios": "layout",
    "inits": "init",
    "divergences": "divergence",
}
"""Axis of the ablation, as in the table's name, and the field of a cell that it varies."""


@dataclass(frozen=True, order=True)
class Cell:
    """One student up to its seed. ``divergence`` is ``none`` where the probability loss is not used."""

    init: str
    layout: str
    loss: str
    divergence: str

    @property
    def path(self) -> str:
        """Folder of the cell below ``distill/`` and ``eval/``."""
        return f"{self.init}/{self.layout}/{self.loss}/{self.divergence}"

    @classmethod
    def make(cls, init: str, layout: str, loss: str, divergence: str) -> Cell:
        """A cell in canonical form, so that equal students compare equal."""
        return cls(init, layout, loss, divergence if "prob" in loss.split("+") else "none")


def base_cell(base: BaseCell) -> Cell:
    """The cell that every table shares."""
    return Cell.make(base.init, base.layout, base.loss, base.divergence)


def axis_values(axis: str, preset: Preset) -> list[str]:
    """Values of one axis in the order of the configuration; ratios as the layouts they mean."""
    values = getattr(preset.ablation, axis)
    return [f"even-{value:g}" if axis == "ratios" else str(value) for value in values]


def table_cells(axis: str, preset: Preset, base: BaseCell) -> list[Cell]:
    """Cells of the table that varies ``axis``, all else as in the base cell, in table order.

    Raises:
        KeyError: ``axis`` is none of `AXES`.
    """
    start, field = base.model_dump(), AXES[axis]
    # Varied before it is made a cell: the base may name a divergence that only some of the cells use.
    return list(dict.fromkeys(Cell.make(**start | {field: value}) for value in axis_values(axis, preset)))


def all_cells(preset: Preset, base: BaseCell) -> list[Cell]:
    """Every cell of the preset once, the base cell first."""
    cells = [base_cell(base)]
    for axis in AXES:
        cells += table_cells(axis, preset, base)
    if preset.ablation.grid:
        cells += grid_cells(preset, base)
    return list(dict.fromkeys(cells))


def compared_layers(preset: Preset, base: BaseCell) -> list[int]:
    """Layers whose outputs some cell compares with the teacher's, ascending."""
    compared = {cell.layout for cell in all_cells(preset, base) if "layer" in cell.loss.split("+")}
    return sorted({index for layout in compared for index in layouts.resolve(layout, preset.teacher.depth)})


def grid_cells(preset: Preset, base: BaseCell) -> list[Cell]:
    """Every loss combination with every layout, all else as in the base cell, loss by loss."""
    return [
        Cell.make(base.init, layout, loss, base.divergence)
        for loss in preset.ablation.losses
        for layout in preset.ablation.layouts
    ]


def evaluation_batches(preset: Preset, base: BaseCell) -> dict[str, list[Cell]]:
    """All cells, parted by the set of tables that need them; the key joins the tables' names.

    A table needs all cells of such a batch or none, so batches may be computed as a whole without doing more
    than a table asks for. Cells that only the grid has make up the batch ``grid``, and the base cell, which
    every table needs, with whatever cells share that, ``base``.
    """
    start = base_cell(base)
    tables = {axis: {start, *table_cells(axis, preset, base)} for axis in AXES}
    batches: dict[str, list[Cell]] = {}
    for cell in all_cells(preset, base):
        names = [axis for axis in AXES if cell in tables[axis]]
        key = "base" if len(names) == len(AXES) else "_".join(names) or "grid"
        batches.setdefault(key, []).append(cell)
    return batches

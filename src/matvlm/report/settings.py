"""The slice of the configuration that a report needs: names, axes and the model's depth, nothing of training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from pydantic import PositiveInt

from matvlm import layouts
from matvlm.config import TASKS, Ablation, Architecture, BaseCell, Config, Model, Preset
from matvlm.experiments import Cell, base_cell, grid_cells, table_cells
from matvlm.report import published


class Report(Model):
    """What every command of `matvlm.report.render` takes as ``--settings``."""

    preset: str
    depth: PositiveInt
    """Decoder layers of the language model, for the achieved ratio."""
    base: BaseCell
    ablation: Ablation | None = None
    """None where nothing is trained, but speed and memory measured alone."""
    tasks: tuple[str, ...] = TASKS
    at_paper_scale: bool = False
    """Whether the paper's published numbers were made with this model, so that magnitudes compare."""
    overrides: tuple[str, ...] = ()
    """What was set beside `params.yaml`, as the words `key=value` that `--config` takes."""

    @classmethod
    def of(cls, config: Config, overrides: Mapping[str, object] | None = None) -> Report:
        """The slice of a whole configuration for its active preset.

        Args:
            overrides: what of the configuration does not come from `params.yaml`, by its top key.
        """
        preset = config.active
        return cls(
            preset=config.preset,
            depth=preset.teacher.depth,
            base=config.base,
            ablation=preset.ablation,
            tasks=preset.evaluate.tasks if preset.trains else (),
            at_paper_scale=_is_papers_model(config.preset, preset),
            overrides=tuple(
                f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items() if key != "preset"
            ),
        )

    @property
    def base_cell(self) -> Cell:
        """The cell that every ablation varies one axis of."""
        return base_cell(self.base)

    def cells(self, axis: str) -> list[Cell]:
        """Cells of one axis in the order of the configuration; the base cell first where the axis lacks it."""
        cells = table_cells(axis, self, self.base)
        return cells if self.base_cell in cells else [self.base_cell, *cells]

    @property
    def grid_cells(self) -> list[Cell]:
        """Every loss combination with every layout, loss by loss."""
        return grid_cells(self, self.base)

    def replaced(self, layout: str) -> int:
        """Number of layers that a layout replaces."""
        return len(layouts.resolve(layout, self.depth))

    def command(self, target: str) -> str:
        """The command that makes a target of this preset."""
        return shlex.join(["snakemake", target, "--config", f"preset={self.preset}", *self.overrides])


def _is_papers_model(name: str, preset: Preset) -> bool:
    """A checkpoint is taken at its preset's word, as its sizes are not in the configuration."""
    if isinstance(preset.teacher, Architecture):
        text = preset.teacher.text
        return (text.layers, text.hidden_size) == (published.DEPTH, published.WIDTH)
    return name == "paper"

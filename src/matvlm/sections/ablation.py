"""The axes of the paper's ablations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from matvlm import layouts
from matvlm.sections.data import Seed
from matvlm.validation import Axis, Flag, Model, PositiveFloat

Layout = Annotated[str, AfterValidator(layouts.canonical), Field(json_schema_extra={"pattern": layouts.PATTERN})]
"""Which layers are replaced, as `matvlm.layouts` reads it, in its one spelling."""
Init = Literal["attention", "random", "release-random"]
Divergence = Literal["kl", "reverse", "jsd", "ce", "l2"]
LossSet = Literal["prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"]


class Ablation(Model):
    """The axes of the paper's ablations."""

    losses: Axis[LossSet]
    """Combinations of losses."""
    layouts: Axis[Layout]
    """Placements of the replaced layers."""
    ratios: Axis[PositiveFloat]
    """Shares of layers replaced in per cent, spread evenly."""
    inits: Axis[Init]
    """Initialisations of the mixers."""
    divergences: Axis[Divergence]
    """Divergences of the probability loss."""
    seeds: Axis[Seed]
    """Seeds that every cell is trained with."""
    grid: Flag = False
    """true: every loss combination with every layout; false: one axis at a time around `base`."""


class BaseCell(Model):
    """The cell that every ablation varies one axis of."""

    init: Init = "attention"
    """attention: mixers from the attention they replace. random: mixers random. release-random: norm and MLP of
    the replaced layers random too."""
    layout: Layout = "even-25"
    """Which layers are replaced: even, front, middle or end with a ratio in per cent, release-12.5, or layer
    indices such as 0,4,8."""
    loss: LossSet = "prob+layer+ce"
    """Losses in use."""
    divergence: Divergence = "kl"
    """Divergence of the probability loss: KL from the teacher, the reverse, Jensen-Shannon, cross-entropy on the
    teacher's first choice, or root mean square difference of logits."""

"""Cells: computed once though several tables share them, and parted into batches that tables are made of."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import CONFIG, PRESET

from matvlm.config import BaseCell, load_config
from matvlm.experiments import (
    AXES,
    Cell,
    all_cells,
    axis_values,
    base_cell,
    compared_layers,
    evaluation_batches,
    table_cells,
)
from matvlm.layouts import resolve

ROOT = Path(__file__).parents[2]
PAPER = {
    "losses": ["prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"],
    "layouts": ["even-25", "front-25", "middle-25", "end-25"],
    "ratios": [12.5, 25, 50],
    "inits": ["attention", "random", "release-random"],
    "divergences": ["kl", "reverse", "jsd", "ce", "l2"],
    "seeds": [0, 1, 2],
}


def preset_of(base=None, **axes):
    """A preset with these axes, and the base cell."""
    data = yaml.safe_load(CONFIG) | {"presets": {"tiny": yaml.safe_load(PRESET)}}
    data["ablation"] = PAPER | axes
    data["base"] |= base or {}
    config = load_config(data)
    return config.active, config.base


def test_the_papers_tables():
    """7 losses, 4 layouts, 3 ratios, 3 inits and 5 divergences share the base cell: 1 + 6 + 3 + 2 + 2 + 4."""
    preset, base = preset_of()
    tables = {axis: table_cells(axis, preset, base) for axis in AXES}
    assert {axis: len(cells) for axis, cells in tables.items()} == {
        "losses": 7, "layouts": 4, "ratios": 3, "inits": 3, "divergences": 5
    }  # fmt: skip
    cells = all_cells(preset, base)
    assert len(cells) == len(set(cells)) == 18
    assert cells[0] == base_cell(base) == Cell("attention", "even-25", "prob+layer+ce", "kl")
    assert set().union(*tables.values()) == set(cells)
    for one, other in combinations(tables.values(), 2):
        assert set(one) & set(other) == {cells[0]}


def test_the_tiny_preset_of_the_repository():
    config = load_config(yaml.safe_load((ROOT / "params.yaml").read_text()))
    ablation = config.presets["tiny"].ablation
    axes = (ablation.losses, ablation.layouts, ablation.ratios, ablation.inits, ablation.divergences)
    expected = 1 + sum(len(values) - 1 for values in axes)  # the base cell is in every axis
    assert len(all_cells(config.presets["tiny"], config.base)) == expected


def test_a_tables_cells_differ_in_its_axis_alone_and_keep_its_order():
    preset, base = preset_of()
    for axis, field in AXES.items():
        cells = table_cells(axis, preset, base)
        values = [getattr(cell, field) for cell in cells]
        assert values == axis_values(axis, preset)
        for cell in cells:
            others = {name for name in ("init", "layout", "loss") if name != field}
            assert all(getattr(cell, name) == getattr(base, name) for name in others)
    assert axis_values("ratios", preset) == ["even-12.5", "even-25", "even-50"]


def test_losses_without_the_divergence_have_none():
    preset, base = preset_of()
    for cell in all_cells(preset, base):
        assert (cell.divergence == "none") == ("prob" not in cell.loss.split("+"))
    assert Cell.make("random", "0,1", "layer+ce", "jsd") == Cell.make("random", "0,1", "layer+ce", "kl")


def test_divergences_of_a_loss_that_has_none_are_one_cell():
    preset, base = preset_of(base={"loss": "ce"})
    assert table_cells("divergences", preset, base) == [base_cell(base)]


@pytest.mark.parametrize("loss", ["layer", "ce", "layer+ce"])
def test_a_base_without_the_divergence_still_has_one_for_the_losses_that_use_it(loss):
    """The base cell's divergence is `none`, which no training accepts beside a loss with prob."""
    preset, base = preset_of(base={"loss": loss, "divergence": "jsd"}, grid=True)
    assert base_cell(base).divergence == "none"
    for cell in all_cells(preset, base):
        assert cell.divergence == ("jsd" if "prob" in cell.loss.split("+") else "none")
    losses = [cell.loss for cell in table_cells("losses", preset, base)]
    assert losses == axis_values("losses", preset)


def test_the_grid_adds_every_loss_at_every_layout():
    plain, base = preset_of()
    grid, _ = preset_of(grid=True)
    cells = all_cells(grid, base)
    assert len(cells) == len(set(cells)) == 18 + 7 * 4 - 7 - 4 + 1  # less the row and the column there already
    assert cells[:18] == all_cells(plain, base)
    pairs = {(c.loss, c.layout) for c in cells}
    assert {(loss, layout) for loss in PAPER["losses"] for layout in PAPER["layouts"]} <= pairs
    assert set(evaluation_batches(grid, base)["grid"]) == set(cells[18:])
    assert "grid" not in evaluation_batches(plain, base)


def test_the_base_cell_is_there_though_no_axis_names_it():
    preset, base = preset_of(base={"layout": "0,1", "init": "random"}, inits=["attention"])
    assert all_cells(preset, base)[0] == Cell("random", "0,1", "prob+layer+ce", "kl")


def subsets(axis):
    return st.lists(st.sampled_from(PAPER[axis]), min_size=1, unique=True)


@settings(max_examples=60, deadline=None)
@given(axes=st.fixed_dictionaries({axis: subsets(axis) for axis in AXES}), grid=st.booleans(), base=st.booleans())
def test_batches_part_the_cells_and_tables_are_unions_of_them(axes, grid, base):
    start = {"layout": "front-50", "loss": "ce", "init": "random"} if base else {}
    preset, base = preset_of(base=start, grid=grid, **axes)
    batches = evaluation_batches(preset, base)
    cells = [cell for batch in batches.values() for cell in batch]
    assert sorted(cells) == sorted(all_cells(preset, base))
    assert len(cells) == len(set(cells))
    assert base_cell(base) in batches["base"]
    for axis in AXES:
        wanted = {base_cell(base), *table_cells(axis, preset, base)}
        for batch in batches.values():
            assert wanted.isdisjoint(batch) or wanted.issuperset(batch)


def test_the_layers_that_some_cell_compares():
    """No cell without L_layer asks for any, and every layout of one that has it does."""
    preset, base = preset_of(layouts=["even-25", "end-25"], ratios=[50], losses=["layer", "ce"])
    depth = preset.teacher.depth
    wanted = {index for layout in ("even-25", "end-25", "even-50") for index in resolve(layout, depth)}
    assert compared_layers(preset, base) == sorted(wanted)
    assert len(wanted) < depth
    assert compared_layers(*preset_of({"loss": "ce"}, losses=["prob", "ce"])) == []


def test_shared_cells_are_the_same_files():
    preset, base = preset_of()
    cells = all_cells(preset, base)
    paths = [cell.path for cell in cells]
    assert len(set(paths)) == len(paths)
    assert cells[0].path == "attention/even-25/prob+layer+ce/kl"
    by_ratio = next(c for c in table_cells("ratios", preset, base) if c.layout == "even-25")
    by_layout = next(c for c in table_cells("layouts", preset, base) if c.layout == "even-25")
    assert by_ratio == by_layout == base_cell(base)
    assert hash(by_ratio) == hash(base_cell(base))


def test_an_unknown_axis():
    with pytest.raises(KeyError):
        table_cells("colours", *preset_of())


def test_a_base_cell_by_default_is_the_papers():
    assert base_cell(BaseCell()).path == "attention/even-25/prob+layer+ce/kl"

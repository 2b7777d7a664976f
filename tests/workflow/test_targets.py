"""What a target asks for, by dry runs of the default preset, and what a run that was interrupted keeps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from checkouts import environment
from conftest import command, snakemake

CELLS = {"table_losses": 7, "table_layouts": 4, "table_ratios": 3, "table_inits": 3, "table_divergences": 5}


def jobs(output: str) -> dict[str, int]:
    """Jobs by rule, as a dry run counts them."""
    table = output.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


@pytest.mark.parametrize(("target", "cells"), CELLS.items())
def test_a_table_on_demand_computes_its_own_cells_only(checkout, target, cells):
    counted = jobs(snakemake(checkout, "--dry-run", target, preset="tiny").stdout)
    assert counted["distill"] == cells
    assert counted["render_table"] == 1
    assert "profile" not in counted
    assert "train_teacher" not in counted


def test_shared_cells_are_computed_once(checkout):
    counted = jobs(snakemake(checkout, "--dry-run", "all", preset="tiny").stdout)
    # The base cell stands in all five tables.
    assert counted["distill"] == 1 + sum(cells - 1 for cells in CELLS.values())


def test_the_grid_is_a_switch(checkout):
    grid = "presets={tiny: {ablation: {grid: true}}}"
    without = jobs(snakemake(checkout, "--dry-run", "all", preset="tiny").stdout)
    counted = jobs(snakemake(checkout, "--dry-run", "all", preset="tiny", settings=grid).stdout)
    # 7 losses x 4 layouts, of which 7 + 4 - 1 are there without it
    assert counted["distill"] == without["distill"] + 28 - 10
    assert counted["render_table"] == without["render_table"] + 1


def test_the_speed_table_trains_nothing(checkout):
    counted = jobs(snakemake(checkout, "--dry-run", "table_speed", preset="tiny").stdout)
    assert counted["profile"] == 1
    assert "distill" not in counted


def test_an_interrupted_run_resumes_where_it_was(checkout):
    steps = "presets={debug: {distill: {steps: 400, save_every: 5, validate_every: 400}}}"
    with subprocess.Popen(
        [*command("debug", steps), "stage_distill"],
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        deadline = time.monotonic() + 240
        while not list(checkout.glob("runs/debug/state/attention/**/step-*")) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        running.communicate(timeout=120)
    assert running.returncode != 0
    assert not list(checkout.glob("runs/debug/distill/**/provenance.json"))
    done = snakemake(checkout, "stage_distill", settings=steps)
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"resumed at step \d+ of 400", done.stdout)
    assert "prepare_data" not in done.stdout
    assert len(list(checkout.glob("runs/debug/distill/**/provenance.json"))) == 2


def test_a_preset_that_is_not_to_be_measured(checkout):
    counted = jobs(snakemake(checkout, "--dry-run", "all", preset="smol").stdout)
    cells = CELLS | {"table_ratios": 4, "table_inits": 2}
    assert counted["distill"] == 3 * (1 + sum(count - 1 for count in cells.values()))
    assert "profile" not in counted
    for target in ("profile", "table_speed", "figure_memory"):
        done = snakemake(checkout, target, preset="smol")
        assert done.returncode != 0
        line = done.stdout.strip().splitlines()[-1]
        assert line.startswith("error: params.yaml: presets.smol: has no section profile")

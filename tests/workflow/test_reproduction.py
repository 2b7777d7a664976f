"""The smallest preset from data to verdicts: every rule runs, a second run does nothing, DVC makes the same."""

from __future__ import annotations

import csv
import re
import shutil
import time

import pytest

from checkouts import clone, git
from conftest import run, snakemake

RESULTS = (
    "index.html",
    "claims.md",
    "claims.csv",
    "metrics.json",
    *(f"data/{kind}.csv" for kind in ("eval", "train", "profile", "runs")),
    *(
        f"tables/{name}.{suffix}"
        for name in ("main", "losses", "layouts", "ratios", "inits", "divergences", "speed")
        for suffix in ("md", "tex", "html")
    ),
    *(
        f"figures/{name}.{suffix}"
        for name in ("speed", "memory", "convergence", "ablations", "radar")
        for suffix in ("svg", "png")
    ),
)


def test_every_result_is_there_and_every_rule_ran(reproduced):
    for name in RESULTS:
        assert (reproduced / "results/debug" / name).stat().st_size > 0, name
    ran = {
        path.relative_to(reproduced / "runs/debug/benchmarks").parts[0].removesuffix(".tsv")
        for path in (reproduced / "runs/debug/benchmarks").rglob("*.tsv")
    }
    assert ran == {
        *("prepare_data", "train_teacher", "cache_teacher", "init_hybrid", "distill", "evaluate", "profile"),
        *("collect", "render"),
    }


def test_every_row_can_be_traced(reproduced):
    commit = git(reproduced, "rev-parse", "HEAD").strip()
    rows = _rows(reproduced / "results/debug/data/eval.csv")
    assert {row["model"] for row in rows} == {"teacher", "student"}
    for row in rows:
        assert row["commit"] == commit
        assert row["dirty"] == "false"
        assert all(row[name] for name in ("config_hash", "data_hash", "teacher_hash", "torch", "lmms_eval"))
    # cells: L_ce alone, and all three losses
    assert {row["loss"] for row in rows if row["model"] == "student"} == {"ce", "prob+layer+ce"}


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("all", ("train_teacher", "distill", "evaluate_base", "profile", "render_page")),
        ("table_losses", ("distill", "evaluate_losses", "render_table")),
        ("figure_ablations", ("distill", "evaluate_losses", "render_figure")),
        ("claims", ("distill", "profile", "render_claims")),
        ("table_speed", ("profile", "render_table")),
    ],
)
def test_committed_results_do_not_stand_in_for_runs(reproduced, checkout, target, rules):
    shutil.copytree(reproduced / "results/debug", checkout / "results/debug", dirs_exist_ok=True)
    done = snakemake(checkout, "--dry-run", target)
    assert done.returncode == 0, done.stdout
    planned = set(re.findall(r"^(\w+) +\d+$", done.stdout, re.MULTILINE))
    assert set(rules) <= planned, done.stdout


def test_a_second_run_does_nothing_and_says_so(reproduced):
    start = time.monotonic()
    done = snakemake(reproduced, "all")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    # A promise to users, with room for a busy machine: importing torch alone would break it.
    assert time.monotonic() - start < 15


def test_nothing_changed_outside_results(reproduced):
    assert git(reproduced, "status", "--porcelain", "--", ".", ":!results") == ""


def test_the_shipped_teacher_is_taken_over(origin, tmp_path):
    folder = clone(origin, tmp_path / "clone")
    done = snakemake(folder, "stage_teacher", preset="tiny")
    assert done.returncode == 0, done.stdout[-5000:]
    for path in (folder / "models/tiny-teacher").iterdir():
        assert (folder / "runs/tiny/teacher" / path.name).read_bytes() == path.read_bytes()


def test_an_online_teacher_gives_the_losses_of_a_cached_one(reproduced, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder, symlinks=True)
    shutil.rmtree(folder / "runs/debug/cache")
    done = snakemake(folder, "stage_cache", "stage_distill", settings="presets={debug: {cache: {mode: online}}}")
    assert done.returncode == 0, done.stdout[-5000:]
    assert [path.name for path in (folder / "runs/debug/cache").iterdir()] == ["manifest.json"]
    logs = sorted(path.relative_to(folder) for path in folder.glob("runs/debug/distill/**/log.csv"))
    assert len(logs) == 2
    for log in logs:
        for online, cached in zip(_rows(folder / log), _rows(reproduced / log), strict=True):
            for name in ("loss", "loss_prob", "loss_layer", "loss_ce", "val_kl"):
                mine, theirs = (float(row[name] or "nan") for row in (online, cached))
                assert mine == pytest.approx(theirs, rel=1e-4, nan_ok=True)


def test_many_jobs_make_the_cache_of_one(reproduced, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder, symlinks=True)
    shutil.rmtree(folder / "runs/debug/cache")
    jobs = "presets={debug: {cache: {jobs: 2}}}"
    done = snakemake(folder, "stage_cache", settings=jobs)
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"^cache_part +2$", done.stdout, re.MULTILINE)
    mine, theirs = (sorted((path / "runs/debug/cache").iterdir()) for path in (folder, reproduced))
    assert [path.name for path in mine] == [path.name for path in theirs]
    assert [path.read_bytes() for path in mine] == [path.read_bytes() for path in theirs]
    assert not [path for name in ("cache_parts", "state/cache") for path in folder.glob(f"runs/debug/{name}/*")]
    assert "Nothing to be done" in snakemake(folder, "stage_cache", settings=jobs).stdout


def test_dvc_repro_makes_the_same_scores(reproduced, origin, tmp_path):
    folder = clone(origin, tmp_path / "clone")
    params = folder / "params.yaml"
    params.write_text(re.sub(r"^preset: .*$", "preset: debug", params.read_text(), flags=re.MULTILINE))
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-5000:]
    scores = "results/debug/metrics.json"
    assert (folder / scores).read_bytes() == (reproduced / scores).read_bytes()
    mine, theirs = (_values(path / "results/debug/data/eval.csv") for path in (folder, reproduced))
    assert mine == theirs
    again = run(folder, "dvc", "repro")
    assert again.stdout.count("didn't change, skipping") == 7, again.stdout


def _rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def _values(path) -> list[dict[str, str]]:
    """All columns but the one that says that params.yaml was edited."""
    return [{name: value for name, value in row.items() if name != "dirty"} for row in _rows(path)]


def test_two_runs_give_the_same_evaluation_file(reproduced, origin, tmp_path):
    folder = clone(reproduced, tmp_path / "clone")
    done = snakemake(folder, "results/debug/data/eval.csv")
    assert done.returncode == 0, done.stdout[-5000:]
    name = "results/debug/data/eval.csv"
    assert (folder / name).read_bytes() == (reproduced / name).read_bytes()

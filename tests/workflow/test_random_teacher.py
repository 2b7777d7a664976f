"""A preset whose weights are random: it is measured, and nothing else is asked of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from test_targets import jobs

from conftest import snakemake

PRESET = "paper-profile"
MINIATURE = {
    "gpus": {"profile": 0},
    "teacher": {
        "vision": {
            "image_size": 64,
            "patch_size": 18,
            "hidden_size": 32,
            "intermediate_size": 64,
            "layers": 2,
            "heads": 2,
        },
        "text": {"hidden_size": 32, "intermediate_size": 64, "layers": 4, "heads": 2, "kv_heads": 2},
        "vocab_size": 64,
    },
    "profile": {
        "layouts": ["even-25"],
        "prompt_tokens": [32],
        "generated_tokens": [16, 32],
        "batch_sizes": [1, 2],
        "decode_steps": 4,
        "warmup_steps": 1,
        "repeats": 1,
        "dtype": "float32",
        "protocols": ["same_runtime"],
        "generated_check": [],
    },
}
SMALL = f"presets={json.dumps({PRESET: MINIATURE})}"
RESULTS = (
    *("index.html", "claims.md", "claims.csv", "metrics.json", "data/profile.csv", "data/runs.csv"),
    *(f"tables/speed.{suffix}" for suffix in ("md", "tex", "html")),
    *(f"figures/{name}.{suffix}" for name in ("speed", "memory") for suffix in ("svg", "png")),
)


def test_all_that_there_is_to_do(checkout):
    assert jobs(snakemake(checkout, "--dry-run", "all", preset=PRESET).stdout) == {
        "profile": 1,
        "collect": 2,
        "render_table": 1,
        "render_figure": 2,
        "render_claims": 1,
        "render_page": 1,
        "summarise_metrics": 1,
        "all": 1,
        "total": 10,
    }


@pytest.mark.parametrize(
    ("target", "rendered"),
    [
        *(("table_speed", {"render_table"}), ("figure_speed", {"render_figure"}), ("profile", set())),
        *(("figure_memory", {"render_figure"}), ("claims", {"render_claims"})),
    ],
)
def test_a_target_on_demand(checkout, target, rendered):
    done = snakemake(checkout, "--dry-run", target, preset=PRESET)
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout).keys() - {"collect", target, "total"} == {"profile"} - {target} | rendered


@pytest.mark.parametrize("target", ["table_main", "table_losses", "figure_radar", "stage_data", "stage_report"])
def test_what_needs_training_is_refused(checkout, target):
    done = snakemake(checkout, target, preset=PRESET)
    assert done.returncode != 0
    assert done.stdout.strip().splitlines()[-1] == (
        f"error: params.yaml: presets.{PRESET}.teacher.source: random has no training or evaluation; allowed "
        "targets: all, profile, table_speed, figure_speed, figure_memory, claims, page"
    )


def test_sections_that_it_cannot_have_are_refused(checkout):
    extra = f"presets={{{PRESET}: {{cache: {{mode: online}}}}}}"
    done = snakemake(checkout, "all", preset=PRESET, settings=extra)
    assert done.returncode != 0
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith(f"error: params.yaml: presets.{PRESET}.cache: a teacher whose source is random")


def test_a_miniature_runs_on_a_cpu(checkout):
    done = snakemake(checkout, "all", preset=PRESET, settings=SMALL)
    assert done.returncode == 0, done.stdout[-5000:]
    results = checkout / "results" / PRESET
    assert {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()} == set(RESULTS)
    rows = read(results / "data/profile.csv")
    assert {row["layout"] for row in rows} == {"", "even-25"}
    assert {(row["batch"], row["generated_tokens"]) for row in rows} == {
        (batch, tokens) for batch in "12" for tokens in ("16", "32")
    }
    verdicts = {row["id"]: row["verdict"] for row in read(results / "claims.csv")}
    assert verdicts["speed"] != "not run"
    assert {verdict for name, verdict in verdicts.items() if name not in ("speed", "memory")} == {"not run"}
    assert {row["step"] for row in read(results / "data/runs.csv")} == {"profile"}
    assert json.loads((results / "metrics.json").read_text()).keys() == {"teacher", "even-25"}
    again = snakemake(checkout, "all", preset=PRESET, settings=SMALL)
    assert "Nothing to be done" in again.stdout


def test_every_preset_can_be_planned(checkout):
    for preset in yaml.safe_load((checkout / "params.yaml").read_text())["presets"]:
        done = snakemake(checkout, "--dry-run", "--quiet", "all", "--", "all", preset=preset)
        assert done.returncode == 0, done.stdout


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))

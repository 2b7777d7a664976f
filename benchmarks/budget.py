"""How far a preset's base cell comes in how many steps, from which the budget of its ablations is chosen.

    snakemake stage_data stage_cache stage_init --config preset=tiny && python benchmarks/budget.py --preset tiny

Each number of steps is a run of its own with its own schedule. Scores are on the questions of the validation split
(the choice does not look at the test images). Writes the preset's rows of results/benchmarks/budget.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from kept_rows import kept

from matvlm.config import Config, load_config
from matvlm.errors import UserError, one_line
from matvlm.experiments import base_cell
from matvlm.files import csv_text, write_text

COLUMNS = ("preset", "steps", "mean_score", "gap_closed")
DECAY = 0.3


@one_line
def main() -> None:
    """Train the base cell for each number of steps and score it on the validation questions."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 10, 20, 40, 80, 160])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings side by side, on the GPUs and cores of this machine"
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/budget.csv"))
    args = parser.parse_args()
    if args.jobs < 1:
        raise UserError("--jobs: must be at least 1")
    config = load_config(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")) | {"preset": args.preset})
    run = Path("runs") / args.preset
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        students = list(pool.map(lambda steps: _train(config, steps, args.seed, Path(folder)), args.steps))
        outs = [Path(folder) / f"eval-{model.name}" for model in (run / "teacher", *students)]
        _step(
            "matvlm.evaluation.run",
            *("--settings", config.active.evaluate.model_dump_json(), "--data", run / "data/val"),
            *("--models", run / "teacher", *students, "--outs", *outs),
        )
        scores = [_mean_score(out) for out in outs]
    teacher, *rest = scores
    rows = kept(args.out, args.preset)
    # The schedule's first rate is 0, so one step leaves the model untrained.
    for steps, score in zip((*args.steps, "teacher"), (*rest, teacher), strict=True):
        closed = f"{(score - rest[0]) / (teacher - rest[0]):.4f}"
        rows.append(dict(zip(COLUMNS, (args.preset, steps, f"{score:.4f}", closed), strict=True)))
    write_text(args.out, csv_text(COLUMNS, rows))
    print(args.out.read_text(encoding="utf-8"))


def _train(config: Config, steps: int, seed: int, folder: Path) -> Path:
    run, cell = Path("runs") / config.preset, base_cell(config.base)
    settings = config.active.distill.model_dump(mode="json") | {
        "steps": steps,
        "warmup_steps": max(1, steps // 10),
        "decay_steps": round(DECAY * steps),
        "validate_every": steps,
        "save_every": steps,
    }
    out, cache = folder / f"steps{steps}", config.active.cache
    cached = (
        () if cache.mode == "online" else ("--cache", run / "cache", "--cache-settings", cache.model_dump_json())
    )
    _step(
        "matvlm.distill.run",
        *("--settings", json.dumps(settings), "--max-length", config.active.data.max_length),
        *("--init-dir", run / f"init/{cell.init}/{cell.layout}/seed{seed}", "--teacher", run / "teacher"),
        *("--data", run / "data/distill", "--val", run / "data/val", *cached),
        *("--init", cell.init, "--layout", cell.layout),
        *("--loss", cell.loss, "--divergence", cell.divergence, "--seed", seed),
        *("--state", folder / f"state{steps}", "--out", out),
    )
    return out


def _step(module: str, *words: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


def _mean_score(folder: Path) -> float:
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return next(row["value"] for row in rows if row["task"] == "mean")


if __name__ == "__main__":
    raise SystemExit(main())

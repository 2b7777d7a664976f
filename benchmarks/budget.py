"""How far the base cell of `tiny` comes in how many steps, from which the budget of its ablations was chosen.

    snakemake stage_data stage_cache stage_init && python benchmarks/budget.py

Each number of steps is a run of its own with its own schedule. Scores are on the questions of the validation split
(the choice does not look at the test images). Writes results/benchmarks/budget.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from matvlm.config import load_config
from matvlm.experiments import base_cell

RUN = Path("runs/tiny")
DECAY = 0.3


def main() -> None:
    """Train the base cell for each number of steps and score it on the validation questions."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 10, 20, 40, 80, 160])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/budget.csv"))
    args = parser.parse_args()
    config = load_config(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")) | {"preset": "tiny"})
    with tempfile.TemporaryDirectory() as folder:
        students = [_train(config, steps, args.seed, Path(folder)) for steps in args.steps]
        outs = [Path(folder) / f"eval-{model.name}" for model in (RUN / "teacher", *students)]
        _step(
            "matvlm.evaluation.run",
            *("--settings", config.active.evaluate.model_dump_json(), "--data", RUN / "data/val"),
            *("--models", RUN / "teacher", *students, "--outs", *outs),
        )
        scores = [_mean_score(out) for out in outs]
    teacher, *rest = scores
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["steps", "mean_score", "gap_closed"])
        # The schedule's first rate is 0, so one step leaves the model untrained.
        for steps, score in zip(args.steps, rest, strict=True):
            writer.writerow([steps, f"{score:.4f}", f"{(score - rest[0]) / (teacher - rest[0]):.4f}"])
        writer.writerow(["teacher", f"{teacher:.4f}", "1.0000"])
    print(args.out.read_text(encoding="utf-8"))


def _train(config, steps: int, seed: int, folder: Path) -> Path:
    cell = base_cell(config.base)
    settings = config.active.distill.model_dump(mode="json") | {
        "steps": steps,
        "warmup_steps": max(1, steps // 10),
        "decay_steps": round(DECAY * steps),
        "validate_every": steps,
        "save_every": steps,
    }
    out = folder / f"steps{steps}"
    _step(
        "matvlm.distill.run",
        *("--settings", json.dumps(settings), "--max-length", config.active.data.max_length),
        *("--init-dir", RUN / f"init/{cell.init}/{cell.layout}/seed{seed}", "--teacher", RUN / "teacher"),
        *("--data", RUN / "data/distill", "--val", RUN / "data/val", "--cache", RUN / "cache"),
        *("--cache-settings", config.active.cache.model_dump_json(), "--init", cell.init, "--layout", cell.layout),
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
    main()

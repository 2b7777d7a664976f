"""Small CSV files as `matvlm.report.collect` lays them out, with values that a test chooses."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matvlm.config import Ablation, BaseCell
from matvlm.experiments import Cell
from matvlm.provenance import COLUMNS as PROVENANCE
from matvlm.report import collect
from matvlm.report.columns import PROFILE_FIGURES, PROFILE_KEY, PROFILE_MARKS
from matvlm.report.settings import Report

TASKS = ("easy_vqa_yesno", "easy_vqa_open")
BASE = Cell("attention", "even-25", "prob+layer+ce", "kl")
AXES = {
    "losses": ("ce", "prob+layer", "prob+layer+ce"),
    "layouts": ("even-25", "front-25", "middle-25", "end-25"),
    "ratios": (12.5, 25, 50),
    "inits": ("attention", "random", "release-random"),
    "divergences": ("kl", "jsd"),
    "seeds": (0, 1, 2),
}
SOURCE = dict.fromkeys(PROVENANCE, "x")


def report(preset: str = "tiny", depth: int = 16, **axes: Sequence) -> Report:
    """Settings with two tasks, and the axes of `AXES` but for those given; of the paper's model if so called."""
    ablation = Ablation(**{**AXES, **axes})
    settings = {"preset": preset, "depth": depth, "base": BaseCell(), "ablation": ablation, "tasks": TASKS}
    return Report(**settings, at_paper_scale=preset == "paper")


def write_eval(
    path: Path,
    teacher: Sequence[float] | None,
    students: Mapping[Cell, Sequence[Sequence[float]]],
    n: int = 100,
    f1: float | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> Path:
    """`eval.csv`: ``teacher`` and each seed of a student as one accuracy for each of `TASKS`, with their mean.

    Args:
        f1: if given, the F1 of the first task for every model.
    """
    rows: list[dict[str, object]] = []

    def add(identity: dict[str, object], values: Sequence[float]) -> None:
        for task, value in zip(TASKS, values, strict=True):
            rows.append({**identity, "task": task, "metric": "accuracy", "value": value, "n": n})
        if f1 is not None:
            rows.append({**identity, "task": TASKS[0], "metric": "f1", "value": f1, "n": n})
        mean = sum(values) / len(values)
        rows.append({**identity, "task": "mean", "metric": "accuracy", "value": mean, "n": n * len(values)})

    if teacher is not None:
        add({"model": "teacher"}, teacher)
    for cell, runs in students.items():
        for seed, values in zip(seeds, runs, strict=False):
            add({"model": "student", **vars(cell), "seed": seed}, values)
    return _write(path, (*collect.EVAL_KEY, "value", "n", *PROVENANCE), rows)


def write_train(
    path: Path, runs: Mapping[Cell, Sequence[Sequence[tuple[int, float | str]]]], seeds: Sequence[int] = (0, 1, 2)
) -> Path:
    """`train.csv`: each seed of a cell as (tokens, validation KL or nothing) for steps 0, 1, ..."""
    rows = [
        {**vars(cell), "seed": seed, "step": step, "tokens": tokens, "val_kl": kl}
        for cell, curves in runs.items()
        for seed, curve in zip(seeds, curves, strict=False)
        for step, (tokens, kl) in enumerate(curve)
    ]
    columns = (*collect.CELL, "step", *collect.TRAIN_VALUES, *collect.TRAIN_PROVENANCE)
    return _write(path, columns, rows)


def profiled(
    layout: str, generated: int, decode: Sequence[float | str], memory: float | str = 50e6, **fixed: object
) -> list[dict[str, object]]:
    """Rows of a point, one for each decode rate; ``layout`` is empty for the teacher."""
    point = {"protocol": "same_runtime", "runtime": "transformers", "batch": 1, "prompt_tokens": 128, **fixed}
    model = {"model": "student" if layout else "teacher", "layout": layout, "generated_tokens": generated}
    return [
        {
            **point,
            **model,
            "repeat": repeat,
            "prefill_s": rate and 0.0123,
            "decode_tokens_per_s": rate,
            "peak_memory_bytes": rate and memory,
        }
        for repeat, rate in enumerate(decode)
    ]


def write_profile(path: Path, points: Iterable[list[dict[str, object]]]) -> Path:
    """`profile.csv` from lists as `profiled` makes them."""
    rows = [row for point in points for row in point]
    return _write(path, (*PROFILE_KEY, *PROFILE_FIGURES, *PROFILE_MARKS, *PROVENANCE), rows)


def _write(path: Path, columns: Sequence[str], rows: list[dict[str, object]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**{name: SOURCE[name] for name in columns if name in SOURCE}, **row} for row in rows)
    return path

"""Small CSV files in the shape of `results/<preset>/data`, for the tests of figures and page."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from matvlm.config import Ablation, BaseCell
from matvlm.experiments import AXES, Cell
from matvlm.report.settings import Report

ABLATION = {
    "losses": ("prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"),
    "layouts": ("even-25", "front-25", "middle-25", "end-25"),
    "ratios": (12.5, 25, 50),
    "inits": ("attention", "random", "release-random"),
    "divergences": ("kl", "reverse", "jsd", "ce", "l2"),
}
NARROW = {
    "losses": ("ce", "prob+layer+ce"),
    "layouts": ("even-25",),
    "ratios": (25,),
    "inits": ("attention",),
    "divergences": ("kl",),
}
PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": "false",
    "config_hash": "c0ffee00c0ffee00",
    "data_hash": "da7ada7ada7ada7a",
    "teacher_hash": "7eac4e77eac4e77e",
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "mamba_ssm": "",
    "causal_conv1d": "",
    "lmms_eval": "0.7.3",
    "device": "cpu x86_64",
    "kernel_path": "torch",
}
TASKS = ("easy_vqa_yesno", "easy_vqa_open", "sort_of_clevr_nonrelational", "sort_of_clevr_relational")
DIFFICULTY = (0.04, 0.0, 0.06, -0.1)
QUESTIONS = 250


def settings(seeds: int = 1, *, narrow: bool = False, preset: str = "tiny") -> Report:
    """Settings of a report with this many seeds; ``narrow``: axes with one or two values each."""
    axes = NARROW if narrow else ABLATION
    ablation = Ablation(**axes, seeds=tuple(range(seeds)))
    settings = {"preset": preset, "depth": 16, "base": BaseCell(), "ablation": ablation, "tasks": TASKS}
    return Report(**settings, at_paper_scale=preset == "paper")


def smol_settings() -> Report:
    """Settings as of a pretrained language model with 30 layers: ratios up to all of them, three seeds."""
    axes = ABLATION | {"ratios": (12.5, 25, 50, 100), "inits": ("attention", "random")}
    ablation = Ablation(**axes, seeds=(0, 1, 2))
    return Report(preset="smol", depth=30, base=BaseCell(), ablation=ablation, tasks=TASKS)


def cells(report: Report) -> list[Cell]:
    """Every cell of all axes once."""
    return list(dict.fromkeys(cell for axis in AXES for cell in report.cells(axis)))


def accuracy(cell: Cell, seed: int, task: int) -> float:
    """A made-up accuracy that differs by cell, seed and task."""
    value = 0.62 + 0.05 * ("layer" in cell.loss) + 0.08 * ("prob" in cell.loss) + 0.06 * ("ce" in cell.loss)
    value -= {"even-12.5": -0.04, "even-25": 0, "even-50": 0.09, "even-100": 0.3, "front-25": 0.12}.get(
        cell.layout, 0.05
    )
    value -= {"attention": 0, "random": 0.1}.get(cell.init, 0.3)
    value -= {"kl": 0, "none": 0, "reverse": 0.01, "jsd": 0.02}.get(cell.divergence, 0.04)
    wobble = math.sin(37 * seed + 11 * task + sum(map(ord, cell.path))) + 1.4 * math.sin(5 * seed + len(cell.path))
    return round(value + DIFFICULTY[task] + 0.018 * wobble, 4)


def eval_frame(report: Report) -> pd.DataFrame:
    """Rows of `eval.csv`: accuracy of four tasks, F1 of the first, and the mean."""
    rows: list[dict] = []
    for cell in (None, *cells(report)):
        for seed in report.ablation.seeds if cell else ("",):
            values = [accuracy(cell, seed, t) if cell else 0.92 + DIFFICULTY[t] / 2 for t in range(len(TASKS))]
            names = ("init", "layout", "loss", "divergence")
            start = {"model": "student" if cell else "teacher"}
            start |= {name: getattr(cell, name) if cell else "" for name in names} | {"seed": seed}
            for task, value in zip(TASKS, values, strict=True):
                rows.append({**start, "task": task, "metric": "accuracy", "value": value, "n": QUESTIONS})
            rows.append({**start, "task": TASKS[0], "metric": "f1", "value": values[0] - 0.02, "n": QUESTIONS})
            mean = sum(values) / len(values)
            rows.append({**start, "task": "mean", "metric": "accuracy", "value": mean, "n": 4 * QUESTIONS})
    return pd.DataFrame([row | PROVENANCE for row in rows])


def train_frame(report: Report) -> pd.DataFrame:
    """Rows of `train.csv` of every cell: 40 steps, the validation KL at every fifth."""
    rows = []
    for cell in cells(report):
        start, floor, speed = {"attention": (1.2, 0.12, 9), "random": (2.0, 0.3, 16)}.get(
            cell.init, (4.5, 1.1, 25)
        )
        for seed in report.ablation.seeds:
            for step in range(41):
                kl = floor + (start - floor) * math.exp(-step / speed) * (1 + 0.08 * math.sin(step + 9 * seed))
                names = {name: getattr(cell, name) for name in ("init", "layout", "loss", "divergence")}
                values = {"step": step, "tokens": step * 3120 + 17 * seed * (step > 0)}
                rows.append({**names, "seed": seed, **values, "val_kl": "" if step % 5 else round(kl, 5)})
    return pd.DataFrame(rows)


def profile_frame(
    layouts: tuple[str, ...] = ("even-12.5", "even-25", "even-50"),
    generated: tuple[int, ...] = (128, 512, 1536),
    prompts: tuple[int, ...] = (128,),
    scale: float = 1.0,
    failed: tuple[tuple[str, int], ...] = (),
) -> pd.DataFrame:
    """Rows of `profile.csv`: three repeats a point, one row with empty figures for each point in ``failed``."""
    rows = []
    for layout in ("", *layouts):
        share = float(layout.split("-")[1]) / 100 if layout else 0
        for prompt in prompts:
            for tokens in generated:
                point = {"model": "student" if layout else "teacher", "layout": layout, "protocol": "same_runtime"}
                point |= {
                    "runtime": "transformers",
                    "batch": 1,
                    "prompt_tokens": prompt,
                    "generated_tokens": tokens,
                }
                if (layout, tokens) in failed:
                    empty = {"prefill_s": "", "decode_tokens_per_s": "", "peak_memory_bytes": ""}
                    rows.append({**point, "repeat": 0, **empty})
                    continue
                for repeat in range(3):
                    step = 0.0055 + 2.2e-6 * (prompt + tokens) * (1 - share) + 0.0012 * share
                    step *= 1 + 0.02 * math.sin(repeat * 2 + tokens)
                    memory = 9.2e6 + 6.1e3 * (prompt + tokens) * (1 - share) + 4e5 * share
                    prefill = (0.031 + 0.02 * share + 1e-4 * prompt) * (1 + 0.03 * math.sin(3 * repeat + tokens))
                    values = {"prefill_s": prefill, "decode_tokens_per_s": 1 / step}
                    rows.append({**point, "repeat": repeat, **values, "peak_memory_bytes": int(memory * scale)})
    return pd.DataFrame([row | PROVENANCE for row in rows])


def runs_frame(report: Report) -> pd.DataFrame:
    """Rows of `runs.csv`: a distillation and an evaluation of each cell and seed."""
    cost = {"wall_s": 30.5, "gpu_s": 0.0, "peak_memory_bytes": 900_000_000}
    rows = []
    for cell in cells(report):
        names = {name: getattr(cell, name) for name in ("init", "layout", "loss", "divergence")}
        for seed in report.ablation.seeds:
            rows += [{"step": step, "model": "student", **names, "seed": seed} for step in ("distill", "evaluate")]
    return pd.DataFrame([row | cost | PROVENANCE for row in rows])


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as CSV; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path

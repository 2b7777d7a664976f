"""From what lmms-eval hands back to the rows and samples that we keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from matvlm.config import Model, explain
from matvlm.errors import UserError

METRICS = ("accuracy", "f1", "precision", "recall", "yes_ratio")
"""In the order in which rows list them; all but the first belong to yes/no tasks only."""
MEAN = "mean"
"""Task of the rows that hold the plain mean over the tasks."""

Row = dict[str, object]


class CellRecord(Model):
    """Entry ``cell`` in the `provenance.json` of a distilled student."""

    init: str
    layout: str
    loss: str
    divergence: str
    seed: int


def identify(folder: Path, provenance: dict[str, Any]) -> Row:
    """The columns model, init, layout, loss, divergence and seed of a model's rows; of a teacher all but the
    first are None.

    Args:
        provenance: the folder's `provenance.json`.

    Raises:
        UserError: a hybrid without its cell, or a cell that lacks something.
    """
    if "cell" not in provenance:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config.get("text_config", {}).get("model_type", "")
        except (ValueError, AttributeError):
            raise UserError(f"{folder / 'config.json'}: cut short, or not the configuration of a model") from None
        if kind.startswith("hybrid"):
            raise UserError(
                f"{folder / 'provenance.json'}: 'cell' is missing; allowed: a teacher or a distilled student"
            )
        return {"model": "teacher"} | dict.fromkeys(CellRecord.model_fields)
    try:
        cell = CellRecord.model_validate(provenance["cell"])
    except ValidationError as error:
        raise UserError(f"{folder / 'provenance.json'}: cell: {explain(error)}") from None
    return {"model": "student"} | cell.model_dump()


def make_rows(results: dict[str, Any], tasks: tuple[str, ...], identity: Row) -> list[Row]:
    """One row for each task and metric, then the mean accuracy over the tasks with all their questions."""
    rows: list[Row] = []
    accuracies: list[float] = []
    counts: list[int] = []
    for task in tasks:
        scores = results["results"][task]
        counts.append(len(results["samples"][task]))
        accuracies.append(float(scores["accuracy,none"]))
        for metric in METRICS:
            if (value := scores.get(f"{metric},none")) is not None:
                rows.append({**identity, "task": task, "metric": metric, "value": float(value), "n": counts[-1]})
    mean = sum(accuracies) / len(accuracies)
    rows.append({**identity, "task": MEAN, "metric": "accuracy", "value": mean, "n": sum(counts)})
    return rows


def sample_lines(results: dict[str, Any], task: str) -> str:
    """The text of `samples/{task}.jsonl`: id, question, answer, prediction and whether it is correct."""
    lines = []
    for sample in results["samples"][task]:
        accuracy = sample["accuracy"]  # a number, or what POPE's scorer makes of a question
        score = accuracy["score"] if isinstance(accuracy, dict) else accuracy
        row = {name: sample["doc"][name] for name in ("id", "question", "answer")}
        row |= {"prediction": sample["filtered_resps"][0], "correct": bool(score)}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)
